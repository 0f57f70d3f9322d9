//! Activations that no product's epilogue takes along.
pub mod silu_mul;
pub mod soft_cap;
