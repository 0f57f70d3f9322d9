//! Where a model comes from: a directory, or the binary itself.

use std::path::{Path, PathBuf};

use crate::chat_template::ChatTemplate;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::embedded::EmbeddedModel;
use crate::error::{Error, Result, read_file};
use crate::generation_config::GenerationConfig;
use crate::tokenizer::Tokenizer;

/// A model's files.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A directory in Hugging Face's layout.
    Dir(PathBuf),
    /// Such a directory in the cache of a model hub, where directories have no readable names.
    Hub {
        /// The model's name on the hub.
        id: String,
        /// The snapshot.
        dir: PathBuf,
    },
    /// A `config.json` that may stand alone: enough for random weights
    /// ([`LlmBuilder::dummy_weights`](crate::llm::LlmBuilder::dummy_weights)).
    Config(PathBuf),
    /// A model inside the binary.
    Embedded(&'static EmbeddedModel),
}

impl Default for ModelSource {
    /// tiny-chat.
    fn default() -> Self {
        ModelSource::Embedded(&crate::embedded::TINY_CHAT)
    }
}

impl From<&str> for ModelSource {
    /// A directory; or an embedded model by its name (`./tiny-chat` is a directory).
    fn from(text: &str) -> Self {
        let embedded = [&crate::embedded::TINY_CHAT, &crate::embedded::TINY_DRAFT];
        let found = embedded.into_iter().find(|model| model.name() == text);
        found.map_or_else(|| ModelSource::Dir(text.into()), ModelSource::Embedded)
    }
}

impl From<String> for ModelSource {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&Path> for ModelSource {
    fn from(dir: &Path) -> Self {
        ModelSource::Dir(dir.to_owned())
    }
}

impl From<PathBuf> for ModelSource {
    fn from(dir: PathBuf) -> Self {
        ModelSource::Dir(dir)
    }
}

impl From<&'static EmbeddedModel> for ModelSource {
    fn from(model: &'static EmbeddedModel) -> Self {
        ModelSource::Embedded(model)
    }
}

impl From<&ModelSource> for ModelSource {
    fn from(source: &ModelSource) -> Self {
        source.clone()
    }
}

impl ModelSource {
    /// The directory's last part, the name on the hub, or the embedded model's.
    pub fn name(&self) -> String {
        match self {
            ModelSource::Dir(dir) => match dir.file_name() {
                Some(name) => name.to_string_lossy().into_owned(),
                None => dir.display().to_string(),
            },
            ModelSource::Hub { id, .. } => id.clone(),
            ModelSource::Config(path) => {
                let folder = path.canonicalize().ok().and_then(|path| Some(path.parent()?.file_name()?.to_owned()));
                folder.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
            }
            ModelSource::Embedded(model) => model.name().to_owned(),
        }
    }

    /// The directory, if it is one.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            ModelSource::Dir(dir) | ModelSource::Hub { dir, .. } => Some(dir),
            ModelSource::Config(_) | ModelSource::Embedded(_) => None,
        }
    }

    /// The checked `config.json`.
    pub fn config(&self) -> Result<ModelConfig> {
        match self {
            ModelSource::Dir(dir) | ModelSource::Hub { dir, .. } => ModelConfig::from_dir(dir),
            ModelSource::Config(path) => {
                let origin = path.display().to_string();
                ModelConfig::from_slice(&origin, &read_file(path, "MODEL must be a directory or a config.json")?)
            }
            ModelSource::Embedded(model) => model.config(),
        }
    }

    /// The weights.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        match self {
            ModelSource::Dir(dir) | ModelSource::Hub { dir, .. } => Checkpoint::open(dir),
            ModelSource::Config(path) => Checkpoint::open(beside(path)),
            ModelSource::Embedded(model) => model.checkpoint(),
        }
    }

    /// The tokenizer, checked against the model's vocabulary. A `config.json` without one beside it gets
    /// [`Tokenizer::stand_in`].
    pub fn tokenizer(&self, config: &ModelConfig) -> Result<Tokenizer> {
        let tokenizer = match self {
            ModelSource::Dir(dir) | ModelSource::Hub { dir, .. } => Tokenizer::from_dir(dir)?,
            ModelSource::Config(path) if !beside(path).join("tokenizer.json").exists() => {
                Tokenizer::stand_in(config.vocab_size)?
            }
            ModelSource::Config(path) => Tokenizer::from_dir(beside(path))?,
            ModelSource::Embedded(model) => model.tokenizer()?,
        };
        tokenizer.check_vocab(config.vocab_size)?;
        Ok(tokenizer)
    }

    /// The chat template; `None` for a base model, which has none.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let template = match self {
            ModelSource::Dir(dir) | ModelSource::Hub { dir, .. } => ChatTemplate::from_dir(dir),
            ModelSource::Config(path) => ChatTemplate::from_dir(beside(path)),
            ModelSource::Embedded(model) => model.chat_template(),
        };
        match template {
            Ok(template) => Ok(Some(template)),
            Err(Error::NoChatTemplate { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The sampling defaults, with every end token that config and tokenizer name.
    pub fn generation_config(
        &self,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<GenerationConfig> {
        let mut generation = match self {
            ModelSource::Dir(dir) | ModelSource::Hub { dir, .. } => GenerationConfig::from_dir(dir)?,
            ModelSource::Config(path) => GenerationConfig::from_dir(beside(path))?,
            ModelSource::Embedded(model) => model.generation_config()?,
        };
        let eos = template.and_then(|t| t.special_token("eos_token"));
        generation.add_eos(config, tokenizer, eos);
        Ok(generation)
    }
}

/// The folder of a file.
fn beside(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dummy::write_dummy;
    use crate::embedded::TINY_CHAT;

    #[test]
    fn directories_and_embedded_models_load_alike() {
        let dir = tempfile::tempdir().unwrap();
        let json = TINY_CHAT.file("config.json").unwrap();
        write_dummy(json, dir.path(), 1 << 20, 1).unwrap();
        let dir = dir.path().to_owned();
        let hub = ModelSource::Hub { id: "makers/name".into(), dir: dir.clone() };
        assert_eq!(hub.name(), "makers/name");
        for source in [ModelSource::Dir(dir), hub, ModelSource::Embedded(&TINY_CHAT)] {
            let config = source.config().unwrap();
            assert_eq!(config, TINY_CHAT.config().unwrap());
            let tokenizer = source.tokenizer(&config).unwrap();
            let template = source.chat_template().unwrap();
            assert!(template.is_some());
            let generation = source.generation_config(&config, &tokenizer, template.as_ref()).unwrap();
            assert!(!generation.eos_token_ids.is_empty());
            assert!(source.checkpoint().unwrap().contains("model.norm.weight"));
        }
    }

    #[test]
    fn a_config_alone_has_a_tokenizer_that_stands_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shapes.json");
        std::fs::write(&path, TINY_CHAT.file("config.json").unwrap()).unwrap();
        let source = ModelSource::Config(path);
        let config = source.config().unwrap();
        let tokenizer = source.tokenizer(&config).unwrap();
        assert_eq!(tokenizer.vocab_size(), config.vocab_size);
        assert_eq!(tokenizer.decode(&[3, 17], true), "t3 t17");
        assert_eq!(tokenizer.encode_prompt("t3 t17").unwrap(), [3, 17]);
        assert!(source.chat_template().unwrap().is_none());
        assert!(source.checkpoint().is_err());
    }
}
