//! What an assistant's text means, as it comes: content, reasoning, tool calls.
//!
//! ```
//! use engine::chat_output::{ChatDelta, ChatFormat, ChatParser, ToolFormat};
//!
//! let mut parser = ChatParser::new(ChatFormat { tools: Some(ToolFormat::Hermes), ..ChatFormat::default() });
//! let mut deltas = parser.push("Let me look. <tool_call>{\"name\": \"weather\", \"argu");
//! deltas.extend(parser.push("ments\": {\"city\": \"Jena\"}}</tool_call>"));
//! deltas.extend(parser.finish());
//! assert_eq!(deltas[0], ChatDelta::Content("Let me look.".into()));
//! assert_eq!(deltas[1], ChatDelta::ToolCall { index: 0, name: "weather".into() });
//! assert_eq!(deltas[2], ChatDelta::Arguments { index: 0, text: "{\"city\": \"Jena\"}".into() });
//! ```
mod call;
mod force;
mod format;
mod parser;

pub use force::{ToolChoice, force_tools};
pub use format::{ReasoningFormat, ToolFormat};
pub use parser::ChatParser;

/// How a model's text is to be read. The default takes all of it for content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatFormat {
    /// How tool calls are written; `None`: there are no tools.
    pub tools: Option<ToolFormat>,
    /// How reasoning is marked; `None`: it is content.
    pub reasoning: Option<ReasoningFormat>,
    /// The prompt has opened the reasoning already ([`ReasoningFormat::is_open_in`]).
    pub reasoning_is_open: bool,
}

/// What a piece of text adds to a message. Texts of one kind that follow each other are one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatDelta {
    /// Of `content`.
    Content(String),
    /// Of `reasoning_content`.
    Reasoning(String),
    /// A tool call begins. Its id is the caller's to choose.
    ToolCall {
        /// Which of the message's calls, from 0.
        index: usize,
        /// The function.
        name: String,
    },
    /// Of a call's `arguments`.
    Arguments {
        /// Which of the message's calls.
        index: usize,
        /// JSON, complete when the next call begins or the message ends.
        text: String,
    },
}

/// A whole message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatMessage {
    /// The text.
    pub content: String,
    /// The text of its reasoning.
    pub reasoning: String,
    /// Its calls.
    pub tool_calls: Vec<ToolCall>,
}

/// A tool call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// The function.
    pub name: String,
    /// JSON.
    pub arguments: String,
}

impl ChatMessage {
    /// Reads a whole answer.
    pub fn parse(format: ChatFormat, text: &str) -> Self {
        let mut parser = ChatParser::new(format);
        let mut message = ChatMessage::default();
        message.extend(parser.push(text));
        message.extend(parser.finish());
        message
    }
}

impl Extend<ChatDelta> for ChatMessage {
    fn extend<I: IntoIterator<Item = ChatDelta>>(&mut self, deltas: I) {
        for delta in deltas {
            match delta {
                ChatDelta::Content(text) => self.content.push_str(&text),
                ChatDelta::Reasoning(text) => self.reasoning.push_str(&text),
                ChatDelta::ToolCall { name, .. } => {
                    self.tool_calls.push(ToolCall { name, arguments: String::new() });
                }
                ChatDelta::Arguments { index, text } => {
                    if let Some(call) = self.tool_calls.get_mut(index) {
                        call.arguments.push_str(&text);
                    }
                }
            }
        }
    }
}
