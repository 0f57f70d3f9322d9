//! The compile-time gate: ptxas must place every kernel without stack, spills or serialised wgmma.
use crate::toolchain;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The gate, or nothing where no ptxas is installed.
pub struct Gate {
    ptxas: Option<PathBuf>,
}

impl Gate {
    /// Finds ptxas; an error where `WOOTZ_PTXAS=required` and there is none.
    pub fn find() -> Result<Gate, String> {
        println!("cargo::rerun-if-env-changed=WOOTZ_PTXAS");
        println!("cargo::rerun-if-env-changed={}", toolchain::PTXAS_ENV);
        // Once `setup` has fetched ptxas, what was built without it goes through the gate.
        println!("cargo::rerun-if-changed={}", toolchain::fetched_ptxas().display());
        let ptxas = toolchain::locate_ptxas();
        if ptxas.is_none() {
            if std::env::var("WOOTZ_PTXAS").is_ok_and(|v| v == "required") {
                return Err(format!(
                    "ptxas {} is required and was not found: run `cargo xtask setup`",
                    toolchain::PTXAS_VERSION
                ));
            }
            println!(
                "cargo::warning=no ptxas {}: the gate on stack, spills and serialised wgmma is SKIPPED; `cargo xtask setup` installs it",
                toolchain::PTXAS_VERSION
            );
        }
        Ok(Gate { ptxas })
    }

    /// Assembles the PTX at `path` and reads ptxas's report, which stays beside it.
    pub fn check(&self, path: &Path, target: &str, family: &str) -> Result<(), String> {
        let Some(ptxas) = &self.ptxas else { return Ok(()) };
        let report = path.with_extension("ptxas");
        let text = match std::fs::read_to_string(&report) {
            Ok(text) => text,
            Err(_) => {
                let output = Command::new(ptxas)
                    .args([&format!("-arch={target}"), "-v", "-o", "/dev/null"])
                    .arg(path)
                    .output()
                    .map_err(|e| format!("{}: {e}", ptxas.display()))?;
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                if !output.status.success() {
                    return Err(format!(
                        "ptxas rejects kernel family {family} for {target} ({}):\n{text}",
                        path.display()
                    ));
                }
                std::fs::write(&report, &text).map_err(|e| format!("{}: {e}", report.display()))?;
                text
            }
        };
        let faults = faults(&text);
        if faults.is_empty() {
            Ok(())
        } else {
            Err(format!("kernel family {family} for {target} fails the ptxas gate:\n{}", faults.join("\n")))
        }
    }
}

/// Entries with a stack or spills, and wgmma serialisation warnings (C75xx).
fn faults(report: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut function = "";
    for line in report.lines() {
        if let Some(name) = line.split("Function properties for ").nth(1) {
            function = name;
        } else if line.contains("bytes stack frame")
            && line.trim() != "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        {
            faults.push(format!("{function}: {}", line.trim()));
        } else if line.contains("(C75") {
            faults.push(line.trim().to_owned());
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::faults;

    #[test]
    fn reads_the_report() {
        let clean = "ptxas info    : Function properties for a\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
        assert!(faults(clean).is_empty());
        let spills = clean.replace("0 bytes spill loads", "8 bytes spill loads");
        assert_eq!(faults(&spills), ["a: 0 bytes stack frame, 0 bytes spill stores, 8 bytes spill loads"]);
        assert_eq!(
            faults("ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized")
                .len(),
            1
        );
    }
}
