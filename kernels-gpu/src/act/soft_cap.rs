//! The soft-cap of logits (Gemma 2): `cap · tanh(x / cap)`, in place, f32.
//!
//! ```text
//! tanh(y) = sign(y) · (1 − 2 / (e^2|y| + 1))
//! ```
//! which is good to 2^-22 absolute: what tanh.approx leaves, 2^-11, is more than what separates the two best of many
//! logits. Grid: (rows, ⌈width / 1024⌉) blocks of 256 threads, 4 elements a thread. Bytes per row: 4·width read and
//! written. Bound by memory.
use crate::prim::{
    math::{exp2, rcp},
    memory_scalar::{load_f32, store_f32},
    thread::{block_idx_x, block_idx_y, grid_dependency_launch, grid_dependency_wait, thread_idx_x},
};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Elements per thread, `THREADS` apart.
const STEPS: u32 = 4;
/// Elements per block.
pub const SPAN: u32 = THREADS * STEPS;

entry! {
    /// Arguments: `x`: f32 [rows, width], rows `stride` elements apart; `scale`: 2 · log2(e) / cap.
    pub struct SoftCap { x: *mut f32, width: u32, stride: u32, cap: f32, scale: f32 }
    fn soft_cap_f32(threads: THREADS, min_blocks: 4) = soft_cap;
}

#[inline(always)]
unsafe fn soft_cap(x: *mut f32, width: u32, stride: u32, cap: f32, scale: f32) {
    let row = x.add(block_idx_x() as usize * stride as usize);
    let first = block_idx_y() * SPAN + thread_idx_x();
    grid_dependency_wait();
    let mut values = [0.0; STEPS as usize];
    for step in 0..STEPS {
        let column = first + step * THREADS;
        if column < width {
            values[step as usize] = load_f32(row.add(column as usize));
        }
    }
    grid_dependency_launch();
    for step in 0..STEPS {
        let column = first + step * THREADS;
        if column < width {
            let value = values[step as usize];
            // e^2|y| may be infinite: 2 / ∞ is 0.
            let capped = cap - 2.0 * cap * rcp(exp2(value.abs() * scale) + 1.0);
            store_f32(row.add(column as usize), if value < 0.0 { -capped } else { capped });
        }
    }
}
