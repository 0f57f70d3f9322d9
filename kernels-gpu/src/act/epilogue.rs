//! What a product's epilogue does, as a kernel of its own: for products that something else computed, and what the
//! fusion is measured against.
//!
//! ```text
//! plain  out[row, col] = act(x[row, col] + bias[col]) (+ out[row, col])
//! gated  out[row, 8t + i] = act(g[16t + i]) · g[16t + 8 + i] (+ out[row, 8t + i]), g = x[row] + bias
//! ```
//! Grid: (rows, ⌈columns of out / 2048⌉) blocks of 256 threads, 8 columns of out (16 bytes) a thread; a gate and its up
//! value are in groups of 8 beside each other, so a thread's are two vectors in a row. Bytes per element of out: 2
//! written; 2 read, gated 4, and 2 for the residual. Bound by memory. f32 between the loads and the one rounding.
use crate::prim::{
    memory::{load_v4, store_v4},
    thread::{block_idx_x, block_idx_y, grid_dependency_launch, grid_dependency_wait, thread_idx_x},
};
use crate::tile::{
    Bf16, Elem, F16,
    epilogue::{GATED, PLAIN, activation, gate, gelu_erf},
};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Columns of out per thread.
const VECTOR: u32 = 8;
/// Columns of out per block.
pub const SPAN: u32 = THREADS * VECTOR;

entry! {
    /// Arguments: `x`: [rows, width], twice as wide when gated; `bias`: one row of it, or null; `out`: [rows, width];
    /// `activation`: one of `tile::epilogue::activation`; `accumulate`: not 0 to add what out holds. Rows are `*_stride`
    /// elements apart, all are 16-byte aligned, width is a multiple of 8.
    pub struct Epilogue {
        x: *const u16, bias: *const u16, out: *mut u16,
        width: u32, x_stride: u32, out_stride: u32, activation: u32, accumulate: u32,
    }
    fn epilogue_bf16(threads: THREADS, min_blocks: 4) = epilogue::<Bf16, PLAIN>;
    fn epilogue_f16(threads: THREADS, min_blocks: 4) = epilogue::<F16, PLAIN>;
    fn epilogue_gated_bf16(threads: THREADS, min_blocks: 4) = epilogue::<Bf16, GATED>;
    fn epilogue_gated_f16(threads: THREADS, min_blocks: 4) = epilogue::<F16, GATED>;
}

#[inline(always)]
unsafe fn epilogue<E: Elem, const KIND: u32>(
    x: *const u16,
    bias: *const u16,
    out: *mut u16,
    width: u32,
    x_stride: u32,
    out_stride: u32,
    activation: u32,
    accumulate: u32,
) {
    let row = block_idx_x() as usize;
    let column = block_idx_y() * SPAN + thread_idx_x() * VECTOR;
    grid_dependency_wait();
    if column < width {
        let from = if KIND == GATED { 2 * column } else { column } as usize;
        let x = x.add(row * x_stride as usize);
        let out = out.add(row * out_stride as usize + column as usize);
        let mut v = biased::<E>(x, bias, from);
        let mut up = [1.0; 8];
        if KIND == GATED {
            up = biased::<E>(x, bias, from + 8);
        }
        if activation == activation::GELU_ERF {
            for i in 0..8 {
                v[i] = gelu_erf(v[i]);
            }
        } else if activation != activation::IDENTITY {
            for i in 0..8 {
                v[i] = gate(activation, v[i]);
            }
        }
        let mut residual = [0.0; 8];
        if accumulate != 0 {
            residual = E::unpack8(load_v4(out.cast()));
        }
        for i in 0..8 {
            v[i] = v[i] * up[i] + residual[i];
        }
        store_v4(out.cast(), E::pack8(v));
    }
    grid_dependency_launch();
}

/// Eight columns of a row with their bias.
#[inline(always)]
unsafe fn biased<E: Elem>(x: *const u16, bias: *const u16, column: usize) -> [f32; 8] {
    let mut v = E::unpack8(load_v4(x.add(column).cast()));
    if !bias.is_null() {
        let bias = E::unpack8(load_v4(bias.add(column).cast()));
        for i in 0..8 {
            v[i] += bias[i];
        }
    }
    v
}
