//! Beam search as Hugging Face's `generate` does it. Pure: knows beams by their index, no tokens but the newest.
use super::request::{BeamParams, EarlyStopping};

/// Most beams of a request: twice as many tokens with log-probabilities come back for each beam.
pub const MAX_BEAMS: usize = 32;

/// A search that is under way. `T` is what the caller keeps of a finished answer.
#[derive(Debug)]
pub struct BeamSearch<T> {
    params: BeamParams,
    max_tokens: usize,
    /// Sum of log-probabilities of each open beam.
    sums: Vec<f64>,
    /// The best finished answers, at most `width`, best first.
    finished: Vec<Answer<T>>,
    len: usize,
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// What the caller kept.
    pub content: T,
    /// Whether a stop token ended it.
    pub stopped: bool,
    /// Sum of log-probabilities, the stop token's too, divided by length^penalty.
    pub score: f64,
}

/// An open beam after a step: the beam before it that it continues, and with which token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// Index of the beam before.
    pub parent: usize,
    /// The new token.
    pub token: u32,
}

impl<T> BeamSearch<T> {
    /// A search with one open beam, the prompt.
    pub fn new(params: BeamParams, max_tokens: usize) -> Self {
        BeamSearch { params, max_tokens, sums: vec![0.0], finished: Vec::new(), len: 0 }
    }

    /// Tokens with log-probabilities that a step needs of each beam, so that `width` go on although every stop token is
    /// among them.
    pub fn tops(params: BeamParams, stop_tokens: usize) -> u32 {
        (params.width + params.width.max(stop_tokens)) as u32
    }

    /// Takes in the likeliest tokens of each open beam, best first, and returns the beams that go on; none when the search
    /// is over. `keep(parent, token)` makes the content of a finished answer; `token` is `None` for a stop token.
    pub fn advance(
        &mut self,
        tops: &[&[(u32, f32)]],
        is_stop: impl Fn(u32) -> bool,
        mut keep: impl FnMut(usize, Option<u32>) -> T,
    ) -> Vec<Continuation> {
        let width = self.params.width;
        let mut candidates: Vec<(f64, Continuation)> = Vec::with_capacity(tops.len() * 2 * width);
        for (parent, (top, sum)) in tops.iter().zip(&self.sums).enumerate() {
            candidates.extend(top.iter().map(|&(token, p)| (sum + f64::from(p), Continuation { parent, token })));
        }
        // Stable: equal ones in the order of the beams.
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.len += 1;
        let last = self.len >= self.max_tokens;
        let (mut next, mut sums) = (Vec::with_capacity(width), Vec::with_capacity(width));
        for (rank, (sum, beam)) in candidates.into_iter().enumerate() {
            let stopped = is_stop(beam.token);
            if stopped || last {
                // An answer that is not among the best `width` of its step does not count.
                if rank < width {
                    let content = keep(beam.parent, (!stopped).then_some(beam.token));
                    self.finished.push(Answer { content, stopped, score: sum / self.norm(self.len) });
                }
            } else if next.len() < width {
                next.push(beam);
                sums.push(sum);
            }
            if rank + 1 >= width && (last || next.len() == width) {
                break;
            }
        }
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(width);
        self.sums = sums;
        if self.is_over() {
            next.clear();
        }
        next
    }

    /// The answers, best first.
    pub fn into_answers(self) -> Vec<Answer<T>> {
        self.finished
    }

    fn norm(&self, len: usize) -> f64 {
        (len as f64).powf(f64::from(self.params.length_penalty))
    }

    fn is_over(&self) -> bool {
        let Some(best) = self.sums.first() else { return true };
        let Some(worst) = self.finished.get(self.params.width - 1) else { return false };
        let len = match self.params.early_stopping {
            EarlyStopping::Yes => return true,
            EarlyStopping::Never if self.params.length_penalty > 0.0 => self.max_tokens,
            _ => self.len,
        };
        worst.score >= best / self.norm(len)
    }
}

#[cfg(test)]
#[path = "beam_tests.rs"]
mod tests;
