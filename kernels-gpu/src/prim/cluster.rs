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
/// This block's rank in its cluster.
#[inline(always)]
pub fn rank() -> u32 {
    device! {
        let rank: u32;
        core::arch::asm!("mov.u32 {0}, %cluster_ctarank;", out(reg32) rank, options(pure, nomem, nostack));
        rank
    }
}
/// Loads 16 bytes (16-byte aligned) from an address of [`shared_of`]. That block must have started, and must not
/// exit before: [`sync`] on both sides.
#[inline(always)]
pub unsafe fn load_v4(address: u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!("ld.shared::cluster.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(readonly, nostack));
        [a, b, c, d]
    }
}
