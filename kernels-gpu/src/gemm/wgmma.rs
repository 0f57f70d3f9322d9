//! The Hopper matrix product: `out = epilogue(a · wᵀ)`, a \[m, k\], w \[n, k\], both with K contiguous.
//!
//! Persistent grid, one block of three warpgroups per multiprocessor. Warpgroup 0 is the producer: one thread
//! moves boxes of 64 elements of K by TMA into a ring of stages in shared memory. Warpgroups 1 and 2 are the
//! consumers: each multiplies 64 rows of the tile by all its columns with `wgmma` and keeps the f32
//! accumulators in registers.
//!
//! | tile (M × N × K) | stages | shared memory | accumulators per thread |
//! |---|---|---|---|
//! | 128 × 256 × 64 | 4 of 48 KiB | 192 KiB | 128 |
//! | 128 × 128 × 64 | 6 of 32 KiB | 192 KiB | 64 |
//!
//! Any m, n ≥ 1 and k a multiple of 8: TMA fills what lies outside of the matrices with zeros, and the epilogue
//! stores inside of them only. Per stage a block reads 48 KiB (32 KiB) for 4.2 (2.1) MFLOP, so the product is
//! bound by the tensor cores from m of about 256 on.
//!
//! Accumulators: thread t of a consumer (w = t / 32, l = t % 32) holds rows 16w + l/4 and 8 further of the
//! warpgroup's 64, and of each group j of 8 columns 2(l%4) and 2(l%4) + 1: `d[4j]`, `d[4j + 1]` of the first row,
//! `d[4j + 2]`, `d[4j + 3]` of the second.
use crate::prim::{
    TensorMap, mbarrier, opaque,
    memory::{load_pair, store_pair},
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x, sync_threads, thread_idx_x},
    tma,
    warp::{LANES, lane_id, shuffle_u32, sync_warp},
    wgmma,
};
use crate::tile::epilogue::{Epilogue, F32, GATED, PLAIN, activation, gate, gated_column, gelu_erf};
use crate::tile::{Bf16, Elem, F16, Ring, WarpgroupMma};

/// Rows of a tile: two consumer warpgroups of 64.
pub const TILE_M: u32 = 128;
/// Elements of K per stage: one 128-byte row of the swizzle.
pub const TILE_K: u32 = 64;
const CONSUMERS: u32 = 2;
/// One producer and two consumer warpgroups.
pub const THREADS: u32 = (1 + CONSUMERS) * wgmma::THREADS;
/// Warps of a warpgroup: each arrives at the empty barriers for itself.
const WARPS: u32 = wgmma::THREADS / LANES;
/// 40 · 128 + 232 · 256 = 64,512 of 65,536 registers; the launch gives 168 a thread.
const PRODUCER_REGISTERS: u32 = 40;
const CONSUMER_REGISTERS: u32 = 232;
/// Stages of the ring for tiles of 256 columns; 192 KiB.
pub const STAGES_N256: u32 = 4;
/// Stages of the ring for tiles of 128 columns; 192 KiB.
pub const STAGES_N128: u32 = 6;
/// Tiles of M that the blocks walk together (see [`Tiles::at`]).
const GROUP: u32 = 16;

entry! {
    #[only(sm_90a)]
    /// Arguments of the Hopper matrix product: boxes of `a` are [`TILE_M`] rows, of `w` as many as a tile has
    /// columns, by [`TILE_K`] elements; the rest as in [`Epilogue`].
    pub struct GemmWgmma maps(0: a, 1: w) {
        bias: *const u16, out: *mut u16, out_stride: u32,
        m: u32, n: u32, k: u32, activation: u32, accumulate: u32,
    }
    fn gemm_wgmma_n256_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, PLAIN, 128, STAGES_N256>;
    fn gemm_wgmma_n256_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, PLAIN, 128, STAGES_N256>;
    fn gemm_wgmma_n128_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, PLAIN, 64, STAGES_N128>;
    fn gemm_wgmma_n128_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, PLAIN, 64, STAGES_N128>;
    fn gemm_wgmma_gated_n256_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, GATED, 128, STAGES_N256>;
    fn gemm_wgmma_gated_n256_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, GATED, 128, STAGES_N256>;
    fn gemm_wgmma_gated_n128_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, GATED, 64, STAGES_N128>;
    fn gemm_wgmma_gated_n128_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, GATED, 64, STAGES_N128>;
    fn gemm_wgmma_f32_n256_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, F32, 128, STAGES_N256>;
    fn gemm_wgmma_f32_n256_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, F32, 128, STAGES_N256>;
    fn gemm_wgmma_f32_n128_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, F32, 64, STAGES_N128>;
    fn gemm_wgmma_f32_n128_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, F32, 64, STAGES_N128>;
}

/// Columns of the tile whose accumulators are `registers` a thread.
pub const fn tile_n(registers: usize) -> u32 {
    2 * registers as u32
}
const A_BYTES: u32 = TILE_M * TILE_K * 2;
const fn stage_bytes(tile_n: u32) -> u32 {
    A_BYTES + tile_n * TILE_K * 2
}
/// Shared memory of a block: the stages, then their barriers.
pub const fn shared_bytes(tile_n: u32, stages: u32) -> u32 {
    stages * stage_bytes(tile_n) + 2 * stages * mbarrier::BYTES
}

/// The tiles of the output, in the order in which blocks take them.
#[derive(Clone, Copy)]
struct Tiles {
    m: u32,
    n: u32,
}

impl Tiles {
    #[inline(always)]
    fn count(self) -> u32 {
        self.m * self.n
    }
    /// Row and column of tile `index`. Groups of [`GROUP`] rows of tiles, each walked down its columns: the
    /// 132 tiles in flight then share about 16 panels of `a` and 9 of `w`, which stay in the L2 cache.
    #[inline(always)]
    fn at(self, index: u32) -> (u32, u32) {
        let first = index / (GROUP * self.n) * GROUP;
        let rows = if self.m - first < GROUP { self.m - first } else { GROUP };
        let inner = index - first * self.n;
        (first + inner % rows, inner / rows)
    }
}

#[inline(always)]
unsafe fn gemm<E: WarpgroupMma<REGS>, const KIND: u32, const REGS: usize, const STAGES: u32>(
    a: *const TensorMap,
    w: *const TensorMap,
    bias: *const u16,
    out: *mut u16,
    out_stride: u32,
    m: u32,
    n: u32,
    k: u32,
    activation: u32,
    accumulate: u32,
) {
    let buffers = shared::base();
    let mut ring = Ring::<STAGES>::new(buffers + STAGES * stage_bytes(tile_n(REGS)));
    if thread_idx_x() == 0 {
        tma::prefetch_map(a);
        tma::prefetch_map(w);
        ring.init(CONSUMERS * WARPS);
    }
    sync_threads();
    let tiles = Tiles { m: m.div_ceil(TILE_M), n: n.div_ceil(tile_n(REGS)) };
    let steps = k.div_ceil(TILE_K);
    // By shuffle, so that the compiler knows it for one value per warp and computes descriptors once.
    let warpgroup = shuffle_u32(thread_idx_x() / wgmma::THREADS, 0);
    if warpgroup == 0 {
        wgmma::registers_decrease::<PRODUCER_REGISTERS>();
        if thread_idx_x() == 0 {
            produce::<REGS, STAGES>(a, w, steps, tiles, buffers, ring);
        }
        return;
    }
    wgmma::registers_increase::<CONSUMER_REGISTERS>();
    // The predecessor may still read `out`, or write the residual there.
    grid_dependency_wait();
    let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
    let share = warpgroup - 1;
    let thread = thread_idx_x() % wgmma::THREADS;
    let mut index = block_idx_x();
    while index < tiles.count() {
        let (tile_row, tile_col) = tiles.at(index);
        let mut d = [0.0; REGS];
        multiply::<E, REGS, STAGES>(&mut d, share, steps, buffers, &mut ring);
        let row = tile_row * TILE_M + share * 64 + thread / LANES * 16 + thread % LANES / 4;
        let col = tile_col * tile_n(REGS) + thread % 4 * 2;
        finish::<E, KIND, REGS>(&epilogue, &mut d, row, col);
        index += grid_dim_x();
    }
}

/// The producer, one thread: fills stage after stage with the tiles' boxes of `a` and `w`. The weights of the first
/// stages are fetched while the predecessor, which computes `a`, still runs.
#[inline(always)]
unsafe fn produce<const REGS: usize, const STAGES: u32>(
    a: *const TensorMap,
    w: *const TensorMap,
    steps: u32,
    tiles: Tiles,
    buffers: u32,
    mut ring: Ring<STAGES>,
) {
    let bytes = stage_bytes(tile_n(REGS));
    let load_w = |ring: &Ring<STAGES>, n: u32, step: u32| {
        // Boxes count in full, also where they reach beyond the matrix.
        mbarrier::arrive_expect_tx(ring.full(), bytes);
        let buffer = buffers + ring.stage() * bytes + A_BYTES;
        tma::load_2d(buffer, w, step * TILE_K, n * tile_n(REGS), ring.full());
    };
    let mut index = block_idx_x();
    let (_, first) = tiles.at(index);
    let mut next = ring.clone();
    for step in 0..STAGES {
        if step < steps {
            load_w(&next, first, step);
        }
        next.advance();
    }
    let mut ahead = if steps < STAGES { steps } else { STAGES };
    grid_dependency_wait();
    while index < tiles.count() {
        let (m, n) = tiles.at(index);
        let mut step = 0;
        while step < steps {
            if ahead > 0 {
                ahead -= 1;
            } else {
                ring.wait_empty();
                load_w(&ring, n, step);
            }
            tma::load_2d(buffers + ring.stage() * bytes, a, step * TILE_K, m * TILE_M, ring.full());
            ring.advance();
            step += 1;
        }
        index += grid_dim_x();
    }
    grid_dependency_launch();
}

/// A consumer warpgroup's share of a tile: its 64 rows of `a` times all of `w`, over `steps` stages of the ring.
#[inline(always)]
unsafe fn multiply<E: WarpgroupMma<REGS>, const REGS: usize, const STAGES: u32>(
    d: &mut [f32; REGS],
    share: u32,
    steps: u32,
    buffers: u32,
    ring: &mut Ring<STAGES>,
) {
    let mut previous = ring.empty();
    let mut step = 0;
    while step < steps {
        ring.wait_full();
        // The matrix instructions need whole warps.
        sync_warp();
        let buffer = buffers + ring.stage() * stage_bytes(tile_n(REGS));
        let a = wgmma::descriptor(buffer + share * (A_BYTES / 2));
        let w = wgmma::descriptor(buffer + A_BYTES);
        wgmma::fence();
        for i in 0..(TILE_K / 16) as u64 {
            E::mma_async(d, a + i * wgmma::K_STEP, w + i * wgmma::K_STEP, step > 0 || i > 0);
        }
        wgmma::commit();
        // One group stays in flight; the one before has read its stage.
        wgmma::wait::<1>();
        if step > 0 && lane_id() == 0 {
            mbarrier::arrive(previous);
        }
        previous = ring.empty();
        ring.advance();
        step += 1;
    }
    wgmma::wait::<0>();
    wgmma::pin(d);
    if lane_id() == 0 {
        mbarrier::arrive(previous);
    }
}

/// Bias, activation, residual and store of a thread's accumulators, whose first row and column are `row` and `col`.
/// Pass by pass over all of them, loads first, so that their latencies overlap.
#[inline(always)]
unsafe fn finish<E: Elem, const KIND: u32, const REGS: usize>(
    epilogue: &Epilogue,
    d: &mut [f32; REGS],
    row: u32,
    col: u32,
) {
    let &Epilogue { bias, out, out_stride, m, n, activation, accumulate } = epilogue;
    if !bias.is_null() {
        let pairs: [u32; REGS] = load_pairs(bias.add(col as usize), REGS / 4, n as i32 - col as i32);
        for i in 0..REGS / 4 {
            let (x, y) = E::unpack(pairs[i]);
            (d[4 * i], d[4 * i + 1]) = (d[4 * i] + x, d[4 * i + 1] + y);
            (d[4 * i + 2], d[4 * i + 3]) = (d[4 * i + 2] + x, d[4 * i + 3] + y);
        }
    }
    activate::<KIND, REGS>(d, activation);
    // Gating has left half as many groups of 8 columns, from half as far.
    let (groups, col, width) = if KIND == GATED { (REGS / 8, gated_column(col), n / 2) } else { (REGS / 4, col, n) };
    let left = width as i32 - col as i32;
    for half in 0..2 {
        let row = row + 8 * half as u32;
        if row >= m {
            return;
        }
        if KIND == F32 {
            store_f32(epilogue, d, half, row, col, left);
            continue;
        }
        // Rows of half precision are a multiple of 8 elements apart (or there is one), so pairs are aligned.
        let line = out.add(row as usize * out_stride as usize + col as usize);
        if accumulate != 0 {
            let pairs: [u32; REGS] = load_pairs(line, groups, left);
            for i in 0..groups {
                let (x, y) = E::unpack(pairs[i]);
                d[4 * i + 2 * half] += x;
                d[4 * i + 2 * half + 1] += y;
            }
        }
        let left = opaque(left);
        for i in 0..groups {
            store_pair(line.add(8 * i), left - 8 * i as i32, E::pack(d[4 * i + 2 * half], d[4 * i + 2 * half + 1]));
        }
    }
}

/// The pairs of elements at `p[8i]` for i < `groups`, zeros from `p[left]` on.
#[inline(always)]
unsafe fn load_pairs<const REGS: usize>(p: *const u16, groups: usize, left: i32) -> [u32; REGS] {
    // Else the compiler keeps 32 differences in registers from pass to pass, and spills.
    let left = opaque(left);
    let mut pairs = [0; REGS];
    for i in 0..groups {
        pairs[i] = load_pair(p.add(8 * i), left - 8 * i as i32);
    }
    pairs
}

#[inline(always)]
unsafe fn store_f32<const REGS: usize>(
    epilogue: &Epilogue,
    d: &[f32; REGS],
    half: usize,
    row: u32,
    col: u32,
    left: i32,
) {
    for i in 0..REGS / 4 {
        let left = left - 8 * i as i32;
        if left > 0 {
            let pair = [d[4 * i + 2 * half], d[4 * i + 2 * half + 1]];
            epilogue.store_f32(row, col + 8 * i as u32, pair, left > 1);
        }
    }
}

/// The activation; gated products end up in the first half of the groups.
#[inline(always)]
fn activate<const KIND: u32, const REGS: usize>(d: &mut [f32; REGS], code: u32) {
    if KIND == GATED {
        for group in 0..REGS / 8 {
            for i in 0..4 {
                d[4 * group + i] = gate(code, d[8 * group + i]) * d[8 * group + 4 + i];
            }
        }
    } else if KIND == PLAIN && code == activation::GELU_ERF {
        for x in d {
            *x = gelu_erf(*x);
        }
    } else if KIND == PLAIN && code != activation::IDENTITY {
        for x in d {
            *x = gate(code, *x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GROUP, Tiles};

    #[test]
    fn every_tile_is_taken_once() {
        for (m, n) in [(1, 1), (1, 7), (GROUP - 1, 3), (GROUP, 5), (GROUP + 1, 4), (3 * GROUP + 5, 9)] {
            let tiles = Tiles { m, n };
            let mut seen = [0; 60 * 10];
            for index in 0..tiles.count() {
                let (row, col) = tiles.at(index);
                assert!(row < m && col < n, "tile {index} of {m} x {n} is ({row}, {col})");
                seen[(row * n + col) as usize] += 1;
            }
            assert!(seen[..tiles.count() as usize].iter().all(|&times| times == 1), "{m} x {n}: {seen:?}");
        }
    }
}
