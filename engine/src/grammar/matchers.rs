//! Where the open answers are in their grammars, and which tokens each may choose next.
use super::CompiledGrammar;
use crate::scheduler::{Progress, RequestId, SampleRow, StepOutput, StepPlan};
use llguidance::Matcher;
use rayon::prelude::*;
use std::collections::HashMap;

/// Names an answer: the request, and which of its answers.
type Key = (RequestId, u32);

/// The state of every open answer with a grammar. It moves with the tokens that the host has seen: also a sequence that loses
/// its pages keeps its tokens.
#[derive(Default)]
pub(crate) struct Matchers {
    open: HashMap<Key, State>,
}

struct State {
    grammar: CompiledGrammar,
    /// Made where the first mask is, on a worker thread: it copies the grammar's caches.
    matcher: Option<Matcher>,
    /// A limit was met, or a token was chosen that no mask allows: the answer cannot go on.
    failed: bool,
}

/// Masks of one sample: 1 + drafts rows.
struct Job<'a> {
    state: &'a mut State,
    drafts: &'a [u32],
    rows: &'a mut [u32],
}

impl Matchers {
    /// A request with `n` answers was queued.
    pub fn open(&mut self, id: RequestId, n: usize, grammar: &CompiledGrammar) {
        for index in 0..n as u32 {
            self.open.insert((id, index), State { grammar: grammar.clone(), matcher: None, failed: false });
        }
    }

    /// A request has ended.
    pub fn close(&mut self, id: RequestId) {
        if !self.open.is_empty() {
            self.open.retain(|key, _| key.0 != id);
        }
    }

    /// An answer has ended.
    pub fn close_answer(&mut self, id: RequestId, index: u32) {
        self.open.remove(&(id, index));
    }

    /// Forgets the answers that ended.
    pub fn close_ended(&mut self, progress: &[Progress]) {
        if !self.open.is_empty() {
            let ended = progress.iter().filter(|progress| progress.finished.is_some());
            ended.for_each(|progress| self.close_answer(progress.id, progress.index));
        }
    }

    /// How many answers with a grammar are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Writes the masks of a plan's samples that have a grammar, `words` a row, in the order of the samples. Answers that have
    /// ended meanwhile may choose anything: nobody hears it. Every earlier token must have been taken in.
    pub fn masks(&mut self, plan: &StepPlan, masks: &mut [u32], words: usize) {
        let mut rest = masks;
        let mut rows: HashMap<Key, (&SampleRow, &mut [u32])> = HashMap::new();
        for sample in plan.samples.iter().filter(|sample| sample.sampling.grammar.is_some()) {
            let (own, after) = rest.split_at_mut((1 + sample.drafts as usize) * words);
            rest = after;
            own.fill(u32::MAX);
            rows.insert((sample.request, sample.index), (sample, own));
        }
        let mut jobs: Vec<Job<'_>> = Vec::with_capacity(rows.len());
        for (key, state) in &mut self.open {
            if let Some((sample, rows)) = rows.remove(key) {
                let first = sample.row as usize + 1;
                jobs.push(Job { state, drafts: &plan.tokens[first..first + sample.drafts as usize], rows });
            }
        }
        match &mut *jobs {
            [job] => job.run(words),
            jobs => jobs.par_iter_mut().for_each(|job| job.run(words)),
        }
    }

    /// Takes a step's tokens in.
    pub fn advance(&mut self, plan: &StepPlan, output: &StepOutput) {
        for (sample, sampled) in plan.samples.iter().zip(&output.samples) {
            if sample.sampling.grammar.is_some()
                && let Some(state) = self.open.get_mut(&(sample.request, sample.index))
                && let Some(matcher) = &mut state.matcher
            {
                let end = sampled.tokens.iter().position(|token| state.grammar.eos().contains(token));
                let tokens = &sampled.tokens[..end.unwrap_or(sampled.tokens.len())];
                state.failed |= matcher.consume_tokens(tokens).is_err();
            }
        }
    }

    /// Answers that cannot go on; they are forgotten.
    pub fn take_failed(&mut self) -> Vec<(RequestId, u32)> {
        if self.open.values().all(|state| !state.failed) {
            return Vec::new();
        }
        let mut failed: Vec<Key> = self.open.iter().filter(|(_, state)| state.failed).map(|(key, _)| *key).collect();
        failed.iter().for_each(|key| drop(self.open.remove(key)));
        failed.sort_unstable();
        failed
    }
}

impl Job<'_> {
    fn run(&mut self, words: usize) {
        let Job { state, drafts, rows } = self;
        let matcher = state.matcher.get_or_insert_with(|| state.grammar.matcher());
        let mut taken = 0;
        for (at, row) in rows.chunks_exact_mut(words).enumerate() {
            let Ok(mask) = matcher.compute_mask_or_eos() else {
                state.failed = true;
                row.fill(u32::MAX);
                return;
            };
            row.fill(0);
            let mask = mask.as_slice();
            let len = mask.len().min(words);
            row[..len].copy_from_slice(&mask[..len]);
            if state.grammar.ignores_eos() {
                without_eos(row, state.grammar.eos());
            }
            // Behind a draft that cannot be accepted, and behind the end, it does not matter what is chosen.
            let Some(&draft) = drafts.get(at) else { break };
            let (word, bit) = (draft as usize / 32, draft % 32);
            let allowed = row.get(word).is_some_and(|word| word >> bit & 1 == 1);
            if !allowed || state.grammar.eos().contains(&draft) || matcher.consume_token(draft).is_err() {
                break;
            }
            taken += 1;
        }
        state.failed |= matcher.rollback(taken).is_err();
    }
}

/// Bans the end of the answer, unless nothing else is left.
fn without_eos(row: &mut [u32], eos: &[u32]) {
    let mut changed: Vec<(usize, u32)> = Vec::new();
    for token in eos {
        if let Some(word) = row.get_mut(*token as usize / 32) {
            changed.push((*token as usize / 32, *word));
            *word &= !(1 << (token % 32));
        }
    }
    if row.iter().all(|word| *word == 0) {
        changed.into_iter().rev().for_each(|(at, word)| row[at] = word);
    }
}
