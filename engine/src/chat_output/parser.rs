//! Reads an answer character by character: so it cannot matter how the text is cut.
use super::call::{CallReader, Event, Nesting, is_space};
use super::{ChatDelta, ChatFormat, ToolFormat};

/// Reads an answer's text as it comes.
#[derive(Clone, Debug)]
pub struct ChatParser {
    format: ChatFormat,
    state: State,
    /// Text that may be the beginning of a mark, or whitespace that only counts if text follows.
    held: String,
    /// Since the mark of a call that is not certain yet: it may turn out to be content.
    raw: String,
    calls: usize,
    events: Vec<Event>,
    out: Vec<ChatDelta>,
}

#[derive(Clone, Debug)]
enum State {
    /// Before the first character that counts.
    Start,
    Reasoning,
    /// After reasoning or a call: whitespace does not count.
    Gap,
    Content,
    /// A call's JSON; `array`: one of several between brackets.
    Call {
        reader: Box<CallReader>,
        array: bool,
    },
    /// Mistral's mark: an array, an object, or a name follows.
    Mistral {
        name: String,
    },
    /// The arguments after Mistral's name.
    Bare(Nesting),
    /// Between calls: what ends or separates them.
    After {
        array: bool,
    },
    /// An array of calls has begun.
    Array,
}

impl ChatParser {
    /// For one answer.
    pub fn new(format: ChatFormat) -> Self {
        let open = format.reasoning.is_some() && format.reasoning_is_open;
        ChatParser {
            format,
            state: if open { State::Reasoning } else { State::Start },
            held: String::new(),
            raw: String::new(),
            calls: 0,
            events: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Takes text in and returns what is certain by now.
    pub fn push(&mut self, text: &str) -> Vec<ChatDelta> {
        text.chars().for_each(|c| self.step(c));
        std::mem::take(&mut self.out)
    }

    /// The rest, at the end of the answer. A call that was cut off keeps what it has of its arguments.
    pub fn finish(mut self) -> Vec<ChatDelta> {
        let held = std::mem::take(&mut self.held);
        match &self.state {
            State::Reasoning => self.reasoning(held.trim_end()),
            State::Call { reader, .. } if reader.is_named() => {}
            // The beginning of one more call, cut off before its name.
            State::Call { .. } | State::Mistral { .. } | State::Array if self.calls > 0 => {}
            State::After { .. } | State::Bare(_) => {}
            _ => {
                let raw = std::mem::take(&mut self.raw) + &held;
                if self.calls == 0 || !raw.trim().is_empty() {
                    self.content(&raw);
                }
            }
        }
        self.out
    }

    /// How many calls have begun.
    pub fn tool_calls(&self) -> usize {
        self.calls
    }

    fn step(&mut self, c: char) {
        let bare = self.bare(c.encode_utf8(&mut [0; 4]));
        match &mut self.state {
            State::Start => self.start(c),
            State::Reasoning => self.think(c),
            State::Gap if is_space(c) => {}
            State::Gap if bare => self.begin(c),
            State::Gap => {
                self.state = State::Content;
                self.text(c);
            }
            State::Content => self.text(c),
            State::Call { .. } => self.call(c),
            State::Mistral { .. } => self.mistral(c),
            State::Bare(nesting) => {
                let ends = nesting.ends(c);
                self.arguments(c.into());
                if ends {
                    self.state = State::After { array: false };
                }
            }
            State::After { array } => {
                let array = *array;
                self.after(c, array);
            }
            State::Array => self.array(c),
        }
    }

    /// The beginning: reasoning, a call without a mark, or text.
    fn start(&mut self, c: char) {
        self.held.push(c);
        let text = self.held.trim_start();
        let tag = self.format.reasoning.map(|reasoning| reasoning.tags().0);
        if tag.is_some_and(|tag| text == tag) {
            self.held.clear();
            self.state = State::Reasoning;
        } else if self.bare(text) {
            self.raw = std::mem::take(&mut self.held);
            self.raw.pop();
            self.begin(c);
        } else if !text.is_empty() && !tag.is_some_and(|tag| tag.starts_with(text)) {
            self.replay();
        }
    }

    /// Whether text is the first character of a call without a mark.
    fn bare(&self, text: &str) -> bool {
        self.format.tools.is_some_and(|format| match format {
            ToolFormat::Json => text == "{" || text == "[",
            _ => format.starts_bare() && text == "{",
        })
    }

    /// What was held is content after all, and may have marks.
    fn replay(&mut self) {
        self.state = State::Content;
        let held = std::mem::take(&mut self.held);
        held.chars().for_each(|c| self.text(c));
    }

    fn think(&mut self, c: char) {
        let Some(reasoning) = self.format.reasoning else { return };
        let end = reasoning.tags().1;
        self.held.push(c);
        loop {
            // Whitespace before the end does not count, nor at the beginning.
            let held = self.held.trim_start();
            if held == end {
                self.held.clear();
                self.state = State::Gap;
                return;
            }
            if end.starts_with(held) {
                return;
            }
            let space = self.held.len() - held.len();
            let length = space + held.chars().next().map_or(0, char::len_utf8);
            let rest = self.held.split_off(length);
            let text = std::mem::replace(&mut self.held, rest);
            self.reasoning(&text);
        }
    }

    /// Content, as long as no mark begins in it.
    fn text(&mut self, c: char) {
        let Some(format) = self.format.tools else { return self.content(c.encode_utf8(&mut [0; 4])) };
        let marks = format.marks();
        if marks.is_empty() {
            return self.content(c.encode_utf8(&mut [0; 4]));
        }
        self.held.push(c);
        loop {
            let held = self.held.trim_start();
            if marks.contains(&held) {
                self.raw = std::mem::take(&mut self.held);
                self.state = match format {
                    ToolFormat::Mistral => State::Mistral { name: String::new() },
                    _ => State::Call { reader: Box::new(CallReader::new(false)), array: false },
                };
                return;
            }
            if marks.iter().any(|mark| mark.starts_with(held)) {
                return;
            }
            let space = self.held.len() - held.len();
            let length = space + held.chars().next().map_or(0, char::len_utf8);
            let rest = self.held.split_off(length);
            let text = std::mem::replace(&mut self.held, rest);
            self.content(&text);
        }
    }

    /// The first character of a call without a mark, or of an array of them.
    fn begin(&mut self, c: char) {
        if c == '[' {
            self.raw.push(c);
            self.state = State::Array;
        } else {
            self.state = State::Call { reader: Box::new(CallReader::new(true)), array: false };
            self.call(c);
        }
    }

    fn array(&mut self, c: char) {
        match c {
            '{' => {
                let strict = self.format.tools == Some(ToolFormat::Json);
                self.state = State::Call { reader: Box::new(CallReader::new(strict)), array: true };
                self.call(c);
            }
            _ if is_space(c) => self.raw.push(c),
            ']' if self.calls > 0 => self.state = State::Gap,
            _ => self.wrong(c),
        }
    }

    fn call(&mut self, c: char) {
        let State::Call { reader, array } = &mut self.state else { return };
        let array = *array;
        let mut events = std::mem::take(&mut self.events);
        reader.push(c, &mut events);
        let named = reader.is_named();
        for event in events.drain(..) {
            match event {
                Event::Named(name) => self.name(name),
                Event::Arguments(text) => self.arguments(text),
                Event::Done => {
                    self.state = State::After { array };
                    break;
                }
                Event::Wrong if named => {
                    // Too late to take it back: what follows is content.
                    self.state = State::Content;
                    break;
                }
                Event::Wrong => {
                    self.events = Vec::new();
                    return self.wrong(c);
                }
            }
        }
        self.events = events;
        if !named {
            self.raw.push(c);
        }
    }

    fn mistral(&mut self, c: char) {
        let State::Mistral { name } = &mut self.state else { return };
        match c {
            _ if is_space(c) && name.is_empty() => self.raw.push(c),
            '[' if name.is_empty() => {
                self.raw.push(c);
                self.state = State::Array;
            }
            '{' if name.is_empty() => {
                self.state = State::Call { reader: Box::new(CallReader::new(false)), array: false };
                self.call(c);
            }
            '{' => {
                // Between name and arguments there may be a mark.
                let name = name.split('[').next().unwrap_or_default().trim().to_owned();
                self.name(name);
                let mut nesting = Nesting::default();
                nesting.ends(c);
                self.arguments(c.into());
                self.state = State::Bare(nesting);
            }
            // Names are short words.
            _ if name.len() > 256 || c == '\n' => self.wrong(c),
            _ => {
                name.push(c);
                self.raw.push(c);
            }
        }
    }

    /// After a call: its end mark, another call, or text.
    fn after(&mut self, c: char, array: bool) {
        const END: &str = "</tool_call>";
        if array {
            match c {
                ',' => self.state = State::Array,
                ']' => self.state = State::Gap,
                _ if is_space(c) => {}
                _ => self.wrong(c),
            }
            return;
        }
        self.held.push(c);
        let held = self.held.trim_start();
        match self.format.tools {
            Some(ToolFormat::Hermes) if held == END => {
                self.held.clear();
                self.state = State::Gap;
            }
            Some(ToolFormat::Hermes) if END.starts_with(held) => {}
            Some(ToolFormat::Llama3Json) if held == ";" || held.is_empty() => {}
            Some(format) if held.trim_start_matches(';').trim_start() == "{" && format.starts_bare() => {
                self.raw = std::mem::take(&mut self.held);
                self.raw.pop();
                self.begin(c);
            }
            Some(ToolFormat::Llama3Json) if held.trim_matches(|c: char| c == ';' || is_space(c)).is_empty() => {}
            _ if held.is_empty() => {}
            _ => {
                let held = std::mem::take(&mut self.held);
                self.state = State::Gap;
                held.chars().for_each(|c| self.step(c));
            }
        }
    }

    /// What looked like a call is text.
    fn wrong(&mut self, c: char) {
        let mut raw = std::mem::take(&mut self.raw);
        raw.push(c);
        self.state = State::Content;
        self.content(&raw);
    }

    fn name(&mut self, name: String) {
        self.raw.clear();
        self.out.push(ChatDelta::ToolCall { index: self.calls, name });
        self.calls += 1;
    }

    fn arguments(&mut self, text: String) {
        let index = self.calls.saturating_sub(1);
        match self.out.last_mut() {
            Some(ChatDelta::Arguments { index: at, text: before }) if *at == index => before.push_str(&text),
            _ => self.out.push(ChatDelta::Arguments { index, text }),
        }
    }

    fn content(&mut self, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(ChatDelta::Content(before)) => before.push_str(text),
            _ => self.out.push(ChatDelta::Content(text.to_owned())),
        }
    }

    fn reasoning(&mut self, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(ChatDelta::Reasoning(before)) => before.push_str(text),
            _ => self.out.push(ChatDelta::Reasoning(text.to_owned())),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
