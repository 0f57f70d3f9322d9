//! Compiles `kernels-gpu` to PTX: one compilation per kernel family and target, cached by content, then
//! patched (launch bounds, tensor map alignment), split into one PTX per entry and, where ptxas is
//! found, held to the gate: no stack, no spills, no serialised wgmma.

mod gate;
mod lines;
mod patch;
pub mod toolchain;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use toolchain::DeviceToolchain;

/// PTX targets: `sm_90a` for Hopper, `sm_80` for every other GPU from Ampere on.
pub const TARGETS: &[&str] = &["sm_90a", "sm_80"];

/// A family compiled for a target.
#[derive(Debug)]
pub struct Module {
    /// `sm_90a` or `sm_80`.
    pub target: &'static str,
    /// The kernel family, a feature of `kernels-gpu`.
    pub family: String,
    /// One complete PTX per entry, by name.
    pub entries: Vec<(String, String)>,
}

/// Compiles all families for all targets. `root` is the workspace, `target_dir` cargo's.
pub fn build(root: &Path, target_dir: &Path, families: &[&str]) -> Result<Vec<Module>, String> {
    println!("cargo::rerun-if-env-changed={}", lines::SWITCH);
    let toolchain = toolchain::locate()?;
    let gate = gate::Gate::find()?;
    std::thread::scope(|scope| {
        let (toolchain, gate) = (&toolchain, &gate);
        let threads: Vec<_> = TARGETS
            .iter()
            .map(|target| {
                scope.spawn(move || {
                    families
                        .iter()
                        .map(|family| module(toolchain, gate, root, target_dir, target, family))
                        .collect::<Result<Vec<_>, _>>()
                })
            })
            .collect();
        let mut modules = Vec::new();
        for thread in threads {
            modules.extend(thread.join().map_err(|_| "the device build panicked")??);
        }
        Ok(modules)
    })
}

fn module(
    toolchain: &DeviceToolchain,
    gate: &gate::Gate,
    root: &Path,
    target_dir: &Path,
    target: &'static str,
    family: &str,
) -> Result<Module, String> {
    let cache = target_dir.join("ptx");
    let key = hash(toolchain, root, target, family)?;
    let path = cache.join(format!("{family}-{target}-{key:016x}.ptx"));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) => {
            let text = patch::launch_bounds(&compile(toolchain, root, &cache, target, family)?)?;
            let text = if lines::wanted() { lines::shorten_paths(&text) } else { text };
            let io = |e| format!("{}: {e}", path.display());
            // Written aside and renamed: two cargo processes may build at once.
            let aside = path.with_extension(format!("{}", std::process::id()));
            std::fs::write(&aside, &text).map_err(io)?;
            std::fs::rename(&aside, &path).map_err(io)?;
            text
        }
    };
    gate.check(&path, target, family)?;
    Ok(Module { target, family: family.into(), entries: patch::split(&text) })
}

/// Compiler flags; the reasons are in `prim` and ARCHITECTURE.md.
fn flags(target: &str) -> Vec<String> {
    let arch_cfg = target.to_owned();
    let lines: &[&str] = if lines::wanted() { &["-C", "debuginfo=line-directives-only"] } else { &[] };
    // LLVM's defaults are PTX 7.0 for sm_80, which lacks cache hints, and 8.0 for sm_90a, which lacks `st.async`; 8.1 is what
    // the oldest driver that we name reads.
    [
        "-C",
        "target-feature=+ptx81",
        "--cfg",
        "device",
        "--cfg",
        &arch_cfg,
        "-C",
        &format!("target-cpu={target}"),
        // Fat LTO makes the assembly file the finished PTX: nothing to link.
        "-C",
        "linker=true",
        "--emit=asm",
        // MIR jump threading duplicates barriers into divergent arms (rust-lang/rust#149637, fixed in 1.97).
        "-Zmir-enable-passes=-JumpThreading",
        // Register tiles must not stay in local memory: unroll every constant loop fully.
        "-C",
        "llvm-args=-unroll-threshold=20000",
    ]
    .iter()
    .chain(lines)
    .map(|flag| (*flag).to_owned())
    .collect()
}

fn compile(
    toolchain: &DeviceToolchain,
    root: &Path,
    cache: &Path,
    target: &str,
    family: &str,
) -> Result<String, String> {
    let build_dir = cache.join("build").join(target);
    let mut cargo = toolchain.cargo_command();
    cargo
        .current_dir(root)
        .args(["rustc", "--quiet", "--release", "--package", "kernels-gpu", "--lib", "--crate-type", "cdylib"])
        .args([
            "--target",
            "nvptx64-nvidia-cuda",
            "-Zbuild-std=core",
            "-Zpanic-immediate-abort",
            "--features",
            family,
            "--",
        ])
        .args(flags(target))
        .args(lines::wanted().then(|| format!("--remap-path-prefix={}/=", root.display())))
        .env("CARGO_TARGET_DIR", &build_dir)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        // A failed check traps: formatting code and its calls would serialise wgmma.
        .env("CARGO_PROFILE_RELEASE_PANIC", "immediate-abort");
    let output = cargo.output().map_err(|e| format!("{}: {e}", toolchain.cargo.display()))?;
    if !output.status.success() {
        return Err(format!(
            "compiling kernel family {family} for {target} failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let asm = build_dir.join("nvptx64-nvidia-cuda/release/deps/kernels_gpu.s");
    std::fs::read_to_string(&asm).map_err(|e| format!("{}: {e}", asm.display()))
}

/// Hash of everything that a family's PTX depends on.
fn hash(toolchain: &DeviceToolchain, root: &Path, target: &str, family: &str) -> Result<u64, String> {
    let source = root.join("kernels-gpu");
    let mut files = vec![source.join("Cargo.toml"), source.join("src/lib.rs")];
    for dir in ["prim", "tile", family] {
        list(&source.join("src").join(dir), &mut files).map_err(|e| format!("{}/src/{dir}: {e}", source.display()))?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    (&toolchain.version, flags(target), target, family, env!("CARGO_PKG_VERSION"), include_str!("patch.rs"))
        .hash(&mut hasher);
    for file in files {
        std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
