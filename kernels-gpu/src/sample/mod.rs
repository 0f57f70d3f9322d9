//! Sampling of tokens from logits.
pub mod accept;
pub mod adjust;
pub mod count;
pub mod fixed;
pub mod params;
pub mod token;
pub mod top;
