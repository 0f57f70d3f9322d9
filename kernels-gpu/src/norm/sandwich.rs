//! What lies between two blocks that are normalised before and after (Gemma 2): the norm of the one's result, the
//! residual add, the norm of the next one's input.
//!
//! ```text
//! h = residual + x · rsqrt(mean(x²) + eps) · weight     rounded to the element type and written back to `residual`
//! out = h · rsqrt(mean(h²) + eps) · next_weight
//! ```
//! Grid: one block of [`row::threads`] threads per token, the row in registers ([`row`]). Bytes per token:
//! 4·width read and written each. Bound by memory; at decode by the launch, of which it saves two.
use super::row::{self, Row, STEPS, VECTOR};
use crate::prim::{
    math::{fma, rsqrt},
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait},
};
use crate::tile::{
    Bf16, Elem, F16,
    reduce::{SCRATCH_BYTES, block_sum},
};

/// Threads per block at most: with 1024 the two rows would not fit a thread's 64 registers.
pub const MAX_THREADS: u32 = 512;
/// Widest row; Gemma 2 27B has 4608.
pub const MAX_WIDTH: u32 = MAX_THREADS * VECTOR * STEPS as u32;
/// Bytes of shared memory: one scratch area for each of the two sums, so that no barrier is needed between.
pub const SHARED_BYTES: u32 = 2 * SCRATCH_BYTES;

entry! {
    /// Arguments: `x`, `residual`, `out`: [tokens, width], rows `*_stride` elements apart; `weight`, `next_weight`:
    /// [width].
    pub struct SandwichNorm {
        x: *const u16, residual: *mut u16, weight: *const u16, next_weight: *const u16, out: *mut u16,
        width: u32, x_stride: u32, residual_stride: u32, out_stride: u32, eps: f32,
    }
    fn sandwich_norm_bf16(threads: MAX_THREADS, min_blocks: 1) = sandwich_norm::<Bf16>;
    fn sandwich_norm_f16(threads: MAX_THREADS, min_blocks: 1) = sandwich_norm::<F16>;
}

#[inline(always)]
unsafe fn sandwich_norm<E: Elem>(
    x: *const u16,
    residual: *mut u16,
    weight: *const u16,
    next_weight: *const u16,
    out: *mut u16,
    width: u32,
    x_stride: u32,
    residual_stride: u32,
    out_stride: u32,
    eps: f32,
) {
    let token = block_idx_x() as usize;
    let x = x.add(token * x_stride as usize);
    let residual = residual.add(token * residual_stride as usize);
    // Nothing in the stream writes the weights, so they need not wait.
    let weight = row::load(weight, width);
    grid_dependency_wait();
    // The residual is loaded before the first sum, so that its latency hides behind it.
    let (x, old) = (row::load(x, width), row::load(residual, width));
    grid_dependency_launch();

    let mut h = row::unpack::<E>(x);
    let scale = norm_scale(&h, width, eps, shared::base());
    let (weight, old) = (row::unpack::<E>(weight), row::unpack::<E>(old));
    for step in 0..STEPS {
        for i in 0..8 {
            h[step][i] = fma(h[step][i] * scale, weight[step][i], old[step][i]);
        }
    }
    let mut h = row::store::<E>(h, residual, width);
    let scale = norm_scale(&h, width, eps, shared::base() + SCRATCH_BYTES);
    let weight = row::unpack::<E>(row::load(next_weight, width));
    for step in 0..STEPS {
        for i in 0..8 {
            h[step][i] *= scale * weight[step][i];
        }
    }
    row::store::<E>(h, out.add(token * out_stride as usize), width);
}

/// rsqrt(mean of squares + eps) of the block's row, the same bits in every thread.
#[inline(always)]
unsafe fn norm_scale(row: &Row, width: u32, eps: f32, scratch: u32) -> f32 {
    let mut squares = 0.0;
    for step in 0..STEPS {
        for i in 0..8 {
            squares = fma(row[step][i], row[step][i], squares);
        }
    }
    rsqrt(block_sum(squares, scratch) / width as f32 + eps)
}
