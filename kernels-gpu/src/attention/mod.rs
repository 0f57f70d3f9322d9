//! Attention over the paged KV cache.
pub mod decode;
pub mod decode_merge;
mod fragment;
pub mod prefill;
pub mod prefill_wgmma;
mod rows;
