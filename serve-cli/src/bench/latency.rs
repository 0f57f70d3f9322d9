//! `wootz bench latency`: one batch of equal requests through the engine, again and again. Metric names and
//! definitions are those of `vllm bench`.
use super::{mean, percentile, sort, write_json};
use crate::device::{self, DeviceArgs, EmulationNote};
use crate::model::{self, LimitArgs, ModelArgs};
use crate::parse;
use crate::terminal::{Progress, Terminal};
use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use engine::checkpoint::Checkpoint;
use engine::config::ModelConfig;
use engine::engine::Engine;
use engine::model::WeightSource;
use engine::scheduler::SequenceRequest;
use kernels_host::case::Rng;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Arguments of `wootz bench latency`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz bench latency                                          tiny-chat\n  \
    wootz bench latency ./Llama-3.1-8B --batch-size 32 --input-len 1024 --output-len 128\n  \
    wootz bench latency ./Llama-3.1-8B/config.json --load-format dummy --input-len 2048 --batch-size 1\n\n\
    Prompts are random tokens, answers do not end early. TTFT is the time until a sequence has its first token,\n\
    TPOT is (total - TTFT) / (output length - 1). With --load-format dummy a config.json is enough.")]
pub struct LatencyArgs {
    #[command(flatten)]
    model: ModelArgs,
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
    /// Read the checkpoint, or make random weights from config.json alone
    #[arg(long, value_enum, default_value = "auto")]
    load_format: LoadFormat,
    /// Seed of the prompts and of random weights
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Write the results to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LoadFormat {
    /// The model's safetensors.
    Auto,
    /// Random weights.
    Dummy,
}

/// Times of one iteration, in seconds.
struct Iteration {
    total: f64,
    /// Per sequence.
    ttft: Vec<f64>,
    /// Per sequence; empty for answers of one token.
    tpot: Vec<f64>,
}

/// Runs the command.
pub fn run(args: &LatencyArgs, terminal: &Terminal) -> Result<ExitCode> {
    let (name, config) = args.model.config()?;
    let len = args.input_len + args.output_len;
    let most = config.max_position_embeddings;
    ensure!(
        len <= most,
        "--input-len {} and --output-len {} do not fit in the model's context of {most}",
        args.input_len,
        args.output_len
    );
    let start = Instant::now();
    let mut engine = load(args, &name, &config, len, terminal)?;
    let _note = EmulationNote::new(engine.runner().device());
    let load_time = start.elapsed();
    let fits = engine.max_len();
    ensure!(
        len <= fits,
        "--input-len {} and --output-len {} do not fit in the {fits} tokens that the KV cache leaves for a sequence",
        args.input_len,
        args.output_len
    );

    let progress = Progress::new(terminal, &format!("{name}: iterations"));
    let mut rng = Rng::new(args.seed);
    let count = args.num_iters_warmup + args.num_iters;
    let mut iterations = Vec::new();
    for i in 0..count {
        progress.set(i as u64, count as u64);
        let iteration = iterate(&mut engine, args, config.vocab_size, &mut rng)?;
        if i >= args.num_iters_warmup {
            iterations.push(iteration);
        }
    }
    drop(progress);
    let report = Report::new(args, &iterations);
    let device = device::describe(engine.runner().device());
    let mut out = io::stdout();
    let random = if args.load_format == LoadFormat::Dummy { ", random weights" } else { "" };
    writeln!(
        out,
        "{name}{random} on {device}: batch {}, input {}, output {}, {} iterations, loaded in {:.2} s",
        args.batch_size,
        args.input_len,
        args.output_len,
        args.num_iters,
        load_time.as_secs_f64()
    )?;
    write!(out, "{}", report.table())?;
    if let Some(path) = &args.json {
        write_json(path, &report.json(args, &name, &device, load_time))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn load(args: &LatencyArgs, name: &str, config: &ModelConfig, len: usize, terminal: &Terminal) -> Result<Engine> {
    let mut limits = args.limits.clone();
    // Memory for this batch and no more, unless flags say so.
    limits.max_model_len.get_or_insert(len.max(2));
    limits.max_num_seqs.get_or_insert(args.batch_size);
    let engine_config = limits.engine_config(config)?;
    let checkpoint = match args.load_format {
        LoadFormat::Auto => Some(checkpoint(&args.model)?),
        LoadFormat::Dummy => None,
    };
    let device = args.device.open()?;
    let engine_config = match device.is_cpu() {
        true => engine::engine::EngineConfig {
            kv_cache_tokens: engine_config
                .kv_cache_tokens
                .or(Some(len.next_multiple_of(engine::kv::PAGE_TOKENS) * args.batch_size)),
            ..engine_config
        },
        false => engine_config,
    };
    model::check_host_memory(&device, config, &engine_config)?;
    let source = checkpoint.as_ref().map_or(WeightSource::Dummy { seed: args.seed }, WeightSource::Checkpoint);
    let progress = Progress::new(terminal, &format!("loading {name}"));
    Ok(Engine::load(&device, config, source, &engine_config, &|done, total| progress.set(done, total))?)
}

/// The checkpoint, beside the config.json if that is what MODEL names.
fn checkpoint(model: &ModelArgs) -> Result<Checkpoint> {
    match &model.model {
        Some(path) if path.is_file() => Ok(Checkpoint::open(path.parent().unwrap_or(path))?),
        _ => Ok(model.source()?.checkpoint()?),
    }
}

fn iterate(engine: &mut Engine, args: &LatencyArgs, vocab: usize, rng: &mut Rng) -> Result<Iteration> {
    let requests: Vec<SequenceRequest> = (0..args.batch_size)
        .map(|_| SequenceRequest {
            prompt: (0..args.input_len).map(|_| rng.below(vocab) as u32).collect(),
            max_tokens: args.output_len,
            ..SequenceRequest::default()
        })
        .collect();
    let start = Instant::now();
    let mut sequences = Vec::with_capacity(requests.len());
    for request in requests {
        sequences.push((engine.add(request)?, None, 0.0, 0usize));
    }
    while engine.has_work() {
        let progress = engine.step()?;
        let now = start.elapsed().as_secs_f64();
        for progress in progress {
            if let Some((_, first, last, tokens)) = sequences.iter_mut().find(|(id, ..)| *id == progress.id) {
                first.get_or_insert(now);
                *last = now;
                *tokens += 1;
            }
        }
    }
    let total = start.elapsed().as_secs_f64();
    let ttft = sequences.iter().map(|(_, first, ..)| first.unwrap_or(total)).collect();
    let tpot = sequences.iter().filter(|(.., tokens)| *tokens > 1);
    let tpot = tpot.map(|(_, first, last, tokens)| (last - first.unwrap_or(total)) / (tokens - 1) as f64).collect();
    Ok(Iteration { total, ttft, tpot })
}

/// Sorted times over all iterations, in milliseconds.
struct Report {
    /// Per iteration: until the batch is done.
    latency: Vec<f64>,
    /// Per iteration: until every sequence has its first token.
    batch_ttft: Vec<f64>,
    /// Per sequence.
    ttft: Vec<f64>,
    /// Per sequence.
    tpot: Vec<f64>,
    output_throughput: f64,
    total_token_throughput: f64,
}

impl Report {
    fn new(args: &LatencyArgs, iterations: &[Iteration]) -> Self {
        let millis = |values: &mut dyn Iterator<Item = f64>| {
            let mut values: Vec<f64> = values.map(|seconds| seconds * 1e3).collect();
            sort(&mut values);
            values
        };
        let seconds: f64 = iterations.iter().map(|i| i.total).sum();
        let sequences = (args.batch_size * iterations.len()) as f64;
        Report {
            latency: millis(&mut iterations.iter().map(|i| i.total)),
            batch_ttft: millis(&mut iterations.iter().map(|i| i.ttft.iter().copied().fold(0.0, f64::max))),
            ttft: millis(&mut iterations.iter().flat_map(|i| i.ttft.iter().copied())),
            tpot: millis(&mut iterations.iter().flat_map(|i| i.tpot.iter().copied())),
            output_throughput: sequences * args.output_len as f64 / seconds,
            total_token_throughput: sequences * (args.input_len + args.output_len) as f64 / seconds,
        }
    }

    fn rows(&self) -> [(&'static str, &[f64]); 4] {
        [
            ("Latency", &self.latency),
            ("TTFT", &self.ttft),
            ("TTFT of the batch", &self.batch_ttft),
            ("TPOT", &self.tpot),
        ]
    }

    fn table(&self) -> String {
        let mut text = format!("{:<24}{:>10}{:>10}{:>10}\n", "", "mean", "median", "p99");
        for (name, values) in self.rows() {
            if !values.is_empty() {
                let (mean, median, p99) = (mean(values), percentile(values, 0.5), percentile(values, 0.99));
                text.push_str(&format!("{:<24}{mean:>10.2}{median:>10.2}{p99:>10.2}\n", format!("{name} (ms)")));
            }
        }
        text.push_str(&format!("{:<24}{:>10.1} tokens/s\n", "Output throughput", self.output_throughput));
        text.push_str(&format!("{:<24}{:>10.1} tokens/s\n", "Total throughput", self.total_token_throughput));
        text
    }

    fn json(&self, args: &LatencyArgs, name: &str, device: &str, load_time: Duration) -> Value {
        let mut value = json!({
            "model": name,
            "device": device,
            "version": env!("CARGO_PKG_VERSION"),
            "load_format": if args.load_format == LoadFormat::Dummy { "dummy" } else { "auto" },
            "input_len": args.input_len,
            "output_len": args.output_len,
            "batch_size": args.batch_size,
            "num_iters": args.num_iters,
            "load_time_s": load_time.as_secs_f64(),
            "output_throughput": self.output_throughput,
            "total_token_throughput": self.total_token_throughput,
        });
        for (key, (_, values)) in ["latency", "ttft", "batch_ttft", "tpot"].into_iter().zip(self.rows()) {
            for (statistic, number) in
                [("mean", mean(values)), ("median", percentile(values, 0.5)), ("p99", percentile(values, 0.99))]
            {
                value[format!("{statistic}_{key}_ms")] = if values.is_empty() { Value::Null } else { json!(number) };
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: LatencyArgs,
    }

    #[test]
    fn definitions_are_vllms() {
        let args = Line::parse_from(["latency", "--batch-size", "2", "--input-len", "10", "--output-len", "5"]).args;
        let iteration = Iteration { total: 2.0, ttft: vec![0.5, 1.0], tpot: vec![0.3, 0.25] };
        let report = Report::new(&args, &[iteration]);
        assert_eq!(report.batch_ttft, [1000.0]);
        assert_eq!(report.tpot, [250.0, 300.0]);
        assert_eq!((report.output_throughput, report.total_token_throughput), (5.0, 15.0));
        let json = report.json(&args, "m", "d", Duration::ZERO);
        assert_eq!((&json["mean_ttft_ms"], &json["mean_latency_ms"]), (&json!(750.0), &json!(2000.0)));
    }
}
