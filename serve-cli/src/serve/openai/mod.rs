//! OpenAI's endpoints.
pub mod embeddings;
pub mod responses;
