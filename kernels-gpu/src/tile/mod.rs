//! What kernel families share.
mod elem;
pub mod kv;
pub mod philox;
pub mod reduce;

pub use elem::*;
