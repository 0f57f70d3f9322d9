//! Wootz.
pub mod checkpoint;
pub mod config;
pub mod detokenize;
pub mod dummy;
pub mod error;
pub mod stop;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
