//! Attention over the paged KV cache.
pub mod decode;
mod decode_consume;
mod decode_math;
mod decode_merge;
mod fragment;
mod plan;
pub mod prefill;
pub mod prefill_wgmma;
mod rows;
