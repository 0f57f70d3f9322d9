//! Integration tests over the whole workspace, on every device there is.
//!
//! Tests are listed at run time (libtest-mimic), so that a kernel's cases, a golden checkpoint or a GPU
//! adds tests without a line here.
use libtest_mimic::{Arguments, Trial};
use std::ffi::OsString;
use std::process::ExitCode;

mod async_llm;
mod chat;
mod cli;
pub mod counters;
mod devices;
pub mod differential;
mod emulator;
mod engine;
mod filters;
pub mod goldens;
mod kernels;
pub mod probes;
mod serve;

/// Runs the tests that `args` (libtest's) select.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let (filters, args) = filters::split(args);
    let mut arguments = Arguments::from_iter(args);
    arguments.filter = filters.first().filter(|_| filters.len() == 1).cloned();
    let devices = match devices::available() {
        Ok(devices) => devices,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(kernels::trials(&devices));
    trials.extend(goldens::trials());
    trials.extend(probes::trials());
    trials.extend(differential::trials());
    trials.extend(emulator::trials());
    trials.extend(engine::trials(&devices));
    trials.extend(chat::trials(&devices));
    trials.extend(async_llm::trials(&devices));
    trials.extend(counters::trials());
    trials.extend(cli::trials());
    trials.extend(serve::trials());
    trials.push(filters::trial());
    if filters.len() > 1 {
        let selects = |name: &str, filter: &str| if arguments.exact { name == filter } else { name.contains(filter) };
        trials.retain(|trial| filters.iter().any(|filter| selects(trial.name(), filter)));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let all_emulated = filters.iter().all(|filter| ["emulated", "kernels"].contains(&filter.as_str()));
    let whole = !arguments.list && !arguments.exact && arguments.skip.is_empty() && all_emulated;
    if whole && let Err(message) = kernels::check_launched() {
        eprintln!("{message}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
