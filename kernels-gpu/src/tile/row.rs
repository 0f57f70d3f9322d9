//! A row in the registers of a block: what the normalisations share.
//!
//! All loads of a row come before their first use and before the stores of the sum, 64 bytes per thread: with 40
//! registers 1536 threads fit a multiprocessor and have up to 96 KB in flight, where the memory's latency
//! asks for 25 KB.
use crate::prim::{
    memory::{load_v4_if, store_v4},
    thread::{block_dim_x, thread_idx_x},
};
use crate::tile::Elem;

/// Threads per block at most; [`threads`] of them are launched.
pub const MAX_THREADS: u32 = 1024;
/// Elements per thread and step: 16 bytes.
pub const VECTOR: u32 = 8;
/// Steps of `block_dim_x() · VECTOR` elements that a thread keeps in registers.
pub const STEPS: usize = 2;
/// Widest row.
pub const MAX_WIDTH: u32 = MAX_THREADS * VECTOR * STEPS as u32;

/// Threads of a block for rows of `width` elements. (A function of the width alone, so that the order of the
/// sums is too.)
pub const fn threads(width: u32) -> u32 {
    width.div_ceil(VECTOR * STEPS as u32).next_multiple_of(32)
}

/// A thread's share of a row: element i of step s is column `column``(s) + i`.
pub type Row = [[f32; VECTOR as usize]; STEPS];
/// The same, packed.
pub type Packed = [[u32; VECTOR as usize / 2]; STEPS];

/// The first column of this thread in step `step`.
#[inline(always)]
pub fn column(step: usize) -> u32 {
    (thread_idx_x() + step as u32 * block_dim_x()) * VECTOR
}

/// Loads the first `width` elements at `row` (none are touched if it is zero); zeros beyond.
#[inline(always)]
pub unsafe fn load(row: *const u16, width: u32) -> Packed {
    let mut packed = [[0; VECTOR as usize / 2]; STEPS];
    for step in 0..STEPS {
        let column = column(step);
        packed[step] = load_v4_if(column < width, row.add(column as usize).cast());
    }
    packed
}

/// The values of a row.
#[inline(always)]
pub fn unpack<E: Elem>(packed: Packed) -> Row {
    let mut row = [[0.0; VECTOR as usize]; STEPS];
    for step in 0..STEPS {
        row[step] = E::unpack8(packed[step]);
    }
    row
}

/// Loads the row at `x`; zeros beyond `width`. With `ADD` the row at `residual` is added, the sum rounded to the
/// element type and written back to `residual`, and what was written is returned.
#[inline(always)]
pub unsafe fn load_sum<E: Elem, const ADD: bool>(x: *const u16, residual: *mut u16, width: u32) -> Row {
    let x = load(x, width);
    if !ADD {
        return unpack::<E>(x);
    }
    let (mut row, other) = (unpack::<E>(x), unpack::<E>(load(residual, width)));
    for step in 0..STEPS {
        for i in 0..VECTOR as usize {
            row[step][i] += other[step][i];
        }
    }
    store::<E>(row, residual, width)
}

/// Rounds a row to the element type and writes its first `width` elements; what was written is returned.
#[inline(always)]
pub unsafe fn store<E: Elem>(row: Row, to: *mut u16, width: u32) -> Row {
    let mut rounded = row;
    for step in 0..STEPS {
        let packed = E::pack8(row[step]);
        let column = column(step);
        if column < width {
            store_v4(to.add(column as usize).cast(), packed);
        }
        rounded[step] = E::unpack8(packed);
    }
    rounded
}
