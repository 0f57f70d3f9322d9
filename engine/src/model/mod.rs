//! The forward pass.
mod blocks;
mod llama;
mod load;

pub use blocks::Activations;
pub use llama::Model;
pub use load::{LoadProgress, WeightSource};

use kernels_host::View;

/// A step's inputs on the device: sequences' queries packed without padding, those that decode first.
#[derive(Clone, Copy)]
pub struct StepInput<'a> {
    /// u32 [1, tokens]: ids, or where on the device they are (`scheduler::FROM_SLOT`, `FROM_DRAFT`).
    pub tokens: View<'a>,
    /// u32 [1, slots]: the token that the sequence in each slot sampled last.
    pub last_tokens: View<'a>,
    /// u32 [1, slots · MAX_DRAFTS]: the draft model's tokens.
    pub drafts: Option<View<'a>>,
    /// u32 [1, tokens]: position of each token in its sequence.
    pub positions: View<'a>,
    /// u32 [1, tokens]: where each token's key and value go, `page * 64 + slot`; `u32::MAX` for padding.
    pub slots: View<'a>,
    /// u32 [sequences, pages per sequence].
    pub block_tables: View<'a>,
    /// u32 [1, sequences]: tokens in the cache after this step.
    pub kv_lens: View<'a>,
    /// Leading sequences with few queries.
    pub decodes: usize,
    /// Their tokens, in all.
    pub decode_tokens: usize,
    /// u32 [1, decodes + 1]: first query of each of them, and the end. `None`: one query each.
    pub decode_starts: Option<View<'a>>,
    /// Longest query among them.
    pub max_decode_query: usize,
    /// An upper bound of their `kv_lens`.
    pub max_kv: usize,
    /// u32 [1, prefills + 1]: first query of each of the sequences after `decodes`, counted from the first of them,
    /// and the end.
    pub query_starts: View<'a>,
    /// Longest query among them.
    pub max_query: usize,
}

impl StepInput<'_> {
    /// Tokens of the step.
    pub fn num_tokens(&self) -> usize {
        self.tokens.cols()
    }
}
