//! Which tokens run in the next step. Pure: knows no device.
//!
//! [`Scheduler::plan`] makes a [`StepPlan`], the runner runs it, [`Scheduler::commit`] takes in what it chose. A plan may
//! be made while the one before it still runs: positions and pages of the next step do not depend on which tokens the last
//! one chose, and a sequence that turns out to have ended is dropped when its needless row comes back. Sequences whose
//! next step does depend on it (beams, drafts) sit out until it is committed.
//!
//! Every step has one budget of tokens. Two bounds hold, both tested by the simulator:
//! - **Decode gap.** A running sequence that decodes and has its pages is in every step, whatever prompts there are: it is
//!   given its row before any prompt is.
//! - **Prefill wait.** The first running prompt, by priority and arrival, is in every step with at least
//!   `max_tokens - max_sequences + 1` rows (where others speculate, with a quarter of `max_tokens` if that is less), or
//!   with all that it has left, as far as there are pages.
//!
//! Pages are given in the order of priority and arrival, and only a later sequence is ever preempted for an earlier one;
//! so the first always goes on, and everything ends. A preempted sequence keeps its place in that order, and its computed
//! blocks stay in the prefix tree until somebody needs their pages.
mod beam;
mod beams;
mod blocks;
mod commit;
mod config;
mod group;
mod ngram;
mod plan;
mod planning;
mod pool;
mod prefix;
mod request;
mod sequence;
#[cfg(test)]
mod simulator;
mod snapshot;
#[cfg(test)]
mod tests;

pub use beam::MAX_BEAMS;
pub use config::{Limits, Policy, SchedulerConfig, SchedulerMetrics};
pub use plan::*;
pub use request::*;
pub use snapshot::*;

use crate::error::{Error, Result};
use crate::kv::PAGE_TOKENS;
use crate::pooling::{Pooled, Pooling};
use beam::BeamSearch;
use blocks::Blocks;
use group::{Group, Groups};
use planning::Row;
use sequence::{Key, NO_SLOT, Sequence, Sequences, Shared, State};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Plans that may be open at once: one runs, one waits for it.
const MAX_PLANS: u64 = 2;

/// The queue, the running sequences and the pages.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    blocks: Blocks,
    sequences: Sequences,
    groups: Groups,
    waiting: BTreeMap<Key, u32>,
    /// Sorted by key.
    running: Vec<u32>,
    free_slots: Vec<u32>,
    /// Pages that running requests are promised, of those that are available.
    reserved: usize,
    arrivals: u64,
    planned: u64,
    committed: u64,
    /// The first in the queue and how many pages were too few for it.
    blocked: Option<(Key, usize)>,
    metrics: SchedulerMetrics,
    /// Reused from step to step.
    rows: Vec<Row>,
    drafts: Vec<u32>,
    spare: Vec<StepPlan>,
}

impl Scheduler {
    /// An idle scheduler over `pages` pages of the device.
    pub fn new(mut config: SchedulerConfig, pages: usize) -> Self {
        config.limits.max_sequences = config.limits.max_sequences.max(1);
        config.limits.max_tokens = config.limits.max_tokens.max(config.limits.max_sequences);
        Scheduler {
            blocks: Blocks::new(pages, config.host_pages, config.prefix_cache),
            sequences: Sequences::default(),
            groups: Groups::default(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            free_slots: (0..config.limits.max_sequences as u32).rev().collect(),
            reserved: 0,
            arrivals: 0,
            planned: 0,
            committed: 0,
            blocked: None,
            metrics: SchedulerMetrics::default(),
            rows: Vec::new(),
            drafts: Vec::new(),
            spare: Vec::new(),
            config,
        }
    }

    /// The bounds it was made with.
    pub fn limits(&self) -> Limits {
        self.config.limits
    }

    /// Longest sequence that fits: the model's limit, or all the pages.
    pub fn max_len(&self) -> usize {
        self.admission().max_len()
    }

    /// Queues a request. Its answers are cut where they would pass [`Scheduler::max_len`].
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::PromptTooLong`] for what can never run.
    pub fn add(&mut self, request: SequenceRequest) -> Result<RequestId> {
        self.check(&request)?;
        let id = RequestId(self.arrivals);
        let total = request.prompt.len() + request.max_tokens.clamp(1, self.max_len() - request.prompt.len());
        let count = request.beam.map_or(request.n, |beam| beam.width);
        let mut sampling = request.sampling;
        if let Some(beam) = request.beam {
            sampling.logprobs = Some(BeamSearch::<()>::tops(beam, request.stop_tokens.len()));
        }
        let shared = Arc::new(Shared {
            prompt: request.prompt.as_slice().into(),
            stop_tokens: request.stop_tokens,
            salt: request.salt,
            speculation: match request.speculation {
                Speculation::Auto => Speculation::Off,
                _ if request.beam.is_some() || request.pooling.is_some() => Speculation::Off,
                speculation => speculation,
            },
            // A mean needs all the rows.
            reuse_prefix: request.reuse_prefix && request.pooling != Some(Pooling::Mean),
            pooling: request.pooling,
        });
        let group = self.groups.next();
        let mut members = Vec::with_capacity(count);
        for index in 0..count as u32 {
            let mut sampling = sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(u64::from(index));
            members.push(self.sequences.insert(|sequence| Sequence {
                id: sequence,
                request: id,
                group,
                index,
                key: (request.priority, id.0, index),
                state: if index == 0 { State::Waiting } else { State::Dormant },
                slot: NO_SLOT,
                tokens: if index == 0 { request.prompt.clone() } else { Vec::new() },
                total,
                kv: 0,
                computed: 0,
                pending: 0,
                in_flight: 0,
                pages: Vec::new(),
                published: 0,
                draft_lags: false,
                epoch: 0,
                forks: index == 0 && count > 1 && request.beam.is_none(),
                beam: request.beam.is_some(),
                pooled: Pooled::default(),
                shared: shared.clone(),
                sampling: Arc::new(sampling),
            }));
        }
        let spare = if request.beam.is_some() { members.split_off(1) } else { Vec::new() };
        self.waiting.insert((request.priority, id.0, 0), members[0].index);
        self.groups.insert(Group {
            request: id,
            members,
            spare,
            forked: count == 1,
            beam: request.beam.map(|beam| BeamSearch::new(beam, total - request.prompt.len())),
            answers: request.n,
            guaranteed: self.config.policy == Policy::GuaranteedNoEvict || request.beam.is_some(),
            reserved: 0,
            started: false,
        });
        self.arrivals += 1;
        Ok(id)
    }

    fn check(&self, request: &SequenceRequest) -> Result<()> {
        self.admission().check(request)
    }

    /// What it can ever run.
    pub fn admission(&self) -> Admission {
        Admission { limits: self.config.limits, policy: self.config.policy, pages: self.blocks.pages() }
    }

    /// Drops one of a request's `n` answers, as [`Scheduler::cancel`] drops them all. True if it was open and had tokens of
    /// its own; beams have none before the search is over.
    pub fn cancel_answer(&mut self, id: RequestId, index: u32) -> bool {
        let Some(group) = self.groups.find(id).map(|at| &self.groups[at]) else { return false };
        let mut members = group.members.iter().map(|member| member.index);
        let found = members.find(|at| self.sequences[*at].index == index && group.forked && group.beam.is_none());
        found.inspect(|at| self.end(*at)).is_some()
    }

    /// Drops a request at any moment; its pages are free at once, rows that are under way are ignored when they come
    /// back. True if it was open: the caller tells whoever waits for it ([`FinishReason::Abort`]).
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let Some(group) = self.groups.find(id) else { return false };
        let all: Vec<u32> = self.groups[group].bodies().map(|sequence| sequence.index).collect();
        for sequence in all {
            self.end(sequence);
        }
        true
    }

    /// Whether anything waits or runs. Plans may still be open when nothing does.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Plans that are not committed.
    pub fn open_plans(&self) -> usize {
        (self.planned - self.committed) as usize
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.blocks.pages()
    }

    /// Pages that can be had: free, or with blocks that nobody uses at present.
    pub fn free_pages(&self) -> usize {
        self.blocks.available()
    }

    /// Counts since the start, and the state now.
    pub fn metrics(&self) -> SchedulerMetrics {
        SchedulerMetrics {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages: self.blocks.pages(),
            used_pages: self.blocks.pages() - self.blocks.available(),
            cached_pages: self.blocks.idle(),
            host_pages: self.blocks.host_used(),
            swapped_out: self.blocks.swapped.0,
            swapped_in: self.blocks.swapped.1,
            ..self.metrics
        }
    }

    /// Ends a sequence: everything it holds is given back.
    fn end(&mut self, index: u32) {
        self.leave(index);
        let Some(sequence) = self.sequences.remove(index) else { return };
        let group = sequence.group;
        if self.groups[group].remove(sequence.id) {
            self.reserved -= self.groups[group].reserved;
            self.groups.remove(group);
        } else {
            self.reserve(group);
        }
    }

    /// Takes a sequence out of the queue or off its slot and gives its pages back.
    fn leave(&mut self, index: u32) {
        let sequence = &mut self.sequences[index];
        match sequence.state {
            State::Waiting => {
                self.waiting.remove(&sequence.key);
            }
            State::Running => self.running.retain(|other| *other != index),
            State::Dormant => {}
        }
        sequence.state = State::Dormant;
        if sequence.slot != NO_SLOT {
            self.free_slots.push(std::mem::replace(&mut sequence.slot, NO_SLOT));
        }
        let pages = sequence.start_over();
        self.blocks.release(&pages);
    }

    /// Puts a sequence among the running ones.
    fn run(&mut self, index: u32) {
        self.sequences[index].state = State::Running;
        let key = self.sequences[index].key;
        let at = self.running.partition_point(|other| self.sequences[*other].key < key);
        self.running.insert(at, index);
    }
}

/// Bounds of a scheduler that never change, to check requests on any thread.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Bounds of a step and of a sequence.
    pub limits: Limits,
    /// When sequences start.
    pub policy: Policy,
    /// Pages of the device.
    pub pages: usize,
}

impl Admission {
    /// Longest sequence that fits: the model's limit, or all the pages.
    pub fn max_len(&self) -> usize {
        self.limits.max_model_len.min(self.pages * PAGE_TOKENS)
    }

    /// Refuses what can never run.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::PromptTooLong`].
    pub fn check(&self, request: &SequenceRequest) -> Result<()> {
        let fail = |problem: String| Err(Error::Request { problem });
        request.sampling.validate()?;
        let (len, max) = (request.prompt.len(), self.max_len());
        if request.prompt.is_empty() {
            return fail("the prompt is empty, it must have at least one token".into());
        }
        if len >= max {
            return Err(Error::PromptTooLong { tokens: len, max });
        }
        if request.pooling.is_some() && (request.n, request.max_tokens, request.beam) != (1, 1, None) {
            return fail("an embedding is asked for with n 1, max_tokens 1 and without beams".into());
        }
        let (name, count) = request.beam.map_or(("n", request.n), |beam| ("the beam width", beam.width));
        let most = self.limits.max_sequences;
        if count == 0 || count > most {
            return fail(format!("{name} is {count}, it must be between 1 and {most} (--max-num-seqs)"));
        }
        if let Some(beam) = request.beam {
            check_beam(request, beam)?;
        }
        let drafts = match request.speculation {
            Speculation::Auto | Speculation::Off => 1,
            Speculation::Draft { drafts } => drafts,
            Speculation::Ngram { drafts, max_n, min_n } => {
                if min_n == 0 || max_n < min_n {
                    return fail(format!("n-grams are {min_n} to {max_n} tokens long, it must be 1 ≤ min ≤ max"));
                }
                drafts
            }
        };
        if !(1..=MAX_DRAFTS).contains(&drafts) {
            return fail(format!("{drafts} draft tokens a step, it must be between 1 and {MAX_DRAFTS}"));
        }
        // What must fit to the end must fit into an empty cache.
        if count > 1 && (request.beam.is_some() || self.policy == Policy::GuaranteedNoEvict) {
            let total = len + request.max_tokens.clamp(1, max - len);
            let all = (total - 1).div_ceil(PAGE_TOKENS);
            let pages = all + (count - 1) * (all - len / PAGE_TOKENS);
            if pages > self.pages {
                return fail(format!(
                    "{name} is {count} with up to {total} tokens each: that takes {pages} pages of {PAGE_TOKENS} tokens, the KV cache has {}; lower {name} or max_tokens",
                    self.pages
                ));
            }
        }
        Ok(())
    }
}

fn check_beam(request: &SequenceRequest, beam: BeamParams) -> Result<()> {
    let fail = |problem: String| Err(Error::Request { problem });
    let sampling = &request.sampling;
    if !(2..=MAX_BEAMS).contains(&beam.width) {
        return fail(format!("the beam width is {}, it must be between 2 and {MAX_BEAMS}", beam.width));
    }
    if !beam.length_penalty.is_finite() {
        return fail(format!("length_penalty is {}, it must be a finite number", beam.length_penalty));
    }
    if request.n == 0 || request.n > beam.width {
        return fail(format!("n is {}, it must be between 1 and the beam width {}", request.n, beam.width));
    }
    if sampling.grammar.is_some() {
        return fail("beam search takes no grammar; leave one of them out, or sample with n".into());
    }
    if sampling.temperature != 0.0 || sampling.has_penalties() || !sampling.logit_bias.is_empty() {
        return fail("beam search takes no temperature, penalties or logit_bias; leave them out".into());
    }
    if sampling.min_tokens > 0 {
        return fail("beam search takes no min_tokens; leave it out, or sample with n".into());
    }
    Ok(())
}
