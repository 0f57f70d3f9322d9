//! The wrapping sum of 32-bit words: a checksum of a buffer, and the fastest way to read one.
//!
//! ```text
//! out[block] = Σ words of the block's share, modulo 2³²
//! ```
//! Grid: as many blocks of 256 threads as fit, each steps over spans of 16 KiB: four loads of 16 bytes a thread, which
//! are issued together. The sums of the threads are added in shared memory. Bytes: 4 a word, read once. Bound by memory:
//! what other kernels' bandwidth is a share of.
use crate::prim::{
    memory::load_v4_streaming,
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x, sync_threads, thread_idx_x},
    warp::{LANES, lane_id, shuffle_xor_u32, warp_id},
};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Blocks per multiprocessor.
pub const BLOCKS: u32 = 8;
/// Loads in flight per thread.
const DEPTH: usize = 4;
/// Words per step of a block.
pub const SPAN: usize = THREADS as usize * DEPTH * 4;
/// Bytes of shared memory.
pub const SHARED_BYTES: u32 = THREADS / LANES * 4;

entry! {
    /// Arguments: `words`: [len], len a multiple of 4, that nothing before writes; `out`: [blocks].
    pub struct Sum { words: *const u32, len: u64, out: *mut u32 }
    fn sum_u32(threads: THREADS, min_blocks: BLOCKS) = sum;
}

#[inline(always)]
unsafe fn sum(words: *const u32, len: u64, out: *mut u32) {
    let step = grid_dim_x() as u64 * SPAN as u64;
    let mut first = block_idx_x() as u64 * SPAN as u64;
    let mine = thread_idx_x() as usize * 4;
    let mut total = 0u32;
    grid_dependency_wait();
    while first + SPAN as u64 <= len {
        let from = words.add(first as usize + mine);
        let mut loaded = [[0u32; 4]; DEPTH];
        for i in 0..DEPTH {
            loaded[i] = load_v4_streaming(from.add(i * THREADS as usize * 4));
        }
        for i in 0..DEPTH {
            let [a, b, c, d] = loaded[i];
            total = total.wrapping_add(a).wrapping_add(b).wrapping_add(c).wrapping_add(d);
        }
        first += step;
    }
    // Exactly one block's next span is the first that is not whole.
    let mut at = first + mine as u64;
    while at < len && first < len {
        let [a, b, c, d] = load_v4_streaming(words.add(at as usize));
        total = total.wrapping_add(a).wrapping_add(b).wrapping_add(c).wrapping_add(d);
        at += THREADS as u64 * 4;
    }
    grid_dependency_launch();
    let mut lanes = LANES / 2;
    while lanes > 0 {
        total = total.wrapping_add(shuffle_xor_u32(total, lanes));
        lanes /= 2;
    }
    if lane_id() == 0 {
        shared::store_u32(shared::base() + warp_id() * 4, total);
    }
    sync_threads();
    if thread_idx_x() == 0 {
        let mut total = 0u32;
        for warp in 0..THREADS / LANES {
            total = total.wrapping_add(shared::load_u32(shared::base() + warp * 4));
        }
        *out.add(block_idx_x() as usize) = total;
    }
}
