//! The engine proper: a scheduler and a runner. Step n + 1 is planned and queued while step n runs. Knows tokens, not
//! text.
use crate::config::{Dtype, ModelConfig};
pub use crate::draft::DraftModel;
use crate::draft::check_draft;
use crate::error::{Error, Result};
use crate::grammar::Matchers;
use crate::kv::{KvCache, PAGE_TOKENS};
use crate::model::{LoadProgress, Model, WeightSource};
use crate::runner::{InFlight, MAX_BIASES, MemoryBudget, Runner, RunnerConfig};
use crate::scheduler::{
    self, FinishReason, Limits, MAX_DRAFTS, Policy, Progress, RequestId, Sampled, Scheduler, SchedulerConfig,
    SchedulerMetrics, SequenceRequest, Speculation, StepOutput, StepPlan,
};
use crate::trace::{LoadTimes, StepTimes, Trace};
use kernels_host::{DType, Device};
use std::time::Instant;

/// Bounds and memory of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Longest sequence; `None`: the model's `max_position_embeddings`, or as much as fits.
    pub max_model_len: Option<usize>,
    /// Most sequences that run at once.
    pub max_num_seqs: usize,
    /// Most tokens in a step; `None`: [`GPU_STEP_TOKENS`] or [`CPU_STEP_TOKENS`].
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens that the KV cache holds; `None`: what GPU memory allows, on the CPU 4 sequences of full length.
    pub kv_cache_tokens: Option<usize>,
    /// Bytes of the KV cache, instead of a share of GPU memory. `kv_cache_tokens` goes before it.
    pub kv_cache_memory_bytes: Option<usize>,
    /// Share of GPU memory that weights, activations and cache may take.
    pub gpu_memory_utilization: f32,
    /// Keep computed blocks for prompts that start alike.
    pub prefix_cache: bool,
    /// With `prefix_cache`, where memory decides: a cache of all of it. False: no more than `max_num_seqs` full sequences take.
    pub fill_memory: bool,
    /// Bytes of host memory for blocks that the GPU has no room for; 0 is off.
    pub host_cache_bytes: usize,
    /// When waiting sequences start.
    pub policy: Policy,
    /// Most draft tokens that a request may have checked in a step, up to [`MAX_DRAFTS`]; 0: no speculation.
    pub max_drafts: usize,
    /// A smaller model that makes drafts for requests with [`Speculation::Draft`].
    pub draft: Option<DraftModel>,
    /// What requests get that leave it to the engine ([`Speculation::Auto`]). Its drafts count as `max_drafts`.
    pub speculation: Speculation,
    /// For benchmarks with random weights: accept each draft with this probability, whatever is sampled.
    pub synthetic_acceptance: Option<f32>,
    /// Launch every kernel by itself instead of CUDA graphs.
    pub eager: bool,
    /// A request's tokens do not depend on what else is in the batch, to the bit; slower ([`RunnerConfig::batch_invariant`]).
    pub batch_invariant: bool,
    /// Whether a step is planned and queued while the one before it runs; `None`: on a GPU.
    pub overlap: Option<bool>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_model_len: None,
            max_num_seqs: 64,
            max_num_batched_tokens: None,
            kv_cache_tokens: None,
            kv_cache_memory_bytes: None,
            gpu_memory_utilization: 0.9,
            prefix_cache: true,
            fill_memory: true,
            host_cache_bytes: 0,
            policy: Policy::GuaranteedNoEvict,
            max_drafts: 0,
            draft: None,
            speculation: Speculation::Off,
            synthetic_acceptance: None,
            eager: false,
            batch_invariant: false,
            overlap: None,
        }
    }
}

/// Tokens in a step on a GPU: enough to make the matrix products compute-bound several times over.
pub const GPU_STEP_TOKENS: usize = 2048;
/// Tokens in a step on the CPU: tiny-chat takes about 0.2 s for so many on two cores, and a step is what a caller
/// waits for who cancels.
pub const CPU_STEP_TOKENS: usize = 256;

impl EngineConfig {
    /// Whether the size of the KV cache follows from the memory that there is.
    fn chooses_cache(&self) -> bool {
        self.kv_cache_tokens.is_none() && self.kv_cache_memory_bytes.is_none()
    }

    /// Most draft tokens of a sequence in a step.
    pub fn drafts(&self) -> usize {
        self.max_drafts.max(self.speculation.drafts()).min(MAX_DRAFTS)
    }

    /// The bounds of steps and sequences that this means for a model on the CPU or on a GPU.
    pub fn limits(&self, on_cpu: bool, model: &ModelConfig) -> Limits {
        let step = if on_cpu { CPU_STEP_TOKENS } else { GPU_STEP_TOKENS };
        let max_sequences = self.max_num_seqs.max(1);
        Limits {
            max_tokens: self.max_num_batched_tokens.unwrap_or(step).max(max_sequences),
            max_sequences,
            max_model_len: self.max_model_len.unwrap_or(usize::MAX).min(model.max_position_embeddings).max(2),
        }
    }
}

/// Bounds of an engine that never change: which requests it takes.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Lengths, numbers and pages.
    pub scheduler: scheduler::Admission,
    /// Tokens that there are.
    pub vocab: usize,
    /// Numbers of an embedding.
    pub hidden_size: usize,
    /// Most draft tokens of a request in a step.
    pub drafts: usize,
    /// Whether there is a draft model: without one, drafts are looked up.
    pub draft_model: bool,
    /// What requests get that leave it to the engine.
    pub speculation: Speculation,
}

impl Admission {
    /// Refuses what can never run.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::PromptTooLong`].
    pub fn check(&self, request: &SequenceRequest) -> Result<()> {
        self.check_tokens(request)?;
        self.scheduler.check(request)
    }

    /// What a request's speculation means here.
    fn resolve(&self, speculation: Speculation) -> Speculation {
        if speculation == Speculation::Auto { self.speculation } else { speculation }
    }

    /// What the scheduler cannot know.
    fn check_tokens(&self, request: &SequenceRequest) -> Result<()> {
        let vocab = self.vocab;
        if let Some(token) = request.prompt.iter().find(|token| **token as usize >= vocab) {
            return Err(Error::Request {
                problem: format!("the prompt holds token {token}, the vocabulary has {vocab}"),
            });
        }
        let speculation = self.resolve(request.speculation);
        let (drafts, most) = (speculation.drafts(), self.drafts);
        if drafts > most {
            return Err(Error::Request {
                problem: format!("{drafts} draft tokens a step were asked for, the engine was made for at most {most}"),
            });
        }
        let fitting = match speculation {
            Speculation::Off | Speculation::Auto => true,
            Speculation::Draft { .. } => self.draft_model,
            Speculation::Ngram { .. } => !self.draft_model,
        };
        if !fitting {
            let has = if self.draft_model { "a" } else { "no" };
            return Err(Error::Request {
                problem: format!(
                    "the engine has {has} draft model: speculation is by the draft model where there is one, else by n-grams"
                ),
            });
        }
        let (biases, bans) = (request.sampling.logit_bias.len(), request.sampling.early_bans.len());
        if biases + bans > MAX_BIASES {
            let beside = if bans > 0 { format!(" beside min_tokens' {bans}") } else { String::new() };
            return Err(Error::Request {
                problem: format!("logit_bias names {biases} tokens{beside}, at most {MAX_BIASES} are allowed"),
            });
        }
        if let Some((token, _)) = request.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocab) {
            return Err(Error::Request {
                problem: format!("logit_bias names token {token}, the vocabulary has {vocab}"),
            });
        }
        Ok(())
    }
}

/// How a request began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// When its first step was planned; before that it waited in the queue.
    pub at: Instant,
    /// Tokens of its prompt that were in the prefix cache.
    pub cached_tokens: usize,
}

/// A loaded model with its queue.
pub struct Engine {
    scheduler: Scheduler,
    runner: Runner,
    /// The step that runs.
    running: Option<(StepPlan, InFlight)>,
    /// Requests that have begun since somebody asked, or since the step before.
    started: Vec<(RequestId, Started)>,
    matchers: Matchers,
    overlap: bool,
    /// Of requests that leave it to the engine.
    speculation: Speculation,
    trace: Option<Trace>,
    load: LoadTimes,
}

impl Engine {
    /// Loads weights and reserves all memory. `progress` hears of the model, then of the draft model.
    ///
    /// # Errors
    /// The models do not fit on the device or to each other ([`Error::DraftModel`]), or cannot be read.
    pub fn load(
        device: &Device,
        model: &ModelConfig,
        source: WeightSource<'_>,
        config: &EngineConfig,
        progress: &LoadProgress<'_>,
    ) -> Result<Self> {
        let draft_config = config.draft.as_ref().map(DraftModel::config).transpose()?;
        if let Some(draft) = &draft_config {
            check_draft(model, draft, config)?;
        }
        let mut limits = config.limits(device.is_cpu(), model);
        let memory = device.memory()?;
        // Too little memory is an error before the weights are read. Kernels and graphs are not counted yet.
        let shapes = Shapes { model, draft: draft_config.as_ref() };
        let mut wanted = plan_pages(memory, shapes, config, &mut limits)?;
        let fill = config.prefix_cache && config.fill_memory && config.chooses_cache();
        if fill && device.emulation().is_none() && memory.is_some() {
            // Blocks that nobody uses are kept for prompts that start alike: all the memory is of use.
            wanted = usize::MAX;
        }
        let start = Instant::now();
        let stream = device.stream()?;
        let model = Model::load(&stream, model, source, progress)?;
        let draft = match (&config.draft, &draft_config) {
            (Some(draft), Some(shape)) => Some(draft.load(&stream, shape, progress)?),
            _ => None,
        };
        let weights = start.elapsed();
        let page_of = |model: &Model| KvCache::page_bytes(model.config(), model.dtype());
        let page = page_of(&model) + draft.as_ref().map_or(0, page_of);
        let host_pages = if config.prefix_cache { config.host_cache_bytes / page } else { 0 };
        let runner_config = RunnerConfig {
            limits,
            host_pages,
            drafts: config.drafts(),
            synthetic_acceptance: config.synthetic_acceptance,
            eager: config.eager,
            batch_invariant: config.batch_invariant,
        };
        let mut pages = wanted;
        let runner = Runner::new(stream, model, draft, runner_config, |graphs| {
            pages = left_pages(memory, device.memory()?, config, graphs, page, wanted);
            Ok(pages)
        })?;
        let used = match (memory, device.memory()?) {
            (Some((before, _)), Some((now, _))) => Some(before.saturating_sub(now)),
            _ => None,
        };
        let overlap = config.overlap.unwrap_or(!device.is_cpu());
        let load = LoadTimes { weights, ready: start.elapsed() - weights, used };
        let scheduler =
            SchedulerConfig { limits, policy: config.policy, prefix_cache: config.prefix_cache, host_pages };
        Ok(Engine {
            scheduler: Scheduler::new(scheduler, pages),
            runner,
            running: None,
            started: Vec::new(),
            matchers: Matchers::default(),
            overlap,
            speculation: config.speculation,
            trace: None,
            load,
        })
    }

    /// How long loading took, and the memory that the driver says it took.
    pub fn load_times(&self) -> &LoadTimes {
        &self.load
    }

    /// What the scheduler counts.
    pub fn metrics(&self) -> SchedulerMetrics {
        self.scheduler.metrics()
    }

    /// Requests whose first step was planned during the last [`Engine::step`].
    pub fn take_started(&mut self) -> Vec<(RequestId, Started)> {
        std::mem::take(&mut self.started)
    }

    /// What sequences and pages do now.
    pub fn snapshot(&self) -> scheduler::Snapshot {
        self.scheduler.snapshot()
    }

    /// Runs the next step kernel by kernel and times each ([`StepTimes::kernels`], while steps are traced).
    ///
    /// # Panics
    /// On the CPU device.
    pub fn profile_next_step(&mut self) {
        self.runner.profile_next();
    }

    /// Notes times of every step from now on.
    pub fn start_trace(&mut self) {
        self.runner.set_timing(true);
        self.trace = Some(Trace::default());
    }

    /// The times since [`Engine::start_trace`]; `None` if it was not called.
    pub fn take_trace(&mut self) -> Result<Option<Vec<StepTimes>>> {
        self.runner.set_timing(false);
        self.trace.take().map(Trace::finish).transpose()
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
    pub fn add(&mut self, mut request: SequenceRequest) -> Result<RequestId> {
        let admission = self.admission();
        request.speculation = admission.resolve(request.speculation);
        admission.check_tokens(&request)?;
        let grammar = request.sampling.grammar.clone();
        // What the draft model proposes the host never sees, so there is no mask for it.
        if grammar.is_some() && matches!(request.speculation, Speculation::Draft { .. }) {
            request.speculation = Speculation::Off;
        }
        let n = request.n;
        let id = self.scheduler.add(request)?;
        if let Some(grammar) = grammar {
            self.matchers.open(id, n, &grammar);
        }
        Ok(id)
    }

    /// What [`Engine::add`] takes, to check requests on any thread.
    pub fn admission(&self) -> Admission {
        Admission {
            scheduler: self.scheduler.admission(),
            vocab: self.runner.model().config().vocab_size,
            hidden_size: self.runner.model().config().hidden_size,
            drafts: self.runner.config().drafts,
            draft_model: self.runner.has_draft_model(),
            speculation: self.speculation,
        }
    }

    /// Open answers that follow a grammar.
    pub fn open_grammars(&self) -> usize {
        self.matchers.len()
    }

    /// Drops a sequence.
    pub fn cancel(&mut self, id: RequestId) {
        let _ = self.scheduler.cancel(id);
        self.matchers.close(id);
    }

    /// Drops one of a request's `n` answers: the others go on.
    pub fn cancel_answer(&mut self, id: RequestId, index: u32) {
        let _ = self.scheduler.cancel_answer(id, index);
        self.matchers.close_answer(id, index);
    }

    /// Whether [`Engine::step`] would do anything.
    pub fn has_work(&self) -> bool {
        self.running.is_some() || self.scheduler.has_work()
    }

    /// Waits for one step and returns what it did. The next one is queued before: the device goes on meanwhile.
    pub fn step(&mut self) -> Result<Vec<Progress>> {
        self.started.clear();
        let (plan, mut step) = match self.running.take() {
            Some(running) => running,
            None => match self.submit()? {
                Some((plan, mut step)) => {
                    self.sample(&plan, &mut step)?;
                    (plan, step)
                }
                None => return Ok(Vec::new()),
            },
        };
        let mut next = if self.overlap { self.submit()? } else { None };
        let (mut times, start) = (std::mem::take(&mut step.times), Instant::now());
        let events = times.events.take();
        let output = self.runner.collect(step)?;
        let wait = start.elapsed();
        let start = Instant::now();
        let (tokens, sequences, decodes) = (plan.tokens.len(), plan.sequences.len(), plan.decodes);
        self.matchers.advance(&plan, &output);
        let mut progress = self.scheduler.commit(plan, &output);
        self.matchers.close_ended(&progress);
        // The next step's logits are under way: what may be chosen from them is known only now.
        if let Some((plan, step)) = &mut next {
            self.sample(plan, step)?;
        }
        self.running = next;
        progress.extend(self.abort_failed());
        if let Some(trace) = &mut self.trace {
            let commit = start.elapsed();
            trace.push(StepTimes { tokens, sequences, decodes, wait, commit, ..StepTimes::of(times) }, events);
        }
        Ok(progress)
    }

    /// Queues the choice of a step's tokens, if grammars have kept it waiting.
    fn sample(&mut self, plan: &StepPlan, step: &mut InFlight) -> Result<()> {
        let matchers = &mut self.matchers;
        self.runner.sample(step, |masks, words| matchers.masks(plan, masks, words))
    }

    /// Ends answers whose grammar has met a limit: anything that they would say from now on may break it.
    fn abort_failed(&mut self) -> Vec<Progress> {
        let failed = self.matchers.take_failed();
        let abort = |(id, index)| {
            let _ = self.scheduler.cancel_answer(id, index);
            let finished = Some(FinishReason::Abort);
            Progress { id, index, token: None, logprobs: None, finished, score: None, embedding: None }
        };
        failed.into_iter().map(abort).collect()
    }

    /// Plans and queues the next step, if anything can be planned now.
    fn submit(&mut self) -> Result<Option<(StepPlan, InFlight)>> {
        let start = Instant::now();
        let Some(plan) = self.scheduler.plan() else { return Ok(None) };
        let planning = start.elapsed();
        let started = |&(id, cached_tokens): &(RequestId, usize)| (id, Started { at: start, cached_tokens });
        self.started.extend(plan.started.iter().map(started));
        let mut step = self.runner.submit(&plan)?;
        step.times.plan = planning;
        Ok(Some((plan, step)))
    }

    /// Logits of every token of `tokens`, [tokens, vocab_size], by a prefill in steps as [`Engine::step`] makes them.
    /// Nothing else may be queued.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        while self.running.is_some() {
            let _ = self.step()?;
        }
        let request = SequenceRequest {
            prompt: tokens.to_vec(),
            max_tokens: 1,
            reuse_prefix: false,
            ..SequenceRequest::default()
        };
        let id = self.add(request)?;
        let vocab = self.runner.model().config().vocab_size;
        let mut all = vec![0.0; tokens.len() * vocab];
        while let Some(plan) = self.scheduler.plan() {
            let first = plan.positions.first().copied().unwrap_or(0) as usize;
            self.runner.logits(&plan, |row, logits| all[(first + row) * vocab..][..vocab].copy_from_slice(logits))?;
            let sampled = Sampled { tokens: vec![0], logprobs: Vec::new() };
            let output = StepOutput { samples: vec![sampled; plan.samples.len()], pooled: Vec::new() };
            let _ = self.scheduler.commit(plan, &output);
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

/// Shapes of the models that share a device.
#[derive(Clone, Copy)]
struct Shapes<'a> {
    model: &'a ModelConfig,
    draft: Option<&'a ModelConfig>,
}

impl Shapes<'_> {
    fn budget(&self, limits: &Limits, drafts: usize) -> MemoryBudget {
        let draft = self.draft.map(|draft| (draft, compute_dtype(draft)));
        let plain = MemoryBudget::of(self.model, compute_dtype(self.model), limits);
        plain.with_drafts(self.model, limits, drafts, draft)
    }
}

/// Pages of the KV cache; shortens `max_model_len` where it was not asked for and does not fit. `memory`: free and
/// total bytes of the GPU, `None` on the CPU.
fn plan_pages(
    memory: Option<(usize, usize)>,
    shapes: Shapes<'_>,
    config: &EngineConfig,
    limits: &mut Limits,
) -> Result<usize> {
    let needed = |tokens: usize| tokens.div_ceil(PAGE_TOKENS);
    let budget = shapes.budget(limits, config.drafts());
    if let Some(tokens) = config.kv_cache_tokens {
        return Ok(needed(tokens).max(1));
    }
    if let Some(bytes) = config.kv_cache_memory_bytes {
        return Ok((bytes / budget.page).max(1));
    }
    let Some((free, total)) = memory else {
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
    // More than every sequence at full length is of use for shared prefixes only.
    Ok(pages.min(needed(limits.max_model_len) * limits.max_sequences))
}

/// Pages that fit beside what was allocated by now and beside graphs, at most the `wanted` ones. `memory` and `now`: free
/// and total bytes before everything and now, `None` on the CPU.
fn left_pages(
    memory: Option<(usize, usize)>,
    now: Option<(usize, usize)>,
    config: &EngineConfig,
    graphs: usize,
    page: usize,
    wanted: usize,
) -> usize {
    let (Some((before, total)), Some((free, _))) = (memory, now) else { return wanted };
    if !config.chooses_cache() {
        return wanted;
    }
    let usable = ((total as f64 * f64::from(config.gpu_memory_utilization)) as usize).min(before);
    let taken = before.saturating_sub(free) + graphs + ROUNDING;
    // One page is the null page's.
    (usable.saturating_sub(taken) / page).saturating_sub(1).clamp(1, wanted)
}

/// The driver gives the two pools of the cache in whole pieces of 2 MiB.
const ROUNDING: usize = 4 << 20;

#[cfg(test)]
#[path = "engine_tests.rs"]
mod step_tests;

#[cfg(test)]
#[path = "draft_tests.rs"]
mod draft_tests;

#[cfg(test)]
#[path = "emulated_tests.rs"]
mod emulated_tests;

#[cfg(test)]
#[path = "engine_memory_tests.rs"]
mod memory_tests;
