//! Runs steps: uploads a plan, calls the model, samples. Owns all device memory; allocates nothing after it was made.
//!
//! [`Runner::submit`] queues a step and returns, [`Runner::collect`] waits for its tokens. Two steps may be in flight:
//! the second one's inputs and launches are queued while the first one runs.
mod biases;
mod budget;
mod draft;
mod graphs;
mod layout;
mod sampler;
mod tables;

pub use budget::{MemoryBudget, MemoryUse};
pub use sampler::MAX_BIASES;

use crate::error::Result;
use crate::kv::{KvCache, PAGE_TOKENS};
use crate::model::{Activations, Model};
use crate::pooling::Pooled;
use crate::scheduler::{Limits, StepOutput, StepPlan};
use draft::{Draft, Passes};
use graphs::{GraphSize, Graphs};
use kernels_host::{Buffer, DType, Device, Event, Graph, Pinned, Stream};
use layout::{Fixed, Layout, StepShape, graph_size};
use sampler::{SampleStaging, Sampler, Sizes, Wanted};
use std::ops::Range;
use std::time::{Duration, Instant};
use tables::BlockTables;

/// Steps that may be in flight.
const IN_FLIGHT: usize = 2;

/// What a runner is made for.
#[derive(Clone, Copy, Debug)]
pub struct RunnerConfig {
    /// Bounds of a step.
    pub limits: Limits,
    /// Pages of host memory for what is moved out.
    pub host_pages: usize,
    /// Most drafts of a sequence in a step.
    pub drafts: usize,
    /// Accept each draft with this probability, whatever is sampled: for benchmarks with random weights.
    pub synthetic_acceptance: Option<f32>,
    /// Launch every kernel by itself instead of capturing graphs.
    pub eager: bool,
    /// Compute every row in the same order whatever else is in a step: the same bits. Kernel by kernel, all attention by the
    /// kernels of prefill. A draft model runs as ever: its tokens are proposals, which ones come true does not change what is
    /// said.
    pub batch_invariant: bool,
}

impl RunnerConfig {
    /// Rows of logits that a step may have.
    fn head_rows(&self) -> usize {
        budget::head_rows(&self.limits, self.drafts)
    }

    fn sizes(&self, vocab: usize) -> Sizes {
        let Limits { max_sequences: sequences, max_model_len: max_len, .. } = self.limits;
        Sizes { vocab, rows: self.head_rows(), sequences, max_len }
    }
}

/// A model ready to run.
pub struct Runner {
    /// Dropped first: the graphs run on everything below.
    graphs: Graphs,
    stream: Stream,
    body: Body,
    staging: [Staging; IN_FLIGHT],
    /// Steps submitted and collected so far.
    submitted: usize,
    collected: usize,
    config: RunnerConfig,
    /// Whether steps are timed on the device.
    timing: bool,
    /// Whether the next step is run kernel by kernel, each timed.
    profile: bool,
    memory: MemoryUse,
}

/// What steps run on.
struct Body {
    model: Model,
    kv: KvCache,
    work: Activations,
    /// A step's small inputs, as [`Layout`] packs them.
    packed: Buffer,
    tables: BlockTables,
    sampler: Sampler,
    draft: Option<Draft>,
}

/// What a step is launched with, and where its inputs are.
struct Step {
    shape: StepShape,
    layout: Layout,
    /// The draft model's, where there is one.
    draft: Option<Passes>,
}

/// Pinned memory of one step in flight.
struct Staging {
    inputs: Pinned,
    tables: Pinned,
    draft: Option<Pinned>,
    sampling: SampleStaging,
}

/// A step that was queued. Steps are collected in the order in which they were submitted.
#[must_use]
pub struct InFlight {
    number: usize,
    wanted: Wanted,
    /// Where the step's inputs are, until its tokens are chosen.
    unsampled: Option<(Layout, sampler::Params)>,
    /// The device's times so far.
    marks: Vec<Event>,
    pooled: Vec<Pooled>,
    /// What the host did.
    pub(crate) times: SubmitTimes,
}

/// Host time of queueing a step.
#[derive(Default)]
pub(crate) struct SubmitTimes {
    /// The scheduler's plan.
    pub plan: Duration,
    /// Packing the inputs and queueing their copies.
    pub upload: Duration,
    /// Queueing the kernels.
    pub launch: Duration,
    /// Sequences of the graph that ran; `None`: kernel by kernel.
    pub graph: Option<usize>,
    /// On the device: before the copies, before the kernels, after them.
    pub events: Option<[Event; 3]>,
    /// Milliseconds of every kernel, if they were asked for.
    pub kernels: Option<Vec<(&'static str, f32)>>,
}

impl Runner {
    /// Allocates everything for steps within the bounds, loads the kernels that they need and captures the graphs.
    /// `draft`: the model that makes the drafts, its vocabulary not larger than the other one's.
    /// `pages` says how many pages the KV cache gets, once all the rest is there: it is told how many bytes the graphs
    /// will take at most.
    pub fn new(
        stream: Stream,
        model: Model,
        draft: Option<Model>,
        config: RunnerConfig,
        pages: impl FnOnce(usize) -> Result<usize>,
    ) -> Result<Self> {
        let limits = config.limits;
        let stream = if config.batch_invariant { stream.with_batch_invariance() } else { stream };
        let device = stream.device().clone();
        let shape = model.config();
        // Kernels are loaded and a graph is measured over a cache of one page.
        let kv = KvCache::new(&device, shape, model.dtype(), 1, 0)?;
        let work = Activations::new(&stream, shape, model.dtype(), &limits)?;
        // The last drafts' padding in a graph is beyond a longest sequence's end.
        let table_pages = (limits.max_model_len + config.drafts).div_ceil(PAGE_TOKENS);
        let tables = BlockTables::new(&stream, limits.max_sequences, table_pages)?;
        let sampler = Sampler::new(&stream, config.sizes(shape.vocab_size))?;
        let words = budget::packed_words(&config.limits, &config.sizes(shape.vocab_size));
        let draft = draft.map(|model| Draft::new(&stream, model, &limits, config.drafts)).transpose()?;
        let staging = || -> Result<Staging> {
            Ok(Staging {
                inputs: Pinned::new(&device, words * size_of::<u32>())?,
                tables: tables.staging(&device)?,
                draft: draft.as_ref().map(|draft| draft.staging(&stream)).transpose()?,
                sampling: sampler.staging(&device)?,
            })
        };
        let mut runner = Runner {
            graphs: Graphs::default(),
            staging: [staging()?, staging()?],
            stream,
            body: Body { packed: Buffer::new(&device, DType::U32, words)?, model, kv, work, tables, sampler, draft },
            submitted: 0,
            collected: 0,
            config,
            timing: false,
            profile: false,
            memory: MemoryUse::default(),
        };
        runner.body.sampler.synthetic_acceptance = config.synthetic_acceptance;
        runner.reserve(pages)?;
        Ok(runner)
    }

    /// What comes after the buffers of fixed size: kernels, KV cache, graphs.
    fn reserve(&mut self, pages: impl FnOnce(usize) -> Result<usize>) -> Result<()> {
        let RunnerConfig { limits, host_pages, eager, batch_invariant, .. } = self.config;
        let device = self.device().clone();
        let before = free(&device)?;
        self.prepare()?;
        let kernels = before.saturating_sub(free(&device)?);
        let sizes = if eager || batch_invariant || device.is_cpu() { Vec::new() } else { self.graph_sizes() };
        let mut one = 0;
        if let Some(&size) = sizes.last() {
            let before = free(&device)?;
            let graph = self.capture(size)?;
            one = before.saturating_sub(free(&device)?);
            drop(graph);
        }
        let pages = pages(one * sizes.len())?;
        self.body.kv = KvCache::new(&device, self.body.model.config(), self.body.model.dtype(), pages, host_pages)?;
        self.body.kv.clear(&self.stream)?;
        if let Some(draft) = &mut self.body.draft {
            draft.reserve(&self.stream, pages, host_pages)?;
        }
        self.body.tables.clear(&self.stream, self.body.kv.null_page())?;
        let before = free(&device)?;
        for size in sizes {
            let graph = self.capture(size)?;
            self.graphs.insert(size, graph);
        }
        self.stream.synchronize()?;
        let sizes = self.config.sizes(self.body.model.config().vocab_size);
        let (logits, sampling) = sizes.bytes();
        self.memory = MemoryUse {
            weights: crate::weights::parameter_count(self.body.model.config()) as usize
                * self.body.model.dtype().size(),
            kv_cache: self.body.kv.device_bytes(),
            activations: self.body.work.bytes(),
            logits,
            sampling,
            inputs: budget::input_bytes(&limits, &sizes, self.config.drafts),
            kernels,
            graphs: before.saturating_sub(free(&device)?),
            pinned: self.body.kv.host_bytes() + self.staging.iter().map(Staging::bytes).sum::<usize>(),
        };
        if let Some(draft) = &self.body.draft {
            let [weights, kv_cache, activations, inputs] = draft.bytes();
            let memory = &mut self.memory;
            memory.weights += weights;
            memory.kv_cache += kv_cache;
            memory.activations += activations;
            memory.inputs += inputs;
            memory.pinned += draft.kv.host_bytes();
        }
        Ok(())
    }

    /// What its memory is used for.
    pub fn memory(&self) -> &MemoryUse {
        &self.memory
    }

    /// What it was made for.
    pub fn config(&self) -> &RunnerConfig {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.body.model
    }

    /// Whether a draft model runs beside it.
    pub fn has_draft_model(&self) -> bool {
        self.body.draft.is_some()
    }

    /// Batch sizes that graphs were captured for.
    pub fn graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Whether steps are timed on the device from now on. The CPU device has no timers.
    pub fn set_timing(&mut self, on: bool) {
        self.timing = on && !self.device().is_cpu();
    }

    /// Runs the next step kernel by kernel and times each. An emulated device's times are the host's; the CPU device panics.
    pub fn profile_next(&mut self) {
        assert!(!self.device().is_cpu(), "the CPU device launches nothing");
        self.profile = true;
    }

    /// Runs one step, alone. Grammars are not followed.
    pub fn step(&mut self, plan: &StepPlan) -> Result<StepOutput> {
        let mut step = self.submit(plan)?;
        self.sample(&mut step, |masks, _| masks.fill(u32::MAX))?;
        self.collect(step)
    }

    /// Queues one step. Where samples have a grammar it stops at the logits: [`Runner::sample`] must follow, before the next
    /// step is submitted.
    ///
    /// # Panics
    /// If two are in flight, or the plan is beyond the bounds.
    pub fn submit(&mut self, plan: &StepPlan) -> Result<InFlight> {
        assert!(self.submitted - self.collected < IN_FLIGHT, "a third step in flight");
        let start = Instant::now();
        let number = self.submitted;
        self.submitted += 1;
        let mut events = Vec::new();
        let mut mark = |stream: &Stream, on: bool| -> Result<()> {
            if on {
                events.push(Event::record(stream)?);
            }
            Ok(())
        };
        mark(&self.stream, self.timing)?;
        self.move_pages(plan)?;
        let (step, params, size) = self.upload(plan, number % IN_FLIGHT)?;
        mark(&self.stream, self.timing)?;
        let upload = start.elapsed();
        let (mut graph, mut kernels) = (None, None);
        if std::mem::take(&mut self.profile) {
            kernels = Some(self.stream.profile(|stream| self.body.forward(stream, &step))?);
        } else if let Some((size, captured)) = size.and_then(|size| self.graphs.find(size)) {
            captured.launch(&self.stream)?;
            graph = Some(size.sequences);
        } else {
            self.body.forward(&self.stream, &step)?;
        }
        let pooled = self.body.pool(&self.stream, plan)?;
        let times = SubmitTimes {
            plan: Duration::ZERO,
            upload,
            launch: start.elapsed() - upload,
            graph,
            events: None,
            kernels,
        };
        let wanted = Wanted::of(plan, params);
        let mut step =
            InFlight { number, wanted, unsampled: Some((step.layout, params)), marks: events, pooled, times };
        if !params.is_masked() {
            self.sample(&mut step, |_, _| ())?;
        }
        Ok(step)
    }

    /// Queues the choice of a step's tokens, if that is still to be done. `masks` writes the masks of all rows that have a
    /// grammar, in their order: it is told how many words each has. The device computes the logits meanwhile.
    pub fn sample(&mut self, step: &mut InFlight, masks: impl FnOnce(&mut [u32], usize)) -> Result<()> {
        let Some((layout, params)) = step.unsampled.take() else { return Ok(()) };
        let Body { sampler, packed, .. } = &mut self.body;
        let staging = &mut self.staging[step.number % IN_FLIGHT].sampling;
        if params.is_masked() {
            sampler.upload_masks(&self.stream, params, staging, masks)?;
        }
        let start = Instant::now();
        sampler.sample(&self.stream, packed, layout.tokens(packed.view()), params, staging)?;
        if !step.marks.is_empty() {
            step.marks.push(Event::record(&self.stream)?);
        }
        step.times.launch += start.elapsed();
        step.times.events = std::mem::take(&mut step.marks).try_into().ok();
        Ok(())
    }

    /// Waits for a step's tokens.
    ///
    /// # Panics
    /// If an earlier one was not collected, or its tokens were not chosen.
    pub fn collect(&mut self, step: InFlight) -> Result<StepOutput> {
        assert_eq!(step.number, self.collected, "steps are collected in their order");
        assert!(step.unsampled.is_none(), "a step's tokens are chosen before they are collected");
        self.collected += 1;
        let staging = &mut self.staging[step.number % IN_FLIGHT].sampling;
        Ok(StepOutput { samples: self.body.sampler.collect(&step.wanted, staging)?, pooled: step.pooled })
    }

    /// Runs one step without sampling and calls `each` with every token's row and its logits, `vocab_size` of them.
    pub fn logits(&mut self, plan: &StepPlan, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        assert_eq!(self.submitted, self.collected, "logits beside a step in flight");
        self.move_pages(plan)?;
        let (mut step, ..) = self.upload(plan, 0)?;
        // Up to the hidden states: the head sees all rows, in parts.
        step.shape.head_rows = 0;
        self.body.forward(&self.stream, &step)?;
        let Body { model, work, packed, sampler, .. } = &mut self.body;
        let vocab = model.config().vocab_size;
        let rows: Vec<u32> = (0..plan.tokens.len() as u32).collect();
        let mut host = Vec::new();
        for rows in rows.chunks(sampler.max_rows()) {
            self.stream.upload(rows, packed.view_mut().columns(0, rows.len()))?;
            let logits = sampler.logits_mut(rows.len());
            model.head(&self.stream, packed.view().columns(0, rows.len()), work, logits)?;
            sampler.download_logits(&self.stream, rows.len(), &mut host)?;
            for (row, logits) in rows.iter().zip(host.chunks(vocab)) {
                each(*row as usize, logits);
            }
        }
        Ok(())
    }

    /// The head alone: logits of one state after the final norm.
    #[cfg(test)]
    pub(crate) fn project(&mut self, state: &[f32]) -> Result<Vec<f32>> {
        let Body { model, work, sampler, .. } = &mut self.body;
        let bits: Vec<u16> = state.iter().map(|x| model.dtype().encode(*x)).collect();
        self.stream.upload(&bits, work.normed.matrix_mut(1, state.len()))?;
        model.project(&self.stream, work.normed.matrix(1, state.len()), sampler.logits_mut(1))?;
        let mut logits = Vec::new();
        sampler.download_logits(&self.stream, 1, &mut logits)?;
        Ok(logits)
    }

    /// Moves and copies pages, as a plan says, in its order.
    fn move_pages(&mut self, plan: &StepPlan) -> Result<()> {
        let Body { kv, draft, .. } = &mut self.body;
        for kv in [Some(kv), draft.as_mut().map(|draft| &mut draft.kv)].into_iter().flatten() {
            for &(page, host) in &plan.swap_out {
                kv.swap_out(&self.stream, page, host)?;
            }
            for &(host, page) in &plan.swap_in {
                kv.swap_in(&self.stream, host, page)?;
            }
            for &(from, to) in &plan.copies {
                kv.copy_page(&self.stream, from, to)?;
            }
        }
        Ok(())
    }

    /// Queues the copies of a plan's inputs. The shapes are the graph's where there is one for the step; then its size
    /// comes with them.
    fn upload(&mut self, plan: &StepPlan, slot: usize) -> Result<(Step, sampler::Params, Option<GraphSize>)> {
        // A graph's rows are not the plan's.
        let size = if plan.pools.is_empty() { graph_size(plan, self.config.drafts) } else { None };
        let size = size.and_then(|size| self.graphs.find(size)).map(|(size, _)| size);
        let (shape, passes) = match size {
            Some(size) => self.graph_shapes(size),
            None if self.config.batch_invariant => (StepShape::of(plan).without_decodes(), None),
            None => (StepShape::of(plan), None),
        };
        let layout = Layout::of(&shape);
        let queries = size.map_or(1, |size| size.queries);
        let Staging { inputs, tables, sampling, draft: draft_inputs } = &mut self.staging[slot];
        self.body.sampler.enter(&self.stream, plan, sampling)?;
        self.body.tables.update(&self.stream, plan, tables)?;
        let words = inputs.host::<u32>()?;
        layout.write(plan, queries, words);
        let params = self.body.sampler.write(plan, queries, layout.words, words);
        self.stream.upload_pinned(inputs, 0, self.body.packed.view_mut().columns(0, params.end()))?;
        let draft = match (&mut self.body.draft, draft_inputs) {
            (Some(draft), Some(staging)) => Some(draft.upload(&self.stream, plan, passes, staging)?),
            _ => None,
        };
        Ok((Step { shape, layout, draft }, params, size))
    }

    /// Longest cache that a row may see, a graph's padding included.
    fn max_kv(&self) -> usize {
        self.config.limits.max_model_len + self.config.drafts
    }

    /// Loads every kernel that steps within the bounds may launch. On an emulated device they are read when they run.
    fn prepare(&mut self) -> Result<usize> {
        if self.device().is_cpu() || self.device().emulation().is_some() {
            return Ok(0);
        }
        let (limits, max_kv) = (self.config.limits, self.max_kv());
        let mut shapes: Vec<StepShape> =
            (1..=limits.max_sequences).map(|sequences| StepShape::decode(sequences, 1, max_kv)).collect();
        // Kernels change with every token at first, later with every tile.
        let prefills = (1..=limits.max_tokens).filter(|tokens| *tokens <= 256 || tokens.is_multiple_of(64));
        shapes.extend(prefills.chain([limits.max_tokens]).map(StepShape::prefill));
        if self.config.drafts > 0 {
            let drafts = 2..=1 + self.config.drafts;
            shapes.extend(drafts.flat_map(|queries| {
                let fits = 1..=limits.max_sequences.min(limits.max_tokens / queries);
                fits.map(move |sequences| StepShape::decode(sequences, queries, max_kv))
            }));
        }
        let layers = 0..self.body.model.config().num_layers.min(2);
        let drafts = self.config.drafts;
        let (body, staging) = (&mut self.body, &mut self.staging[0].sampling);
        self.stream.prepare(|stream| {
            for shape in &shapes {
                body.layers(stream, shape, &Layout::of(shape), layers.clone())?;
            }
            body.draft_passes(stream, &shapes, drafts, layers)?;
            body.sampler.prepare(stream, &body.packed, staging)
        })
    }

    /// What graphs are captured for: single tokens, and as many drafts as there may be.
    fn graph_sizes(&self) -> Vec<GraphSize> {
        let RunnerConfig { limits, drafts, .. } = self.config;
        let mut sizes: Vec<_> = graphs::ladder(limits.max_sequences).into_iter().map(|size| (1, size)).collect();
        if drafts > 0 {
            let queries = 1 + drafts;
            let most = (limits.max_tokens.min(self.config.head_rows()) / queries).clamp(1, limits.max_sequences);
            sizes.extend(graphs::ladder(most).into_iter().map(|size| (queries, size)));
        }
        let contexts = |(queries, sequences)| {
            let contexts = graphs::contexts(sequences, self.max_kv()).into_iter();
            contexts.map(move |max_kv| GraphSize { queries, sequences, max_kv })
        };
        sizes.into_iter().flat_map(contexts).collect()
    }

    /// Captures a step in which so many sequences decode so many tokens each.
    fn capture(&mut self, size: GraphSize) -> Result<Graph> {
        let (shape, draft) = self.graph_shapes(size);
        let step = Step { layout: Layout::of(&shape), shape, draft };
        self.stream.capture(|stream| self.body.forward(stream, &step))
    }

    /// What the graph of a size runs: the target's step, and the draft model's passes where there is one.
    fn graph_shapes(&self, size: GraphSize) -> (StepShape, Option<Passes>) {
        let GraphSize { queries, sequences, max_kv } = size;
        let draft = self.body.draft.as_ref().map(|_| Passes::graph(sequences, queries - 1, max_kv));
        (StepShape::decode(sequences, queries, max_kv), draft)
    }
}

impl Body {
    /// Queues the kernels of a step up to its logits, one by one: first the draft model's.
    fn forward(&mut self, stream: &Stream, step: &Step) -> Result<()> {
        if let (Some(draft), Some(passes)) = (&mut self.draft, &step.draft) {
            let layers = 0..draft.model.config().num_layers;
            draft.forward(stream, passes, &self.tables, &mut self.sampler, layers)?;
        }
        self.layers(stream, &step.shape, &step.layout, 0..self.model.config().num_layers)
    }

    /// Sums of the hidden states that a plan wants. Waits for the step, if it wants any: they are in a buffer that the
    /// next step writes, and a step of prompts is long enough to plan another one after it.
    fn pool(&mut self, stream: &Stream, plan: &StepPlan) -> Result<Vec<Pooled>> {
        if plan.pools.is_empty() {
            return Ok(Vec::new());
        }
        let Body { model, work, .. } = self;
        let (tokens, hidden, dtype) = (plan.tokens.len(), model.config().hidden_size, model.dtype());
        model.final_norm(stream, tokens, work)?;
        let mut states: Vec<u16> = Vec::new();
        let sums = plan.pools.iter().map(|pool| {
            let rows = pool.rows.len();
            states.resize(rows * hidden, 0);
            let from = work.normed.matrix(tokens, hidden).row_range(pool.rows.start as usize, rows);
            stream.download(from, &mut states)?;
            let mut pooled = Pooled::default();
            states.chunks(hidden).for_each(|state| pooled.push(state.iter().map(|bits| dtype.decode(*bits))));
            Ok(pooled)
        });
        sums.collect()
    }

    /// Launches what the draft model may launch in steps of these shapes, with some of its layers.
    fn draft_passes(
        &mut self,
        stream: &Stream,
        shapes: &[StepShape],
        drafts: usize,
        layers: Range<usize>,
    ) -> Result<()> {
        let Some(draft) = &mut self.draft else { return Ok(()) };
        let layers = 0..layers.end.min(draft.model.config().num_layers);
        for shape in shapes {
            let passes = match shape.max_decode_query {
                1 => Passes::graph(shape.sequences, drafts.min(2), shape.max_kv),
                0 => Passes::reading(*shape),
                // The target's alone.
                _ => continue,
            };
            draft.forward(stream, &passes, &self.tables, &mut self.sampler, layers.clone())?;
        }
        Ok(())
    }

    /// The target's part of a step, with some of the layers.
    fn layers(&mut self, stream: &Stream, shape: &StepShape, layout: &Layout, layers: Range<usize>) -> Result<()> {
        let Body { model, kv, work, packed, tables, sampler, .. } = self;
        let packed = packed.view();
        let (last_tokens, drafts) = (sampler.last_tokens(), Some(sampler.drafts()));
        let step = layout.input(shape, packed, Fixed { block_tables: tables.view(), last_tokens, drafts });
        model.embed(stream, &step, work)?;
        model.layers(stream, layers, &step, kv, work)?;
        if shape.head_rows == 0 {
            return Ok(());
        }
        let logits = sampler.logits_mut(shape.head_rows);
        model.head(stream, layout.rows(packed), work, logits)
    }
}

impl Staging {
    fn bytes(&self) -> usize {
        let draft = self.draft.as_ref().map_or(0, Pinned::len);
        self.inputs.len() + self.tables.len() + self.sampling.bytes() + draft
    }
}

/// Free bytes of device memory; 0 on the CPU.
fn free(device: &Device) -> Result<usize> {
    Ok(device.memory()?.map_or(0, |(free, _)| free))
}
