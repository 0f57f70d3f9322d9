//! What must hold between any two calls, and of every plan.
use super::super::plan::StepPlan;
use super::super::sequence::{NO_SLOT, State};
use super::super::{Policy, Scheduler, SequenceId, Speculation};
use super::device::ensure;
use crate::kv::PAGE_TOKENS;

/// Panics unless pages, slots, promises and queues agree.
pub fn check(scheduler: &Scheduler) {
    let mut held = vec![0; scheduler.blocks.pages()];
    let mut slots: Vec<u32> = scheduler.free_slots.clone();
    let (mut waiting, mut running) = (0, 0);
    for sequence in scheduler.sequences.iter() {
        sequence.pages.iter().for_each(|page| held[*page as usize] += 1);
        slots.extend((sequence.slot != NO_SLOT).then_some(sequence.slot));
        let index = sequence.id.index;
        match sequence.state {
            State::Waiting => {
                waiting += 1;
                assert_eq!(scheduler.waiting.get(&sequence.key), Some(&index));
                assert!(sequence.pages.is_empty() && sequence.slot == NO_SLOT);
            }
            State::Running => {
                running += 1;
                assert!(scheduler.running.contains(&index) && sequence.slot != NO_SLOT);
                assert!(sequence.pages.len() * PAGE_TOKENS >= sequence.kv && sequence.computed <= sequence.kv);
                assert!(sequence.pages.len() <= sequence.all_pages(), "more pages than it ever needs");
            }
            State::Dormant => assert!(sequence.pages.is_empty()),
        }
    }
    assert_eq!((waiting, running), (scheduler.waiting.len(), scheduler.running.len()));
    assert!(scheduler.running.is_sorted_by_key(|index| scheduler.sequences[*index].key));
    slots.sort_unstable();
    assert!(slots.iter().copied().eq(0..scheduler.config.limits.max_sequences as u32), "slots {slots:?}");
    scheduler.blocks.check(&held);
    let mut promised = 0;
    for group in scheduler.groups.iter() {
        promised += group.reserved;
        assert!(!group.guaranteed || group.reserved >= scheduler.need(group), "{group:?} is promised too little");
    }
    assert_eq!(scheduler.reserved, promised);
    assert!(scheduler.blocks.available() >= promised, "{promised} pages promised");
}

/// What a plan has to respect.
pub struct Before {
    /// Sequences that decode and have their pages.
    decoding: Vec<SequenceId>,
    /// The first prompt, and the rows that it must get.
    prompt: Option<(SequenceId, usize)>,
    /// The first sequence of all that run, and how often it has started over.
    first: Option<(u32, u32)>,
    /// What runs.
    running: usize,
}

impl Before {
    pub fn of(scheduler: &Scheduler) -> Self {
        let limits = scheduler.limits();
        let ready = || scheduler.running.iter().map(|i| &scheduler.sequences[*i]).filter(|s| s.ready());
        let has_pages = |end: usize, pages: usize| end.div_ceil(PAGE_TOKENS) <= pages;
        let guaranteed = scheduler.config.policy == Policy::GuaranteedNoEvict;
        let decoding = ready()
            .filter(|s| s.todo() == 1 && !s.forks)
            .filter(|s| {
                let shared = s.partial_page().is_some_and(|page| scheduler.blocks.holders(page) > 1);
                guaranteed || (has_pages(s.kv + 1, s.pages.len()) && !shared)
            })
            .map(|s| s.id)
            .collect();
        let drafts = ready().any(|s| s.shared.speculation != Speculation::Off);
        let prompt = ready().find(|s| s.todo() > 1 || s.forks).map(|s| {
            let least = limits.max_tokens + 1 - limits.max_sequences;
            let rows = s.todo().min(if drafts { least.min(limits.max_tokens / 4) } else { least });
            (s.id, if guaranteed || has_pages(s.kv + rows, s.pages.len()) { rows } else { 0 })
        });
        let first = scheduler.running.first().map(|i| (*i, scheduler.sequences[*i].epoch));
        Before { decoding, prompt, first, running: scheduler.running.len() }
    }

    pub fn check(&self, scheduler: &Scheduler, plan: &StepPlan) -> Result<(), String> {
        let limits = scheduler.limits();
        ensure!(plan.tokens.len() <= limits.max_tokens, "{} tokens in a step", plan.tokens.len());
        ensure!(plan.sequences.len() <= limits.max_sequences, "{} sequences in a step", plan.sequences.len());
        ensure!(plan.samples.len() <= limits.max_sequences, "{} samples in a step", plan.samples.len());
        let rows = |id: &SequenceId| plan.sequences.iter().find(|s| s.id == *id).map_or(0, |s| s.queries as usize);
        let runs = |id: &SequenceId| scheduler.sequences[id.index].state == State::Running;
        for id in self.decoding.iter().filter(|id| runs(id)) {
            ensure!(rows(id) > 0, "{id:?} decodes and is not in the step: the decode gap");
        }
        if let Some((id, least)) = self.prompt.filter(|(id, _)| runs(id)) {
            ensure!(rows(&id) >= least, "{id:?} is the first prompt and has {} rows: the prefill wait", rows(&id));
        }
        if let Some((index, epoch)) = self.first {
            ensure!(scheduler.sequences[index].epoch == epoch, "the first of {} was preempted", self.running);
        }
        Ok(())
    }
}
