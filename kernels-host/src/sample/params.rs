//! One row's sampling parameters, as `kernels-gpu/src/sample/params.rs` lays them out.
use crate::View;
use kernels_gpu::sample::adjust::Penalties;
use kernels_gpu::sample::{params as gpu, token};

/// One row's parameters, as the device reads them. In this order: repetition, frequency and presence penalty, bias, mask,
/// temperature, top-k, top-p over what top-k left, min-p.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SamplingParams {
    /// Divides the logits. 0 (or below, or NaN): greedy, the largest logit and of equal ones the first.
    pub temperature: f32,
    /// Keeps the fewest most probable tokens (of equal ones the first) that have this share of the mass,
    /// at least one. 1 or above: off.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the most probable one's probability. 0: off.
    pub min_p: f32,
    /// Keeps tokens whose logit is at least the k-th largest. 0: off; 1: greedy.
    pub top_k: u32,
    /// Seed of the sequence, low half.
    pub seed_lo: u32,
    /// Seed of the sequence, high half.
    pub seed_hi: u32,
    /// Index of the sampled token in its sequence: the counter of the random numbers.
    pub position: u32,
    /// Slot of the sequence in `last_tokens` and `counts`, or [`SamplingParams::NONE`].
    pub seq_slot: u32,
    /// 0 or [`SamplingParams::DRAFTED`].
    pub flags: u32,
    /// Row of `scratch` for the adjusted logits, no other row's of the launch. [`SamplingParams::NONE`] (or any row that is not
    /// there): penalties, biases and mask are off.
    pub scratch_row: u32,
    /// Row of `masks`, or [`SamplingParams::NONE`].
    pub mask_row: u32,
    /// Log-probabilities for `TopLogprobs`: 0 none, n + 1 those of the token and of the n most probable ones.
    pub logprobs: u32,
    /// Divides positive logits of the prompt's and the answer's tokens, multiplies others, as in Hugging Face. 1: off.
    pub repetition_penalty: f32,
    /// Taken from the logits of the answer's tokens, as in OpenAI's API. 0: off.
    pub presence_penalty: f32,
    /// Taken from the logits of the answer's tokens as often as it has them. 0: off.
    pub frequency_penalty: f32,
    /// Not used.
    pub reserved: u32,
    /// First row of `biases`.
    pub bias_start: u32,
    /// Rows of `biases`; each token at most once, those beyond the vocabulary are ignored.
    pub bias_len: u32,
    /// Where the sequence's drafts start in `drafts`.
    pub draft_start: u32,
    /// How many of them come before this row: the penalties count them.
    pub draft_len: u32,
}

impl SamplingParams {
    /// 32-bit words that one row's parameters take.
    pub const WORDS: usize = gpu::WORDS as usize;
    /// A slot or row that is not there.
    pub const NONE: u32 = u32::MAX;
    /// Flag: one of the 1 + k rows of a sequence with drafts. The sampler then leaves `last_tokens` and `counts` to
    /// `AcceptDrafts`, which knows how many of the rows' tokens come true.
    pub const DRAFTED: u32 = gpu::DRAFTED;
    /// The largest logit.
    pub const GREEDY: Self = SamplingParams {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        seed_lo: 0,
        seed_hi: 0,
        position: 0,
        seq_slot: Self::NONE,
        flags: 0,
        scratch_row: Self::NONE,
        mask_row: Self::NONE,
        logprobs: 0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        reserved: 0,
        bias_start: 0,
        bias_len: 0,
        draft_start: 0,
        draft_len: 0,
    };

    /// Whether the token does not depend on the random number.
    pub fn is_greedy(&self) -> bool {
        token::is_greedy(self.temperature, self.top_k)
    }

    /// Whether there are penalties: then `counts` must be right for the slot.
    pub fn has_penalties(&self) -> bool {
        self.penalties().any()
    }

    /// Whether the logits are to be adjusted: then `scratch_row` must name a row.
    pub fn needs_scratch(&self) -> bool {
        self.has_penalties() || self.bias_len > 0 || self.mask_row != Self::NONE
    }

    pub(super) fn is_drafted(&self) -> bool {
        self.flags & Self::DRAFTED != 0
    }

    pub(super) fn penalties(&self) -> Penalties {
        let (repetition, presence) = (self.repetition_penalty, self.presence_penalty);
        Penalties { repetition, presence, frequency: self.frequency_penalty }
    }

    /// A row of parameters on the CPU device.
    pub(super) fn read(params: View<'_>, row: usize) -> Self {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(params.row::<u32>(row)))
    }
}

const _: () = assert!(size_of::<SamplingParams>() == 4 * SamplingParams::WORDS);
