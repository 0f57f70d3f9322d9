//! The project's own rules about its tree, which no general tool checks.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::output;
use crate::scrub::code_only;

/// The tracked tree's limit: a clone stays quick, and models are the only big files in it (23 MiB of them).
const TREE_LIMIT: u64 = 27 << 20;

/// Lines of a Rust file. Look twice above 500; nothing is above this without a reason below.
const LINES_LIMIT: usize = 600;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[
    ("kernels-gpu/src/attention/decode.rs", "producer, consumers and merge of one kernel share its layouts"),
    ("kernels-gpu/src/attention/prefill_wgmma.rs", "four head dims of one pipeline"),
];

/// Where device-only constructs may be written. Macros may expand to them anywhere.
const DEVICE_ONLY: &[(&str, &str)] = &[
    ("kernels-gpu/src/prim/", "the primitives"),
    ("kernels-host/src/gemm/reference.rs", "the host's vector instructions"),
];

/// Where `unsafe` may be written.
const UNSAFE: &[(&str, &str)] = &[
    ("kernels-gpu/", "device code: raw pointers are its arguments"),
    ("kernels-host/src/", "the launchers and the driver"),
    ("engine/src/checkpoint.rs", "one memory map of the weights"),
];

/// Paths that exist on one machine only. In two pieces, so that this file passes.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// Checks every tracked file under `root`. Returns a summary.
///
/// # Errors
/// Every finding, one a line; or the tree cannot be read.
pub fn check(root: &Path) -> Result<String> {
    let listed = output(Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]))
        .context("tidy looks at tracked files and needs a git checkout")?;
    let mut findings = Vec::new();
    let (mut files, mut bytes) = (0, 0);
    for name in listed.split_terminator('\0') {
        // A tracked file that was deleted but not yet committed, or a link that leads nowhere.
        let Ok(content) = fs::read(root.join(name)) else {
            continue;
        };
        files += 1;
        bytes += content.len() as u64;
        if let Ok(text) = std::str::from_utf8(&content) {
            findings.extend(check_text(name, text));
        }
    }
    if bytes > TREE_LIMIT {
        findings.push(format!("the tracked tree is {}, its limit is {}", mib(bytes), mib(TREE_LIMIT)));
    }
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    Ok(format!("{files} files, {}", mib(bytes)))
}

/// Bytes as MiB, for messages.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The findings in one file.
fn check_text(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut report = |line: usize, what: &str| findings.push(format!("{name}:{}: {what}", line + 1));
    for (number, line) in text.lines().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| has_path(line, path)) {
            report(number, &format!("a path of one machine ({path})"));
        }
    }
    if !name.ends_with(".rs") {
        return findings;
    }
    for (number, line) in code_only(text).lines().enumerate() {
        if !allowed(DEVICE_ONLY, name)
            && let Some(what) = device_only(line)
        {
            report(number, &format!("{what} belongs in kernels-gpu/src/prim"));
        }
        if !allowed(UNSAFE, name) && words(line).any(|word| word == "unsafe") {
            report(number, "unsafe belongs in kernels-gpu or a launcher");
        }
    }
    let lines = text.lines().count();
    if lines > LINES_LIMIT && !allowed(LONG_FILES, name) {
        report(lines - 1, &format!("{lines} lines, the limit is {LINES_LIMIT}: split the file"));
    }
    findings
}

fn allowed(places: &[(&str, &str)], name: &str) -> bool {
    places.iter().any(|(place, _reason)| name.starts_with(place))
}

/// The device-only construct in a line of code, if any.
fn device_only(line: &str) -> Option<&'static str> {
    let has = |wanted: &str| words(line).any(|word| word == wanted);
    let inline_assembly =
        ["asm", "global_asm", "naked_asm"].iter().any(|name| has(name) && line.contains(&format!("{name}!")));
    if inline_assembly {
        Some("asm!")
    } else if has("link_name") {
        Some("link_name")
    } else if has("target_arch") && (has("cfg") || has("cfg_attr")) {
        Some("cfg(target_arch)")
    } else if line.contains("cfg(device") || line.contains("cfg(not(device") {
        Some("cfg(device)")
    } else {
        None
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}

/// Whether `line` holds `path` as the start of an absolute path, and not as a part of a longer
/// one or of an address.
fn has_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || ".-_/~}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_constructs_have_one_place() {
        let asm = "fn f() { core::arch::asm!(\"bar.sync 0;\") }";
        assert!(check_text("kernels-gpu/src/prim/barrier.rs", asm).is_empty());
        let found = check_text("kernels-gpu/src/norm/rms_norm.rs", asm);
        assert_eq!(found, ["kernels-gpu/src/norm/rms_norm.rs:1: asm! belongs in kernels-gpu/src/prim"]);
        for (code, findings) in [
            ("#[link_name = \"llvm.nvvm.barrier0\"]", 1),
            ("#[cfg(target_arch = \"nvptx64\")]", 1),
            ("if cfg!(target_arch = \"nvptx64\") {}", 1),
            ("#[cfg(target_os = \"linux\")] // not cfg(target_arch)", 0),
            ("let s = \"asm!\"; // asm!", 0),
            ("#[cfg(device)]", 1),
            ("let target_arch = 90;", 0),
        ] {
            assert_eq!(check_text("engine/src/a.rs", code).len(), findings, "{code}");
        }
    }

    #[test]
    fn unsafe_has_few_places() {
        let code = "let x = unsafe { *p };";
        for place in ["kernels-gpu/src/a.rs", "kernels-host/src/launch.rs", "engine/src/checkpoint.rs"] {
            assert!(check_text(place, code).is_empty(), "{place}");
        }
        for place in ["engine/src/model.rs", "kernels-host/emulator/src/lib.rs", "tests/src/main.rs"] {
            assert_eq!(check_text(place, code).len(), 1, "{place}");
        }
        assert!(check_text("engine/src/a.rs", "#![deny(unsafe_op_in_unsafe_fn)] // unsafe").is_empty());
    }

    #[test]
    fn machine_paths_are_found_in_any_text() {
        let path = MACHINE_PATHS[0];
        for (line, findings) in [
            (format!("see {path}notes"), 1),
            (format!("\"{path}x\""), 1),
            (path.to_owned(), 1),
            (format!("https://example.com{path}x"), 0),
            (format!("$HOME{path}x ${{HOME}}{path}x ~{path}x"), 0),
        ] {
            assert_eq!(check_text("README.md", &line).len(), findings, "{line}");
        }
    }

    #[test]
    fn long_files_are_reported_once() {
        let at_limit = "\n".repeat(LINES_LIMIT);
        assert!(check_text("engine/src/a.rs", &at_limit).is_empty());
        let above = "\n".repeat(LINES_LIMIT + 1);
        assert_eq!(check_text("engine/src/a.rs", &above).len(), 1);
        assert!(check_text("tests/goldens/long.json", &above).is_empty());
    }
}
