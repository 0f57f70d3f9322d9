//! `cargo xtask bundle`: one folder with what a GPU machine without Rust needs.
//!
//! Tests, benches and the command line are one multi-call executable, so that the embedded models
//! and PTX are in the folder once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ptx_build::toolchain::workspace_root;

use crate::cargo::cargo;
use crate::process::{on_path, output, run_on_stderr, tool};
use crate::tidy::mib;

/// The folder's limit: it goes over the network to the GPU machine on every change.
const LIMIT: u64 = 36 << 20;

/// What the tests read at run time, by its path in the repository; the same path in the bundle.
const DATA: &[&str] = &["tests/goldens"];

/// The executable's name in the bundle; `run.sh` knows it.
const EXECUTABLE: &str = "wootz-all";

const RUNNER: &str = include_str!("../templates/run.sh");

/// Builds and fills `bundle/`, and prints its size by part.
///
/// # Errors
/// The build fails, a file cannot be copied, or the folder is over [`LIMIT`].
pub fn run(profile: &str) -> Result<()> {
    let root = workspace_root();
    let built = build(&root, profile)?;
    let bundle = root.join("bundle");
    if bundle.exists() {
        fs::remove_dir_all(&bundle).with_context(|| format!("cannot empty {}", bundle.display()))?;
    }
    fs::create_dir_all(&bundle).with_context(|| format!("cannot create {}", bundle.display()))?;

    let executable = bundle.join(EXECUTABLE);
    copy(&built, &executable)?;
    strip(&executable)?;
    let runner = bundle.join("run.sh");
    fs::write(&runner, RUNNER).with_context(|| format!("cannot write {}", runner.display()))?;
    fs::set_permissions(&runner, fs::Permissions::from_mode(0o755))?;
    for part in DATA {
        if root.join(part).exists() {
            copy_tree(&root.join(part), &bundle.join(part))?;
        }
    }
    report(&bundle, &executable)
}

/// Builds the multi-call executable and returns its path.
fn build(root: &Path, profile: &str) -> Result<PathBuf> {
    let mut command = cargo("test");
    command
        .args(["--no-run", "--package", "wootz-tests", "--test", "wootz"])
        .args(["--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .stderr(std::process::Stdio::inherit())
        .current_dir(root);
    let messages = output(&mut command).context("the bundle's executable does not build")?;
    executable_in(&messages).context("cargo built no executable for the test `wootz`")
}

/// The test's executable in cargo's messages, one JSON object a line. The line has one field of
/// that name, and a path with a quote or backslash in it does not occur: no JSON parser for that.
fn executable_in(messages: &str) -> Option<PathBuf> {
    let line =
        messages.lines().find(|line| line.contains("\"kind\":[\"test\"]") && line.contains("\"executable\":\""))?;
    let (_, path) = line.split_once("\"executable\":\"")?;
    path.split('"').next().map(PathBuf::from)
}

/// Removes symbols: with binutils, else with the copy that comes with rustc.
fn strip(executable: &Path) -> Result<()> {
    if on_path("strip") {
        return run_on_stderr(tool("strip").arg(executable));
    }
    let sysroot = output(tool("rustc").args(["--print", "sysroot"]))?;
    let host = output(tool("rustc").args(["--print", "host-tuple"]))?;
    let objcopy = Path::new(sysroot.trim()).join("lib/rustlib").join(host.trim()).join("bin/rust-objcopy");
    run_on_stderr(tool(objcopy).arg("--strip-all").arg(executable))
        .context("cannot strip the executable: install binutils")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            copy(&path, &target)?;
        }
    }
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(fs::metadata(path)?.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

fn report(bundle: &Path, executable: &Path) -> Result<()> {
    let total = size(bundle)?;
    println!("{:>10}  {EXECUTABLE}", mib(size(executable)?));
    for part in DATA.iter().filter(|part| bundle.join(part).exists()) {
        println!("{:>10}  {part}", mib(size(&bundle.join(part))?));
    }
    println!("{:>10}  in all, limit {}", mib(total), mib(LIMIT));
    if let Some(version) = newest_glibc(&fs::read(executable)?) {
        println!("needs glibc {}.{} or later", version.0, version.1);
    }
    if total > LIMIT {
        bail!("the bundle is {}, its limit is {}", mib(total), mib(LIMIT));
    }
    Ok(())
}

/// The newest `GLIBC_x.y` symbol version that an executable names: a GPU machine with an older
/// one cannot start it.
fn newest_glibc(elf: &[u8]) -> Option<(u32, u32)> {
    const PREFIX: &[u8] = b"\0GLIBC_";
    let starts = elf.windows(PREFIX.len()).enumerate();
    starts
        .filter(|(_, window)| *window == PREFIX)
        .filter_map(|(at, _)| {
            let rest = &elf[at + PREFIX.len()..];
            let end = rest.iter().take(12).position(|&byte| byte == 0)?;
            let (major, minor) = std::str::from_utf8(&rest[..end]).ok()?.split_once('.')?;
            let minor = minor.split('.').next()?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_tests_own() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"engine"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":"/t/debug/wootz"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/deps/wootz-1"}"#,
            "\n",
        );
        assert_eq!(executable_in(messages), Some("/t/deps/wootz-1".into()));
        assert_eq!(executable_in(""), None);
    }

    #[test]
    fn glibc_versions_compare_as_numbers() {
        let elf = b"x\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.2.5\0GLIBC_PRIVATE\0GLIBC_";
        assert_eq!(newest_glibc(elf), Some((2, 34)));
        assert_eq!(newest_glibc(b"static"), None);
    }

    #[test]
    fn trees_are_copied_whole() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/c.json"), "12345").unwrap();
        fs::write(from.path().join("d"), "67").unwrap();
        let to = tempfile::tempdir().unwrap();
        copy_tree(from.path(), &to.path().join("copy")).unwrap();
        assert_eq!(size(&to.path().join("copy")).unwrap(), 7);
        assert_eq!(fs::read_to_string(to.path().join("copy/a/b/c.json")).unwrap(), "12345");
    }
}
