//! What the terminal can do; the one place that reads the environment.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::borrow::Cow;
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Which streams are terminals, and whether to colour.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Somebody types.
    pub stdin: bool,
    /// Somebody reads.
    pub stdout: bool,
    /// Progress bars are seen.
    pub stderr: bool,
    /// Colour what goes to stdout.
    pub colour: bool,
}

impl Terminal {
    /// Looks at the three streams, NO_COLOR and TERM.
    pub fn detect() -> Self {
        let stdout = std::io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Terminal {
            stdin: std::io::stdin().is_terminal(),
            stdout,
            stderr: std::io::stderr().is_terminal(),
            colour: stdout && !no_color && !dumb,
        }
    }

    /// For remarks beside the answers.
    pub fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// For headings and prompts.
    pub fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// `text` with a colour of the ANSI palette, where colours are wanted.
    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A message without line breaks or control characters.
pub fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join(" ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A model's text as a terminal may see it: without escape sequences, which could do anything there.
/// Files and pipes get what the model wrote.
pub fn harmless(text: &str, terminal: bool) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if terminal && text.contains(harmful) { Cow::Owned(text.replace(harmful, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// A progress bar on stderr that shows itself only where somebody looks and only when it takes long.
pub struct Progress {
    bar: ProgressBar,
    shown: Cell<bool>,
    visible: bool,
    start: Instant,
}

impl Progress {
    /// What is done in less time shows no bar.
    const PATIENCE: Duration = Duration::from_millis(400);

    /// A hidden bar.
    pub fn new(terminal: &Terminal, what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent:>3}% {elapsed}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        Progress { bar, shown: Cell::new(false), visible: terminal.stderr, start: Instant::now() }
    }

    /// `done` of `total`.
    pub fn set(&self, done: u64, total: u64) {
        if self.visible && !self.shown.get() && self.start.elapsed() > Self::PATIENCE {
            self.shown.set(true);
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line() {
        assert_eq!(one_line("a\n  b\r\nc\n"), "a b c");
        assert_eq!(one_line("x\x1b[31my"), "x\u{fffd}[31my");
    }

    #[test]
    fn terminals_see_no_escape_sequences() {
        assert_eq!(harmless("a\x1b[2Jb\n\tc\r", true), "a\u{fffd}[2Jb\n\tc\u{fffd}");
        assert_eq!(harmless("a\x1b[2J", false), "a\x1b[2J");
    }

    #[test]
    fn colours_only_where_wanted() {
        let plain = Terminal { stdin: false, stdout: false, stderr: false, colour: false };
        assert_eq!(plain.dim("x"), "x");
        assert_eq!(Terminal { colour: true, ..plain }.dim("x"), "\x1b[2mx\x1b[0m");
    }
}
