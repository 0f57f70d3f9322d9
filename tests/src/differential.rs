//! `wootz-differential`: every kernel on a GPU and on the emulator, from the same inputs, compared bit for bit.
//!
//! A case must be equal in every bit unless it executed an instruction whose result is not defined to the bit
//! (an approximate function, a floating-point atomic of several threads); then its outputs must be within
//! the bound that `compare` states.
mod compare;
mod report;

use anyhow::{Context, Result, bail};
use compare::{Bound, Difference};
use kernels_host::case::{Case, Output};
use kernels_host::{Device, Target};
use libtest_mimic::Trial;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use report::Report;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const USAGE: &str =
    "usage: wootz-differential [FILTER] [--case TEXT] [--cases N] [--seed S] [--threads N] [--out DIR] [--against emulated]
Compares GPU 0 with the emulator on the small pinned cases of every kernel and N random ones (8) each.
  --case TEXT          of these, only the cases whose description has TEXT
  --out DIR            also write differential.txt and differential.json there
  --against emulated   instead of a GPU, an emulated one that is scheduled differently";

/// What the command line asks for.
struct Options {
    filter: String,
    case: String,
    cases: usize,
    seed: u64,
    threads: usize,
    out: Option<PathBuf>,
    against_emulated: bool,
}

/// A case to be run on both devices.
struct Task {
    kernel: &'static str,
    target: Target,
    case: Box<dyn Case>,
    seed: u64,
}

/// What came of a task.
struct Outcome {
    kernel: &'static str,
    target: Target,
    case: String,
    seed: u64,
    /// Opcodes that the instruction set does not define to the bit.
    inexact: BTreeSet<String>,
    result: Result<Vec<Difference>, String>,
    /// How long both took.
    time: Duration,
}

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![Trial::test("differential::differences_are_seen", || Ok(compare::differences_are_seen()?))]
}

/// Runs the command line.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let options = match parse(&args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options {
        filter: String::new(),
        case: String::new(),
        cases: 8,
        seed: 1,
        threads,
        out: None,
        against_emulated: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--case" => options.case = value()?.clone(),
            "--cases" => options.cases = value()?.parse().context("--cases takes a number")?,
            "--seed" => options.seed = value()?.parse().context("--seed takes a number")?,
            "--threads" => options.threads = value()?.parse().context("--threads takes a number")?,
            "--out" => options.out = Some(value()?.into()),
            "--against" => match value()?.as_str() {
                "emulated" => options.against_emulated = true,
                other => bail!("--against {other}: only `emulated` is known"),
            },
            flag if flag.starts_with('-') => bail!("{flag} is not known"),
            filter => options.filter = filter.to_owned(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<bool> {
    let open = |target| match options.against_emulated {
        true => Ok(Device::emulated(target, options.seed + 1)),
        false => Device::cuda_with_target(0, Some(target)),
    };
    let devices = [Target::Sm90a, Target::Sm80].map(|target| open(target).map(|device| (target, device)));
    let devices = devices.into_iter().collect::<Result<Vec<_>, _>>()?;
    for (target, device) in &devices {
        if device.target() != Some(*target) {
            bail!("{} does not run {target} modules: the comparison needs a Hopper GPU", device.name());
        }
    }
    let Tasks { tasks, left_out } = Tasks::new(options, &devices);
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let device = devices.iter().find(|(target, _)| *target == task.target).map(|(_, device)| device.clone());
            let Some(device) = device else { continue };
            // An emulated device is one task's own: its launches wait for each other.
            let device = if options.against_emulated { Device::emulated(task.target, task.seed + 1) } else { device };
            let outcome = task.run(&device);
            if let Err(error) = &outcome.result {
                eprintln!("{} {} {}: {error}", outcome.kernel, outcome.target, outcome.case);
            }
            outcomes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(outcome);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.clamp(1, 256) {
            scope.spawn(work);
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let driver = if options.against_emulated { String::new() } else { Device::driver_version()? };
    let report = Report::new(devices[0].1.name(), &driver, options, &outcomes, &left_out);
    println!("{report}");
    if let Some(dir) = &options.out {
        report.write(dir)?;
    }
    Ok(report.failures.is_empty())
}

/// What is run.
struct Tasks {
    tasks: Vec<Task>,
    /// Pinned cases too large for the emulator, by kernel and module.
    left_out: BTreeMap<(&'static str, Target), usize>,
}

impl Tasks {
    /// The small pinned cases and so many random ones of every kernel, for both modules.
    fn new(options: &Options, devices: &[(Target, Device)]) -> Tasks {
        let (mut tasks, mut left_out) = (Vec::new(), BTreeMap::new());
        for kernel in kernels_host::kernels().iter().filter(|kernel| kernel.name.contains(&options.filter)) {
            for (target, _) in devices.iter().filter(|(_, device)| kernel.runs_on(device)) {
                let (mut cases, large): (Vec<_>, Vec<_>) =
                    (kernel.pinned)().into_iter().partition(|case| case.checked_on_emulator());
                left_out.insert((kernel.name, *target), large.len());
                let mut seed = [0; 32];
                seed[..8].copy_from_slice(&options.seed.to_le_bytes());
                let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
                let mut runner = TestRunner::new_with_rng(Config::default(), rng);
                let strategy = (kernel.random)();
                // Of larger ones than the emulator does in about a second, others take their place.
                let drawn =
                    (0..20 * options.cases).filter_map(|_| Some(strategy.new_tree(&mut runner).ok()?.current()));
                cases.extend(drawn.filter(|case| case.checked_on_emulator()).take(options.cases));
                let numbered = cases.into_iter().enumerate().filter(|(_, case)| case.id().contains(&options.case));
                tasks.extend(numbered.map(|(number, case)| {
                    let seed = options.seed.wrapping_add(number as u64);
                    Task { kernel: kernel.name, target: *target, case, seed }
                }));
            }
        }
        Tasks { tasks, left_out }
    }
}

impl Task {
    fn run(&self, device: &Device) -> Outcome {
        let start = Instant::now();
        let emulated = Device::emulated(self.target, self.seed);
        let outputs = |device: &Device| -> Result<Vec<Output>, kernels_host::Error> {
            let stream = device.stream()?;
            self.case.prepare(&stream, self.seed)?.outputs(&stream)
        };
        let found = outputs(&emulated).map_err(|e| format!("on the emulator: {e}"));
        let expected = outputs(device).map_err(|e| format!("on {}: {e}", device.name()));
        let launches = emulated.emulation().unwrap_or_default().launches.into_values();
        let opcodes = launches.flat_map(|launches| launches.last.instructions.into_keys());
        let inexact: BTreeSet<String> = opcodes.filter(|opcode| !defined(opcode)).collect();
        let bound = if inexact.is_empty() { Bound::Exact } else { Bound::Approximate(self.case.absolute_error()) };
        let result = found.and_then(|found| {
            let pairs = found.iter().zip(expected?);
            Ok(pairs.map(|(found, expected)| Difference::new(found, &expected, bound)).collect())
        });
        let (kernel, target, seed, case) = (self.kernel, self.target, self.seed, self.case.id());
        Outcome { kernel, target, case, seed, inexact, result, time: start.elapsed() }
    }
}

/// Whether the instruction set defines an instruction's result to the bit, and its order with others of its kind
/// does not matter.
fn defined(opcode: &str) -> bool {
    let words: Vec<&str> = opcode.split('.').collect();
    let approximate = words.iter().any(|word| matches!(*word, "approx" | "full"));
    let atomic = matches!(words[0], "atom" | "red") && words.contains(&"add");
    let float = words.last().is_some_and(|ty| ty.starts_with('f') || ty.starts_with("bf"));
    !(approximate || atomic && float)
}
