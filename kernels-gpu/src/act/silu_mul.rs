//! SwiGLU's activation: `silu(gate) · up`.
//!
//! ```text
//! out = gate / (1 + e^-gate) · up
//! ```
//! Grid: (tokens, ⌈width / 2048⌉) blocks of 256 threads, 8 elements (16 bytes) a thread. Bytes per token:
//! 4·width read, 2·width written. Bound by memory. f32 between the load and the one rounding.
use crate::prim::{
    math::{exp, rcp},
    memory::{load_v4, store_v4},
    thread::{block_idx_x, block_idx_y, grid_dependency_launch, grid_dependency_wait, thread_idx_x},
};
use crate::tile::{Bf16, Elem, F16};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Elements per thread.
const VECTOR: u32 = 8;
/// Elements per block.
pub const SPAN: u32 = THREADS * VECTOR;

entry! {
    /// Arguments: `gate`, `up`, `out`: [tokens, width], rows `*_stride` elements apart.
    pub struct SiluMul {
        gate: *const u16, up: *const u16, out: *mut u16,
        width: u32, gate_stride: u32, up_stride: u32, out_stride: u32,
    }
    fn silu_mul_bf16(threads: THREADS, min_blocks: 4) = silu_mul::<Bf16>;
    fn silu_mul_f16(threads: THREADS, min_blocks: 4) = silu_mul::<F16>;
}

#[inline(always)]
unsafe fn silu_mul<E: Elem>(
    gate: *const u16,
    up: *const u16,
    out: *mut u16,
    width: u32,
    gate_stride: u32,
    up_stride: u32,
    out_stride: u32,
) {
    let token = block_idx_x() as usize;
    let column = block_idx_y() * SPAN + thread_idx_x() * VECTOR;
    // A product behind this has weights to fetch meanwhile.
    grid_dependency_launch();
    grid_dependency_wait();
    if column < width {
        let column = column as usize;
        let g = E::unpack8(load_v4(gate.add(token * gate_stride as usize + column).cast()));
        let mut v = E::unpack8(load_v4(up.add(token * up_stride as usize + column).cast()));
        for i in 0..8 {
            v[i] *= g[i] * rcp(1.0 + exp(-g[i]));
        }
        store_v4(out.add(token * out_stride as usize + column).cast(), E::pack8(v));
    }
}
