//! `cargo xtask setup`: fetches the device toolchain and the pinned ptxas.
//!
//! Everything it says goes to stderr, one line per part, because `chat --ask` runs it too and
//! promises that stdout holds the answer alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use ptx_build::toolchain::{
    self, DeviceToolchain, Origin, PTXAS_VERSION, locate, locate_debian, locate_pinned, locate_ptxas, workspace_root,
};

use crate::apt::Apt;
use crate::cargo::ptxas_required;
use crate::process::{on_path, output, run_on_stderr, tool};

/// The packages of the fallback compiler, and the first release that has LLVM 22.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "cargo-web"];
const DEBIAN_RELEASE: (u32, u32) = (1, 95);

/// The wheel that holds ptxas, with its hashes, as pip requirements.
const PTXAS_REQUIREMENTS: &str = include_str!("../ptxas.txt");

/// Fetches what is missing and says what is there.
///
/// # Errors
/// No compiler for device code could be had; or no ptxas, where the gate is required.
pub fn setup() -> Result<()> {
    device_toolchain()?;
    ptxas()
}

/// The components that `rust-toolchain.toml` names for `lint`: silently not installed where
/// `RUSTUP_AUTO_INSTALL=0`.
pub fn lint_tools() -> Result<()> {
    let present = |subcommand: &str| {
        let mut cargo = tool("cargo");
        cargo.args([subcommand, "--version"]);
        output(cargo.current_dir(workspace_root())).is_ok()
    };
    if present("fmt") && present("clippy") {
        return Ok(());
    }
    say("rustfmt, clippy: missing, running `rustup component add rustfmt clippy`");
    rustup(&["component", "add", "rustfmt", "clippy"])
}

/// A line about a part.
pub fn say(line: &str) {
    eprintln!("{line}");
}

fn device_toolchain() -> Result<()> {
    if let Ok(found) = locate() {
        report(&found, "present");
        return Ok(());
    }
    if std::env::var_os(toolchain::GPU_RUSTC_ENV).is_some_and(|value| !value.is_empty()) {
        // Someone chose a compiler: say what is wrong with it, do not fetch another.
        return locate().map(drop).map_err(|reason| anyhow!(reason));
    }
    let by_rustup = fetch_with_rustup();
    if let (Ok(()), Ok(found)) = (&by_rustup, locate_pinned()) {
        report(&found, "installed by rustup");
        return Ok(());
    }
    let by_rustup = reason(by_rustup, locate_pinned);
    say(&format!("rust-src: rustup cannot provide it ({by_rustup}); falling back to Debian's packages"));
    let by_apt = fetch_with_apt();
    if let (Ok(()), Ok(found)) = (&by_apt, locate_debian()) {
        report(&found, "installed by apt");
        return Ok(());
    }
    let by_apt = reason(by_apt, locate_debian);
    bail!(
        "no compiler for device code: rustup: {by_rustup}; apt: {by_apt}; \
         run `rustup component add rust-src` where there is a network, or set {} to a rustc \
         with LLVM 22 and its library sources",
        toolchain::GPU_RUSTC_ENV
    )
}

/// Why a fetch did not help: its own error, or what is still missing after it.
fn reason(fetch: Result<()>, locate: impl Fn() -> Result<DeviceToolchain, String>) -> String {
    match fetch {
        Err(error) => format!("{error:#}"),
        Ok(()) => locate().err().unwrap_or_default(),
    }
}

fn report(found: &DeviceToolchain, how: &str) {
    let compiler = format!("rustc {}, LLVM {}", found.release(), found.llvm());
    match found.origin {
        Origin::Pinned => say(&format!("rust-src: {how} ({compiler})")),
        Origin::Override => say(&format!("rust-src: {how} ({compiler}, chosen by {})", toolchain::GPU_RUSTC_ENV)),
        Origin::Debian => say(&format!(
            "rust-src: FALLBACK {how}: Debian's {compiler} compiles device code, not the pinned \
             toolchain; `rustup component add rust-src` goes back to that"
        )),
    }
}

fn fetch_with_rustup() -> Result<()> {
    if !on_path("rustup") {
        bail!("rustup is not installed");
    }
    if output(tool("rustc").arg("-vV").current_dir(workspace_root())).is_err() {
        say("rust toolchain: missing, running `rustup toolchain install`");
        rustup(&["toolchain", "install"])?;
    }
    say("rust-src: missing, running `rustup component add rust-src`");
    rustup(&["component", "add", "rust-src"])
}

/// Runs rustup on the toolchain that `rust-toolchain.toml` pins.
fn rustup(args: &[&str]) -> Result<()> {
    let mut command = tool("rustup");
    // Where it fails there is a fallback, and its backtrace would bury the line that says so.
    command.env("RUST_BACKTRACE", "0");
    run_on_stderr(command.args(args).current_dir(workspace_root()))
}

fn fetch_with_apt() -> Result<()> {
    let apt = Apt::new()?;
    say("rustc-web: running `apt-get update`");
    apt.update()?;
    let offered = output(tool("apt-cache").args(["policy", DEBIAN_PACKAGES[0]]))?;
    check_candidate(&offered)?;
    // The recommended packages are LLVM's tools, half a gigabyte.
    say(&format!("rustc-web: running `apt-get install {}` (145 MB)", DEBIAN_PACKAGES.join(" ")));
    apt.install(&DEBIAN_PACKAGES)
}

/// Whether `apt-cache policy` offers a release that is new enough: an oldstable without its
/// security archive has one with LLVM 19.
fn check_candidate(policy: &str) -> Result<()> {
    let package = DEBIAN_PACKAGES[0];
    let candidate = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
        .with_context(|| format!("no package source offers {package}"))?;
    let mut numbers = candidate.split(['.', '+', '-']).map(|part| part.parse().unwrap_or(0));
    let release = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if release < DEBIAN_RELEASE {
        let (major, minor) = DEBIAN_RELEASE;
        bail!("{package} is {candidate}, {major}.{minor} or later is needed (Debian's security archive has it)");
    }
    Ok(())
}

fn ptxas() -> Result<()> {
    if let Some(path) = locate_ptxas() {
        let fetched = path == toolchain::fetched_ptxas();
        let whose = if fetched { "fetched" } else { "of the CUDA toolkit" };
        say(&format!("ptxas: present ({PTXAS_VERSION}, {whose})"));
        return Ok(());
    }
    say(&format!("ptxas: missing, fetching {PTXAS_VERSION} with pip (36 MB)"));
    match fetch_ptxas(&toolchain::fetched_ptxas()) {
        Ok(()) => say(&format!("ptxas: installed ({PTXAS_VERSION})")),
        Err(error) if ptxas_required() => {
            return Err(error.context("ptxas is required here and could not be fetched"));
        }
        Err(error) => say(&format!(
            "ptxas: NOT FETCHED ({error:#}): the gate on stack, spills and serialized wgmma \
             WILL BE SKIPPED"
        )),
    }
    Ok(())
}

/// Downloads the wheel and takes the one file we want out of it.
fn fetch_ptxas(destination: &Path) -> Result<()> {
    let folder = destination.parent().context("ptxas has no folder")?;
    // A folder of our own: two builds may set up at the same time.
    let scratch = folder.join(format!("download-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let fetched = fetch_into(&scratch).and_then(|ptxas| {
        fs::rename(&ptxas, destination).with_context(|| format!("cannot write {}", destination.display()))
    });
    // Best effort: what is left behind is a few megabytes in the target directory.
    let _ = fs::remove_dir_all(&scratch);
    fetched
}

fn fetch_into(scratch: &Path) -> Result<PathBuf> {
    const TAKE_PTXAS: &str = "import glob, shutil, sys, zipfile\n\
        wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0])\n\
        with wheel.open('nvidia/cu13/bin/ptxas') as source, open(sys.argv[2], 'wb') as to:\n\
        \x20   shutil.copyfileobj(source, to)\n";
    let requirements = scratch.join("ptxas.txt");
    fs::write(&requirements, PTXAS_REQUIREMENTS)?;
    let mut pip = pip()?;
    pip.args(["download", "--quiet", "--disable-pip-version-check"])
        .args(["--retries", "1", "--no-deps", "--only-binary", ":all:"])
        .args(["--require-hashes", "--requirement"])
        .arg(&requirements)
        .arg("--dest")
        .arg(scratch);
    run_on_stderr(&mut pip)?;
    let ptxas = scratch.join("ptxas");
    let mut python = tool("python3");
    run_on_stderr(python.args(["-c", TAKE_PTXAS]).arg(scratch).arg(&ptxas))?;
    fs::set_permissions(&ptxas, fs::Permissions::from_mode(0o755))?;
    if !toolchain::is_pinned_ptxas(&ptxas) {
        bail!("what the wheel holds does not run as ptxas {PTXAS_VERSION}");
    }
    Ok(ptxas)
}

fn pip() -> Result<Command> {
    if output(tool("python3").args(["-m", "pip", "--version"])).is_ok() {
        let mut command = tool("python3");
        command.args(["-m", "pip"]);
        return Ok(command);
    }
    if on_path("python3") && on_path("pip3") {
        return Ok(tool("pip3"));
    }
    bail!("there is no pip")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_candidates() {
        let policy = |version: &str| format!("rustc-web:\n  Installed: (none)\n  Candidate: {version}\n");
        assert!(check_candidate(&policy("1.96.0+dfsg1-1~deb12u2")).is_ok());
        let old = check_candidate(&policy("1.85.0+dfsg3-1~deb12u3")).unwrap_err();
        assert!(old.to_string().contains("1.95 or later"), "{old}");
        assert!(check_candidate(&policy("(none)")).is_err());
        assert!(check_candidate("").is_err());
    }

    #[test]
    fn the_requirements_pin_the_release_the_gate_expects() {
        assert!(PTXAS_REQUIREMENTS.contains(&format!("=={PTXAS_VERSION} ")));
        assert!(PTXAS_REQUIREMENTS.contains("--hash=sha256:"));
    }
}
