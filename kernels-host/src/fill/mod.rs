//! Random contents for weights.
pub mod normal;

pub use normal::FillNormal;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![normal::kernel()]
}
