//! The tensor memory accelerator: copies of boxes between tensors in global memory, described by a
//! [`TensorMap`], and shared memory (sm_90). One thread issues a copy.
use super::TensorMap;

/// Fetches the descriptor itself, so that the first copy does not wait for it.
#[inline(always)]
pub unsafe fn prefetch_map(map: *const TensorMap) {
    device! { core::arch::asm!("prefetch.tensormap [{0}];", in(reg64) map, options(nostack)) }
}
/// Starts to copy the box whose first element is (`column`, `row`) to shared memory at `shared` (1024-byte
/// aligned under the 128-byte swizzle). The barrier at `barrier` gets the whole box's bytes when they are
/// there; elements outside the tensor are zero and count too.
#[inline(always)]
pub unsafe fn load_2d(shared: u32, map: *const TensorMap, column: u32, row: u32, barrier: u32) {
    device! {
        core::arch::asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
            "[{0}], [{1}, {{{2}, {3}}}], [{4}];",
            in(reg32) shared, in(reg64) map, in(reg32) column, in(reg32) row, in(reg32) barrier, options(nostack))
    }
}
/// As [`load_2d`], to the same place in every block of the cluster whose bit is set in `blocks`; each of their barriers
/// at `barrier` gets the whole box's bytes. A block may count bytes before it has announced them.
#[inline(always)]
pub unsafe fn load_2d_multicast(shared: u32, map: *const TensorMap, column: u32, row: u32, barrier: u32, blocks: u32) {
    device! {
        core::arch::asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster",
            "[{0}], [{1}, {{{2}, {3}}}], [{4}], {5};",
            in(reg32) shared, in(reg64) map, in(reg32) column, in(reg32) row, in(reg32) barrier,
            in(reg16) blocks as u16, options(nostack))
    }
}
/// As [`load_2d`] of a box of three dimensions.
#[inline(always)]
pub unsafe fn load_3d(shared: u32, map: *const TensorMap, at: [u32; 3], barrier: u32) {
    device! {
        core::arch::asm!(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
            "[{0}], [{1}, {{{2}, {3}, {4}}}], [{5}];",
            in(reg32) shared, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) barrier,
            options(nostack))
    }
}
/// As [`load_2d_policy`] of a box of four dimensions.
#[inline(always)]
pub unsafe fn load_4d_policy(shared: u32, map: *const TensorMap, at: [u32; 4], barrier: u32, policy: u64) {
    device! {
        core::arch::asm!(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint",
            "[{0}], [{1}, {{{2}, {3}, {4}, {5}}}], [{6}], {7};",
            in(reg32) shared, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3],
            in(reg32) barrier, in(reg64) policy, options(nostack))
    }
}
/// Starts to copy `bytes` contiguous bytes (a multiple of 16; both addresses 16-byte aligned) to shared memory at
/// `shared`. The barrier at `barrier` gets them counted when they are there.
#[inline(always)]
pub unsafe fn load(shared: u32, global: *const u8, bytes: u32, barrier: u32) {
    device! {
        core::arch::asm!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}], {2}, [{3}];",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, in(reg32) barrier, options(nostack))
    }
}
/// As [`load`], for data that is read once: `policy` from [`evict_first`].
#[inline(always)]
pub unsafe fn load_policy(shared: u32, global: *const u8, bytes: u32, barrier: u32, policy: u64) {
    device! {
        core::arch::asm!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [{1}], {2}, [{3}], {4};",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, in(reg32) barrier, in(reg64) policy, options(nostack))
    }
}
/// Orders what this thread has written to shared memory before what `wgmma` and TMA do after the next barrier.
#[inline(always)]
pub fn fence_shared() {
    device! { core::arch::asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}
/// As [`load_2d`], for data that is read once: the L2 cache evicts it before other data. `policy` from
/// [`evict_first`].
#[inline(always)]
pub unsafe fn load_2d_policy(shared: u32, map: *const TensorMap, column: u32, row: u32, barrier: u32, policy: u64) {
    device! {
        core::arch::asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint",
            "[{0}], [{1}, {{{2}, {3}}}], [{4}], {5};",
            in(reg32) shared, in(reg64) map, in(reg32) column, in(reg32) row, in(reg32) barrier, in(reg64) policy,
            options(nostack))
    }
}
/// The L2 policy of data that is not read again.
#[inline(always)]
pub fn evict_first() -> u64 {
    device! {
        let policy: u64;
        core::arch::asm!("createpolicy.fractional.L2::evict_first.b64 {0}, 1.0;", out(reg64) policy,
            options(pure, nomem, nostack));
        policy
    }
}
