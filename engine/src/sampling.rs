//! How a token is chosen.
use crate::error::{Error, Result};
use crate::grammar::CompiledGrammar;

/// Sampling parameters of one request; the meaning is that of vLLM and Hugging Face.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 is off.
    pub top_k: u32,
    /// Only the most likely tokens that together have this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0 is off.
    pub min_p: f32,
    /// The same seed gives the same tokens, whatever else is in the batch.
    pub seed: u64,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens in the answer; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token is in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// Added to these tokens' logits: (token, bias); negative infinity bans a token. A token once.
    pub logit_bias: Vec<(u32, f32)>,
    /// An answer's first tokens, so many, are none of `early_bans`.
    pub min_tokens: usize,
    /// Tokens that would end an answer. A token once.
    pub early_bans: Vec<u32>,
    /// Log-probabilities of the chosen token and of so many most likely tokens, from the raw logits; `None`: none.
    pub logprobs: Option<u32>,
    /// Only tokens with which the answer can still become what the grammar describes.
    pub grammar: Option<CompiledGrammar>,
}

/// Most tokens with log-probabilities that a request may ask for.
pub const MAX_LOGPROBS: u32 = 20;

impl Default for SamplingParams {
    /// Greedy.
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            early_bans: Vec::new(),
            logprobs: None,
            grammar: None,
        }
    }
}

impl SamplingParams {
    /// Refuses values that mean nothing.
    pub fn validate(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::Request { problem });
        if !(0.0..=100.0).contains(&self.temperature) {
            return fail(format!("temperature is {}, it must be between 0 and 100", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail(format!("top_p is {}, it must be above 0 and at most 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return fail(format!("min_p is {}, it must be between 0 and 1", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return fail(format!("repetition_penalty is {}, it must be above 0", self.repetition_penalty));
        }
        for (name, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !(-2.0..=2.0).contains(&penalty) {
                return fail(format!("{name} is {penalty}, it must be between -2 and 2"));
            }
        }
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            return fail(format!("logit_bias of token {token} is {bias}, it must be finite, or -inf to ban the token"));
        }
        let mut biased: Vec<u32> = self.logit_bias.iter().map(|(token, _)| *token).collect();
        biased.sort_unstable();
        if let Some(twice) = biased.windows(2).find(|pair| pair[0] == pair[1]) {
            return fail(format!("logit_bias names token {} twice, it may be there once", twice[0]));
        }
        if let Some(asked) = self.logprobs.filter(|asked| *asked > MAX_LOGPROBS) {
            return fail(format!("logprobs is {asked}, it must be at most {MAX_LOGPROBS}"));
        }
        Ok(())
    }

    /// Whether a choice depends on which tokens came before.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_values_are_refused() {
        let good = SamplingParams::default();
        assert!(good.validate().is_ok());
        for bad in [
            SamplingParams { temperature: -0.1, ..good.clone() },
            SamplingParams { temperature: f32::NAN, ..good.clone() },
            SamplingParams { top_p: 0.0, ..good.clone() },
            SamplingParams { top_p: f32::NAN, ..good.clone() },
            SamplingParams { min_p: 1.5, ..good.clone() },
            SamplingParams { repetition_penalty: 0.0, ..good.clone() },
            SamplingParams { presence_penalty: 2.5, ..good.clone() },
            SamplingParams { frequency_penalty: f32::NAN, ..good.clone() },
            SamplingParams { logit_bias: vec![(3, f32::INFINITY)], ..good.clone() },
            SamplingParams { logit_bias: vec![(3, 1.0), (4, 0.0), (3, 2.0)], ..good.clone() },
            SamplingParams { logprobs: Some(21), ..good.clone() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
