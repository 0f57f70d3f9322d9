//! Device and bounds of a model, before it is loaded.
use super::{Llm, TextModel};
use crate::async_llm::AsyncLlm;
use crate::engine::{Engine, EngineConfig};
use crate::error::Result;
use crate::model::{LoadProgress, WeightSource};
use crate::source::ModelSource;
use kernels_host::Device;
use std::sync::Arc;

/// Made by [`Llm::builder`].
#[must_use = "nothing is loaded before `load`"]
pub struct LlmBuilder<'a> {
    source: ModelSource,
    device: Option<Device>,
    config: EngineConfig,
    progress: &'a LoadProgress<'a>,
    dummy: Option<u64>,
}

impl<'a> LlmBuilder<'a> {
    pub(super) fn new(source: ModelSource) -> Self {
        LlmBuilder { source, device: None, config: EngineConfig::default(), progress: &|_, _| (), dummy: None }
    }

    /// Where to run, instead of the first GPU or else the CPU.
    pub fn device(mut self, device: &Device) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// Bounds and memory.
    pub fn config(mut self, config: EngineConfig) -> Self {
        self.config = config;
        self
    }

    /// Hears how many bytes of how many are loaded.
    pub fn progress(mut self, progress: &'a LoadProgress<'a>) -> Self {
        self.progress = progress;
        self
    }

    /// Random weights from this seed instead of the checkpoint's, which need not be there.
    pub fn dummy_weights(mut self, seed: u64) -> Self {
        self.dummy = Some(seed);
        self
    }

    /// Loads the model, to be asked by this thread.
    ///
    /// # Errors
    /// The files cannot be used, the model does not fit, or the driver does not work.
    pub fn load(self) -> Result<Llm> {
        let LlmBuilder { source, device, config, progress, dummy } = self;
        let device = device.map_or_else(default_device, Ok)?;
        let model = source.config()?;
        let tokenizer = source.tokenizer(&model)?;
        config.draft.as_ref().map_or(Ok(()), |draft| draft.check_tokenizer(&tokenizer))?;
        let template = source.chat_template()?;
        let generation = source.generation_config(&model, &tokenizer, template.as_ref())?;
        let checkpoint;
        let weights = match dummy {
            Some(seed) => WeightSource::Dummy { seed },
            None => {
                checkpoint = source.checkpoint()?;
                WeightSource::Checkpoint(&checkpoint)
            }
        };
        let engine = Engine::load(&device, &model, weights, &config, progress)?;
        let text = Arc::new(TextModel::new(source.name(), tokenizer, template, generation));
        Ok(Llm { engine, text })
    }

    /// Loads the model, to be asked by any thread or task.
    ///
    /// # Errors
    /// As [`LlmBuilder::load`]; or there is no thread to be had.
    pub fn load_async(self) -> Result<AsyncLlm> {
        AsyncLlm::new(self.load()?)
    }
}

/// The first GPU, or the CPU where there is none. A driver that does not work is an error and no reason to be slow.
fn default_device() -> Result<Device> {
    use kernels_host::Error as E;
    match Device::cuda(0) {
        Ok(device) => Ok(device),
        Err(E::NoDriver | E::NoDevice { .. }) => Ok(Device::cpu()),
        Err(error) => Err(error.into()),
    }
}
