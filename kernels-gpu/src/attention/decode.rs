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
//! of an item; units are numbered through. There are one or two blocks per multiprocessor and block b takes the
//! b-th part of all units, to within one, so that the blocks end together however the lengths are mixed (`plan`).
//! A block's part is a few segments: the end of an item, whole items, the start of one. The block that has an item's
//! start adds up the others' parts, in the blocks' order, and stores the rows (`decode_merge`).
//!
//! **Block.** Warp 0 copies pages into a ring (`ring_copy`: a head's share of a page is contiguous; K and V have a stage
//! each), on through the segments. Of the pages that hold none of this step's tokens it copies before
//! `grid_dependency_wait`: nothing that the kernel before writes. The other warps are four per row tile; each takes a
//! quarter (16 keys) of every page, and the quarters' results merge in shared memory at a segment's end
//! (`decode_consume`).
//!
//! Short contexts are bound by a chain of latencies. The page table's entries, which the first copies need, are asked
//! for together with the context lengths: where the block's part would start were all contexts as long as `max_kv`.
//!
//! Slots past kv_len hold garbage: scores there are masked and values zeroed (0 · NaN is NaN).
//! Bound by memory: 4 · head_dim bytes per (token, KV head); up to 192 KiB are in flight per multiprocessor.
use super::decode_consume::{Consumer, Matrix};
use super::decode_merge::Workspace;
use super::plan::{Batch, PARKED_BYTES, Plan, Segment, Share, block};
use super::rows::tiles;
use crate::prim::{
    mbarrier,
    memory_scalar::load_u32,
    ring_copy, shared,
    thread::{barrier_arrive, barrier_sync, block_dim_x, grid_dependency_launch, grid_dependency_wait},
    warp::{LANES, lane_id, shuffle_u32, sync_warp, warp_id},
};
use crate::tile::{Bf16, DeepRing, Elem, F16, kv::PAGE};

/// Rows of a tile.
pub const ROWS: u32 = 16;
/// Keys per page.
pub(super) const KEYS: u32 = PAGE as u32;
/// Keys per warp and page.
pub(super) const QUARTER: u32 = 16;
/// Warps of a row tile.
pub(super) const WARPS: u32 = 4;
/// Threads of a row tile.
pub(super) const GROUP: u32 = WARPS * 32;
const _: () = assert!(WARPS * QUARTER == KEYS);
/// The named barrier at which the consumers wait for the ring; a row tile's is 1 more than its number.
const RING_BARRIER: u32 = 1 + MOST_TILES;
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
/// Bytes of a stage: K or V of a KV head's share of a page.
pub const fn stage_bytes(head_dim: u32) -> u32 {
    tiles(head_dim) * KEYS * 128
}
/// Bytes of shared memory for `stages` stages, their barriers and the merge of `rows` rows (a multiple of 16, or
/// fewer).
pub const fn shared_bytes(head_dim: u32, stages: u32, rows: u32) -> u32 {
    stages * (stage_bytes(head_dim) + 2 * mbarrier::BYTES) + HEADER + WARPS * rows * (row_bytes(head_dim) + 8)
}
/// Bytes from one row of a warp's shared result to the next: 32 more than D floats, so that the four rows of
/// a half-warp's stores fall into different banks.
pub(super) const fn row_bytes(head_dim: u32) -> u32 {
    head_dim * 4 + 32
}
/// Bytes of the warps' parked places, before the rows' results, maxima and sums.
pub(super) const HEADER: u32 = MOST_TILES * WARPS * PARKED_BYTES;

/// Floats of a block's part of an item: for all rows sums over V, maxima and sums.
pub const fn partial_len(head_dim: u32) -> u32 {
    MOST_TILES * ROWS * (head_dim + 2)
}

entry! {
    /// Arguments of the decode kernels: `q`, `out`: [tokens, heads · head_dim], rows `*_stride` elements apart; `k`,
    /// `v`: page pools; `block_tables`: a row of pages per sequence, `table_stride` apart; `kv_lens`: one per sequence;
    /// `query_starts`: [sequences + 1], or null for one query each; `partial`: f32 [blocks, `partial_len`], zero, and
    /// left so; `group`: heads per KV head; `rows`: rows of a block; `stages`: of the ring; `scale_log2`: scale ·
    /// log2(e); `window`: keys that a query sees, `u32::MAX` for all; `cap_inner`: scale / cap, and then `scale_log2` is
    /// cap · log2(e); 0 without a soft-cap. `expected_*` say what the plan comes to if all contexts are as long as they
    /// can be: pages of an item, units of a sequence, their inverses, units of a block and blocks with one more.
    pub struct Decode {
        q: *const u16, k: *const u16, v: *const u16, block_tables: *const u32, kv_lens: *const u32,
        query_starts: *const u32, partial: *mut f32, out: *mut u16,
        q_stride: u32, out_stride: u32, table_stride: u32, sequences: u32, kv_heads: u32, group: u32, rows: u32,
        stages: u32, scale_log2: f32, window: u32, cap_inner: f32,
        expected_pages: u32, expected_units: u32, expected_page: f32, expected_unit: f32, expected_each: u32,
        expected_longer: u32,
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
    expected_pages: u32,
    expected_units: u32,
    expected_page: f32,
    expected_unit: f32,
    expected_each: u32,
    expected_longer: u32,
) {
    let barriers = shared::base() + stages * stage_bytes(D);
    let ring = DeepRing::new(barriers, stages);
    let batch = Batch { kv_lens, query_starts, sequences, kv_heads, group, rows, window };
    let ahead = batch.ahead();
    if warp_id() == 0 {
        let table = Table { entries: block_tables, stride: table_stride };
        let share = Share { each: expected_each, longer: expected_longer };
        let expected =
            Expected { pages: expected_pages, units: expected_units, page: expected_page, unit: expected_unit };
        let entries = expected.entries(table, share, sequences);
        ring.init(ring_copy::ARRIVALS, block_dim_x() / 32 - 1);
        barrier_arrive(RING_BARRIER, block_dim_x());
        let mut producer = Producer::<D> { k, v, table, kv_heads, entries, ring, waited: false };
        producer.run(Plan::new(batch, ahead));
        return;
    }
    barrier_sync(RING_BARRIER, block_dim_x());
    let consumer = Consumer::<D> { ring, scratch: barriers + stages * 2 * mbarrier::BYTES, scale_log2, cap_inner };
    consumer.run::<E>(Plan::new(batch, ahead), Matrix { q, q_stride, out, out_stride }, Workspace { partial });
}

/// The page table.
#[derive(Clone, Copy)]
struct Table {
    entries: *const u32,
    stride: u32,
}

/// Entries of a table's row, one a lane.
#[derive(Clone, Copy)]
struct Entries {
    sequence: u32,
    /// Number of the first, and how many there are.
    first: u32,
    count: u32,
    own: u32,
}

impl Entries {
    /// Those from `first` on, of the ones before `end`, which is above.
    #[inline(always)]
    unsafe fn load(table: Table, sequence: u32, first: u32, end: u32) -> Self {
        let count = if end - first < LANES { end - first } else { LANES };
        let lane = lane_id();
        let row = table.entries.add(sequence as usize * table.stride as usize);
        let own = load_u32(row.add((first + if lane < count { lane } else { count - 1 }) as usize));
        Entries { sequence, first, count, own }
    }
}

/// See [`Decode`]'s `expected_*`.
struct Expected {
    pages: u32,
    units: u32,
    page: f32,
    unit: f32,
}

impl Expected {
    /// Asks for the entries of the block's first pages. A wrong guess costs what no guess costs.
    #[inline(always)]
    unsafe fn entries(&self, table: Table, share: Share, sequences: u32) -> Entries {
        if self.pages == 0 {
            // A table without columns.
            return Entries { sequence: 0, first: 0, count: 0, own: 0 };
        }
        let unit = share.start(block());
        let floor = |n: u32, inverse: f32| ((n as f32 + 0.5) * inverse) as u32;
        let sequence = floor(unit, self.unit);
        let sequence = if sequence < sequences { sequence } else { sequences - 1 };
        let unit = unit.wrapping_sub(sequence * self.units);
        let page = unit.wrapping_sub(floor(unit, self.page).wrapping_mul(self.pages));
        Entries::load(table, sequence, if page < self.pages { page } else { 0 }, self.pages)
    }
}

/// Warp 0.
struct Producer<const D: u32> {
    k: *const u16,
    v: *const u16,
    table: Table,
    kv_heads: u32,
    entries: Entries,
    ring: DeepRing,
    waited: bool,
}

impl<const D: u32> Producer<D> {
    /// Copies all pages of the block's segments, in order.
    #[inline(always)]
    unsafe fn run(&mut self, mut plan: Plan) {
        while let Some(segment) = plan.next() {
            // From here on pages hold tokens of this step.
            let old = segment.part.kv_len.saturating_sub(segment.part.queries) / KEYS;
            let mut page = segment.pages.0;
            while page < segment.pages.1 {
                if !self.waited && page >= old {
                    self.wait();
                }
                let entry = self.look_up(&segment, page);
                let at = self.share(entry, &segment);
                self.copy(self.k.add(at));
                self.copy(self.v.add(at));
                page += 1;
            }
        }
        if !self.waited {
            self.wait();
        }
        grid_dependency_launch();
    }

    #[inline(always)]
    fn wait(&mut self) {
        grid_dependency_wait();
        self.waited = true;
    }

    /// Element of the pools at which the segment's share of a page starts.
    #[inline(always)]
    fn share(&self, page: u32, segment: &Segment) -> usize {
        let share = page as usize * self.kv_heads as usize + segment.part.kv_head as usize;
        share * (stage_bytes(D) / 2) as usize
    }

    /// The page of the pool that is number `page` of the segment's sequence.
    #[inline(always)]
    unsafe fn look_up(&mut self, segment: &Segment, page: u32) -> u32 {
        let entries = &self.entries;
        if entries.sequence != segment.sequence || page.wrapping_sub(entries.first) >= entries.count {
            self.entries = Entries::load(self.table, segment.sequence, page, segment.pages.1);
        }
        shuffle_u32(self.entries.own, page - self.entries.first)
    }

    /// Copies a share to the next stage.
    #[inline(always)]
    unsafe fn copy(&mut self, from: *const u16) {
        let ring = &mut self.ring;
        ring.wait_empty();
        sync_warp();
        let full = ring.full();
        ring_copy::begin(full, stage_bytes(D));
        ring_copy::copy(shared::base() + ring.stage() * stage_bytes(D), from.cast(), stage_bytes(D), full);
        ring_copy::end(full);
        ring.advance();
    }
}
