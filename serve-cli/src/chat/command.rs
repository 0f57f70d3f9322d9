//! Slash commands of the chat.

/// Every command with what it does, in the order of `/help`.
pub const COMMANDS: &[(&str, &str)] = &[
    ("/help", "show this"),
    ("/reset", "forget the conversation; the system prompt stays"),
    ("/system TEXT", "set the system prompt; alone: show it, clear: remove it"),
    ("/stats", "show context, speed and settings"),
    ("/quit", "leave, as Ctrl-D does"),
];

/// A line that somebody typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Nothing.
    Empty,
    /// A message to the model.
    Message(&'a str),
    /// `/help`.
    Help,
    /// `/reset`.
    Reset,
    /// `/system` without a text.
    ShowSystem,
    /// `/system clear`.
    ClearSystem,
    /// `/system TEXT`.
    SetSystem(&'a str),
    /// `/stats`.
    Stats,
    /// `/quit`.
    Quit,
    /// A slash command that does not exist.
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    /// Reads a line. What starts with a slash and a letter is a command; `/ text` and `//` are messages.
    pub fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let command = line.strip_prefix('/').filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()));
        let Some(command) = command else {
            return if line.is_empty() { Line::Empty } else { Line::Message(line) };
        };
        let (name, text) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, text.trim()) {
            ("help", _) => Line::Help,
            ("reset", _) => Line::Reset,
            ("system", "") => Line::ShowSystem,
            ("system", "clear") => Line::ClearSystem,
            ("system", text) => Line::SetSystem(text),
            ("stats", _) => Line::Stats,
            ("quit" | "exit", _) => Line::Quit,
            // A path such as /usr/bin is a message.
            _ if name.contains('/') => Line::Message(line),
            _ => Line::Unknown(&line[..name.len() + 1]),
        }
    }
}

/// Names of the commands that start with `prefix`, with the slash.
pub fn completions(prefix: &str) -> impl Iterator<Item = &'static str> {
    let names = COMMANDS.iter().filter_map(|(usage, _)| usage.split(' ').next());
    names.filter(move |name| prefix.starts_with('/') && name.starts_with(prefix))
}

/// What to say about a command that does not exist.
pub fn unknown(name: &str) -> String {
    let close = (2..name.len()).rev().find_map(|len| completions(name.get(..len)?).next());
    match close {
        Some(close) => format!("there is no {name}; did you mean {close}? /help lists the commands"),
        None => format!("there is no {name}; /help lists the commands"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (line, parsed) in [
            ("", Line::Empty),
            ("  \t", Line::Empty),
            (" hello ", Line::Message("hello")),
            ("/help", Line::Help),
            (" /help me", Line::Help),
            ("/reset", Line::Reset),
            ("/system", Line::ShowSystem),
            ("/system  Be  brief. ", Line::SetSystem("Be  brief.")),
            ("/system clear", Line::ClearSystem),
            ("/stats", Line::Stats),
            ("/quit", Line::Quit),
            ("/exit", Line::Quit),
            ("/rset now", Line::Unknown("/rset")),
            ("/usr/bin is a folder", Line::Message("/usr/bin is a folder")),
            ("/", Line::Message("/")),
            ("/ 2", Line::Message("/ 2")),
            ("12/7", Line::Message("12/7")),
            ("/é", Line::Message("/é")),
        ] {
            assert_eq!(Line::parse(line), parsed, "{line:?}");
        }
    }

    #[test]
    fn hints() {
        assert_eq!(completions("/s").collect::<Vec<_>>(), ["/system", "/stats"]);
        assert_eq!(completions("s").count(), 0);
        assert!(unknown("/rset").contains("did you mean /reset"), "{}", unknown("/rset"));
        assert!(!unknown("/xyz").contains("did you mean"));
        assert!(!unknown("/é").contains("did you mean"));
    }
}
