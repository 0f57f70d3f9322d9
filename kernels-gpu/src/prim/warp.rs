//! Warp-wide communication. All lanes of the warp must take part.
#[cfg(device)]
use super::intrinsics as llvm;
use super::thread::thread_idx_x;

/// Lanes in a warp.
pub const LANES: u32 = 32;

/// Index of the thread in its warp.
#[inline(always)]
pub fn lane_id() -> u32 {
    thread_idx_x() % LANES
}
/// Index of the warp in its block.
#[inline(always)]
pub fn warp_id() -> u32 {
    thread_idx_x() / LANES
}
/// Waits for all lanes; orders their memory accesses.
#[inline(always)]
pub fn sync_warp() {
    device! { llvm::bar_warp_sync(!0) }
}
/// The value of lane `lane_id() ^ mask`.
#[inline(always)]
pub fn shuffle_xor(value: f32, mask: u32) -> f32 {
    device! { llvm::shfl_bfly_f32(!0, value, mask, 31) }
}
/// The value of lane `lane_id() ^ mask`.
#[inline(always)]
pub fn shuffle_xor_u32(value: u32, mask: u32) -> u32 {
    device! { llvm::shfl_bfly_i32(!0, value, mask, 31) }
}
/// The value of lane `lane`.
#[inline(always)]
pub fn shuffle(value: f32, lane: u32) -> f32 {
    device! { llvm::shfl_idx_f32(!0, value, lane, 31) }
}
/// The value of lane `lane`.
#[inline(always)]
pub fn shuffle_u32(value: u32, lane: u32) -> u32 {
    device! { llvm::shfl_idx_i32(!0, value, lane, 31) }
}
/// The value of lane `lane_id() - delta`; lanes below `delta` get their own.
#[inline(always)]
pub fn shuffle_up_u32(value: u32, delta: u32) -> u32 {
    device! { llvm::shfl_up_i32(!0, value, delta, 0) }
}
/// One bit per lane whose predicate holds.
#[inline(always)]
pub fn ballot(predicate: bool) -> u32 {
    device! { llvm::ballot(!0, predicate) }
}
/// Sum over the warp, in every lane (butterfly order: the same in all lanes).
#[inline(always)]
pub fn warp_sum(mut value: f32) -> f32 {
    for mask in [16, 8, 4, 2, 1] {
        value += shuffle_xor(value, mask);
    }
    value
}
/// Maximum over the warp, in every lane.
#[inline(always)]
pub fn warp_max(mut value: f32) -> f32 {
    for mask in [16, 8, 4, 2, 1] {
        value = super::math::max(value, shuffle_xor(value, mask));
    }
    value
}
/// Maximum over the warp, in every lane: one instruction.
#[inline(always)]
pub fn warp_max_u32(value: u32) -> u32 {
    device! { llvm::redux_umax(value, !0) }
}
/// Minimum over the warp, in every lane: one instruction.
#[inline(always)]
pub fn warp_min_u32(value: u32) -> u32 {
    device! { llvm::redux_umin(value, !0) }
}
/// Sum over the warp, in every lane: one instruction.
#[inline(always)]
pub fn warp_sum_u32(value: u32) -> u32 {
    device! { llvm::redux_add(value, !0) }
}
