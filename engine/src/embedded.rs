//! The models inside the binary: `tiny-chat`, and `tiny-draft` for speculative decoding with it.
//!
//! `build.rs` compresses their files; each is decompressed on first use and kept.

use std::sync::OnceLock;

use crate::chat_template::ChatTemplate;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::generation_config::GenerationConfig;
use crate::tokenizer::Tokenizer;

macro_rules! embedded_file {
    ($model:literal, $name:literal) => {
        EmbeddedFile {
            name: $name,
            compressed: include_bytes!(concat!(env!("OUT_DIR"), "/", $model, ".", $name, ".zst")),
            bytes: OnceLock::new(),
        }
    };
}

macro_rules! embedded_model {
    ($model:literal) => {
        EmbeddedModel {
            name: $model,
            files: [
                embedded_file!($model, "config.json"),
                embedded_file!($model, "model.safetensors"),
                embedded_file!($model, "tokenizer.json"),
                embedded_file!($model, "tokenizer_config.json"),
                embedded_file!($model, "generation_config.json"),
                embedded_file!($model, "chat_template.jinja"),
            ],
        }
    };
}

/// The chat model that answers when no MODEL is given.
pub static TINY_CHAT: EmbeddedModel = embedded_model!("tiny-chat");
/// A smaller model with the same tokenizer.
pub static TINY_DRAFT: EmbeddedModel = embedded_model!("tiny-draft");

/// A model directory inside the binary.
#[derive(Debug)]
pub struct EmbeddedModel {
    name: &'static str,
    files: [EmbeddedFile; 6],
}

#[derive(Debug)]
struct EmbeddedFile {
    name: &'static str,
    compressed: &'static [u8],
    bytes: OnceLock<Result<Vec<u8>, String>>,
}

impl EmbeddedModel {
    /// `tiny-chat` or `tiny-draft`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A file of the model directory, decompressed on first use. `chat_template.jinja` is empty where there is none.
    pub fn file(&'static self, name: &str) -> Result<&'static [u8]> {
        let error = |problem: String| Error::Embedded { model: self.name.to_owned(), problem };
        let file = self.files.iter().find(|f| f.name == name);
        let file = file.ok_or_else(|| error(format!("it has no file {name}")))?;
        let unpack = || zstd::decode_all(file.compressed).map_err(|e| format!("{name}: {e}"));
        match file.bytes.get_or_init(unpack) {
            Ok(bytes) => Ok(bytes),
            Err(problem) => Err(error(problem.clone())),
        }
    }

    fn origin(&self, file: &str) -> String {
        format!("embedded {}/{file}", self.name)
    }

    /// The checked `config.json`.
    pub fn config(&'static self) -> Result<ModelConfig> {
        ModelConfig::from_slice(&self.origin("config.json"), self.file("config.json")?)
    }

    /// The weights.
    pub fn checkpoint(&'static self) -> Result<Checkpoint> {
        Checkpoint::from_memory(&self.origin("model.safetensors"), self.file("model.safetensors")?)
    }

    /// The tokenizer.
    pub fn tokenizer(&'static self) -> Result<Tokenizer> {
        Tokenizer::from_slice(&self.origin("tokenizer.json"), self.file("tokenizer.json")?)
    }

    /// The chat template.
    pub fn chat_template(&'static self) -> Result<ChatTemplate> {
        let jinja = String::from_utf8_lossy(self.file("chat_template.jinja")?);
        let jinja = Some(jinja.as_ref()).filter(|source| !source.is_empty());
        let origin = format!("embedded {}", self.name);
        ChatTemplate::from_memory(&origin, self.file("tokenizer_config.json")?, jinja)
    }

    /// `generation_config.json` as it stands, without the end tokens of config and tokenizer.
    pub fn generation_config(&'static self) -> Result<GenerationConfig> {
        let file = "generation_config.json";
        GenerationConfig::from_slice(&self.origin(file), self.file(file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_template::{ChatInput, message};
    use crate::weights::tensors;

    #[test]
    fn embedded_models_are_whole() {
        for model in [&TINY_CHAT, &TINY_DRAFT] {
            let config = model.config().unwrap();
            let checkpoint = model.checkpoint().unwrap();
            for t in tensors(&config) {
                checkpoint.expect(&t.name, &t.shape).unwrap();
            }
            let tokenizer = model.tokenizer().unwrap();
            tokenizer.check_vocab(config.vocab_size).unwrap();
            let mut generation = model.generation_config().unwrap();
            let template = model.chat_template().unwrap();
            generation.add_eos(&config, &tokenizer, template.special_token("eos_token"));
            assert!(!generation.eos_token_ids.is_empty());
            let prompt = template.render(&ChatInput {
                messages: vec![message("user", "What is 12 plus 7?")],
                add_generation_prompt: true,
                ..ChatInput::default()
            });
            let ids = tokenizer.encode(&prompt.unwrap(), true).unwrap();
            assert!(tokenizer.decode(&ids, true).contains("What is 12 plus 7?"));
        }
        assert!(TINY_CHAT.file("x").unwrap_err().to_string().contains("it has no file x"));
    }

    #[test]
    fn the_draft_shares_the_tokenizer() {
        let file = "tokenizer.json";
        assert_eq!(TINY_CHAT.file(file).unwrap(), TINY_DRAFT.file(file).unwrap());
    }
}
