//! Matrix products `out = act(a · wᵀ + bias) (+ out)`: a [m, k] activations, w [n, k] weights.
pub mod gemv;
pub mod gemv_norm;
pub mod gemv_qkv;
pub mod mma;
pub mod narrow;
pub mod skinny;
pub mod stream;
mod stream_epilogue;
mod tile;
pub mod wgmma;
mod wgmma_epilogue;
