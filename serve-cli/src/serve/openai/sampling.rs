//! How an answer is generated: fields that chat and completions share.
use super::structured::StructuredOutputs;
use super::types::{StreamOptions, random};
use crate::serve::error::ApiError;
use crate::serve::state::Served;
use engine::SamplingParams;
use engine::scheduler::{BeamParams, EarlyStopping};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Most strings in `stop`, as at OpenAI.
const MAX_STOPS: usize = 4;

/// How an answer is generated. Where a request is silent, what the model's makers recommend holds, else OpenAI's defaults.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct SamplingFields {
    /// The model; by default the first that is served.
    pub model: Option<String>,
    /// Whether chunks come as the answers grow.
    pub stream: Option<bool>,
    /// What the stream tells beside.
    pub stream_options: Option<StreamOptions>,
    /// Answers to each prompt.
    #[schema(minimum = 1)]
    pub n: Option<usize>,
    /// Divides the logits; 0 is greedy.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Only the most likely tokens that together have this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Only so many most likely tokens; 0 and -1 are off.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// Only tokens at least this fraction as likely as the most likely one.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// The same seed gives the same answer.
    pub seed: Option<i64>,
    /// Subtracted from logits of tokens in the answer.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time that a token is in the answer.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Added to tokens' logits, by token; -100 bans a token.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// A string, or up to 4, that end an answer and are not part of it.
    #[schema(value_type = Option<Stop>)]
    pub stop: Option<Value>,
    /// Tokens that end an answer, beside the model's own.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Go on after the model's end-of-sequence tokens.
    pub ignore_eos: Option<bool>,
    /// Fewest tokens of an answer: before these nothing but `max_tokens` ends it.
    pub min_tokens: Option<u64>,
    /// Whether special tokens are left out of the text (default).
    pub skip_special_tokens: Option<bool>,
    /// Lower is served sooner.
    pub priority: Option<i32>,
    /// Computed prefixes are shared only among requests with equal salts.
    pub cache_salt: Option<String>,
    /// Beam search with `best_of` or `n` beams, at least 2.
    pub use_beam_search: Option<bool>,
    /// Beam search: scores are divided by lengths to this power.
    pub length_penalty: Option<f32>,
    /// Beam search: whether to end with the first `n` answers.
    pub early_stopping: Option<bool>,
    /// What answers must be, in vLLM's way.
    pub structured_outputs: Option<StructuredOutputs>,
    /// For logs of others: ignored.
    #[allow(dead_code, reason = "known, and of no effect")]
    pub user: Option<String>,
}

/// The forms of `stop`, for the OpenAPI document.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "a schema only")]
pub enum Stop {
    /// One.
    One(String),
    /// Up to 4.
    Many(Vec<String>),
}

impl SamplingFields {
    /// How tokens are chosen, but for log-probabilities and grammars; `best_of` answers are generated if given.
    ///
    /// # Errors
    /// A field's value has no meaning.
    pub fn params(
        &self,
        served: &Served,
        max_tokens: Option<u64>,
        best_of: Option<usize>,
    ) -> Result<SamplingParams, ApiError> {
        let wrong = |field: &str, problem: &str| Err(ApiError::invalid(format!("{field} {problem}"), Some(field)));
        let makers = served.llm.text_model().generation_config();
        let n = self.n.unwrap_or(1);
        if n == 0 {
            return wrong("n", "is 0, it must be at least 1");
        }
        if best_of.is_some_and(|best_of| best_of < n) {
            return wrong("best_of", "is less than n");
        }
        let beams = self.use_beam_search == Some(true);
        let top_k = match self.top_k {
            Some(top_k) if top_k < -1 => return wrong("top_k", "must be -1, 0 or the number of tokens"),
            Some(top_k) => u32::try_from(top_k.max(0)).unwrap_or(u32::MAX),
            None if beams => 0,
            None => makers.top_k.unwrap_or(0),
        };
        let recommended = |value: Option<f32>, makers: Option<f32>, otherwise: f32| {
            value.or(makers.filter(|_| !beams)).unwrap_or(otherwise)
        };
        Ok(SamplingParams {
            max_tokens: max_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
            min_tokens: usize::try_from(self.min_tokens.unwrap_or(0)).unwrap_or(usize::MAX),
            stop: self.stops()?,
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos == Some(true),
            n: if beams { n } else { best_of.unwrap_or(n) },
            temperature: recommended(self.temperature, makers.temperature, if beams { 0.0 } else { 1.0 }),
            top_k,
            top_p: recommended(self.top_p, makers.top_p, 1.0),
            min_p: recommended(self.min_p, makers.min_p, 0.0),
            seed: self.seed.map_or_else(random, i64::cast_unsigned),
            repetition_penalty: recommended(self.repetition_penalty, makers.repetition_penalty, 1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.biases()?,
            beam: beams.then(|| BeamParams {
                width: best_of.unwrap_or(n).max(2),
                length_penalty: self.length_penalty.unwrap_or(1.0),
                early_stopping: if self.early_stopping == Some(true) {
                    EarlyStopping::Yes
                } else {
                    EarlyStopping::Heuristic
                },
            }),
            priority: self.priority.unwrap_or(0),
            cache_salt: self.cache_salt.as_deref().map(Into::into),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            ..SamplingParams::default()
        })
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let wrong = |problem: &str| Err(ApiError::invalid(format!("stop {problem}"), Some("stop")));
        let stops = match &self.stop {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(stops)) => {
                let stops = stops.iter().map(|stop| stop.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                match stops {
                    Some(stops) => stops,
                    None => return wrong("must be a string or an array of strings"),
                }
            }
            Some(_) => return wrong("must be a string or an array of strings"),
        };
        if stops.len() > MAX_STOPS {
            return wrong(&format!("has {} strings, at most {MAX_STOPS} are allowed", stops.len()));
        }
        // As at OpenAI, an empty string stops nothing.
        Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
    }

    fn biases(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let one = |(token, bias): (&String, &f32)| {
            let wrong = |problem: String| ApiError::invalid(problem, Some("logit_bias"));
            if !(-100.0..=100.0).contains(bias) {
                return Err(wrong(format!("logit_bias of token {token} is {bias}, it must be between -100 and 100")));
            }
            let problem = || wrong(format!("logit_bias has the key {token:?}, keys must be token ids"));
            Ok((token.parse::<u32>().map_err(|_| problem())?, *bias))
        };
        self.logit_bias.iter().flatten().map(one).collect()
    }
}
