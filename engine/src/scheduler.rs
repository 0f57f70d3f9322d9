//! Which tokens run in the next step. Pure: knows no device.
//!
//! First come, first served: every running sequence decodes one token, and what is left of the step's
//! token budget goes to prompts, in chunks. A sequence is admitted when pages for its whole length are
//! free, so nothing is ever evicted.
use crate::kv::{PAGE_TOKENS, PagePool};
use crate::sampling::SamplingParams;
use std::collections::VecDeque;

/// Names a sequence for its whole life; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// What a sequence needs to be scheduled.
#[derive(Clone, Debug)]
pub struct SequenceRequest {
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the sequence (they are not reported).
    pub stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// What a step did to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The sequence.
    pub id: SequenceId,
    /// A new token; `None` if it was a stop token.
    pub token: Option<u32>,
    /// Set with the last one.
    pub finished: Option<FinishReason>,
}

struct Sequence {
    id: SequenceId,
    request: SequenceRequest,
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

/// The inputs of one step, as plain data. Sequences with one token come first.
#[must_use]
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Position of each.
    pub positions: Vec<u32>,
    /// `page * 64 + slot` of each.
    pub slots: Vec<u32>,
    /// Pages of each sequence.
    pub block_tables: Vec<Vec<u32>>,
    /// Tokens in the cache after the step, of each sequence.
    pub kv_lens: Vec<u32>,
    /// Sequences with exactly one token.
    pub decodes: usize,
    /// Starts of the other sequences' tokens, counted from the first of them, and their end.
    pub query_starts: Vec<u32>,
    /// Row of the last token of each sequence that samples.
    pub sample_rows: Vec<u32>,
    /// How each of them samples, and the position of the sampled token.
    pub sampling: Vec<(SamplingParams, u32)>,
    /// Per sequence, in order: its id, and whether it samples.
    entries: Vec<(SequenceId, usize, bool)>,
}

impl StepPlan {
    /// Longest query of the sequences with more than one token.
    pub fn max_query(&self) -> usize {
        self.query_starts.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }

    /// Longest cache of the sequences with one token.
    pub fn max_kv(&self) -> usize {
        self.kv_lens[..self.decodes].iter().copied().max().unwrap_or(0) as usize
    }
}

/// The queue, the running sequences and the pages.
pub struct Scheduler {
    limits: Limits,
    pool: PagePool,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    next_id: u64,
}

impl Scheduler {
    /// An idle scheduler over `pages` pages.
    pub fn new(limits: Limits, pages: usize) -> Self {
        Scheduler { limits, pool: PagePool::new(pages), waiting: VecDeque::new(), running: Vec::new(), next_id: 0 }
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
    pub fn add(&mut self, mut request: SequenceRequest) -> SequenceId {
        assert!(!request.prompt.is_empty() && request.prompt.len() < self.max_len(), "an unchecked prompt");
        request.max_tokens = request.max_tokens.clamp(1, self.max_len() - request.prompt.len());
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let tokens = request.prompt.clone();
        self.waiting.push_back(Sequence { id, request, tokens, cached: 0, pages: Vec::new() });
        id
    }

    /// Drops a sequence and frees its pages.
    pub fn cancel(&mut self, id: SequenceId) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(at);
            self.pool.give_back(sequence.pages);
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

    /// The next step; empty if there is no work.
    pub fn plan(&mut self) -> StepPlan {
        self.admit();
        let mut budget = self.limits.max_tokens;
        let mut counts: Vec<usize> = self.running.iter().map(|s| s.tokens.len() - s.cached).collect();
        // Decodes first: a sequence that has one token to go always gets it.
        for one in [true, false] {
            for count in counts.iter_mut().filter(|count| (**count == 1) == one) {
                *count = (*count).min(budget);
                budget -= *count;
            }
        }
        let mut plan = StepPlan::default();
        for (sequence, _) in self.running.iter().zip(&counts).filter(|(_, count)| **count == 1) {
            plan.push(sequence, 1);
        }
        plan.decodes = plan.entries.len();
        plan.query_starts.push(0);
        for (sequence, &count) in self.running.iter().zip(&counts).filter(|(_, count)| **count > 1) {
            plan.push(sequence, count);
            plan.query_starts.push((plan.tokens.len() - plan.decodes) as u32);
        }
        plan
    }

    fn admit(&mut self) {
        while self.running.len() < self.limits.max_sequences
            && let Some(first) = self.waiting.front()
        {
            let pages = (first.request.prompt.len() + first.request.max_tokens).div_ceil(PAGE_TOKENS);
            let Some(pages) = self.pool.take(pages) else { return };
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            sequence.pages = pages;
            self.running.push(sequence);
        }
    }

    /// Takes in what the step sampled, one token for each of the plan's `sample_rows`.
    pub fn commit(&mut self, plan: StepPlan, sampled: &[u32]) -> Vec<Progress> {
        let mut sampled = sampled.iter();
        let mut progress = Vec::new();
        for (id, count, samples) in plan.entries {
            // A sequence that was cancelled during the step has nobody to tell.
            let token = if samples { sampled.next().copied() } else { None };
            let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else { continue };
            let sequence = &mut self.running[at];
            sequence.cached += count;
            let Some(token) = token else { continue };
            let stopped = sequence.request.stop_tokens.contains(&token);
            sequence.tokens.push(token);
            let generated = sequence.tokens.len() - sequence.request.prompt.len();
            let finished = if stopped {
                Some(FinishReason::Stop)
            } else {
                (generated >= sequence.request.max_tokens).then_some(FinishReason::Length)
            };
            progress.push(Progress { id, token: (!stopped).then_some(token), finished });
            if finished.is_some() {
                let sequence = self.running.remove(at);
                self.pool.give_back(sequence.pages);
            }
        }
        progress
    }
}

impl StepPlan {
    fn push(&mut self, sequence: &Sequence, count: usize) {
        let (start, end) = (sequence.cached, sequence.cached + count);
        for position in start..end {
            self.tokens.push(sequence.tokens[position]);
            self.positions.push(position as u32);
            self.slots
                .push(sequence.pages[position / PAGE_TOKENS] * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32);
        }
        let samples = end == sequence.tokens.len();
        if samples {
            self.sample_rows.push(self.tokens.len() as u32 - 1);
            self.sampling.push((sequence.request.sampling, end as u32));
        }
        self.kv_lens.push(end as u32);
        self.block_tables.push(sequence.pages.clone());
        self.entries.push((sequence.id, count, samples));
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { max_tokens: 100, max_sequences: 4, max_model_len: 1000 };

    fn request(prompt: usize, max_tokens: usize) -> SequenceRequest {
        SequenceRequest {
            prompt: (0..prompt as u32).collect(),
            max_tokens,
            stop_tokens: vec![7777],
            sampling: SamplingParams::default(),
        }
    }

    #[test]
    fn prompts_are_chunked_beside_decodes() {
        let mut scheduler = Scheduler::new(LIMITS, 100);
        let a = scheduler.add(request(3, 5));
        let plan = scheduler.plan();
        assert_eq!((plan.tokens.len(), plan.decodes, plan.sample_rows.as_slice()), (3, 0, &[2u32][..]));
        assert_eq!(scheduler.commit(plan, &[9]), [Progress { id: a, token: Some(9), finished: None }]);
        scheduler.add(request(250, 5));
        let plan = scheduler.plan();
        assert_eq!((plan.decodes, plan.tokens.len(), plan.query_starts.as_slice()), (1, 100, &[0, 99][..]));
        assert_eq!(plan.sample_rows, [0], "an unfinished prompt samples nothing");
        assert_eq!(plan.positions[..2], [3, 0]);
        let _ = scheduler.commit(plan, &[9]);
        let plan = scheduler.plan();
        assert_eq!(plan.positions[1], 99);
    }

    #[test]
    fn stop_tokens_end_a_sequence_and_free_its_pages() {
        let mut scheduler = Scheduler::new(LIMITS, 10);
        let a = scheduler.add(request(3, 500));
        let plan = scheduler.plan();
        assert_eq!(scheduler.free_pages(), 2);
        let progress = scheduler.commit(plan, &[7777]);
        assert_eq!(progress, [Progress { id: a, token: None, finished: Some(FinishReason::Stop) }]);
        assert_eq!(scheduler.free_pages(), 10);
        assert!(!scheduler.has_work());
    }

    proptest! {
        /// Random arrivals and cancels: every step fits its bounds, no page has two owners, everything ends.
        #[test]
        fn random_traffic_drains(requests in proptest::collection::vec((1usize..400, 1usize..200, any::<bool>()), 1..20)) {
            let mut scheduler = Scheduler::new(LIMITS, 12);
            let mut open = Vec::new();
            for (prompt, max_tokens, cancel) in requests {
                let id = scheduler.add(request(prompt, max_tokens));
                open.push((id, cancel));
            }
            let mut steps = 0;
            while scheduler.has_work() {
                let plan = scheduler.plan();
                prop_assert!(!plan.is_empty(), "work but no step");
                prop_assert!(plan.tokens.len() <= LIMITS.max_tokens && plan.kv_lens.len() <= LIMITS.max_sequences);
                let mut pages: Vec<u32> = plan.block_tables.concat();
                let len = pages.len();
                pages.sort_unstable();
                pages.dedup();
                prop_assert_eq!(len, pages.len(), "a page with two owners");
                if steps % 3 == 1 && let Some((id, true)) = open.pop() {
                    scheduler.cancel(id);
                }
                let sampled = vec![1; plan.sample_rows.len()];
                let _ = scheduler.commit(plan, &sampled);
                steps += 1;
                prop_assert!(steps < 10_000);
            }
            prop_assert_eq!(scheduler.free_pages(), 12);
        }
    }
}
