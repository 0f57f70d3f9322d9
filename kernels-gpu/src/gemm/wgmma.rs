//! The Hopper matrix product: `out = epilogue(a · wᵀ)`, a \[m, k\], w \[n, k\], both with K contiguous.
//!
//! Persistent grid, one block of three warpgroups per multiprocessor. Warpgroup 0 is the producer: one thread
//! moves boxes of 64 elements of K by TMA into a ring of stages in shared memory. Warpgroups 1 and 2 are the
//! consumers: they multiply with `wgmma` and keep the f32 accumulators in registers, in one of two ways.
//!
//! Cooperative: each multiplies a band of 64 rows of the tile by all its columns. The tensor cores rest in the epilogue.
//! Ping-pong: each multiplies both bands, the one every other tile, and stores it while the other multiplies: of 28,672
//! by 4096 the tensor cores are busy 97 % of the time instead of 91. Twice as many accumulators leave room for 160
//! columns; with 176 they spill.
//!
//! | tile (M × N × K) | stages | shared memory | accumulators per thread, ping-pong |
//! |---|---|---|---|
//! | 128 × 256 × 64 | 4 of 48 KiB | 192 KiB | 128 |
//! | 128 × 224 × 64 | 5 of 44 KiB | 220 KiB | 112 |
//! | 128 × 192 × 64 | 5 of 40 KiB | 200 KiB | 96 |
//! | 128 × 160 × 64 | 6 of 36 KiB | 216 KiB | 80, 160 |
//! | 128 × 144 × 64 | 6 of 34 KiB | 204 KiB | –, 144 |
//! | 128 × 128 × 64 | 7 of 32 KiB | 224 KiB | 64, 128 |
//! | 128 × 112 × 64 | 7 of 30 KiB | 210 KiB | –, 112 |
//! | 128 × 96 × 64 | 8 of 28 KiB | 224 KiB | 48, 96 |
//! | 128 × 80 × 64 | 8 of 26 KiB | 208 KiB | 40 |
//! | 128 × 64 × 64 | 9 of 24 KiB | 216 KiB | 32 |
//! | 128 × 48 × 64 | 10 of 22 KiB | 220 KiB | 24 |
//!
//! The width is for the launcher to pick, so that the tiles fill the last wave.
//!
//! Clusters: with `share` 2 two blocks one above the other take tiles of the same columns. Each fetches half of the
//! weights' box and multicasts it to both, which takes a third (256 columns) to a quarter (128) off the traffic from L2:
//! at 745 TFLOP/s that is 8.7 TB/s without. A stage is free when the consumers of both blocks say so.
//!
//! Split: where there are fewer tiles than multiprocessors, `split` blocks, a cluster, share a tile's K. Each finishes the
//! rows of a `split`th of the warps, whose sums the others send it ([`meeting`](crate::tile::meeting)), over the ring.
//! Cooperative tiles only.
//!
//! Any m, n ≥ 1 and k a multiple of 8: TMA fills what lies outside of the matrices with zeros, and the epilogue
//! stores inside of them only. Per stage a block reads 48 KiB (32 KiB) for 4.2 (2.1) MFLOP, so the product is
//! bound by the tensor cores from m of about 256 on.
//!
//! Accumulators: thread t of a consumer (w = t / 32, l = t % 32) holds rows 16w + l/4 and 8 further of a
//! band's 64, and of each group j of 8 columns 2(l%4) and 2(l%4) + 1: `d[4j]`, `d[4j + 1]` of the first row,
//! `d[4j + 2]`, `d[4j + 3]` of the second. The epilogue transposes among the four lanes of a row, so that each stores
//! 16 bytes: with pairs the same stores took 3 µs of a tile's 44 at k = 4096.
use super::wgmma_epilogue::finish;
use crate::prim::{
    TensorMap, cluster, mbarrier, shared,
    thread::{
        barrier_arrive, barrier_sync, block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x,
        thread_idx_x,
    },
    tma,
    warp::{LANES, lane_id, shuffle_u32, sync_warp},
    wgmma,
};
use crate::tile::epilogue::Epilogue;
use crate::tile::meeting::Meeting;
use crate::tile::{Bf16, F16, Ring, WarpgroupMma, log2};

pub use crate::tile::meeting::MAX_SPLIT;

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
/// The named barrier at which the first consumer waits for its turn in ping-pong; the second's is the next.
const TURN_BARRIER: u32 = 1;
/// The named barrier at which all but the producer wait for the ring.
const START_BARRIER: u32 = TURN_BARRIER + CONSUMERS;
/// Tiles of M that the blocks walk together (see [`Tiles::at`]).
const GROUP: u32 = 16;

entry! {
    #[only(sm_90a)]
    /// Arguments of the Hopper matrix product: boxes of `a` are [`TILE_M`] rows, of `w` as many as a tile has
    /// columns over `share`, by [`TILE_K`] elements; `share` (1 or 2) times `split` (1, 2 or 4, at most the steps of
    /// K) is the size of the cluster, one of them 1; where `split` is not, every cluster has one tile at most. The rest
    /// as in [`Epilogue`], with its kind.
    pub struct GemmWgmma maps(0: a, 1: w) {
        bias: *const u16, out: *mut u16, out_stride: u32,
        m: u32, n: u32, k: u32, kind: u32, activation: u32, accumulate: u32, share: u32, split: u32,
    }
    fn gemm_wgmma_n256_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 128, 1, 4>;
    fn gemm_wgmma_n256_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 128, 1, 4>;
    fn gemm_wgmma_n224_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 112, 1, 5>;
    fn gemm_wgmma_n224_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 112, 1, 5>;
    fn gemm_wgmma_n192_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 96, 1, 5>;
    fn gemm_wgmma_n192_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 96, 1, 5>;
    fn gemm_wgmma_n160_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 80, 1, 6>;
    fn gemm_wgmma_n160_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 80, 1, 6>;
    fn gemm_wgmma_n128_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 64, 1, 7>;
    fn gemm_wgmma_n128_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 64, 1, 7>;
    fn gemm_wgmma_n96_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 48, 1, 8>;
    fn gemm_wgmma_n96_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 48, 1, 8>;
    fn gemm_wgmma_n80_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 40, 1, 8>;
    fn gemm_wgmma_n80_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 40, 1, 8>;
    fn gemm_wgmma_n64_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 32, 1, 9>;
    fn gemm_wgmma_n64_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 32, 1, 9>;
    fn gemm_wgmma_n48_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 24, 1, 10>;
    fn gemm_wgmma_n48_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 24, 1, 10>;
    fn gemm_wgmma_pingpong_n160_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 80, 2, 6>;
    fn gemm_wgmma_pingpong_n160_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 80, 2, 6>;
    fn gemm_wgmma_pingpong_n144_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 72, 2, 6>;
    fn gemm_wgmma_pingpong_n144_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 72, 2, 6>;
    fn gemm_wgmma_pingpong_n128_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 64, 2, 7>;
    fn gemm_wgmma_pingpong_n128_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 64, 2, 7>;
    fn gemm_wgmma_pingpong_n112_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 56, 2, 7>;
    fn gemm_wgmma_pingpong_n112_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 56, 2, 7>;
    fn gemm_wgmma_pingpong_n96_bf16(threads: THREADS, min_blocks: 1) = gemm::<Bf16, 48, 2, 8>;
    fn gemm_wgmma_pingpong_n96_f16(threads: THREADS, min_blocks: 1) = gemm::<F16, 48, 2, 8>;
}

/// Stages of the ring for tiles of `tile_n` columns; up to 224 KiB.
pub const fn stages(tile_n: u32) -> u32 {
    match tile_n {
        48 => 10,
        64 => 9,
        80 | 96 => 8,
        112 | 128 => 7,
        144 | 160 => 6,
        192 | 224 => 5,
        _ => 4,
    }
}
/// Columns of the tile whose accumulators are `registers` a thread and band.
pub const fn tile_n(registers: usize) -> u32 {
    2 * registers as u32
}
const A_BYTES: u32 = TILE_M * TILE_K * 2;
/// Rows of a tile that one matrix instruction multiplies, and their bytes in a stage.
const BAND: u32 = 64;
const BAND_BYTES: u32 = BAND * TILE_K * 2;
const fn stage_bytes(tile_n: u32) -> u32 {
    A_BYTES + tile_n * TILE_K * 2
}
/// Shared memory of a block: the stages, then their barriers, then the meeting's.
pub const fn shared_bytes(tile_n: u32) -> u32 {
    stages(tile_n) * (stage_bytes(tile_n) + 2 * mbarrier::BYTES) + Meeting::BYTES
}

/// The first of the two stages that take the other blocks' sums, of a ring of `stages`: of the oldest ones whether a block
/// has `steps` steps or one more. Behind them are at least `stages` − 4 steps.
fn mail_stage(steps: u32, stages: u32) -> u32 {
    let stage = (steps + 1) % stages;
    if stage + 1 == stages { 0 } else { stage }
}

/// The tiles of the output, in the order in which clusters take them; one is `share` tiles of M.
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
    /// Row and column of tile `index`. Groups of `group` rows of tiles, each walked down its columns: with 16 the
    /// 132 tiles in flight share about 16 panels of `a` and 9 of `w`, which stay in the L2 cache.
    #[inline(always)]
    fn at(self, index: u32, group: u32) -> (u32, u32) {
        // Where there are few tiles, divisions, 30 to 100 cycles each, would delay the first copy.
        if self.m == 1 {
            return (0, index);
        }
        let first = index / (group * self.n) * group;
        let rows = if self.m - first < group { self.m - first } else { group };
        let inner = index - first * self.n;
        (first + inner % rows, inner / rows)
    }
}

/// How the blocks of the grid share the work; made from a kernel's parameters.
#[derive(Clone, Copy)]
struct Work {
    tiles: Tiles,
    /// Steps of [`TILE_K`] of this block, and the first of them.
    steps: u32,
    first_step: u32,
    /// Blocks that share weights, and this one's place among them.
    share: u32,
    rank: u32,
    /// Where the blocks that share a tile's K meet.
    meeting: Meeting,
    /// Where the ring's buffers start in shared memory.
    buffers: u32,
}

impl Work {
    /// First row of `a` and of `w` of the block's tile `index`.
    #[inline(always)]
    fn origin(&self, index: u32, tile_n: u32) -> (u32, u32) {
        let (m, n) = self.tiles.at(index, GROUP >> log2(self.share));
        ((m * self.share + self.rank) * TILE_M, n * tile_n)
    }
    /// The first of the cluster's tiles, and how far it is to the next.
    #[inline(always)]
    fn first(&self) -> (u32, u32) {
        let cluster = log2(self.share * self.meeting.split);
        (block_idx_x() >> cluster, grid_dim_x() >> cluster)
    }
    /// Of `STAGES`, those that the first tile has a use for.
    #[inline(always)]
    fn first_lap<const STAGES: u32>(&self) -> u32 {
        if self.steps < STAGES { self.steps } else { STAGES }
    }
}

#[inline(always)]
unsafe fn gemm<E: WarpgroupMma<REGS>, const REGS: usize, const BANDS: usize, const STAGES: u32>(
    a: *const TensorMap,
    w: *const TensorMap,
    bias: *const u16,
    out: *mut u16,
    out_stride: u32,
    m: u32,
    n: u32,
    k: u32,
    kind: u32,
    activation: u32,
    accumulate: u32,
    share: u32,
    split: u32,
) {
    let buffers = shared::base();
    let mut ring = Ring::<STAGES>::new(buffers + STAGES * stage_bytes(tile_n(REGS)));
    let rank = block_idx_x() & (share * split - 1);
    let part = rank >> log2(share);
    let steps = k.div_ceil(TILE_K);
    let meeting = Meeting {
        barriers: buffers + shared_bytes(tile_n(REGS)) - Meeting::BYTES,
        mail: buffers + mail_stage(steps >> log2(split), STAGES) * stage_bytes(tile_n(REGS)),
        in_use: true,
        split,
        part,
        warps: CONSUMERS * WARPS,
        teams: 1,
        groups: REGS as u32 / 4,
    };
    let tiles = Tiles { m: (m.div_ceil(TILE_M) + share - 1) >> log2(share), n: n.div_ceil(tile_n(REGS)) };
    let first_step = (steps * part) >> log2(split);
    let work = Work {
        tiles,
        steps: ((steps * (part + 1)) >> log2(split)) - first_step,
        first_step,
        share,
        rank: rank & (share - 1),
        meeting,
        buffers,
    };
    // By shuffle, so that the compiler knows it for one value per warp and computes descriptors once.
    let warpgroup = shuffle_u32(thread_idx_x() / wgmma::THREADS, 0);
    if shuffle_u32(thread_idx_x(), 0) == 0 {
        if thread_idx_x() == 0 {
            ring.init(consumers::<BANDS>() * WARPS * share);
            if BANDS == 1 && split > 1 {
                meeting.init(CONSUMERS * WARPS);
            }
        }
        sync_warp();
        // The others wait for the barriers; this warp copies at once, unless it copies for others.
        barrier_arrive(START_BARRIER, THREADS);
    } else {
        if thread_idx_x() == LANES {
            tma::prefetch_map(a);
        }
        sync_warp();
        barrier_sync(START_BARRIER, THREADS);
    }
    if share > 1 {
        cluster::sync();
    } else if split > 1 {
        cluster::arrive_relaxed();
    }
    if warpgroup == 0 {
        wgmma::registers_decrease::<PRODUCER_REGISTERS>();
        if thread_idx_x() == 0 {
            produce::<REGS, STAGES>(a, w, &work, ring);
        } else if thread_idx_x() == LANES {
            fetch_activations::<REGS, STAGES>(a, &work, &ring);
        }
        sync_warp();
        if split > 1 {
            cluster::wait();
        }
    } else {
        wgmma::registers_increase::<CONSUMER_REGISTERS>();
        // The predecessor may still read `out`, or write the residual there.
        grid_dependency_wait();
        if split > 1 {
            cluster::wait();
        }
        let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
        consume::<E, REGS, BANDS, STAGES>(&epilogue, kind, warpgroup - 1, &work, &mut ring);
    }
    if share > 1 {
        // The other block's copies and arrivals still come in here.
        cluster::sync();
    }
}

/// Warpgroups that read a stage: one where each has both of the tile's bands.
const fn consumers<const BANDS: usize>() -> u32 {
    CONSUMERS / BANDS as u32
}

/// A consumer warpgroup: the products and epilogues of its band of the block's tiles, or of every other tile's both.
#[inline(always)]
unsafe fn consume<E: WarpgroupMma<REGS>, const REGS: usize, const BANDS: usize, const STAGES: u32>(
    epilogue: &Epilogue,
    kind: u32,
    warpgroup: u32,
    work: &Work,
    ring: &mut Ring<STAGES>,
) {
    let thread = thread_idx_x() % wgmma::THREADS;
    let (mut index, stride) = work.first();
    let pingpong = BANDS > 1;
    let band = if pingpong { 0 } else { warpgroup };
    if pingpong && warpgroup > 0 {
        ring.skip(work.steps);
        index += stride;
    }
    while index < work.tiles.count() {
        let (row, col) = work.origin(index, tile_n(REGS));
        let mut d = [[0.0; REGS]; BANDS];
        if pingpong && index >= stride {
            barrier_sync(TURN_BARRIER + warpgroup, CONSUMERS * wgmma::THREADS);
        }
        let next = if index + stride < work.tiles.count() { TURN_BARRIER + (warpgroup ^ 1) } else { 0 };
        multiply::<E, REGS, BANDS, STAGES>(&mut d, band, next, work, ring);
        let own = band * BAND + thread / LANES * 16 + thread % LANES / 4;
        if pingpong {
            for i in 0..BANDS {
                finish::<E, REGS>(epilogue, kind, &mut d[i], row + i as u32 * BAND + own, col);
            }
            ring.skip(work.steps);
        } else if work.meeting.split == 1 || meet(&mut d[0], warpgroup, &work.meeting) {
            finish::<E, REGS>(epilogue, kind, &mut d[0], row + own, col);
        }
        index += BANDS as u32 * stride;
    }
}

/// Meets the blocks that share the tile's K; whether this block finishes what is then in this warp's accumulators. (A
/// cluster has one tile.)
#[inline(always)]
unsafe fn meet<const REGS: usize>(d: &mut [f32; REGS], warpgroup: u32, meeting: &Meeting) -> bool {
    // By shuffle, so that the compiler knows it for one value per warp.
    let warp = warpgroup * WARPS + shuffle_u32(thread_idx_x() % wgmma::THREADS / LANES, 0);
    meeting.exchange(d, warp, 0)
}

/// The producer, one thread: fills stage after stage with the tiles' boxes of `a` and `w`, behind the first lap's, whose
/// weights it fetches while the predecessor, which computes `a`, still runs.
#[inline(always)]
unsafe fn produce<const REGS: usize, const STAGES: u32>(
    a: *const TensorMap,
    w: *const TensorMap,
    work: &Work,
    mut ring: Ring<STAGES>,
) {
    let bytes = stage_bytes(tile_n(REGS));
    let &Work { steps, first_step, share, rank, buffers, .. } = work;
    // This block's part of the weights, for all of the cluster.
    let part = tile_n(REGS) >> log2(share);
    let policy = tma::evict_first();
    let load_w = |ring: &Ring<STAGES>, row: u32, step: u32| {
        // Boxes count in full, also where they reach beyond the matrix.
        mbarrier::arrive_expect_tx(ring.full(), bytes);
        let buffer = buffers + ring.stage() * bytes + A_BYTES + rank * part * (2 * TILE_K);
        let column = (first_step + step) * TILE_K;
        if share == 1 && work.tiles.m == 1 {
            // Nobody reads them again.
            tma::load_2d_policy(buffer, w, column, row, ring.full(), policy);
        } else if share == 1 {
            tma::load_2d(buffer, w, column, row, ring.full());
        } else {
            tma::load_2d_multicast(buffer, w, column, row + rank * part, ring.full(), (1 << share) - 1);
        }
    };
    let (mut index, stride) = work.first();
    let (_, first) = work.origin(index, tile_n(REGS));
    let ahead = work.first_lap::<STAGES>();
    let mut step = 0;
    while step < ahead {
        load_w(&ring, first, step);
        ring.advance();
        step += 1;
    }
    grid_dependency_wait();
    while index < work.tiles.count() {
        let (a_row, w_row) = work.origin(index, tile_n(REGS));
        while step < steps {
            ring.wait_empty();
            load_w(&ring, w_row, step);
            load_a(a, work, ring.stage() * bytes, ring.full(), a_row, step);
            ring.advance();
            step += 1;
            if step + STAGES == steps && index + stride >= work.tiles.count() {
                // The next kernel starts while the last lap comes in.
                grid_dependency_launch();
            }
        }
        step = 0;
        index += stride;
    }
    // If one lap is all.
    grid_dependency_launch();
}

/// Starts to copy the rows of `a` of a step to the stage at `buffer` of the ring.
#[inline(always)]
unsafe fn load_a(a: *const TensorMap, work: &Work, buffer: u32, full: u32, row: u32, step: u32) {
    tma::load_2d(work.buffers + buffer, a, (work.first_step + step) * TILE_K, row, full);
}

/// Starts to copy the first lap's stages of `a`. One thread of another warp than the producer's (of a consumer's it would
/// cost the main loop its uniform registers), beside its weights: copies are made in their order, and behind all of the
/// ring's weights the first stage would be full no sooner than the last.
#[inline(always)]
unsafe fn fetch_activations<const REGS: usize, const STAGES: u32>(
    a: *const TensorMap,
    work: &Work,
    ring: &Ring<STAGES>,
) {
    let (index, _) = work.first();
    let (row, _) = work.origin(index, tile_n(REGS));
    let ahead = work.first_lap::<STAGES>();
    grid_dependency_wait();
    let mut next = ring.clone();
    let mut step = 0;
    while step < ahead {
        load_a(a, work, next.stage() * stage_bytes(tile_n(REGS)), next.full(), row, step);
        next.advance();
        step += 1;
    }
}

/// A consumer warpgroup's share of a tile: its bands of `a` from `first` on times all of `w`, over all stages. In
/// ping-pong it is the other's turn, at the barrier `next` if there is one, as soon as the last stage is full: had the
/// other waited for its own before, laps later, it would mistake an earlier lap for it.
#[inline(always)]
unsafe fn multiply<E: WarpgroupMma<REGS>, const REGS: usize, const BANDS: usize, const STAGES: u32>(
    d: &mut [[f32; REGS]; BANDS],
    first: u32,
    next: u32,
    work: &Work,
    ring: &mut Ring<STAGES>,
) {
    let mut previous = ring.empty();
    // The step before which the last one that read the mail's stages has been waited for.
    let ahead = (work.steps + 4).saturating_sub(STAGES);
    let meets = BANDS == 1 && work.meeting.split > 1;
    let mut step = 0;
    while step < work.steps {
        ring.wait_full();
        // The matrix instructions need whole warps.
        sync_warp();
        if BANDS > 1 && step + 1 == work.steps && next > 0 {
            barrier_arrive(next, CONSUMERS * wgmma::THREADS);
        }
        let buffer = work.buffers + ring.stage() * stage_bytes(tile_n(REGS));
        let a = wgmma::descriptor(buffer + first * BAND_BYTES);
        let w = wgmma::descriptor(buffer + A_BYTES);
        wgmma::fence();
        for i in 0..(TILE_K / 16) as u64 {
            for band in 0..BANDS {
                let a = a + band as u64 * (BAND_BYTES >> 4) as u64 + i * wgmma::K_STEP;
                E::mma_async(&mut d[band], a, w + i * wgmma::K_STEP, step > 0 || i > 0);
            }
        }
        wgmma::commit();
        // One group stays in flight; the one before has read its stage.
        wgmma::wait::<1>();
        if step > 0 {
            release(previous, work.share);
        }
        if meets && step == ahead {
            work.meeting.arrive();
        }
        previous = ring.empty();
        ring.advance();
        step += 1;
    }
    wgmma::wait::<0>();
    for band in d {
        wgmma::pin(band);
    }
    release(previous, work.share);
    if meets && ahead == work.steps {
        work.meeting.arrive();
    }
}

/// Tells the blocks that fetch the weights of a stage, whose empty barrier is at `empty`, that this warp has read it:
/// one lane tells each of the `share` blocks of the cluster, or the own block if it shares with none.
#[inline(always)]
unsafe fn release(empty: u32, share: u32) {
    if share > 1 {
        if lane_id() < share {
            mbarrier::arrive_cluster(empty, lane_id());
        }
    } else if lane_id() == 0 {
        mbarrier::arrive(empty);
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
                let (row, col) = tiles.at(index, GROUP);
                assert!(row < m && col < n, "tile {index} of {m} x {n} is ({row}, {col})");
                seen[(row * n + col) as usize] += 1;
            }
            assert!(seen[..tiles.count() as usize].iter().all(|&times| times == 1), "{m} x {n}: {seen:?}");
        }
    }
}
