//! What answers of several endpoints have in common.
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompts.
    pub prompt_tokens: usize,
    /// Of the answers, also of those that `best_of` leaves out.
    pub completion_tokens: usize,
    /// All together.
    pub total_tokens: usize,
    /// What is known about those of the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// About tokens of prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those that were in the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    /// Before the first token.
    pub fn of_prompts(prompt_tokens: usize) -> Self {
        Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() }
    }
}

/// What a stream tells beside the answers.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk tells the request's tokens.
    pub include_usage: Option<bool>,
    /// With `include_usage`: each chunk tells the tokens until then.
    pub continuous_usage_stats: Option<bool>,
}

/// The usage in chunks of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkUsage {
    /// A last chunk has it.
    pub last: bool,
    /// All chunks have it.
    pub each: bool,
}

impl From<Option<StreamOptions>> for ChunkUsage {
    fn from(options: Option<StreamOptions>) -> Self {
        let options = options.unwrap_or_default();
        let last = options.include_usage == Some(true);
        ChunkUsage { last, each: last && options.continuous_usage_stats == Some(true) }
    }
}

impl ChunkUsage {
    /// The field `usage` of a chunk that is not the last: absent, null or what there is.
    pub fn of(self, usage: Usage) -> Option<Option<Usage>> {
        self.last.then(|| self.each.then_some(usage))
    }
}

/// A log-probability as JSON can say it: it has no infinity.
pub fn logprob(logprob: f32) -> f32 {
    if logprob.is_nan() { -9999.0 } else { logprob.max(-9999.0) }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Another number each time.
pub fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// An id that no other object has.
pub fn id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}
