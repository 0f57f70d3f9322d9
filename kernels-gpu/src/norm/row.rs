//! A row in the registers of a block: what the normalisations share.
use crate::prim::{
    memory::{load_v4, store_v4},
    thread::thread_idx_x,
};
use crate::tile::Elem;

/// Threads per block.
pub const THREADS: u32 = 256;
/// Elements per thread and step: 16 bytes.
pub const VECTOR: u32 = 8;
/// Steps of `THREADS · VECTOR` = 2048 elements that a thread keeps in registers.
pub const STEPS: usize = 8;
/// Widest row.
pub const MAX_WIDTH: u32 = THREADS * VECTOR * STEPS as u32;

/// A thread's share of a row: element i of step s is column `column``(s) + i`.
pub type Row = [[f32; VECTOR as usize]; STEPS];

/// The first column of this thread in step `step`.
#[inline(always)]
pub fn column(step: usize) -> u32 {
    thread_idx_x() * VECTOR + step as u32 * THREADS * VECTOR
}

/// Loads the row at `x`; zeros beyond `width`. With `ADD` the row at `residual` is added, the sum rounded to the
/// element type, written back to `residual`, and what was written is returned.
#[inline(always)]
pub unsafe fn load<E: Elem, const ADD: bool>(x: *const u16, residual: *mut u16, width: u32) -> Row {
    let mut row = [[0.0f32; VECTOR as usize]; STEPS];
    for step in 0..STEPS {
        let column = column(step);
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
            row[step] = v;
        }
    }
    row
}
