//! What the tests of `wootz serve` need beside the build: OpenAI's official clients for Python and JavaScript, and a browser
//! for the page. All of it lies in `target/clients`, the browser excepted, which is the system's.
//!
//! Where a part cannot be had its tests are skipped, with a line that says so; in CI that is an error.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use ptx_build::toolchain::target_dir;

use crate::apt::Apt;
use crate::cargo::in_ci;
use crate::process::{output, run_on_stderr, tool};
use crate::setup::say;

/// The Python client and all that it needs, with their hashes.
const REQUIREMENTS: &str = include_str!("../../tests/clients/requirements.txt");
/// The oldest Python that those wheels are for.
const PYTHON: (u32, u32) = (3, 11);
/// The JavaScript client and the library that drives the browser, with their hashes.
const PACKAGE: &str = include_str!("../../tests/clients/package.json");
const LOCK: &str = include_str!("../../tests/clients/package-lock.json");
/// The oldest Node.js that they run on.
const NODE: u32 = 20;
/// Written into a part's folder when all of it is there; holds what was asked for. The tests look for it.
const STAMP: &str = "installed";

const CHROMIUM_ENV: &str = "WOOTZ_CHROMIUM";
/// Where it is found, one line for the tests.
const CHROMIUM_PATH: &str = "chromium.path";
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Installs what is missing and says what is there.
///
/// # Errors
/// In CI: a part cannot be had.
pub fn setup() -> Result<()> {
    part("openai for Python", python)?;
    part("openai for JavaScript", javascript)?;
    part("chromium", chromium)
}

fn part(name: &str, install: fn(&str) -> Result<()>) -> Result<()> {
    match install(name) {
        Err(error) if in_ci() => Err(error.context(format!("{name} is required in CI and could not be installed"))),
        Err(error) => {
            say(&format!("{name}: NOT INSTALLED ({error:#}): its tests WILL BE SKIPPED"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn folder() -> PathBuf {
    target_dir().join("clients")
}

/// Whether a part's folder holds what `wanted` asks for.
fn is_installed(folder: &Path, wanted: &str) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|found| found == wanted)
}

/// Empties a part's folder: what is in it was for other versions, or broke off.
fn begin(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn python(name: &str) -> Result<()> {
    let folder = folder().join("python");
    let python = folder.join("bin/python");
    let version = pinned_in_requirements("openai")?;
    // A virtual environment ends with the Python that it was made from.
    if is_installed(&folder, REQUIREMENTS) && output(tool(&python).arg("--version")).is_ok() {
        say(&format!("{name}: present ({version})"));
        return Ok(());
    }
    let found = output(tool("python3").arg("--version")).context("there is no Python")?;
    let release = numbers(&found);
    if (release.0, release.1) < PYTHON {
        bail!("this is {}, {}.{} or later is needed", found.trim(), PYTHON.0, PYTHON.1);
    }
    say(&format!("{name}: missing, installing {version} with pip (6 MB)"));
    begin(&folder)?;
    run_on_stderr(tool("python3").args(["-m", "venv"]).arg(&folder))?;
    let requirements = folder.join("requirements.txt");
    write(&requirements, REQUIREMENTS)?;
    let mut pip = tool(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"])
        .args(["--only-binary", ":all:", "--require-hashes", "--requirement"])
        .arg(&requirements);
    run_on_stderr(&mut pip)?;
    output(tool(&python).args(["-c", "import openai"])).context("what was installed does not run")?;
    write(&folder.join(STAMP), REQUIREMENTS)?;
    say(&format!("{name}: installed ({version})"));
    Ok(())
}

fn javascript(name: &str) -> Result<()> {
    let folder = folder().join("javascript");
    let versions = format!("{}, playwright-core {}", pinned_in_lock("openai")?, pinned_in_lock("playwright-core")?);
    if is_installed(&folder, LOCK) {
        say(&format!("{name}: present ({versions})"));
        return Ok(());
    }
    let found = output(tool("node").arg("--version")).context("there is no Node.js")?;
    if numbers(&found).0 < NODE {
        bail!("this is Node.js {}, {NODE} or later is needed", found.trim());
    }
    say(&format!("{name}: missing, installing {versions} with npm (4 MB)"));
    begin(&folder)?;
    write(&folder.join("package.json"), PACKAGE)?;
    write(&folder.join("package-lock.json"), LOCK)?;
    let mut npm = tool("npm");
    npm.args(["ci", "--loglevel", "error", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries", "1"]);
    // It tells how many packages it added; of a failure its first line is enough.
    output(npm.current_dir(&folder))?;
    write(&folder.join(STAMP), LOCK)?;
    say(&format!("{name}: installed ({versions})"));
    Ok(())
}

fn chromium(name: &str) -> Result<()> {
    let record = |path: &Path| -> Result<()> {
        let folder = folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        write(&folder.join(CHROMIUM_PATH), &path.to_string_lossy())
    };
    // The tests must not find one that is gone.
    let forget = |error: anyhow::Error| {
        let _ = fs::remove_file(folder().join(CHROMIUM_PATH));
        error
    };
    if let Some(path) = find_chromium().map_err(forget)? {
        say(&format!("{name}: present ({})", path.display()));
        return record(&path);
    }
    fetch_chromium(name).map_err(forget)?;
    let path = find_chromium().map_err(forget)?;
    let path = path.ok_or_else(|| forget(anyhow!("apt installed a chromium that is not on PATH")))?;
    say(&format!("{name}: installed by apt ({})", path.display()));
    record(&path)
}

/// The browser that the environment names, else the first on `PATH`.
fn find_chromium() -> Result<Option<PathBuf>> {
    if let Some(path) = std::env::var_os(CHROMIUM_ENV).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{CHROMIUM_ENV} names {}, which is no file", path.display());
        }
        return Ok(Some(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let all = BROWSERS.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    Ok(all.into_iter().find(|path| path.is_file()))
}

fn fetch_chromium(name: &str) -> Result<()> {
    let apt = Apt::new().with_context(|| format!("set {CHROMIUM_ENV} to a browser"))?;
    say(&format!("{name}: missing, running `apt-get update`"));
    apt.update()?;
    say(&format!("{name}: running `apt-get install chromium` (100 MB)"));
    apt.install(&["chromium"])
}

/// The version that the requirements pin.
fn pinned_in_requirements(package: &str) -> Result<&'static str> {
    let lines = REQUIREMENTS.lines().filter_map(|line| line.split_once("=="));
    let found = lines.into_iter().find(|(name, _)| *name == package);
    found.and_then(|(_, rest)| rest.split(' ').next()).with_context(|| format!("requirements.txt has no {package}"))
}

/// The version that the lock file pins.
fn pinned_in_lock(package: &str) -> Result<&'static str> {
    let (_, entry) = LOCK
        .split_once(&format!("\"node_modules/{package}\": {{"))
        .with_context(|| format!("package-lock.json has no {package}"))?;
    let version = entry.split_once("\"version\": \"").and_then(|(_, rest)| rest.split('"').next());
    version.with_context(|| format!("package-lock.json has no version of {package}"))
}

/// The first two numbers of a version.
fn numbers(version: &str) -> (u32, u32) {
    let version = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(numbers("Python 3.11.7\n"), (3, 11));
        assert_eq!(numbers("v20.20.2"), (20, 20));
        assert_eq!(numbers("none"), (0, 0));
    }

    #[test]
    fn everything_is_pinned_with_its_hash_and_from_no_registry_in_particular() {
        let package = |line: &&str| !line.starts_with([' ', '#']);
        for line in REQUIREMENTS.lines().filter(package) {
            assert!(line.contains("==") && line.ends_with('\\'), "{line}");
        }
        assert!(pinned_in_requirements("openai").is_ok());
        for name in ["openai", "playwright-core"] {
            let version = pinned_in_lock(name).unwrap();
            assert!(PACKAGE.contains(&format!("\"{name}\": \"{version}\"")), "{name} {version}");
        }
        assert_eq!(LOCK.matches("\"node_modules/").count(), LOCK.matches("\"integrity\": \"sha512-").count());
        assert!(!LOCK.contains("resolved") && !LOCK.contains("://"));
        assert!(!REQUIREMENTS.contains("://"));
    }

    #[test]
    fn a_stamp_is_for_one_version() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("part");
        assert!(!is_installed(&part, "1"));
        begin(&part).unwrap();
        assert!(!is_installed(&part, "1"));
        write(&part.join(STAMP), "1").unwrap();
        assert!(is_installed(&part, "1") && !is_installed(&part, "2"));
        begin(&part).unwrap();
        assert!(!is_installed(&part, "1"), "what was there is gone");
    }
}
