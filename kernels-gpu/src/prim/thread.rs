//! Thread and block indices, block barriers, programmatic dependent launch.
#[cfg(device)]
use super::intrinsics as llvm;
#[cfg(device)]
use core::arch::nvptx;

/// Index of the thread in its block (blocks are one-dimensional).
#[inline(always)]
pub fn thread_idx_x() -> u32 {
    device! { nvptx::_thread_idx_x() as u32 }
}
/// Threads per block.
#[inline(always)]
pub fn block_dim_x() -> u32 {
    device! { nvptx::_block_dim_x() as u32 }
}
/// Index of the block in the grid, x.
#[inline(always)]
pub fn block_idx_x() -> u32 {
    device! { nvptx::_block_idx_x() as u32 }
}
/// Index of the block in the grid, y.
#[inline(always)]
pub fn block_idx_y() -> u32 {
    device! { nvptx::_block_idx_y() as u32 }
}
/// Index of the block in the grid, z.
#[inline(always)]
pub fn block_idx_z() -> u32 {
    device! { nvptx::_block_idx_z() as u32 }
}
/// Blocks in the grid, x.
#[inline(always)]
pub fn grid_dim_x() -> u32 {
    device! { nvptx::_grid_dim_x() as u32 }
}
/// Blocks in the grid, y.
#[inline(always)]
pub fn grid_dim_y() -> u32 {
    device! { nvptx::_grid_dim_y() as u32 }
}
/// Waits for all threads of the block; orders their shared and global memory accesses.
#[inline(always)]
pub fn sync_threads() {
    device! { llvm::barrier_sync_all(0) }
}
/// Waits at named barrier `id` (1..16) until `threads` threads (a multiple of 32) arrived or wait there.
#[inline(always)]
pub fn barrier_sync(id: u32, threads: u32) {
    device! { llvm::barrier_sync(id, threads) }
}
/// Arrives at named barrier `id` without waiting.
#[inline(always)]
pub fn barrier_arrive(id: u32, threads: u32) {
    device! { llvm::barrier_arrive(id, threads) }
}
/// Waits until the grids that this one depends on (programmatic dependent launch) have finished and their
/// writes are visible. Nothing that a predecessor writes may be read before.
#[inline(always)]
pub fn grid_dependency_wait() {
    #[cfg(sm_90a)]
    device! { llvm::grid_dependency_wait() }
}
/// Lets the next grid of the stream start launching, once every block of this one has called it or ended. Its
/// `grid_dependency_wait` still waits for this grid's end, which is after the end of those that this one waits for:
/// kernels that take little of the memory's time call it first of all.
#[inline(always)]
pub fn grid_dependency_launch() {
    #[cfg(sm_90a)]
    device! { llvm::grid_dependency_launch() }
}
