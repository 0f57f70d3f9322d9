//! What requests tell the metrics.
use crate::serve::metrics::RequestMetrics;
use crate::serve::state::{AppState, Served};
use engine::llm::Delta;
use std::time::Instant;

/// One request's figures.
#[derive(Debug)]
pub struct Observed(RequestMetrics);

/// A request whose prompts have so many tokens, and which arrived at `arrived`.
pub fn observe(state: &AppState, served: &Served, prompt_tokens: usize, arrived: Instant) -> Observed {
    let mut metrics = state.metrics().request(&served.id, prompt_tokens);
    metrics.started(arrived);
    Observed(metrics)
}

impl Observed {
    /// A token of an answer.
    pub fn token(&mut self, answer: usize, delta: &Delta) {
        if let Some(started) = delta.started {
            self.0.scheduled(started.at);
        }
        self.0.answer_token(answer, delta.at);
    }

    /// The end: `stop`, `length`, `tool_calls`, `error`. Dropped before, the request was aborted.
    pub fn finish(self, reason: &str) {
        self.0.finish(reason);
    }
}
