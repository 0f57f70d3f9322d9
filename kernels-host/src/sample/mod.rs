//! Sampling of tokens from logits.
mod problem;
pub mod token;

pub use token::{Sample, SamplingParams};

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![problem::kernel()]
}
