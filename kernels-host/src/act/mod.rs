//! Activations outside of a product's epilogue.
pub mod epilogue;
pub mod silu_mul;
pub mod soft_cap;

pub use epilogue::Epilogue;
pub use silu_mul::SiluMul;
pub use soft_cap::SoftCap;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![silu_mul::kernel(), soft_cap::kernel(), epilogue::kernel()]
}
