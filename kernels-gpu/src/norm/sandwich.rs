//! What lies between two blocks that are normalised before and after (Gemma 2): the norm of the one's result, the
//! residual add, the norm of the next one's input.
//!
//! ```text
//! h = residual + x · rsqrt(mean(x²) + eps) · weight     rounded to the element type and written back to `residual`
//! out = h · rsqrt(mean(h²) + eps) · next_weight
//! ```
//! Grid: one block of 512 threads per token; x and h live in registers, up to 32 elements a thread. Bytes per token:
//! 4·width read and written each. Bound by memory; at decode by the launch, of which it saves two.
use crate::prim::{
    math::{fma, rsqrt},
    memory::{load_v4, store_v4},
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, thread_idx_x},
};
use crate::tile::{
    Bf16, Elem, F16,
    reduce::{SCRATCH_BYTES, block_sum},
};

/// Threads per block.
pub const THREADS: u32 = 512;
/// Elements per thread and step: 16 bytes.
const VECTOR: u32 = 8;
/// Steps of `THREADS · VECTOR` elements that a thread keeps in registers.
const STEPS: usize = 4;
/// Widest row.
pub const MAX_WIDTH: u32 = THREADS * VECTOR * STEPS as u32;
/// Bytes of shared memory: one scratch area for each of the two sums, so that no barrier is needed between.
pub const SHARED_BYTES: u32 = 2 * SCRATCH_BYTES;

entry! {
    /// Arguments: `x`, `residual`, `out`: [tokens, width], rows `*_stride` elements apart; `weight`, `next_weight`:
    /// [width].
    pub struct SandwichNorm {
        x: *const u16, residual: *mut u16, weight: *const u16, next_weight: *const u16, out: *mut u16,
        width: u32, x_stride: u32, residual_stride: u32, out_stride: u32, eps: f32,
    }
    fn sandwich_norm_bf16(threads: THREADS, min_blocks: 2) = sandwich_norm::<Bf16>;
    fn sandwich_norm_f16(threads: THREADS, min_blocks: 2) = sandwich_norm::<F16>;
}

type Row = [[f32; VECTOR as usize]; STEPS];

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
    let out = out.add(token * out_stride as usize);
    let column = |step: usize| (thread_idx_x() + step as u32 * THREADS) * VECTOR;
    grid_dependency_wait();
    let mut h: Row = [[0.0; VECTOR as usize]; STEPS];
    // Loaded early, so that their latency hides behind the first sum.
    let mut old = [[0; 4]; STEPS];
    for step in 0..STEPS {
        if column(step) < width {
            h[step] = E::unpack8(load_v4(x.add(column(step) as usize).cast()));
            old[step] = load_v4(residual.add(column(step) as usize).cast());
        }
    }
    grid_dependency_launch();

    let scale = norm_scale(&h, width, eps, shared::base());
    for step in 0..STEPS {
        if column(step) < width {
            let w = E::unpack8(load_v4(weight.add(column(step) as usize).cast()));
            let r = E::unpack8(old[step]);
            for i in 0..8 {
                h[step][i] = fma(h[step][i] * scale, w[i], r[i]);
            }
            let rounded = E::pack8(h[step]);
            store_v4(residual.add(column(step) as usize).cast(), rounded);
            h[step] = E::unpack8(rounded);
        }
    }
    let scale = norm_scale(&h, width, eps, shared::base() + SCRATCH_BYTES);
    for step in 0..STEPS {
        if column(step) < width {
            let w = E::unpack8(load_v4(next_weight.add(column(step) as usize).cast()));
            let mut v = h[step];
            for i in 0..8 {
                v[i] *= scale * w[i];
            }
            store_v4(out.add(column(step) as usize).cast(), E::pack8(v));
        }
    }
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
