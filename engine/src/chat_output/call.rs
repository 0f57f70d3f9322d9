//! One tool call's JSON, character by character.

/// What a character brought.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// The call's name.
    Named(String),
    /// More of the arguments.
    Arguments(String),
    /// The call is over.
    Done,
    /// It is no call.
    Wrong,
}

/// Reads `{"name": …, "arguments": {…}}`, its members in any order. Arguments are passed on as they are written.
#[derive(Clone, Debug)]
pub(super) struct CallReader {
    /// Whether members that no call has are a sign that it is none.
    strict: bool,
    at: At,
    key: String,
    /// The value so far; of arguments that are passed on only the first character.
    value: String,
    nesting: Nesting,
    named: bool,
    /// Arguments have been passed on, or begun.
    argued: bool,
    /// Arguments that were there before the name.
    early: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Start,
    FirstKey,
    NextKey,
    Key,
    Colon,
    BeforeValue,
    Value,
    AfterValue,
}

/// Where a JSON object, array or string ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Nesting {
    depth: usize,
    string: bool,
    escape: bool,
}

impl Nesting {
    /// Takes a character in; true with the last one.
    pub fn ends(&mut self, c: char) -> bool {
        if self.escape {
            self.escape = false;
        } else if self.string {
            self.escape = c == '\\';
            self.string = c != '"';
        } else {
            match c {
                '"' => self.string = true,
                '{' | '[' => self.depth += 1,
                '}' | ']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.depth == 0 && !self.string && !self.escape
    }
}

pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

impl CallReader {
    pub fn new(strict: bool) -> Self {
        CallReader {
            strict,
            at: At::Start,
            key: String::new(),
            value: String::new(),
            nesting: Nesting::default(),
            named: false,
            argued: false,
            early: None,
        }
    }

    /// Whether the name is known: the call can no longer turn out to be text.
    pub fn is_named(&self) -> bool {
        self.named
    }

    pub fn push(&mut self, c: char, out: &mut Vec<Event>) {
        if is_space(c) && !matches!(self.at, At::Key | At::Value) {
            return;
        }
        match (self.at, c) {
            (At::Start, '{') => self.at = At::FirstKey,
            (At::FirstKey | At::AfterValue, '}') => self.end(out),
            (At::FirstKey | At::NextKey, '"') => {
                self.key.clear();
                self.nesting = Nesting::default();
                self.at = At::Key;
                self.push(c, out);
            }
            (At::Key, _) => {
                self.key.push(c);
                if self.nesting.ends(c) {
                    let known = ["name", "arguments", "parameters", "type", "id"].contains(&self.key.trim_matches('"'));
                    if self.strict && !known {
                        out.push(Event::Wrong);
                    }
                    self.at = At::Colon;
                }
            }
            (At::Colon, ':') => self.at = At::BeforeValue,
            (At::BeforeValue, _) => {
                self.value.clear();
                self.nesting = Nesting::default();
                self.at = At::Value;
                self.value(c, out);
            }
            (At::Value, _) => self.value(c, out),
            (At::AfterValue, ',') => self.at = At::NextKey,
            _ => out.push(Event::Wrong),
        }
    }

    fn is_arguments(&self) -> bool {
        self.key == "\"arguments\"" || self.key == "\"parameters\""
    }

    fn value(&mut self, c: char, out: &mut Vec<Event>) {
        let first = self.value.chars().next().unwrap_or(c);
        if !matches!(first, '{' | '[' | '"') {
            if !(is_space(c) || matches!(c, ',' | '}' | ']')) {
                self.value.push(c);
                return;
            }
            // A number or a word ends before this character.
            self.end_value(out);
            self.at = At::AfterValue;
            return self.push(c, out);
        }
        let ends = self.nesting.ends(c);
        let starts = self.value.is_empty();
        if self.is_arguments() && self.named && first == '{' && (!self.argued || !starts) {
            if starts {
                self.value.push(c);
            }
            self.argued = true;
            out.push(Event::Arguments(c.into()));
        } else {
            self.value.push(c);
            if ends {
                self.end_value(out);
            }
        }
        if ends {
            self.at = At::AfterValue;
        }
    }

    /// Takes a whole value in.
    fn end_value(&mut self, out: &mut Vec<Event>) {
        let value = std::mem::take(&mut self.value);
        if self.key == "\"name\"" && !self.named {
            match serde_json::from_str::<String>(&value) {
                Ok(name) => out.push(Event::Named(name)),
                Err(_) => return out.push(Event::Wrong),
            }
            self.named = true;
            if let Some(early) = self.early.take() {
                self.argued = true;
                out.push(Event::Arguments(early));
            }
        } else if self.is_arguments() && !self.argued && self.early.is_none() {
            let arguments = plain(value);
            if self.named {
                self.argued = true;
                out.push(Event::Arguments(arguments));
            } else {
                self.early = Some(arguments);
            }
        }
    }

    /// The object is over.
    fn end(&mut self, out: &mut Vec<Event>) {
        if !self.named {
            return out.push(Event::Wrong);
        }
        if !self.argued {
            out.push(Event::Arguments("{}".into()));
        }
        out.push(Event::Done);
    }
}

/// Arguments as an object's text: some models write them into a string, or `null`.
fn plain(value: String) -> String {
    if value.starts_with('{') {
        return value;
    }
    match serde_json::from_str::<String>(&value) {
        Ok(inner) if serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&inner).is_ok() => inner,
        _ if value == "null" => "{}".into(),
        _ => value,
    }
}
