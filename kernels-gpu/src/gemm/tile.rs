//! What the `mma.sync` kernels share: shared-memory rows of 32 elements and their fragments.
//!
//! A row is 64 bytes, four 16-byte chunks; chunk c of row r lies at chunk `c ^ (r / 2 % 4)`. Eight
//! consecutive rows at one c then touch all 32 banks once: rows 2i and 2i + 1 are the halves of 128
//! bytes, and i moves the chunk within the half. So `ldmatrix` has no bank conflicts.
use crate::prim::{async_copy, mma::load_matrix_x4, warp::lane_id};

/// Elements of k per row, two k16 steps.
pub const ROW: u32 = 32;
/// Bytes per row.
pub const ROW_BYTES: u32 = 2 * ROW;

/// Byte offset of chunk `chunk` of row `row`.
#[inline(always)]
pub const fn offset(row: u32, chunk: u32) -> u32 {
    row * ROW_BYTES + ((chunk ^ (row / 2 % 4)) << 4)
}

/// One thread's share of copying rows of 32 elements: chunk `chunk` of every `STEP`-th row.
#[derive(Clone, Copy)]
pub struct Source {
    first: *const u16,
    stride: usize,
    rows: u32,
    k: u32,
    chunk: u32,
}

impl Source {
    /// Copies from `matrix`, whose rows are `stride` elements apart: the thread's first row is `row`. Rows
    /// from `rows` and elements from `k` (a multiple of 8) on read as zero.
    #[inline(always)]
    pub unsafe fn new(matrix: *const u16, stride: u32, row: u32, rows: u32, k: u32, chunk: u32) -> Self {
        // The address of a row outside is not used, but has to be one.
        let inside = if row < rows { row } else { 0 };
        let rows = rows.saturating_sub(row);
        Source { first: matrix.add(inside as usize * stride as usize), stride: stride as usize, rows, k, chunk }
    }

    /// Starts copying the elements `32·block ..` of `COUNT` rows, `STEP` apart, to `shared` (the address of the
    /// thread's chunk of its first row).
    #[inline(always)]
    pub unsafe fn copy<const COUNT: usize, const STEP: u32>(&self, block: u32, shared: u32) {
        self.copy_from::<COUNT, STEP>(block, shared, 0);
    }

    /// As [`Source::copy`], `COUNT` rows from the `first`-th on; `shared` still is the thread's first row's.
    #[inline(always)]
    pub unsafe fn copy_from<const COUNT: usize, const STEP: u32>(&self, block: u32, shared: u32, first: u32) {
        let column = block * ROW + self.chunk * 8;
        let inside = column < self.k;
        let from = self.first.add(if inside { column as usize } else { 0 });
        for i in first..first + COUNT as u32 {
            let valid = inside && i * STEP < self.rows;
            let from = if valid { from.add((i * STEP) as usize * self.stride) } else { self.first };
            async_copy::copy_16(shared + i * STEP * ROW_BYTES, from.cast(), if valid { 16 } else { 0 });
        }
    }
}

/// The lane's `ldmatrix` offset for the A operand: 16 rows × k16. Matrices: rows 0–7 and 8–15 at k 0–7, then
/// both at k 8–15, as a0..a3 want them. The second k16 step is at this offset ^ 32.
#[inline(always)]
pub fn a_offset() -> u32 {
    let lane = lane_id();
    offset(lane % 16, lane / 16)
}

/// The lane's `ldmatrix` offset for the B operand: two n8 tiles × k16. Matrices: rows 0–7 at k 0–7 and at k
/// 8–15, then rows 8–15 at both: b0, b1 of the first tile, b0, b1 of the second. The second k16 step is at
/// this offset ^ 32.
#[inline(always)]
pub fn b_offset() -> u32 {
    let lane = lane_id();
    offset(lane % 8 + lane / 16 * 8, lane / 8 % 2)
}

/// acc += A · Bᵀ over one row of 32 elements of k: A of `MT` m16 tiles from `a`, B of `NT` (even) n8 tiles from `b`.
#[inline(always)]
pub unsafe fn multiply<E: crate::tile::Elem, const MT: usize, const NT: usize>(
    acc: &mut [[[f32; 4]; NT]; MT],
    a: u32,
    b: u32,
) {
    let (a, b) = (a + a_offset(), b + b_offset());
    for step in [0, 32] {
        let mut weights = [[0u32; 2]; NT];
        for pair in 0..NT / 2 {
            let v = load_matrix_x4((b + pair as u32 * 16 * ROW_BYTES) ^ step);
            weights[2 * pair] = [v[0], v[1]];
            weights[2 * pair + 1] = [v[2], v[3]];
        }
        for mt in 0..MT {
            let tokens = load_matrix_x4((a + mt as u32 * 16 * ROW_BYTES) ^ step);
            for nt in 0..NT {
                E::mma(&mut acc[mt][nt], tokens, weights[nt]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_rows_of_a_chunk_touch_all_banks() {
        for row in (0..128).step_by(8) {
            for chunk in 0..4 {
                let groups = (0..8).fold(0u32, |set, i| set | 1 << (offset(row + i, chunk) % 128 / 16));
                assert_eq!(groups, 0xff, "row {row}, chunk {chunk}");
            }
        }
    }

    #[test]
    fn every_chunk_of_a_tile_has_its_place() {
        let mut seen = [false; 128 * 4];
        for row in 0..128 {
            for chunk in 0..4 {
                let at = offset(row, chunk);
                assert!(at.is_multiple_of(16) && at / ROW_BYTES == row);
                assert!(!core::mem::replace(&mut seen[at as usize / 16], true), "row {row}, chunk {chunk}");
            }
        }
    }

    #[test]
    fn the_second_step_is_at_the_first_ones_offset_xor_32() {
        for row in 0..128 {
            for chunk in 0..2 {
                assert_eq!(offset(row, chunk) ^ 32, offset(row, chunk + 2));
            }
        }
    }
}
