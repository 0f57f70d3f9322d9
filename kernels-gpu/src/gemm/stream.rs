//! Matrix product of up to 128 rows on Hopper: the weights stream through the tensor cores once.
//!
//! Transposed: the weights are the 64-row operand of `wgmma` and the tokens, padded to 16, 32, 64 or 128, its columns,
//! so that few tokens waste no products of the wide side.
//!
//! Grid: a tile is `rows` weight rows by all tokens; the launcher picks `rows` (a multiple of 8, at most 256) and
//! `split` so that one tile for each of the multiprocessors is all the work there is. A cluster is `split` · `share`
//! blocks: those of the same split have adjacent tiles and the same part of K, of which each fetches its part of the
//! activations for all of them, by multicast; those of the same tile add their sums through each other's shared
//! memory, in the order of their ranks. Where there are more tiles, `split` is 1 and blocks are persistent.
//!
//! Block: two warpgroups, four for tiles of more than 128 rows, multiply: one each 64-row slab of the tile. One warp
//! more is the producer: one lane of it moves boxes by TMA into a ring of stages.
//!
//! Shared memory: barriers | stages, each `rows` / 8 groups of `depth` times 8 rows of weights, then `depth` times
//! `tokens` rows of a, of 64 elements of K, 128 bytes | slack. Slabs and token tiles that reach beyond the boxes multiply what lies behind
//! them (the slack keeps that inside of the block's memory); those products are never stored. After the last stage the
//! f32 sums, \[token, weight row\], take the stages' place, or where blocks are persistent their own.
//!
//! Bytes: 2·n·k of weights; bound by memory. In flight: the ring, 64 to 200 KiB a multiprocessor. With one block of
//! K a stage (`depth` 1) a stage took 195 ns however few rows it had (m = 32, 32 and 48 rows alike): the deeper ones
//! are for tiles of few rows. Activations cost as much of L2's bandwidth as weights from 2 · `tokens` > `rows` on:
//! hence the multicast.
//!
//! Accumulators: thread t of warpgroup s (w = t / 32, l = t % 32) holds at `d[4j..4j + 4]`: weight row
//! 64s + 16w + l/4 for tokens 8j + 2(l%4) and + 1, then row 8 further for the same.
use crate::prim::{
    TensorMap, cluster, mbarrier, opaque, shared,
    thread::{
        barrier_sync, block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x, sync_threads, thread_idx_x,
    },
    tma,
    warp::{LANES, lane_id, shuffle_u32, sync_warp},
    wgmma,
};
use crate::tile::split::{Store, Sums, finish};
use crate::tile::{Bf16, DeepRing, F16, WarpgroupMma};

pub use crate::tile::split::MAX_SPLIT;

/// Elements of K per stage: one 128-byte row of the swizzle.
pub const TILE_K: u32 = 64;
/// Bytes of a row of a stage.
pub const ROW_BYTES: u32 = 2 * TILE_K;
/// Weight rows of a slab: the rows of one `wgmma`.
pub const SLAB: u32 = 64;
const SLAB_BYTES: u32 = SLAB * ROW_BYTES;
/// Threads of a block: its consumer warpgroups and the producer's warp.
const fn threads(warpgroups: u32) -> u32 {
    consumers(warpgroups) + LANES
}
const fn consumers(warpgroups: u32) -> u32 {
    warpgroups * wgmma::THREADS
}
/// Warps of a warpgroup: each arrives at the empty barriers for itself.
const WARPS: u32 = wgmma::THREADS / LANES;
const K_STEP: u32 = wgmma::K_STEP as u32;
/// Where the stages begin: behind the barriers.
pub const STAGES_AT: u32 = 1024;
/// Most stages whose barriers fit.
pub const MAX_STAGES: u32 = STAGES_AT / (2 * mbarrier::BYTES);
/// The named barrier of the consumers.
const CONSUMERS_BARRIER: u32 = 1;

entry! {
    #[only(sm_90a)]
    /// Arguments: the map of `a` is \[k / 64, rows, 64\] in boxes of \[`depth` / `share`, `tokens`, 64\]; that of `w`,
    /// whose rows are `grouped`, \[n / 8, k / 64, 8, 64\] in boxes of \[`rows` / 8, `depth`, 8, 64\]. Where k is not a
    /// multiple of 64 they are \[1, rows, k\], `column_step` is 64, and where n is not one of 8, `w` is not `grouped`
    /// but \[1, k / 64, n, 64\]: either way boxes are one block of K deep, `depth` and `share` 1. `kind`, `activation`, `accumulate` and out as in
    /// [`Epilogue`](crate::tile::epilogue::Epilogue). The ring has `stages` stages; `split` (1, 2 or 4) times `share`
    /// (1, 2 or 4, a divisor of `depth`) is the size of the cluster; the sums start `sums` bytes into shared memory.
    pub struct GemmStream maps(0: a, 1: w) {
        bias: *const u16, out: *mut u16, out_stride: u32,
        m: u32, n: u32, k: u32, kind: u32, activation: u32, accumulate: u32,
        rows: u32, tokens: u32, stages: u32, split: u32, sums: u32, share: u32, depth: u32, column_step: u32,
        grouped: u32,
    }
    fn gemm_stream_t16_bf16(threads: threads(2), min_blocks: 2) = stream::<Bf16, 8, 2>;
    fn gemm_stream_t16_f16(threads: threads(2), min_blocks: 2) = stream::<F16, 8, 2>;
    fn gemm_stream_t16_wide_bf16(threads: threads(4), min_blocks: 1) = stream::<Bf16, 8, 4>;
    fn gemm_stream_t16_wide_f16(threads: threads(4), min_blocks: 1) = stream::<F16, 8, 4>;
    fn gemm_stream_t32_bf16(threads: threads(2), min_blocks: 2) = stream::<Bf16, 16, 2>;
    fn gemm_stream_t32_f16(threads: threads(2), min_blocks: 2) = stream::<F16, 16, 2>;
    fn gemm_stream_t32_wide_bf16(threads: threads(4), min_blocks: 1) = stream::<Bf16, 16, 4>;
    fn gemm_stream_t32_wide_f16(threads: threads(4), min_blocks: 1) = stream::<F16, 16, 4>;
    fn gemm_stream_t64_bf16(threads: threads(2), min_blocks: 2) = stream::<Bf16, 32, 2>;
    fn gemm_stream_t64_f16(threads: threads(2), min_blocks: 2) = stream::<F16, 32, 2>;
    fn gemm_stream_t64_wide_bf16(threads: threads(4), min_blocks: 1) = stream::<Bf16, 32, 4>;
    fn gemm_stream_t64_wide_f16(threads: threads(4), min_blocks: 1) = stream::<F16, 32, 4>;
    fn gemm_stream_t128_bf16(threads: threads(2), min_blocks: 1) = stream::<Bf16, 64, 2>;
    fn gemm_stream_t128_f16(threads: threads(2), min_blocks: 1) = stream::<F16, 64, 2>;
    fn gemm_stream_t128_wide_bf16(threads: threads(4), min_blocks: 1) = stream::<Bf16, 64, 4>;
    fn gemm_stream_t128_wide_f16(threads: threads(4), min_blocks: 1) = stream::<F16, 64, 4>;
}

/// Bytes of a stage.
pub const fn stage_bytes(rows: u32, tokens: u32, depth: u32) -> u32 {
    (rows + tokens) * depth * ROW_BYTES
}
/// f32 from token to token of the sums: 4 more than a multiple of 16, so that the 8 rows by 4 token pairs that a warp
/// stores at once lie in 32 banks.
pub const fn sums_pitch(rows: u32) -> u32 {
    rows.next_multiple_of(16) + 4
}
/// Weight rows of a tile of a block of `warpgroups` consumers.
pub const fn most_rows(warpgroups: u32) -> u32 {
    warpgroups * SLAB
}

/// How the work is cut; made from a kernel's parameters.
#[derive(Clone, Copy)]
struct Layout {
    rows: u32,
    tokens: u32,
    split: u32,
    share: u32,
    /// This block's place among those of its split.
    place: u32,
    depth: u32,
    column_step: u32,
    grouped: u32,
    sums: u32,
    tiles: u32,
    /// Stages of this block, and the first of them.
    steps: u32,
    first_step: u32,
}

impl Layout {
    /// The first tile of the cluster, and how far it is to the next.
    #[inline(always)]
    fn first(&self) -> (u32, u32) {
        (block_idx_x() / (self.split * self.share) * self.share, grid_dim_x() / self.split)
    }
    /// Where the boxes of the block's stage `step` lie in K: element and block of 64.
    #[inline(always)]
    fn at(&self, step: u32) -> (u32, u32) {
        let step = self.first_step + step;
        (step * self.column_step, if self.column_step == 0 { step * self.depth } else { 0 })
    }
    /// Where the sums of a tile lie.
    #[inline(always)]
    fn sums(&self, tile: u32, m: u32) -> Sums {
        Sums {
            at: self.sums,
            pitch: sums_pitch(self.rows),
            rows: m,
            cols: self.rows,
            origin: (0, tile * self.rows),
            first: self.place,
            step: self.share,
        }
    }
    #[inline(always)]
    fn stage_bytes(&self) -> u32 {
        stage_bytes(self.rows, self.tokens, self.depth)
    }
}

#[inline(always)]
unsafe fn stream<E: WarpgroupMma<REGS>, const REGS: usize, const WARPGROUPS: u32>(
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
    rows: u32,
    tokens: u32,
    stages: u32,
    split: u32,
    sums: u32,
    share: u32,
    depth: u32,
    column_step: u32,
    grouped: u32,
) {
    let rank = block_idx_x() % (split * share);
    let part = rank / share;
    let steps = k.div_ceil(TILE_K * depth);
    let first_step = steps * part / split;
    let layout = Layout {
        rows,
        tokens,
        split,
        share,
        place: rank % share,
        depth,
        column_step,
        grouped,
        sums: shared::base() + sums,
        tiles: n.div_ceil(rows),
        steps: steps * (part + 1) / split - first_step,
        first_step,
    };
    let mut ring = DeepRing::new(shared::base(), stages);
    // The others have nothing to multiply.
    let multiplying = rows.div_ceil(SLAB);
    // By shuffle, so that the compiler knows it for one value per warp and computes descriptors once.
    let warpgroup = shuffle_u32(thread_idx_x() / wgmma::THREADS, 0);
    let mut ahead = 0;
    if warpgroup == WARPGROUPS && lane_id() == 0 {
        ring.init(multiplying * WARPS * share);
        // Before anybody else has started, and while the predecessor, which computes `a`, still runs.
        ahead = fetch_ahead(w, &layout, &ring);
        tma::prefetch_map(a);
    }
    if share > 1 {
        // Copies arrive at the barriers of all.
        cluster::sync();
    } else {
        sync_threads();
    }
    if warpgroup == WARPGROUPS {
        if lane_id() == 0 {
            produce(a, w, &layout, ring, ahead);
        }
        sync_warp();
        if split > 1 {
            // The consumers' first; the second is the one below.
            cluster::sync();
        }
    } else {
        // The predecessor may still read `out`, or write the residual there.
        grid_dependency_wait();
        let store = Store { bias, out, out_stride, m, n, kind, activation, accumulate };
        let (mut first, stride) = layout.first();
        while first < layout.tiles {
            let tile = first + layout.place;
            let mut d = [0.0; REGS];
            if warpgroup < multiplying {
                multiply::<E, REGS>(&mut d, warpgroup, part, &layout, &mut ring);
            }
            // All have read the stages whose place the sums may take, and the sums of the tile before.
            barrier_sync(CONSUMERS_BARRIER, consumers(WARPGROUPS));
            store_sums(&d, warpgroup, &layout, m);
            let sums = layout.sums(tile, m);
            let threads = split * consumers(WARPGROUPS);
            let index = part * consumers(WARPGROUPS) + thread_idx_x();
            if split == 1 {
                barrier_sync(CONSUMERS_BARRIER, consumers(WARPGROUPS));
                finish::<E, 1>(&store, &sums, index, threads);
            } else {
                // A cluster has one tile a block, so that the producer knows how often its blocks meet.
                cluster::sync();
                if split == 2 {
                    finish::<E, 2>(&store, &sums, index, threads);
                } else {
                    finish::<E, 4>(&store, &sums, index, threads);
                }
            }
            first += stride;
        }
    }
    if split * share > 1 {
        // None exits while another still reads its sums, or copies or arrives here.
        cluster::sync();
    }
}

/// Starts to copy the weights of stage `step` of a tile.
#[inline(always)]
unsafe fn load_w(w: *const TensorMap, layout: &Layout, ring: &DeepRing, tile: u32, step: u32, policy: u64) {
    let bytes = layout.stage_bytes();
    // Boxes count in full, also where they reach beyond the matrix.
    mbarrier::arrive_expect_tx(ring.full(), bytes);
    let buffer = shared::base() + STAGES_AT + ring.stage() * bytes;
    let (column, block) = layout.at(step);
    let row = tile * layout.rows;
    let (row, group) = if layout.grouped != 0 { (0, row / 8) } else { (row, 0) };
    tma::load_4d_policy(buffer, w, [column, row, block, group], ring.full(), policy);
}

/// Starts to copy the weights of the first stages; returns how many.
#[inline(always)]
unsafe fn fetch_ahead(w: *const TensorMap, layout: &Layout, ring: &DeepRing) -> u32 {
    let policy = tma::evict_first();
    let tile = layout.first().0 + layout.place;
    let mut next = ring.clone();
    let mut ahead = 0;
    while ahead < layout.steps {
        load_w(w, layout, &next, tile, ahead, policy);
        ahead += 1;
        next.advance();
        if next.stage() == 0 {
            break;
        }
    }
    ahead
}

/// The producer, one thread: fills stage after stage with the tiles' boxes, of which `ahead` have their weights.
#[inline(always)]
unsafe fn produce(a: *const TensorMap, w: *const TensorMap, layout: &Layout, mut ring: DeepRing, mut ahead: u32) {
    let &Layout { rows, tokens, share, place, depth, .. } = layout;
    let buffers = shared::base() + STAGES_AT;
    let bytes = layout.stage_bytes();
    let policy = tma::evict_first();
    // This block's part of the activations, and the blocks of its split.
    let own = depth / share * place;
    let own_at = (depth * rows + own * tokens) * ROW_BYTES;
    let blocks = ((1 << share) - 1) << (block_idx_x() % (layout.split * share) - place);
    grid_dependency_wait();
    let (mut first, stride) = layout.first();
    while first < layout.tiles {
        let mut step = 0;
        while step < layout.steps {
            if ahead > 0 {
                ahead -= 1;
            } else {
                ring.wait_empty();
                load_w(w, layout, &ring, first + place, step, policy);
            }
            let buffer = buffers + ring.stage() * bytes + own_at;
            let (column, block) = layout.at(step);
            if share == 1 {
                tma::load_3d(buffer, a, [column, 0, block], ring.full());
            } else {
                tma::load_3d_multicast(buffer, a, [column, 0, block + own], ring.full(), blocks);
            }
            ring.advance();
            step += 1;
        }
        first += stride;
    }
    grid_dependency_launch();
}

/// A consumer warpgroup's slab of a tile, over the block's stages.
#[inline(always)]
unsafe fn multiply<E: WarpgroupMma<REGS>, const REGS: usize>(
    d: &mut [f32; REGS],
    warpgroup: u32,
    part: u32,
    layout: &Layout,
    ring: &mut DeepRing,
) {
    let &Layout { rows, tokens, share, depth, .. } = layout;
    let bytes = layout.stage_bytes();
    let base = shared::base();
    // Of the descriptors the lower halves, where the addresses are: the upper ones are always alike.
    let (mut w, mut a) = (0, 0);
    let upper = [8 * depth, 8].map(|rows| wgmma::descriptor_apart(0, rows * ROW_BYTES) & !0xffff_ffff);
    let mut previous = ring.empty();
    // Blocks of K, and the place of one in its stage. (One loop: ptxas unrolls an inner one, and spills.)
    let (mut block, mut place) = (0, 0);
    while block < layout.steps * depth {
        if place == 0 {
            ring.wait_full();
            let buffer = base + STAGES_AT + ring.stage() * bytes;
            w = wgmma::descriptor(buffer + warpgroup * depth * SLAB_BYTES) as u32;
            a = wgmma::descriptor(buffer + depth * rows * ROW_BYTES) as u32;
        }
        // The matrix instructions need whole warps.
        sync_warp();
        wgmma::fence();
        for i in 0..TILE_K / 16 {
            let [w, a] = [upper[0] | (w + i * K_STEP) as u64, upper[1] | (a + i * K_STEP) as u64];
            E::mma_async(d, w, a, block > 0 || i > 0);
        }
        wgmma::commit();
        // One group stays in flight while the next stage is waited for; those before have been read.
        wgmma::wait::<1>();
        // Lanes below `share` tell one block each.
        if place == 0 && block > 0 && lane_id() < share {
            mbarrier::arrive_cluster(previous, part * share + lane_id());
        }
        (w, a) = (w + ((8 * ROW_BYTES) >> 4), a + ((tokens * ROW_BYTES) >> 4));
        block += 1;
        place += 1;
        if place == depth {
            place = 0;
            previous = ring.empty();
            ring.advance();
        }
    }
    wgmma::wait::<0>();
    wgmma::pin(d);
    if layout.steps > 0 && lane_id() < share {
        mbarrier::arrive_cluster(previous, part * share + lane_id());
    }
}

/// Puts a slab's accumulators into the block's sums, \[token, weight row of the tile\].
#[inline(always)]
unsafe fn store_sums<const REGS: usize>(d: &[f32; REGS], slab: u32, layout: &Layout, m: u32) {
    let thread = thread_idx_x() % wgmma::THREADS;
    let pitch = sums_pitch(layout.rows);
    let row = slab * SLAB + thread / LANES * 16 + thread % LANES / 4;
    let token = thread % 4 * 2;
    // The rows of a tile are a multiple of 8: both conditions are the same for all of the warp.
    if row >= layout.rows {
        return;
    }
    let both = row + 8 < layout.rows;
    let mut at = layout.sums + (token * pitch + row) * 4;
    for j in 0..REGS / 4 {
        if (8 * j as u32) < m {
            let next = at + pitch * 4;
            shared::store_f32(at, d[4 * j]);
            shared::store_f32(next, d[4 * j + 1]);
            if both {
                shared::store_f32(at + 32, d[4 * j + 2]);
                shared::store_f32(next + 32, d[4 * j + 3]);
            }
        }
        // Else the compiler computes all multiples of the pitch first, and spills.
        at = opaque((at + pitch * 32) as i32) as u32;
    }
}
