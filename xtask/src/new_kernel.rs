//! `cargo xtask new-kernel`: a kernel's two files from the templates, with their `mod` lines.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// The crates that get a file each, with its template.
const HALVES: [(&str, &str); 2] = [
    ("kernels-gpu", include_str!("../templates/kernel_gpu.rs.in")),
    ("kernels-host", include_str!("../templates/kernel_host.rs.in")),
];

/// A kernel's family and name, for example `norm/add_rms_norm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelName {
    family: String,
    kernel: String,
}

impl FromStr for KernelName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (family, kernel) =
            text.split_once('/').ok_or("a kernel is named FAMILY/NAME, for example norm/add_rms_norm")?;
        for part in [family, kernel] {
            if !is_module_name(part) {
                return Err(format!(
                    "`{part}` is no module name: lower-case letters, digits and single \
                     underscores, a letter first, no keyword"
                ));
            }
        }
        Ok(Self { family: family.to_owned(), kernel: kernel.to_owned() })
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.family, self.kernel)
    }
}

fn is_module_name(part: &str) -> bool {
    const KEYWORDS: &[&str] = &[
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
        "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro",
        "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct", "super",
        "trait", "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
    ];
    part.starts_with(|c: char| c.is_ascii_lowercase())
        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !part.contains("__")
        && !part.ends_with('_')
        && !KEYWORDS.contains(&part)
}

/// Writes the kernel's files under `root` and returns what was done, one line each. Everything is
/// checked before anything is written.
///
/// # Errors
/// The family does not exist, or the kernel does.
pub fn create(root: &Path, name: &KernelName) -> Result<Vec<String>> {
    let KernelName { family, kernel } = name;
    let mut writes: Vec<(PathBuf, String, &str)> = Vec::new();
    for (krate, template) in HALVES {
        let source = root.join(krate).join("src");
        let module = family_module(&source, family).with_context(|| {
            format!("{krate}/src has no family `{family}` (no {family}.rs or {family}/mod.rs): add its module first")
        })?;
        let file = source.join(family).join(format!("{kernel}.rs"));
        if file.exists() {
            bail!("{krate}/src/{family}/{kernel}.rs exists already: choose another name or delete it");
        }
        let text = fs::read_to_string(&module).with_context(|| format!("cannot read {}", module.display()))?;
        let Some(text) = with_module(&text, kernel) else {
            bail!("{} declares `mod {kernel}` already", module.display());
        };
        let text = match krate {
            "kernels-host" => with_case(&text, kernel)
                .with_context(|| format!("{} has no list `fn kernels()` of its cases", module.display()))?,
            _ => text,
        };
        writes.push((file, fill(template, name), "wrote"));
        writes.push((module, text, "declared it in"));
    }
    let mut done = Vec::new();
    for (path, text, what) in writes {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let shown = path.strip_prefix(root).unwrap_or(&path);
        done.push(format!("{what} {}", shown.display()));
    }
    Ok(done)
}

/// The file that declares a family's kernels.
fn family_module(source: &Path, family: &str) -> Option<PathBuf> {
    [format!("{family}/mod.rs"), format!("{family}.rs")]
        .map(|name| source.join(name))
        .into_iter()
        .find(|path| path.is_file())
}

/// Fills a template's `{{family}}`, `{{kernel}}` and `{{Kernel}}` (the name in camel case).
fn fill(template: &str, name: &KernelName) -> String {
    let camel: String = name.kernel.split('_').map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect();
    template.replace("{{family}}", &name.family).replace("{{kernel}}", &name.kernel).replace("{{Kernel}}", &camel)
}

/// `module` with a line `pub mod kernel;` in alphabetical place among its like, else after its
/// header; `None` where it is declared already.
fn with_module(module: &str, kernel: &str) -> Option<String> {
    let mut lines: Vec<&str> = module.lines().collect();
    let declared: Vec<(usize, &str)> =
        lines.iter().enumerate().filter_map(|(at, line)| Some((at, declared_module(line)?))).collect();
    if declared.iter().any(|(_, name)| *name == kernel) {
        return None;
    }
    let new = format!("pub mod {kernel};");
    let at = match declared.iter().find(|(_, name)| *name > kernel) {
        Some((at, _)) => before_attributes(&lines, *at),
        None => match declared.last() {
            Some((at, _)) => at + 1,
            None => header_end(&lines),
        },
    };
    lines.insert(at, &new);
    if declared.is_empty() && at > 0 {
        lines.insert(at, "");
    }
    Some(lines.join("\n") + "\n")
}

/// A host family's `module` with the kernel at the end of its list `fn kernels() … vec![…]`, which
/// tests and benches iterate.
fn with_case(module: &str, kernel: &str) -> Option<String> {
    let list = module.find("fn kernels()")?;
    let open = list + module[list..].find("vec![")? + "vec![".len();
    let close = open + module[open..].find(']')?;
    let items = module[open..close].trim_end();
    let (separator, end) = match items.trim_start() {
        "" => ("", ""),
        _ if !items.contains('\n') => (", ", ""),
        _ => ("\n        ", ",\n    "),
    };
    let comma = if end.is_empty() || items.ends_with(',') { "" } else { "," };
    let (before, after) = (&module[..open], &module[close..]);
    Some(format!("{before}{items}{comma}{separator}{kernel}::kernel(){end}{after}"))
}

/// The module that a line like `pub mod rms_norm;` declares.
fn declared_module(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let name = line.strip_prefix("mod ")?.split(';').next()?;
    is_module_name(name).then_some(name)
}

/// The first line of the attributes and comments that belong to the item at `at`.
fn before_attributes(lines: &[&str], at: usize) -> usize {
    let belongs = |line: &&str| line.starts_with("#[") || line.starts_with("///");
    at - lines[..at].iter().rev().take_while(|line| belongs(line)).count()
}

/// The line after a file's `//!` documentation and inner attributes.
fn header_end(lines: &[&str]) -> usize {
    let of_header = |line: &&str| line.starts_with("//!") || line.starts_with("#![");
    lines.iter().take_while(|line| of_header(line)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> KernelName {
        text.parse().unwrap()
    }

    const MODULES: &str = "//! Norms.\npub mod layer_norm;\npub mod rms_norm;\n";
    const KERNELS: &str = "\nfn kernels() -> Vec<Kernel> {\n    vec![rms_norm::kernel()]\n}\n";

    fn workspace() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (krate, module) in [("kernels-gpu", "norm/mod.rs"), ("kernels-host", "norm.rs")] {
            let module = root.path().join(krate).join("src").join(module);
            fs::create_dir_all(module.parent().unwrap()).unwrap();
            fs::write(module, format!("{MODULES}{KERNELS}")).unwrap();
        }
        root
    }

    #[test]
    fn names() {
        assert_eq!(name("norm/add_rms_norm").kernel, "add_rms_norm");
        for bad in [
            "norm",
            "norm/",
            "/x",
            "norm/a/b",
            "norm/Add",
            "norm/a-b",
            "norm/1x",
            "norm/a__b",
            "norm/a_",
            "norm/mod",
            "../x",
            "norm/.x",
            "norm/_x",
            "nörm/x",
        ] {
            assert!(bad.parse::<KernelName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn writes_both_files_and_both_lines() {
        let root = workspace();
        let done = create(root.path(), &name("norm/add_rms_norm")).unwrap();
        assert_eq!(done.len(), 4, "{done:?}");
        for (krate, module) in [("kernels-gpu", "norm/mod.rs"), ("kernels-host", "norm.rs")] {
            let source = root.path().join(krate).join("src");
            let kernel = fs::read_to_string(source.join("norm/add_rms_norm.rs")).unwrap();
            assert!(kernel.contains("pub struct AddRmsNorm"), "{kernel}");
            assert!(!kernel.contains("{{"), "{kernel}");
            let module = fs::read_to_string(source.join(module)).unwrap();
            let modules = "//! Norms.\npub mod add_rms_norm;\npub mod layer_norm;\npub mod rms_norm;\n";
            assert!(module.starts_with(modules), "{module}");
            let listed = module.contains("vec![rms_norm::kernel(), add_rms_norm::kernel()]");
            assert_eq!(listed, krate == "kernels-host", "{module}");
        }
    }

    #[test]
    fn never_overwrites_and_never_half_writes() {
        let root = workspace();
        let existing = root.path().join("kernels-host/src/norm/gated_norm.rs");
        fs::create_dir_all(existing.parent().unwrap()).unwrap();
        fs::write(&existing, "mine").unwrap();
        let error = create(root.path(), &name("norm/gated_norm")).unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(fs::read_to_string(&existing).unwrap(), "mine");
        assert!(!root.path().join("kernels-gpu/src/norm/gated_norm.rs").exists());

        let error = create(root.path(), &name("norm/rms_norm")).unwrap_err();
        assert!(error.to_string().contains("declares `mod rms_norm`"), "{error}");
        let error = create(root.path(), &name("rope/rope")).unwrap_err();
        assert!(error.to_string().contains("no family `rope`"), "{error}");
    }

    #[test]
    fn module_lines_find_their_place() {
        let insert = |module, kernel| with_module(module, kernel).unwrap();
        assert_eq!(insert("", "b"), "pub mod b;\n");
        assert_eq!(insert("//! Doc.\n", "b"), "//! Doc.\n\npub mod b;\n");
        assert_eq!(
            insert("mod a;\n#[cfg(test)]\nmod c;\n\nfn f() {}\n", "b"),
            "mod a;\npub mod b;\n#[cfg(test)]\nmod c;\n\nfn f() {}\n"
        );
        assert_eq!(insert("pub mod a;\nuse x;\n", "b"), "pub mod a;\npub mod b;\nuse x;\n");
        assert_eq!(with_module("mod b;\n", "b"), None);
    }

    #[test]
    fn lists_of_cases_grow_at_their_end() {
        let grown = |list: &str| with_case(&format!("fn kernels() {{\n    vec![{list}]\n}}"), "b").unwrap();
        assert!(grown("").contains("vec![b::kernel()]"));
        assert!(grown("a::kernel()").contains("vec![a::kernel(), b::kernel()]"));
        let long = "vec![\n        a::kernel(),\n        b::kernel(),\n    ]";
        assert!(grown("\n        a::kernel(),\n    ").contains(long));
        assert!(grown("\n        a::kernel()\n    ").contains(long));
        assert_eq!(with_case("pub mod a;", "b"), None);
    }

    #[test]
    fn templates_are_filled() {
        let filled = fill("{{family}} {{kernel}} {{Kernel}}", &name("norm/add_rms_norm2"));
        assert_eq!(filled, "norm add_rms_norm2 AddRmsNorm2");
    }
}
