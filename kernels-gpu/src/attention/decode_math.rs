//! What a warp of `decode` does with its 16 keys of a page.
use super::decode::{KEYS, QUARTER};
use super::decode_consume::{Matrix, TileRows};
use super::fragment::{Lanes, MAX_DIM, Output, Queries, pack_probabilities};
use super::rows::{anew, first_key};
use crate::prim::{memory_scalar::load_u32, warp::lane_id};
use crate::tile::Elem;

/// A operands of the tile's rows; those that do not exist are zero.
#[inline(always)]
pub(super) unsafe fn load_queries<const D: u32>(rows: &TileRows, matrix: &Matrix) -> Queries {
    let lane = anew();
    let (g, t) = (lane / 4, lane % 4);
    let mut queries: Queries = [[0; 4]; MAX_DIM / 16];
    for half in 0..2 {
        let row = g + 8 * half as u32;
        if row < rows.count {
            let q = matrix.q.add(rows.offset::<D>(row, matrix.q_stride) + (t * 2) as usize);
            for c in 0..D as usize / 16 {
                // Registers 0..4: rows g, g + 8, g, g + 8; columns 2t and 2t + 8.
                queries[c][half] = load_u32(q.add(c * 16).cast());
                queries[c][half + 2] = load_u32(q.add(c * 16 + 8).cast());
            }
        }
    }
    queries
}

/// Groups of 16 dims whose operands are loaded before their first use: a warp has nobody to hide its latencies
/// behind, but at head_dim 256 few registers.
const fn ahead(head_dim: u32) -> u32 {
    match head_dim {
        256 => 2,
        96 => 3,
        _ => 4,
    }
}

/// Scores of the 16 rows against the quarter's 16 keys; accumulator n holds keys 8n..8n+8. Even and odd steps have
/// their own sums where there are registers, so that fewer products wait for each other.
#[inline(always)]
pub(super) unsafe fn scores<E: Elem, const D: u32>(lanes: Lanes, queries: &Queries, k: u32) -> [[f32; 4]; 2] {
    let mut sums = [[[0.0; 4]; 2]; 2];
    for first in 0..D / 16 / ahead(D) {
        let first = first * ahead(D);
        let mut keys = [[0; 4]; 8];
        for i in 0..ahead(D) {
            let c = first + i;
            keys[i as usize] = lanes.keys(k + c / 4 * KEYS * 128, c % 4);
        }
        for i in 0..ahead(D) as usize {
            let a = queries[first as usize + i];
            let sums = &mut sums[if D > 128 { 0 } else { i % 2 }];
            E::mma(&mut sums[0], a, [keys[i][0], keys[i][1]]);
            E::mma(&mut sums[1], a, [keys[i][2], keys[i][3]]);
        }
    }
    let mut scores = sums[0];
    for n in 0..2 {
        for i in 0..4 {
            scores[n][i] += sums[1][n][i];
        }
    }
    scores
}

/// Masks what the lane's two rows, at `positions`, do not see of the keys from `start` on.
#[inline(always)]
pub(super) fn mask(scores: &mut [[f32; 4]; 2], start: u32, positions: [u32; 2], window: u32) {
    let column = start + lane_id() % 4 * 2;
    for half in 0..2 {
        let (first, last) = (first_key(positions[half], window), positions[half]);
        for n in 0..2 {
            for i in 0..2 {
                let key = column + n as u32 * 8 + i as u32;
                if key < first || key > last {
                    scores[n][2 * half + i] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Which of a quarter's keys exist.
#[derive(Clone, Copy)]
pub(super) struct ValidKeys {
    all: bool,
    /// Masks of the lane's pairs of values: keys 2t and 2t + 1, then 8 further.
    pairs: [u32; 2],
}

impl ValidKeys {
    #[inline(always)]
    pub fn new(start: u32, end: u32) -> Self {
        let key = start + lane_id() % 4 * 2;
        let pair = |key: u32| (if key < end { 0xffff } else { 0 }) | (if key + 1 < end { 0xffff_0000 } else { 0 });
        ValidKeys { all: start + QUARTER <= end, pairs: [pair(key), pair(key + 8)] }
    }
}

/// output += P · V over the quarter's 16 keys; accumulator n holds dims 8n..8n+8.
#[inline(always)]
pub(super) unsafe fn accumulate<E: Elem, const D: u32>(
    lanes: Lanes,
    p: &[[f32; 4]; 2],
    v: u32,
    valid: ValidKeys,
    output: &mut Output,
) {
    let a = pack_probabilities::<E>(p[0], p[1]);
    for first in 0..D / 16 / ahead(D) {
        let first = first * ahead(D);
        let mut values = [[0; 4]; 8];
        for i in 0..ahead(D) {
            let c = first + i;
            values[i as usize] = lanes.values(v + c / 4 * KEYS * 128, c % 4);
        }
        if !valid.all {
            for i in 0..ahead(D) as usize {
                for j in 0..4 {
                    values[i][j] &= valid.pairs[j % 2];
                }
            }
        }
        for i in 0..ahead(D) as usize {
            let (b, n) = (values[i], 2 * (first as usize + i));
            E::mma(&mut output[n], a, [b[0], b[1]]);
            E::mma(&mut output[n + 1], a, [b[2], b[3]]);
        }
    }
}
