//! Normalisations.
pub mod layer_norm;
pub mod rms_norm;
mod row;
pub mod sandwich;

pub use layer_norm::{AddLayerNorm, LayerNorm};
pub use rms_norm::{AddRmsNorm, RmsNorm};
pub use sandwich::SandwichNorm;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![rms_norm::kernel(), layer_norm::kernel(), sandwich::kernel()]
}
