//! `wootz bench`.
mod breakdown;
mod kernels;
mod latency;
mod model;
mod peers;
mod serve;
mod throughput;
mod timeline;
mod timing;
mod tune;
mod workload;

use crate::terminal::Terminal;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use engine::trace::StepTimes;
use model::BenchModelArgs;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;

/// Arguments of `wootz bench`.
#[derive(Args, Debug)]
#[command(
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        wootz bench kernels rms_norm\n  \
        wootz bench latency ./Llama-3.1-8B/config.json --load-format dummy --input-len 2048"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Time the kernels on the GPU.
    Kernels(kernels::KernelArgs),
    /// Time the kernels beside NVIDIA's libraries and PyTorch, alternating in one run.
    Peers(peers::PeerArgs),
    /// Find out which kernel computes which product fastest.
    #[command(hide = true)]
    Tune(tune::TuneArgs),
    /// Time one batch through a model: TTFT, TPOT, tokens per second.
    Latency(Box<latency::LatencyArgs>),
    /// Time many requests at once: requests and tokens per second.
    Throughput(Box<throughput::ThroughputArgs>),
    /// Time a server by HTTP: latencies at a rate or concurrency.
    Serve(Box<serve::ServeBenchArgs>),
}

/// Runs the command.
pub fn run(args: &BenchArgs, terminal: &Terminal) -> Result<ExitCode> {
    match &args.what {
        What::Kernels(args) => kernels::run(args, terminal),
        What::Peers(args) => peers::run(args, terminal),
        What::Tune(args) => tune::run(args),
        What::Latency(args) => latency::run(args, terminal),
        What::Throughput(args) => throughput::run(args, terminal),
        What::Serve(args) => serve::run(args, terminal),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// Draws decode steps to a file.
fn write_timeline(path: &Path, steps: &[StepTimes]) -> Result<()> {
    let svg = timeline::draw(steps).context("--timeline: there are no decode steps to draw; raise --output-len")?;
    std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

/// Sorts `values`, which must not be NaN.
fn sort(values: &mut [f64]) {
    values.sort_by(f64::total_cmp);
}

/// The `share` quantile of sorted values, interpolated as numpy does; 0 for none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let (low, high) = (at.floor() as usize, (at.ceil() as usize).min(last));
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut values = [3.0, 1.0, 2.0, 4.0];
        sort(&mut values);
        assert_eq!(percentile(&values, 0.5), 2.5);
        assert_eq!((percentile(&values, 0.0), percentile(&values, 1.0)), (1.0, 4.0));
        assert_eq!((percentile(&[], 0.5), mean(&[])), (0.0, 0.0));
        assert_eq!(mean(&values), 2.5);
    }
}
