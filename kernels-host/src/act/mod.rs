//! Activations that no product's epilogue takes along.
pub mod silu_mul;
pub mod soft_cap;

pub use silu_mul::SiluMul;
pub use soft_cap::SoftCap;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![silu_mul::kernel(), soft_cap::kernel()]
}
