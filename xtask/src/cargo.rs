//! The workspace's cargo, and the tasks that are one call of it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use ptx_build::toolchain::workspace_root;

use crate::process;

/// `cargo`, as the user called it: same toolchain, same flags, same profile overrides, so that
/// nothing is compiled twice. Only what cargo set for xtask itself is removed.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let of_xtask = |name: &str| {
        name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || matches!(name, "CARGO" | "RUST_RECURSION_COUNT" | "LD_LIBRARY_PATH")
    };
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(of_xtask) {
            command.env_remove(name);
        }
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH")
        && let Some(own) = ptx_build::toolchain::without_cargo_paths(&paths)
    {
        command.env("LD_LIBRARY_PATH", own);
    }
    if ptxas_required() {
        command.env("WOOTZ_PTXAS", "required");
    }
    command.arg(subcommand);
    command
}

/// Whether a build without the ptxas gate is a failure: in CI, or where the user says so.
pub fn ptxas_required() -> bool {
    in_ci() || env::var_os("WOOTZ_PTXAS").is_some_and(|mode| mode == "required")
}

/// Whether this is CI, where nothing that a test needs may be missing.
pub fn in_ci() -> bool {
    is_true(env::var_os("CI"))
}

fn is_true(value: Option<OsString>) -> bool {
    value.is_some_and(|value| value == "true" || value == "1")
}

/// `wootz chat ARGS…`. Cargo talks on stderr, so stdout is the program's alone.
pub fn chat(args: &[OsString]) -> Result<()> {
    let wootz = built("--bin", "wootz")?;
    process::become_program(process::tool(wootz).arg("chat").args(args))
}

/// `cargo test` over the workspace, with that many random cases of each kernel.
pub fn test(cases: Option<u32>, args: &[OsString]) -> Result<()> {
    let mut command = cargo("test");
    if let Some(cases) = cases {
        command.env("CASES", cases.to_string());
    }
    if in_ci() {
        // One run shows every failure.
        command.arg("--no-fail-fast");
    }
    command.args(test_args(args)).current_dir(workspace_root());
    process::become_program(&mut command)
}

/// The tests' executable in its role that compares or writes the kernels' counters.
pub fn counters(update: bool, filter: Option<&str>) -> Result<()> {
    let mut command = cargo("test");
    command.args(["--workspace", "--test", "wootz", "--", "kernel-counters"]);
    command.args(update.then_some("--update")).args(filter).current_dir(workspace_root());
    process::become_program(&mut command)
}

/// The arguments of `cargo test`: the whole workspace unless the user picks packages, and any
/// number of filters, where cargo itself takes one.
fn test_args(args: &[OsString]) -> Vec<OsString> {
    let own = |arg: &&OsString| *arg != "--";
    let picks_package = args.iter().take_while(own).any(|arg| {
        let arg = arg.to_string_lossy();
        arg == "-p" || arg.starts_with("--package") || arg.starts_with("--manifest-path")
    });
    let mut all: Vec<OsString> = Vec::new();
    if !picks_package {
        all.push("--workspace".into());
    }
    let several_filters = args.len() > 1 && !args.iter().any(|arg| arg.to_string_lossy().starts_with('-'));
    if several_filters {
        all.push("--".into());
    }
    all.extend(args.iter().cloned());
    all
}

/// Builds and runs an example of the workspace, in the user's own working directory.
pub fn example<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Result<()> {
    let program = built("--example", name)?;
    process::become_program(process::tool(program).args(args))
}

/// Builds a program of the workspace and returns its path. Built as `test` builds: one package alone has other
/// features, and its dependencies would be compiled a second time.
pub fn built(kind: &str, name: &str) -> Result<PathBuf> {
    let mut build = cargo("build");
    build.arg("--manifest-path").arg(workspace_root().join("Cargo.toml"));
    process::run(build.args(["--workspace", kind, name]))?;
    // xtask itself is in the profile's folder, examples in a folder beside it.
    let own = env::current_exe().context("cannot find xtask's own executable")?;
    let folder = if kind == "--example" { own.with_file_name("examples") } else { own.with_file_name("") };
    Ok(folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Vec<String> {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        let all = test_args(&args).into_iter();
        all.map(|arg| arg.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn filters_and_packages() {
        assert_eq!(of(&[]), ["--workspace"]);
        assert_eq!(of(&["norm"]), ["--workspace", "norm"]);
        assert_eq!(of(&["norm", "rope"]), ["--workspace", "--", "norm", "rope"]);
        assert_eq!(of(&["-p", "engine", "kv"]), ["-p", "engine", "kv"]);
        assert_eq!(of(&["norm", "--", "-p", "--nocapture"]), ["--workspace", "norm", "--", "-p", "--nocapture"]);
    }

    #[test]
    fn ci_values() {
        assert!(is_true(Some("true".into())) && is_true(Some("1".into())));
        assert!(!is_true(Some("false".into())) && !is_true(Some("".into())) && !is_true(None));
    }
}
