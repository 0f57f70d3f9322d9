//! `wootz generate`.
use crate::device::{self, DeviceArgs, EmulationNote};
use crate::model::{self, LimitArgs, ModelArgs, SamplingArgs};
use crate::parse;
use crate::terminal::{Terminal, harmless};
use anyhow::{Context, Result, bail};
use clap::Args;
use engine::grammar::Grammar;
use engine::llm::{Answer, Completion, Llm, SamplingParams};
use engine::sampling::MAX_LOGPROBS;
use engine::scheduler::{BeamParams, EarlyStopping, FinishReason, MAX_BEAMS, TokenLogprobs};
use engine::tokenizer::Tokenizer;
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens of an answer where nobody says: a base model need not ever stop by itself.
const DEFAULT_MAX_TOKENS: usize = 256;

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Arguments of `wootz generate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz generate --prompt \"Once upon a time\" --max-tokens 64\n  \
    wootz generate ./Qwen2.5-0.5B --prompt \"fn main() {\" --stop \"\\n}\"\n  \
    wootz generate ./Llama-3.1-8B --prompt One --prompt Two --json     two prompts in one batch\n  \
    cat story.txt | wootz generate --prompt-file - --temperature 0.8 --seed 7\n  \
    wootz generate -p \"Once upon a time\" --n 3 --temperature 1              three answers that share their prompt\n  \
    wootz generate -p \"Once upon a time\" --num-beams 4 --json               beam search, with scores\n  \
    wootz generate -p \"2 + 2 =\" --logprobs 5 --json                        what else it could have said\n  \
    wootz generate -p \"Two numbers as JSON: \" --json-schema '{\"type\": \"array\", \"items\": {\"type\": \"integer\"}}'\n\n\
    Prompts are continued as they are, without a chat template; greedily, unless a sampling flag is given.\n\
    Ctrl-C ends the answers as they are.")]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A text to continue (repeatable: one batch)
    #[arg(short, long, value_name = "TEXT", required_unless_present = "prompt_file")]
    prompt: Vec<String>,
    /// A file whose whole text is a prompt, - is stdin (repeatable)
    #[arg(short = 'f', long, value_name = "FILE")]
    prompt_file: Vec<PathBuf>,
    /// Print one JSON object: per answer text, token counts, finish reason and times
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    answers: AnswerArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// How many answers, and what is told of them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Answers")]
struct AnswerArgs {
    /// Answers to each prompt; with --num-beams the best so many
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse::count_in(1..=256))]
    n: usize,
    /// Beam search with so many beams instead of sampling
    #[arg(long, value_name = "N", value_parser = parse::count_in(2..=MAX_BEAMS))]
    num_beams: Option<usize>,
    /// Beam search: a score is divided by the length to this power; above 0 favours long answers
    #[arg(long, value_name = "X", default_value = "1", allow_negative_numbers = true, requires = "num_beams")]
    length_penalty: f32,
    /// Beam search: when there are enough answers, stop at once (true), when no better one is likely (false), or when none
    /// is possible (never)
    #[arg(long, value_name = "WHEN", default_value = "false", value_parser = early_stopping, requires = "num_beams")]
    early_stopping: EarlyStopping,
    /// Log-probabilities of every token and of the K most likely ones, in the JSON
    #[arg(long, value_name = "K", value_parser = parse::count_in(0..=MAX_LOGPROBS as usize), requires = "json", conflicts_with = "num_beams")]
    logprobs: Option<usize>,
    /// Go on after end-of-sequence tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Fewest tokens of an answer
    #[arg(long, value_name = "N", default_value = "0", conflicts_with = "num_beams")]
    min_tokens: usize,
    /// Answers are JSON that this schema describes: a file, or the schema itself
    #[arg(long, value_name = "FILE|JSON", group = "grammar", conflicts_with = "num_beams")]
    json_schema: Option<String>,
    /// Answers match this regular expression, all of them
    #[arg(long, value_name = "REGEX", group = "grammar", conflicts_with = "num_beams")]
    regex: Option<String>,
    /// Answers are what this Lark grammar describes
    #[arg(long, value_name = "FILE", group = "grammar", conflicts_with = "num_beams")]
    lark: Option<PathBuf>,
}

fn early_stopping(text: &str) -> Result<EarlyStopping, String> {
    match text {
        "true" => Ok(EarlyStopping::Yes),
        "false" => Ok(EarlyStopping::Heuristic),
        "never" => Ok(EarlyStopping::Never),
        _ => Err("expected true, false or never".into()),
    }
}

impl AnswerArgs {
    fn over(&self, params: SamplingParams) -> Result<SamplingParams> {
        let &AnswerArgs { length_penalty, early_stopping, .. } = self;
        Ok(SamplingParams {
            grammar: self.grammar()?,
            n: self.n,
            beam: self.num_beams.map(|width| BeamParams { width, length_penalty, early_stopping }),
            logprobs: self.logprobs.map(|top| top as u32),
            ignore_eos: self.ignore_eos,
            min_tokens: self.min_tokens,
            ..params
        })
    }

    fn grammar(&self) -> Result<Option<Grammar>> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(match (&self.json_schema, &self.regex, &self.lark) {
            (Some(schema), ..) if schema.trim_start().starts_with('{') => Some(Grammar::JsonSchema((**schema).into())),
            (Some(file), ..) => Some(Grammar::JsonSchema(read(file.as_ref())?.into())),
            (_, Some(regex), _) => Some(Grammar::Regex((**regex).into())),
            (.., Some(file)) => Some(Grammar::Lark(read(file)?.into())),
            _ => None,
        })
    }
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
    let mut params = args.answers.over(args.sampling.greedy_unless_asked(llm.generation_config()))?;
    params.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);

    // The first Ctrl-C ends the answers, the second one the process.
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), Arc::clone(&interrupted))?;
    flag::register(SIGINT, Arc::clone(&interrupted))?;
    let stream = prompts.len() == 1 && params.n == 1 && !args.json;
    let mut out = io::stdout();
    let mut written = Ok(());
    let completions = llm.stream(&prompts, &params, Some(&interrupted), |_, delta| {
        if stream {
            written = out.write_all(harmless(&delta.text, terminal.stdout).as_bytes()).and_then(|()| out.flush());
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
            for (j, answer) in completion.answers.iter().enumerate() {
                let which = if params.n > 1 { format!(", answer {}", j + 1) } else { String::new() };
                let head = terminal.bold(&format!("--- prompt {}{which}", i + 1));
                writeln!(out, "{head}\n{}", harmless(&answer.text, terminal.stdout))?;
            }
        }
    }
    Ok(if interrupted.load(Ordering::Relaxed) { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
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
    let tokenizer = llm.text_model().tokenizer();
    let results = texts.iter().zip(completions).flat_map(|(text, done)| {
        done.answers.iter().enumerate().map(move |(index, answer)| result(text, done, index, answer, tokenizer))
    });
    let results: Vec<Value> = results.collect();
    json!({"model": llm.name(), "device": device::describe(llm.engine().runner().device()), "results": results})
}

fn result(prompt: &str, done: &Completion, index: usize, answer: &Answer, tokenizer: &Tokenizer) -> Value {
    let reason = match answer.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
    };
    let mut value = json!({
        "prompt": prompt,
        "index": index,
        "text": answer.text,
        "finish_reason": reason,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": answer.tokens.len(),
        "ttft_ms": done.time_to_first_token.as_secs_f64() * 1e3,
        "total_ms": done.total_time.as_secs_f64() * 1e3,
        "output_tokens_per_second": done.decode_rate(),
    });
    if let Some(score) = answer.score {
        value["score"] = json!(score);
    }
    if !answer.logprobs.is_empty() {
        let tokens = answer.tokens.iter().zip(&answer.logprobs);
        value["logprobs"] = tokens.map(|(token, logprobs)| logprob(*token, logprobs, tokenizer)).collect();
    }
    value
}

fn logprob(token: u32, logprobs: &TokenLogprobs, tokenizer: &Tokenizer) -> Value {
    let one = |token: u32, logprob: f32| json!({"token_id": token, "token": tokenizer.decode(&[token], false), "logprob": logprob});
    let mut value = one(token, logprobs.logprob);
    value["rank"] = json!(logprobs.rank);
    value["top_logprobs"] = logprobs.top.iter().map(|(token, logprob)| one(*token, *logprob)).collect();
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, FromArgMatches, Parser};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GenerateArgs,
    }

    fn params(line: &str) -> Result<SamplingParams, clap::Error> {
        let matches =
            Line::command().try_get_matches_from(["generate", "-p", "x"].into_iter().chain(line.split(' ')))?;
        let args = Line::from_arg_matches(&matches)?.args;
        let params = args.answers.over(args.sampling.greedy_unless_asked(&Default::default()));
        Ok(params.expect("no grammar to be read"))
    }

    #[test]
    fn flags_reach_the_engine() {
        let beams = params("--num-beams 4 --n 2 --length-penalty -0.5 --early-stopping never").unwrap();
        let beam = BeamParams { width: 4, length_penalty: -0.5, early_stopping: EarlyStopping::Never };
        assert_eq!((beams.n, beams.beam), (2, Some(beam)));
        let biased =
            params("--json --logprobs 0 --logit-bias 7=-inf --logit-bias 8=1.5 --frequency-penalty 0.5").unwrap();
        assert_eq!((biased.logprobs, biased.frequency_penalty), (Some(0), 0.5));
        assert_eq!(biased.logit_bias, [(7, f32::NEG_INFINITY), (8, 1.5)]);
        for refused in ["--num-beams 1", "--logprobs 3", "--length-penalty 2", "--logit-bias 7", "--n 0"] {
            assert!(params(refused).is_err(), "{refused}");
        }
    }
}
