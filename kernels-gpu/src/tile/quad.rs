//! Transposes among the four lanes that share a row of a matrix instruction's accumulators.
use crate::prim::warp::{lane_id, shuffle_xor_u32};

/// Lane 4g + q gives `x[i]` and gets lane 4g + i's `x[q]` in place i. So pairs of columns 8i + 2q of four groups of 8
/// become the four pairs of group q, 16 bytes in a row; the same again undoes it. All lanes of the warp.
#[inline(always)]
pub fn transpose(x: &mut [u32; 4]) {
    let lane = lane_id();
    exchange(x, 0, 1, 1, lane & 1 != 0);
    exchange(x, 2, 3, 1, lane & 1 != 0);
    exchange(x, 0, 2, 2, lane & 2 != 0);
    exchange(x, 1, 3, 2, lane & 2 != 0);
}

/// Swaps place `high` of the lanes whose bit is clear with place `low` of those `mask` further, whose bit is set.
#[inline(always)]
fn exchange(x: &mut [u32; 4], low: usize, high: usize, mask: u32, set: bool) {
    let got = shuffle_xor_u32(if set { x[low] } else { x[high] }, mask);
    if set {
        x[low] = got;
    } else {
        x[high] = got;
    }
}
