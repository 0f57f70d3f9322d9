//! `wootz completions`.
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::{Write, stdout};
use std::process::ExitCode;

/// Arguments of `wootz completions`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz completions bash > ~/.local/share/bash-completion/completions/wootz\n  \
    wootz completions zsh > ~/.zfunc/_wootz\n  \
    wootz completions fish > ~/.config/fish/completions/wootz.fish")]
pub struct CompletionsArgs {
    /// Whose script to print.
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    // Into memory first: clap_complete panics where a write fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "wootz", &mut script);
    stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
