//! The comparison's table, for people and for programs.
use super::{Options, Outcome};
use anyhow::{Context, Result};
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
    pub failures: Vec<String>,
}

/// One kernel of one module.
#[derive(Default, Serialize)]
struct Row {
    kernel: String,
    module: String,
    /// Cases run, those that had to be equal, and those that were.
    cases: usize,
    defined: usize,
    equal: usize,
    elements: usize,
    unequal: usize,
    /// The greatest difference, in units of the elements' last place, and absolute.
    max_ulps: u64,
    max_difference: f64,
    /// Executed instructions whose results are not defined to the bit.
    inexact: BTreeSet<String>,
}

impl Report {
    pub(super) fn new(device: &str, driver: &str, options: &Options, outcomes: &[Outcome]) -> Self {
        let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
        let mut failures = Vec::new();
        for outcome in outcomes {
            let key = (outcome.kernel.to_owned(), outcome.target.to_string());
            let row = rows.entry(key.clone()).or_default();
            (row.kernel, row.module) = key;
            let faults = row.add(outcome);
            let Outcome { kernel, target, case, seed, .. } = outcome;
            failures.extend(faults.map(|fault| format!("{kernel} ({target}), {case}, seed {seed}: {fault}")));
        }
        failures.sort();
        Report {
            device: device.to_owned(),
            driver: driver.to_owned(),
            seed: options.seed,
            kernels: rows.into_values().collect(),
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
        let head = ["kernel", "module", "cases", "defined", "equal", "elements", "unequal", "ulps", "difference"];
        writeln!(
            f,
            "{:24} {:8} {:>6} {:>8} {:>6} {:>10} {:>9} {:>6} {:>11}  inexact instructions",
            head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7], head[8]
        )?;
        for row in &self.kernels {
            let inexact: Vec<&str> = row.inexact.iter().map(String::as_str).collect();
            writeln!(
                f,
                "{:24} {:8} {:>6} {:>8} {:>6} {:>10} {:>9} {:>6} {:>11.3e}  {}",
                row.kernel,
                row.module,
                row.cases,
                row.defined,
                row.equal,
                row.elements,
                row.unequal,
                row.max_ulps,
                row.max_difference,
                inexact.join(", ")
            )?;
        }
        writeln!(f, "\n{} failures", self.failures.len())?;
        self.failures.iter().try_for_each(|failure| writeln!(f, "{failure}"))
    }
}
