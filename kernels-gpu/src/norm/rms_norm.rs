//! RMSNorm, alone or fused with the residual add before it.
//!
//! ```text
//! h = x (+ residual)            rounded to the element type and written back to `residual`
//! out = h · rsqrt(mean(h²) + eps) · weight
//! ```
//! Grid: one block of 256 threads per token. A row lives in registers, 8 elements (16 bytes) a thread and
//! step, up to [`MAX_WIDTH`]. Bytes per token: 2·width read and written (4·width each with the residual).
//! Bound by memory. As in transformers, h is normalised after it was rounded, in f32, and the weight
//! multiplies before the one rounding of the output.
use crate::prim::{
    math::{fma, rsqrt},
    memory::{load_v4, store_v4},
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, thread_idx_x},
};
use crate::tile::{Bf16, Elem, F16, reduce::block_sum};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Elements per thread and step.
const VECTOR: u32 = 8;
/// Steps of `THREADS · VECTOR` = 2048 elements that a thread keeps in registers.
const STEPS: usize = 8;
/// Widest row.
pub const MAX_WIDTH: u32 = THREADS * VECTOR * STEPS as u32;

entry! {
    /// Arguments of the RMSNorm kernels: `x`, `residual`, `out`: [tokens, width], rows `*_stride` elements
    /// apart; `weight`: [width].
    pub struct RmsNorm {
        x: *const u16, residual: *mut u16, weight: *const u16, out: *mut u16,
        width: u32, x_stride: u32, residual_stride: u32, out_stride: u32, eps: f32,
    }
    fn rms_norm_bf16(threads: THREADS, min_blocks: 2) = rms_norm::<Bf16, false>;
    fn rms_norm_f16(threads: THREADS, min_blocks: 2) = rms_norm::<F16, false>;
    fn add_rms_norm_bf16(threads: THREADS, min_blocks: 2) = rms_norm::<Bf16, true>;
    fn add_rms_norm_f16(threads: THREADS, min_blocks: 2) = rms_norm::<F16, true>;
}

#[inline(always)]
unsafe fn rms_norm<E: Elem, const ADD: bool>(
    x: *const u16,
    residual: *mut u16,
    weight: *const u16,
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
    let first = thread_idx_x() * VECTOR;

    grid_dependency_wait();
    let mut row = [[0.0f32; VECTOR as usize]; STEPS];
    let mut squares = 0.0;
    for step in 0..STEPS {
        let column = first + step as u32 * THREADS * VECTOR;
        if column < width {
            let mut v = E::unpack8(load_v4(x.add(column as usize).cast()));
            if ADD {
                let at = residual.add(column as usize).cast();
                let r = E::unpack8(load_v4(at));
                for i in 0..8 {
                    v[i] += r[i];
                }
                let rounded = E::pack8(v);
                store_v4(at, rounded);
                v = E::unpack8(rounded);
            }
            for i in 0..8 {
                squares = fma(v[i], v[i], squares);
            }
            row[step] = v;
        }
    }
    grid_dependency_launch();
    let sum = block_sum::<{ THREADS / 32 }>(squares, shared::base());
    let scale = rsqrt(sum / width as f32 + eps);
    for step in 0..STEPS {
        let column = first + step as u32 * THREADS * VECTOR;
        if column < width {
            let w = E::unpack8(load_v4(weight.add(column as usize).cast()));
            let mut v = row[step];
            for i in 0..8 {
                v[i] = v[i] * scale * w[i];
            }
            store_v4(out.add(column as usize).cast(), E::pack8(v));
        }
    }
}
