//! Attention over the paged KV cache.
pub mod decode;
mod fragment;
mod plan;
pub mod prefill;
pub mod prefill_wgmma;
mod rows;
