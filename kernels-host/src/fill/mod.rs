//! Whole buffers: random contents for weights, checksums.
pub mod normal;
pub mod sum;

pub use normal::FillNormal;
pub use sum::Sum;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![normal::kernel(), sum::kernel()]
}
