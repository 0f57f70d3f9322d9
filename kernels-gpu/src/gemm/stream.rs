//! Matrix product of up to 128 rows on Hopper: the weights stream through the tensor cores once.
//!
//! Transposed: the weights are the 64-row operand of `wgmma` and the tokens, padded to 16, 32, 64 or 128, its columns,
//! so that few tokens waste no products of the wide side.
//!
//! Grid: a tile is `rows` weight rows by all tokens; the launcher picks `rows` (a multiple of 8, at most 256) and
//! `split` so that one tile for each of the multiprocessors is all the work there is. A cluster is the `split` blocks of a
//! tile, each with a part of K: they finish every `split`th 16 weight rows each, whose sums the others send it
//! ([`meeting`]). Where there are more tiles, `split` is 1 and blocks are persistent.
//!
//! Block: two or four warpgroups multiply: each has a 64-row slab of the tile and is one of the `teams` that take the
//! stages in turn, for a stage's products wait for each other: the four m64n16k16 of a block of K take 195 ns however few
//! of the rows are real, and a multiprocessor's share of the memory's bandwidth brings 48 rows in 178. One warp more is the producer: one
//! lane of it moves boxes by TMA into a ring of stages. The last one helps it to start.
//!
//! Shared memory: barriers | stages, each `rows` / 8 groups of `depth` times 8 rows of weights, then `depth` times
//! `tokens` rows of a, of 64 elements of K, 128 bytes | slack. Slabs and token tiles that reach beyond the boxes
//! multiply what lies behind them (the slack keeps that inside of the block's memory); those products are never stored.
//! After the last stage the f32 sums, \[team, token, weight row\], take the stages' place, or where blocks are persistent
//! their own; the sums from other blocks lie behind the ring if that costs no stage, else behind the block's own.
//!
//! Bytes: 2·n·k of weights; bound by memory. In flight: the ring, 64 to 200 KiB a multiprocessor. Every block reads all
//! activations: with 128 tokens, n = 6144, k = 4096 and tiles of 48 rows 134 MB from L2 beside 50 of weights. (Multicast to blocks of
//! adjacent tiles saves that and was slower all the same: blocks that wait for each other have less in flight.)
//!
//! Accumulators: thread t of warpgroup s (w = t / 32, l = t % 32) holds at `d[4j..4j + 4]`: weight row
//! 64s + 16w + l/4 for tokens 8j + 2(l%4) and + 1, then row 8 further for the same.
use super::stream_epilogue::{Store, Sums, finish};
use crate::prim::{
    TensorMap, cluster, mbarrier, opaque, shared,
    thread::{
        barrier_arrive, barrier_sync, block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x,
        thread_idx_x,
    },
    tma,
    warp::{LANES, lane_id, shuffle_u32, sync_warp},
    wgmma,
};
use crate::tile::meeting::{self, Meeting};
use crate::tile::{Bf16, DeepRing, F16, WarpgroupMma, log2};

pub use crate::tile::meeting::MAX_SPLIT;

/// Elements of K per stage: one 128-byte row of the swizzle.
pub const TILE_K: u32 = 64;
/// Bytes of a row of a stage.
pub const ROW_BYTES: u32 = 2 * TILE_K;
/// Weight rows of a slab: the rows of one `wgmma`.
pub const SLAB: u32 = 64;
const SLAB_BYTES: u32 = SLAB * ROW_BYTES;
/// Most consumer warpgroups of a block.
pub const MOST_WARPGROUPS: u32 = 4;
/// Threads of a block: its consumer warpgroups, the producer's warp and the one that helps it to start.
const fn threads(warpgroups: u32) -> u32 {
    consumers(warpgroups) + 2 * LANES
}
const fn consumers(warpgroups: u32) -> u32 {
    warpgroups * wgmma::THREADS
}
/// Warps of a warpgroup: each arrives at the empty barriers for itself.
const WARPS: u32 = wgmma::THREADS / LANES;
const K_STEP: u32 = wgmma::K_STEP as u32;
/// Where the stages begin: behind the barriers.
pub const STAGES_AT: u32 = 1024;
/// Where the barriers of the cluster's meeting are.
const MEETING_AT: u32 = STAGES_AT - Meeting::BYTES;
/// Most stages whose barriers fit.
pub const MAX_STAGES: u32 = MEETING_AT / (2 * mbarrier::BYTES);
/// Weight rows of a warp.
const WARP_ROWS: u32 = SLAB / WARPS;
/// The named barrier of the consumers.
const CONSUMERS_BARRIER: u32 = 1;
/// That at which all but the producer wait for the ring.
const START_BARRIER: u32 = 2;

entry! {
    #[only(sm_90a)]
    /// Arguments: the map of `a` is \[k / 64, m, 64\] in boxes of \[`depth`, `tokens`, 64\]; that of `w`, if `grouped`,
    /// \[n / 8, k / 64, 8, 64\] in boxes of \[`rows` / 8, `depth`, 8, 64\], else (n is no multiple of 8) \[1, k / 64, n, 64\]
    /// in boxes of \[1, 1, `rows`, 64\]. Where k is no multiple of 64, one block of k columns stands for the k / 64 of 64,
    /// and `column_step` is 64, else 0. Without `grouped`, or with a `column_step`, `depth` is 1. `kind`, `activation`,
    /// `accumulate` and out as in [`Epilogue`](crate::tile::epilogue::Epilogue). There are `tiles` tiles. The ring has `stages` stages, which `teams`
    /// (1, 2 or 4, a divisor of `stages` where stages are used again; times the slabs of `rows` at most the entry's
    /// warpgroups) take in turn. `split` (1, 2 or 4) is the size of the cluster; above 1 the grid has `split` blocks a tile. The sums start `sums` bytes into shared
    /// memory, those from the other blocks of a split K `mail` bytes.
    pub struct GemmStream maps(0: a, 1: w) {
        bias: *const u16, out: *mut u16, out_stride: u32,
        m: u32, n: u32, k: u32, kind: u32, activation: u32, accumulate: u32,
        tiles: u32, rows: u32, tokens: u32, stages: u32, split: u32, sums: u32, mail: u32, depth: u32,
        teams: u32, column_step: u32, grouped: u32,
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
/// Bytes of a team's sums.
pub const fn sums_bytes(rows: u32, tokens: u32) -> u32 {
    sums_pitch(rows) * tokens * 4
}
/// Bytes of the sums from the other blocks that share a tile's K.
pub const fn mail_bytes(rows: u32, tokens: u32, split: u32, teams: u32) -> u32 {
    meeting::mail_bytes(split, rows.div_ceil(WARP_ROWS), teams, tokens / 8)
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
    /// This block's part of K.
    part: u32,
    depth: u32,
    teams: u32,
    column_step: u32,
    grouped: u32,
    sums: u32,
    mail: u32,
    /// Whether the mail comes in where the ring is.
    mail_in_ring: bool,
    tiles: u32,
    /// Stages of this block, and the first of them.
    steps: u32,
    first_step: u32,
}

impl Layout {
    /// The first tile of the cluster, and how far it is to the next.
    #[inline(always)]
    fn first(&self) -> (u32, u32) {
        (block_idx_x() >> log2(self.split), grid_dim_x() >> log2(self.split))
    }
    /// Where the boxes of the block's stage `step` lie in K: element and block of 64.
    #[inline(always)]
    fn at(&self, step: u32) -> (u32, u32) {
        let step = self.first_step + step;
        (step * self.column_step, if self.column_step == 0 { step * self.depth } else { 0 })
    }
    /// The sums of a tile that this block finishes.
    #[inline(always)]
    fn sums(&self, tile: u32, m: u32) -> Sums {
        Sums {
            at: self.sums,
            pitch: sums_pitch(self.rows),
            rows: m,
            cols: self.rows,
            col: tile * self.rows,
            split: log2(self.split),
            part: self.part,
            teams: self.teams,
            team_bytes: self.team_bytes(),
        }
    }
    /// Where the blocks of a split K meet, for `m` tokens.
    #[inline(always)]
    fn meeting(&self, m: u32) -> Meeting {
        Meeting {
            barriers: shared::base() + MEETING_AT,
            mail: self.mail,
            in_use: self.mail_in_ring,
            split: self.split,
            part: self.part,
            warps: self.rows.div_ceil(WARP_ROWS),
            teams: self.teams,
            groups: m.div_ceil(8),
        }
    }
    /// From a team's sums to the next one's.
    #[inline(always)]
    fn team_bytes(&self) -> u32 {
        sums_bytes(self.rows, self.tokens)
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
    tiles: u32,
    rows: u32,
    tokens: u32,
    stages: u32,
    split: u32,
    sums: u32,
    mail: u32,
    depth: u32,
    teams: u32,
    column_step: u32,
    grouped: u32,
) {
    let part = block_idx_x() & (split - 1);
    let steps = (k + (TILE_K << log2(depth)) - 1) >> (log2(TILE_K) + log2(depth));
    let first_step = (steps * part) >> log2(split);
    let layout = Layout {
        rows,
        tokens,
        split,
        part,
        depth,
        teams,
        column_step,
        grouped,
        sums: shared::base() + sums,
        mail: shared::base() + mail,
        mail_in_ring: mail < STAGES_AT + stages * stage_bytes(rows, tokens, depth),
        tiles,
        steps: ((steps * (part + 1)) >> log2(split)) - first_step,
        first_step,
    };
    let mut ring = DeepRing::new(shared::base(), stages);
    let slabs = rows.div_ceil(SLAB);
    // By shuffle, so that the compiler knows it for one value per warp and computes descriptors once.
    let warpgroup = shuffle_u32(thread_idx_x() / wgmma::THREADS, 0);
    let (producer, helper) = (consumers(WARPGROUPS), consumers(WARPGROUPS) + LANES);
    if shuffle_u32(thread_idx_x(), 0) == producer {
        ring.init(1, slabs * WARPS);
        // The others wait for the barriers; this warp copies at once, while they and the predecessor, which computes `a`,
        // still run.
        barrier_arrive(START_BARRIER, threads(WARPGROUPS));
        if thread_idx_x() == producer {
            fetch_ahead(w, &layout, &ring, stages);
        }
        sync_warp();
    } else {
        if thread_idx_x() == helper {
            tma::prefetch_map(a);
            if split > 1 {
                layout.meeting(m).init(slabs * teams * WARPS);
            }
        }
        sync_warp();
        barrier_sync(START_BARRIER, threads(WARPGROUPS));
    }
    // Nobody may arrive at or send to another block's barriers before that has initialised them.
    if split > 1 {
        cluster::arrive_relaxed();
    }
    if warpgroup == WARPGROUPS {
        if thread_idx_x() == producer {
            produce(a, w, &layout, ring, stages);
        } else if thread_idx_x() == helper {
            fetch_activations(a, &layout, &ring, stages);
        }
        sync_warp();
    } else {
        // The predecessor may still read `out`, or write the residual there.
        grid_dependency_wait();
        if split > 1 {
            cluster::wait();
        }
        let (slab, team) = (warpgroup % slabs, warpgroup / slabs);
        let store = Store { bias, out, out_stride, n, kind, activation, accumulate };
        let (mut tile, stride) = layout.first();
        while tile < layout.tiles {
            let mut d = [0.0; REGS];
            // Those beyond have nothing to multiply.
            if team < teams {
                multiply::<E, REGS>(&mut d, (slab, team), &layout, &ring);
            }
            // All have read the stages whose place the sums may take, and the sums of the tile before.
            barrier_sync(CONSUMERS_BARRIER, consumers(WARPGROUPS));
            if team < teams && (split == 1 || meet(&mut d, (slab, team), &layout, m)) {
                store_sums(&d, (slab, team), &layout, m);
            }
            barrier_sync(CONSUMERS_BARRIER, consumers(WARPGROUPS));
            finish::<E>(&store, &layout.sums(tile, m), thread_idx_x(), consumers(WARPGROUPS));
            tile += stride;
            if tile < layout.tiles {
                ring.skip(layout.steps);
            }
        }
    }
    if split > 1 && warpgroup == WARPGROUPS {
        cluster::wait();
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

/// Starts to copy the activations of stage `step`.
#[inline(always)]
unsafe fn load_a(a: *const TensorMap, layout: &Layout, ring: &DeepRing, step: u32) {
    let weights = layout.depth * layout.rows * ROW_BYTES;
    let buffer = shared::base() + STAGES_AT + ring.stage() * layout.stage_bytes() + weights;
    let (column, block) = layout.at(step);
    tma::load_3d(buffer, a, [column, 0, block], ring.full());
}

/// Of `stages`, those that the first tile has a use for.
#[inline(always)]
fn first_lap(layout: &Layout, stages: u32) -> u32 {
    // Computed where it is used: kept, it costs the register that spills.
    let stages = opaque(stages as i32) as u32;
    if layout.steps < stages { layout.steps } else { stages }
}

/// Starts to copy the weights of the first lap's stages.
#[inline(always)]
unsafe fn fetch_ahead(w: *const TensorMap, layout: &Layout, ring: &DeepRing, stages: u32) {
    let ahead = first_lap(layout, stages);
    let policy = tma::evict_first();
    let (tile, _) = layout.first();
    let mut next = ring.clone();
    let mut step = 0;
    while step < ahead {
        load_w(w, layout, &next, tile, step, policy);
        next.advance();
        step += 1;
    }
}

/// Starts to copy the activations of the first lap's stages. Beside the producer: copies are made in their order, and
/// behind all of the ring's weights the first stage was not full before the ring was, after 5 µs. In a warp of its own: a
/// branch for one lane of a consumer costs the loop over K its uniform registers.
#[inline(always)]
unsafe fn fetch_activations(a: *const TensorMap, layout: &Layout, ring: &DeepRing, stages: u32) {
    let ahead = first_lap(layout, stages);
    grid_dependency_wait();
    let mut next = ring.clone();
    let mut step = 0;
    while step < ahead {
        load_a(a, layout, &next, step);
        next.advance();
        step += 1;
    }
}

/// The producer, one thread: fills stage after stage with the tiles' boxes, behind the first lap's, which are on their
/// way.
#[inline(always)]
unsafe fn produce(a: *const TensorMap, w: *const TensorMap, layout: &Layout, mut ring: DeepRing, stages: u32) {
    let policy = tma::evict_first();
    let ahead = first_lap(layout, stages);
    grid_dependency_wait();
    let (mut tile, stride) = layout.first();
    let mut step = ahead;
    ring.skip(ahead);
    while tile < layout.tiles {
        while step < layout.steps {
            ring.wait_empty();
            load_w(w, layout, &ring, tile, step, policy);
            load_a(a, layout, &ring, step);
            ring.advance();
            step += 1;
            if step + stages == layout.steps && tile + stride >= layout.tiles {
                // The next kernel starts while the last lap comes in: a chain of 32 rows is 1.2 % faster than if it waited
                // for the last copy, and 0.8 % than if it came with the first.
                grid_dependency_launch();
            }
        }
        step = 0;
        tile += stride;
    }
    // If one lap is all.
    grid_dependency_launch();
}

/// A consumer warpgroup's slab of a tile, over its team's of the block's stages.
#[inline(always)]
unsafe fn multiply<E: WarpgroupMma<REGS>, const REGS: usize>(
    d: &mut [f32; REGS],
    (slab, team): (u32, u32),
    layout: &Layout,
    ring: &DeepRing,
) {
    let &Layout { rows, tokens, depth, teams, steps, .. } = layout;
    // A buffer is always the same team's, as their number divides that of the stages: else a team could wait for a phase
    // of a buffer before the one before it, another team's, is over, and the parity of the one before that would pass.
    let first = team.wrapping_sub(ring.stage()) & (teams - 1);
    let mut own = ring.clone();
    own.skip(first);
    let blocks = if steps > first { ((steps - first + teams - 1) >> log2(teams)) * depth } else { 0 };
    let bytes = layout.stage_bytes();
    let base = shared::base();
    // Of the descriptors the lower halves, where the addresses are: the upper ones are always alike.
    let (mut w, mut a) = (0, 0);
    let upper = [8 * depth, 8].map(|rows| wgmma::descriptor_apart(0, rows * ROW_BYTES) & !0xffff_ffff);
    // Blocks of K, and the place of one in its stage. (One loop: ptxas unrolls an inner one, and spills.)
    let (mut block, mut place) = (0, 0);
    while block < blocks {
        if place == 0 {
            own.wait_full();
            let buffer = base + STAGES_AT + own.stage() * bytes;
            w = wgmma::descriptor(buffer + slab * depth * SLAB_BYTES) as u32;
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
        (w, a) = (w + ((8 * ROW_BYTES) >> 4), a + ((tokens * ROW_BYTES) >> 4));
        block += 1;
        place += 1;
        if place == depth {
            place = 0;
            // The buffer goes back at once: until the next stage were full it would be missing in flight.
            wgmma::wait::<0>();
            if lane_id() == 0 {
                mbarrier::arrive(own.empty());
            }
            own.skip(teams);
        }
    }
    // For ptxas, which would put one of its own.
    wgmma::wait::<0>();
    wgmma::pin(d);
}

/// Meets the blocks that share the tile's K; whether this block finishes what is then in this warp's accumulators. (A
/// cluster has one tile.)
#[inline(always)]
unsafe fn meet<const REGS: usize>(d: &mut [f32; REGS], (slab, team): (u32, u32), layout: &Layout, m: u32) -> bool {
    // By shuffle, so that the compiler knows it for one value per warp.
    let warp = slab * WARPS + shuffle_u32(thread_idx_x() % wgmma::THREADS / LANES, 0);
    let meeting = layout.meeting(m);
    meeting.arrive();
    warp * WARP_ROWS < layout.rows && meeting.exchange(d, warp, team)
}

/// Puts a slab's accumulators into the block's sums, \[token, weight row of the tile\].
#[inline(always)]
unsafe fn store_sums<const REGS: usize>(d: &[f32; REGS], (slab, team): (u32, u32), layout: &Layout, m: u32) {
    let thread = thread_idx_x() % wgmma::THREADS;
    let pitch = sums_pitch(layout.rows);
    let row = slab * SLAB + thread / LANES * 16 + thread % LANES / 4;
    let token = thread % 4 * 2;
    // The rows of a tile are a multiple of 8: both conditions are the same for all of the warp.
    if row >= layout.rows {
        return;
    }
    let both = row + 8 < layout.rows;
    let mut at = layout.sums + team * layout.team_bytes() + (token * pitch + row) * 4;
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
