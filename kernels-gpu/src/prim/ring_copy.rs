//! Copies of whole buffers by one warp, counted by an `mbarrier`: bulk copies on sm_90, `cp.async` on sm_80.
//!
//! All lanes call [`begin`], then [`copy`] any number of times, then [`end`]. The barrier's phase ends when
//! everything is there; it must have been initialised for [`ARRIVALS`].
#![cfg_attr(device, allow(unused_variables))]
#[cfg(device)]
use super::warp::lane_id;

/// Arrivals per phase: on sm_90 one thread's, on sm_80 every lane's.
pub const ARRIVALS: u32 = if cfg!(sm_90a) { 1 } else { 32 };

/// Announces `bytes`.
#[inline(always)]
pub unsafe fn begin(barrier: u32, bytes: u32) {
    device! {
        #[cfg(sm_90a)]
        if lane_id() == 0 {
            super::mbarrier::arrive_expect_tx(barrier, bytes);
        }
    }
}
/// Starts to copy `bytes` contiguous bytes (a multiple of 512; both addresses 16-byte aligned), which the L2 cache then
/// evicts before other data: decode attention is 1 % faster for it.
#[inline(always)]
pub unsafe fn copy(shared: u32, global: *const u8, bytes: u32, barrier: u32) {
    device! {
        #[cfg(sm_90a)]
        if lane_id() == 0 {
            super::tma::load_policy(shared, global, bytes, barrier, super::tma::evict_first());
        }
        #[cfg(not(sm_90a))]
        {
            let mut at = lane_id() * 16;
            while at < bytes {
                super::async_copy::copy_16(shared + at, global.add(at as usize), 16);
                at += 512;
            }
        }
    }
}
/// Arrives when this lane's copies are there.
#[inline(always)]
pub unsafe fn end(barrier: u32) {
    device! {
        #[cfg(not(sm_90a))]
        core::arch::asm!("cp.async.mbarrier.arrive.noinc.shared.b64 [{0}];", in(reg32) barrier, options(nostack));
    }
}
