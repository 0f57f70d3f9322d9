//! `wootz bench kernels`: device time of every kernel's real shapes.
use super::timing::{GRAPH_BELOW_US, GRAPH_LAUNCHES, Replay, Samples, timed};
use super::write_json;
use crate::device::{DeviceArgs, DeviceChoice};
use crate::terminal::{Progress, Terminal};
use anyhow::Result;
use clap::Args;
use kernels_host::case::{Case, Kernel, Prepared, Work};
use kernels_host::{Device, Error, Stream};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Data of a round: more than three times the largest L2 cache (60 MB on an H200), so that no launch finds its inputs there.
const ROTATED_BYTES: u64 = 200_000_000;
/// Most copies of one case's data.
const MAX_COPIES: u64 = 64;
/// Timed rounds.
const ROUNDS: usize = 31;

/// Arguments of `wootz bench kernels`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz bench kernels                              all\n  \
    wootz bench kernels gemm                         those whose name or case contains gemm\n  \
    wootz bench kernels attention --json attention.json --device cuda:1\n\n\
    Times are medians by CUDA events, over inputs that do not fit in the L2 cache.")]
pub struct KernelArgs {
    /// Only kernels or cases whose name contains this
    filter: Option<String>,
    /// Write the results to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A case's times.
struct Timing {
    median_us: f64,
    p10_us: f64,
    p90_us: f64,
    graph: bool,
}

/// Runs the command.
pub fn run(args: &KernelArgs, terminal: &Terminal) -> Result<ExitCode> {
    let mut out = io::stdout();
    let device = match args.device.device {
        DeviceChoice::Cpu | DeviceChoice::Emulated(..) => {
            writeln!(out, "kernel benches NOT RUN: they time the GPU, and --device is another")?;
            return Ok(ExitCode::SUCCESS);
        }
        DeviceChoice::Auto => Device::cuda(0),
        DeviceChoice::Cuda(ordinal, target) => Device::cuda_with_target(ordinal, target),
    };
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            writeln!(out, "kernel benches NOT RUN: {error}")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let stream = device.stream()?;
    let cases = selected(&device, args.filter.as_deref().unwrap_or_default());
    if cases.is_empty() {
        writeln!(out, "no kernel case contains {:?}", args.filter.as_deref().unwrap_or_default())?;
        return Ok(ExitCode::FAILURE);
    }
    writeln!(out, "{device:?}, driver for CUDA {}, {} cases", Device::driver_version()?, cases.len())?;
    let width = cases.iter().map(|(kernel, case)| kernel.name.len() + case.id().len() + 1).max().unwrap_or(0);
    writeln!(
        out,
        "{}",
        terminal.bold(&format!("{:width$}  {:>10}  {:>8}  {:>8}", "", "median µs", "GB/s", "TFLOP/s"))
    )?;

    let progress = Progress::new(terminal, "timing");
    let (mut rows, mut failed) = (Vec::new(), 0);
    for (i, (kernel, case)) in cases.iter().enumerate() {
        if !terminal.stdout {
            progress.set(i as u64, cases.len() as u64);
        }
        let name = format!("{} {}", kernel.name, case.id());
        match time(case.as_ref(), &stream) {
            Ok(timing) => {
                writeln!(out, "{name:width$}  {}", figures(&timing, case.work()))?;
                rows.push(row(kernel, case.as_ref(), &timing));
            }
            Err(error) => {
                failed += 1;
                writeln!(out, "{name:width$}  FAILED: {error}")?;
                rows.push(json!({"kernel": kernel.name, "case": case.id(), "error": error.to_string()}));
            }
        }
    }
    if let Some(path) = &args.json {
        write_json(
            path,
            &json!({
                "device": device.name(),
                "target": device.target().map(|target| target.to_string()),
                "cuda": Device::driver_version()?,
                "version": env!("CARGO_PKG_VERSION"),
                "cases": rows,
            }),
        )?;
    }
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn selected(device: &Device, filter: &str) -> Vec<(Kernel, Box<dyn Case>)> {
    let mut selected = Vec::new();
    for kernel in kernels_host::kernels() {
        if !kernel.runs_on(device) {
            continue;
        }
        for case in (kernel.pinned)() {
            let wanted = kernel.name.contains(filter) || case.id().contains(filter);
            if case.bench() && wanted {
                selected.push((Kernel { entries: kernel.entries.clone(), ..kernel }, case));
            }
        }
    }
    selected
}

fn time(case: &dyn Case, stream: &Stream) -> Result<Timing, Error> {
    let copies = (ROTATED_BYTES / case.work().bytes.max(1)).clamp(1, MAX_COPIES);
    let mut data = (0..copies).map(|seed| case.prepare(stream, seed)).collect::<Result<Vec<_>, _>>()?;
    // Compiles the kernel, wakes the clocks, and tells how long it takes.
    let warm = timed(stream, || data.iter_mut().try_for_each(|data| data.launch(stream)))?;
    let again = timed(stream, || data.iter_mut().try_for_each(|data| data.launch(stream)))?;
    let estimate = warm.min(again) / copies as f64;
    // A launcher that cannot be captured is timed launch by launch, which `graph` in the results shows.
    let graph = if estimate < GRAPH_BELOW_US { graph_samples(&mut data, stream).ok() } else { None };
    let in_graph = graph.is_some();
    let samples = Samples::new(match graph {
        Some(samples) => samples,
        None => launch_samples(&mut data, stream)?,
    });
    Ok(Timing { median_us: samples.median(), p10_us: samples.at(0.1), p90_us: samples.at(0.9), graph: in_graph })
}

/// Microseconds of single launches.
fn launch_samples(data: &mut [Box<dyn Prepared>], stream: &Stream) -> Result<Vec<f64>, Error> {
    let rounds = ROUNDS.max(data.len());
    (0..rounds).map(|i| timed(stream, || data[i % data.len()].launch(stream))).collect()
}

/// Microseconds per launch, one value per replay of a graph of at least [`GRAPH_LAUNCHES`].
fn graph_samples(data: &mut [Box<dyn Prepared>], stream: &Stream) -> Result<Vec<f64>, Error> {
    let copies = data.len();
    let works = GRAPH_LAUNCHES.next_multiple_of(copies);
    let replay = Replay::capture(stream, works, |stream, turn| data[turn % copies].launch(stream))?;
    (0..ROUNDS).map(|_| replay.sample(stream, 1)).collect()
}

fn figures(timing: &Timing, work: Work) -> String {
    let rate = |amount: u64, unit: f64| match amount {
        0 => "-".to_owned(),
        _ => format!("{:.1}", amount as f64 / (timing.median_us * 1e-6) / unit),
    };
    format!("{:>10.2}  {:>8}  {:>8}", timing.median_us, rate(work.bytes, 1e9), rate(work.flops, 1e12))
}

fn row(kernel: &Kernel, case: &dyn Case, timing: &Timing) -> Value {
    let work = case.work();
    let seconds = timing.median_us * 1e-6;
    json!({
        "kernel": kernel.name,
        "case": case.id(),
        "median_us": timing.median_us,
        "p10_us": timing.p10_us,
        "p90_us": timing.p90_us,
        "graph": timing.graph,
        "bytes": work.bytes,
        "flops": work.flops,
        "gb_per_s": work.bytes as f64 / seconds / 1e9,
        "tflop_per_s": work.flops as f64 / seconds / 1e12,
    })
}
