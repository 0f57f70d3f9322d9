//! Normalisations.
pub mod rms_norm;

pub use rms_norm::{AddRmsNorm, RmsNorm};

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![rms_norm::kernel()]
}
