//! Bounds and policies of a scheduler, and what it counts.
use super::plan::MAX_DRAFTS;

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most tokens in a step; at least `max_sequences`.
    pub max_tokens: usize,
    /// Most sequences that run at once.
    pub max_sequences: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: usize,
}

/// When a waiting sequence may start, as in TensorRT-LLM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// When pages for its whole length can be had: nothing is ever preempted.
    #[default]
    GuaranteedNoEvict,
    /// When pages for its prompt can be had. Answers take pages as they grow; when there are none, the youngest sequence
    /// of the lowest priority starts over later.
    MaxUtilization,
}

/// Bounds and policies.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Bounds of a step.
    pub limits: Limits,
    /// When sequences start.
    pub policy: Policy,
    /// Keep computed blocks for prompts that start alike.
    pub prefix_cache: bool,
    /// Pages in host memory for blocks that are evicted from the device; 0 is off.
    pub host_pages: usize,
}

impl SchedulerConfig {
    /// Sequences that start when they fit to the end, prefix reuse, no host memory.
    pub fn new(limits: Limits) -> Self {
        SchedulerConfig { limits, policy: Policy::default(), prefix_cache: true, host_pages: 0 }
    }
}

/// Counts since the start, and the state now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerMetrics {
    /// Sequences that run.
    pub running: usize,
    /// Requests and preempted sequences that wait.
    pub waiting: usize,
    /// Device pages in all.
    pub pages: usize,
    /// Device pages that sequences hold: KV cache usage is this divided by `pages`.
    pub used_pages: usize,
    /// Device pages with blocks that nobody uses, kept for a hit.
    pub cached_pages: usize,
    /// Host pages with evicted blocks.
    pub host_pages: usize,
    /// Tokens of prompts that were looked up in the prefix tree.
    pub prefix_queries: u64,
    /// Of these, tokens that were found.
    pub prefix_hits: u64,
    /// Sequences that lost their pages and started over.
    pub preemptions: u64,
    /// Blocks moved to the host.
    pub swapped_out: u64,
    /// Blocks brought back from the host.
    pub swapped_in: u64,
    /// Steps in which a draft token stood at each position.
    pub drafted: [u64; MAX_DRAFTS],
    /// Of these, steps in which it was accepted.
    pub accepted: [u64; MAX_DRAFTS],
    /// Tokens of prompts that were computed.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
}
