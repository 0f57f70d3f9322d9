//! Normalisations.
pub mod layer_norm;
pub mod rms_norm;
pub mod row;
pub mod sandwich;
