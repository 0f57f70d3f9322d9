//! LLVM intrinsics: convergent, and visible to LLVM's analyses.
#![cfg(device)]

unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    pub fn barrier_sync_all(id: u32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    pub fn barrier_sync(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    pub fn barrier_arrive(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cluster.arrive"]
    pub fn barrier_cluster_arrive();
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.relaxed"]
    pub fn barrier_cluster_arrive_relaxed();
    #[link_name = "llvm.nvvm.barrier.cluster.wait"]
    pub fn barrier_cluster_wait();
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    pub fn bar_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.shfl.sync.bfly.f32"]
    pub fn shfl_bfly_f32(mask: u32, value: f32, lane_mask: u32, clamp: u32) -> f32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    pub fn shfl_bfly_i32(mask: u32, value: u32, lane_mask: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.f32"]
    pub fn shfl_idx_f32(mask: u32, value: f32, lane: u32, clamp: u32) -> f32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    pub fn shfl_idx_i32(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    pub fn shfl_up_i32(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    pub fn ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    pub fn redux_umax(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    pub fn redux_umin(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.add"]
    pub fn redux_add(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.fma.rn.f"]
    pub fn fma(a: f32, b: f32, c: f32) -> f32;
    #[link_name = "llvm.nvvm.ex2.approx.ftz.f"]
    pub fn ex2(x: f32) -> f32;
    #[link_name = "llvm.nvvm.lg2.approx.ftz.f"]
    pub fn lg2(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rsqrt.approx.ftz.f"]
    pub fn rsqrt(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rcp.approx.ftz.f"]
    pub fn rcp(x: f32) -> f32;
    #[link_name = "llvm.nvvm.sin.approx.ftz.f"]
    pub fn sin(x: f32) -> f32;
    #[link_name = "llvm.nvvm.cos.approx.ftz.f"]
    pub fn cos(x: f32) -> f32;
    #[link_name = "llvm.nvvm.griddepcontrol.wait"]
    pub fn grid_dependency_wait();
    #[link_name = "llvm.nvvm.griddepcontrol.launch.dependents"]
    pub fn grid_dependency_launch();
    #[link_name = "llvm.nvvm.wgmma.fence.sync.aligned"]
    pub fn wgmma_fence();
    #[link_name = "llvm.nvvm.wgmma.commit_group.sync.aligned"]
    pub fn wgmma_commit_group();
    #[link_name = "llvm.nvvm.wgmma.wait_group.sync.aligned"]
    pub fn wgmma_wait_group(groups: u64);
    #[link_name = "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32"]
    pub fn setmaxnreg_inc(registers: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32"]
    pub fn setmaxnreg_dec(registers: u32);
}
