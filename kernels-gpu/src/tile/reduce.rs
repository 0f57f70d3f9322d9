//! Reductions over a block.
use crate::prim::{
    shared,
    thread::{block_dim_x, sync_threads},
    warp::{LANES, lane_id, warp_id, warp_sum},
};

/// Bytes of shared memory that [`block_sum`] needs.
pub const SCRATCH_BYTES: u32 = LANES * 4;

/// Sum over a block of whole warps, the same bits in every thread: each warp by butterfly, then the warps' sums
/// by butterfly again. `scratch` is shared memory of [`SCRATCH_BYTES`]; it may be reused after the next barrier.
#[inline(always)]
pub unsafe fn block_sum(value: f32, scratch: u32) -> f32 {
    let value = warp_sum(value);
    if lane_id() == 0 {
        shared::store_f32(scratch + warp_id() * 4, value);
    }
    sync_threads();
    let lane = lane_id();
    let share = if lane < block_dim_x() / LANES { shared::load_f32(scratch + lane * 4) } else { 0.0 };
    warp_sum(share)
}
