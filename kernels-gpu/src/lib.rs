//! Wootz's GPU kernels.
//!
//! This crate is compiled twice. For `nvptx64-nvidia-cuda` (with `--cfg device`) each [`entry!`]
//! becomes a PTX entry. For the host the same declaration becomes the entry's name, launch bounds and
//! argument type, so that parameter lists, tile constants, swizzles and layouts are written once.
//! On the host the device bodies compile but must not be called.
//!
//! - [`prim`]: the instruction wrappers; the only place with `asm!`, LLVM intrinsics and `cfg(device)`.
//! - [`tile`]: what families share: element types, layouts, swizzles, reductions.
//! - one module per kernel family.
#![no_std]
#![cfg_attr(device, feature(abi_gpu_kernel, stdarch_nvptx, asm_experimental_arch, link_llvm_intrinsics))]
#![cfg_attr(device, allow(internal_features, named_asm_labels, dead_code))]
// Shapes are written [rows, cols], which rustdoc takes for links.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::private_intra_doc_links)]
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments, clippy::needless_range_loop)]

#[macro_use]
pub mod prim;
pub mod tile;

// The families: always there on the host, behind their feature on the device.

/// Activations outside of a product's epilogue.
#[cfg(any(not(device), feature = "act"))]
pub mod act;
/// Attention over the paged KV cache.
#[cfg(any(not(device), feature = "attention"))]
pub mod attention;
/// Token embeddings.
#[cfg(any(not(device), feature = "embed"))]
pub mod embed;
/// Whole buffers: random contents, checksums.
#[cfg(any(not(device), feature = "fill"))]
pub mod fill;
/// Matrix products.
#[cfg(any(not(device), feature = "gemm"))]
pub mod gemm;
/// RMSNorm, LayerNorm and their fusions with the residual add.
#[cfg(any(not(device), feature = "norm"))]
pub mod norm;
/// Rotary position embedding, fused with what surrounds it.
#[cfg(any(not(device), feature = "rope"))]
pub mod rope;
/// Sampling of tokens from logits.
#[cfg(any(not(device), feature = "sample"))]
pub mod sample;
