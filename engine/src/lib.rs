//! Wootz's inference engine: model loading, KV cache, forward pass, sampling.
//!
//! No HTTP, no environment variables, no global state. Text in, text out: [`Llm`] on the caller's thread, [`AsyncLlm`] for
//! requests from any thread or task. Tokens in, tokens out below them: [`engine::Engine`] runs steps, [`worker`] runs it on a
//! thread of its own.
//!
//! ```
//! use engine::{Llm, SamplingParams, message};
//!
//! let mut llm = Llm::load("tiny-chat")?;
//! let answer = llm.chat(&[message("user", "What is 12 plus 7?")], SamplingParams::default())?;
//! assert_eq!(answer.text(), "19");
//! # Ok::<(), engine::Error>(())
//! ```
pub mod async_llm;
pub mod chat_output;
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod detokenize;
pub mod draft;
pub mod dummy;
pub mod embedded;
pub mod engine;
pub mod error;
pub mod generation_config;
pub mod grammar;
pub mod kv;
pub mod llm;
pub mod model;
pub mod pooling;
pub mod runner;
pub mod sampling;
pub mod scheduler;
pub mod source;
pub mod stop;
pub mod tokenizer;
pub mod trace;
pub mod weights;
pub mod worker;

pub use async_llm::AsyncLlm;
pub use chat_template::message;
pub use error::{Error, Result};
pub use grammar::Grammar;
pub use kernels_host::Device;
pub use llm::{Completion, Llm, SamplingParams};
pub use pooling::{Embedding, Pooling};
