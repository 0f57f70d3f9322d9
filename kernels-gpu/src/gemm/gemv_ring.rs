//! Matrix product of one to four rows on Hopper: the weights arrive by bulk copies, a ring of stages for each warp.
//!
//! Work: pairs of weight rows, 2p and 2p + 1 or, when gated, a gate row and its up row, 8 further. The grid is at most
//! what runs at once, as few blocks as leave every warp the same number of pairs. Warp w of all `step` takes pairs w,
//! w + `step`, …: at any time the grid reads one region of the weights from its start to its end.
//!
//! Warp: lane 0 moves `columns` columns of both rows a stage, a bulk copy each, into the warp's own ring; nobody else
//! reads it, so that no warp waits for another between a block's start and its end. Every lane takes 16 bytes of each
//! 512 of a row, for both rows the same elements of a, and the f32 sums of the lanes are added by butterfly.
//!
//! Overlap: the ring is filled, and `ahead` stages more are fetched into L2, before the predecessor has ended; the
//! successor may start when the last stage is on its way.
//!
//! With a norm, the rows of a are normalised on their way to shared memory, by every block for itself.
//!
//! Shared memory: barriers | scratch | rings, a stage `columns` elements of two rows | a, [m, k].
//!
//! Bytes: 2·n·k weights. Bound by memory: the ring has about 96 KiB of a multiprocessor in flight, its latency at full
//! bandwidth asks for 35.
use crate::prim::{
    async_copy, mbarrier,
    math::{fma, rsqrt},
    memory::load_v4_streaming_if,
    shared,
    thread::{
        block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x, sync_threads, thread_idx_x,
    },
    tma,
    warp::{LANES, lane_id, shuffle_u32, sync_warp, warp_id, warp_sum},
};
use crate::tile::{
    Bf16, DeepRing, Elem, F16,
    epilogue::{Epilogue, F32, GATED},
    reduce::{SCRATCH_BYTES, block_sum},
};

/// Warps per block.
pub const WARPS: u32 = 8;
/// Threads per block.
pub const THREADS: u32 = WARPS * LANES;
/// Most rows of a.
pub const MAX_ROWS: usize = 4;
/// Most stages of a warp's ring.
pub const MAX_STAGES: u32 = 16;
/// Bytes of a warp's barriers: a stage has a full and an empty one (unused: the warp itself refills).
const BARRIERS: u32 = MAX_STAGES * 2 * mbarrier::BYTES;
/// Columns of a step of a warp: two vectors a lane.
const STEP: u32 = 2 * LANES * 8;

/// Bytes of a stage.
const fn stage_bytes(columns: u32) -> u32 {
    2 * 2 * columns
}

/// Where the rings start: behind the barriers and what the rows' sums need.
const RINGS_AT: u32 = WARPS * BARRIERS + MAX_ROWS as u32 * SCRATCH_BYTES;
/// Vectors of a row that a thread normalises.
const VECTORS: usize = 4;
/// Widest row that is normalised on the way.
pub const MAX_NORM_WIDTH: usize = THREADS as usize * 8 * VECTORS;

/// Bytes of shared memory for `m` rows of `k`.
pub const fn shared_bytes(m: usize, k: usize, columns: u32, stages: u32) -> usize {
    let rings = RINGS_AT + WARPS * stages * stage_bytes(columns);
    rings as usize + m.next_power_of_two() * k * 2
}

entry! {
    #[only(sm_90a)]
    /// Arguments: `a`: [m, k], `w`: [n, k], the rest as [`Epilogue`], of `kind`. Rings have `stages` stages of `columns`
    /// columns (a multiple of 8); `ahead` stages more are fetched into L2. `norm`: the weights of an RMSNorm of a with
    /// `eps`, [k], or null.
    pub struct GemvRing {
        a: *const u16, w: *const u16, bias: *const u16, out: *mut u16,
        m: u32, n: u32, k: u32, a_stride: u32, w_stride: u32, out_stride: u32, activation: u32, accumulate: u32,
        kind: u32, columns: u32, stages: u32, ahead: u32, norm: *const u16, eps: f32,
    }
    fn gemv_ring1_bf16(threads: THREADS, min_blocks: 2) = gemv_ring::<Bf16, 1>;
    fn gemv_ring1_f16(threads: THREADS, min_blocks: 2) = gemv_ring::<F16, 1>;
    fn gemv_ring2_bf16(threads: THREADS, min_blocks: 2) = gemv_ring::<Bf16, 2>;
    fn gemv_ring2_f16(threads: THREADS, min_blocks: 2) = gemv_ring::<F16, 2>;
    fn gemv_ring4_bf16(threads: THREADS, min_blocks: 2) = gemv_ring::<Bf16, 4>;
    fn gemv_ring4_f16(threads: THREADS, min_blocks: 2) = gemv_ring::<F16, 4>;
}

/// The weights as a warp visits them.
struct Weights {
    w: *const u16,
    w_stride: u32,
    n: u32,
    k: u32,
    columns: u32,
    gated: bool,
    /// How far it is from one pair of the warp to its next.
    step: u32,
    policy: u64,
}

/// A stage of a warp's walk: `columns` columns, or what is left, of a pair from `column` on.
#[derive(Clone, Copy)]
struct Place {
    pair: u32,
    column: u32,
}

impl Weights {
    /// The rows of a pair.
    #[inline(always)]
    fn rows(&self, pair: u32) -> [u32; 2] {
        if self.gated { [pair / 8 * 16 + pair % 8, pair / 8 * 16 + pair % 8 + 8] } else { [2 * pair, 2 * pair + 1] }
    }
    #[inline(always)]
    fn next(&self, place: Place) -> Place {
        let column = place.column + self.columns;
        if column < self.k { Place { column, ..place } } else { Place { pair: place.pair + self.step, column: 0 } }
    }
    /// Columns of the stage.
    #[inline(always)]
    fn width(&self, place: Place) -> u32 {
        let left = self.k - place.column;
        if left < self.columns { left } else { self.columns }
    }
    /// Where the stage's part of its row `i` is. An odd matrix's last pair has its one row twice.
    #[inline(always)]
    unsafe fn at(&self, place: Place, i: usize) -> *const u8 {
        let row = self.rows(place.pair)[i];
        let row = if row < self.n { row } else { self.n - 1 };
        self.w.add(row as usize * self.w_stride as usize + place.column as usize).cast()
    }
    /// Starts to copy the stage to `slot`. One lane.
    #[inline(always)]
    unsafe fn load(&self, place: Place, slot: u32, full: u32) {
        let bytes = self.width(place) * 2;
        mbarrier::arrive_expect_tx(full, 2 * bytes);
        for i in 0..2 {
            tma::load_policy(slot + i * self.columns * 2, self.at(place, i as usize), bytes, full, self.policy);
        }
    }
    /// Starts to fetch the stage into L2. One lane.
    #[inline(always)]
    unsafe fn prefetch(&self, place: Place) {
        for i in 0..2 {
            tma::prefetch(self.at(place, i), self.width(place) * 2);
        }
    }
}

#[inline(always)]
unsafe fn gemv_ring<E: Elem, const M: usize>(
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
    kind: u32,
    columns: u32,
    stages: u32,
    ahead: u32,
    norm: *const u16,
    eps: f32,
) {
    // By shuffle, so that the compiler knows it for one value per warp.
    let warp = shuffle_u32(warp_id(), 0);
    let lane = lane_id();
    let pairs = n.div_ceil(2);
    let step = grid_dim_x() * WARPS;
    let weights =
        Weights { w, w_stride, n, k, columns, gated: kind == GATED, step, policy: tma::evict_first() };
    let rings = shared::base() + RINGS_AT;
    let slots = rings + warp * stages * stage_bytes(columns);
    let x = rings + WARPS * stages * stage_bytes(columns);

    let mut ring = DeepRing::new(shared::base() + warp * BARRIERS, stages);
    if lane == 0 {
        ring.init(1);
    }
    let mut place = Place { pair: block_idx_x() * WARPS + warp, column: 0 };
    // The stage that the next free slot is for.
    let mut next = place;
    let mut filled = 0;
    let mut slot = ring.clone();
    while filled < stages && next.pair < pairs {
        if lane == 0 {
            weights.load(next, slots + slot.stage() * stage_bytes(columns), slot.full());
        }
        next = weights.next(next);
        slot.advance();
        filled += 1;
    }
    let mut beyond = next;
    let mut fetched = 0;
    while fetched < ahead && beyond.pair < pairs {
        if lane == 0 {
            weights.prefetch(beyond);
        }
        beyond = weights.next(beyond);
        fetched += 1;
    }
    if next.pair >= pairs {
        grid_dependency_launch();
    }
    let rows = Rows { a, a_stride, m, chunks: k / 8, x };
    let mut weight = [[0; 4]; VECTORS];
    for i in 0..VECTORS {
        let chunk = thread_idx_x() + i as u32 * THREADS;
        let inside = !norm.is_null() && chunk < rows.chunks;
        weight[i] = load_v4_streaming_if(inside, norm.add(chunk as usize * 8).cast());
    }
    grid_dependency_wait();
    rows.copy::<M>();
    if !norm.is_null() {
        rows.normalise::<E, M>(weight, eps);
    }
    sync_threads();

    let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
    while place.pair < pairs {
        let pair = place.pair;
        let row = weights.rows(pair)[0];
        let old = epilogue.residual::<E>(lane, row, kind == GATED);
        let mut sums = [[0.0f32; 2]; M];
        while place.pair == pair {
            ring.wait_full();
            let slot = slots + ring.stage() * stage_bytes(columns);
            let at = [slot, slot + columns * 2, x + place.column * 2].map(|at| at + lane * 16);
            multiply::<E, M>(&mut sums, at, weights.width(place) / 8, k * 2);
            // All lanes have read the stage.
            sync_warp();
            if next.pair < pairs {
                if lane == 0 {
                    weights.load(next, slot, ring.full());
                }
                next = weights.next(next);
                if next.pair >= pairs {
                    grid_dependency_launch();
                }
            }
            place = weights.next(place);
            ring.advance();
        }
        finish::<E, M>(&epilogue, kind, row, &sums, old);
    }
}

/// The rows of a on their way to shared memory at `x`; those from `m` on become zeros.
struct Rows {
    a: *const u16,
    a_stride: u32,
    m: u32,
    /// Vectors of a row.
    chunks: u32,
    x: u32,
}

impl Rows {
    #[inline(always)]
    unsafe fn at(&self, row: u32) -> *const u16 {
        self.a.add(if row < self.m { row as usize * self.a_stride as usize } else { 0 })
    }

    /// Where the thread has its vector `i` of a row, and whether the row has it. (What a thread has copied it may read
    /// before the block's barrier.)
    #[inline(always)]
    fn vector(&self, row: u32, i: u32) -> (u32, bool) {
        let chunk = thread_idx_x() + i * THREADS;
        (self.x + (row * self.chunks + chunk) * 16, chunk < self.chunks)
    }

    /// Copies the thread's vectors.
    #[inline(always)]
    unsafe fn copy<const M: usize>(&self) {
        for row in 0..M as u32 {
            let bytes = if row < self.m { 16 } else { 0 };
            let mut chunk = thread_idx_x();
            while chunk < self.chunks {
                let to = self.x + (row * self.chunks + chunk) * 16;
                async_copy::copy_16(to, self.at(row).add(chunk as usize * 8).cast(), bytes);
                chunk += THREADS;
            }
        }
        async_copy::commit();
        async_copy::wait::<0>();
    }

    /// Normalises them as `norm/rms_norm` does, to the bit where that has as many threads. `weight`: the norm's weights of
    /// the thread's vectors.
    #[inline(always)]
    unsafe fn normalise<E: Elem, const M: usize>(&self, weight: [[u32; 4]; VECTORS], eps: f32) {
        for row in 0..M as u32 {
            let mut squares = 0.0;
            for i in 0..VECTORS {
                let (at, inside) = self.vector(row, i as u32);
                if inside {
                    let values = E::unpack8(shared::load_v4(at));
                    for e in 0..8 {
                        squares = fma(values[e], values[e], squares);
                    }
                }
            }
            let scratch = shared::base() + WARPS * BARRIERS + row * SCRATCH_BYTES;
            let scale = rsqrt(block_sum(squares, scratch) / (self.chunks * 8) as f32 + eps);
            for i in 0..VECTORS {
                let (at, inside) = self.vector(row, i as u32);
                if inside {
                    let (mut values, weight) = (E::unpack8(shared::load_v4(at)), E::unpack8(weight[i]));
                    for e in 0..8 {
                        values[e] = values[e] * scale * weight[e];
                    }
                    shared::store_v4(at, E::pack8(values));
                }
            }
        }
    }
}

/// Adds a stage's products to the lane's sums: `chunks` vectors of two weight rows and of a's rows, which lie `pitch`
/// bytes apart, the lane's first ones at `at`.
#[inline(always)]
unsafe fn multiply<E: Elem, const M: usize>(sums: &mut [[f32; 2]; M], at: [u32; 3], chunks: u32, pitch: u32) {
    let end = chunks * 16;
    let mut offset = 0;
    while offset + STEP * 2 <= end {
        vectors::<E, M, 2>(sums, at.map(|at| at + offset), pitch);
        offset += STEP * 2;
    }
    while offset + lane_id() * 16 < end {
        vectors::<E, M, 1>(sums, at.map(|at| at + offset), pitch);
        offset += LANES * 16;
    }
}

/// Adds the products of `COUNT` vectors of each row, 512 bytes apart.
#[inline(always)]
unsafe fn vectors<E: Elem, const M: usize, const COUNT: usize>(sums: &mut [[f32; 2]; M], at: [u32; 3], pitch: u32) {
    let mut w = [[[0u32; 4]; 2]; COUNT];
    let mut x = [[[0u32; 4]; M]; COUNT];
    for i in 0..COUNT {
        let offset = i as u32 * LANES * 16;
        w[i] = [shared::load_v4(at[0] + offset), shared::load_v4(at[1] + offset)];
        for row in 0..M {
            x[i][row] = shared::load_v4(at[2] + row as u32 * pitch + offset);
        }
    }
    for i in 0..COUNT {
        let [w0, w1] = w[i].map(E::unpack8);
        for row in 0..M {
            let x = E::unpack8(x[i][row]);
            for e in 0..8 {
                sums[row][0] = fma(w0[e], x[e], sums[row][0]);
                sums[row][1] = fma(w1[e], x[e], sums[row][1]);
            }
        }
    }
}

/// Adds up the lanes' sums and stores those of the pair whose first row is `row`; lane i stores row i of out, onto `old`.
#[inline(always)]
unsafe fn finish<E: Elem, const M: usize>(
    epilogue: &Epilogue,
    kind: u32,
    row: u32,
    sums: &[[f32; 2]; M],
    old: [f32; 2],
) {
    let lane = lane_id();
    let mut mine = [0.0; 2];
    for i in 0..M {
        let sum = [warp_sum(sums[i][0]), warp_sum(sums[i][1])];
        if lane == i as u32 {
            mine = sum;
        }
    }
    if lane < M as u32 {
        if kind == F32 {
            epilogue.store_pair::<E, F32>(lane, row, mine);
        } else {
            epilogue.store_onto::<E>(lane, row, kind == GATED, mine, old);
        }
    }
}
