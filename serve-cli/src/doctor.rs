//! `wootz doctor`: what works on this machine, and what would mend the rest.
use crate::chat::editor::state_folder;
use crate::terminal::{Terminal, one_line};
use crate::{model, units};
use anyhow::Result;
use engine::embedded::TINY_CHAT;
use etcetera::{BaseStrategy, choose_base_strategy};
use kernels_host::{Device, Error, Target, ptx};
use ptx_build::toolchain;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Something works less well, or only a build of Wootz needs it.
    Warning,
    /// `wootz chat` does not work.
    Problem,
}

/// One line of the report.
struct Check {
    verdict: Verdict,
    what: String,
    found: String,
    /// The command or step that mends it.
    mend: Option<String>,
}

impl Check {
    fn ok(what: &str, found: impl Into<String>) -> Self {
        Check { verdict: Verdict::Ok, what: what.into(), found: found.into(), mend: None }
    }

    fn warning(what: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Check { verdict: Verdict::Warning, what: what.into(), found: found.into(), mend: Some(mend.into()) }
    }

    fn problem(what: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Check { verdict: Verdict::Problem, ..Check::warning(what, found, mend) }
    }
}

/// Prints the report; fails only where `wootz chat` cannot work.
pub fn run(terminal: &Terminal) -> Result<ExitCode> {
    let mut checks = vec![embedded_model(), embedded_ptx(), driver()];
    let (gpus, works) = gpus();
    checks.extend(gpus);
    checks.push(cpu());
    checks.push(emulator());
    checks.extend(folders());
    checks.extend(build_tools());

    let mut out = stdout();
    writeln!(out, "wootz {}", env!("CARGO_PKG_VERSION"))?;
    for check in &checks {
        let (word, colour) = match check.verdict {
            Verdict::Ok => ("ok", "32"),
            Verdict::Warning => ("warning", "33"),
            Verdict::Problem => ("problem", "31"),
        };
        writeln!(
            out,
            "{}  {:<14}{}",
            terminal.paint(colour, &format!("{word:<7}")),
            check.what,
            one_line(&check.found)
        )?;
        if let Some(mend) = &check.mend {
            writeln!(out, "{:9}{:<14}{}", "", "", terminal.dim(&format!("→ {mend}")))?;
        }
    }
    let broken = checks.iter().any(|check| check.verdict == Verdict::Problem);
    let summary = match works {
        _ if broken => "`wootz chat` does not work here: mend the problems above".to_owned(),
        Some(gpu) => format!("`wootz chat` works here, on {gpu}"),
        None => "`wootz chat` works here, on the CPU".to_owned(),
    };
    writeln!(out, "\n{}", terminal.bold(&summary))?;
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn embedded_model() -> Check {
    let what = "model";
    let unpacked = TINY_CHAT.config().and_then(|config| {
        TINY_CHAT.tokenizer()?;
        TINY_CHAT.chat_template()?;
        Ok((engine::weights::parameter_count(&config), TINY_CHAT.checkpoint()?.data_bytes()))
    });
    match unpacked {
        Ok((parameters, bytes)) => Check::ok(
            what,
            format!(
                "{}, {} parameters, {} of weights in the binary",
                TINY_CHAT.name(),
                units::count(parameters),
                units::bytes(bytes)
            ),
        ),
        Err(error) => {
            Check::problem(what, error.to_string(), "install the binary again, or give `wootz chat` a model directory")
        }
    }
}

fn embedded_ptx() -> Check {
    let entries = ptx::entries();
    let of = |target| entries.iter().filter(|(built, _)| *built == target).count();
    let found = format!("{} entries for sm_90a, {} for sm_80, in the binary", of(Target::Sm90a), of(Target::Sm80));
    if of(Target::Sm80) > 0 {
        Check::ok("kernels", found)
    } else {
        Check::warning(
            "kernels",
            found,
            "build again with the device toolchain: cargo xtask setup && cargo build --release",
        )
    }
}

fn driver() -> Check {
    match Device::driver_version() {
        Ok(version) => Check::ok("driver", format!("supports CUDA {version}")),
        Err(Error::NoDriver) => Check::warning(
            "driver",
            "none (libcuda.so.1 does not load): everything runs on the CPU",
            "with an NVIDIA GPU, install its driver: sudo ubuntu-drivers install (Ubuntu), sudo apt install nvidia-driver (Debian); \
             in a container, run it with --gpus all",
        ),
        Err(error) => Check::warning(
            "driver",
            error.to_string(),
            "`nvidia-smi` must list a GPU; after a driver update restart, in a container use --gpus all",
        ),
    }
}

/// Every GPU, and the name of the one that `--device auto` takes.
fn gpus() -> (Vec<Check>, Option<String>) {
    let mut works = None;
    let checks = (0..Device::cuda_count()).map(|ordinal| {
        let what = format!("GPU {ordinal}");
        let opened = Device::cuda(ordinal).and_then(|device| Ok((device.memory()?, device.stream().map(|_| device)?)));
        let (memory, device) = match opened {
            Ok((memory, device)) => (memory.unwrap_or_default(), device),
            Err(error @ Error::DriverTooOld { .. }) => {
                return Check::warning(&what, error.to_string(), "update the driver");
            }
            Err(error) => return Check::warning(&what, error.to_string(), "wootz chat --device cpu"),
        };
        if ordinal == 0 {
            works = Some(device.name().to_owned());
        }
        let (major, minor) = device.compute_capability().unwrap_or_default();
        let module = device.target().map_or_else(String::new, |target| format!(", module {target}"));
        let (free, total) = (memory.0 as u64, memory.1 as u64);
        let found = format!(
            "{}, compute capability {major}.{minor}{module}, {} of {} free",
            device.name(),
            units::bytes(free),
            units::bytes(total)
        );
        if free < total / 10 {
            return Check::warning(&what, found, "other programs hold its memory: `nvidia-smi` lists them");
        }
        Check::ok(&what, found)
    });
    let checks = checks.collect();
    (checks, works)
}

fn cpu() -> Check {
    let threads = units::plural(Device::cpu().multiprocessors(), "thread");
    let memory = model::host_memory().map_or_else(String::new, |total| format!(", {} of memory", units::bytes(total)));
    Check::ok("CPU", format!("{threads}{memory}"))
}

/// Whether `--device emulated` computes what the references say: one small kernel on it.
fn emulator() -> Check {
    let device = Device::emulated(Target::Sm90a, 0);
    let kernels = kernels_host::kernels();
    let cases = kernels.iter().filter(|kernel| kernel.runs_on(&device)).flat_map(|kernel| (kernel.pinned)());
    let Some(case) = cases.filter(|case| case.checked_on_emulator()).min_by_key(|case| case.work().bytes) else {
        return Check::warning("emulator", "no kernel is small enough to try it", "wootz chat --device cpu");
    };
    let run = || {
        let stream = device.stream()?;
        case.prepare(&stream, 0)?.check(&stream)
    };
    match run() {
        Ok(()) => Check::ok("emulator", "runs the GPU's kernels on the CPU: --device emulated"),
        Err(error) => Check::warning("emulator", error.to_string(), "wootz chat --device cpu"),
    }
}

fn folders() -> Vec<Check> {
    let cache = choose_base_strategy().ok().map(|folders| folders.cache_dir().join("wootz"));
    [("history", state_folder(), "chat keeps no history"), ("cache", cache, "kernels are compiled at every start")]
        .into_iter()
        .map(|(what, folder, without)| folder_check(what, folder, without))
        .collect()
}

fn folder_check(what: &str, folder: Option<PathBuf>, without: &str) -> Check {
    let Some(folder) = folder else {
        return Check::warning(what, format!("no home folder is known: {without}"), "export HOME=/path/to/a/folder");
    };
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe));
    let shown = folder.display();
    match written {
        Ok(()) => Check::ok(what, format!("{shown} is writable")),
        Err(error) => Check::warning(
            what,
            format!("{shown} cannot be written ({error}): {without}"),
            format!("sudo mkdir -p '{shown}' && sudo chown -R \"$USER\" '{shown}'"),
        ),
    }
}

/// Only a build of Wootz needs these.
fn build_tools() -> Vec<Check> {
    let compiler = match toolchain::locate() {
        Ok(found) => Check::ok(
            "rustc",
            format!("{} with LLVM {} and rust-src can build device code", found.release(), found.llvm()),
        ),
        Err(_) => Check::warning(
            "rustc",
            "no compiler for device code with rust-src (only needed to build Wootz)",
            "in a clone of Wootz: cargo xtask setup (or rustup component add rust-src)",
        ),
    };
    let ptxas = match toolchain::locate_ptxas() {
        Some(path) => Check::ok("ptxas", format!("{} at {}", toolchain::PTXAS_VERSION, path.display())),
        None => Check::warning(
            "ptxas",
            format!("{} is not here (only needed to build Wootz)", toolchain::PTXAS_VERSION),
            "in a clone of Wootz: cargo xtask setup",
        ),
    };
    vec![compiler, ptxas]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_made_is_a_warning() {
        let check = folder_check("cache", Some("/dev/null/x".into()), "slow");
        assert_eq!(check.verdict, Verdict::Warning);
        assert!(check.found.contains("slow") && check.mend.is_some_and(|mend| mend.contains("/dev/null/x")));
        assert_eq!(folder_check("cache", None, "slow").verdict, Verdict::Warning);
    }
}
