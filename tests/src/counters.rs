//! Budgets of the kernels: what one launch of a case of each entry executes and moves on the emulator, against the
//! committed `kernels-host/counters.txt`. A kernel that becomes slower shows here on a machine without a GPU.
use anyhow::{Context, Result, bail, ensure};
use kernels_host::case::{Case, Kernel, Work};
use kernels_host::{Device, Report, Target, ptx};
use libtest_mimic::{Failed, Trial};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

const COMMITTED: &str = include_str!("../../kernels-host/counters.txt");
const HEAD: &str = "\
# Counters of one launch on the emulator, per PTX entry (bf16 stands for f16). Instructions are warp instructions, loads
# and stores global ones as sectors/requests, wavefronts and conflicts those of shared memory's banks, bulk bytes.
# A test compares within 1 %. After a change that is meant: cargo xtask counters --update
";
/// Seed of the data and of the device.
const SEED: u64 = 1;
/// Most work of a counted case: a tenth of a second's, so that all of them together stay cheap.
const MOST_BYTES: u64 = 1 << 20;
const MOST_FLOPS: u64 = 1 << 26;

/// A line of the file.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    target: Target,
    entry: String,
    counts: BTreeMap<String, u64>,
    kernel: String,
    case: String,
}

/// The tests: one per kernel and module.
pub fn trials() -> Vec<Trial> {
    let mut trials = vec![Trial::test("counters::every_entry_has_a_line", || Ok(complete()?))];
    for target in [Target::Sm90a, Target::Sm80] {
        for kernel in kernels_host::kernels() {
            let name = format!("counters::{}::{target}", kernel.name);
            if wanted(&kernel, target).is_empty() {
                continue;
            }
            trials.push(Trial::test(name, move || {
                let differences = differences(&kernel, target).map_err(|error| format!("{error:#}"))?;
                judge(&differences).map_err(Failed::from)
            }));
        }
    }
    trials
}

/// `cargo xtask counters [--update] [FILTER]`.
pub fn main(args: &[OsString]) -> ExitCode {
    let mut args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let update = args.iter().position(|arg| arg == "--update").map(|at| args.remove(at)).is_some();
    let filter = args.first().cloned().unwrap_or_default();
    let done = if update { write(&filter) } else { compare(&filter) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn selected(filter: &str) -> Vec<(Kernel, Target)> {
    let both = [Target::Sm90a, Target::Sm80];
    let all =
        both.into_iter().flat_map(|target| kernels_host::kernels().into_iter().map(move |kernel| (kernel, target)));
    all.filter(|(kernel, target)| kernel.name.contains(filter) && !wanted(kernel, *target).is_empty()).collect()
}

fn compare(filter: &str) -> Result<()> {
    let mut all = Vec::new();
    for (kernel, target) in selected(filter) {
        let found = differences(&kernel, target)?;
        println!("{target} {}: {}", kernel.name, if found.is_empty() { "as committed" } else { "differs" });
        all.extend(found);
    }
    judge(&all).map_err(|text| anyhow::anyhow!(text))
}

fn write(filter: &str) -> Result<()> {
    let (mut records, mut failed) = (committed()?, Vec::new());
    for (kernel, target) in selected(filter) {
        println!("{target} {}", kernel.name);
        records.retain(|record| (record.kernel.as_str(), record.target) != (kernel.name, target));
        match fresh(&kernel, target) {
            Ok(found) => records.extend(found),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    let known: Vec<_> = selected("").iter().map(|(kernel, target)| (kernel.name, *target)).collect();
    records.retain(|record| known.contains(&(record.kernel.as_str(), record.target)));
    records.sort_by_key(|record| (record.kernel.clone(), record.target, record.entry.clone()));
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels-host/counters.txt");
    std::fs::write(&path, format!("{HEAD}compiler {}\n{lines}", ptx::COMPILER))
        .with_context(|| format!("cannot write {}", path.display()))?;
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// What differs is a failure, under another compiler than the file's a note.
fn judge(differences: &[String]) -> Result<(), String> {
    if differences.is_empty() {
        return Ok(());
    }
    let text = differences.join("\n");
    match committed_compiler() {
        compiler if compiler == ptx::COMPILER => {
            Err(format!("{text}\nif that is meant: cargo xtask counters --update"))
        }
        compiler => {
            eprintln!("counters were committed for {compiler}, this is {}:\n{text}", ptx::COMPILER);
            Ok(())
        }
    }
}

/// The entries of a kernel that are counted.
fn wanted(kernel: &Kernel, target: Target) -> Vec<&'static str> {
    let half = |entry: &str| entry.replace("bf16", "").contains("f16");
    kernel.entries.iter().copied().filter(|entry| !half(entry) && ptx::find(target, entry).is_some()).collect()
}

fn complete() -> Result<(), String> {
    let records = committed().map_err(|error| format!("{error:#}"))?;
    let known = |target, entry: &str| records.iter().any(|r| r.target == target && r.entry == entry);
    let missing: Vec<_> = selected("")
        .iter()
        .flat_map(|(kernel, target)| wanted(kernel, *target).into_iter().map(|entry| (*target, entry)))
        .filter(|(target, entry)| !known(*target, entry))
        .map(|(target, entry)| format!("{entry} ({target})"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("no line in kernels-host/counters.txt: {}; cargo xtask counters --update", missing.join(", ")))
}

/// The last launch of each entry that a case's check makes.
fn measure(case: &dyn Case, target: Target) -> Result<BTreeMap<&'static str, BTreeMap<String, u64>>> {
    let device = Device::emulated(target, SEED);
    let stream = device.stream()?;
    case.prepare(&stream, SEED)?.check(&stream)?;
    let launches = device.emulation().unwrap_or_default().launches;
    Ok(launches.into_iter().map(|(entry, launches)| (entry, counts(&launches.last))).collect())
}

/// The largest small case that reaches each entry, or the smallest of the larger ones.
fn fresh(kernel: &Kernel, target: Target) -> Result<Vec<Record>> {
    let mut missing = wanted(kernel, target);
    let mut cases = (kernel.pinned)();
    cases.retain(|case| case.checked_on_emulator());
    cases.sort_by_key(|case| {
        let Work { bytes, flops } = case.work();
        let size = (flops + bytes) as i64;
        if bytes <= MOST_BYTES && flops <= MOST_FLOPS { (0, -size) } else { (1, size) }
    });
    let mut records = Vec::new();
    for case in cases {
        if missing.is_empty() {
            break;
        }
        let measured = match measure(case.as_ref(), target) {
            Ok(measured) => measured,
            // Another case may reach the entry: the tests of kernels report this one.
            Err(error) => {
                eprintln!("{}: {error:#}", case.id());
                continue;
            }
        };
        for (entry, counts) in measured {
            if let Some(at) = missing.iter().position(|missing| *missing == entry) {
                missing.remove(at);
                let (entry, kernel, case) = (entry.to_owned(), kernel.name.to_owned(), case.id());
                records.push(Record { target, entry, counts, kernel, case });
            }
        }
    }
    ensure!(missing.is_empty(), "no case of {} reaches {} ({target}): pin one", kernel.name, missing.join(", "));
    Ok(records)
}

/// How a kernel's launches differ from the committed lines.
fn differences(kernel: &Kernel, target: Target) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut measured: BTreeMap<String, BTreeMap<&str, BTreeMap<String, u64>>> = BTreeMap::new();
    let cases = (kernel.pinned)();
    for record in committed()?.iter().filter(|r| r.kernel == kernel.name && r.target == target) {
        let Some(case) = cases.iter().find(|case| case.id() == record.case) else {
            found.push(format!("{} has no case {:?} any longer", kernel.name, record.case));
            continue;
        };
        if !measured.contains_key(&record.case) {
            measured.insert(record.case.clone(), measure(case.as_ref(), target).with_context(|| case.id())?);
        }
        match measured[&record.case].get(record.entry.as_str()) {
            Some(is) => found.extend(record.compare(is)),
            None => found.push(format!("{}: {} does not launch {target} {}", kernel.name, record.case, record.entry)),
        }
    }
    Ok(found)
}

impl Record {
    /// A line for each count that is off by more than a hundredth.
    fn compare(&self, is: &BTreeMap<String, u64>) -> Vec<String> {
        let names = self.counts.keys().chain(is.keys().filter(|name| !self.counts.contains_key(*name)));
        names
            .map(|name| (name, self.counts.get(name).copied().unwrap_or(0), is.get(name).copied().unwrap_or(0)))
            .filter(|(_, was, is)| was.abs_diff(*is) * 100 > *was)
            .map(|(name, was, is)| {
                let change = (is as f64 / was as f64 - 1.0) * 100.0;
                format!("{} ({}), {}: {name} was {was}, is {is} ({change:+.1} %)", self.entry, self.target, self.case)
            })
            .collect()
    }

    fn parse(line: &str) -> Option<Record> {
        let (counted, of) = line.split_once(" : ")?;
        let (kernel, case) = of.split_once(' ')?;
        let mut words = counted.split_whitespace();
        let target = match words.next()? {
            "sm_80" => Target::Sm80,
            "sm_90a" => Target::Sm90a,
            _ => return None,
        };
        let entry = words.next()?.to_owned();
        let count = |word: &str| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let counts = words.map(count).collect::<Option<_>>()?;
        Some(Record { target, entry, counts, kernel: kernel.into(), case: case.into() })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.target, self.entry)?;
        self.counts.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))?;
        write!(f, " : {} {}", self.kernel, self.case)
    }
}

fn lines() -> impl Iterator<Item = &'static str> {
    COMMITTED.lines().filter(|line| !line.starts_with('#'))
}

fn committed_compiler() -> &'static str {
    lines().find_map(|line| line.strip_prefix("compiler ")).unwrap_or("an unknown compiler")
}

fn committed() -> Result<Vec<Record>> {
    let records = lines().filter(|line| !line.starts_with("compiler "));
    records
        .map(|line| match Record::parse(line) {
            Some(record) => Ok(record),
            None => bail!("kernels-host/counters.txt: {line:?} is no line of it"),
        })
        .collect()
}

/// The counts that are kept, without the zeros.
fn counts(report: &Report) -> BTreeMap<String, u64> {
    let counters = &report.counters;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (opcode, count) in &report.instructions {
        *counts.entry(class(opcode).into()).or_default() += count;
    }
    let mut add = |name: &str, value: u64| *counts.entry(name.into()).or_default() += value;
    add("load_sectors", counters.global_loads.sectors);
    add("loads", counters.global_loads.requests);
    add("store_sectors", counters.global_stores.sectors);
    add("stores", counters.global_stores.requests);
    add("bulk", counters.bulk_bytes_loaded + counters.bulk_bytes_stored);
    for banks in [counters.shared_loads, counters.shared_stores, counters.shared_atomics] {
        add("wavefronts", banks.wavefronts);
        add("conflicts", banks.conflicts);
    }
    add("tensor_ops", counters.tensor_operations.values().sum());
    counts.retain(|_, value| *value > 0);
    counts
}

/// What kind of instruction an opcode is.
fn class(opcode: &str) -> &'static str {
    let stem = opcode.split('.').next().unwrap_or_default();
    match stem {
        "mma" => "tensor",
        "wgmma" if opcode.starts_with("wgmma.mma_async") => "tensor",
        "ld" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" | "prefetch" => "memory",
        "bra" | "ret" | "exit" | "bar" | "barrier" | "mbarrier" | "wgmma" | "fence" | "membar" | "elect" | "shfl"
        | "vote" | "match" | "redux" | "setmaxnreg" | "griddepcontrol" | "nanosleep" => "control",
        _ => "arithmetic",
    }
}
