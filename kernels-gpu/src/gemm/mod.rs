//! Matrix products with fused epilogues.
pub mod wgmma;
