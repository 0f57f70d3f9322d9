//! Random contents for weights.
pub mod normal;
