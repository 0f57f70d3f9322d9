//! The draft model of speculative decoding: where it comes from, and whether it fits its target.
use crate::config::ModelConfig;
use crate::engine::EngineConfig;
use crate::error::{Error, Result};
use crate::model::{LoadProgress, Model, WeightSource};
use crate::source::ModelSource;
use crate::tokenizer::Tokenizer;
use kernels_host::Stream;

/// Where a draft model comes from.
#[derive(Clone, Debug)]
pub enum DraftModel {
    /// A model of the same family as the target: their tokens must mean the same.
    Model(ModelSource),
    /// Random weights, for benchmarks.
    Dummy {
        /// Their shapes.
        config: Box<ModelConfig>,
        /// The same seed gives the same weights.
        seed: u64,
    },
}

impl DraftModel {
    /// Its shape.
    pub fn config(&self) -> Result<ModelConfig> {
        match self {
            DraftModel::Model(source) => source.config(),
            DraftModel::Dummy { config, .. } => Ok((**config).clone()),
        }
    }

    /// Refuses a draft model whose tokens are other texts than the target's. One without a tokenizer.json, and one of random
    /// weights, is not asked.
    pub fn check_tokenizer(&self, target: &Tokenizer) -> Result<()> {
        let DraftModel::Model(source) = self else { return Ok(()) };
        if source.dir().is_some_and(|dir| !dir.join("tokenizer.json").exists()) {
            return Ok(());
        }
        let own = source.tokenizer(&source.config()?)?;
        let differs = |id: &u32| own.token(*id) != target.token(*id);
        let Some(id) = (0..own.vocab_size().min(target.vocab_size()) as u32).find(differs) else { return Ok(()) };
        let text = |tokenizer: &Tokenizer| tokenizer.token(id).unwrap_or_default();
        let problem = format!(
            "its token {id} is {:?}, the model's is {:?}; give a draft model with the same tokenizer",
            text(&own),
            text(target)
        );
        Err(Error::DraftModel { problem })
    }

    pub(crate) fn load(&self, stream: &Stream, config: &ModelConfig, progress: &LoadProgress<'_>) -> Result<Model> {
        match self {
            DraftModel::Model(source) => {
                let checkpoint = source.checkpoint()?;
                Model::load(stream, config, WeightSource::Checkpoint(&checkpoint), progress)
            }
            DraftModel::Dummy { seed, .. } => {
                Model::load(stream, config, WeightSource::Dummy { seed: *seed }, progress)
            }
        }
    }
}

/// A draft model's vocabulary may lack some of the target's padding.
const VOCAB_PADDING: usize = 1024;

pub(crate) fn check_draft(model: &ModelConfig, draft: &ModelConfig, config: &EngineConfig) -> Result<()> {
    let fail = |problem: String| Err(Error::DraftModel { problem });
    let (target, own) = (model.vocab_size, draft.vocab_size);
    if own > target || target - own >= VOCAB_PADDING {
        return fail(format!(
            "its vocabulary has {own} tokens, the model's {target}; give a draft model of the same family"
        ));
    }
    if config.drafts() == 0 {
        return fail("no draft tokens are asked for; set EngineConfig::speculation (--num-draft-tokens)".into());
    }
    Ok(())
}
