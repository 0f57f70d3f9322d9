//! What device memory is for.
use super::draft::Passes;
use super::layout::Layout;
use super::sampler::Sizes;
use super::tables::BlockTables;
use crate::config::ModelConfig;
use crate::kv::{KvCache, PAGE_TOKENS};
use crate::scheduler::Limits;
use kernels_host::DType;

/// Bytes of device memory that an engine needs, counted without allocating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Weights.
    pub weights: usize,
    /// Activations, inputs, logits and tables of the largest step.
    pub activations: usize,
    /// One page of the KV cache, over all layers.
    pub page: usize,
}

/// Attention's workspace is below this for all supported models.
const WORKSPACE: usize = 64 << 20;

impl MemoryBudget {
    /// Counts what a model needs for steps without drafts.
    pub fn of(config: &ModelConfig, dtype: DType, limits: &Limits) -> Self {
        let (size, sequences) = (dtype.size(), limits.max_sequences);
        let branch = if config.post_norms { config.hidden_size } else { 0 };
        let per_token =
            branch + 3 * config.hidden_size + config.q_size() * 2 + 2 * config.kv_size() + config.intermediate_size;
        let vocab = config.vocab_size;
        let sizes = Sizes { vocab, rows: sequences, sequences, max_len: limits.max_model_len };
        let (logits, sampling) = sizes.bytes();
        let inputs = input_bytes(limits, &sizes, 0);
        MemoryBudget {
            weights: crate::weights::parameter_count(config) as usize * size,
            activations: limits.max_tokens * per_token * size + logits + sampling + inputs + WORKSPACE,
            page: KvCache::page_bytes(config, dtype),
        }
    }

    /// Adds what speculation takes: `drafts` more rows of logits a sequence and, where a model makes the drafts, all of
    /// its own.
    pub fn with_drafts(
        mut self,
        config: &ModelConfig,
        limits: &Limits,
        drafts: usize,
        draft: Option<(&ModelConfig, DType)>,
    ) -> Self {
        let sizes = |rows| {
            let Limits { max_sequences: sequences, max_model_len: max_len, .. } = *limits;
            Sizes { vocab: config.vocab_size, rows, sequences, max_len }
        };
        let bytes = |sizes: Sizes, drafts| {
            let (logits, sampling) = sizes.bytes();
            logits + sampling + input_bytes(limits, &sizes, drafts)
        };
        let plain = bytes(sizes(limits.max_sequences), 0);
        self.activations += bytes(sizes(head_rows(limits, drafts)), drafts) - plain;
        if let Some((config, dtype)) = draft {
            let own = Self::of(config, dtype, &super::draft::limits(limits));
            self.weights += own.weights;
            self.activations += own.activations + Passes::most(limits, drafts) * size_of::<u32>();
            self.page += own.page;
        }
        self
    }
}

/// Rows of logits that a step may have.
pub(super) fn head_rows(limits: &Limits, drafts: usize) -> usize {
    (limits.max_sequences * (1 + drafts)).min(limits.max_tokens.max(limits.max_sequences))
}

/// Words of the largest step's packed inputs.
pub(super) fn packed_words(limits: &Limits, sizes: &Sizes) -> usize {
    Layout::most(limits.max_tokens, limits.max_sequences, sizes.rows) + sizes.most_params()
}

/// Bytes of a step's packed inputs and of the block tables, on the device.
pub(super) fn input_bytes(limits: &Limits, sizes: &Sizes, drafts: usize) -> usize {
    let tables = BlockTables::bytes(limits.max_sequences, (limits.max_model_len + drafts).div_ceil(PAGE_TOKENS));
    packed_words(limits, sizes) * size_of::<u32>() + tables
}

/// What a runner's device memory is used for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights.
    pub weights: usize,
    /// The KV cache, its null page included.
    pub kv_cache: usize,
    /// Activations of the largest step, attention's workspace.
    pub activations: usize,
    /// Logits of all rows that sample.
    pub logits: usize,
    /// Adjusted logits, counts of tokens, chosen tokens.
    pub sampling: usize,
    /// Inputs of a step and block tables.
    pub inputs: usize,
    /// Kernels, as the driver says.
    pub kernels: usize,
    /// CUDA graphs, as the driver says.
    pub graphs: usize,
    /// Pinned host memory: staging, and pages that are moved out. Not on the device.
    pub pinned: usize,
}

impl MemoryUse {
    /// All of it but what is on the host.
    pub fn total(&self) -> usize {
        self.lines().iter().map(|(_, bytes)| bytes).sum()
    }

    /// What is on the device, by use.
    pub fn lines(&self) -> [(&'static str, usize); 8] {
        [
            ("weights", self.weights),
            ("KV cache", self.kv_cache),
            ("activations", self.activations),
            ("logits", self.logits),
            ("sampling", self.sampling),
            ("inputs and block tables", self.inputs),
            ("kernels", self.kernels),
            ("CUDA graphs", self.graphs),
        ]
    }
}
