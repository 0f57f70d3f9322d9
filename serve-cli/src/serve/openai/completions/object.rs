//! What `/v1/completions` answers.
use crate::serve::openai::types::{Usage, logprob};
use engine::detokenize::Detokenizer;
use engine::llm::TextModel;
use engine::scheduler::TokenLogprobs;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Answers to prompts, or a chunk of them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Completion {
    /// `cmpl-…`.
    pub id: String,
    /// Always `text_completion`.
    #[schema(example = "text_completion")]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The answers: those of the first prompt come first.
    pub choices: Vec<Choice>,
    /// Tokens; in a stream as `stream_options` wants them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// An answer, or what is added to it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Choice {
    /// Which one.
    pub index: usize,
    /// The text.
    pub text: String,
    /// If asked for.
    #[schema(required)]
    pub logprobs: Option<Logprobs>,
    /// `stop` or `length`.
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
    /// With `return_token_ids`; in a stream in the answer's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// With `return_token_ids`: the tokens of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// Log-probabilities of tokens.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Logprobs {
    /// Where tokens begin, in characters of the answer.
    pub text_offset: Vec<usize>,
    /// Of the tokens.
    pub token_logprobs: Vec<f32>,
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// At each place those of the most likely tokens, by their texts.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
}

impl Logprobs {
    /// Appends others.
    pub fn extend(&mut self, more: &Logprobs) {
        self.text_offset.extend_from_slice(&more.text_offset);
        self.token_logprobs.extend_from_slice(&more.token_logprobs);
        self.tokens.extend_from_slice(&more.tokens);
        self.top_logprobs.extend_from_slice(&more.top_logprobs);
    }
}

/// Makes [`Logprobs`] of an answer's tokens.
pub struct LogprobsBuilder {
    detokenizer: Detokenizer,
    offset: usize,
}

impl LogprobsBuilder {
    /// For an answer.
    ///
    /// # Errors
    /// The tokenizer has a decoder that is not known.
    pub fn new(text: &TextModel) -> engine::Result<Self> {
        Ok(LogprobsBuilder { detokenizer: Detokenizer::new(text.tokenizer(), false)?, offset: 0 })
    }

    /// The next token's.
    pub fn token(&mut self, token: u32, found: &TokenLogprobs) -> Logprobs {
        let text = |token: u32| String::from_utf8_lossy(&self.detokenizer.token_bytes(token)).into_owned();
        let chosen = text(token);
        // Tokens that are parts of characters look the same: the likeliest of them is told.
        let mut top = BTreeMap::new();
        for (token, found) in &found.top {
            top.entry(text(*token)).or_insert(logprob(*found));
        }
        top.entry(chosen.clone()).or_insert(logprob(found.logprob));
        let offset = self.offset;
        self.offset += chosen.chars().count();
        Logprobs {
            text_offset: vec![offset],
            token_logprobs: vec![logprob(found.logprob)],
            tokens: vec![chosen],
            top_logprobs: vec![top],
        }
    }
}
