//! Every kernel's cases on every device; every PTX entry has a kernel.
use crate::devices::{Kind, Named};
use kernels_host::case::{Case, Kernel};
use kernels_host::{Device, Target, ptx};
use libtest_mimic::{Failed, Trial};
use proptest::strategy::BoxedStrategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex};

/// The tests.
pub fn trials(devices: &[Named]) -> Vec<Trial> {
    let mut trials = vec![Trial::test("kernels::every_entry_is_covered", every_entry_is_covered)];
    for device in devices {
        let mut left_out = 0;
        for kernel in kernels_host::kernels().into_iter().filter(|kernel| kernel.runs_on(&device.device())) {
            for case in (kernel.pinned)() {
                if !device.is_for(case.as_ref()) {
                    left_out += 1;
                    continue;
                }
                let device = device.clone();
                let name = format!("kernels::{}::{}::{}", kernel.name, device.name, case.id());
                trials.push(Trial::test(name, move || Ok(run(case.as_ref(), &device.device(), 1)?)));
            }
            let (name, random, device) =
                (format!("kernels::{}::{}::random", kernel.name, device.name), kernel.random, device.clone());
            trials.push(Trial::test(name, move || random_cases(random(), &device)));
        }
        if left_out > 0 {
            eprintln!("{}: {left_out} cases are left out, whose work would take too long there", device.name);
        }
    }
    trials
}

/// Whether a GPU runs the emulator's cases only (`SIZES=small`): compute-sanitizer's racecheck takes hours over the others.
static SMALL: LazyLock<bool> = LazyLock::new(|| std::env::var("SIZES").is_ok_and(|sizes| sizes == "small"));

impl Named {
    fn is_for(&self, case: &dyn Case) -> bool {
        match self.kind {
            Kind::Cpu => case.checked_on_cpu(),
            Kind::Cuda(_) => !*SMALL || case.checked_on_emulator(),
            Kind::Emulated(_) => case.checked_on_emulator(),
        }
    }
}

fn run(case: &dyn Case, device: &Device, seed: u64) -> Result<(), String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", case.id());
    let stream = device.stream().map_err(|e| fail(&e))?;
    let mut data = case.prepare(&stream, seed).map_err(|e| fail(&e))?;
    let result = data.check(&stream).map_err(|e| fail(&e));
    LAUNCHED.add(device);
    result
}

/// `CASES` random problems (32, on emulated devices 4), shrunk when one fails. The seed is the data's and an emulated
/// device's.
fn random_cases(strategy: BoxedStrategy<Box<dyn Case>>, device: &Named) -> Result<(), Failed> {
    let cases = match std::env::var("CASES") {
        Ok(text) => text.parse().map_err(|_| format!("CASES={text} is not a number"))?,
        Err(_) if device.is_emulated() => 4,
        Err(_) => 32,
    };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(strategy, proptest::num::u64::ANY), |(case, seed)| {
        if !device.is_for(case.as_ref()) {
            return Ok(());
        }
        run(case.as_ref(), &device.with_seed(seed), seed).map_err(TestCaseError::fail)
    });
    result.map_err(|error| Failed::from(error.to_string()))
}

/// The entries that each module's emulated devices have launched in this process.
static LAUNCHED: Launched = Launched(Mutex::new(BTreeSet::new()));

struct Launched(Mutex<BTreeSet<(Target, &'static str)>>);

impl Launched {
    fn add(&self, device: &Device) {
        if let (Some(emulation), Some(target)) = (device.emulation(), device.target()) {
            let mut launched = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            launched.extend(emulation.launches.into_keys().map(|entry| (target, entry)));
        }
    }
}

/// After all tests: every embedded entry has run on the emulator.
pub fn check_launched() -> Result<(), String> {
    let launched = LAUNCHED.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let embedded = ptx::entries();
    let missing: Vec<_> = embedded.iter().filter(|entry| !launched.contains(entry)).collect();
    if missing.is_empty() {
        eprintln!("all {} entries have run on the emulator", embedded.len());
        return Ok(());
    }
    let missing: Vec<_> = missing.iter().map(|(target, entry)| format!("{entry} ({target})")).collect();
    Err(format!("no case small enough launched {} on the emulator: pin one", missing.join(", ")))
}

fn every_entry_is_covered() -> Result<(), Failed> {
    let covered: BTreeSet<&str> =
        kernels_host::kernels().iter().flat_map(|kernel: &Kernel| kernel.entries.iter().copied()).collect();
    let embedded: BTreeSet<&str> = ptx::entries().into_iter().map(|(_, name)| name).collect();
    if covered == embedded {
        return Ok(());
    }
    let missing: Vec<_> = embedded.difference(&covered).collect();
    let unknown: Vec<_> = covered.difference(&embedded).collect();
    Err(format!("entries without a kernel: {missing:?}; kernels' entries that are not embedded: {unknown:?}").into())
}
