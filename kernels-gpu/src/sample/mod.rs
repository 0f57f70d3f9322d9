//! Sampling of tokens from logits.
pub mod fixed;
pub mod token;
