//! Taking in what a step chose.
use super::Scheduler;
use super::plan::{Entry, Sampled, StepOutput, StepPlan};
use super::request::{FinishReason, Progress, Speculation};
use crate::kv::PAGE_TOKENS;

impl Scheduler {
    /// Takes in what a step chose: tokens of each answer in order, and who has finished.
    ///
    /// # Panics
    /// If plans are not committed in the order in which they were made, or the output does not fit the plan.
    pub fn commit(&mut self, mut plan: StepPlan, output: &StepOutput) -> Vec<Progress> {
        assert_eq!(plan.number, self.committed, "plans are committed in their order");
        assert_eq!(plan.samples.len(), output.samples.len(), "one output for each sample of the plan");
        assert_eq!(plan.pools.len(), output.pooled.len(), "one sum for each of the plan's pools");
        self.committed += 1;
        let mut progress = Vec::with_capacity(output.samples.len());
        let mut beams = Vec::new();
        let (mut at, mut pooled) = (0, output.pooled.iter());
        for entry in &plan.entries {
            let sampled = entry.samples.then(|| &output.samples[at]);
            at += usize::from(entry.samples);
            let pooled = if entry.pools { pooled.next() } else { None };
            // Whoever ended or was cancelled during the step has nobody to tell.
            let Some(sequence) = self.sequences.get_mut(entry.id) else { continue };
            sequence.in_flight -= 1;
            sequence.pending -= usize::from(entry.samples);
            if sequence.beam {
                self.cached(entry, 0);
                if let Some(sampled) = sampled {
                    beams.push((self.sequences[entry.id.index].group, entry.id, sampled));
                }
                continue;
            }
            // Of rows from before it started over there is nothing left.
            if let Some(pooled) = pooled
                && sequence.epoch == entry.epoch
            {
                sequence.pooled.join(pooled);
            }
            let finished = sampled.and_then(|sampled| self.take(entry, sampled, &mut progress));
            self.cached(entry, sampled.map_or(0, |sampled| sampled.tokens.len() - 1));
            if finished.is_some() {
                self.end(entry.id.index);
            }
        }
        // Members of a group sample in one step, so a group's are together.
        beams.sort_by_key(|(group, _, _)| *group);
        for samples in beams.chunk_by(|a, b| a.0 == b.0) {
            self.advance_beams(samples, &mut progress);
        }
        plan.clear();
        self.spare.push(plan);
        progress
    }

    /// Appends a sequence's new tokens.
    fn take(&mut self, entry: &Entry, sampled: &Sampled, progress: &mut Vec<Progress>) -> Option<FinishReason> {
        let count = sampled.tokens.len();
        assert!((1..=1 + entry.drafts as usize).contains(&count), "{count} tokens for {} drafts", entry.drafts);
        for position in 0..entry.drafts as usize {
            self.metrics.drafted[position] += 1;
            self.metrics.accepted[position] += u64::from(position + 1 < count);
        }
        let sequence = &mut self.sequences[entry.id.index];
        for (i, &token) in sampled.tokens.iter().enumerate() {
            let stopped = sequence.shared.stop_tokens.contains(&token);
            sequence.tokens.push(token);
            // An embedding's one token is nobody's.
            self.metrics.generated_tokens += u64::from(sequence.shared.pooling.is_none());
            let finished = if stopped {
                Some(FinishReason::Stop)
            } else {
                (sequence.tokens.len() >= sequence.total).then_some(FinishReason::Length)
            };
            progress.push(Progress {
                id: sequence.request,
                index: sequence.index,
                token: (!stopped).then_some(token),
                logprobs: sampled.logprobs.get(i).cloned(),
                finished,
                score: None,
                embedding: sequence.shared.pooling.map(|_| sequence.pooled.mean()),
            });
            if finished.is_some() {
                return finished;
            }
        }
        None
    }

    /// A step's rows and `accepted` drafts are in the cache: full blocks of them go to the prefix tree.
    fn cached(&mut self, entry: &Entry, accepted: usize) {
        let mut sequence = &mut self.sequences[entry.id.index];
        // It has started over since, without these pages.
        if sequence.epoch != entry.epoch {
            return;
        }
        let prompt = sequence.shared.prompt.len();
        self.metrics.prompt_tokens +=
            prompt.saturating_sub(entry.kv as usize - entry.queries as usize).min(entry.queries as usize) as u64;
        sequence.computed = (entry.kv as usize + accepted).min(sequence.tokens.len());
        if sequence.needs_host() {
            sequence.kv = sequence.computed;
        }
        sequence.draft_lags = matches!(sequence.shared.speculation, Speculation::Draft { .. })
            && (1..=accepted).contains(&(entry.drafts as usize));
        // Who shares a block finds it whole in both caches.
        let whole = sequence.computed - usize::from(sequence.draft_lags);
        while self.blocks.sharing() && (sequence.published + 1) * PAGE_TOKENS <= whole {
            let at = sequence.published;
            let previous = at.checked_sub(1).map(|before| sequence.pages[before]);
            let tokens = &sequence.tokens[at * PAGE_TOKENS..][..PAGE_TOKENS];
            let old = sequence.pages[at];
            let page = self.blocks.publish(&sequence.shared.salt, previous, tokens, old);
            sequence.pages[at] = page;
            sequence.published += 1;
            if page != old {
                let group = sequence.group;
                self.replace(group, at, old, page);
            }
            sequence = &mut self.sequences[entry.id.index];
        }
    }

    /// Forks of a sequence that found its block in the tree take the tree's page, too: two pages with the same block would
    /// be one more than the group is promised.
    fn replace(&mut self, group: u32, at: usize, old: u32, page: u32) {
        for id in self.groups[group].bodies() {
            let sequence = &mut self.sequences[id.index];
            if sequence.pages.get(at) == Some(&old) {
                sequence.pages[at] = page;
                self.blocks.hold(page);
                self.blocks.release(&[old]);
            }
        }
    }
}
