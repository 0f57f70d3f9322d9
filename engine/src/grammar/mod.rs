//! What an answer must be: JSON, a regular expression, a grammar. Which tokens may come next is a mask over the vocabulary,
//! computed on the CPU by `llguidance` while the GPU runs the forward pass, and applied where the token is drawn.
mod compile;
mod matchers;

use crate::chat_output::ReasoningFormat;
pub(crate) use compile::Grammars;
pub use compile::{CompiledGrammar, synthetic_json};
pub(crate) use matchers::Matchers;
use std::sync::Arc;

/// What an answer must be. Cheap to clone; compiled for a model's vocabulary where a request is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes: the schema's own JSON.
    JsonSchema(Arc<str>),
    /// All of the answer matches this regular expression, in Rust's syntax.
    Regex(Arc<str>),
    /// A grammar in llguidance's variant of Lark.
    Lark(Arc<str>),
    /// Reasoning, then what follows it must be.
    AfterReasoning {
        /// Where reasoning ends.
        format: ReasoningFormat,
        /// The prompt has opened it ([`ReasoningFormat::is_open_in`]); otherwise the answer may do so, or not reason.
        open: bool,
        /// What follows.
        then: Arc<Grammar>,
    },
}

impl Grammar {
    /// Lets a model reason before its answer is what this grammar says.
    pub fn after_reasoning(self, format: ReasoningFormat, open: bool) -> Self {
        Grammar::AfterReasoning { format, open, then: Arc::new(self) }
    }

    /// One of these texts.
    pub fn choice<S: AsRef<str>>(choices: impl IntoIterator<Item = S>) -> Self {
        let escape = |choice: S| choice.as_ref().chars().flat_map(escaped).collect::<String>();
        let choices: Vec<String> = choices.into_iter().map(escape).collect();
        Grammar::Regex(format!("({})", choices.join("|")).into())
    }

    /// A schema's text for Lark's `%json`, with the bounds on whitespace that [`Grammar::JsonSchema`] has.
    pub(crate) fn bounded_json(schema: serde_json::Value) -> String {
        compile::bounded(schema).to_string()
    }
}

/// A character as a regular expression matches it literally.
fn escaped(c: char) -> impl Iterator<Item = char> {
    let special = "\\.+*?()|[]{}^$#&-~/".contains(c);
    special.then_some('\\').into_iter().chain([c])
}

#[cfg(test)]
mod tests;
