//! What prefill and decode share: fragments of `mma.m16n8k16` and one step of the online softmax.
//!
//! A warp owns 16 rows of queries. Lane l holds, of every accumulator `[f32; 4]`, rows g and g + 8 (g = l / 4)
//! and columns 2t and 2t + 1 (t = l % 4): elements 0, 1 belong to row g, elements 2, 3 to row g + 8.
//! Q and P are A operands, K and V come by `ldmatrix` from tiles with swizzled 128-byte rows:
//!
//! ```text
//! S = Q·Kᵀ  B[k = dim][n = key]: K's rows are keys, so plain ldmatrix gives b0 = K[key g][dims 2t, 2t+1]
//! O = P·V   B[k = key][n = dim]: V's rows are keys, so ldmatrix.trans gives b0 = V[keys 2t, 2t+1][dim g]
//! ```
//! The accumulators of S for keys 16i..16i+16 are, packed, the A operand of P's k-step i: no shuffles.
use crate::prim::math::{exp2, fma, tanh};
use crate::prim::mma::{load_matrix_x4, load_matrix_x4_trans};
use crate::prim::warp::{lane_id, shuffle_xor};
use crate::tile::Elem;

/// Widest head.
pub const MAX_DIM: usize = 256;
/// Accumulators of a row of output; narrower heads use the first ones.
pub type Output = [[f32; 4]; MAX_DIM / 8];
/// A operands of a row of queries.
pub type Queries = [[u32; 4]; MAX_DIM / 16];

/// Byte offsets into a tile of 128-byte rows that a lane gives to `ldmatrix.x4`.
///
/// With j = l / 8, the matrix whose row the lane addresses: for A (Q) and, transposed, for V, matrices 0 and
/// 1 are rows 0..8 and 8..16 of the first 8 columns, 2 and 3 those of the next 8. For K, 0 and 1 are the
/// first 8 keys' first and next 8 dims, 2 and 3 the next 8 keys'. Rows are r = 8·(a bit of j) + l % 8, so
/// r % 8 = l % 8 is the swizzle, and column group c (16 columns, 2 chunks) is reached by xor with 32·c.
#[derive(Clone, Copy)]
pub struct Lanes {
    /// For Q and V: row bit j & 1, chunk bit j >> 1.
    row_major: u32,
    /// For K: row bit j >> 1, chunk bit j & 1.
    key_major: u32,
}

impl Lanes {
    #[inline(always)]
    pub fn new() -> Self {
        let lane = lane_id();
        let (j, r) = (lane / 8, lane % 8);
        let offset = |row_bit: u32, chunk_bit: u32| (row_bit * 8 + r) * 128 + ((chunk_bit ^ r) << 4);
        Lanes { row_major: offset(j & 1, j >> 1), key_major: offset(j >> 1, j & 1) }
    }

    /// A operand: 16 rows of queries at `rows`, columns 16·c..16·c+16 of a 64-column tile.
    #[inline(always)]
    pub unsafe fn queries(self, rows: u32, c: u32) -> [u32; 4] {
        load_matrix_x4(rows + (self.row_major ^ (32 * c)))
    }
    /// B operands of 16 keys at `keys`, dims 16·c..: elements 0, 1 for the first 8 keys, 2, 3 for the next.
    #[inline(always)]
    pub unsafe fn keys(self, keys: u32, c: u32) -> [u32; 4] {
        load_matrix_x4(keys + (self.key_major ^ (32 * c)))
    }
    /// B operands of 16 keys at `keys`: elements 0, 1 for dims 16·c..16·c+8, 2, 3 for the next 8.
    #[inline(always)]
    pub unsafe fn values(self, keys: u32, c: u32) -> [u32; 4] {
        load_matrix_x4_trans(keys + (self.row_major ^ (32 * c)))
    }
}

/// P's A operand from two neighbouring accumulators of S.
#[inline(always)]
pub fn pack_probabilities<E: Elem>(low: [f32; 4], high: [f32; 4]) -> [u32; 4] {
    [E::pack(low[0], low[1]), E::pack(low[2], low[3]), E::pack(high[0], high[1]), E::pack(high[2], high[3])]
}

/// Caps scores: `inner` = scale / cap, after which the scale is `cap`. Does nothing if it is 0.
#[inline(always)]
pub fn soft_cap(scores: &mut [[f32; 4]], inner: f32) {
    if inner != 0.0 {
        for score in scores {
            for i in 0..4 {
                score[i] = tanh(score[i] * inner);
            }
        }
    }
}

/// Multiplies the rows of the accumulators by their factors.
#[inline(always)]
pub fn rescale(out: &mut [[f32; 4]], factors: [f32; 2]) {
    for column in out {
        for i in 0..4 {
            column[i] *= factors[i / 2];
        }
    }
}

/// Softmax state of a lane's two rows: the greatest score, and this lane's share of the sum of
/// exponentials relative to it.
#[derive(Clone, Copy)]
pub struct Running {
    pub max: [f32; 2],
    pub sum: [f32; 2],
}

impl Running {
    #[inline(always)]
    pub fn new() -> Self {
        Running { max: [f32::NEG_INFINITY; 2], sum: [0.0; 2] }
    }

    /// Takes in 8 keys per accumulator: turns scores into probabilities relative to the new maximum and returns the
    /// factor by which the rows' earlier results shrink. `scale_log2` is scale·log2(e). Masked scores are -inf.
    #[inline(always)]
    pub fn probabilities(&mut self, scores: &mut [[f32; 4]], scale_log2: f32) -> [f32; 2] {
        let mut corrections = [0.0; 2];
        for half in 0..2 {
            let (a, b) = (2 * half, 2 * half + 1);
            let mut max = self.max[half];
            for score in scores.iter() {
                max = max.max(score[a].max(score[b]));
            }
            // The row's four lanes differ in bits 0 and 1.
            max = max.max(shuffle_xor(max, 1));
            max = max.max(shuffle_xor(max, 2));
            // While all is masked: -inf - -inf would be NaN.
            let base = if max == f32::NEG_INFINITY { 0.0 } else { max * scale_log2 };
            corrections[half] = exp2(fma(self.max[half], scale_log2, -base));
            self.max[half] = max;
            let mut sum = 0.0;
            for score in scores.iter_mut() {
                score[a] = exp2(fma(score[a], scale_log2, -base));
                score[b] = exp2(fma(score[b], scale_log2, -base));
                sum += score[a] + score[b];
            }
            self.sum[half] = fma(self.sum[half], corrections[half], sum);
        }
        corrections
    }

    /// The rows' whole sums.
    #[inline(always)]
    pub fn total(&self) -> [f32; 2] {
        self.sum.map(|sum| {
            let sum = sum + shuffle_xor(sum, 1);
            sum + shuffle_xor(sum, 2)
        })
    }
}
