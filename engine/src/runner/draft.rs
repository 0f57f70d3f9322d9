//! The draft model: its weights and cache beside the target's, and its passes before a step.
//!
//! The caches have the same pages, block tables and slots, and every row of a step goes through both models: a block that
//! is found in the prefix tree is whole in both. The first pass takes the step's rows, of each sequence that decodes the
//! last two tokens instead of the drafts: where all drafts of the step before came true the draft model has not read the
//! last of them. Every further pass takes the draft that the one before it chose. Nothing of it passes through the host.
use super::layout::{Fixed, Layout, StepShape};
use super::sampler::{Sampler, WORDS};
use super::tables::BlockTables;
use crate::error::Result;
use crate::kv::{KvCache, PAGE_TOKENS};
use crate::model::{Activations, Model};
use crate::scheduler::{FROM_DRAFT, Limits, MAX_DRAFTS, PlannedSequence, RequestId, SampleRow, StepPlan};
use crate::weights::parameter_count;
use kernels_host::sample::SamplingParams;
use kernels_host::{Buffer, DType, Pinned, Stream};
use std::ops::Range;
use std::sync::Arc;

/// Weights, cache and buffers of a draft model.
pub(super) struct Draft {
    pub model: Model,
    pub kv: KvCache,
    work: Activations,
    /// The passes' small inputs, as [`Passes`] says.
    packed: Buffer,
    /// The rows of one pass, written anew for each.
    scratch: StepPlan,
    /// [`SampleRow`]s want one.
    sampling: Arc<crate::sampling::SamplingParams>,
}

/// What a step's draft passes are launched with, and where their inputs are: the first pass's, then parameters of every
/// pass's rows, then the further passes' inputs.
#[derive(Clone, Debug)]
pub(super) struct Passes {
    first: StepShape,
    first_layout: Layout,
    next: StepShape,
    next_layout: Layout,
    /// Drafts of the sequence that has most: passes that choose tokens.
    drafts: usize,
}

impl Passes {
    fn new(first: StepShape, next: StepShape, drafts: usize) -> Self {
        Passes { first_layout: Layout::of(&first), first, next_layout: Layout::of(&next), next, drafts }
    }

    /// Of a graph for so many sequences with up to so many drafts, or none.
    pub fn graph(sequences: usize, drafts: usize, max_kv: usize) -> Self {
        let queries = if drafts > 0 { 2 } else { 1 };
        let first = StepShape::draft(sequences, queries, drafts, max_kv);
        Passes::new(first, StepShape::decode(sequences, 1, max_kv), drafts)
    }

    /// Of a pass over `shape` that chooses nothing.
    pub fn reading(shape: StepShape) -> Self {
        Passes::new(StepShape { head_rows: 0, ..shape }, StepShape::default(), 0)
    }

    /// Words of pass `pass`'s parameters.
    fn params(&self, pass: usize) -> Range<usize> {
        let rows = self.first.head_rows * WORDS;
        let start = self.first_layout.words + pass * rows;
        start..start + rows
    }

    /// Words of the inputs of pass `pass`, which is not the first.
    fn inputs(&self, pass: usize) -> Range<usize> {
        let start = self.params(self.drafts).start + (pass - 1) * self.next_layout.words;
        start..start + self.next_layout.words
    }

    fn words(&self) -> usize {
        match self.drafts {
            0 => self.first_layout.words,
            drafts => self.inputs(drafts).start,
        }
    }

    /// Most words of a step within the bounds.
    pub fn most(limits: &Limits, drafts: usize) -> usize {
        let Limits { max_tokens, max_sequences: rows, .. } = *limits;
        Layout::most(max_tokens + rows, rows, rows) + drafts * (rows * WORDS + Layout::most(rows, rows, rows))
    }
}

/// Bounds of the draft model's steps: a sequence that decodes may have a row more than in the target's.
pub(super) fn limits(limits: &Limits) -> Limits {
    Limits { max_tokens: limits.max_tokens + limits.max_sequences, ..*limits }
}

impl Draft {
    /// With a cache of one page, until [`Draft::reserve`].
    pub fn new(stream: &Stream, model: Model, bounds: &Limits, drafts: usize) -> Result<Self> {
        let device = stream.device();
        Ok(Draft {
            kv: KvCache::new(device, model.config(), model.dtype(), 1, 0)?,
            work: Activations::new(stream, model.config(), model.dtype(), &limits(bounds))?,
            packed: Buffer::new(device, DType::U32, Passes::most(bounds, drafts))?,
            scratch: StepPlan::default(),
            sampling: Arc::default(),
            model,
        })
    }

    /// The cache that mirrors the target's.
    pub fn reserve(&mut self, stream: &Stream, pages: usize, host_pages: usize) -> Result<()> {
        self.kv = KvCache::new(stream.device(), self.model.config(), self.model.dtype(), pages, host_pages)?;
        self.kv.clear(stream)
    }

    /// Bytes of weights, cache, activations and inputs.
    pub fn bytes(&self) -> [usize; 4] {
        [
            parameter_count(self.model.config()) as usize * self.model.dtype().size(),
            self.kv.device_bytes(),
            self.work.bytes(),
            self.packed.len() * size_of::<u32>(),
        ]
    }

    /// Pinned memory for one step's inputs.
    pub fn staging(&self, stream: &Stream) -> Result<Pinned> {
        Ok(Pinned::new(stream.device(), self.packed.len() * size_of::<u32>())?)
    }

    /// Queues the copy of the passes' inputs. `graph`: those of the graph that the step takes.
    pub fn upload(
        &mut self,
        stream: &Stream,
        plan: &StepPlan,
        graph: Option<Passes>,
        staging: &mut Pinned,
    ) -> Result<Passes> {
        self.first_pass(plan, graph.as_ref().is_some_and(|passes| passes.drafts > 0));
        let drafts = self.drafts(plan);
        let queries = graph.as_ref().map_or(1, |passes| passes.first.max_decode_query);
        let passes = graph.unwrap_or_else(|| {
            let first = StepShape::of(&self.scratch);
            Passes::new(first, StepShape::decode(plan.decodes, 1, first.max_kv + drafts), drafts)
        });
        let words = staging.host::<u32>()?;
        passes.first_layout.write(&self.scratch, queries, words);
        for pass in 0..passes.drafts {
            write_params(plan, pass, &mut words[passes.params(pass)]);
            if pass > 0 {
                self.next_pass(plan, pass);
                passes.next_layout.write(&self.scratch, 1, &mut words[passes.inputs(pass)]);
            }
        }
        stream.upload_pinned(staging, 0, self.packed.view_mut().columns(0, passes.words()))?;
        Ok(passes)
    }

    /// Drafts of the sequence that has most. N-grams' are the host's.
    fn drafts(&self, plan: &StepPlan) -> usize {
        let drafts = plan.samples[..plan.decodes].iter().map(|sample| sample.drafts);
        drafts.max().unwrap_or(0) as usize
    }

    /// The first pass's rows: two of each sequence that decodes, if any of them has drafts or `pairs` says so; then all
    /// of the prompts'.
    fn first_pass(&mut self, plan: &StepPlan, pairs: bool) {
        let mut first = std::mem::take(&mut self.scratch);
        clear(&mut first);
        let (decodes, prefills) = plan.sequences.split_at(plan.decodes);
        let drafts = self.drafts(plan) > 0;
        let pairs = pairs || drafts || decodes.iter().any(|sequence| sequence.unseen.is_some());
        let mut row = 0;
        for (sequence, sample) in decodes.iter().zip(&plan.samples) {
            let len = sequence.kv_len - sample.drafts;
            let pair = pairs && len > 1;
            if pair {
                // Where the cache is whole the row is there for its place only.
                let before = len as usize - 2;
                let page = plan.pages[sequence.pages.clone()][before / PAGE_TOKENS];
                let slot = page * PAGE_TOKENS as u32 + (before % PAGE_TOKENS) as u32;
                let slot = sequence.unseen.map_or(u32::MAX, |_| slot);
                push(&mut first, [sequence.unseen.unwrap_or(0), before as u32, slot]);
            }
            push(&mut first, [plan.tokens[row], plan.positions[row], plan.slots[row]]);
            first.sequences.push(PlannedSequence { queries: 1 + u32::from(pair), kv_len: len, ..sequence.clone() });
            if drafts {
                self.choose(&mut first);
            }
            row += sequence.queries as usize;
        }
        first.tokens.extend(&plan.tokens[row..]);
        first.positions.extend(&plan.positions[row..]);
        first.slots.extend(&plan.slots[row..]);
        first.sequences.extend(prefills.iter().cloned());
        first.decodes = plan.decodes;
        self.scratch = first;
    }

    /// The rows of a further pass: of each sequence that decodes the draft before. Those with fewer drafts keep their place.
    fn next_pass(&mut self, plan: &StepPlan, pass: usize) {
        let mut next = std::mem::take(&mut self.scratch);
        clear(&mut next);
        let mut row = 0;
        for (sequence, sample) in plan.sequences[..plan.decodes].iter().zip(&plan.samples) {
            let there = (sample.drafts as usize).min(pass);
            let at = row + there;
            let token = match sample.drafts {
                0 => 0,
                _ => FROM_DRAFT | (sequence.seq_slot * MAX_DRAFTS as u32 + pass as u32 - 1),
            };
            let slot = if there == pass { plan.slots[at] } else { u32::MAX };
            push(&mut next, [token, plan.positions[at], slot]);
            let kv_len = sequence.kv_len - sample.drafts + there as u32;
            next.sequences.push(PlannedSequence { queries: 1, kv_len, ..sequence.clone() });
            self.choose(&mut next);
            row += sequence.queries as usize;
        }
        next.decodes = plan.decodes;
        self.scratch = next;
    }

    /// The last row chooses a token.
    fn choose(&self, pass: &mut StepPlan) {
        let (row, sampling) = (pass.tokens.len() as u32 - 1, self.sampling.clone());
        pass.samples.push(SampleRow {
            request: RequestId::NOBODY,
            index: 0,
            row,
            drafts: 0,
            seq_slot: 0,
            position: 0,
            may_end_at: 0,
            sampling,
        });
    }

    /// Queues the passes, with some of the layers.
    pub fn forward(
        &mut self,
        stream: &Stream,
        passes: &Passes,
        tables: &BlockTables,
        sampler: &mut Sampler,
        layers: Range<usize>,
    ) -> Result<()> {
        let Draft { model, kv, work, packed, .. } = self;
        let vocab = model.config().vocab_size;
        for pass in 0..passes.drafts.max(1) {
            let (shape, layout, inputs) = match pass {
                0 => (&passes.first, &passes.first_layout, 0..passes.first_layout.words),
                _ => (&passes.next, &passes.next_layout, passes.inputs(pass)),
            };
            let inputs = packed.view().columns(inputs.start, inputs.len());
            let (last_tokens, drafts) = (sampler.last_tokens(), Some(sampler.drafts()));
            let step = layout.input(shape, inputs, Fixed { block_tables: tables.view(), last_tokens, drafts });
            model.embed(stream, &step, work)?;
            model.layers(stream, layers.clone(), &step, kv, work)?;
            if passes.drafts > 0 {
                let rows = shape.head_rows;
                model.head(stream, layout.rows(inputs), work, sampler.draft_logits_mut(rows, vocab))?;
                let params = passes.params(pass);
                let params = packed.view().columns(params.start, params.len()).matrix(rows, WORDS);
                sampler.draft(stream, params, vocab)?;
            }
        }
        Ok(())
    }
}

/// Where the tokens of pass `pass` go; rows of padding and of sequences with fewer drafts choose for nobody.
fn write_params(plan: &StepPlan, pass: usize, words: &mut [u32]) {
    let samples = plan.samples[..plan.decodes].iter();
    let places = samples.map(|sample| match sample.drafts as usize > pass {
        true => sample.seq_slot * MAX_DRAFTS as u32 + pass as u32,
        false => SamplingParams::NONE,
    });
    for (into, seq_slot) in words.chunks_exact_mut(WORDS).zip(places.chain(std::iter::repeat(SamplingParams::NONE))) {
        let params = SamplingParams { seq_slot, ..SamplingParams::GREEDY };
        into.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&params)));
    }
}

fn push(plan: &mut StepPlan, [token, position, slot]: [u32; 3]) {
    plan.tokens.push(token);
    plan.positions.push(position);
    plan.slots.push(slot);
}

fn clear(plan: &mut StepPlan) {
    plan.tokens.clear();
    plan.positions.clear();
    plan.slots.clear();
    plan.sequences.clear();
    plan.samples.clear();
}
