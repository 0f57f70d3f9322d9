//! `generation_config.json`: how the model's authors sample from it, and what ends an answer.

use std::path::Path;

use crate::config::{Fields, ModelConfig};
use crate::error::{Error, Result, read_file};
use crate::tokenizer::Tokenizer;

/// Sampling defaults of a model. `None` where its authors say nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Sample rather than take the most probable token; false where unsaid, as in transformers.
    pub do_sample: bool,
    /// Divisor of the logits, above 0. A file's 0 reads as `do_sample = false`.
    pub temperature: Option<f32>,
    /// Smallest set of tokens whose probabilities sum to this, in (0, 1].
    pub top_p: Option<f32>,
    /// This many most probable tokens. A file's 0 means no limit.
    pub top_k: Option<u32>,
    /// Tokens at least this share of the most probable one's probability, in [0, 1].
    pub min_p: Option<f32>,
    /// Divisor of positive logits of tokens that occurred before; above 0, 1 is none.
    pub repetition_penalty: Option<f32>,
    /// Tokens that end an answer, sorted; see [`GenerationConfig::add_eos`].
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads `DIR/generation_config.json`; without the file, the defaults.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        match read_file(&path, "") {
            Ok(bytes) => Self::from_slice(&path.display().to_string(), &bytes),
            Err(Error::MissingFile { .. }) => Ok(Self::default()),
            Err(e) => Err(e),
        }
    }

    /// Parses the bytes of a `generation_config.json`; `origin` names them in errors.
    pub fn from_slice(origin: &str, bytes: &[u8]) -> Result<Self> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { origin: origin.to_owned(), source })?;
        let f = Fields::new(origin, &value)?;
        let float = |field: &str, min: f64, max: f64| -> Result<Option<f32>> {
            Ok(f.float_in(field, min, max)?.map(|x| x as f32))
        };
        // Zero would divide by zero; files that say 0 mean greedy (temperature) or "off" (the others).
        let positive = |x: &f32| *x > 0.0;
        let temperature = float("temperature", 0.0, 1e4)?;
        Ok(GenerationConfig {
            do_sample: f.bool("do_sample")?.unwrap_or(false) && temperature != Some(0.0),
            temperature: temperature.filter(positive),
            top_p: float("top_p", 0.0, 1.0)?.filter(positive),
            top_k: f.int("top_k", 0, u32::MAX as usize)?.filter(|k| *k > 0).map(|k| k as u32),
            min_p: float("min_p", 0.0, 1.0)?,
            repetition_penalty: float("repetition_penalty", 0.0, 1e4)?.filter(positive),
            eos_token_ids: f.token_ids("eos_token_id")?,
        })
    }

    /// Adds the end tokens that `config.json` and the tokenizer's `eos_token` name. Chat models often name their
    /// end-of-turn token in one of the three places only.
    pub fn add_eos(&mut self, config: &ModelConfig, tokenizer: &Tokenizer, eos_token: Option<&str>) {
        self.eos_token_ids.extend(&config.eos_token_ids);
        self.eos_token_ids.extend(eos_token.and_then(|token| tokenizer.token_id(token)));
        self.eos_token_ids.sort_unstable();
        self.eos_token_ids.dedup();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::tests::byte_level;

    fn parse(json: &str) -> Result<GenerationConfig> {
        GenerationConfig::from_slice("generation_config.json", json.as_bytes())
    }

    #[test]
    fn llama_31() {
        let g = parse(
            r#"{"bos_token_id": 128000, "do_sample": true, "eos_token_id": [128001, 128008, 128009],
            "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.42.3"}"#,
        )
        .unwrap();
        assert!(g.do_sample);
        assert_eq!((g.temperature, g.top_p, g.top_k), (Some(0.6), Some(0.9), None));
        assert_eq!(g.eos_token_ids, [128001, 128008, 128009]);
    }

    #[test]
    fn zero_means_greedy_or_off() {
        let g = parse(r#"{"do_sample": true, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "eos_token_id": null}"#)
            .unwrap();
        assert_eq!((g.do_sample, g.temperature, g.top_k, g.top_p), (false, None, None, Some(1.0)));
    }

    #[test]
    fn eos_is_merged_from_everywhere() {
        let config = ModelConfig::from_slice(
            "config.json",
            br#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":64,"num_attention_heads":1,
            "num_hidden_layers":1,"vocab_size":300,"eos_token_id":[9, 7]}"#,
        )
        .unwrap();
        let tokenizer = byte_level();
        let mut g = parse(r#"{"eos_token_id": 7}"#).unwrap();
        g.add_eos(&config, &tokenizer, Some("<|eot|>"));
        assert_eq!(g.eos_token_ids, [7, 9, tokenizer.token_id("<|eot|>").unwrap()]);
        g.add_eos(&config, &tokenizer, None);
        assert_eq!(g.eos_token_ids.len(), 3);
    }

    #[test]
    fn refusals() {
        for (json, part) in [
            (r#"{"temperature": -1}"#, "temperature: must be from 0 to 10000, is -1"),
            (r#"{"top_p": 1.5}"#, "top_p: must be from 0 to 1"),
            (r#"{"top_k": "x"}"#, "top_k: must be a whole number, is a string"),
            (r#"{"eos_token_id": "x"}"#, "eos_token_id: must be a token id"),
            ("[]", "must be a JSON object, is a list"),
            ("{", "is not valid JSON"),
        ] {
            let text = parse(json).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(GenerationConfig::from_dir(dir.path()).unwrap(), GenerationConfig::default());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = GenerationConfig::from_slice("g", &bytes);
        }
    }
}
