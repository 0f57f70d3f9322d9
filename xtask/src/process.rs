//! Running other programs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use ptx_build::toolchain::clean_env;

/// `program`, free of the environment that cargo and rustup made for xtask itself.
pub fn tool(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    clean_env(&mut command);
    command
}

/// Runs `command` with its output on stderr: stdout belongs to the task's own result.
pub fn run_on_stderr(command: &mut Command) -> Result<()> {
    command.stdout(Stdio::from(io::stderr()));
    run(command)
}

/// Runs `command`; fails if it does.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// What `command` prints on stdout; fails with its first line on stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.output().with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().next().unwrap_or("no message").trim();
        bail!("`{shown}` failed: {reason}");
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed no UTF-8"))
}

/// Becomes `command`. Not a child process: Ctrl-C must reach the program alone (`wootz chat` stops
/// its answer and goes on), and the exit code is its own.
pub fn become_program(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    Err(command.exec()).with_context(|| format!("cannot run `{shown}`"))
}

/// Whether `program` is on `PATH`.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The program and its arguments, for messages. Long command lines are cut.
fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        if text.len() > 80 {
            text.push_str(" …");
            break;
        }
        let argument = argument.to_string_lossy();
        text.push(' ');
        // An argument of several lines is a script; an error message is one line.
        text.push_str(if argument.contains('\n') { "…" } else { &argument });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_named() {
        let error = run(&mut Command::new("/bin/false")).unwrap_err();
        assert!(error.to_string().starts_with("`false` failed"), "{error}");
        let error = output(Command::new("sh").args(["-c", "echo no network >&2; exit 3"]));
        assert!(error.unwrap_err().to_string().ends_with("no network"));
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = run(&mut Command::new("/nonexistent/tool")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run `tool`");
    }
}
