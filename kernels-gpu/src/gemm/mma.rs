//! Matrix product on `mma.sync`, for every GPU from sm_80 on and any shape.
//!
//! Grid: one block of 256 threads per 128 × 128 tile of the product, eight tiles of rows going together
//! through the columns so that their weights are read from L2. A ring of four stages of 32 elements of k,
//! 16 KiB each, is filled by `cp.async`, which also fills what lies outside with zeros. 2 × 4 warps have
//! 64 × 32 of the tile each: 64 accumulators a thread. Two blocks per SM (64 KiB each, 128 registers), also where
//! an SM has 100 KiB: one. Bound by the tensor cores from m ≈ 150 on.
use super::tile::{ROW, ROW_BYTES, Source, multiply, offset};
use crate::prim::{
    async_copy, shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, sync_threads, thread_idx_x},
    warp::{lane_id, warp_id},
};
use crate::tile::{
    Bf16, Elem, F16,
    epilogue::{Epilogue, F32, GATED, PLAIN},
};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Rows and columns of a block's tile.
pub const TILE: u32 = 128;
/// Bytes of shared memory.
pub const SHARED: u32 = STAGES * STAGE;
/// Stages in the ring.
const STAGES: u32 = 4;
/// Bytes of one operand's stage.
const HALF_STAGE: u32 = TILE * ROW_BYTES;
/// Bytes of a stage: rows of a, then of w.
const STAGE: u32 = 2 * HALF_STAGE;
/// Tiles of rows that go together.
const GROUP: u32 = 8;

entry! {
    /// Arguments: `a`: [m, k], `w`: [n, k], the rest as [`Epilogue`].
    pub struct Mma {
        a: *const u16, w: *const u16, bias: *const u16, out: *mut u16,
        m: u32, n: u32, k: u32, a_stride: u32, w_stride: u32, out_stride: u32, activation: u32, accumulate: u32,
    }
    fn gemm_mma_bf16(threads: THREADS, min_blocks: 2) = mma::<Bf16, PLAIN>;
    fn gemm_mma_f16(threads: THREADS, min_blocks: 2) = mma::<F16, PLAIN>;
    fn gemm_mma_gated_bf16(threads: THREADS, min_blocks: 2) = mma::<Bf16, GATED>;
    fn gemm_mma_gated_f16(threads: THREADS, min_blocks: 2) = mma::<F16, GATED>;
    fn gemm_mma_f32_bf16(threads: THREADS, min_blocks: 2) = mma::<Bf16, F32>;
    fn gemm_mma_f32_f16(threads: THREADS, min_blocks: 2) = mma::<F16, F32>;
}

#[inline(always)]
unsafe fn mma<E: Elem, const KIND: u32>(
    a: *const u16,
    w: *const u16,
    bias: *const u16,
    out: *mut u16,
    m: u32,
    n: u32,
    k: u32,
    a_stride: u32,
    w_stride: u32,
    out_stride: u32,
    activation: u32,
    accumulate: u32,
) {
    let (row0, col0) = tile_origin(m, n);
    // Thread t copies chunk t % 4 of rows t / 4 and t / 4 + 64 of both operands.
    let (row, chunk) = (thread_idx_x() / 4, thread_idx_x() % 4);
    let tokens = Source::new(a, a_stride, row0 + row, m, k, chunk);
    let weights = Source::new(w, w_stride, col0 + row, n, k, chunk);
    let ring = shared::base();
    let mine = ring + offset(row, chunk);
    let blocks = k.div_ceil(ROW);

    // Weights do not depend on the predecessor.
    for stage in 0..STAGES - 1 {
        weights.copy::<2, 64>(stage, mine + stage * STAGE + HALF_STAGE);
    }
    grid_dependency_wait();
    for stage in 0..STAGES - 1 {
        tokens.copy::<2, 64>(stage, mine + stage * STAGE);
        async_copy::commit();
    }
    let (warp_row, warp_col) = (warp_id() / 4 * 64, warp_id() % 4 * 32);
    let mut acc = [[[0.0f32; 4]; 4]; 4];
    let (mut block, mut read, mut write) = (0, 0, (STAGES - 1) * STAGE);
    while block < blocks {
        async_copy::wait::<{ STAGES - 2 }>();
        // Everyone's copies of this stage have landed, and everyone is done with the stage before.
        sync_threads();
        let next = block + STAGES - 1;
        if next < blocks {
            weights.copy::<2, 64>(next, mine + write + HALF_STAGE);
            tokens.copy::<2, 64>(next, mine + write);
        }
        async_copy::commit();
        let stage = ring + read;
        multiply::<E, 4, 4>(&mut acc, stage + warp_row * ROW_BYTES, stage + HALF_STAGE + warp_col * ROW_BYTES);
        write = read;
        read = if read == (STAGES - 1) * STAGE { 0 } else { read + STAGE };
        block += 1;
    }
    grid_dependency_launch();

    let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
    let (row, col) = (row0 + warp_row + lane_id() / 4, col0 + warp_col + lane_id() % 4 * 2);
    for mt in 0..4 {
        let row = row + mt as u32 * 16;
        epilogue.store_row::<E, KIND, 4>(row, col, |nt| [acc[mt][nt][0], acc[mt][nt][1]]);
        epilogue.store_row::<E, KIND, 4>(row + 8, col, |nt| [acc[mt][nt][2], acc[mt][nt][3]]);
    }
}

/// First row and column of the block's tile: groups of `GROUP` tiles of rows, within a group row by row.
#[inline(always)]
fn tile_origin(m: u32, n: u32) -> (u32, u32) {
    let (tiles_m, tiles_n) = (m.div_ceil(TILE), n.div_ceil(TILE));
    let (group, within) = (block_idx_x() / (GROUP * tiles_n), block_idx_x() % (GROUP * tiles_n));
    let first = group * GROUP;
    let height = (tiles_m - first).min(GROUP);
    ((first + within % height) * TILE, within / height * TILE)
}
