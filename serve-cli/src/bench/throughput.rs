//! `wootz bench throughput`: many requests at once.
use super::breakdown::{self, Breakdown};
use super::model::Workload;
use super::workload::{self, Metrics};
use super::{BenchModelArgs, write_json};
use crate::device::{self, EmulationNote};
use crate::parse;
use crate::speculation::Acceptance;
use crate::terminal::{Progress, Terminal};
use anyhow::{Context, Result, ensure};
use clap::Args;
use engine::scheduler::SequenceRequest;
use kernels_host::case::Rng;
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Sequences at once, unless --max-num-seqs says otherwise: vLLM's default.
const MOST_SEQUENCES: usize = 256;

/// Arguments of `wootz bench throughput`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz bench throughput --num-prompts 64                                   tiny-chat\n  \
    wootz bench throughput ./Llama-3.1-8B/config.json --load-format dummy --input-len 512 --output-len 128 --num-prompts 512\n  \
    wootz bench throughput ./Llama-3.1-8B --prefix-len 1024 --input-len 128 --num-prompts 200\n\n\
    Prompts are random tokens, answers do not end early. Names and definitions are those of `vllm bench`.")]
pub struct ThroughputArgs {
    #[command(flatten)]
    model: BenchModelArgs,
    /// Tokens of every prompt
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = parse::tokens)]
    input_len: usize,
    /// Tokens of every answer
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse::tokens)]
    output_len: usize,
    /// Requests, all queued at the start
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse::count_in(1..=1_000_000))]
    num_prompts: usize,
    /// Tokens that all prompts start with, before those of --input-len: what the prefix cache shares
    #[arg(long, value_name = "TOKENS", value_parser = parse::tokens)]
    prefix_len: Option<usize>,
    /// Write the results to this file too
    #[arg(long, value_name = "FILE", visible_alias = "json")]
    output_json: Option<PathBuf>,
    /// Draw three decode steps to this SVG file
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ThroughputArgs, terminal: &Terminal) -> Result<ExitCode> {
    let (name, config) = args.model.config()?;
    let prefix = args.prefix_len.unwrap_or(0);
    let (input, output) = (prefix + args.input_len, args.output_len);
    let workload = Workload { input, output, sequences: args.num_prompts.min(MOST_SEQUENCES) };
    let mut engine = args.model.load(&name, &config, &workload, terminal)?;
    let _note = EmulationNote::new(engine.runner().device());
    let mut rng = Rng::new(args.model.seed);
    let mut tokens = |len: usize| -> Vec<u32> { (0..len).map(|_| rng.below(config.vocab_size) as u32).collect() };
    let shared = tokens(prefix);
    let mut seeds = Rng::new(!args.model.seed);
    let requests: Vec<_> = (0..args.num_prompts)
        .map(|_| SequenceRequest {
            prompt: [shared.clone(), tokens(args.input_len)].concat(),
            max_tokens: args.output_len,
            sampling: workload::greedy(&mut seeds),
            ..SequenceRequest::default()
        })
        .collect();
    // One request by itself first: what happens only once is not timed.
    workload::run(
        &mut engine,
        vec![SequenceRequest { max_tokens: 4, prompt: vec![1; 8], ..Default::default() }],
        |_| (),
    )?;
    let progress = Progress::new(terminal, &format!("{name}: requests"));
    engine.start_trace();
    let before = engine.metrics();
    let run = workload::run(&mut engine, requests, |done| progress.set(done as u64, args.num_prompts as u64))?;
    drop(progress);
    let steps = engine.take_trace()?.unwrap_or_default();
    ensure!(run.records.iter().all(|record| record.tokens.len() == args.output_len), "an answer ended early");
    let metrics = Metrics::of(std::slice::from_ref(&run));
    let breakdown = Breakdown::of(&steps);
    let device = device::describe(engine.runner().device());
    let mut out = io::stdout();
    let random = if args.model.is_dummy() { ", random weights" } else { "" };
    writeln!(
        out,
        "{name}{random} on {device}: {} requests, input {}, output {}, {:.2} s",
        args.num_prompts,
        prefix + args.input_len,
        args.output_len,
        run.seconds
    )?;
    write!(out, "{}{}", metrics.table(), breakdown.table())?;
    let counts = engine.metrics();
    let acceptance = Acceptance::between(&before, &counts);
    if let Some(acceptance) = &acceptance {
        writeln!(out, "{:<24}{}", "Speculation", acceptance.line())?;
    }
    if prefix > 0 {
        let share = counts.prefix_hits as f64 / counts.prefix_queries.max(1) as f64;
        writeln!(out, "{:<24}{:>9.1}%", "Prefix cache hits", share * 100.0)?;
    }
    if let Some(path) = &args.timeline {
        let svg =
            breakdown::timeline(&steps).context("there are no decode steps to draw: they run as graphs on a GPU")?;
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.output_json {
        let mut value = json!({
            "input_len": prefix + args.input_len,
            "prefix_len": prefix,
            "output_len": args.output_len,
            "num_prompts": args.num_prompts,
            "num_requests": args.num_prompts,
            "elapsed_time": run.seconds,
            "requests_per_second": args.num_prompts as f64 / run.seconds,
            "tokens_per_second": ((input + output) * args.num_prompts) as f64 / run.seconds,
            "prefix_cache_queries": counts.prefix_queries,
            "prefix_cache_hits": counts.prefix_hits,
            "preemptions": counts.preemptions,
            "breakdown": breakdown.json(),
        });
        metrics.write(&mut value);
        if let Some(acceptance) = &acceptance {
            acceptance.write(&mut value);
        }
        args.model.describe(&engine, &name, &device, &mut value);
        write_json(path, &value)?;
    }
    Ok(ExitCode::SUCCESS)
}
