//! `wootz-probes`: records the probes on a GPU, and holds the emulator against a recording.
use super::{Compare, Probe, golden, run};
use anyhow::{Context, Result, bail, ensure};
use kernels_host::{Device, Error};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: wootz-probes --record DIR [FILTER]    run the probes on GPU 0, write DIR/probes.zst
       wootz-probes --compare FILE [FILTER]  run them on the emulator, compare with a recording
       wootz-probes --golden FILE            condense a recording into tests/goldens/probes
       wootz-probes --ptx DIR [FILTER]       write their PTX
       wootz-probes --emulate FILTER         run them on the emulator: does it take them?";

/// A probe that has recorded nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the command line.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let (command, path) = (args.first().map(String::as_str), args.get(1).map(PathBuf::from));
    let filter = args.get(2).cloned().unwrap_or_default();
    let done = match (command, path) {
        (Some("--record"), Some(dir)) => record(&dir, &filter),
        (Some("--record-from"), Some(file)) => record_from(&file, &filter, args.get(3)),
        (Some("--compare"), Some(file)) => compare(&file, &filter),
        (Some("--golden"), Some(file)) => condense(&file),
        (Some("--ptx"), Some(dir)) => write_ptx(&dir, &filter),
        (Some("--emulate"), _) => emulate(args.get(1).map_or("", String::as_str)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn selected(filter: &str) -> Vec<Probe> {
    super::all().into_iter().filter(|probe| probe.name.contains(filter)).collect()
}

/// What became of one probe: its output, or why there is none.
type Outcome = Result<Vec<u8>, String>;

/// Runs all probes in processes of their own, because a probe that faults takes its process's GPU context with it and
/// one that hangs has to be killed.
fn record(dir: &Path, filter: &str) -> Result<bool> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let device = Device::cuda(0)?;
    let start = Instant::now();
    let probes = selected(filter);
    let raw = dir.join("probes.raw");
    fs::write(&raw, [])?;
    append(&raw, "#device", 0, &Ok(device.name().as_bytes().to_vec()))?;
    append(&raw, "#driver", 0, &Ok(Device::driver_version()?.into_bytes()))?;
    drop(device);
    loop {
        let done = read_entries(&fs::read(&raw)?)?.len() - 2;
        let Some(probe) = probes.get(done) else { break };
        let died = run_child(&raw, filter, done)?;
        if read_entries(&fs::read(&raw)?)?.len() - 2 == done {
            append(&raw, &probe.name, probe.fingerprint(), &Err(died))?;
        }
    }
    let bytes = fs::read(&raw)?;
    let entries = read_entries(&bytes)?;
    let failures: Vec<_> = entries.iter().filter_map(|e| Some((&e.name, e.outcome.as_ref().err()?))).collect();
    for (name, error) in &failures {
        println!("{name}: {error}");
    }
    let packed = zstd::encode_all(&bytes[..], 9)?;
    fs::write(dir.join("probes.zst"), &packed)?;
    fs::remove_file(&raw)?;
    println!(
        "{} probes recorded, {} failed, {} kB, {:.1} s",
        entries.len() - 2 - failures.len(),
        failures.len(),
        packed.len() / 1000,
        start.elapsed().as_secs_f32()
    );
    Ok(failures.is_empty())
}

/// Runs the probes from number `first` on in a child; returns why it ended.
fn run_child(raw: &Path, filter: &str, first: usize) -> Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["wootz-probes", "--record-from"]).arg(raw).args([filter, &first.to_string()]);
    let mut child = command.spawn()?;
    let (mut length, mut progress) = (0, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(format!("ended the process: {status}"));
        }
        let now = fs::metadata(raw)?.len();
        if now != length {
            (length, progress) = (now, Instant::now());
        }
        if progress.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(format!("hangs: killed after {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn record_from(raw: &Path, filter: &str, first: Option<&String>) -> Result<bool> {
    let first: usize = first.context("a number")?.parse()?;
    let device = Device::cuda(0)?;
    for probe in selected(filter).iter().skip(first) {
        let result = run::on_gpu(probe, &device);
        let lost = matches!(&result, Err(Error::Cuda { call, .. }) if !call.starts_with("cuTensorMap") && !call.starts_with("cuModule"));
        append(raw, &probe.name, probe.fingerprint(), &result.map_err(|e| e.to_string()))?;
        if lost {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Entry {
    name: String,
    fingerprint: u64,
    outcome: Outcome,
}

fn append(raw: &Path, name: &str, fingerprint: u64, outcome: &Outcome) -> Result<()> {
    let (ok, bytes) = match outcome {
        Ok(bytes) => (1u64, &bytes[..]),
        Err(error) => (0, error.as_bytes()),
    };
    let mut entry = Vec::new();
    for number in [name.len() as u64, fingerprint, ok, bytes.len() as u64] {
        entry.extend(number.to_le_bytes());
    }
    entry.extend(name.as_bytes());
    entry.extend(bytes);
    OpenOptions::new().append(true).open(raw)?.write_all(&entry).context("cannot write the recording")
}

fn read_entries(mut bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let mut numbers = [0u64; 4];
        for number in &mut numbers {
            let (head, rest) = bytes.split_first_chunk().context("the recording is cut off")?;
            (*number, bytes) = (u64::from_le_bytes(*head), rest);
        }
        let [name, fingerprint, ok, length] = numbers;
        ensure!((name + length) as usize <= bytes.len(), "the recording is cut off");
        let (head, rest) = bytes.split_at(name as usize);
        let (body, rest) = rest.split_at(length as usize);
        bytes = rest;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let outcome = if ok == 1 { Ok(body.to_vec()) } else { Err(text(body)) };
        entries.push(Entry { name: text(head), fingerprint, outcome });
    }
    Ok(entries)
}

/// A recording: the GPU, the driver, and the probes that succeeded.
fn load(file: &Path) -> Result<(String, String, Vec<Entry>)> {
    let packed = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut entries = read_entries(&zstd::decode_all(&packed[..])?)?.into_iter();
    let mut text = || match entries.next().map(|entry| entry.outcome) {
        Some(Ok(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        _ => bail!("{} is no recording", file.display()),
    };
    let (device, driver) = (text()?, text()?);
    Ok((device, driver, entries.collect()))
}

fn compare(file: &Path, filter: &str) -> Result<bool> {
    let (device, driver, entries) = load(file)?;
    println!("{device}, CUDA {driver}");
    let recorded: BTreeMap<String, Entry> = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let (mut right, mut wrong) = (0, 0);
    for probe in selected(filter) {
        match compare_one(&probe, recorded.get(&probe.name)) {
            Ok(note) => {
                right += 1;
                if !note.is_empty() {
                    println!("{}: {note}", probe.name);
                }
            }
            Err(error) => {
                wrong += 1;
                println!("{}: {error}", probe.name);
            }
        }
    }
    println!("{right} probes agree, {wrong} do not");
    Ok(wrong == 0)
}

fn compare_one(probe: &Probe, entry: Option<&Entry>) -> Result<String, String> {
    let entry = entry.ok_or("not recorded")?;
    if entry.fingerprint != probe.fingerprint() {
        return Err("another version of it was recorded".into());
    }
    let expected = entry.outcome.as_ref().map_err(|e| format!("the GPU: {e}"))?;
    let found = run::on_emulator(probe, 1)?;
    if let Compare::Approximate(function) = probe.compare {
        let hardware: Vec<f32> = golden::floats(expected).collect();
        let share = |results: &[f32]| {
            let shares = results.iter().enumerate().map(|(i, &x)| function.share(&golden::inputs(probe, i), x));
            shares.fold(0.0, f64::max)
        };
        let emulated: Vec<f32> = golden::floats(&found).collect();
        golden::compare_approximate(probe, function, &found, &hardware)?;
        golden::compare_approximate(probe, function, expected, &hardware).map_err(|e| format!("THE HARDWARE: {e}"))?;
        return Ok(format!("of the bound, hardware {:.2}, emulator {:.2}", share(&hardware), share(&emulated)));
    }
    let mut faults = Vec::new();
    let (mut wrong, mut at) = (0, 0);
    while let Some(next) = (at..found.len()).find(|&i| found[i] != expected[i]) {
        let (start, size, what) = probe.element(next);
        wrong += 1;
        if faults.len() < 4 {
            let range = start..start + size;
            faults.push(format!(
                "{what} is {}, the GPU's {}",
                super::hex(&found[range.clone()]),
                super::hex(&expected[range])
            ));
        }
        at = start + size;
    }
    if wrong == 0 { Ok(String::new()) } else { Err(format!("{wrong} wrong: {}", faults.join("; "))) }
}

fn condense(file: &Path) -> Result<bool> {
    let (device, driver, entries) = load(file)?;
    let mut outputs = BTreeMap::new();
    for Entry { name, fingerprint, outcome } in entries {
        outputs.insert(name, golden::Recorded { fingerprint, output: outcome.ok() });
    }
    let golden = golden::condense(device, driver, &outputs, golden::Golden::load().ok())?;
    let path = golden::Golden::path();
    let size = golden.store(&path)?;
    println!("{}: {} probes, {size} bytes", path.display(), outputs.len());
    Ok(true)
}

fn write_ptx(dir: &Path, filter: &str) -> Result<bool> {
    fs::create_dir_all(dir)?;
    for probe in selected(filter) {
        fs::write(dir.join(format!("{}.ptx", probe.name.replace('/', "-"))), &probe.ptx)?;
    }
    Ok(true)
}

fn emulate(filter: &str) -> Result<bool> {
    let (mut taken, mut refused) = (0, 0);
    for probe in selected(filter) {
        match run::on_emulator(&probe, 1) {
            Ok(_) => taken += 1,
            Err(error) => {
                refused += 1;
                println!("{}: {error}", probe.name);
            }
        }
    }
    println!("{taken} probes run, {refused} do not");
    Ok(refused == 0)
}
