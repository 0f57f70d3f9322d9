//! Wootz.
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod weights;

pub use error::{Error, Result};
