//! One row's sampling parameters, in words (f32 as bits):
//!
//! ```text
//!  0  temperature   top-p          min-p         top-k
//!  4  seed (low)    seed (high)    position      slot of the sequence
//!  8  flags         scratch row    mask's row    log-probabilities
//! 12  repetition    presence       frequency     -
//! 16  biases: first, number        drafts before this row: first, number
//! ```
//! A plain row reads the first three lines.

/// Words of a row.
pub const WORDS: u32 = 20;
/// Flag: one of several rows of a sequence with drafts, whose tokens `sample/accept` decides on.
pub const DRAFTED: u32 = 1;
/// Word of the seed, before the position and the slot.
pub const SEED: usize = 4;
/// Word of the flags.
pub const FLAGS: usize = 8;
/// Word that says how many log-probabilities are wanted: 0 none, n + 1 the token's and the n largest.
pub const LOGPROBS: usize = 11;
/// Word of the penalties.
pub const PENALTIES: usize = 12;
/// Word of the drafts' first, before their number.
pub const DRAFTS: usize = 18;
