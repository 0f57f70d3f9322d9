//! Wootz.
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod detokenize;
pub mod dummy;
pub mod embedded;
pub mod error;
pub mod generation_config;
pub mod source;
pub mod stop;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
