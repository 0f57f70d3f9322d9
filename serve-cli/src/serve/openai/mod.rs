//! OpenAI's API, and of vLLM's what clients of it use beside.
pub mod answers;
pub mod body;
pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod models;
pub mod observe;
pub mod prompts;
pub mod responses;
pub mod sampling;
pub mod structured;
pub mod tokenize;
pub mod types;

#[cfg(test)]
mod tests;
