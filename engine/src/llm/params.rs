//! What a caller may ask of a generation.
use crate::error::{Error, Result};
use crate::grammar::{CompiledGrammar, Grammar};
use crate::sampling;
use crate::scheduler::{BeamParams, SequenceRequest, Speculation};
use std::sync::Arc;

/// How an answer is generated; names and meanings are those of vLLM and Hugging Face. The default is one greedy answer that
/// ends by itself or with the context.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Most tokens of an answer; `None`: as many as fit.
    pub max_tokens: Option<usize>,
    /// Fewest tokens of an answer: before these nothing but `max_tokens` ends it. Not with beam search.
    pub min_tokens: usize,
    /// Strings that end an answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end an answer, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Go on after the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Answers to each prompt; with `beam` the best so many.
    pub n: usize,
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 is off.
    pub top_k: u32,
    /// Only the most likely tokens that together have this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0 is off.
    pub min_p: f32,
    /// The same seed gives the same tokens, whatever else is in the batch. Answer `i` of `n` has the seed `seed + i`.
    pub seed: u64,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens in the answer; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token is in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// Added to these tokens' logits: (token, bias); negative infinity bans a token. A token once.
    pub logit_bias: Vec<(u32, f32)>,
    /// Log-probabilities of the chosen token and of so many most likely tokens; `None`: none. Beam search has none.
    pub logprobs: Option<u32>,
    /// What an answer must be; it ends where the grammar lets it. Not with beam search.
    pub grammar: Option<Grammar>,
    /// Leave special tokens out of the text (default). Their text is wanted where it means something, as tool calls' markers.
    pub skip_special_tokens: bool,
    /// Beam search instead of sampling.
    pub beam: Option<BeamParams>,
    /// Where draft tokens come from: as the engine was told, unless something else is said.
    pub speculation: Speculation,
    /// Lower is served sooner; equal ones by arrival.
    pub priority: i32,
    /// Computed prefixes are shared only among requests with equal salts.
    pub cache_salt: Option<Arc<str>>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        let greedy = sampling::SamplingParams::default();
        SamplingParams {
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            n: 1,
            temperature: greedy.temperature,
            top_k: greedy.top_k,
            top_p: greedy.top_p,
            min_p: greedy.min_p,
            seed: greedy.seed,
            repetition_penalty: greedy.repetition_penalty,
            presence_penalty: greedy.presence_penalty,
            frequency_penalty: greedy.frequency_penalty,
            logit_bias: greedy.logit_bias,
            logprobs: greedy.logprobs,
            grammar: None,
            skip_special_tokens: true,
            beam: None,
            speculation: Speculation::Auto,
            priority: 0,
            cache_salt: None,
        }
    }
}

impl SamplingParams {
    /// Refuses values that mean nothing for any model.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn validate(&self) -> Result<()> {
        if self.max_tokens == Some(0) {
            return Err(Error::Request { problem: "max_tokens is 0, it must be at least 1".into() });
        }
        if let Some(most) = self.max_tokens.filter(|most| *most < self.min_tokens) {
            let problem = format!("min_tokens is {}, it must be at most max_tokens, {most}", self.min_tokens);
            return Err(Error::Request { problem });
        }
        if self.beam.is_some() && self.logprobs.is_some() {
            return Err(Error::Request { problem: "beam search has no logprobs; leave one of them out".into() });
        }
        if self.beam.is_some() && self.grammar.is_some() {
            return Err(Error::Request {
                problem: "beam search takes no grammar; leave one of them out, or sample with n".into(),
            });
        }
        self.tokens().validate()
    }

    /// How one token is chosen, the grammar and what `min_tokens` bans aside.
    pub fn tokens(&self) -> sampling::SamplingParams {
        sampling::SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            min_tokens: self.min_tokens,
            early_bans: Vec::new(),
            logprobs: self.logprobs,
            grammar: None,
        }
    }

    /// What the engine is asked for a prompt; `eos` are the model's end-of-sequence tokens, `grammar` is what
    /// [`SamplingParams::grammar`] compiled to.
    pub(crate) fn request(
        &self,
        prompt: Vec<u32>,
        eos: &[u32],
        grammar: Option<CompiledGrammar>,
    ) -> Result<SequenceRequest> {
        self.validate()?;
        // A grammar that has ended allows nothing but these.
        let eos = if self.ignore_eos && grammar.is_none() { &[] } else { eos };
        let stop_tokens: Vec<u32> = eos.iter().chain(&self.stop_token_ids).copied().collect();
        let mut early_bans = if self.min_tokens > 0 { stop_tokens.clone() } else { Vec::new() };
        early_bans.sort_unstable();
        early_bans.dedup();
        Ok(SequenceRequest {
            prompt,
            max_tokens: self.max_tokens.unwrap_or(usize::MAX),
            stop_tokens,
            sampling: sampling::SamplingParams {
                early_bans,
                grammar: grammar.map(|grammar| grammar.ignoring_eos(self.ignore_eos)),
                ..self.tokens()
            },
            n: self.n,
            beam: self.beam,
            speculation: self.speculation,
            priority: self.priority,
            salt: self.cache_salt.clone(),
            reuse_prefix: true,
            pooling: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_reaches_the_engine() {
        let params = SamplingParams {
            max_tokens: Some(7),
            stop_token_ids: vec![5],
            n: 3,
            temperature: 0.5,
            logit_bias: vec![(1, 2.0)],
            priority: -1,
            cache_salt: Some("a".into()),
            ..SamplingParams::default()
        };
        let request = params.request(vec![9], &[1, 2], None).unwrap();
        assert_eq!((request.max_tokens, request.n, request.priority), (7, 3, -1));
        assert_eq!(request.stop_tokens, [1, 2, 5]);
        assert_eq!((request.sampling.temperature, request.sampling.logit_bias), (0.5, vec![(1, 2.0)]));
        assert_eq!(request.salt.as_deref(), Some("a"));
        let on = SamplingParams { ignore_eos: true, ..params }.request(vec![9], &[1, 2], None).unwrap();
        assert_eq!(on.stop_tokens, [5]);
    }

    #[test]
    fn senseless_values_are_refused() {
        let good = SamplingParams::default();
        assert!(good.validate().is_ok());
        let beam = BeamParams { width: 2, length_penalty: 1.0, early_stopping: Default::default() };
        for bad in [
            SamplingParams { max_tokens: Some(0), ..good.clone() },
            SamplingParams { temperature: -1.0, ..good.clone() },
            SamplingParams { beam: Some(beam), logprobs: Some(1), ..good.clone() },
            SamplingParams { beam: Some(beam), grammar: Some(Grammar::JsonObject), ..good.clone() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
