//! The engine proper: a scheduler and a runner, one step after another. Knows tokens, not text.
use crate::config::{Dtype, ModelConfig};
use crate::error::{Error, Result};
use crate::kv::PAGE_TOKENS;
use crate::model::{LoadProgress, Model, WeightSource};
use crate::runner::{MemoryBudget, Runner};
use crate::scheduler::{Limits, Progress, Scheduler, SequenceId, SequenceRequest};
use kernels_host::{DType, Device};

/// Bounds and memory of an engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineConfig {
    /// Longest sequence; `None`: the model's `max_position_embeddings`, or as much as fits.
    pub max_model_len: Option<usize>,
    /// Most sequences that run at once.
    pub max_num_seqs: usize,
    /// Most tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Tokens that the KV cache holds; `None`: what GPU memory allows, on the CPU 4 sequences of full length.
    pub kv_cache_tokens: Option<usize>,
    /// Share of GPU memory that weights, activations and cache may take.
    pub gpu_memory_utilization: f32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_model_len: None,
            max_num_seqs: 64,
            max_num_batched_tokens: 2048,
            kv_cache_tokens: None,
            gpu_memory_utilization: 0.9,
        }
    }
}

/// A loaded model with its queue.
pub struct Engine {
    scheduler: Scheduler,
    runner: Runner,
}

impl Engine {
    /// Loads weights and reserves all memory.
    pub fn load(
        device: &Device,
        model: &ModelConfig,
        source: WeightSource<'_>,
        config: &EngineConfig,
        progress: &LoadProgress<'_>,
    ) -> Result<Self> {
        let dtype = compute_dtype(model);
        let mut limits = Limits {
            max_tokens: config.max_num_batched_tokens.max(config.max_num_seqs).max(1),
            max_sequences: config.max_num_seqs.max(1),
            max_model_len: config
                .max_model_len
                .unwrap_or(model.max_position_embeddings)
                .min(model.max_position_embeddings)
                .max(2),
        };
        let pages = plan_pages(device, model, dtype, config, &mut limits)?;
        let stream = device.stream()?;
        let model = Model::load(&stream, model, source, progress)?;
        let runner = Runner::new(stream, model, &limits, pages)?;
        Ok(Engine { scheduler: Scheduler::new(limits, pages), runner })
    }

    /// What runs the steps.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// Bounds of a step and of a sequence.
    pub fn limits(&self) -> Limits {
        self.scheduler.limits()
    }

    /// Longest sequence, prompt and answer together.
    pub fn max_len(&self) -> usize {
        self.scheduler.max_len()
    }

    /// Tokens that the KV cache holds.
    pub fn kv_tokens(&self) -> usize {
        self.scheduler.pages() * PAGE_TOKENS
    }

    /// Queues a sequence.
    pub fn add(&mut self, request: SequenceRequest) -> Result<SequenceId> {
        request.sampling.validate()?;
        let (len, max) = (request.prompt.len(), self.max_len());
        if request.prompt.is_empty() {
            return Err(Error::Request { problem: "the prompt is empty".into() });
        }
        if len >= max {
            return Err(Error::PromptTooLong { tokens: len, max });
        }
        let vocab = self.runner.model().config().vocab_size;
        if let Some(token) = request.prompt.iter().find(|token| **token as usize >= vocab) {
            return Err(Error::Request {
                problem: format!("the prompt holds token {token}, the vocabulary has {vocab}"),
            });
        }
        Ok(self.scheduler.add(request))
    }

    /// Drops a sequence.
    pub fn cancel(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
    }

    /// Whether [`Engine::step`] would do anything.
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// Runs one step.
    pub fn step(&mut self) -> Result<Vec<Progress>> {
        let plan = self.scheduler.plan();
        if plan.is_empty() {
            return Ok(Vec::new());
        }
        let sampled = self.runner.step(&plan)?;
        Ok(self.scheduler.commit(plan, &sampled))
    }

    /// Logits of every token of `tokens`, [tokens, vocab_size], by a prefill in steps as [`Engine::step`] makes them.
    /// Nothing else may be queued.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let request = SequenceRequest {
            prompt: tokens.to_vec(),
            max_tokens: 1,
            stop_tokens: Vec::new(),
            sampling: Default::default(),
        };
        let id = self.add(request)?;
        let vocab = self.runner.model().config().vocab_size;
        let mut all = vec![0.0; tokens.len() * vocab];
        while self.has_work() {
            let plan = self.scheduler.plan();
            let first = plan.positions.first().copied().unwrap_or(0) as usize;
            self.runner.logits(&plan, |row, logits| all[(first + row) * vocab..][..vocab].copy_from_slice(logits))?;
            let sampled = vec![0; plan.sample_rows.len()];
            let _ = self.scheduler.commit(plan, &sampled);
        }
        self.cancel(id);
        Ok(all)
    }
}

/// The 16-bit type that a model is computed in: f32 checkpoints are rounded to bf16.
pub fn compute_dtype(model: &ModelConfig) -> DType {
    match model.dtype {
        Dtype::F16 => DType::F16,
        Dtype::Bf16 | Dtype::F32 => DType::Bf16,
    }
}

/// Pages of the KV cache; shortens `max_model_len` where it was not asked for and does not fit.
fn plan_pages(
    device: &Device,
    model: &ModelConfig,
    dtype: DType,
    config: &EngineConfig,
    limits: &mut Limits,
) -> Result<usize> {
    let needed = |tokens: usize| tokens.div_ceil(PAGE_TOKENS);
    let budget = MemoryBudget::of(model, dtype, limits);
    if let Some(tokens) = config.kv_cache_tokens {
        return Ok(needed(tokens).max(1));
    }
    let Some((free, total)) = device.memory()? else {
        // On the CPU memory is committed when it is touched, so this costs nothing until it is used.
        return Ok(needed(limits.max_model_len.min(32 * 1024)) * limits.max_sequences.min(4));
    };
    let share = (total as f64 * f64::from(config.gpu_memory_utilization)) as usize;
    let usable = share.min(free);
    let fixed = budget.weights + budget.activations;
    let pages = usable.saturating_sub(fixed) / budget.page;
    let wanted = if config.max_model_len.is_some() { needed(limits.max_model_len) } else { 1 };
    if pages < wanted {
        return Err(Error::GpuMemory {
            weights: budget.weights,
            activations: budget.activations,
            cache: wanted * budget.page,
            usable,
            total,
        });
    }
    if config.max_model_len.is_none() {
        limits.max_model_len = limits.max_model_len.min(pages * PAGE_TOKENS);
    }
    // More than every sequence at full length is of no use.
    Ok(pages.min(needed(limits.max_model_len) * limits.max_sequences))
}
