//! Compiles `kernels-gpu` to PTX, at build time only.

pub mod toolchain;
