//! Compiles the kernels to PTX and packs them, one zstd frame per family and target, for `src/ptx.rs`.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=../kernels-gpu/src");
    println!("cargo::rerun-if-changed=../kernels-gpu/Cargo.toml");
    println!("cargo::rerun-if-env-changed=WOOTZ_GPU_RUSTC");
    if let Err(message) = run() {
        // One readable block instead of a panic's.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?);
    let root = manifest.parent().ok_or("kernels-host lies in the workspace")?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // OUT_DIR is <target>/<profile>/build/<package>/out, whatever the profile and target.
    // A directory that cargo did not make itself has no tag; the path must be absolute, cargo runs this elsewhere.
    let tagged = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    let target_dir = tagged.map_or_else(|| root.join("target"), Path::to_path_buf);
    std::fs::create_dir_all(target_dir.join("ptx")).map_err(|e| e.to_string())?;
    let modules = ptx_build::build(
        root,
        &target_dir,
        kernels_gpu_families(root)?.as_slice().iter().map(String::as_str).collect::<Vec<_>>().as_slice(),
    )?;

    let toolchain = ptx_build::toolchain::locate()?;
    let compiler = format!("rustc {}, LLVM {}", toolchain.release(), toolchain.llvm());
    std::fs::write(out.join("compiler.txt"), compiler).map_err(|e| e.to_string())?;

    let mut index = String::from("[\n");
    for module in &modules {
        let file = format!("{}-{}.zst", module.family, module.target);
        let mut text = String::new();
        let mut entries = String::new();
        for (name, ptx) in &module.entries {
            let _ = write!(entries, "({name:?}, {}..{}), ", text.len(), text.len() + ptx.len());
            text.push_str(ptx);
        }
        let packed = zstd::encode_all(text.as_bytes(), 19).map_err(|e| e.to_string())?;
        std::fs::write(out.join(&file), packed).map_err(|e| e.to_string())?;
        let _ = writeln!(
            index,
            "Module::new(Target::{}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\")), &[{entries}], {}),",
            module.target.replace("sm_", "Sm"),
            text.len()
        );
    }
    index.push(']');
    std::fs::write(out.join("modules.rs"), index).map_err(|e| e.to_string())
}

/// The families are `kernels-gpu`'s features: read from its manifest, so that no list is kept twice.
fn kernels_gpu_families(root: &Path) -> Result<Vec<String>, String> {
    let path = root.join("kernels-gpu/Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let features = text.split("[features]").nth(1).ok_or("kernels-gpu/Cargo.toml has no [features]")?;
    Ok(features
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = []").map(|(name, _)| name.to_owned()))
        .collect())
}
