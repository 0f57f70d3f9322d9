//! `wootz bench throughput`: many requests at once.
use super::breakdown::Breakdown;
use super::model::Workload;
use super::workload::{self, Metrics};
use super::{BenchModelArgs, write_json, write_timeline};
use crate::device::{self, EmulationNote};
use crate::parse;
use crate::speculation::Acceptance;
use crate::terminal::{Progress, Terminal};
use anyhow::{Result, ensure};
use clap::Args;
use engine::grammar::CompiledGrammar;
use engine::sampling::SamplingParams;
use engine::scheduler::SequenceRequest;
use kernels_host::case::Rng;
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Sequences at once, unless --max-num-seqs says otherwise: 512 prompts of 512 tokens took 2 % longer with 256.
const MOST_SEQUENCES: usize = 512;

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
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = parse::tokens, visible_alias = "random-input-len", alias = "prefix-repetition-suffix-len")]
    input_len: usize,
    /// Tokens of every answer
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse::tokens, visible_alias = "random-output-len", alias = "prefix-repetition-output-len")]
    output_len: usize,
    /// Requests, all queued at the start
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse::count_in(1..=1_000_000))]
    num_prompts: usize,
    /// Tokens that all prompts start with, before those of --input-len: what the prefix cache shares
    #[arg(long, value_name = "TOKENS", value_parser = parse::tokens, visible_alias = "prefix-repetition-prefix-len")]
    prefix_len: Option<usize>,
    /// Different prefixes that the prompts take in turns
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse::count_in(1..=100_000), visible_alias = "prefix-repetition-num-prefixes")]
    num_prefixes: usize,
    /// Lengths of prompts (without prefix) and answers are random, within this share of --input-len and --output-len
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = parse::range_ratio)]
    random_range_ratio: f64,
    /// Time the kernels of one more prefill and decode step one by one (on a GPU)
    #[arg(long)]
    profile: bool,
    /// Write the results to this file too
    #[arg(long, value_name = "FILE", visible_alias = "json")]
    output_json: Option<PathBuf>,
    /// Draw three decode steps, and on a GPU one kernel by kernel, to this SVG file
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ThroughputArgs, terminal: &Terminal) -> Result<ExitCode> {
    let (name, config) = args.model.config()?;
    let prefix = args.prefix_len.unwrap_or(0);
    let longest = |len: usize| (len as f64 * (1.0 + args.random_range_ratio)) as usize;
    let workload = Workload {
        input: prefix + longest(args.input_len),
        output: longest(args.output_len),
        sequences: args.num_prompts.min(MOST_SEQUENCES),
    };
    let mut engine = args.model.load(&name, &config, &workload, terminal)?;
    let _note = EmulationNote::new(engine.runner().device());
    let requests = requests(args, config.vocab_size, args.model.grammar(&config)?);
    let (input, output) = requests
        .iter()
        .fold((0, 0), |(input, output), request| (input + request.prompt.len(), output + request.max_tokens));
    let profiled = requests.iter().take(engine.limits().max_sequences).cloned().collect();
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
    let mut steps = engine.take_trace()?.unwrap_or_default();
    let counts = engine.metrics();
    let generated: usize = run.records.iter().map(|record| record.tokens.len()).sum();
    ensure!(generated == output, "an answer ended early: {generated} tokens instead of {output}");
    if args.profile || args.timeline.is_some() {
        steps.extend(workload::profile(&mut engine, profiled)?);
    }
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
    let acceptance = Acceptance::between(&before, &counts);
    if let Some(acceptance) = &acceptance {
        writeln!(out, "{:<24}{}", "Speculation", acceptance.line())?;
    }
    if prefix > 0 {
        let share = counts.prefix_hits as f64 / counts.prefix_queries.max(1) as f64;
        writeln!(out, "{:<24}{:>9.1}%", "Prefix cache hits", share * 100.0)?;
    }
    if let Some(path) = &args.timeline {
        write_timeline(path, &steps)?;
    }
    if let Some(path) = &args.output_json {
        let mut value = json!({
            "input_len": prefix + args.input_len,
            "prefix_len": prefix,
            "num_prefixes": args.num_prefixes,
            "random_range_ratio": args.random_range_ratio,
            "output_len": args.output_len,
            "num_prompts": args.num_prompts,
            "num_requests": args.num_prompts,
            "elapsed_time": run.seconds,
            "requests_per_second": args.num_prompts as f64 / run.seconds,
            "tokens_per_second": (input + output) as f64 / run.seconds,
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

/// Prompts of random tokens behind the shared prefixes.
fn requests(args: &ThroughputArgs, vocab: usize, grammar: Option<CompiledGrammar>) -> Vec<SequenceRequest> {
    let mut rng = Rng::new(args.model.seed);
    let tokens = |rng: &mut Rng, len: usize| -> Vec<u32> { (0..len).map(|_| rng.below(vocab) as u32).collect() };
    let prefix = args.prefix_len.unwrap_or(0);
    let prefixes: Vec<_> = (0..args.num_prefixes).map(|_| tokens(&mut rng, prefix)).collect();
    let length = |rng: &mut Rng, len: usize| {
        let spread = (len as f64 * args.random_range_ratio) as usize;
        (len - spread + rng.below(2 * spread + 1)).max(1)
    };
    let mut seeds = Rng::new(!args.model.seed);
    (0..args.num_prompts)
        .map(|i| {
            let own = length(&mut rng, args.input_len);
            SequenceRequest {
                prompt: [prefixes[i % prefixes.len()].clone(), tokens(&mut rng, own)].concat(),
                max_tokens: length(&mut rng, args.output_len),
                sampling: SamplingParams { grammar: grammar.clone(), ..workload::greedy(&mut seeds) },
                ..SequenceRequest::default()
            }
        })
        .collect()
}
