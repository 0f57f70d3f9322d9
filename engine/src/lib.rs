//! Wootz's inference engine: model loading, KV cache, forward pass, sampling.
//!
//! No HTTP, no environment variables, no global state. [`llm::Llm`] is text in, text out;
//! [`engine::Engine`] below it runs steps over tokens.
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod detokenize;
pub mod dummy;
pub mod embedded;
pub mod engine;
pub mod error;
pub mod generation_config;
pub mod kv;
pub mod llm;
pub mod model;
pub mod runner;
pub mod sampling;
pub mod scheduler;
pub mod source;
pub mod stop;
pub mod tokenizer;
pub mod trace;
pub mod weights;

pub use error::{Error, Result};
pub use kernels_host::Device;
