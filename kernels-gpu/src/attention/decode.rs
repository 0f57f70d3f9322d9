//! Attention of a few queries per sequence over the paged KV cache: decoding, and the verification of drafts.
//!
//! ```text
//! out[q, h] = softmax(scale · Q[q, h]·Kᵀ, over keys max(0, p - window + 1) ..= p) · V      p = kv_len - queries + q
//!             with a soft-cap: softmax(cap · tanh(scale · Q[q, h]·Kᵀ / cap), …)
//! ```
//! The query heads of a group and a sequence's queries are packed, as in prefill: row r of a (sequence, KV head) is
//! query r / group of head kv_head · group + r % group. Up to two tiles of 16 rows (m16 of `mma`; fewer leave rows
//! idle, the tensor cores have nothing else to do) share every key that is read. More rows than a block takes make
//! several items.
//!
//! **Plan.** Context lengths are known on the device only. An item is a (sequence, KV head, row block), a unit one page
//! of an item; units are numbered through. The grid is about one block per multiprocessor and block b takes the
//! b-th part of all units, to within one, so that the blocks end together however the lengths are mixed (`plan`).
//! A block's part is a few segments: the end of an item, whole items, the start of one. Whole items go to `out`. Of
//! the others each block leaves its unnormalised sum over V in f32, the rows' maxima (in units of log2) and sums of
//! exponentials in the workspace, and the last block to arrive at an item merges them, in the blocks' order.
//!
//! **Block.** Warp 0 copies pages into a ring (`ring_copy`: a head's share of a page is contiguous, one copy of K and
//! one of V), on through the segments. Of the pages that hold none of this step's tokens it copies before
//! `grid_dependency_wait`: nothing that the kernel before writes. The other warps are four per row tile; each takes a
//! quarter (16 keys) of every page, and the quarters' results merge in shared memory at a segment's end.
//!
//! Slots past kv_len hold garbage: scores there are masked and values zeroed (0 · NaN is NaN).
//! Bound by memory: 4 · head_dim bytes per (token, KV head); up to 128 KiB are in flight per multiprocessor.
use super::fragment::{Lanes, MAX_DIM, Output, Queries, Running, pack_probabilities, rescale, soft_cap};
use super::plan::{PARKED_BYTES, Plan, Segment};
use super::rows::{anew, first_key, tiles};
use crate::prim::{
    global_atomic,
    math::{exp2, rcp},
    mbarrier,
    memory::{load_v4, store_v4},
    memory_scalar::{load_u32, load_v2, store_f32, store_u32},
    opaque,
    ring_copy, shared,
    thread::{
        barrier_sync, block_dim_x, block_idx_x, grid_dependency_launch, grid_dependency_wait, sync_threads,
        thread_idx_x,
    },
    warp::{lane_id, sync_warp, warp_id},
};
use crate::tile::{Bf16, DeepRing, Elem, F16, kv::PAGE};

/// Rows of a tile.
pub const ROWS: u32 = 16;
/// Keys per page.
const KEYS: u32 = PAGE as u32;
/// Keys per warp and page.
const QUARTER: u32 = 16;
/// Warps of a row tile.
const WARPS: u32 = 4;
/// Threads of a row tile.
const GROUP: u32 = WARPS * 32;
const _: () = assert!(WARPS * QUARTER == KEYS);
/// Most row tiles of a block.
pub const MOST_TILES: u32 = 2;

/// Row tiles that a block can have: at head_dim 256 a tile's registers leave no room for another.
pub const fn most_tiles(head_dim: u32) -> u32 {
    if head_dim > 128 { 1 } else { MOST_TILES }
}
/// Threads of a block with that many row tiles.
pub const fn threads(tiles: u32) -> u32 {
    32 + tiles * GROUP
}
/// Bytes of a stage: a page's K, then its V.
pub const fn stage_bytes(head_dim: u32) -> u32 {
    2 * share_bytes(head_dim)
}
/// Bytes of a KV head's share of a page.
const fn share_bytes(head_dim: u32) -> u32 {
    tiles(head_dim) * KEYS * 128
}
/// Bytes of shared memory for `stages` stages, their barriers and the merge of `rows` rows (a multiple of 16, or
/// fewer).
pub const fn shared_bytes(head_dim: u32, stages: u32, rows: u32) -> u32 {
    stages * (stage_bytes(head_dim) + 2 * mbarrier::BYTES) + scratch_bytes(head_dim, rows)
}
/// Bytes from one row of a warp's shared result to the next: 32 more than D floats, so that the four rows of
/// a half-warp's stores fall into different banks.
const fn row_bytes(head_dim: u32) -> u32 {
    head_dim * 4 + 32
}
/// Parked places and flags, then of every warp the rows' results, maxima and sums.
const fn scratch_bytes(head_dim: u32, rows: u32) -> u32 {
    HEADER + WARPS * rows * (row_bytes(head_dim) + 8)
}
/// Bytes of the warps' parked places and of the tiles' flags.
const HEADER: u32 = MOST_TILES * WARPS * PARKED_BYTES + 16;


/// Floats of a block's partial results: of its first and its last segment, for all rows sums over V, maxima and sums.
pub const fn partial_len(head_dim: u32) -> u32 {
    2 * MOST_TILES * ROWS * (head_dim + 2)
}

entry! {
    /// Arguments of the decode kernels: `q`, `out`: [tokens, heads · head_dim], rows `*_stride` elements apart; `k`,
    /// `v`: page pools; `block_tables`: a row of pages per sequence, `table_stride` apart; `kv_lens`: one per sequence;
    /// `query_starts`: [sequences + 1], or null for one query each; `partial`: f32 [blocks, `partial_len`];
    /// `arrivals`: [blocks, MOST_TILES], zero, and left so; `group`: heads per KV head; `rows`: rows of a block; `stages`:
    /// of the ring; `scale_log2`: scale · log2(e); `window`: keys that a query sees, `u32::MAX` for all; `cap_inner`:
    /// scale / cap, and then `scale_log2` is cap · log2(e); 0 without a soft-cap.
    pub struct Decode {
        q: *const u16, k: *const u16, v: *const u16, block_tables: *const u32, kv_lens: *const u32,
        query_starts: *const u32, partial: *mut f32, arrivals: *mut u32, out: *mut u16,
        q_stride: u32, out_stride: u32, table_stride: u32, sequences: u32, kv_heads: u32, group: u32, rows: u32,
        stages: u32, scale_log2: f32, window: u32, cap_inner: f32,
    }
    fn decode_attention_bf16_64(threads: threads(most_tiles(64)), min_blocks: 1) = decode::<Bf16, 64>;
    fn decode_attention_bf16_96(threads: threads(most_tiles(96)), min_blocks: 1) = decode::<Bf16, 96>;
    fn decode_attention_bf16_128(threads: threads(most_tiles(128)), min_blocks: 1) = decode::<Bf16, 128>;
    fn decode_attention_bf16_256(threads: threads(most_tiles(256)), min_blocks: 1) = decode::<Bf16, 256>;
    fn decode_attention_f16_64(threads: threads(most_tiles(64)), min_blocks: 1) = decode::<F16, 64>;
    fn decode_attention_f16_96(threads: threads(most_tiles(96)), min_blocks: 1) = decode::<F16, 96>;
    fn decode_attention_f16_128(threads: threads(most_tiles(128)), min_blocks: 1) = decode::<F16, 128>;
    fn decode_attention_f16_256(threads: threads(most_tiles(256)), min_blocks: 1) = decode::<F16, 256>;
}

#[inline(always)]
unsafe fn decode<E: Elem, const D: u32>(
    q: *const u16,
    k: *const u16,
    v: *const u16,
    block_tables: *const u32,
    kv_lens: *const u32,
    query_starts: *const u32,
    partial: *mut f32,
    arrivals: *mut u32,
    out: *mut u16,
    q_stride: u32,
    out_stride: u32,
    table_stride: u32,
    sequences: u32,
    kv_heads: u32,
    group: u32,
    rows: u32,
    stages: u32,
    scale_log2: f32,
    window: u32,
    cap_inner: f32,
) {
    let barriers = shared::base() + stages * stage_bytes(D);
    let ring = DeepRing::new(barriers, stages);
    if thread_idx_x() == 0 {
        ring.init_for(ring_copy::ARRIVALS, block_dim_x() / 32 - 1);
    }
    sync_threads();
    let plan = Plan::new(kv_lens, query_starts, sequences, kv_heads, group, rows, window);
    if warp_id() == 0 {
        let table = Tables { k, v, block_tables, table_stride, kv_heads };
        produce::<D>(plan, table, ring);
        return;
    }
    let consumer = Consumer::<D> {
        ring,
        scratch: barriers + stages * 2 * mbarrier::BYTES,
        scale_log2,
        cap_inner,
    };
    let workspace = Workspace { partial, arrivals };
    consumer.run::<E>(plan, Matrix { q, q_stride, out, out_stride }, workspace);
}

/// The KV cache.
struct Tables {
    k: *const u16,
    v: *const u16,
    block_tables: *const u32,
    table_stride: u32,
    kv_heads: u32,
}

/// Warp 0: all pages of the block's segments, in order.
#[inline(always)]
unsafe fn produce<const D: u32>(mut plan: Plan, tables: Tables, mut ring: DeepRing) {
    let mut waited = false;
    while let Some(segment) = plan.next() {
        let table = tables.block_tables.add(segment.sequence as usize * tables.table_stride as usize);
        // From here on pages hold tokens of this step.
        let old = segment.kv_len.saturating_sub(segment.queries) / KEYS;
        let mut page = segment.first_page();
        while page < segment.end_page() {
            if !waited && page >= old {
                grid_dependency_wait();
                waited = true;
            }
            let share = load_u32(table.add(page as usize)) as usize * tables.kv_heads as usize + segment.kv_head as usize;
            let at = share * (share_bytes(D) / 2) as usize;
            ring.wait_empty();
            sync_warp();
            let (to, full) = (shared::base() + ring.stage() * stage_bytes(D), ring.full());
            ring_copy::begin(full, stage_bytes(D));
            ring_copy::copy(to, tables.k.add(at).cast(), share_bytes(D), full);
            ring_copy::copy(to + share_bytes(D), tables.v.add(at).cast(), share_bytes(D), full);
            ring_copy::end(full);
            ring.advance();
            page += 1;
        }
    }
    if !waited {
        grid_dependency_wait();
    }
    grid_dependency_launch();
}

/// Queries and results.
#[derive(Clone, Copy)]
struct Matrix {
    q: *const u16,
    q_stride: u32,
    out: *mut u16,
    out_stride: u32,
}

/// What blocks leave for each other.
#[derive(Clone, Copy)]
struct Workspace {
    partial: *mut f32,
    arrivals: *mut u32,
}

impl Workspace {
    /// The rows of tile `tile` of a block's first (0) or last (1) segment: their D sums, then 2 floats each.
    #[inline(always)]
    unsafe fn partial<const D: u32>(&self, block: u32, which: u32, tile: u32) -> (*mut f32, *mut f32) {
        let at = ((block * 2 + which) * MOST_TILES + tile) as usize * (ROWS * (D + 2)) as usize;
        let sums = self.partial.add(at);
        (sums, sums.add((ROWS * D) as usize))
    }
}

/// A warp of a row tile.
struct Consumer<const D: u32> {
    ring: DeepRing,
    scratch: u32,
    scale_log2: f32,
    cap_inner: f32,
}

/// The rows of a tile in a segment.
#[derive(Clone, Copy)]
struct TileRows {
    /// Packed row of the tile's first.
    first: u32,
    /// How many there are.
    count: u32,
    group: u32,
    kv_head: u32,
    /// Row of the matrices that holds the sequence's first query.
    token: u32,
    /// Position of the sequence's first query.
    prefix: u32,
    kv_len: u32,
}

impl TileRows {
    /// Element offset of row `row` of the tile in a matrix of [tokens, heads · D].
    #[inline(always)]
    fn offset<const D: u32>(&self, row: u32, stride: u32) -> usize {
        let row = self.first + row;
        let (query, head) = (row / self.group, self.kv_head * self.group + row % self.group);
        (self.token + query) as usize * stride as usize + (head * D) as usize
    }

    /// Position of a row's query; rows that do not exist repeat the last one.
    #[inline(always)]
    fn position(&self, row: u32) -> u32 {
        let row = if row < self.count { row } else { self.count - 1 };
        let position = self.prefix + (self.first + row) / self.group;
        if position < self.kv_len { position } else { self.kv_len - 1 }
    }
}

// Where the warp is: asked for each time, kept it costs the loop over keys its registers.
impl<const D: u32> Consumer<D> {
    /// The row tile.
    #[inline(always)]
    fn tile(&self) -> u32 {
        (opaque(warp_id() as i32) as u32 - 1) / WARPS
    }

    /// The quarter of every page.
    #[inline(always)]
    fn quarter(&self) -> u32 {
        (opaque(warp_id() as i32) as u32 - 1) % WARPS
    }
}

impl<const D: u32> Consumer<D> {
    #[inline(always)]
    unsafe fn run<E: Elem>(mut self, mut plan: Plan, matrix: Matrix, workspace: Workspace) {
        grid_dependency_wait();
        while let Some(segment) = plan.next() {
            let parked = self.scratch + (self.tile() * WARPS + self.quarter()) * PARKED_BYTES;
            plan.park(&segment, parked);
            let rows = self.rows(&plan, &segment);
            let (output, running) = self.attend::<E>(&segment, &rows, plan.window, &matrix);
            let segment = plan.resume(parked);
            let rows = self.rows(&plan, &segment);
            // All of the tile have read the last segment's results.
            barrier_sync(1 + self.tile(), GROUP);
            if rows.count > 0 {
                self.share(&plan, &output, &running);
            }
            barrier_sync(1 + self.tile(), GROUP);
            if segment.is_whole() {
                self.store::<E>(&plan, &rows, &matrix);
            } else {
                self.leave(&plan, &segment, &rows, workspace);
                if self.is_last(&plan, &segment, workspace) {
                    self.store_all::<E>(&plan, &segment, &rows, &matrix, workspace);
                }
            }
        }
    }

    #[inline(always)]
    fn rows(&self, plan: &Plan, segment: &Segment) -> TileRows {
        let end = segment.queries * plan.group;
        let block_end = (segment.row_block + 1) * plan.rows;
        let end = if block_end < end { block_end } else { end };
        let first = segment.row_block * plan.rows + self.tile() * ROWS;
        let left = end.saturating_sub(first);
        TileRows {
            first,
            count: if left < ROWS { left } else { ROWS },
            group: plan.group,
            kv_head: segment.kv_head,
            token: segment.token,
            prefix: segment.kv_len.saturating_sub(segment.queries),
            kv_len: segment.kv_len,
        }
    }

    /// The warp's quarters of the segment's pages.
    #[inline(always)]
    unsafe fn attend<E: Elem>(
        &mut self,
        segment: &Segment,
        rows: &TileRows,
        window: u32,
        matrix: &Matrix,
    ) -> (Output, Running) {
        let mut output: Output = [[0.0; 4]; MAX_DIM / 8];
        let mut running = Running::new();
        let lanes = Lanes::new();
        let queries = load_queries::<D>(rows, matrix);
        let row = lane_id() / 4;
        let (mut own, mut first_position, mut last_first_key) = ([0; 2], 0, 0);
        if rows.count > 0 && rows.kv_len > 0 {
            own = [rows.position(row), rows.position(row + 8)];
            first_position = rows.position(0);
            last_first_key = first_key(rows.position(ROWS - 1), window);
        }
        let quarter = self.quarter() * QUARTER;
        let mut page = segment.first_page();
        while page < segment.end_page() {
            self.ring.wait_full();
            sync_warp();
            let start = page * KEYS + quarter;
            if rows.count > 0 {
                let k = shared::base() + self.ring.stage() * stage_bytes(D) + quarter * 128;
                let mut scores = scores::<E, D>(lanes, &queries, k);
                soft_cap(&mut scores, self.cap_inner);
                if start + QUARTER - 1 > first_position || start < last_first_key {
                    mask(&mut scores, start, own, window);
                }
                let factors = running.probabilities(&mut scores, self.scale_log2);
                rescale(&mut output[..D as usize / 8], factors);
                let valid = ValidKeys::new(start, rows.kv_len);
                accumulate::<E, D>(lanes, &scores, k + share_bytes(D), valid, &mut output);
            }
            sync_warp();
            if lane_id() == 0 {
                mbarrier::arrive(self.ring.empty());
            }
            self.ring.advance();
            page += 1;
        }
        (output, running)
    }

    /// Address of a warp's result of a row: D floats.
    #[inline(always)]
    fn result(&self, plan: &Plan, warp: u32, row: u32) -> u32 {
        self.scratch + HEADER + (warp * plan.rows + self.tile() * ROWS + row) * row_bytes(D)
    }

    /// Address of a warp's maximum and sum of a row.
    #[inline(always)]
    fn result_state(&self, plan: &Plan, warp: u32, row: u32) -> u32 {
        let results = WARPS * plan.rows * row_bytes(D);
        self.scratch + HEADER + results + (warp * plan.rows + self.tile() * ROWS + row) * 8
    }

    /// Writes the warp's result to shared memory.
    #[inline(always)]
    unsafe fn share(&self, plan: &Plan, output: &Output, running: &Running) {
        let lane = anew();
        let (g, t) = (lane / 4, lane % 4);
        let sums = running.total();
        for half in 0..2 {
            let row = g + 8 * half as u32;
            // A block of fewer rows than a tile has no room for the others.
            if self.tile() * ROWS + row < plan.rows {
                let to = self.result(plan, self.quarter(), row) + t * 8;
                for n in 0..D / 8 {
                    let o = &output[n as usize];
                    let (low, high) = (o[2 * half].to_bits() as u64, o[2 * half + 1].to_bits() as u64);
                    shared::store_u64(to + n * 32, low | high << 32);
                }
                if t == 0 {
                    let to = self.result_state(plan, self.quarter(), row);
                    shared::store_f32(to, running.max[half] * self.scale_log2);
                    shared::store_f32(to + 4, sums[half]);
                }
            }
        }
    }

    /// Eight columns of a row, merged over the warps in their order.
    #[inline(always)]
    unsafe fn merge(&self, plan: &Plan, row: u32, chunk: u32) -> Merged {
        let mut merged = Merged::new();
        let mut max = f32::NEG_INFINITY;
        for warp in 0..WARPS {
            max = max.max(shared::load_f32(self.result_state(plan, warp, row)));
        }
        merged.raise(max);
        for warp in 0..WARPS {
            let state = self.result_state(plan, warp, row);
            let (own_max, sum) = (shared::load_f32(state), shared::load_f32(state + 4));
            let from = self.result(plan, warp, row) + chunk * 32;
            merged.add(own_max, sum, shared::load_v4(from), shared::load_v4(from + 16));
        }
        merged
    }

    /// The thread's number in its tile.
    #[inline(always)]
    fn thread(&self) -> u32 {
        self.quarter() * 32 + anew()
    }

    /// Normalises and stores the rows of a whole item.
    #[inline(always)]
    unsafe fn store<E: Elem>(&self, plan: &Plan, rows: &TileRows, matrix: &Matrix) {
        let mut index = self.thread();
        while index < rows.count * (D / 8) {
            let (row, chunk) = (index / (D / 8), index % (D / 8));
            self.merge(plan, row, chunk).store::<E, D>(rows, matrix, row, chunk);
            index += GROUP;
        }
    }

    /// Leaves the rows of a part of an item in the workspace.
    #[inline(always)]
    unsafe fn leave(&self, plan: &Plan, segment: &Segment, rows: &TileRows, workspace: Workspace) {
        let which = plan.which(block_idx_x(), segment);
        let (sums, states) = workspace.partial::<D>(block_idx_x(), which, self.tile());
        let mut index = self.thread();
        while index < rows.count * (D / 8) {
            let (row, chunk) = (index / (D / 8), index % (D / 8));
            let merged = self.merge(plan, row, chunk);
            let bits = merged.values.map(f32::to_bits);
            let to: *mut u32 = sums.add((row * D + chunk * 8) as usize).cast();
            store_v4(to, [bits[0], bits[1], bits[2], bits[3]]);
            store_v4(to.add(4), [bits[4], bits[5], bits[6], bits[7]]);
            if chunk == 0 {
                store_f32(states.add(2 * row as usize), merged.max);
                store_f32(states.add(2 * row as usize + 1), merged.sum);
            }
            index += GROUP;
        }
    }

    /// Whether all other blocks' parts of the item are there. The tile's threads agree.
    #[inline(always)]
    unsafe fn is_last(&self, plan: &Plan, segment: &Segment, workspace: Workspace) -> bool {
        let flag = self.scratch + HEADER - 16 + self.tile() * 4;
        barrier_sync(1 + self.tile(), GROUP);
        let blocks = plan.blocks(segment);
        // A block is the first one of at most one item that goes on in the next block.
        let arrivals = workspace.arrivals.add((blocks.start * MOST_TILES + self.tile()) as usize);
        if self.thread() == 0 {
            let before = global_atomic::add_acq_rel_u32(arrivals, 1);
            let last = before + 1 == blocks.end - blocks.start;
            if last {
                store_u32(arrivals, 0);
            }
            shared::store_u32(flag, u32::from(last));
        }
        barrier_sync(1 + self.tile(), GROUP);
        shared::load_u32(flag) == 1
    }

    /// Merges all blocks' parts of an item, in their order, and stores its rows.
    #[inline(always)]
    unsafe fn store_all<E: Elem>(
        &self,
        plan: &Plan,
        segment: &Segment,
        rows: &TileRows,
        matrix: &Matrix,
        workspace: Workspace,
    ) {
        let blocks = plan.blocks(segment);
        let mut index = self.thread();
        while index < rows.count * (D / 8) {
            let (row, chunk) = (index / (D / 8), index % (D / 8));
            let mut merged = Merged::new();
            let mut first = blocks.start;
            while first < blocks.end {
                // All loads of a few parts before the first use: their latency is all there is to it.
                let (mut states, mut values) = ([[0; 2]; BATCH], [[[0; 4]; 2]; BATCH]);
                for i in 0..BATCH {
                    let block = first + i as u32;
                    let block = if block < blocks.end { block } else { blocks.end - 1 };
                    let (sums, state) = workspace.partial::<D>(block, plan.which(block, segment), self.tile());
                    let from: *const u32 = sums.add((row * D + chunk * 8) as usize).cast();
                    states[i] = load_v2(state.add(2 * row as usize).cast());
                    values[i] = [load_v4(from), load_v4(from.add(4))];
                }
                let mut max = f32::NEG_INFINITY;
                for i in 0..BATCH {
                    max = max.max(f32::from_bits(states[i][0]));
                }
                merged.raise(max);
                for i in 0..BATCH {
                    if first + (i as u32) < blocks.end {
                        let [max, sum] = states[i].map(f32::from_bits);
                        merged.add(max, sum, values[i][0], values[i][1]);
                    }
                }
                first += BATCH as u32;
            }
            merged.store::<E, D>(rows, matrix, row, chunk);
            index += GROUP;
        }
    }
}

/// Parts that a thread loads at once.
const BATCH: usize = 6;

/// Eight columns of a row: sums over V, the row's maximum and sum of exponentials.
struct Merged {
    values: [f32; 8],
    max: f32,
    sum: f32,
}

impl Merged {
    #[inline(always)]
    fn new() -> Self {
        Merged { values: [0.0; 8], max: f32::NEG_INFINITY, sum: 0.0 }
    }

    /// Takes everything relative to the larger maximum from now on.
    #[inline(always)]
    fn raise(&mut self, max: f32) {
        let max = max.max(self.max);
        let factor = weight(self.max, max);
        self.max = max;
        self.sum *= factor;
        for value in &mut self.values {
            *value *= factor;
        }
    }

    /// Adds a part whose maximum is not above.
    #[inline(always)]
    fn add(&mut self, max: f32, sum: f32, low: [u32; 4], high: [u32; 4]) {
        let weight = weight(max, self.max);
        self.sum += weight * sum;
        for i in 0..4 {
            self.values[i] += weight * f32::from_bits(low[i]);
            self.values[4 + i] += weight * f32::from_bits(high[i]);
        }
    }

    #[inline(always)]
    unsafe fn store<E: Elem, const D: u32>(&self, rows: &TileRows, matrix: &Matrix, row: u32, chunk: u32) {
        // An empty cache: zeros.
        let inverse = if self.sum == 0.0 { 0.0 } else { rcp(self.sum) };
        let to = matrix.out.add(rows.offset::<D>(row, matrix.out_stride) + (chunk * 8) as usize);
        store_v4(to.cast(), E::pack8(self.values.map(|x| x * inverse)));
    }
}

/// 2^(from - to); nothing but masked keys weighs nothing (-inf - -inf would be NaN).
#[inline(always)]
fn weight(from: f32, to: f32) -> f32 {
    if from == f32::NEG_INFINITY { 0.0 } else { exp2(from - to) }
}

/// A operands of the tile's rows; those that do not exist are zero.
#[inline(always)]
unsafe fn load_queries<const D: u32>(rows: &TileRows, matrix: &Matrix) -> Queries {
    let lane = anew();
    let (g, t) = (lane / 4, lane % 4);
    let mut queries: Queries = [[0; 4]; MAX_DIM / 16];
    for half in 0..2 {
        let row = g + 8 * half as u32;
        if row < rows.count {
            let q = matrix.q.add(rows.offset::<D>(row, matrix.q_stride) + (t * 2) as usize);
            for c in 0..D as usize / 16 {
                // Registers 0..4: rows g, g + 8, g, g + 8; columns 2t and 2t + 8.
                queries[c][half] = load_u32(q.add(c * 16).cast());
                queries[c][half + 2] = load_u32(q.add(c * 16 + 8).cast());
            }
        }
    }
    queries
}

/// Groups of 16 dims whose operands are loaded before their first use: a warp has nobody to hide its latencies
/// behind, but at head_dim 256 few registers.
const fn ahead(head_dim: u32) -> u32 {
    match head_dim {
        256 => 2,
        96 => 3,
        _ => 4,
    }
}

/// Scores of the 16 rows against the quarter's 16 keys; accumulator n holds keys 8n..8n+8. Even and odd steps have
/// their own sums where there are registers, so that fewer products wait for each other.
#[inline(always)]
unsafe fn scores<E: Elem, const D: u32>(lanes: Lanes, queries: &Queries, k: u32) -> [[f32; 4]; 2] {
    let mut sums = [[[0.0; 4]; 2]; 2];
    for first in 0..D / 16 / ahead(D) {
        let first = first * ahead(D);
        let mut keys = [[0; 4]; 8];
        for i in 0..ahead(D) {
            let c = first + i;
            keys[i as usize] = lanes.keys(k + c / 4 * KEYS * 128, c % 4);
        }
        for i in 0..ahead(D) as usize {
            let a = queries[first as usize + i];
            let sums = &mut sums[if D > 128 { 0 } else { i % 2 }];
            E::mma(&mut sums[0], a, [keys[i][0], keys[i][1]]);
            E::mma(&mut sums[1], a, [keys[i][2], keys[i][3]]);
        }
    }
    let mut scores = sums[0];
    for n in 0..2 {
        for i in 0..4 {
            scores[n][i] += sums[1][n][i];
        }
    }
    scores
}

/// Masks what the lane's two rows, at `positions`, do not see of the keys from `start` on.
#[inline(always)]
fn mask(scores: &mut [[f32; 4]; 2], start: u32, positions: [u32; 2], window: u32) {
    let column = start + lane_id() % 4 * 2;
    for half in 0..2 {
        let (first, last) = (first_key(positions[half], window), positions[half]);
        for n in 0..2 {
            for i in 0..2 {
                let key = column + n as u32 * 8 + i as u32;
                if key < first || key > last {
                    scores[n][2 * half + i] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Which of a quarter's keys exist.
#[derive(Clone, Copy)]
struct ValidKeys {
    all: bool,
    /// Masks of the lane's pairs of values: keys 2t and 2t + 1, then 8 further.
    pairs: [u32; 2],
}

impl ValidKeys {
    #[inline(always)]
    fn new(start: u32, end: u32) -> Self {
        let key = start + lane_id() % 4 * 2;
        let pair = |key: u32| (if key < end { 0xffff } else { 0 }) | (if key + 1 < end { 0xffff_0000 } else { 0 });
        ValidKeys { all: start + QUARTER <= end, pairs: [pair(key), pair(key + 8)] }
    }
}

/// output += P · V over the quarter's 16 keys; accumulator n holds dims 8n..8n+8.
#[inline(always)]
unsafe fn accumulate<E: Elem, const D: u32>(
    lanes: Lanes,
    p: &[[f32; 4]; 2],
    v: u32,
    valid: ValidKeys,
    output: &mut Output,
) {
    let a = pack_probabilities::<E>(p[0], p[1]);
    for first in 0..D / 16 / ahead(D) {
        let first = first * ahead(D);
        let mut values = [[0; 4]; 8];
        for i in 0..ahead(D) {
            let c = first + i;
            values[i as usize] = lanes.values(v + c / 4 * KEYS * 128, c % 4);
        }
        if !valid.all {
            for i in 0..ahead(D) as usize {
                for j in 0..4 {
                    values[i][j] &= valid.pairs[j % 2];
                }
            }
        }
        for i in 0..ahead(D) as usize {
            let (b, n) = (values[i], 2 * (first as usize + i));
            E::mma(&mut output[n], a, [b[0], b[1]]);
            E::mma(&mut output[n + 1], a, [b[2], b[3]]);
        }
    }
}
