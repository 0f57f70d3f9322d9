//! Where the device compiler and ptxas are.
use std::path::{Path, PathBuf};
use std::process::Command;

/// The ptxas release that the build gate is pinned to.
pub const PTXAS_VERSION: &str = "13.0.88";

/// A rustc that can compile `nvptx64-nvidia-cuda` with `-Zbuild-std`.
#[derive(Debug, Clone)]
pub struct DeviceToolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo that drives it.
    pub cargo: PathBuf,
    /// `library/` sources of the same version.
    pub sysroot_src: PathBuf,
    /// Output of `rustc -vV`.
    pub version: String,
}

/// Finds the device toolchain.
pub fn locate() -> Result<DeviceToolchain, String> {
    let rustc =
        std::env::var_os("WOOTZ_GPU_RUSTC").or_else(|| std::env::var_os("RUSTC")).map_or("rustc".into(), PathBuf::from);
    let run = |args: &[&str]| {
        Command::new(&rustc)
            .args(args)
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
            .map_err(|e| format!("{}: {e}", rustc.display()))
    };
    let sysroot_src = Path::new(&run(&["--print", "sysroot"])?).join("lib/rustlib/src/rust/library");
    if !sysroot_src.is_dir() {
        return Err("the device compiler's core sources are missing: run `cargo xtask setup`".into());
    }
    Ok(DeviceToolchain {
        version: run(&["-vV"])?,
        cargo: std::env::var_os("CARGO").map_or("cargo".into(), PathBuf::from),
        sysroot_src,
        rustc,
    })
}

/// Finds ptxas.
pub fn locate_ptxas() -> Option<PathBuf> {
    std::env::var_os("WOOTZ_PTXAS_PATH").map(PathBuf::from)
}
