//! Activations outside of a product's epilogue.
pub mod epilogue;
pub mod silu_mul;

pub use epilogue::Epilogue;
pub use silu_mul::SiluMul;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![silu_mul::kernel(), epilogue::kernel()]
}
