//! Which tokens run in the next step. Pure: knows no device.
//!
//! First come, first served: every running sequence decodes one token, and what is left of the step's
//! token budget goes to prompts, in chunks. A sequence is admitted when pages for its whole length are
//! free, so nothing is ever evicted.
mod plan;
mod request;

use crate::kv::{PAGE_TOKENS, PagePool};
use crate::sampling::SamplingParams;
pub use plan::*;
pub use request::*;
use std::collections::VecDeque;
use std::sync::Arc;

struct Sequence {
    id: RequestId,
    request: SequenceRequest,
    sampling: Arc<SamplingParams>,
    slot: u32,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    pages: Vec<u32>,
}

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most tokens in a step.
    pub max_tokens: usize,
    /// Most sequences that run at once.
    pub max_sequences: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: usize,
}

/// The queue, the running sequences and the pages.
pub struct Scheduler {
    limits: Limits,
    pool: PagePool,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    next_id: u64,
    free_slots: Vec<u32>,
}

impl Scheduler {
    /// An idle scheduler over `pages` pages.
    pub fn new(limits: Limits, pages: usize) -> Self {
        Scheduler {
            limits,
            pool: PagePool::new(pages),
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            free_slots: (0..limits.max_sequences as u32).rev().collect(),
        }
    }

    /// The bounds it was made with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Longest sequence that fits: the model's limit, or all the pages.
    pub fn max_len(&self) -> usize {
        self.limits.max_model_len.min(self.pool.pages() * PAGE_TOKENS)
    }

    /// Queues a sequence. Its answer is cut where it would pass [`Scheduler::max_len`].
    ///
    /// # Panics
    /// If the prompt is empty or leaves no room for a token: the caller checks both.
    pub fn add(&mut self, mut request: SequenceRequest) -> RequestId {
        assert!(!request.prompt.is_empty() && request.prompt.len() < self.max_len(), "an unchecked prompt");
        request.max_tokens = request.max_tokens.clamp(1, self.max_len() - request.prompt.len());
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let tokens = request.prompt.clone();
        let sampling = Arc::new(request.sampling.clone());
        self.waiting.push_back(Sequence { id, request, sampling, slot: 0, tokens, cached: 0, pages: Vec::new() });
        id
    }

    /// Drops a sequence and frees its pages.
    pub fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(at);
            self.pool.give_back(sequence.pages);
            self.free_slots.push(sequence.slot);
        }
    }

    /// Whether anything waits or runs.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.pool.pages()
    }

    /// Pages that are free.
    pub fn free_pages(&self) -> usize {
        self.pool.available()
    }

    /// The next step; `None` if nothing can be planned now.
    pub fn plan(&mut self) -> Option<StepPlan> {
        let mut plan = StepPlan::default();
        self.admit(&mut plan);
        let mut budget = self.limits.max_tokens;
        let mut counts: Vec<usize> = self.running.iter().map(|s| s.tokens.len() - s.cached).collect();
        // Decodes first: a sequence that has one token to go always gets it.
        for one in [true, false] {
            for count in counts.iter_mut().filter(|count| (**count == 1) == one) {
                *count = (*count).min(budget);
                budget -= *count;
            }
        }
        for (sequence, _) in self.running.iter().zip(&counts).filter(|(_, count)| **count == 1) {
            plan.push(sequence, 1);
        }
        plan.decodes = plan.entries.len();
        for (sequence, &count) in self.running.iter().zip(&counts).filter(|(_, count)| **count > 1) {
            plan.push(sequence, count);
        }
        (!plan.is_empty()).then_some(plan)
    }

    fn admit(&mut self, plan: &mut StepPlan) {
        while self.running.len() < self.limits.max_sequences
            && let Some(first) = self.waiting.front()
        {
            let pages = (first.request.prompt.len() + first.request.max_tokens).div_ceil(PAGE_TOKENS);
            let Some(pages) = self.pool.take(pages) else { return };
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            sequence.pages = pages;
            sequence.slot = self.free_slots.pop().unwrap_or_default();
            plan.entering.push(Entering {
                seq_slot: sequence.slot,
                prompt: sequence.request.prompt.as_slice().into(),
                generated: Vec::new(),
                sampling: sequence.sampling.clone(),
            });
            self.running.push(sequence);
        }
    }

    /// Takes in what the step chose.
    pub fn commit(&mut self, plan: StepPlan, output: &StepOutput) -> Vec<Progress> {
        let mut sampled = output.samples.iter();
        let mut progress = Vec::new();
        for entry in plan.entries {
            // A sequence that was cancelled during the step has nobody to tell.
            let chosen = if entry.samples { sampled.next() } else { None };
            let id = RequestId(u64::from(entry.id.index));
            let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else { continue };
            let sequence = &mut self.running[at];
            sequence.cached += entry.queries as usize;
            let Some(&token) = chosen.and_then(|chosen| chosen.tokens.first()) else { continue };
            let stopped = sequence.request.stop_tokens.contains(&token);
            sequence.tokens.push(token);
            let generated = sequence.tokens.len() - sequence.request.prompt.len();
            let finished = if stopped {
                Some(FinishReason::Stop)
            } else {
                (generated >= sequence.request.max_tokens).then_some(FinishReason::Length)
            };
            let token = (!stopped).then_some(token);
            progress.push(Progress { id, index: 0, token, logprobs: None, finished, score: None });
            if finished.is_some() {
                let sequence = self.running.remove(at);
                self.pool.give_back(sequence.pages);
                self.free_slots.push(sequence.slot);
            }
        }
        progress
    }
}

impl StepPlan {
    fn push(&mut self, sequence: &Sequence, count: usize) {
        let (start, end) = (sequence.cached, sequence.cached + count);
        let row = self.tokens.len();
        for position in start..end {
            self.tokens.push(sequence.tokens[position]);
            self.positions.push(position as u32);
            self.slots
                .push(sequence.pages[position / PAGE_TOKENS] * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32);
        }
        let samples = end == sequence.tokens.len();
        if samples {
            self.samples.push(SampleRow {
                row: (row + count - 1) as u32,
                drafts: 0,
                seq_slot: sequence.slot,
                position: end as u32,
                sampling: sequence.sampling.clone(),
            });
        }
        let id = SequenceId { index: sequence.id.0 as u32, generation: 0 };
        let pages = self.pages.len()..self.pages.len() + sequence.pages.len();
        self.pages.extend(&sequence.pages);
        self.sequences.push(PlannedSequence {
            id,
            seq_slot: sequence.slot,
            queries: count as u32,
            kv_len: end as u32,
            pages,
        });
        self.entries.push(Entry { id, queries: count as u32, drafts: 0, samples });
    }
}
