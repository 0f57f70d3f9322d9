//! Sampling of tokens from logits.
mod adjust;
mod params;
mod problem;
pub mod token;

pub use adjust::{Adjust, counts_words};
pub use params::SamplingParams;
pub use token::Sample;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![problem::kernel()]
}
