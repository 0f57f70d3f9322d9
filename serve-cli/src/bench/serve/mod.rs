//! `wootz bench serve`: many clients of a server with OpenAI's API. Flags, metrics and JSON are those of `vllm bench serve`.
//!
//! `dataset` makes prompts, `load` sends them when they are due, `client` reads the answers, `metrics` and `plot` say how it
//! went. Prompts are tokens (for chats, words), so no tokenizer is needed, and lengths are exact.
mod client;
mod dataset;
mod load;
mod metrics;
mod plot;

use super::write_json;
use crate::parse;
use crate::terminal::{Progress, Terminal, one_line};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use client::Target;
use dataset::{Ask, Dataset};
use load::Run;
use metrics::{Goals, Metric, Metrics};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Which of OpenAI's endpoints is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Completions, with prompts as tokens.
    #[value(alias = "vllm")]
    Openai,
    /// Chat completions, with prompts as words.
    OpenaiChat,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Backend::Openai => "openai",
            Backend::OpenaiChat => "openai-chat",
        }
    }

    fn endpoint(self) -> &'static str {
        match self {
            Backend::Openai => "/v1/completions",
            Backend::OpenaiChat => "/v1/chat/completions",
        }
    }
}

/// What changes from level to level of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SweepOver {
    /// --max-concurrency.
    Concurrency,
    /// --request-rate.
    Rate,
}

/// Arguments of `wootz bench serve`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz bench serve --num-prompts 200 --max-concurrency 16\n  \
    wootz bench serve --random-input-len 512 --random-output-len 128 --ignore-eos --request-rate 8 --goodput ttft:200 tpot:20\n  \
    wootz bench serve --backend openai-chat --dataset-name sharegpt-like --request-rate 4 --burstiness 0.5\n  \
    wootz bench serve --ignore-eos --sweep 1,4,16,64,256 --plot latency.svg --output-json sweep.json\n\n\
    Ask a server that runs: `wootz serve`, or any with OpenAI's API. TTFT is the time from sending a request to its first\n\
    piece of text, TPOT is (end to end - TTFT) / (output tokens - 1), ITL the time between two pieces.")]
pub struct ServeBenchArgs {
    /// Where the server is, such as http://127.0.0.1:8000; instead of --host and --port
    #[arg(long, value_name = "URL", conflicts_with_all = ["host", "port"])]
    pub base_url: Option<String>,
    /// The server's host
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// The server's port
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// What is asked: completions (prompts are tokens) or chat completions (prompts are words)
    #[arg(long, value_enum, default_value = "openai", visible_alias = "endpoint-type")]
    pub backend: Backend,
    /// Its path [default: the backend's]
    #[arg(long, value_name = "PATH")]
    pub endpoint: Option<String>,
    /// A key of the server
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// The model [default: the first that the server lists]
    #[arg(long, value_name = "NAME", visible_alias = "served-model-name")]
    pub model: Option<String>,
    /// What prompts look like
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: Dataset,
    /// random: tokens of a prompt
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = parse::tokens, alias = "input-len")]
    pub random_input_len: usize,
    /// random: tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse::tokens, alias = "output-len")]
    pub random_output_len: usize,
    /// random: lengths lie within this share of those
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = parse::range_ratio)]
    pub random_range_ratio: f64,
    /// random: tokens that all prompts begin with, before those of --random-input-len
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub random_prefix_len: usize,
    /// prefix_repetition: tokens of a prefix
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = parse::tokens)]
    pub prefix_repetition_prefix_len: usize,
    /// prefix_repetition: tokens behind it
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = parse::tokens)]
    pub prefix_repetition_suffix_len: usize,
    /// prefix_repetition: different prefixes, taken in turns
    #[arg(long, value_name = "N", default_value = "10", value_parser = parse::count_in(1..=100_000))]
    pub prefix_repetition_num_prefixes: usize,
    /// prefix_repetition: tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse::tokens)]
    pub prefix_repetition_output_len: usize,
    /// Prompts are of tokens below this, which the model must have
    #[arg(long, value_name = "N", default_value = "1024", value_parser = parse::count_in(2..=10_000_000))]
    pub vocab_size: usize,
    /// Requests, at each level of a sweep
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse::count_in(1..=1_000_000))]
    pub num_prompts: usize,
    /// Requests a second; inf sends all at once
    #[arg(long, value_name = "RATE", default_value = "inf", value_parser = rate)]
    pub request_rate: f64,
    /// How even arrivals are: 1 is a Poisson process, less is bursts, more is even
    #[arg(long, value_name = "X", default_value = "1", value_parser = rate)]
    pub burstiness: f64,
    /// Most requests at once; later ones are sent when earlier ones have ended
    #[arg(long, value_name = "N", value_parser = parse::count_in(1..=65_536))]
    pub max_concurrency: Option<usize>,
    /// Answers go on after end-of-sequence tokens, to their full lengths
    #[arg(long)]
    pub ignore_eos: bool,
    /// Fields of every request's body, as a JSON object
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub extra_body: Option<Map<String, Value>>,
    /// Milliseconds that good requests keep, such as ttft:200 tpot:20 e2el:5000
    #[arg(long, value_name = "METRIC:MS", num_args = 1.., value_parser = goal)]
    pub goodput: Vec<(Metric, f64)>,
    /// What the table shows
    #[arg(long, value_name = "METRICS", value_delimiter = ',', default_value = "ttft,tpot,itl,e2el", value_parser = Metric::parse)]
    pub percentile_metrics: Vec<Metric>,
    /// Percentiles, of which the table and the JSON have one each
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',', default_value = "99", value_parser = percent)]
    pub metric_percentiles: Vec<f64>,
    /// Seed of prompts, lengths and arrivals
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Requests before the timed ones
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse::count_in(0..=10_000))]
    pub num_warmups: usize,
    /// Seconds that the server may take to be ready
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub ready_check_timeout_sec: u64,
    /// Write the results to a file named after time and model
    #[arg(long)]
    pub save_result: bool,
    /// Times of every request, too
    #[arg(long)]
    pub save_detailed: bool,
    /// Write the results to this file
    #[arg(long, value_name = "FILE", visible_aliases = ["json", "result-filename"])]
    pub output_json: Option<PathBuf>,
    /// Run once for each of these numbers, such as 1,2,4,8
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = rate)]
    pub sweep: Vec<f64>,
    /// What the numbers of --sweep are
    #[arg(long, value_enum, default_value = "concurrency", requires = "sweep")]
    pub sweep_over: SweepOver,
    /// Draw latency against throughput over the levels of --sweep to this SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate| *rate > 0.0).ok_or_else(|| "expected a number above 0, or inf".into())
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "expected a number from 0 to 100".into())
}

fn goal(text: &str) -> Result<(Metric, f64), String> {
    let (metric, most) = text.split_once(':').ok_or("expected METRIC:MILLISECONDS, such as ttft:200")?;
    let metric = Metric::parse(metric).ok().filter(|metric| *metric != Metric::Itl);
    Ok((metric.ok_or("expected ttft, tpot or e2el before the colon")?, rate(most)?))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

/// One run of a sweep.
#[derive(Clone, Copy, Debug)]
struct Level {
    rate: f64,
    concurrency: Option<usize>,
}

impl ServeBenchArgs {
    /// What to run, in order.
    fn levels(&self) -> Result<Vec<(String, Level)>> {
        let plain = Level { rate: self.request_rate, concurrency: self.max_concurrency };
        if self.sweep.is_empty() {
            return Ok(vec![("all".into(), plain)]);
        }
        let level = |number: &f64| match self.sweep_over {
            SweepOver::Rate => Ok((format!("{number}"), Level { rate: *number, ..plain })),
            SweepOver::Concurrency => {
                let whole = number.fract() == 0.0 && *number <= 65_536.0;
                ensure!(whole, "--sweep {number}: concurrencies are whole, at most 65536 (or add --sweep-over rate)");
                Ok((format!("{number}"), Level { concurrency: Some(*number as usize), ..plain }))
            }
        };
        self.sweep.iter().map(level).collect()
    }

    fn goals(&self) -> &Goals {
        &self.goodput
    }

    async fn target(&self) -> Result<Target> {
        let base = self.base_url.clone().unwrap_or_else(|| format!("http://{}:{}", self.host, self.port));
        let endpoint = self.endpoint.as_deref().unwrap_or(self.backend.endpoint());
        let mut target = Target::new(&base, endpoint, self.api_key.clone(), self.backend)?;
        target.ready(Duration::from_secs(self.ready_check_timeout_sec)).await?;
        target.model = match &self.model {
            Some(model) => model.clone(),
            None => target.first_model().await?,
        };
        target.ignore_eos = self.ignore_eos;
        target.extra = self.extra_body.clone().unwrap_or_default();
        Ok(target)
    }

    fn json(&self, model: &str, level: &Level, run: &Run, metrics: &Metrics) -> Value {
        let rate = if level.rate.is_infinite() { json!("inf") } else { json!(level.rate) };
        let mut value = json!({
            "date": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            "backend": self.backend.name(),
            "endpoint_type": self.backend.name(),
            "model_id": model,
            "tokenizer_id": null,
            "num_prompts": self.num_prompts,
            "request_rate": rate,
            "burstiness": self.burstiness,
            "max_concurrency": level.concurrency,
            "seed": self.seed,
            "version": env!("CARGO_PKG_VERSION"),
        });
        metrics.write(&self.metric_percentiles, &mut value);
        if self.save_detailed {
            metrics::write_detailed(run, &mut value);
        }
        value
    }
}

/// Runs the command.
pub fn run(args: &ServeBenchArgs, terminal: &Terminal) -> Result<ExitCode> {
    ensure!(args.plot.is_none() || args.sweep.len() > 1, "--plot needs a --sweep of at least two numbers");
    let levels = args.levels()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(args, &levels, terminal))
}

async fn measure(args: &ServeBenchArgs, levels: &[(String, Level)], terminal: &Terminal) -> Result<ExitCode> {
    let target = Arc::new(args.target().await?);
    // Of a seed that no level has: no timed prompt is in the prefix cache.
    warm_up(&target, &dataset::asks(args, !args.seed), args.num_warmups).await?;
    let (mut results, mut drawn, mut failed) = (Vec::new(), Vec::new(), 0);
    for (i, (name, level)) in levels.iter().enumerate() {
        let title = if levels.len() > 1 { format!("{}, level {name}", target.model) } else { target.model.clone() };
        let asks = dataset::asks(args, args.seed.wrapping_add(i as u64));
        let run = one(args, &target, asks, level, &Progress::new(terminal, &title)).await?;
        let metrics = Metrics::of(&run, args.goals());
        let mut out = io::stdout();
        writeln!(out, "{title}: {}", describe(args, level))?;
        writeln!(out, "{}", metrics.table(&args.percentile_metrics, &args.metric_percentiles))?;
        report_errors(&run);
        ensure!(metrics.completed > 0, "no request was answered");
        failed += metrics.failed;
        results.push(args.json(&target.model, level, &run, &metrics));
        drawn.push((name.clone(), metrics));
    }
    let value = if args.sweep.is_empty() {
        results.pop().unwrap_or_default()
    } else {
        json!({ "model_id": target.model, "sweep": args.sweep, "results": results })
    };
    if let Some(path) = args.output_json.clone().or_else(|| args.save_result.then(|| file_name(&target.model))) {
        write_json(&path, &value)?;
    }
    if let Some(path) = &args.plot {
        let svg = plot::draw(&format!("{}: {} requests at each level", target.model, args.num_prompts), &drawn);
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Requests that are not timed; the first shows whether the server understands them at all.
async fn warm_up(target: &Arc<Target>, asks: &[Ask], count: usize) -> Result<()> {
    for ask in asks.iter().cycle().take(count) {
        if let Some(error) = target.ask(ask).await.error {
            bail!("the request before the timed ones failed: {}", one_line(&error));
        }
    }
    Ok(())
}

async fn one(
    args: &ServeBenchArgs,
    target: &Arc<Target>,
    asks: Vec<Ask>,
    level: &Level,
    progress: &Progress,
) -> Result<Run> {
    let times = load::schedule(asks.len(), level.rate, args.burstiness, args.seed);
    load::run(target, asks, &times, level.concurrency, progress).await
}

fn describe(args: &ServeBenchArgs, level: &Level) -> String {
    let rate = if level.rate.is_infinite() { "all at once".into() } else { format!("{} a second", level.rate) };
    let most = level.concurrency.map_or_else(String::new, |most| format!(", at most {most} at a time"));
    format!("{} requests, {rate}{most}", args.num_prompts)
}

/// What went wrong, and how often.
fn report_errors(run: &Run) {
    const SHOWN: usize = 5;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for error in run.sent.iter().filter_map(|sent| sent.outcome.error.as_deref()) {
        *counts.entry(error).or_default() += 1;
    }
    for (error, count) in counts.iter().take(SHOWN) {
        let _ = writeln!(io::stderr(), "{count} × {}", one_line(error));
    }
}

fn file_name(model: &str) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let model: String =
        model.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' }).collect();
    format!("bench-serve-{model}-{seconds}.json").into()
}

#[cfg(test)]
mod tests;
