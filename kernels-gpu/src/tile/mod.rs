//! What kernel families share.
mod elem;
pub mod epilogue;
pub mod kv;
pub mod reduce;

pub use elem::*;
