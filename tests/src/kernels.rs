//! Every kernel's cases on every device; every PTX entry has a kernel.
use crate::devices::Named;
use kernels_host::case::{Case, Kernel};
use kernels_host::{Stream, ptx};
use libtest_mimic::{Failed, Trial};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::collections::BTreeSet;

/// The tests.
pub fn trials(devices: &[Named]) -> Vec<Trial> {
    let mut trials = vec![Trial::test("kernels::every_entry_is_covered", every_entry_is_covered)];
    for kernel in kernels_host::kernels() {
        for device in devices.iter().filter(|device| kernel.runs_on(&device.device)) {
            for case in (kernel.pinned)() {
                if device.device.is_cpu() && !case.checked_on_cpu() {
                    continue;
                }
                let device = device.clone();
                let name = format!("kernels::{}::{}::{}", kernel.name, device.name, case.id());
                trials.push(Trial::test(name, move || Ok(run(case.as_ref(), &device.device.stream()?, 1)?)));
            }
            let (name, random, device) =
                (format!("kernels::{}::{}::random", kernel.name, device.name), kernel.random, device.clone());
            trials.push(Trial::test(name, move || random_cases(random(), &device)));
        }
    }
    trials
}

fn run(case: &dyn Case, stream: &Stream, seed: u64) -> Result<(), String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", case.id());
    let mut data = case.prepare(stream, seed).map_err(|e| fail(&e))?;
    data.check(stream).map_err(|e| fail(&e))
}

/// `CASES` random problems (default 32), shrunk when one fails.
fn random_cases(strategy: proptest::strategy::BoxedStrategy<Box<dyn Case>>, device: &Named) -> Result<(), Failed> {
    let cases = match std::env::var("CASES") {
        Ok(text) => text.parse().map_err(|_| format!("CASES={text} is not a number"))?,
        Err(_) => 32,
    };
    let stream = device.device.stream()?;
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(strategy, proptest::num::u64::ANY), |(case, seed)| {
        run(case.as_ref(), &stream, seed).map_err(TestCaseError::fail)
    });
    result.map_err(|error| Failed::from(error.to_string()))
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
