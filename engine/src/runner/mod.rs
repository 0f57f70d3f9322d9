//! Runs steps: uploads a plan, calls the model, samples. Owns all device memory; allocates nothing after
//! it was made.
//!
//! [`Runner::submit`] queues a step and returns, [`Runner::collect`] waits for its tokens. Two steps may be in flight:
//! the second one's inputs and launches are queued while the first one runs.
mod budget;
mod graphs;
mod layout;
mod sampler;
mod tables;

pub use budget::{MemoryBudget, MemoryUse};

use crate::error::Result;
use crate::kv::{KvCache, PAGE_TOKENS};
use crate::model::{Activations, Model};
use crate::scheduler::{Limits, StepOutput, StepPlan};
use graphs::Graphs;
use kernels_host::{Buffer, DType, Device, Event, Graph, Pinned, Stream};
use layout::{Fixed, Layout, StepShape};
use sampler::{Sampler, Wanted};
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
    /// Launch every kernel by itself instead of capturing graphs.
    pub eager: bool,
}

impl RunnerConfig {
    /// Rows of logits that a step may have.
    fn head_rows(&self) -> usize {
        (self.limits.max_sequences * (1 + self.drafts)).min(self.limits.max_tokens.max(self.limits.max_sequences))
    }
}

/// A model ready to run.
pub struct Runner {
    /// Dropped first: the graphs run on everything below.
    graphs: Graphs,
    stream: Stream,
    model: Model,
    kv: KvCache,
    work: Activations,
    /// A step's small inputs, as [`Layout`] packs them.
    packed: Buffer,
    tables: BlockTables,
    sampler: Sampler,
    staging: [Staging; IN_FLIGHT],
    /// Steps submitted and collected so far.
    submitted: usize,
    collected: usize,
    config: RunnerConfig,
    /// Whether steps are timed on the device.
    timing: bool,
    memory: MemoryUse,
}

/// Pinned memory of one step in flight.
struct Staging {
    inputs: Pinned,
    tables: Pinned,
    outputs: Pinned,
}

/// A step that was queued. Steps are collected in the order in which they were submitted.
#[must_use]
pub struct InFlight {
    number: usize,
    wanted: Vec<Wanted>,
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
}

impl Runner {
    /// Allocates everything for steps within the bounds, loads the kernels that they need and captures the graphs.
    /// `pages` says how many pages the KV cache gets, once all the rest is there: it is told how many bytes the graphs
    /// will take at most.
    pub fn new(
        stream: Stream,
        model: Model,
        config: RunnerConfig,
        pages: impl FnOnce(usize) -> Result<usize>,
    ) -> Result<Self> {
        let limits = config.limits;
        let device = stream.device().clone();
        let shape = model.config();
        // Kernels are loaded and a graph is measured over a cache of one page.
        let kv = KvCache::new(&device, shape, model.dtype(), 1, 0)?;
        let work = Activations::new(&stream, shape, model.dtype(), &limits)?;
        let rows = config.head_rows();
        let table_pages = limits.max_model_len.div_ceil(PAGE_TOKENS);
        let tables = BlockTables::new(&stream, limits.max_sequences, table_pages)?;
        let sampler = Sampler::new(&stream, shape.vocab_size, rows, limits.max_sequences)?;
        let words = Self::packed_words(&config);
        let staging = || -> Result<Staging> {
            Ok(Staging {
                inputs: Pinned::new(&device, words * size_of::<u32>())?,
                tables: tables.staging(&device)?,
                outputs: sampler.staging(&device)?,
            })
        };
        let mut runner = Runner {
            graphs: Graphs::default(),
            packed: Buffer::new(&device, DType::U32, words)?,
            staging: [staging()?, staging()?],
            stream,
            model,
            kv,
            work,
            tables,
            sampler,
            submitted: 0,
            collected: 0,
            config,
            timing: false,
            memory: MemoryUse::default(),
        };
        runner.reserve(pages)?;
        Ok(runner)
    }

    /// What comes after the buffers of fixed size: kernels, KV cache, graphs.
    fn reserve(&mut self, pages: impl FnOnce(usize) -> Result<usize>) -> Result<()> {
        let RunnerConfig { limits, host_pages, eager, .. } = self.config;
        let device = self.device().clone();
        let before = free(&device)?;
        self.prepare()?;
        let kernels = before.saturating_sub(free(&device)?);
        let sizes = if eager || device.is_cpu() { Vec::new() } else { graphs::ladder(limits.max_sequences) };
        let mut one = 0;
        if let Some(&largest) = sizes.last() {
            let before = free(&device)?;
            let graph = self.capture(largest)?;
            one = before.saturating_sub(free(&device)?);
            drop(graph);
        }
        let pages = pages(one * sizes.len())?;
        self.kv = KvCache::new(&device, self.model.config(), self.model.dtype(), pages, host_pages)?;
        self.kv.clear(&self.stream)?;
        self.tables.clear(&self.stream, self.kv.null_page())?;
        let before = free(&device)?;
        for sequences in sizes {
            let graph = self.capture(sequences)?;
            self.graphs.push(sequences, graph);
        }
        self.stream.synchronize()?;
        let (rows, vocab) = (self.config.head_rows(), self.model.config().vocab_size);
        let (logits, sampling) = Sampler::bytes(vocab, rows, limits.max_sequences);
        self.memory = MemoryUse {
            weights: crate::weights::parameter_count(self.model.config()) as usize * self.model.dtype().size(),
            kv_cache: self.kv.device_bytes(),
            activations: self.work.bytes(),
            logits,
            sampling,
            inputs: budget::input_bytes(&limits, rows),
            kernels,
            graphs: before.saturating_sub(free(&device)?),
            pinned: self.kv.host_bytes() + self.staging.iter().map(Staging::bytes).sum::<usize>(),
        };
        Ok(())
    }

    /// What its memory is used for.
    pub fn memory(&self) -> &MemoryUse {
        &self.memory
    }

    /// Words of the largest step's inputs.
    fn packed_words(config: &RunnerConfig) -> usize {
        let (limits, rows) = (config.limits, config.head_rows());
        Layout::most(limits.max_tokens, limits.max_sequences, rows) + sampler::most_words(rows, limits.max_sequences)
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Batch sizes that graphs were captured for.
    pub fn graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Whether steps are timed on the device from now on. The CPU device has no timers.
    pub fn set_timing(&mut self, on: bool) {
        self.timing = on && !self.device().is_cpu();
    }

    /// Runs one step, alone.
    pub fn step(&mut self, plan: &StepPlan) -> Result<StepOutput> {
        let step = self.submit(plan)?;
        self.collect(step)
    }

    /// Queues one step.
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
        let (shape, layout, params) = self.upload(plan, number % IN_FLIGHT)?;
        mark(&self.stream, self.timing)?;
        let upload = start.elapsed();
        let graph = if shape.is_plain_decode() { self.graphs.find(plan.sequences.len()) } else { None };
        let graph = match graph {
            Some((sequences, graph)) => {
                graph.launch(&self.stream)?;
                Some(sequences)
            }
            None => {
                self.forward(&shape, &layout)?;
                None
            }
        };
        let outputs = &mut self.staging[number % IN_FLIGHT].outputs;
        self.sampler.sample(&self.stream, &self.packed, params, outputs)?;
        mark(&self.stream, self.timing)?;
        let (launch, events) = (start.elapsed() - upload, events.try_into().ok());
        let times = SubmitTimes { plan: Duration::ZERO, upload, launch, graph, events };
        Ok(InFlight { number, wanted: plan.samples.iter().map(Wanted::of).collect(), times })
    }

    /// Waits for a step's tokens.
    ///
    /// # Panics
    /// If an earlier one was not collected.
    pub fn collect(&mut self, step: InFlight) -> Result<StepOutput> {
        assert_eq!(step.number, self.collected, "steps are collected in their order");
        self.collected += 1;
        let outputs = &mut self.staging[step.number % IN_FLIGHT].outputs;
        Ok(StepOutput { samples: self.sampler.collect(&step.wanted, outputs)? })
    }

    /// Runs one step without sampling and calls `each` with every token's row and its logits, `vocab_size` of them.
    pub fn logits(&mut self, plan: &StepPlan, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        assert_eq!(self.submitted, self.collected, "logits beside a step in flight");
        self.move_pages(plan)?;
        let (shape, layout, _) = self.upload(plan, 0)?;
        let vocab = self.model.config().vocab_size;
        let step = layout.input(&shape, &self.packed, fixed(&self.tables, &self.sampler));
        self.model.forward(&self.stream, &step, &mut self.kv, &mut self.work)?;
        let rows: Vec<u32> = (0..plan.tokens.len() as u32).collect();
        let mut host = Vec::new();
        for rows in rows.chunks(self.sampler.max_rows().min(self.packed.len())) {
            self.stream.upload(rows, self.packed.view_mut().columns(0, rows.len()))?;
            let logits = self.sampler.logits_mut(rows.len());
            self.model.head(&self.stream, self.packed.view().columns(0, rows.len()), &mut self.work, logits)?;
            let stride = self.sampler.download_logits(&self.stream, rows.len(), &mut host)?;
            for (row, logits) in rows.iter().zip(host.chunks(stride)) {
                each(*row as usize, &logits[..vocab]);
            }
        }
        Ok(())
    }

    /// Moves and copies pages, as a plan says, in its order.
    fn move_pages(&mut self, plan: &StepPlan) -> Result<()> {
        for &(page, host) in &plan.swap_out {
            self.kv.swap_out(&self.stream, page, host)?;
        }
        for &(host, page) in &plan.swap_in {
            self.kv.swap_in(&self.stream, host, page)?;
        }
        for &(from, to) in &plan.copies {
            self.kv.copy_page(&self.stream, from, to)?;
        }
        Ok(())
    }

    /// Queues the copies of a plan's inputs. The shape is the graph's where there is one for the step.
    fn upload(&mut self, plan: &StepPlan, slot: usize) -> Result<(StepShape, Layout, sampler::Params)> {
        let mut shape = StepShape::of(plan);
        if shape.is_plain_decode()
            && let Some((sequences, _)) = self.graphs.find(shape.sequences)
        {
            shape = StepShape::decode(sequences, self.config.limits.max_model_len);
        }
        let layout = Layout::of(&shape);
        let Staging { inputs, tables, .. } = &mut self.staging[slot];
        self.tables.update(&self.stream, plan, tables)?;
        let words = inputs.host::<u32>()?;
        layout.write(plan, words);
        let params = self.sampler.write(plan, layout.words, words);
        self.stream.upload_pinned(inputs, 0, self.packed.view_mut().columns(0, params.end()))?;
        Ok((shape, layout, params))
    }

    /// Queues the kernels of a step up to its logits, one by one.
    fn forward(&mut self, shape: &StepShape, layout: &Layout) -> Result<()> {
        let step = layout.input(shape, &self.packed, fixed(&self.tables, &self.sampler));
        self.model.forward(&self.stream, &step, &mut self.kv, &mut self.work)?;
        if shape.head_rows == 0 {
            return Ok(());
        }
        let logits = self.sampler.logits_mut(shape.head_rows);
        self.model.head(&self.stream, layout.rows(&self.packed), &mut self.work, logits)
    }

    /// Loads every kernel that steps within the bounds may launch. On an emulated device they are read when they run.
    fn prepare(&mut self) -> Result<usize> {
        if self.device().is_cpu() || self.device().emulation().is_some() {
            return Ok(0);
        }
        let limits = self.config.limits;
        let (stream, model) = (&self.stream, &self.model);
        let (kv, work, sampler) = (&mut self.kv, &mut self.work, &mut self.sampler);
        let (packed, tables) = (&self.packed, &self.tables);
        let mut shapes: Vec<StepShape> =
            (1..=limits.max_sequences).map(|sequences| StepShape::decode(sequences, limits.max_model_len)).collect();
        // Kernels change with every token at first, later with every tile.
        let prefills = (1..=limits.max_tokens).filter(|tokens| *tokens <= 256 || tokens.is_multiple_of(64));
        shapes.extend(prefills.chain([limits.max_tokens]).map(StepShape::prefill));
        if self.config.drafts > 0 {
            let drafts = 2..=1 + self.config.drafts;
            shapes.extend(drafts.flat_map(|queries| {
                let fits = 1..=limits.max_sequences.min(limits.max_tokens / queries);
                fits.map(move |sequences| StepShape::verify(sequences, queries, limits.max_model_len))
            }));
        }
        let layers = 0..model.config().num_layers.min(2);
        Ok(stream.prepare(|stream| -> Result<()> {
            for shape in &shapes {
                let layout = Layout::of(shape);
                let step = layout.input(shape, packed, fixed(tables, sampler));
                model.embed(stream, &step, work)?;
                model.layers(stream, layers.clone(), &step, kv, work)?;
                model.head(stream, layout.rows(packed), work, sampler.logits_mut(shape.head_rows))?;
            }
            sampler.prepare(stream, packed)
        })?)
    }

    /// Captures a step in which so many sequences decode.
    fn capture(&mut self, sequences: usize) -> Result<Graph> {
        let shape = StepShape::decode(sequences, self.config.limits.max_model_len);
        let layout = Layout::of(&shape);
        let (kv, work, model) = (&mut self.kv, &mut self.work, &self.model);
        let (packed, tables, sampler) = (&self.packed, &self.tables, &mut self.sampler);
        self.stream.capture(|stream| {
            let step = layout.input(&shape, packed, fixed(tables, sampler));
            model.forward(stream, &step, kv, work)?;
            model.head(stream, layout.rows(packed), work, sampler.logits_mut(sequences))
        })
    }
}

impl Staging {
    fn bytes(&self) -> usize {
        self.inputs.len() + self.tables.len() + self.outputs.len()
    }
}

/// Free bytes of device memory; 0 on the CPU.
fn free(device: &Device) -> Result<usize> {
    Ok(device.memory()?.map_or(0, |(free, _)| free))
}

/// The inputs that do not move.
fn fixed<'a>(tables: &'a BlockTables, sampler: &'a Sampler) -> Fixed<'a> {
    Fixed { block_tables: tables.view(), last_tokens: sampler.last_tokens(), drafts: Some(sampler.drafts()) }
}
