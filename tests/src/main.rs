//! The one test executable: gathers the trials of every module and runs them.

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let trials = wootz_tests::goldens::trials();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
