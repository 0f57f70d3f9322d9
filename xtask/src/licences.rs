//! The licences and sources of dependencies, held against `deny.toml`.
//!
//! The file is cargo-deny's, which agrees with this check. Cargo-deny itself is some three
//! hundred crates: too long to compile in CI for a list of a dozen licences.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cargo::cargo;
use crate::process::output;

/// Checks every dependency of the workspace, tests and build steps included.
///
/// # Errors
/// Every dependency with a licence or from a source that `deny.toml` does not allow, one a line.
pub fn check(root: &Path) -> Result<String> {
    let path = root.join("deny.toml");
    let deny = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let allowed = string_array(&deny, "licenses", "allow").context("deny.toml has no list `allow` under [licenses]")?;
    let targets = string_array(&deny, "graph", "targets").context("deny.toml has no list `targets` under [graph]")?;

    let mut tree = cargo("tree");
    tree.args(["--workspace", "--edges", "normal,build,dev", "--prefix", "none"])
        .args(["--format", "{p}|{l}"])
        .current_dir(root);
    for target in &targets {
        tree.args(["--target", target]);
    }
    let packages = packages(&output(&mut tree)?);
    let findings: Vec<String> =
        packages.iter().flat_map(|(package, licence)| check_package(package, licence, &allowed, root)).collect();
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    let licences: BTreeSet<&str> = packages.values().map(String::as_str).collect();
    Ok(format!("{} packages, {} licences", packages.len(), licences.len()))
}

/// `cargo tree`'s lines as package and licence expression, each package once.
fn packages(tree: &str) -> BTreeMap<String, String> {
    tree.lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(package, licence)| {
            let licence = licence.trim().trim_end_matches("(*)").trim_end();
            (package.trim().to_owned(), licence.to_owned())
        })
        .collect()
}

fn check_package(package: &str, licence: &str, allowed: &[String], root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    if !satisfied(licence, allowed) {
        let licence = if licence.is_empty() { "no licence" } else { licence };
        findings.push(format!("{package}: {licence} is not allowed by deny.toml"));
    }
    // "name v1.0 (proc-macro) (where from)"; the default registry goes without saying.
    let notes = package.split('(').skip(1).map(|note| note.trim_end().trim_end_matches(')'));
    for source in notes.filter(|note| *note != "proc-macro" && *note != "*") {
        if !Path::new(source).starts_with(root) {
            findings.push(format!("{package}: comes from neither the registry nor the workspace"));
        }
    }
    findings
}

/// Whether an SPDX expression can be met with the allowed licences alone. `/` is the old way to
/// write OR.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens: &tokens, allowed };
    let met = parser.alternatives();
    met == Some(true) && parser.tokens.is_empty()
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    allowed: &'a [String],
}

impl Parser<'_> {
    fn take(&mut self, token: &str) -> bool {
        let found = self.tokens.first() == Some(&token);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn alternatives(&mut self) -> Option<bool> {
        let mut met = self.conjunction()?;
        while self.take("OR") {
            met |= self.conjunction()?;
        }
        Some(met)
    }

    fn conjunction(&mut self) -> Option<bool> {
        let mut met = self.single()?;
        while self.take("AND") {
            met &= self.single()?;
        }
        Some(met)
    }

    fn single(&mut self) -> Option<bool> {
        if self.take("(") {
            let met = self.alternatives()?;
            return self.take(")").then_some(met);
        }
        let (&first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        let mut licence = first.to_owned();
        if self.take("WITH") {
            let (&exception, rest) = self.tokens.split_first()?;
            self.tokens = rest;
            licence = format!("{first} WITH {exception}");
        }
        Some(self.allowed.contains(&licence))
    }
}

/// The strings of the array `key` in the table `[table]`. This is as much TOML as `deny.toml`
/// uses; a parser for all of it would double what xtask compiles.
fn string_array(toml: &str, table: &str, key: &str) -> Option<Vec<String>> {
    let header = format!("[{table}]");
    let mut lines = toml
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim())
        .skip_while(|line| *line != header)
        .skip(1)
        .take_while(|line| !(line.starts_with('[') && line.ends_with(']') && !line.contains('"')));
    let first = lines.find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))?;
    let mut array = first.to_owned();
    while !array.contains(']') {
        array.push_str(lines.next()?);
    }
    Some(array.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<String> {
        ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).to_vec()
    }

    #[test]
    fn expressions() {
        for (expression, met) in [
            ("MIT", true),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0 OR MIT", true),
            ("MIT/Apache-2.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND GPL-3.0", false),
            ("MIT OR GPL-3.0 AND GPL-2.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH Classpath-exception", false),
            ("", false),
            ("MIT OR", false),
            ("(MIT", false),
            ("MIT Apache-2.0", false),
        ] {
            assert_eq!(satisfied(expression, &allowed()), met, "{expression:?}");
        }
    }

    #[test]
    fn tree_lines_and_sources() {
        let root = Path::new("/src/wootz");
        let tree = "engine v0.1.0 (/src/wootz/engine)|MIT OR Apache-2.0\n\nsyn v2.0.1|MIT\n\
            syn v2.0.1|MIT (*)\nserde_derive v1.0.0 (proc-macro)|MIT\n";
        let packages = packages(tree);
        assert_eq!(packages.len(), 3);
        for (package, licence) in &packages {
            assert!(check_package(package, licence, &allowed(), root).is_empty(), "{package}");
        }
        for source in ["https://example.com/x#1234567", "/elsewhere/x", "registry `other`"] {
            let findings = check_package(&format!("x v1.0.0 ({source})"), "MIT", &allowed(), root);
            assert_eq!(findings.len(), 1, "{source}");
        }
    }

    #[test]
    fn arrays_of_deny_toml() {
        let toml = "[graph]\ntargets = [\"a\", \"b\"]\n\n[licenses]\nconfidence = 1\n\
            allow = [ # why\n  \"MIT\",\n  # \"GPL-3.0\",\n  \"ISC\",\n]\n[bans]\nallow = [\"x\"]\n";
        assert_eq!(string_array(toml, "graph", "targets").unwrap(), ["a", "b"]);
        assert_eq!(string_array(toml, "licenses", "allow").unwrap(), ["MIT", "ISC"]);
        assert_eq!(string_array(toml, "sources", "allow"), None);
        assert_eq!(string_array("[licenses]\nallow = [", "licenses", "allow"), None);
    }

    #[test]
    fn the_projects_own_list_reads() {
        let deny = include_str!("../../deny.toml");
        let allowed = string_array(deny, "licenses", "allow").unwrap();
        assert!(satisfied("MIT OR Apache-2.0", &allowed));
        assert!(!satisfied("GPL-3.0-only", &allowed));
    }
}
