//! Activations that no product's epilogue takes along.
pub mod silu_mul;

pub use silu_mul::SiluMul;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![silu_mul::kernel()]
}
