//! The comparison's table, for people and for programs.
use super::{Options, Outcome};
use anyhow::{Context, Result};
use kernels_host::Target;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

#[derive(Serialize)]
pub(super) struct Report {
    device: String,
    driver: String,
    seed: u64,
    kernels: Vec<Row>,
    /// The case that took longest, and its seconds.
    slowest: Option<(String, f32)>,
    pub failures: Vec<String>,
}

/// One kernel of one module.
#[derive(Default, Serialize)]
struct Row {
    kernel: String,
    module: String,
    /// Pinned cases that are too large for the emulator, and not run.
    left_out: usize,
    /// Cases run, those that had to be equal, and those that were.
    cases: usize,
    defined: usize,
    equal: usize,
    elements: usize,
    unequal: usize,
    /// Elements not compared, since they are NaN on both.
    nans: usize,
    /// The greatest difference, in units of the elements' last place, and absolute.
    max_ulps: u64,
    max_difference: f64,
    /// Executed instructions whose results are not defined to the bit.
    inexact: BTreeSet<String>,
}

impl Report {
    pub(super) fn new(
        device: &str,
        driver: &str,
        options: &Options,
        outcomes: &[Outcome],
        left_out: &BTreeMap<(&str, Target), usize>,
    ) -> Self {
        let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
        let mut failures = Vec::new();
        for outcome in outcomes {
            let key = (outcome.kernel.to_owned(), outcome.target.to_string());
            let row = rows.entry(key.clone()).or_default();
            (row.kernel, row.module) = key;
            row.left_out = left_out.get(&(outcome.kernel, outcome.target)).copied().unwrap_or_default();
            let faults = row.add(outcome);
            let Outcome { kernel, target, case, seed, .. } = outcome;
            failures.extend(faults.map(|fault| format!("{kernel} ({target}), {case}, seed {seed}: {fault}")));
        }
        failures.sort();
        let slowest = outcomes.iter().max_by_key(|outcome| outcome.time).map(|outcome| {
            let Outcome { kernel, target, case, time, .. } = outcome;
            (format!("{kernel} ({target}), {case}"), time.as_secs_f32())
        });
        Report {
            device: device.to_owned(),
            driver: driver.to_owned(),
            seed: options.seed,
            kernels: rows.into_values().collect(),
            slowest,
            failures,
        }
    }

    /// Writes `differential.txt` and `differential.json`.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let context = || format!("cannot write to {}", dir.display());
        std::fs::create_dir_all(dir).with_context(context)?;
        std::fs::write(dir.join("differential.txt"), self.to_string()).with_context(context)?;
        std::fs::write(dir.join("differential.json"), serde_json::to_vec_pretty(self)?).with_context(context)
    }
}

impl Row {
    fn add(&mut self, outcome: &Outcome) -> Option<String> {
        self.cases += 1;
        self.defined += usize::from(outcome.inexact.is_empty());
        self.inexact.extend(outcome.inexact.iter().cloned());
        let differences = match &outcome.result {
            Ok(differences) => differences,
            Err(error) => return Some(error.clone()),
        };
        self.equal += usize::from(differences.iter().all(|difference| difference.unequal == 0));
        for difference in differences {
            self.elements += difference.elements;
            self.unequal += difference.unequal;
            self.nans += difference.nans;
            self.max_ulps = self.max_ulps.max(difference.ulps);
            self.max_difference = self.max_difference.max(difference.absolute);
        }
        let faults = differences.iter().filter_map(|d| Some(format!("{} ({} differ)", d.fault.as_ref()?, d.unequal)));
        faults.reduce(|all, fault| format!("{all}; {fault}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (CUDA {}) and the emulator, seed {}\n", self.device, self.driver, self.seed)?;
        writeln!(
            f,
            "left out: pinned cases too large for the emulator; defined: cases that execute only instructions whose results \
             the ISA defines to the bit;\nequal: cases equal in every bit; NaN: elements that are NaN on both and say \
             nothing.\n"
        )?;
        writeln!(
            f,
            "{:24} {:8} {:>8} {:>6} {:>8} {:>6} {:>10} {:>6} {:>9} {:>8} {:>11}  inexact instructions",
            "kernel",
            "module",
            "left out",
            "cases",
            "defined",
            "equal",
            "elements",
            "NaN",
            "unequal",
            "ulps",
            "difference"
        )?;
        for row in &self.kernels {
            let inexact: Vec<&str> = row.inexact.iter().map(String::as_str).collect();
            writeln!(
                f,
                "{:24} {:8} {:>8} {:>6} {:>8} {:>6} {:>10} {:>6} {:>9} {:>8} {:>11.3e}  {}",
                row.kernel,
                row.module,
                row.left_out,
                row.cases,
                row.defined,
                row.equal,
                row.elements,
                row.nans,
                row.unequal,
                row.max_ulps,
                row.max_difference,
                inexact.join(", ")
            )?;
        }
        let total = |count: fn(&Row) -> usize| self.kernels.iter().map(count).sum::<usize>();
        writeln!(
            f,
            "\n{} cases ({} left out), {} elements ({} NaN), {} failures",
            total(|row| row.cases),
            total(|row| row.left_out),
            total(|row| row.elements),
            total(|row| row.nans),
            self.failures.len()
        )?;
        if let Some((case, seconds)) = &self.slowest {
            writeln!(f, "slowest, {seconds:.1} s: {case}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "{failure}"))
    }
}
