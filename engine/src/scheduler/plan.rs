//! What goes to the device and what comes back: one step, as plain data.
use super::{RequestId, SequenceId};
use crate::pooling::Pooled;
use crate::sampling::SamplingParams;
use std::ops::Range;
use std::sync::Arc;

/// In [`StepPlan::tokens`]: `FROM_SLOT | s` is the token that the sequence in slot `s` sampled last; only the device
/// knows it yet. Only in rows of sequences that decode without drafts, each naming its own slot.
pub const FROM_SLOT: u32 = 1 << 31;

/// In [`StepPlan::tokens`]: `FROM_DRAFT | s * MAX_DRAFTS + j` is the draft model's token `j` for the sequence in slot
/// `s`.
pub const FROM_DRAFT: u32 = 1 << 30;

/// Most draft tokens of a sequence in a step: the decode kernel takes up to 8 queries.
pub const MAX_DRAFTS: usize = 7;

/// One step, as plain data: sequences that decode first, then chunks of prompts. Rows are packed without padding.
///
/// The device does, in this order: `swap_out`, `swap_in`, `copies`, `entering`, the forward pass, sampling. Plans run in
/// the order in which they were made, on one stream: a page may name another owner in each.
#[must_use]
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Requests that begin with this step, and how many tokens of their prompts were in the prefix cache; those that were
    /// preempted begin once.
    pub started: Vec<(RequestId, usize)>,
    /// Pages to copy, (from, to): a shared, partly filled block that a fork is about to write.
    pub copies: Vec<(u32, u32)>,
    /// Blocks to move to the host, (device page, host page), before anything else.
    pub swap_out: Vec<(u32, u32)>,
    /// Blocks to bring back, (host page, device page), after `swap_out` and before `copies`.
    pub swap_in: Vec<(u32, u32)>,
    /// Slots taken by a sequence with this step: penalties' counts must be rebuilt from its tokens.
    pub entering: Vec<Entering>,
    /// Token of each row: an id, or [`FROM_SLOT`] or [`FROM_DRAFT`] with an index.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Where each row's keys and values go: page · 64 + position mod 64.
    pub slots: Vec<u32>,
    /// The sequences, in the order of the rows.
    pub sequences: Vec<PlannedSequence>,
    /// Block tables, one after another; [`PlannedSequence::pages`] says whose is where.
    pub pages: Vec<u32>,
    /// Leading sequences that decode: one query, or 1 + drafts, and one of the leading `decodes` samples each, in the
    /// same order. The others are chunks of prompts.
    pub decodes: usize,
    /// Who samples, in the order of the rows. Several may name the same row: `n` > 1 answers to one prompt.
    pub samples: Vec<SampleRow>,
    /// Rows whose hidden states are wanted, in the order of the rows.
    pub pools: Vec<PooledRows>,
    /// What commit needs, in the order of the rows.
    pub(super) entries: Vec<Entry>,
    /// Plans made before this one.
    pub(super) number: u64,
}

/// A slot's new sequence.
#[derive(Clone, Debug)]
pub struct Entering {
    /// The slot, below `max_sequences`.
    pub seq_slot: u32,
    /// Tokens of the prompt.
    pub prompt: Arc<[u32]>,
    /// Tokens of the answer so far: not empty if the sequence was preempted.
    pub generated: Vec<u32>,
    /// How its tokens are chosen.
    pub sampling: Arc<SamplingParams>,
}

/// A sequence with rows in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSequence {
    /// The sequence.
    pub id: SequenceId,
    /// Its slot, below `max_sequences`.
    pub seq_slot: u32,
    /// Its rows in this step.
    pub queries: u32,
    /// Tokens in the cache after the step, drafts included.
    pub kv_len: u32,
    /// Its pages, in [`StepPlan::pages`]: they cover `kv_len` tokens.
    pub pages: Range<usize>,
    /// The token before its first row, if the draft model's cache lacks it.
    pub unseen: Option<u32>,
}

/// A row whose logits choose a token, or 1 + drafts such rows.
#[derive(Clone, Debug)]
pub struct SampleRow {
    /// Whose answer goes on.
    pub request: RequestId,
    /// Which of its answers.
    pub index: u32,
    /// The first of 1 + `drafts` rows.
    pub row: u32,
    /// Draft tokens that are checked.
    pub drafts: u32,
    /// Slot of the sequence, below `max_sequences`.
    pub seq_slot: u32,
    /// Position of the token that the first row chooses.
    pub position: u32,
    /// Position of the first token that may end the answer.
    pub may_end_at: u32,
    /// How it is chosen.
    pub sampling: Arc<SamplingParams>,
}

/// Rows of a prompt whose hidden states, after the final norm, are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PooledRows {
    /// The rows: all that the sequence has in the step, or only its prompt's last one.
    pub rows: Range<u32>,
}

/// What commit needs to know about a sequence in a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub id: SequenceId,
    /// How often it had started over.
    pub epoch: u32,
    /// Rows of it, without drafts; 0 for answers that share their prompt's last row.
    pub queries: u32,
    /// Draft rows.
    pub drafts: u32,
    /// Tokens in the cache after the step, without drafts.
    pub kv: u32,
    /// Whether it has one of the plan's `samples`.
    pub samples: bool,
    /// Whether it has one of the plan's `pools`.
    pub pools: bool,
}

/// What a step chose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One for each of the plan's [`samples`](StepPlan::samples), in their order.
    pub samples: Vec<Sampled>,
    /// One for each of the plan's [`pools`](StepPlan::pools), in their order: the sum of the rows.
    pub pooled: Vec<Pooled>,
}

/// Tokens of one sequence from one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// 1 + accepted drafts tokens.
    pub tokens: Vec<u32>,
    /// For each of them; empty if not asked for.
    pub logprobs: Vec<TokenLogprobs>,
}

/// Log-probabilities at one position, of the raw logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// How many tokens are more likely, plus one.
    pub rank: u32,
    /// The most likely tokens, best first, as many as [`SamplingParams::logprobs`] asks for.
    pub top: Vec<(u32, f32)>,
}

impl StepPlan {
    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Longest query of the chunks of prompts.
    pub fn max_query(&self) -> usize {
        self.sequences[self.decodes..].iter().map(|sequence| sequence.queries).max().unwrap_or(0) as usize
    }

    /// Longest cache of the sequences that decode.
    pub fn max_kv(&self) -> usize {
        self.sequences[..self.decodes].iter().map(|sequence| sequence.kv_len).max().unwrap_or(0) as usize
    }

    /// Empties it and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.copies.clear();
        self.swap_out.clear();
        self.swap_in.clear();
        self.entering.clear();
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.sequences.clear();
        self.pages.clear();
        self.decodes = 0;
        self.samples.clear();
        self.pools.clear();
        self.entries.clear();
    }
}
