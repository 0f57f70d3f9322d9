//! Whole buffers: random contents for weights, checksums.
pub mod normal;
pub mod sum;
