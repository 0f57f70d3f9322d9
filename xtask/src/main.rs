//! The project's own tooling: `cargo xtask <command>`.
//!
//! It is built before everything else, so it depends on little, and it never depends on crates
//! that need the device toolchain, because `setup` is what fetches that.

mod apt;
mod bench;
mod bundle;
mod cargo;
mod clients;
mod licences;
mod lint;
mod new_kernel;
mod process;
mod scrub;
mod setup;
mod tidy;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's own tooling. Two commands do all the set-up: `cargo xtask chat` and
/// `cargo xtask test`.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch what a build needs (the device toolchain and the pinned ptxas; runs by itself before the other commands) and
    /// what tests of the server need (OpenAI's clients and Chromium; before `test`).
    #[command(after_help = "Example: cargo xtask setup\n\n\
        WOOTZ_GPU_RUSTC=/path/to/rustc picks another compiler for device code, WOOTZ_CHROMIUM=/path/to/chromium another \
        browser.")]
    Setup,

    /// Set up, build and chat with a model. All arguments go to `wootz chat`.
    #[command(after_help = "Example: cargo xtask chat --ask \"What is 12 plus 7?\"\n\n\
        `cargo xtask chat -- --help` lists chat's own options.")]
    Chat {
        /// Arguments of `wootz chat`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },

    /// Set up and run every test of the workspace. With GPU=required a missing GPU is a failure.
    #[command(after_help = "Example: cargo xtask test add_rms_norm")]
    Test {
        /// Random cases of each kernel on each device: 32, on emulated ones 4, if not given.
        #[arg(long, value_name = "N")]
        cases: Option<u32>,
        /// Filters and other arguments of `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },

    /// Compare what the kernels execute and move on the emulator with `kernels-host/counters.txt`.
    #[command(after_help = "Example: cargo xtask counters norm")]
    Counters {
        /// Write the file anew, for all kernels or those that FILTER selects.
        #[arg(long)]
        update: bool,
        /// Only kernels whose name contains this.
        filter: Option<String>,
    },

    /// Set up, build for release and time the kernels on this machine's GPU. All arguments go to `wootz bench kernels`.
    #[command(after_help = "Example: cargo xtask bench gemm\n         \
        cargo xtask bench --peers --only gemm-decode\n\n\
        With --peers every kernel runs beside its rival (cuBLASLt, PyTorch), the arguments go to `wootz bench peers`, and \
        the results to docs/perf/<date>-<gpu>-<commit>.")]
    Bench {
        /// Compare with NVIDIA's libraries and PyTorch.
        #[arg(long)]
        peers: bool,
        /// Arguments of the bench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },

    /// Set up, build for release and write kernels-host/src/gemm/tuned.txt anew: which kernel computes which product
    /// fastest on this machine's GPU.
    #[command(after_help = "Example: cargo xtask tune\n         \
        cargo xtask tune --only \"4096 14336 \" --out products.txt\n\n\
        All arguments go to `wootz bench tune`; with --only the whole table stays as it is unless --out names it.")]
    Tune {
        /// Arguments of `wootz bench tune`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },

    /// Write docs/kernels.md from the kernels' dossiers and the newest results in docs/perf.
    #[command(after_help = "Example: cargo xtask docs-kernels\n         \
        cargo xtask docs-kernels docs/perf/2026-11-23-h200-9a974a6")]
    DocsKernels {
        /// Folders of results, the one that counts first, instead of the newest.
        perf: Vec<PathBuf>,
    },

    /// Format, clippy, rustdoc, licences and the project's own rules.
    #[command(after_help = "Example: cargo xtask lint tidy licences")]
    Lint {
        /// Run only these checks.
        checks: Vec<lint::Check>,
    },

    /// Gather what a GPU machine without Rust needs in `bundle/`, at most 36 MiB.
    #[command(after_help = "Example: cargo xtask bundle && \
        rsync -a bundle/ gpu-host:wootz/ && ssh gpu-host wootz/run.sh tests")]
    Bundle {
        /// The cargo profile: `release` for timings, `dev` to share the build with the tests.
        #[arg(long, default_value = "release")]
        profile: String,
    },

    /// Write exactly the PTX that is embedded, one file per entry and target.
    #[command(after_help = "Example: cargo xtask ptx --out target/entries")]
    Ptx {
        /// The folder to write to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },

    /// Write a checkpoint of random weights, with real shards and a tokenizer, for a config.json.
    #[command(after_help = "Example: cargo xtask dummy-checkpoint llama-8b/config.json dummy-8b")]
    DummyCheckpoint {
        /// A Hugging Face config.json.
        config: PathBuf,
        /// The folder to write to.
        dir: PathBuf,
    },

    /// Write a new kernel's device and host files from the templates, with their `mod` lines.
    #[command(after_help = "Example: cargo xtask new-kernel norm/add_rms_norm")]
    NewKernel {
        /// The kernel's family and name.
        #[arg(value_name = "FAMILY/NAME")]
        kernel: new_kernel::KernelName,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => {
            setup::setup()?;
            clients::setup()
        }
        Task::Chat { args } => {
            setup::setup()?;
            cargo::chat(&args)
        }
        Task::Test { cases, args } => {
            setup::setup()?;
            clients::setup()?;
            cargo::test(cases, &args)
        }
        Task::Counters { update, filter } => {
            setup::setup()?;
            cargo::counters(update, filter.as_deref())
        }
        Task::Bench { peers, args } => {
            setup::setup()?;
            bench::run_bench(peers, &args)
        }
        Task::Tune { args } => {
            setup::setup()?;
            bench::run_tune(&args)
        }
        Task::DocsKernels { perf } => {
            setup::setup()?;
            bench::docs_kernels(&perf)
        }
        Task::Lint { checks } => lint::run(&checks),
        Task::Bundle { profile } => {
            setup::setup()?;
            bundle::run(&profile)
        }
        Task::Ptx { out } => {
            setup::setup()?;
            cargo::example("ptx", &[out.as_path()])
        }
        Task::DummyCheckpoint { config, dir } => {
            setup::setup()?;
            cargo::example("dummy_checkpoint", &[&config, &dir])
        }
        Task::NewKernel { kernel } => {
            let root = ptx_build::toolchain::workspace_root();
            for line in new_kernel::create(&root, &kernel)? {
                println!("{line}");
            }
            println!(
                "next: write the formula in both files, then `cargo test -p wootz-tests --test wootz -- {kernel}`"
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            let example = format!("Example: cargo xtask {}", command.get_name());
            assert!(help.is_some_and(|text| text.contains(&example)), "{example}");
        }
    }

    #[test]
    fn chat_passes_flags_through() {
        let cli = Cli::try_parse_from(["xtask", "chat", "--ask", "hi", "--device", "cpu"]).unwrap();
        let Task::Chat { args } = cli.task else { panic!("not chat") };
        assert_eq!(args, ["--ask", "hi", "--device", "cpu"]);
    }
}
