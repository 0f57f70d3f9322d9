//! Merges what the splits of `decode` left: the second kernel of a decode attention with more than one.
//!
//! ```text
//! m = max(m_i)      out = Σ 2^(m_i - m) · O_i / Σ 2^(m_i - m) · l_i      i over the splits, in order
//! ```
//! Grid: one warp per (sequence, head), 4 to a block. Bytes: 4 · splits · (head_dim + 2) read per head,
//! 2 · head_dim written. Bound by latency: the partial results come from L2.
use crate::prim::{
    math::{exp2, rcp},
    memory_scalar::{load_f32, load_v2, store_u32},
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait},
    warp::{lane_id, warp_id, warp_max},
};
use crate::tile::{Bf16, Elem, F16};

/// Threads per block.
pub const THREADS: u32 = 128;
/// Heads per block.
pub const HEADS: u32 = THREADS / 32;

entry! {
    /// Arguments of the merge kernels: `partial`: [sequences, heads, splits, head_dim], `state`: [sequences,
    /// heads, splits, 2] as `decode` leaves them; `out`: [sequences, heads · head_dim], rows `out_stride`
    /// elements apart; `rows`: sequences · heads.
    pub struct DecodeMerge {
        partial: *const f32, state: *const f32, out: *mut u16, rows: u32, heads: u32, splits: u32, out_stride: u32,
    }
    fn decode_merge_bf16_64(threads: THREADS, min_blocks: 4) = decode_merge::<Bf16, 64>;
    fn decode_merge_bf16_128(threads: THREADS, min_blocks: 4) = decode_merge::<Bf16, 128>;
    fn decode_merge_f16_64(threads: THREADS, min_blocks: 4) = decode_merge::<F16, 64>;
    fn decode_merge_f16_128(threads: THREADS, min_blocks: 4) = decode_merge::<F16, 128>;
}

#[inline(always)]
unsafe fn decode_merge<E: Elem, const D: u32>(
    partial: *const f32,
    state: *const f32,
    out: *mut u16,
    rows: u32,
    heads: u32,
    splits: u32,
    out_stride: u32,
) {
    let row = block_idx_x() * HEADS + warp_id();
    grid_dependency_wait();
    if row >= rows {
        return;
    }
    let partial = partial.add(row as usize * splits as usize * D as usize);
    let state = state.add(row as usize * splits as usize * 2);
    let mut max = f32::NEG_INFINITY;
    let mut split = lane_id();
    while split < splits {
        max = max.max(load_f32(state.add(split as usize * 2)));
        split += 32;
    }
    let max = warp_max(max);
    // A lane holds dims 2·lane and 2·lane + 1 of each 64.
    let mut values = [[0.0f32; 2]; 2];
    let mut sum = 0.0;
    let mut split = 0;
    while split < splits {
        let [own_max, own_sum] = load_v2(state.add(split as usize * 2).cast()).map(f32::from_bits);
        // Splits without keys: -inf - -inf would be NaN.
        if own_max != f32::NEG_INFINITY {
            let weight = exp2(own_max - max);
            sum += weight * own_sum;
            for tile in 0..D / 64 {
                let at = split as usize * D as usize + (tile * 64 + lane_id() * 2) as usize;
                let pair = load_v2(partial.add(at).cast()).map(f32::from_bits);
                values[tile as usize][0] += weight * pair[0];
                values[tile as usize][1] += weight * pair[1];
            }
        }
        split += 1;
    }
    grid_dependency_launch();
    // An empty cache: zeros.
    let inverse = if sum == 0.0 { 0.0 } else { rcp(sum) };
    let out = out.add((row / heads) as usize * out_stride as usize + (row % heads * D) as usize);
    for tile in 0..D / 64 {
        let [low, high] = values[tile as usize];
        let to = out.add((tile * 64 + lane_id() * 2) as usize);
        store_u32(to.cast(), E::pack(low * inverse, high * inverse));
    }
}
