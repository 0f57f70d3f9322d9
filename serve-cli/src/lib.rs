//! The `wootz` command line: one file per command, `model` and `terminal` for what they share.
//!
//! The only crate that reads the environment and decides exit codes: 0, 1 after one `error: …` line on
//! stderr, 2 for a command line that clap refuses.
mod bench;
mod chat;
mod completions;
mod device;
mod doctor;
mod generate;
mod hub;
mod inspect;
mod model;
mod parse;
mod serve;
mod speculation;
mod terminal;
mod units;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use terminal::Terminal;

/// Runs language models on NVIDIA GPUs with kernels written in Rust, and on the CPU without one.
#[derive(Parser)]
#[command(
    name = "wootz",
    bin_name = "wootz",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        wootz chat                                   talk to the model in the binary\n  \
        wootz chat --ask \"What is 12 plus 7?\"        one answer on stdout\n  \
        wootz chat ./Llama-3.1-8B-Instruct           a Hugging Face model directory\n\
        wootz chat Qwen/Qwen3-0.6B                   from the hub's cache, or downloaded into it\n  \
        wootz doctor                                 what works on this machine\n\n\
        MODEL is a directory with config.json, *.safetensors and tokenizer.json, or a name on Hugging\n\
        Face's hub (ORG/NAME or ORG/NAME@REVISION); by default it is tiny-chat, which is inside the binary. `wootz COMMAND --help` shows examples of each command."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Talk to a model.
    Chat(Box<chat::ChatArgs>),
    /// Continue one or more prompts.
    Generate(Box<generate::GenerateArgs>),
    /// Show a model's architecture, its memory by part, and what fits on the GPU.
    Inspect(inspect::InspectArgs),
    /// Check driver, GPUs, device toolchain and folders, and say how to mend what is wrong.
    #[command(after_help = "Example: wootz doctor\n\n\
        Exits with code 1 only if `wootz chat` cannot work; what a build of Wootz needs is a warning.")]
    Doctor,
    /// Serve models by HTTP, with OpenAI's API.
    Serve(Box<serve::ServeArgs>),
    /// Time kernels or a model.
    Bench(bench::BenchArgs),
    /// Print a shell's completion script.
    Completions(completions::CompletionsArgs),
}

/// Runs the command line; `args` starts with the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout with code 0, mistakes to stderr with code 2; a closed pipe is nobody's fault.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match run(cli.command, &Terminal::detect()) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Every other file operation says in its context what it was about.
            let what =
                if error.is::<io::Error>() && error.chain().len() == 1 { "cannot write to stdout: " } else { "" };
            let _ = writeln!(io::stderr(), "error: {what}{}", terminal::one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, terminal: &Terminal) -> Result<ExitCode> {
    match command {
        Command::Chat(args) => chat::run(&args, terminal),
        Command::Generate(args) => generate::run(&args, terminal),
        Command::Inspect(args) => inspect::run(&args),
        Command::Doctor => doctor::run(terminal),
        Command::Serve(args) => serve::run(&args, terminal),
        Command::Bench(args) => bench::run(&args, terminal),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Whether the reader of our output has gone: `wootz … | head` is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
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
    fn every_command_has_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{path} --help has no examples");
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        check(&Cli::command(), "");
    }
}
