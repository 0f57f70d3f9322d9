//! Normalisations.
pub mod layer_norm;
pub mod rms_norm;
pub mod sandwich;

pub use crate::tile::row;
