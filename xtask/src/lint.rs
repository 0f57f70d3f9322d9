//! `cargo xtask lint`: every check that needs no test run, with a summary.

use std::env;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use ptx_build::toolchain::workspace_root;

use crate::cargo::cargo;
use crate::{licences, process, setup, tidy};

/// One check of `lint`, in the order in which they run: quick ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// rustfmt changes nothing.
    Fmt,
    /// The project's own rules: where asm! and unsafe may be, sizes, no machine paths.
    Tidy,
    /// Licences and sources of dependencies, by deny.toml.
    Licences,
    /// clippy without warnings, tests and benches included.
    Clippy,
    /// rustdoc without warnings.
    Docs,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::Fmt => "fmt",
            Check::Tidy => "tidy",
            Check::Licences => "licences",
            Check::Clippy => "clippy",
            Check::Docs => "docs",
        }
    }

    /// Whether the check compiles, and so needs the device toolchain.
    fn compiles(self) -> bool {
        matches!(self, Check::Clippy | Check::Docs)
    }

    fn run(self) -> Result<String> {
        let root = workspace_root();
        let mut command = match self {
            Check::Tidy => return tidy::check(&root),
            Check::Licences => return licences::check(&root),
            Check::Fmt => {
                let mut command = cargo("fmt");
                command.args(["--all", "--check"]);
                command
            }
            Check::Clippy => {
                let mut command = cargo("clippy");
                command.args(["--workspace", "--all-targets", "--", "-D", "warnings"]);
                command
            }
            Check::Docs => {
                let mut command = cargo("doc");
                let flags = env::var("RUSTDOCFLAGS").unwrap_or_default();
                command.args(["--workspace", "--no-deps"]).env("RUSTDOCFLAGS", format!("{flags} -D warnings"));
                command
            }
        };
        process::run_on_stderr(command.current_dir(&root)).map(|()| String::new())
    }
}

/// Runs the given checks, or all of them; all run even where one fails.
///
/// # Errors
/// Names the checks that failed.
pub fn run(chosen: &[Check]) -> Result<()> {
    let checks: Vec<Check> =
        Check::value_variants().iter().copied().filter(|check| chosen.is_empty() || chosen.contains(check)).collect();
    if checks.iter().any(|check| check.compiles()) {
        setup::setup()?;
    }
    setup::lint_tools()?;
    let mut summary = Vec::new();
    let mut failed = Vec::new();
    for check in checks {
        let start = Instant::now();
        let (verdict, detail) = match check.run() {
            Ok(detail) => ("ok", detail),
            Err(error) => {
                eprintln!("{error:#}");
                failed.push(check.name());
                ("FAILED", String::new())
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        let line = format!("lint {:<8} {verdict:<6} {seconds:6.1} s  {detail}", check.name());
        summary.push(line.trim_end().to_owned());
    }
    for line in summary {
        println!("{line}");
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}
