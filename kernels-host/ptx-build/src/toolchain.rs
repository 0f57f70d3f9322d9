//! Where the compiler for device code is, and the pinned `ptxas`: the one place that decides.
//!
//! `cargo xtask setup` fetches what this module looks for, and the build step uses what it finds.
//! Both must agree, so neither looks for itself.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The `ptxas` release that the compile-time gate is calibrated for.
pub const PTXAS_VERSION: &str = "13.0.88";

/// Device code needs LLVM 22's NVPTX back end: wgmma, TMA and mbarrier intrinsics.
pub const MIN_LLVM: u32 = 22;

/// Overrides which `rustc` compiles device code: a path, or a name found on `PATH`.
pub const GPU_RUSTC_ENV: &str = "WOOTZ_GPU_RUSTC";

/// Overrides which `ptxas` the gate runs.
pub const PTXAS_ENV: &str = "WOOTZ_PTXAS_PATH";

/// Where Debian's `rustc-web` installs its compiler.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that can build device code, with the library sources that `-Zbuild-std` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceToolchain {
    /// The compiler itself, not rustup's proxy.
    pub rustc: PathBuf,
    /// The cargo of the same toolchain, or `cargo` where the toolchain brings none.
    pub cargo: PathBuf,
    /// The standard library's sources: `<sysroot>/lib/rustlib/src/rust/library`.
    pub sysroot_src: PathBuf,
    /// What `rustc -vV` prints. Records derived from generated code name it.
    pub version: String,
    /// Which rule found it.
    pub origin: Origin,
}

/// Which of the three rules found a [`DeviceToolchain`], in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// [`GPU_RUSTC_ENV`] named it.
    Override,
    /// The toolchain that `rust-toolchain.toml` pins.
    Pinned,
    /// Debian's `rustc-web`, the fallback.
    Debian,
}

impl DeviceToolchain {
    /// The release, for example `1.95.0`.
    pub fn release(&self) -> &str {
        field(&self.version, "release").unwrap_or("unknown")
    }

    /// The LLVM release, for example `22.1.2`.
    pub fn llvm(&self) -> &str {
        field(&self.version, "LLVM version").unwrap_or("unknown")
    }

    /// This toolchain's cargo, free of the outer cargo's and rustup's environment and told to use
    /// this `rustc`. `RUSTC_BOOTSTRAP=1` is set, for `-Zbuild-std`.
    pub fn cargo_command(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        clean_env(&mut command);
        command.env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

/// Finds the device toolchain: [`GPU_RUSTC_ENV`] if set, else the pinned toolchain, else
/// Debian's `rustc-web`.
///
/// # Errors
/// One line that says what is missing and names the command that fetches it.
pub fn locate() -> Result<DeviceToolchain, String> {
    if let Some(rustc) = env::var_os(GPU_RUSTC_ENV).filter(|value| !value.is_empty()) {
        return probe(&anchored(Path::new(&rustc)), Origin::Override)
            .map_err(|reason| format!("{GPU_RUSTC_ENV} names a compiler that cannot build device code: {reason}"));
    }
    locate_pinned().or_else(|pinned| {
        locate_debian().map_err(|debian| {
            format!(
                "no compiler for device code: {pinned}; {debian}; run `cargo xtask setup` \
                 (or `rustup component add rust-src`)"
            )
        })
    })
}

/// The toolchain that `rust-toolchain.toml` pins, whatever toolchain the caller runs under.
///
/// # Errors
/// One clause saying what is missing.
pub fn locate_pinned() -> Result<DeviceToolchain, String> {
    probe(Path::new("rustc"), Origin::Pinned)
}

/// Debian's `rustc-web` with `rust-web-src`.
///
/// # Errors
/// One clause saying what is missing.
pub fn locate_debian() -> Result<DeviceToolchain, String> {
    if !Path::new(DEBIAN_RUSTC).exists() {
        return Err("Debian's rustc-web is not installed".to_owned());
    }
    probe(Path::new(DEBIAN_RUSTC), Origin::Debian)
}

/// The pinned `ptxas`: what `setup` fetched into the target directory, else a CUDA toolkit's of
/// exactly that version. [`PTXAS_ENV`] overrides both, whatever the version.
pub fn locate_ptxas() -> Option<PathBuf> {
    if let Some(path) = env::var_os(PTXAS_ENV).filter(|value| !value.is_empty()) {
        return Some(PathBuf::from(path));
    }
    let on_path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&on_path).map(|dir| dir.join("ptxas")).collect();
    std::iter::once(fetched_ptxas())
        .chain(on_path)
        .chain([PathBuf::from("/usr/local/cuda/bin/ptxas")])
        .filter(|path| path.is_file())
        .find(|path| is_pinned_ptxas(path))
}

/// Where `setup` puts the pinned `ptxas`: `<target>/ptxas/<version>/ptxas`.
pub fn fetched_ptxas() -> PathBuf {
    target_dir().join("ptxas").join(PTXAS_VERSION).join("ptxas")
}

/// Whether `path` runs and is `ptxas` [`PTXAS_VERSION`].
pub fn is_pinned_ptxas(path: &Path) -> bool {
    let output = Command::new(path).arg("--version").output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted = format!("V{PTXAS_VERSION}");
        text.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == wanted)
    })
}

/// The workspace's root: the nearest ancestor of the working directory with a
/// `rust-toolchain.toml`, else where this crate was compiled.
pub fn workspace_root() -> PathBuf {
    let here = env::current_dir().unwrap_or_default();
    let found = here.ancestors().find(|dir| dir.join("rust-toolchain.toml").is_file() && dir.join("xtask").is_dir());
    let compiled = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    found.or(compiled).unwrap_or(&here).to_path_buf()
}

/// The workspace's target directory: `CARGO_TARGET_DIR`, else `target` under the root.
pub fn target_dir() -> PathBuf {
    let root = workspace_root();
    match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    }
}

/// Removes from `command` what an outer cargo, build script or rustup put into the environment
/// for its own children: it would select another compiler, other flags or other libraries.
pub fn clean_env(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(belongs_to_outer_cargo) {
            command.env_remove(&name);
        }
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        match without_cargo_paths(&paths) {
            Some(rest) => command.env("LD_LIBRARY_PATH", rest),
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
}

/// Whether an environment variable is one that cargo, a build script's caller or rustup sets.
/// What a user sets to reach a registry or to keep a cache (`CARGO_HOME`, `CARGO_NET_*`,
/// `CARGO_HTTP_*`, `CARGO_REGISTRIES_*`, `RUSTUP_HOME`, …) stays.
fn belongs_to_outer_cargo(name: &str) -> bool {
    const EXACT: &[&str] = &[
        "CARGO",
        "CARGO_BUILD_TARGET",
        "CARGO_CRATE_NAME",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_TMPDIR",
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_LINKER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "TARGET",
    ];
    const PREFIXES: &[&str] = &[
        "CARGO_BIN_",
        "CARGO_BUILD_RUST",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "DEP_",
    ];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// `LD_LIBRARY_PATH` less the directories of toolchains and build outputs, which cargo and
/// rustup prepend; `None` where nothing is left.
pub fn without_cargo_paths(paths: &OsStr) -> Option<OsString> {
    let target = target_dir();
    let kept: Vec<PathBuf> = env::split_paths(paths)
        .filter(|dir| {
            let of_toolchain =
                dir.components().any(|part| part.as_os_str() == "rustlib" || part.as_os_str() == "toolchains");
            !(of_toolchain || dir.starts_with(&target) || dir.as_os_str().is_empty())
        })
        .collect();
    if kept.is_empty() {
        return None;
    }
    env::join_paths(kept).ok()
}

/// A path made absolute, because the compiler runs in the workspace's root and not here; a bare
/// name stays one, to be found on `PATH`.
fn anchored(rustc: &Path) -> PathBuf {
    if rustc.components().count() < 2 {
        return rustc.to_path_buf();
    }
    std::path::absolute(rustc).unwrap_or_else(|_| rustc.to_path_buf())
}

/// Asks `rustc` for its version and sysroot and checks that both will do for device code.
fn probe(rustc: &Path, origin: Origin) -> Result<DeviceToolchain, String> {
    let version = ask(rustc, &["-vV"])?;
    let release = field(&version, "release").unwrap_or("of unknown release");
    let llvm = field(&version, "LLVM version").unwrap_or("0");
    let major: u32 = llvm.split('.').next().and_then(|part| part.parse().ok()).unwrap_or(0);
    if major < MIN_LLVM {
        return Err(format!("rustc {release} has LLVM {llvm}, device code needs {MIN_LLVM} or later"));
    }
    let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?.trim());
    let sysroot_src = sysroot.join("lib/rustlib/src/rust/library");
    // Cargo.lock: `-Zbuild-std` resolves the library's own dependencies by it.
    for wanted in ["core/src/lib.rs", "Cargo.lock"] {
        if !sysroot_src.join(wanted).is_file() {
            return Err(format!(
                "rustc {release} has no library sources (rust-src: {} is missing)",
                sysroot_src.join(wanted).display()
            ));
        }
    }
    let own = |name: &str| Some(sysroot.join("bin").join(name)).filter(|path| path.is_file());
    Ok(DeviceToolchain {
        rustc: own("rustc").unwrap_or_else(|| rustc.to_path_buf()),
        cargo: own("cargo").unwrap_or_else(|| PathBuf::from("cargo")),
        sysroot_src,
        version,
        origin,
    })
}

/// Runs `rustc` in the workspace's root, so that rustup's proxy reads `rust-toolchain.toml`.
fn ask(rustc: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(rustc);
    clean_env(&mut command);
    let output = command.args(args).current_dir(workspace_root()).output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", rustc.display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let first = stderr.lines().next().unwrap_or("no message").trim();
        return Err(format!("{} fails: {first}", rustc.display()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The value of one `name: value` line of `rustc -vV`.
fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_fields() {
        let version = "rustc 1.95.0 (abc 2026-04-14)\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(field(version, "release"), Some("1.95.0"));
        assert_eq!(field(version, "LLVM version"), Some("22.1.2"));
        assert_eq!(field(version, "LLVM"), None);
    }

    #[test]
    fn outer_cargo_variables_are_recognised() {
        for name in ["RUSTFLAGS", "CARGO", "CARGO_PKG_NAME", "RUSTUP_TOOLCHAIN"] {
            assert!(belongs_to_outer_cargo(name), "{name}");
        }
        for name in ["PATH", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "RUSTUP_HOME"] {
            assert!(!belongs_to_outer_cargo(name), "{name}");
        }
    }

    #[test]
    fn library_path_keeps_only_the_users_own() {
        let target = target_dir().join("debug/deps");
        let mixed = env::join_paths([
            target.as_path(),
            Path::new("/opt/rustup/toolchains/1.95.0/lib"),
            Path::new("/opt/nccl/lib"),
        ])
        .unwrap();
        let kept = without_cargo_paths(&mixed);
        assert_eq!(kept, Some(OsString::from("/opt/nccl/lib")));
        assert_eq!(without_cargo_paths(&target.into_os_string()), None);
    }

    #[test]
    fn an_override_is_a_name_or_a_path() {
        assert_eq!(anchored(Path::new("rustc-1.96")), Path::new("rustc-1.96"));
        assert!(anchored(Path::new("./bin/rustc")).is_absolute());
    }

    #[test]
    fn a_compiler_that_does_not_exist_is_named() {
        let error = probe(Path::new("/nonexistent/rustc"), Origin::Override).unwrap_err();
        assert!(error.contains("/nonexistent/rustc"), "{error}");
    }

    #[test]
    fn another_program_is_not_ptxas() {
        assert!(!is_pinned_ptxas(Path::new("/bin/true")));
        assert!(!is_pinned_ptxas(Path::new("/nonexistent/ptxas")));
    }
}
