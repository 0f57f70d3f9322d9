//! Reductions over a block.
use crate::prim::{
    shared,
    thread::sync_threads,
    warp::{LANES, lane_id, warp_id, warp_sum},
};

/// Bytes of shared memory that [`block_sum`] needs.
pub const SCRATCH_BYTES: u32 = LANES * 4;

/// Sum over a block of `WARPS` warps, the same bits in every thread: each warp by butterfly, then the
/// warps' sums in order. `scratch` is shared memory of [`SCRATCH_BYTES`]; it may be reused after the
/// next barrier.
#[inline(always)]
pub unsafe fn block_sum<const WARPS: u32>(value: f32, scratch: u32) -> f32 {
    let value = warp_sum(value);
    if lane_id() == 0 {
        shared::store_f32(scratch + warp_id() * 4, value);
    }
    sync_threads();
    let mut sum = 0.0;
    let mut warp = 0;
    while warp < WARPS {
        sum += shared::load_f32(scratch + warp * 4);
        warp += 1;
    }
    sum
}
