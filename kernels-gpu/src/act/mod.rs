//! Activations outside of a product's epilogue.
pub mod epilogue;
pub mod silu_mul;
pub mod soft_cap;
