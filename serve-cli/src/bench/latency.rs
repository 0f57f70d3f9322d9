//! `wootz bench latency`: one batch of equal requests through the engine, again and again. Metric names and
//! definitions are those of `vllm bench`.
use super::breakdown::Breakdown;
use super::model::Workload;
use super::workload::{self, Metrics, Run};
use super::{BenchModelArgs, mean, percentile, sort, write_json, write_timeline};
use crate::device::{self, EmulationNote};
use crate::parse;
use crate::speculation::Acceptance;
use crate::terminal::{Progress, Terminal};
use anyhow::Result;
use clap::Args;
use engine::grammar::CompiledGrammar;
use engine::sampling::SamplingParams;
use engine::scheduler::SequenceRequest;
use kernels_host::case::Rng;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `wootz bench latency`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz bench latency                                          tiny-chat\n  \
    wootz bench latency ./Llama-3.1-8B --batch-size 32 --input-len 1024 --output-len 128\n  \
    wootz bench latency ./Llama-3.1-8B/config.json --load-format dummy --input-len 2048 --batch-size 1\n  \
    wootz bench latency ./Llama-3.1-8B --batch-size 1 --prefix-len 3686 --input-len 410   nine tenths of the prompt cached\n  \
    wootz bench latency ./Llama-3.1-8B/config.json --load-format dummy --batch-size 1 \\\n      \
        --draft-config ./Llama-3.2-1B/config.json --num-draft-tokens 4 --spec-synthetic-acceptance 0.8\n\n\
    Prompts are random tokens, answers do not end early. TTFT is the time until a sequence has its first token,\n\
    TPOT is (end to end - TTFT) / (output length - 1). With --load-format dummy a config.json is enough.")]
pub struct LatencyArgs {
    #[command(flatten)]
    model: BenchModelArgs,
    /// Tokens of every prompt
    #[arg(long, value_name = "TOKENS", default_value = "32", value_parser = parse::tokens)]
    input_len: usize,
    /// Tokens of every answer
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse::tokens)]
    output_len: usize,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value = "8", value_parser = parse::count_in(1..=4096))]
    batch_size: usize,
    /// Timed iterations
    #[arg(long, value_name = "N", default_value = "10", value_parser = parse::count_in(1..=100_000))]
    num_iters: usize,
    /// Iterations before the timed ones
    #[arg(long, value_name = "N", default_value = "2", value_parser = parse::count_in(0..=100_000))]
    num_iters_warmup: usize,
    /// Write the results to this file too
    #[arg(long, value_name = "FILE", visible_alias = "json")]
    output_json: Option<PathBuf>,
    /// Tokens that all prompts of all iterations start with, before those of --input-len: the prefix cache has them after
    /// the warm-up
    #[arg(long, value_name = "TOKENS", value_parser = parse::tokens)]
    prefix_len: Option<usize>,
    /// Time the kernels of one more prefill and decode step one by one (on a GPU)
    #[arg(long)]
    profile: bool,
    /// Draw three decode steps, and on a GPU one kernel by kernel, to this SVG file
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &LatencyArgs, terminal: &Terminal) -> Result<ExitCode> {
    let (name, config) = args.model.config()?;
    let prefix = args.prefix_len.unwrap_or(0);
    let input = prefix + args.input_len;
    let workload = Workload { input, output: args.output_len, sequences: args.batch_size };
    let mut engine = args.model.load(&name, &config, &workload, terminal)?;
    let _note = EmulationNote::new(engine.runner().device());
    let grammar = args.model.grammar(&config)?;
    let progress = Progress::new(terminal, &format!("{name}: iterations"));
    let mut rng = Rng::new(args.model.seed);
    let shared: Vec<u32> = (0..prefix).map(|_| rng.below(config.vocab_size) as u32).collect();
    let count = args.num_iters_warmup + args.num_iters;
    let (mut runs, mut counts) = (Vec::new(), engine.metrics());
    for i in 0..count {
        progress.set(i as u64, count as u64);
        if i == args.num_iters_warmup {
            engine.start_trace();
            counts = engine.metrics();
        }
        let run =
            workload::run(&mut engine, requests(args, &shared, config.vocab_size, grammar.as_ref(), &mut rng), |_| ())?;
        if i >= args.num_iters_warmup {
            runs.push(run);
        }
    }
    drop(progress);
    let mut steps = engine.take_trace()?.unwrap_or_default();
    let acceptance = Acceptance::between(&counts, &engine.metrics());
    if args.profile || args.timeline.is_some() {
        steps.extend(workload::profile(
            &mut engine,
            requests(args, &shared, config.vocab_size, grammar.as_ref(), &mut rng),
        )?);
    }
    let (latencies, metrics, breakdown) = (Latencies::of(&runs), Metrics::of(&runs), Breakdown::of(&steps));
    let device = device::describe(engine.runner().device());
    let mut out = io::stdout();
    let random = if args.model.is_dummy() { ", random weights" } else { "" };
    let load = engine.load_times();
    writeln!(
        out,
        "{name}{random} on {device}: batch {}, input {}, output {}, {} iterations, loaded in {:.2} s",
        args.batch_size,
        input,
        args.output_len,
        args.num_iters,
        (load.weights + load.ready).as_secs_f64()
    )?;
    write!(out, "{}{}{}", latencies.table(), metrics.table(), breakdown.table())?;
    if let Some(acceptance) = &acceptance {
        writeln!(out, "{:<24}{}", "Speculation", acceptance.line())?;
    }
    if let Some(path) = &args.timeline {
        write_timeline(path, &steps)?;
    }
    if let Some(path) = &args.output_json {
        let mut value = json!({
            "input_len": input,
            "prefix_len": prefix,
            "output_len": args.output_len,
            "batch_size": args.batch_size,
            "num_iters": args.num_iters,
            "breakdown": breakdown.json(),
        });
        latencies.write(&mut value);
        metrics.write(&mut value);
        if let Some(acceptance) = &acceptance {
            acceptance.write(&mut value);
        }
        args.model.describe(&engine, &name, &device, &mut value);
        write_json(path, &value)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn requests(
    args: &LatencyArgs,
    shared: &[u32],
    vocab: usize,
    grammar: Option<&CompiledGrammar>,
    rng: &mut Rng,
) -> Vec<SequenceRequest> {
    (0..args.batch_size)
        .map(|_| SequenceRequest {
            prompt: shared.iter().copied().chain((0..args.input_len).map(|_| rng.below(vocab) as u32)).collect(),
            max_tokens: args.output_len,
            sampling: SamplingParams { grammar: grammar.cloned(), ..workload::greedy(rng) },
            ..SequenceRequest::default()
        })
        .collect()
}

/// Times of whole iterations, sorted, in milliseconds.
struct Latencies {
    /// Until the batch is done.
    latency: Vec<f64>,
    /// Until every sequence has its first token.
    batch_ttft: Vec<f64>,
}

impl Latencies {
    fn of(runs: &[Run]) -> Self {
        let sorted = |seconds: &mut dyn Iterator<Item = f64>| {
            let mut values: Vec<f64> = seconds.map(|seconds| seconds * 1e3).collect();
            sort(&mut values);
            values
        };
        let first =
            |run: &Run| run.records.iter().filter_map(|record| record.tokens.first().copied()).fold(0.0, f64::max);
        Latencies {
            latency: sorted(&mut runs.iter().map(|run| run.seconds)),
            batch_ttft: sorted(&mut runs.iter().map(first)),
        }
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for (name, values) in [("Latency (ms)", &self.latency), ("TTFT of the batch (ms)", &self.batch_ttft)] {
            let (mean, median, p99) = (mean(values), percentile(values, 0.5), percentile(values, 0.99));
            text.push_str(&format!("{name:<24}{mean:>10.2}{median:>10.2}{p99:>10.2}\n"));
        }
        text
    }

    /// vLLM's names: seconds; ours: milliseconds.
    fn write(&self, value: &mut Value) {
        value["avg_latency"] = json!(mean(&self.latency) / 1e3);
        value["latencies"] = json!(self.latency.iter().map(|ms| ms / 1e3).collect::<Vec<_>>());
        value["percentiles"] = [10, 25, 50, 75, 90, 99]
            .map(|p| (p.to_string(), json!(percentile(&self.latency, f64::from(p) / 100.0) / 1e3)))
            .into_iter()
            .collect();
        for (key, values) in [("latency", &self.latency), ("batch_ttft", &self.batch_ttft)] {
            value[format!("mean_{key}_ms")] = json!(mean(values));
            value[format!("median_{key}_ms")] = json!(percentile(values, 0.5));
            value[format!("p99_{key}_ms")] = json!(percentile(values, 0.99));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Record;

    #[test]
    fn a_batchs_ttft_is_its_last_sequences() {
        let record = |at: f64| Record { input: 4, tokens: vec![at, 2.0] };
        let latencies = Latencies::of(&[Run { seconds: 2.0, records: vec![record(0.5), record(1.0)] }]);
        let mut json = json!({});
        latencies.write(&mut json);
        assert_eq!((&json["mean_batch_ttft_ms"], &json["avg_latency"]), (&json!(1000.0), &json!(2.0)));
        assert_eq!(json["percentiles"]["99"], json!(2.0));
    }
}
