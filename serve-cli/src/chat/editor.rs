//! The prompt: line editing, history, completion of slash commands.
use super::command;
use crate::terminal::Terminal;
use anyhow::Result;
use etcetera::{BaseStrategy, choose_base_strategy};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};
use std::borrow::Cow;
use std::path::PathBuf;

const PROMPT: &str = "> ";
/// Lines that the history file keeps.
const HISTORY_LINES: usize = 1000;

/// Where the history goes: `$XDG_STATE_HOME/wootz`, `~/.local/state/wootz` by default.
pub fn state_folder() -> Option<PathBuf> {
    let folders = choose_base_strategy().ok()?;
    Some(folders.state_dir().unwrap_or_else(|| folders.data_dir()).join("wootz"))
}

/// What a person did at the prompt.
pub enum Typed {
    /// A line.
    Line(String),
    /// Ctrl-C: the line is gone.
    Cancelled,
    /// Ctrl-D.
    End,
}

/// Reads lines from a terminal.
pub struct Prompt {
    editor: Editor<Slash, FileHistory>,
    history: Option<PathBuf>,
}

impl Prompt {
    /// With the history of earlier sessions, where there is one that can be read.
    pub fn new(terminal: &Terminal) -> Result<Self> {
        let config = Config::builder().max_history_size(HISTORY_LINES)?.history_ignore_space(true).build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Slash { colour: terminal.colour }));
        // A chat without a history is better than none: `doctor` tells when the folder cannot be written.
        let history = state_folder().filter(|folder| std::fs::create_dir_all(folder).is_ok());
        let history = history.map(|folder| folder.join("chat_history"));
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        Ok(Prompt { editor, history })
    }

    /// The next line.
    pub fn read(&mut self) -> Result<Typed> {
        loop {
            match self.editor.readline(PROMPT) {
                Ok(line) => {
                    if !line.trim().is_empty() && self.editor.add_history_entry(line.as_str())? {
                        self.save();
                    }
                    return Ok(Typed::Line(line));
                }
                Err(ReadlineError::Interrupted) => return Ok(Typed::Cancelled),
                Err(ReadlineError::Eof) => return Ok(Typed::End),
                // A resized window: the editor draws the line anew.
                Err(ReadlineError::Signal(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// After every line, so that a killed session loses nothing.
    fn save(&mut self) {
        if let Some(path) = &self.history {
            let _ = self.editor.append_history(path);
        }
    }
}

/// Completes and hints slash commands; a line that ends in a backslash goes on.
struct Slash {
    colour: bool,
}

impl Helper for Slash {}

impl Completer for Slash {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let prefix = line.get(..pos).unwrap_or_default();
        Ok((0, command::completions(prefix).map(str::to_owned).collect()))
    }
}

impl Hinter for Slash {
    type Hint = String;

    fn hint(&self, line: &str, pos: usize, _: &Context<'_>) -> Option<String> {
        // "/" alone may become a fraction; a letter makes it a command.
        let wanted = pos == line.len() && line.len() > 1;
        let mut found = command::completions(line).filter(|name| wanted && name.len() > line.len());
        let only = found.next().filter(|_| found.next().is_none())?;
        Some(only[line.len()..].to_owned())
    }
}

impl Highlighter for Slash {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        if self.colour { Cow::Owned(format!("\x1b[1;32m{prompt}\x1b[0m")) } else { Cow::Borrowed(prompt) }
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        if self.colour { Cow::Owned(format!("\x1b[2m{hint}\x1b[0m")) } else { Cow::Borrowed(hint) }
    }
}

impl Validator for Slash {
    fn validate(&self, ctx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        if ctx.input().ends_with('\\') { Ok(ValidationResult::Incomplete) } else { Ok(ValidationResult::Valid(None)) }
    }
}

/// A line whose parts were joined by backslashes at their ends, as the text that was meant.
pub fn unfold(line: &str) -> String {
    line.replace("\\\n", "\n")
}
