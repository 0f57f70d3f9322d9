//! `wootz generate`.
use crate::device::{self, DeviceArgs, EmulationNote};
use crate::model::{self, LimitArgs, ModelArgs, SamplingArgs};
use crate::terminal::{Terminal, harmless};
use anyhow::{Context, Result, bail};
use clap::Args;
use engine::llm::{Completion, Llm};
use engine::scheduler::FinishReason;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Tokens of an answer where nobody says: a base model need not ever stop by itself.
const DEFAULT_MAX_TOKENS: usize = 256;

/// Arguments of `wootz generate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz generate --prompt \"Once upon a time\" --max-tokens 64\n  \
    wootz generate ./Qwen2.5-0.5B --prompt \"fn main() {\" --stop \"\\n}\"\n  \
    wootz generate ./Llama-3.1-8B --prompt One --prompt Two --json     two prompts in one batch\n  \
    cat story.txt | wootz generate --prompt-file - --temperature 0.8 --seed 7\n\n\
    Prompts are continued as they are, without a chat template; greedily, unless a sampling flag is given.")]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A text to continue (repeatable: one batch)
    #[arg(short, long, value_name = "TEXT", required_unless_present = "prompt_file")]
    prompt: Vec<String>,
    /// A file whose whole text is a prompt, - is stdin (repeatable)
    #[arg(short = 'f', long, value_name = "FILE")]
    prompt_file: Vec<PathBuf>,
    /// Print one JSON object: per prompt text, token counts, finish reason and times
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Runs the command.
pub fn run(args: &GenerateArgs, terminal: &Terminal) -> Result<ExitCode> {
    args.sampling.validate()?;
    let source = args.model.source()?;
    let mut texts = args.prompt.clone();
    for file in &args.prompt_file {
        texts.push(read_prompt(file)?);
    }
    let mut llm = model::load(&source, &args.device, &args.limits, terminal)?;
    let _note = EmulationNote::new(llm.engine().runner().device());
    let prompts = texts.iter().map(|text| llm.text_prompt(text)).collect::<Result<Vec<_>, _>>()?;
    let mut options = args.sampling.greedy_unless_asked(llm.generation_config());
    options.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);

    let stream = prompts.len() == 1 && !args.json;
    let mut out = io::stdout();
    let mut written = Ok(());
    let completions = llm.generate(&prompts, &options, |_, piece| {
        if stream {
            written = out.write_all(harmless(piece, terminal.stdout).as_bytes()).and_then(|()| out.flush());
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    if args.json {
        writeln!(out, "{:#}", report(&llm, &texts, &completions))?;
    } else if stream {
        writeln!(out)?;
    } else {
        for (i, completion) in completions.iter().enumerate() {
            writeln!(
                out,
                "{}\n{}",
                terminal.bold(&format!("--- prompt {}", i + 1)),
                harmless(&completion.text, terminal.stdout)
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file's text; one line break at its end belongs to the file and not to the prompt.
fn read_prompt(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let name = if path == Path::new("-") {
        io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
        "stdin".to_owned()
    } else {
        bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        path.display().to_string()
    };
    let Ok(mut text) = String::from_utf8(bytes) else { bail!("{name} is not UTF-8 text") };
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn report(llm: &Llm, texts: &[String], completions: &[Completion]) -> Value {
    let results: Vec<Value> = texts.iter().zip(completions).map(|(text, done)| completion(text, done)).collect();
    json!({"model": llm.name(), "device": device::describe(llm.engine().runner().device()), "results": results})
}

fn completion(prompt: &str, done: &Completion) -> Value {
    let reason = done.finish_reason.map(|reason| match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
    });
    json!({
        "prompt": prompt,
        "text": done.text,
        "finish_reason": reason,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.tokens.len(),
        "ttft_ms": done.time_to_first_token.as_secs_f64() * 1e3,
        "total_ms": done.total_time.as_secs_f64() * 1e3,
        "output_tokens_per_second": done.decode_rate(),
    })
}
