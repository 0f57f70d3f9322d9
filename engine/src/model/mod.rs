//! The forward pass.
mod blocks;
mod llama;
mod load;

pub use blocks::Activations;
pub use llama::Model;
pub use load::{LoadProgress, WeightSource};

use kernels_host::View;

/// A step's inputs on the device: `sequences` query runs packed without padding, the one-token ones first.
#[derive(Clone, Copy)]
pub struct StepInput<'a> {
    /// u32 [1, tokens].
    pub tokens: View<'a>,
    /// u32 [1, tokens]: position of each token in its sequence.
    pub positions: View<'a>,
    /// u32 [1, tokens]: where each token's key and value go, `page * 64 + slot`.
    pub slots: View<'a>,
    /// u32 [sequences, pages per sequence].
    pub block_tables: View<'a>,
    /// u32 [1, sequences]: tokens in the cache after this step.
    pub kv_lens: View<'a>,
    /// u32 [1, prefills + 1]: first query of each of the sequences after `decodes`, counted from the first of them,
    /// and the end.
    pub query_starts: View<'a>,
    /// Leading sequences with exactly one query.
    pub decodes: usize,
    /// Longest query among the rest.
    pub max_query: usize,
    /// Longest `kv_lens` among the leading ones.
    pub max_kv: usize,
}

impl StepInput<'_> {
    /// Tokens of the step.
    pub fn num_tokens(&self) -> usize {
        self.tokens.cols()
    }
}
