//! Clusters: blocks that run at the same time and read each other's shared memory (sm_90). A launch without
//! clusters has clusters of one block.
#[cfg(device)]
use super::intrinsics as llvm;

/// Waits for all threads of the cluster that have not exited; orders their accesses to shared memory.
#[inline(always)]
pub fn sync() {
    device! {
        llvm::barrier_cluster_arrive();
        llvm::barrier_cluster_wait()
    }
}
/// The first half of [`sync`], but orders only what [`fence_init`](super::mbarrier::fence_init) does.
#[inline(always)]
pub fn arrive_relaxed() {
    device! { llvm::barrier_cluster_arrive_relaxed() }
}
/// The second half of [`sync`].
#[inline(always)]
pub fn wait() {
    device! { llvm::barrier_cluster_wait() }
}
/// The address at which this block reaches `address` of the shared memory of the cluster's block `rank`.
#[inline(always)]
pub fn shared_of(rank: u32, address: u32) -> u32 {
    device! {
        let there: u32;
        core::arch::asm!("mapa.shared::cluster.u32 {0}, {1}, {2};",
            out(reg32) there, in(reg32) address, in(reg32) rank, options(pure, nomem, nostack));
        there
    }
}
/// Sends 16 bytes to `address` (16-byte aligned) of another block, whose barrier at `barrier` gets them counted when they are
/// there; both from [`shared_of`]. That block must have started, and must not exit before.
#[inline(always)]
pub unsafe fn send_v4(address: u32, v: [u32; 4], barrier: u32) {
    device! {
        core::arch::asm!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [{4}], {{{0}, {1}, {2}, {3}}}, [{5}];",
            in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], in(reg32) address, in(reg32) barrier,
            options(nostack))
    }
}
