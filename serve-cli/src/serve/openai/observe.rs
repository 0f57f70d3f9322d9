//! What requests tell the metrics.
use crate::serve::state::{AppState, Served};
use std::time::Instant;

/// One request's figures.
#[derive(Debug)]
pub struct Observed {}

/// A request whose prompts have so many tokens, and which arrived at `arrived`.
pub fn observe(_state: &AppState, _served: &Served, _prompt_tokens: usize, _arrived: Instant) -> Observed {
    Observed {}
}

impl Observed {
    /// A token of an answer.
    pub fn token(&mut self, _answer: usize, _at: Instant) {}

    /// The end: `stop`, `length`, `tool_calls`, `error`. Dropped before, the request was aborted.
    pub fn finish(self, _reason: &str) {}
}
