//! Sampling of tokens from logits.
//!
//! A step's order: [`CountTokens`] for sequences that take a slot, [`Sample`], [`TopLogprobs`] (of the raw logits, which
//! `Sample` leaves as they are), [`AcceptDrafts`] where sequences have drafts.
pub mod accept;
mod adjust;
mod adjusted;
pub mod count;
mod params;
mod problem;
pub mod token;
pub mod top;
mod top_problem;

pub use accept::AcceptDrafts;
pub use adjust::{Adjust, counts_words};
pub use count::CountTokens;
pub use params::SamplingParams;
pub use token::Sample;
pub use top::{TopLogprobs, TopRow};

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![count::kernel(), problem::kernel(), top_problem::kernel(), accept::kernel()]
}
