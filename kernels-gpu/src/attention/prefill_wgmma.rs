//! Attention of many queries per sequence over the paged KV cache, with Hopper's instructions: what `prefill`
//! computes.
//!
//! A block is three warpgroups. Warpgroup 0 is the producer: one thread copies the KV head's share of two pages at a
//! time, 128 keys (one page at D = 256), into two rings of two stages, one for K and one for V; a page's share of 64
//! dims is contiguous and swizzled already, so each is a plain bulk copy of 8 KiB. Warpgroups 1 and 2 are the
//! consumers, 64 packed rows (see `rows`) each. Per tile of keys j, last to first (which puts what needs masking first):
//!
//! ```text
//! S(j) = Q·K(j)ᵀ        wgmma, Q and K in shared memory        64 f32 a thread (32 at D = 256)
//! O += P(j-1)·V(j-1)    wgmma, P in registers, V transposed    D / 2 f32; runs under the softmax of S(j)
//! P(j) = softmax        in registers, packed to 16 bits        32 registers (16)
//! ```
//! The consumers take turns in issuing (named barriers): while one's products run, the other is in its softmax.
//!
//! Persistent grid. Items (row block, sequence, KV head) are sorted by row block, longest first, and dealt out to
//! the blocks forth and back, so that each gets about as many keys. The producer runs ahead into the next item.
//!
//! Shared memory at D = 128: Q 2 · 32 KiB (the next item's comes in under the first product; the output takes over
//! this one's in the end), K and V 2 · 32 KiB each; at D = 256 Q 64 KiB once, K and V as before. Slots past kv_len hold garbage: scores there are masked, and the
//! consumers zero those rows of V (0 · NaN is NaN) and all after them. A last page without a neighbour comes twice;
//! the copy is masked like keys to come.
//!
//! Bound by the tensor cores: 4 · D flops per (row, key) against one exp2, which takes half the time of the products
//! at D = 128 and as long as they at D = 64.
use super::fragment::{Running, pack_probabilities, rescale, soft_cap};
use super::rows::{Rows, TILE, first_key, tiles};
use crate::prim::{
    async_copy, mbarrier,
    memory_scalar::load_u32,
    shared,
    thread::{
        barrier_arrive, barrier_sync, block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x,
        sync_threads, thread_idx_x,
    },
    tma,
    warp::{LANES, lane_id, shuffle_u32, sync_warp},
    wgmma,
};
use crate::tile::{Bf16, Elem, F16, Ring, WarpgroupMma, WarpgroupMmaRegisters, kv::PAGE};

/// Query rows of a block: two consumer warpgroups of 64.
pub const ROWS: u32 = CONSUMERS * SHARE;
const CONSUMERS: u32 = 2;
/// Rows of a consumer.
const SHARE: u32 = 64;
/// One producer and two consumer warpgroups.
pub const THREADS: u32 = (1 + CONSUMERS) * wgmma::THREADS;
/// Warps of a warpgroup: each arrives at the empty barriers for itself.
const WARPS: u32 = wgmma::THREADS / LANES;
const PAGE_KEYS: u32 = PAGE as u32;
/// Pages of a tile: at head_dim 256 registers and shared memory allow one.
const fn pages(head_dim: u32) -> u32 {
    if head_dim > 128 { 1 } else { 2 }
}
/// Keys of a tile.
const fn tile_keys(head_dim: u32) -> u32 {
    pages(head_dim) * PAGE_KEYS
}
/// Bytes of 64 dims of a tile of K or V.
const fn column(head_dim: u32) -> u32 {
    pages(head_dim) * TILE
}
const STAGES: u32 = 2;
/// This item's queries and, where there is room, the next one's.
const fn query_stages(head_dim: u32) -> u32 {
    if head_dim > 128 { 1 } else { 2 }
}
/// 40 · 128 + 232 · 256 = 64,512 of 65,536 registers; the launch gives 168 a thread.
const PRODUCER_REGISTERS: u32 = 40;
const CONSUMER_REGISTERS: u32 = 232;

/// Named barrier of consumer 0's queries; the next is consumer 1's.
const QUERIES: u32 = 1;
/// Named barrier of consumer 0's turn; the next is consumer 1's.
const TURN: u32 = 3;
/// Named barrier of both consumers.
const BOTH: u32 = 5;

const fn query_bytes(head_dim: u32) -> u32 {
    tiles(head_dim) * CONSUMERS * TILE
}
/// Bytes of a stage of K or V: [tiles(head_dim)][tile_keys(head_dim)][64], swizzled.
const fn stage_bytes(head_dim: u32) -> u32 {
    tiles(head_dim) * column(head_dim)
}
/// Bytes of shared memory: Q once or twice, [consumer][tiles(head_dim)][64 rows][64], the stages of K, of V, their
/// barriers.
pub const fn shared_bytes(head_dim: u32) -> u32 {
    query_stages(head_dim) * query_bytes(head_dim) + 2 * STAGES * stage_bytes(head_dim) + 2 * Ring::<STAGES>::BYTES
}

entry! {
    #[only(sm_90a)]
    /// Arguments of the Hopper prefill kernels: `q`, `out`: [tokens, heads · head_dim], rows `*_stride` elements
    /// apart; `k`, `v`: page pools; `block_tables`: a row of pages per sequence, `table_stride` apart; `kv_lens`: one
    /// per sequence; `query_starts`: [sequences + 1]; `row_blocks`: blocks of rows of the longest sequence; `group`:
    /// heads per KV head; `scale_log2`: scale · log2(e); `window`: keys that a query sees, `u32::MAX` for all;
    /// `cap_inner`: scale / cap, and then `scale_log2` is cap · log2(e); 0 without a soft-cap.
    pub struct PrefillWgmma {
        q: *const u16, k: *const u16, v: *const u16, block_tables: *const u32, kv_lens: *const u32,
        query_starts: *const u32, out: *mut u16,
        q_stride: u32, out_stride: u32, table_stride: u32, row_blocks: u32, sequences: u32, kv_heads: u32, group: u32,
        scale_log2: f32, window: u32, cap_inner: f32,
    }
    fn prefill_attention_wgmma_bf16_64(threads: THREADS, min_blocks: 1) = prefill::<Bf16, 64, 32, 64>;
    fn prefill_attention_wgmma_bf16_96(threads: THREADS, min_blocks: 1) = prefill::<Bf16, 96, 48, 64>;
    fn prefill_attention_wgmma_bf16_128(threads: THREADS, min_blocks: 1) = prefill::<Bf16, 128, 64, 64>;
    fn prefill_attention_wgmma_bf16_256(threads: THREADS, min_blocks: 1) = prefill::<Bf16, 256, 128, 32>;
    fn prefill_attention_wgmma_f16_64(threads: THREADS, min_blocks: 1) = prefill::<F16, 64, 32, 64>;
    fn prefill_attention_wgmma_f16_96(threads: THREADS, min_blocks: 1) = prefill::<F16, 96, 48, 64>;
    fn prefill_attention_wgmma_f16_128(threads: THREADS, min_blocks: 1) = prefill::<F16, 128, 64, 64>;
    fn prefill_attention_wgmma_f16_256(threads: THREADS, min_blocks: 1) = prefill::<F16, 256, 128, 32>;
}

/// What an item is about.
#[derive(Clone, Copy)]
struct Items {
    kv_lens: *const u32,
    query_starts: *const u32,
    row_blocks: u32,
    sequences: u32,
    kv_heads: u32,
    group: u32,
    window: u32,
}

/// Number of the item that block `block` of `blocks` takes in its turn number `turn`: forth in even turns, back in
/// odd ones.
#[inline(always)]
fn dealt(turn: u32, block: u32, blocks: u32) -> u32 {
    turn * blocks + if turn.is_multiple_of(2) { block } else { blocks - 1 - block }
}

/// One row block of one (sequence, KV head) and the pages that it sees.
#[derive(Clone, Copy)]
struct Item {
    sequence: u32,
    rows: Rows,
    kv_len: u32,
    /// Position of the sequence's first query.
    prefix: u32,
    first_page: u32,
    end_page: u32,
}

impl Items {
    #[inline(always)]
    fn count(&self) -> u32 {
        self.row_blocks * self.sequences * self.kv_heads
    }

    /// Reads item `index`, each length through `same`; nothing if it has no rows or no keys.
    #[inline(always)]
    unsafe fn get(&self, index: u32, same: impl Fn(u32) -> u32) -> Option<Item> {
        let (row_block, rest) = (index / (self.sequences * self.kv_heads), index % (self.sequences * self.kv_heads));
        let (sequence, kv_head) = (rest / self.kv_heads, rest % self.kv_heads);
        let starts = self.query_starts.add(sequence as usize);
        let (token, end) = (load_u32(starts), load_u32(starts.add(1)));
        let kv_len = load_u32(self.kv_lens.add(sequence as usize));
        let (token, end, kv_len) = (same(token), same(end), same(kv_len));
        let queries = end - token;
        let first = (self.row_blocks - 1 - row_block) * ROWS;
        let rows = Rows { first, end: queries * self.group, group: self.group, kv_head, token };
        if rows.first >= rows.end || kv_len == 0 {
            return None;
        }
        let mut item =
            Item { sequence, rows, kv_len, prefix: kv_len.saturating_sub(queries), first_page: 0, end_page: 0 };
        item.first_page = first_key(item.position(first), self.window) / PAGE_KEYS;
        item.end_page = item.position(first + ROWS - 1) / PAGE_KEYS + 1;
        Some(item)
    }
}

impl Items {
    /// The block's next item, from turn `turn` on, and its number.
    #[inline(always)]
    unsafe fn next(&self, turn: &mut u32, same: impl Fn(u32) -> u32 + Copy) -> Option<(u32, Item)> {
        while *turn * grid_dim_x() < self.count() {
            let index = dealt(*turn, block_idx_x(), grid_dim_x());
            *turn += 1;
            if index < self.count()
                && let Some(item) = self.get(index, same)
            {
                return Some((index, item));
            }
        }
        None
    }
}

impl Item {
    /// Position of a row's query. Rows past the end repeat the last one; kv_len bounds what contradictory lengths
    /// could reach.
    #[inline(always)]
    fn position(&self, row: u32) -> u32 {
        let row = if row < self.rows.end { row } else { self.rows.end - 1 };
        let position = self.prefix + row / self.rows.group;
        if position < self.kv_len { position } else { self.kv_len - 1 }
    }

    #[inline(always)]
    fn tiles<const D: u32>(&self) -> u32 {
        (self.end_page - self.first_page).div_ceil(pages(D))
    }

    /// First key of tile `tile`.
    #[inline(always)]
    fn start<const D: u32>(&self, tile: u32) -> u32 {
        (self.first_page + tile * pages(D)) * PAGE_KEYS
    }

    /// Whether the last page that the item sees has slots past kv_len.
    #[inline(always)]
    fn is_ragged(&self) -> bool {
        self.kv_len < self.end_page * PAGE_KEYS
    }
}

#[inline(always)]
unsafe fn prefill<
    E: WarpgroupMma<SCORES> + WarpgroupMmaRegisters<COLUMNS>,
    const D: u32,
    const COLUMNS: usize,
    const SCORES: usize,
>(
    q: *const u16,
    k: *const u16,
    v: *const u16,
    block_tables: *const u32,
    kv_lens: *const u32,
    query_starts: *const u32,
    out: *mut u16,
    q_stride: u32,
    out_stride: u32,
    table_stride: u32,
    row_blocks: u32,
    sequences: u32,
    kv_heads: u32,
    group: u32,
    scale_log2: f32,
    window: u32,
    cap_inner: f32,
) {
    // Accumulators of a thread for 64 rows of output and of scores.
    const { assert!(2 * COLUMNS as u32 == D && 2 * SCORES as u32 == tile_keys(D)) };
    if thread_idx_x() == 0 {
        let (keys, values) = Tiles::<D>::both(shared::base());
        keys.ring.init(CONSUMERS * WARPS);
        values.ring.init(CONSUMERS * WARPS);
    }
    sync_threads();
    let items = Items { kv_lens, query_starts, row_blocks, sequences, kv_heads, group, window };
    // By shuffle, so that the compiler knows it for one value per warp and computes descriptors once.
    let warpgroup = shuffle_u32(thread_idx_x() / wgmma::THREADS, 0);
    if warpgroup == 0 {
        wgmma::registers_decrease::<PRODUCER_REGISTERS>();
        if thread_idx_x() == 0 {
            grid_dependency_wait();
            let (keys, values) = Tiles::both(shared::base());
            produce::<D>(items, k, v, block_tables, table_stride, keys, values);
            grid_dependency_launch();
        }
        return;
    }
    wgmma::registers_increase::<CONSUMER_REGISTERS>();
    grid_dependency_wait();
    // Once more: kept from before the other warpgroup's branch they would be spilled.
    let share = shuffle_u32(thread_idx_x() / wgmma::THREADS, 0) - 1;
    let (keys, values) = Tiles::both(shared::base_anew());
    let consumer = Consumer::<D, COLUMNS, SCORES> { share, scale_log2, window, cap_inner, keys, values };
    consumer.run::<E>(items, q, q_stride, out, out_stride);
}

/// Stages of K or V, from one side.
#[derive(Clone)]
struct Tiles<const D: u32> {
    ring: Ring<STAGES>,
    buffers: u32,
}

impl<const D: u32> Tiles<D> {
    /// K's and V's in the shared memory at `base`.
    #[inline(always)]
    fn both(base: u32) -> (Self, Self) {
        let stages = base + query_stages(D) * query_bytes(D);
        let barriers = stages + 2 * STAGES * stage_bytes(D);
        let keys = Tiles { ring: Ring::new(barriers), buffers: stages };
        let ring = Ring::new(barriers + Ring::<STAGES>::BYTES);
        (keys, Tiles { ring, buffers: stages + STAGES * stage_bytes(D) })
    }

    /// Address of the stage.
    #[inline(always)]
    fn buffer(&self) -> u32 {
        self.buffers + self.ring.stage() * stage_bytes(D)
    }

    /// The producer copies shares (of a page for a KV head; one or two) of the pool into the next stage.
    #[inline(always)]
    unsafe fn fill(&mut self, pool: *const u16, shares: [u32; 2]) {
        self.ring.wait_empty();
        mbarrier::arrive_expect_tx(self.ring.full(), stage_bytes(D));
        for page in 0..pages(D) {
            let share = pool.add(shares[page as usize] as usize * (tiles(D) * TILE / 2) as usize);
            for i in 0..tiles(D) {
                let to = self.buffer() + i * column(D) + page * TILE;
                tma::load(to, share.add((i * TILE / 2) as usize).cast(), TILE, self.ring.full());
            }
        }
        self.ring.advance();
    }

    /// A consumer warp has read the stage.
    #[inline(always)]
    unsafe fn release(&mut self) {
        if lane_id() == 0 {
            mbarrier::arrive(self.ring.empty());
        }
        self.ring.advance();
    }
}

/// The producer, one thread. K goes one tile ahead of V, as the consumers read them.
#[inline(always)]
unsafe fn produce<const D: u32>(
    items: Items,
    k: *const u16,
    v: *const u16,
    block_tables: *const u32,
    table_stride: u32,
    mut keys: Tiles<D>,
    mut values: Tiles<D>,
) {
    let mut turn = 0;
    while let Some((_, item)) = items.next(&mut turn, |length| length) {
        let table = block_tables.add(item.sequence as usize * table_stride as usize);
        // Shares of tile `tile`. Entries past the end of what the block sees are not read: the last page may come
        // twice, its copy masked.
        let look_up = |tile: u32| {
            let first = item.first_page + tile * pages(D);
            let second = if first + 1 < item.end_page { first + 1 } else { first };
            let share = |index: u32| load_u32(table.add(index as usize)) * items.kv_heads + item.rows.kv_head;
            if pages(D) == 2 { [share(first), share(second)] } else { [share(first); 2] }
        };
        let mut tile = item.tiles::<D>() - 1;
        let mut last = look_up(tile);
        keys.fill(k, last);
        while tile > 0 {
            tile -= 1;
            let next = look_up(tile);
            keys.fill(k, next);
            values.fill(v, last);
            last = next;
        }
        values.fill(v, last);
    }
}

/// A consumer warpgroup.
struct Consumer<const D: u32, const COLUMNS: usize, const SCORES: usize> {
    /// Which of the two.
    share: u32,
    scale_log2: f32,
    window: u32,
    cap_inner: f32,
    keys: Tiles<D>,
    values: Tiles<D>,
}

impl<const D: u32, const COLUMNS: usize, const SCORES: usize> Consumer<D, COLUMNS, SCORES> {
    #[inline(always)]
    unsafe fn run<E: WarpgroupMma<SCORES> + WarpgroupMmaRegisters<COLUMNS>>(
        mut self,
        items: Items,
        q: *const u16,
        q_stride: u32,
        out: *mut u16,
        out_stride: u32,
    ) {
        let warp = thread_idx_x() % wgmma::THREADS / LANES;
        let share = self.share;
        let first_row = |item: &Item| item.rows.first + share * SHARE + warp * 16;
        // The warp's 16 rows lie in the consumer's 64.
        let own = warp * 16 * 128;
        if self.share == 1 {
            // The first turn is consumer 0's.
            barrier_arrive(TURN, CONSUMERS * wgmma::THREADS);
        }
        let mut queries = shared::base_anew() + self.share * (tiles(D) * TILE);
        let mut other = queries + (query_stages(D) - 1) * query_bytes(D);
        // By shuffle, so that the compiler knows the loops' bounds for one value per warp.
        let uniform = |length| shuffle_u32(length, 0);
        let mut turn = 0;
        // Starts copying the next item's queries to `to`.
        let mut fetch = |to: u32| {
            let (index, item) = items.next(&mut turn, uniform)?;
            item.rows.load::<D>(q, q_stride, first_row(&item), to + own);
            async_copy::commit();
            Some(index)
        };
        let mut current = fetch(queries);
        // Looked up again, from L1: the registers are needed.
        while let Some(index) = current
            && let Some(item) = items.get(index, uniform)
        {
            current = None;
            async_copy::wait::<0>();
            tma::fence_shared();
            barrier_sync(QUERIES + self.share, wgmma::THREADS);
            let mut output = [0.0; COLUMNS];
            let sums = self.attend::<E>(&item, queries, first_row(&item), &mut output, || {
                // What was there the warp itself has read.
                if query_stages(D) == 2 {
                    current = fetch(other);
                }
            });
            // The other warps' products may still read this warp's queries until here.
            barrier_sync(QUERIES + self.share, wgmma::THREADS);
            item.rows.store::<E, D>(out, out_stride, first_row(&item), queries + own, output.as_chunks().0, sums);
            sync_warp();
            if query_stages(D) == 1 {
                current = fetch(queries);
            }
            (queries, other) = (other, queries);
        }
    }

    /// The warpgroup's 64 rows over all tiles; returns the sums by which to divide `output`. Does
    /// `meanwhile` under the first product.
    #[inline(always)]
    unsafe fn attend<E: WarpgroupMma<SCORES> + WarpgroupMmaRegisters<COLUMNS>>(
        &mut self,
        item: &Item,
        queries: u32,
        first_row: u32,
        output: &mut [f32; COLUMNS],
        meanwhile: impl FnOnce(),
    ) -> [f32; 2] {
        let both = CONSUMERS * wgmma::THREADS;
        let row = first_row + lane_id() / 4;
        let own = [item.position(row), item.position(row + 8)];
        let share = item.rows.first + self.share * SHARE;
        let (first_position, last_position) = (item.position(share), item.position(share + SHARE - 1));

        let mut running = Running::new();
        let mut scores = [0.0; SCORES];
        let mut tile = item.tiles::<D>() - 1;
        self.keys.ring.wait_full();
        sync_warp();
        wgmma::fence();
        self.multiply_keys::<E>(&mut scores, queries);
        wgmma::commit();
        meanwhile();
        if item.is_ragged() {
            self.values.ring.wait_full();
            self.zero_values(item.kv_len - item.start::<D>(tile));
            tma::fence_shared();
            barrier_sync(BOTH, both);
        }
        wgmma::wait::<0>();
        wgmma::pin(&mut scores);
        self.keys.release();
        soft_cap(scores.as_chunks_mut().0, self.cap_inner);
        mask(&mut scores, item.start::<D>(tile), own, self.window);
        running.probabilities(scores.as_chunks_mut().0, self.scale_log2);
        let mut p = pack::<E>(&scores);
        self.values.ring.wait_full();

        while tile > 0 {
            tile -= 1;
            self.keys.ring.wait_full();
            barrier_sync(TURN + self.share, both);
            sync_warp();
            wgmma::fence();
            self.multiply_keys::<E>(&mut scores, queries);
            wgmma::commit();
            self.multiply_values::<E>(output, &p);
            wgmma::commit();
            barrier_arrive(TURN + (self.share ^ 1), both);
            wgmma::wait::<1>();
            wgmma::pin(&mut scores);
            self.keys.release();
            soft_cap(scores.as_chunks_mut().0, self.cap_inner);
            let start = item.start::<D>(tile);
            if start + tile_keys(D) - 1 > first_position || start < first_key(last_position, self.window) {
                mask(&mut scores, start, own, self.window);
            }
            let factors = running.probabilities(scores.as_chunks_mut().0, self.scale_log2);
            wgmma::pin(&mut scores);
            // Ahead of its turn: a wait with a loop keeps ptxas from moving the next one above the exponentials.
            let mut next = self.values.ring.clone();
            next.advance();
            next.wait_full();
            wgmma::wait::<0>();
            wgmma::pin(output);
            self.values.release();
            rescale(output.as_chunks_mut().0, factors);
            p = pack::<E>(&scores);
        }
        sync_warp();
        wgmma::fence();
        self.multiply_values::<E>(output, &p);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::pin(output);
        self.values.release();
        running.total()
    }

    /// scores = Q · Kᵀ: 64 rows, a tile of keys.
    #[inline(always)]
    unsafe fn multiply_keys<E: WarpgroupMma<SCORES>>(&self, scores: &mut [f32; SCORES], queries: u32) {
        // At head_dim 256 ptxas would keep 16 descriptors of Q from tile to tile, and spill.
        let queries = if D > 128 { shuffle_u32(queries, 0) } else { queries };
        for tile in 0..tiles(D) {
            let a = wgmma::descriptor(queries + tile * TILE);
            let b = wgmma::descriptor(self.keys.buffer() + tile * column(D));
            // Steps of 16 dims; the second tile of 96 has two.
            let steps = (D / 16 - tile * 4).min(4) as u64;
            for i in 0..steps {
                E::mma_async(scores, a + i * wgmma::K_STEP, b + i * wgmma::K_STEP, tile > 0 || i > 0);
            }
        }
    }

    /// output += P · V: a tile of keys, D dims.
    #[inline(always)]
    unsafe fn multiply_values<E: WarpgroupMmaRegisters<COLUMNS>>(
        &self,
        output: &mut [f32; COLUMNS],
        p: &Probabilities,
    ) {
        let b = wgmma::descriptor_transposed(self.values.buffer(), column(D));
        for i in 0..SCORES / 8 {
            E::mma_registers(output, p[i], b + i as u64 * wgmma::ROWS_STEP);
        }
    }

    /// Zeroes the stage's rows of V from key `valid` on, together with the other consumer.
    #[inline(always)]
    unsafe fn zero_values(&self, valid: u32) {
        // Chunks of 16 bytes, 8 a row; the swizzle stays within a row.
        let mut chunk = valid * 8 + thread_idx_x() - wgmma::THREADS;
        while chunk < tile_keys(D) * 8 {
            for tile in 0..tiles(D) {
                shared::store_v4(self.values.buffer() + tile * column(D) + chunk * 16, [0; 4]);
            }
            chunk += CONSUMERS * wgmma::THREADS;
        }
    }
}

/// P's A operands, one per 16 keys; of 64 keys the first four.
type Probabilities = [[u32; 4]; 8];

#[inline(always)]
fn pack<E: Elem>(scores: &[f32]) -> Probabilities {
    let groups: &[[f32; 4]] = scores.as_chunks().0;
    let mut p = [[0; 4]; 8];
    for i in 0..groups.len() / 2 {
        p[i] = pack_probabilities::<E>(groups[2 * i], groups[2 * i + 1]);
    }
    p
}

/// Masks what the lane's two rows, at `positions`, do not see of the keys from `start` on.
#[inline(always)]
fn mask(scores: &mut [f32], start: u32, positions: [u32; 2], window: u32) {
    let column = (start + lane_id() % 4 * 2) as i32;
    for half in 0..2 {
        let first = first_key(positions[half], window) as i32 - column;
        let last = positions[half] as i32 - column;
        for n in 0..scores.len() / 4 {
            for i in 0..2 {
                let key = (8 * n + i) as i32;
                if key < first || key > last {
                    scores[4 * n + 2 * half + i] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::dealt;

    #[test]
    fn every_item_is_dealt_once() {
        for (blocks, count) in [(1, 5), (4, 4), (4, 9), (132, 512), (7, 6)] {
            let mut seen = [0; 1024];
            for block in 0..blocks {
                let mut turn = 0;
                while turn * blocks < count {
                    seen[dealt(turn, block, blocks) as usize] += 1;
                    turn += 1;
                }
            }
            assert!(seen[..count as usize].iter().all(|&times| times == 1), "{count} to {blocks}");
        }
    }
}
