//! Beams as sequences: who continues whom, on which pages.
use super::Scheduler;
use super::beam::Continuation;
use super::plan::Sampled;
use super::request::{FinishReason, Progress, SequenceId};
use super::sequence::State;

impl Scheduler {
    /// Takes in one step of a beam search: (group, beam, its likeliest tokens).
    pub(super) fn advance_beams(&mut self, samples: &[(u32, SequenceId, &Sampled)], progress: &mut Vec<Progress>) {
        let at = samples[0].0;
        let members = self.groups[at].members.clone();
        let Some(mut search) = self.groups[at].beam.take() else { return };
        let mut tops: Vec<&[(u32, f32)]> = Vec::with_capacity(members.len());
        for member in &members {
            let sample = samples.iter().find(|(_, id, _)| id == member);
            let logprobs = sample.and_then(|(_, _, sampled)| sampled.logprobs.first());
            tops.push(logprobs.map_or(&[], |logprobs| logprobs.top.as_slice()));
        }
        assert!(tops.iter().all(|top| !top.is_empty()), "beams of a group sample together, with log-probabilities");
        let shared = self.sequences[members[0].index].shared.clone();
        let sequences = &self.sequences;
        let next = search.advance(
            &tops,
            |token| shared.stop_tokens.contains(&token),
            |parent, token| {
                let tokens = &sequences[members[parent].index].tokens[shared.prompt.len()..];
                tokens.iter().copied().chain(token).collect()
            },
        );
        self.metrics.generated_tokens += next.len() as u64;
        if !next.is_empty() {
            self.groups[at].beam = Some(search);
            self.groups[at].forked = true;
            self.continue_beams(at, &next);
            return;
        }
        let request = self.groups[at].request;
        for (index, answer) in (0u32..).zip(search.into_answers().into_iter().take(self.groups[at].answers)) {
            let reason = if answer.stopped { FinishReason::Stop } else { FinishReason::Length };
            let last = answer.content.len();
            let mut tell = |token: Option<u32>, finished: Option<FinishReason>| {
                let score = finished.map(|_| answer.score as f32);
                progress.push(Progress { id: request, index, token, logprobs: None, finished, score, embedding: None });
            };
            for (i, token) in (1..).zip(&answer.content) {
                tell(Some(*token), (i == last && !answer.stopped).then_some(reason));
            }
            if answer.stopped {
                tell(None, Some(reason));
            }
        }
        self.cancel(request);
    }

    /// Lets the beams of `next` take the place of those before. The first that continues a beam takes it over; others
    /// take a beam that nobody continues and share its pages, copied when one of them writes.
    fn continue_beams(&mut self, at: u32, next: &[Continuation]) {
        let before = self.groups[at].members.clone();
        let mut idle = std::mem::take(&mut self.groups[at].spare);
        idle.extend(before.iter().enumerate().filter(|(i, _)| next.iter().all(|n| n.parent != *i)).map(|(_, id)| *id));
        for id in &idle {
            self.suspend(id.index);
        }
        let mut taken = vec![false; before.len()];
        let mut after = Vec::with_capacity(next.len());
        for beam in next {
            let parent = before[beam.parent];
            if !std::mem::replace(&mut taken[beam.parent], true) {
                after.push(parent);
                continue;
            }
            let Some(child) = idle.pop() else { panic!("more beams than sequences") };
            let source = &self.sequences[parent.index];
            let (pages, tokens) = (source.pages.clone(), source.tokens.clone());
            let (kv, published) = (source.kv, source.published);
            pages.iter().for_each(|page| self.blocks.hold(*page));
            let sequence = &mut self.sequences[child.index];
            (sequence.pages, sequence.tokens, sequence.published) = (pages, tokens, published);
            (sequence.kv, sequence.computed) = (kv, kv);
            self.run(child.index);
            after.push(child);
        }
        for (id, beam) in after.iter().zip(next) {
            self.sequences[id.index].tokens.push(beam.token);
        }
        let group = &mut self.groups[at];
        (group.members, group.spare) = (after, idle);
        self.reserve(at);
    }

    /// A beam that nobody continues keeps its slot and nothing else.
    fn suspend(&mut self, index: u32) {
        let sequence = &mut self.sequences[index];
        if sequence.state == State::Running {
            sequence.state = State::Dormant;
            self.running.retain(|other| *other != index);
        }
        let pages = self.sequences[index].start_over();
        self.blocks.release(&pages);
    }
}
