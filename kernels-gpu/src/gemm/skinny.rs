//! Matrix product of up to 64 rows: the weights stream past the tensor cores once.
//!
//! Grid: one block of four warps per 32 weight rows (64 when there are more than 32 rows of a: a is read from L2 by
//! every block, which then costs as much as the weights themselves). A block has all rows of a, padded to 16, 32 or 64,
//! and its warps split k: warp w takes the 32-element blocks 8i + 2w and 8i + 2w + 1 (together the 128 bytes of a
//! cache line). Each warp has its own ring of stages, filled by `cp.async` and guarded by warp barriers only.
//! At the end the warps' sums meet in shared memory and are added in order.
//!
//! Bytes: 2·n·k weights. Bound by memory: in flight per block 40, 40 and 32 KiB of weights for 16, 32 and 64 rows.
use super::tile::{ROW, ROW_BYTES, Source, multiply, offset};
use crate::prim::{
    async_copy, shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, sync_threads, thread_idx_x},
    warp::{lane_id, sync_warp, warp_id},
};
use crate::tile::{
    Bf16, Elem, F16,
    epilogue::{Epilogue, F32, GATED, PLAIN},
};

/// Warps per block.
const WARPS: u32 = 4;
/// Threads per block.
pub const THREADS: u32 = WARPS * 32;

/// Variants by rows of a: (m16 tiles, n8 tiles of weight rows, stages beyond the one in use and the one being filled).
const R16: (usize, usize, u32) = (1, 4, 4);
const R32: (usize, usize, u32) = (2, 4, 4);
const R64: (usize, usize, u32) = (4, 8, 1);

/// Weight rows of a block for `m` rows of a.
pub const fn weight_rows(m: usize) -> usize {
    8 * variant(m).1
}

/// Bytes of shared memory for `m` rows of a.
pub const fn shared_bytes(m: usize) -> u32 {
    let (mt, nt, pending) = variant(m);
    WARPS * (pending + 2) * stage_bytes(mt, nt)
}

const fn variant(m: usize) -> (usize, usize, u32) {
    match m {
        0..=16 => R16,
        17..=32 => R32,
        _ => R64,
    }
}

/// Bytes of a warp's stage: rows of w, then of a.
const fn stage_bytes(mt: usize, nt: usize) -> u32 {
    (8 * nt + 16 * mt) as u32 * ROW_BYTES
}

/// Bytes from row to row of a warp's sums: 32 more than the values, so that four rows of pairs fill the banks.
const fn sums_pitch(nt: usize) -> u32 {
    8 * nt as u32 * 4 + 32
}

const fn sums_fit((mt, nt, pending): (usize, usize, u32)) -> bool {
    16 * mt as u32 * sums_pitch(nt) <= (pending + 2) * stage_bytes(mt, nt)
}
const _: () = assert!(sums_fit(R16) && sums_fit(R32) && sums_fit(R64), "the sums reuse the rings");
// GPUs of compute capability 8.6 and 8.9 have 99 KiB.
const _: () = assert!(shared_bytes(16) <= 99 << 10 && shared_bytes(32) <= 99 << 10 && shared_bytes(64) <= 99 << 10);

entry! {
    /// Arguments: `a`: [m, k], `w`: [n, k], the rest as [`Epilogue`].
    pub struct Skinny {
        a: *const u16, w: *const u16, bias: *const u16, out: *mut u16,
        m: u32, n: u32, k: u32, a_stride: u32, w_stride: u32, out_stride: u32, activation: u32, accumulate: u32,
    }
    fn skinny16_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, PLAIN, { R16.0 }, { R16.1 }, { R16.2 }>;
    fn skinny16_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, PLAIN, { R16.0 }, { R16.1 }, { R16.2 }>;
    fn skinny16_gated_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, GATED, { R16.0 }, { R16.1 }, { R16.2 }>;
    fn skinny16_gated_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, GATED, { R16.0 }, { R16.1 }, { R16.2 }>;
    fn skinny16_f32_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, F32, { R16.0 }, { R16.1 }, { R16.2 }>;
    fn skinny16_f32_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, F32, { R16.0 }, { R16.1 }, { R16.2 }>;
    fn skinny32_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, PLAIN, { R32.0 }, { R32.1 }, { R32.2 }>;
    fn skinny32_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, PLAIN, { R32.0 }, { R32.1 }, { R32.2 }>;
    fn skinny32_gated_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, GATED, { R32.0 }, { R32.1 }, { R32.2 }>;
    fn skinny32_gated_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, GATED, { R32.0 }, { R32.1 }, { R32.2 }>;
    fn skinny32_f32_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, F32, { R32.0 }, { R32.1 }, { R32.2 }>;
    fn skinny32_f32_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, F32, { R32.0 }, { R32.1 }, { R32.2 }>;
    fn skinny64_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, PLAIN, { R64.0 }, { R64.1 }, { R64.2 }>;
    fn skinny64_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, PLAIN, { R64.0 }, { R64.1 }, { R64.2 }>;
    fn skinny64_gated_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, GATED, { R64.0 }, { R64.1 }, { R64.2 }>;
    fn skinny64_gated_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, GATED, { R64.0 }, { R64.1 }, { R64.2 }>;
    fn skinny64_f32_bf16(threads: THREADS, min_blocks: 2) = skinny::<Bf16, F32, { R64.0 }, { R64.1 }, { R64.2 }>;
    fn skinny64_f32_f16(threads: THREADS, min_blocks: 2) = skinny::<F16, F32, { R64.0 }, { R64.1 }, { R64.2 }>;
}

#[inline(always)]
unsafe fn skinny<E: Elem, const KIND: u32, const MT: usize, const NT: usize, const PENDING: u32>(
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
    let (stages, stage) = (PENDING + 2, stage_bytes(MT, NT));
    let col0 = block_idx_x() * 8 * NT as u32;
    // Lane l copies chunk l % 4 of rows l / 4, l / 4 + 8, …
    let (row, chunk) = (lane_id() / 4, lane_id() % 4);
    let weights = Source::new(w, w_stride, col0 + row, n, k, chunk);
    let tokens = Source::new(a, a_stride, row, m, k, chunk);
    let ring = shared::base() + warp_id() * stages * stage;
    let (weights_at, tokens_at) = (ring + offset(row, chunk), ring + 8 * NT as u32 * ROW_BYTES + offset(row, chunk));
    // The same for all warps; blocks beyond k read as zeros.
    let steps = k.div_ceil(2 * WARPS * ROW) * 2;
    let block = |step: u32| step / 2 * (2 * WARPS) + warp_id() * 2 + step % 2;

    // Weights do not depend on the predecessor.
    for step in 0..stages - 1 {
        weights.copy::<NT, 8>(block(step), weights_at + step * stage);
    }
    grid_dependency_launch();
    grid_dependency_wait();
    for step in 0..stages - 1 {
        copy_tokens::<MT>(&tokens, block(step), tokens_at + step * stage);
        async_copy::commit();
    }
    let mut acc = [[[0.0f32; 4]; NT]; MT];
    let (mut step, mut read, mut write) = (0, 0, (stages - 1) * stage);
    while step < steps {
        async_copy::wait::<PENDING>();
        // All lanes' copies of this stage have landed, and all are done with the stage before.
        sync_warp();
        let next = step + stages - 1;
        if next < steps {
            weights.copy::<NT, 8>(block(next), weights_at + write);
            copy_tokens::<MT>(&tokens, block(next), tokens_at + write);
        }
        async_copy::commit();
        multiply::<E, MT, NT>(&mut acc, ring + read + 8 * NT as u32 * ROW_BYTES, ring + read);
        write = read;
        read = if read == (stages - 1) * stage { 0 } else { read + stage };
        step += 1;
    }
    async_copy::wait::<0>();
    sync_threads();
    put_sums(&acc);
    sync_threads();
    let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
    add_and_store::<E, KIND, MT, NT>(&epilogue, col0);
}

#[inline(always)]
unsafe fn copy_tokens<const MT: usize>(tokens: &Source, block: u32, to: u32) {
    // 2·MT groups of 8 rows: a constant expression of MT is not possible.
    for mt in 0..MT as u32 {
        tokens.copy_from::<2, 8>(block, to, mt * 2);
    }
}

/// Byte offset of the sum of warp `warp`, row `row`, column `col` of the block's weight rows.
#[inline(always)]
fn sum_at(mt: usize, nt: usize, warp: u32, row: u32, col: u32) -> u32 {
    (warp * 16 * mt as u32 + row) * sums_pitch(nt) + col * 4
}

#[inline(always)]
unsafe fn put_sums<const MT: usize, const NT: usize>(acc: &[[[f32; 4]; NT]; MT]) {
    let (row, col) = (lane_id() / 4, lane_id() % 4 * 2);
    let mine = shared::base() + sum_at(MT, NT, warp_id(), row, col);
    for mt in 0..MT {
        for nt in 0..NT {
            let at = mine + mt as u32 * 16 * sums_pitch(NT) + nt as u32 * 32;
            let [v0, v1, v2, v3] = acc[mt][nt];
            shared::store_u64(at, pair_bits(v0, v1));
            shared::store_u64(at + 8 * sums_pitch(NT), pair_bits(v2, v3));
        }
    }
}

#[inline(always)]
fn pair_bits(lo: f32, hi: f32) -> u64 {
    lo.to_bits() as u64 | (hi.to_bits() as u64) << 32
}

/// The pair of columns `col`, `col + 1` of `row`, summed over the warps in order.
#[inline(always)]
unsafe fn pair_sum<const MT: usize, const NT: usize>(row: u32, col: u32) -> [f32; 2] {
    let mut sum = [0.0; 2];
    for warp in 0..WARPS {
        let bits = shared::load_u64(shared::base() + sum_at(MT, NT, warp, row, col));
        sum[0] += f32::from_bits(bits as u32);
        sum[1] += f32::from_bits((bits >> 32) as u32);
    }
    sum
}

/// Threads go over the rows' pairs of columns; when gated over the pairs of gate columns.
#[inline(always)]
unsafe fn add_and_store<E: Elem, const KIND: u32, const MT: usize, const NT: usize>(epilogue: &Epilogue, col0: u32) {
    let per_row = if KIND == GATED { 2 * NT as u32 } else { 4 * NT as u32 };
    let mut item = thread_idx_x();
    while item < epilogue.m * per_row {
        let (row, pair) = (item / per_row, item % per_row);
        if KIND == GATED {
            let col = pair / 4 * 16 + pair % 4 * 2;
            let (gate, up) = (pair_sum::<MT, NT>(row, col), pair_sum::<MT, NT>(row, col + 8));
            epilogue.store_gated::<E>(row, col0 + col, gate, up);
        } else {
            epilogue.store_pair::<E, KIND>(row, col0 + pair * 2, pair_sum::<MT, NT>(row, pair * 2));
        }
        item += THREADS;
    }
}
