//! `cargo xtask bench`: timings on this machine's GPU, and what documents say of them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use ptx_build::toolchain::workspace_root;

use crate::cargo::{built, cargo};
use crate::process::{become_program, output, run, tool};

/// Where results are kept.
const PERF: &str = "docs/perf";
/// The table of the fastest kernels.
const TUNED: &str = "kernels-host/src/gemm/tuned.txt";

/// Builds `wootz` for release and becomes `wootz bench kernels`, or `peers` with a folder for its results.
pub fn run_bench(peers: bool, args: &[OsString]) -> Result<()> {
    let root = workspace_root();
    let mut wootz = wootz_bench(&root)?;
    if peers {
        wootz.arg("peers");
        if !has(args, "--out") {
            wootz.arg("--out").arg(results_folder(&root)?);
        }
    } else {
        wootz.arg("kernels");
    }
    become_program(wootz.args(args))
}

/// As [`run_bench`], `wootz bench tune`: a whole table replaces the one that launches go by.
pub fn run_tune(args: &[OsString]) -> Result<()> {
    let root = workspace_root();
    let mut wootz = wootz_bench(&root)?;
    wootz.arg("tune");
    if !has(args, "--out") && !has(args, "--only") {
        wootz.arg("--out").arg(root.join(TUNED));
    }
    if !has(args, "--note") {
        let date = output(Command::new("date").args(["-u", "+%F"]))?;
        let commit = output(Command::new("git").arg("-C").arg(&root).args(["rev-parse", "--short", "HEAD"]))?;
        let rustc = output(Command::new("rustc").arg("--version"))?;
        wootz.arg("--note").arg(format!("{}, commit {}, {}", date.trim(), commit.trim(), rustc.trim()));
    }
    become_program(wootz.args(args))
}

/// `wootz bench`, built for release.
fn wootz_bench(root: &Path) -> Result<Command> {
    run(cargo("build").args(["--release", "--package", "serve-cli", "--bin", "wootz"]).current_dir(root))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let mut wootz = tool(target.join("release").join("wootz"));
    wootz.arg("bench");
    Ok(wootz)
}

/// Whether an option is among the arguments.
fn has(args: &[OsString], option: &str) -> bool {
    args.iter().any(|arg| arg.to_string_lossy().starts_with(option))
}

/// `docs/perf/<date>-<gpu>-<commit>`.
fn results_folder(root: &Path) -> Result<PathBuf> {
    let date = output(Command::new("date").args(["-u", "+%F"]))?;
    let gpus = output(Command::new("nvidia-smi").args(["--query-gpu=name", "--format=csv,noheader"]))
        .context("no GPU can be named: pass --out DIR")?;
    let commit = output(Command::new("git").arg("-C").arg(root).args(["rev-parse", "--short", "HEAD"]))?;
    let name = format!("{}-{}-{}", date.trim(), gpu_name(gpus.lines().next().unwrap_or("gpu")), commit.trim());
    Ok(root.join(PERF).join(name))
}

/// `NVIDIA H200` as `h200`.
fn gpu_name(name: &str) -> String {
    let name = name.trim().trim_start_matches("NVIDIA").trim().to_lowercase();
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Writes `docs/kernels.md` from `perf`, or else from the newest results.
pub fn docs_kernels(perf: &[PathBuf]) -> Result<()> {
    let root = workspace_root();
    let mut folders = perf.to_vec();
    if folders.is_empty() {
        let results = root.join(PERF);
        let listed = fs::read_dir(&results).with_context(|| format!("cannot read {}", results.display()))?;
        folders = listed.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        // Names begin with the date.
        folders.sort_by(|a, b| b.cmp(a));
    }
    let text = output(tool(built("--example", "docs_kernels")?).arg(&root).args(&folders))?;
    let path = root.join("docs/kernels.md");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::gpu_name;

    #[test]
    fn gpus_have_short_names() {
        assert_eq!(gpu_name("NVIDIA H200"), "h200");
        assert_eq!(gpu_name("NVIDIA GeForce RTX 4090\n"), "geforce-rtx-4090");
    }
}
