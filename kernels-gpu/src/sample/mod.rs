//! Sampling of tokens from logits.
pub mod adjust;
pub mod fixed;
pub mod params;
pub mod token;
