//! What callers of the scheduler say and hear.
use super::plan::TokenLogprobs;
use crate::pooling::Pooling;
use crate::sampling::SamplingParams;
use std::sync::Arc;

/// Names a request for its whole life; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

impl RequestId {
    /// Of rows that are no request's.
    pub(crate) const NOBODY: RequestId = RequestId(u64::MAX);
}

#[cfg(test)]
impl RequestId {
    /// For engines that have no scheduler.
    pub(crate) fn numbered(number: u64) -> Self {
        RequestId(number)
    }
}

/// Names a sequence: a request has one, or `n`, or a beam's width. Never reused: a place and how often it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// What a request needs to be scheduled.
#[derive(Clone, Debug)]
pub struct SequenceRequest {
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end an answer (they are not reported).
    pub stop_tokens: Vec<u32>,
    /// How tokens are chosen. Answer `i` of `n` has the seed `seed + i`.
    pub sampling: SamplingParams,
    /// Answers, at least one. With beams: how many of the best, at most the width.
    pub n: usize,
    /// Beam search instead of sampling.
    pub beam: Option<BeamParams>,
    /// Where draft tokens come from. Beam search takes none.
    pub speculation: Speculation,
    /// Lower is served sooner; equal ones by arrival.
    pub priority: i32,
    /// Prefixes are shared only among requests with equal salts.
    pub salt: Option<Arc<str>>,
    /// Take the prompt's prefix from the cache if it is there. False computes every row.
    pub reuse_prefix: bool,
    /// Report the prompt's embedding with the end of the one answer, which is one token long and means nothing.
    pub pooling: Option<Pooling>,
}

impl Default for SequenceRequest {
    /// One greedy token after an empty prompt: give at least `prompt` and `max_tokens`.
    fn default() -> Self {
        SequenceRequest {
            prompt: Vec::new(),
            max_tokens: 1,
            stop_tokens: Vec::new(),
            sampling: SamplingParams::default(),
            n: 1,
            beam: None,
            speculation: Speculation::Auto,
            priority: 0,
            salt: None,
            reuse_prefix: true,
            pooling: None,
        }
    }
}

/// Beam search, as in Hugging Face's `generate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamParams {
    /// Beams (`num_beams`), 2 to 32.
    pub width: usize,
    /// An answer's score is the sum of its log-probabilities divided by its length to this power.
    pub length_penalty: f32,
    /// When to stop looking for better answers.
    pub early_stopping: EarlyStopping,
}

/// When beam search ends once it has as many finished answers as beams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// At once (`true`).
    Yes,
    /// When the best open beam, at its present length, does not beat the worst finished answer (`false`).
    #[default]
    Heuristic,
    /// When no open beam can become better, whatever its length (`"never"`).
    Never,
}

/// Where draft tokens come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// As the engine was told; the scheduler by itself drafts nothing.
    #[default]
    Auto,
    /// No drafts.
    Off,
    /// The draft model on the device makes `drafts` tokens a step (at most [`MAX_DRAFTS`](super::MAX_DRAFTS)).
    Draft {
        /// Tokens a step.
        drafts: usize,
    },
    /// What followed the last tokens' earlier occurrence in prompt and answer (prompt lookup).
    Ngram {
        /// Tokens a step, at most [`MAX_DRAFTS`](super::MAX_DRAFTS).
        drafts: usize,
        /// Longest run of tokens to look for.
        max_n: usize,
        /// Shortest run of tokens to look for.
        min_n: usize,
    },
}

impl Speculation {
    /// Most draft tokens a step.
    pub fn drafts(self) -> usize {
        match self {
            Speculation::Auto | Speculation::Off => 0,
            Speculation::Draft { drafts } | Speculation::Ngram { drafts, .. } => drafts,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// It was cancelled.
    Abort,
}

/// What a step did to an answer: one for each token, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The request.
    pub id: RequestId,
    /// Which of its `n` answers.
    pub index: u32,
    /// A new token; `None` if it was a stop token. Beam search reports all tokens at the end, the best answer first.
    pub token: Option<u32>,
    /// The token's log-probabilities, if asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set with an answer's last one.
    pub finished: Option<FinishReason>,
    /// Beam search's score of the answer, with the last one.
    pub score: Option<f32>,
    /// The prompt's embedding, hidden_size numbers, if asked for.
    pub embedding: Option<Vec<f32>>,
}
