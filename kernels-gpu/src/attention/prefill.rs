//! Attention of many queries per sequence over the paged KV cache, with sm_80 instructions.
//!
//! ```text
//! out[q, h] = softmax(scale · Q[q, h]·Kᵀ, over keys max(0, p - window + 1) ..= p) · V      p = kv_len - queries + q
//!             with a soft-cap: softmax(cap · tanh(scale · Q[q, h]·Kᵀ / cap), …)
//! ```
//! Grid: x = (row block, KV head), y = sequence. The query heads of a group are packed: row r of a (sequence,
//! KV head) is query r / group of head kv_head · group + r % group, so that a block of 64 rows shares its
//! keys whatever the group. Later rows see more keys: x counts backwards, so that the longest blocks start
//! first.
//!
//! A block is 4 warps of 16 rows. It walks the pages that its rows see, one page (64 keys) a step, through a
//! ring of two stages of K and V filled by `cp.async`: a head's share of a page is contiguous and swizzled
//! already, so the copies are linear. Q lives in registers (after a visit to shared memory, which the output
//! takes over in the end), as do S (32 f32 a thread) and O (64 f32 at head_dim 128). At head_dim 256 O alone takes
//! 128 registers: Q stays in shared memory and a step is half a page.
//!
//! Slots past kv_len hold garbage: their scores are masked and their K and V zero-filled (0 · NaN is NaN).
//! Bound by the tensor cores and exp2: 4 · head_dim flops per (row, key).
use super::fragment::{Lanes, MAX_DIM, Output, Queries, Running, pack_probabilities, rescale, soft_cap};
use super::rows::{Rows, TILE, first_key, tiles};
use crate::prim::{
    async_copy,
    memory_scalar::load_u32,
    shared,
    thread::{
        block_idx_x, block_idx_y, grid_dependency_launch, grid_dependency_wait, grid_dim_x, sync_threads, thread_idx_x,
    },
    warp::{lane_id, warp_id},
};
use crate::tile::{Bf16, Elem, F16, kv::PAGE};

/// Threads per block.
pub const THREADS: u32 = 128;
/// Query rows (query, head of the group) per block.
pub const ROWS: u32 = 64;
const PAGE_KEYS: u32 = PAGE as u32;
/// Keys per step: a page, or half of one.
const fn step_keys(head_dim: u32) -> u32 {
    if head_dim > 128 { PAGE_KEYS / 2 } else { PAGE_KEYS }
}
/// Stages of the K and V ring. Two take 80 KiB with Q at head_dim 128 and 96 KiB at 256: two blocks on an A100 or
/// H200, one on an sm_86.
const STAGES: u32 = 2;
const _: () = assert!(STAGES == 2, "the loop toggles between two");

/// Bytes of shared memory: Q, then per stage K and V.
pub const fn shared_bytes(head_dim: u32) -> u32 {
    tiles(head_dim) * TILE + STAGES * stage_bytes(head_dim)
}

/// Bytes of a stage's K and V.
const fn stage_bytes(head_dim: u32) -> u32 {
    2 * tiles(head_dim) * step_keys(head_dim) * 128
}

entry! {
    /// Arguments of the prefill kernels: `q`, `out`: [tokens, heads · head_dim], rows `*_stride` elements
    /// apart; `k`, `v`: page pools; `block_tables`: a row of pages per sequence, `table_stride` apart; `kv_lens`: one
    /// per sequence; `query_starts`: [sequences + 1]; `group`: heads per KV head; `scale_log2`: scale · log2(e);
    /// `window`: keys that a query sees, `u32::MAX` for all; `cap_inner`: scale / cap, and then `scale_log2` is cap · log2(e); 0
    /// without a soft-cap.
    pub struct Prefill {
        q: *const u16, k: *const u16, v: *const u16, block_tables: *const u32, kv_lens: *const u32,
        query_starts: *const u32, out: *mut u16,
        q_stride: u32, out_stride: u32, table_stride: u32, kv_heads: u32, group: u32, scale_log2: f32, window: u32,
        cap_inner: f32,
    }
    fn prefill_attention_bf16_64(threads: THREADS, min_blocks: 2) = prefill::<Bf16, 64>;
    fn prefill_attention_bf16_96(threads: THREADS, min_blocks: 2) = prefill::<Bf16, 96>;
    fn prefill_attention_bf16_128(threads: THREADS, min_blocks: 2) = prefill::<Bf16, 128>;
    fn prefill_attention_bf16_256(threads: THREADS, min_blocks: 2) = prefill::<Bf16, 256>;
    fn prefill_attention_f16_64(threads: THREADS, min_blocks: 2) = prefill::<F16, 64>;
    fn prefill_attention_f16_96(threads: THREADS, min_blocks: 2) = prefill::<F16, 96>;
    fn prefill_attention_f16_128(threads: THREADS, min_blocks: 2) = prefill::<F16, 128>;
    fn prefill_attention_f16_256(threads: THREADS, min_blocks: 2) = prefill::<F16, 256>;
}

#[inline(always)]
unsafe fn prefill<E: Elem, const D: u32>(
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
    kv_heads: u32,
    group: u32,
    scale_log2: f32,
    window: u32,
    cap_inner: f32,
) {
    let keys = step_keys(D);
    let sequence = block_idx_y() as usize;
    let reversed = grid_dim_x() - 1 - block_idx_x();
    let (row_block, kv_head) = (reversed / kv_heads, reversed % kv_heads);

    grid_dependency_wait();
    let first_query = load_u32(query_starts.add(sequence));
    let queries = load_u32(query_starts.add(sequence + 1)) - first_query;
    let kv_len = load_u32(kv_lens.add(sequence));
    let rows = Rows { first: row_block * ROWS, end: queries * group, group, kv_head, token: first_query };
    if rows.first >= rows.end || kv_len == 0 {
        return;
    }
    let pages = Pages::<D> {
        k,
        v,
        table: block_tables.add(sequence * table_stride as usize),
        kv_head,
        kv_heads,
        kv_len,
        ring: shared::base() + tiles(D) * TILE,
    };
    // Positions of the block's first and last query; kv_len bounds what contradictory lengths could reach.
    let prefix = kv_len.saturating_sub(queries);
    let position = |row: u32| {
        let position = prefix + row / group;
        if position < kv_len { position } else { kv_len - 1 }
    };
    let last_row = if rows.first + ROWS < rows.end { rows.first + ROWS - 1 } else { rows.end - 1 };
    let (first_position, last_position) = (position(rows.first), position(last_row));
    let first_step = first_key(first_position, window) / keys;
    let last_step = last_position / keys;

    // The warp's 16 rows, staged in shared memory before and after.
    let (first_row, staged) = (rows.first + warp_id() * 16, shared::base() + warp_id() * 16 * 128);
    rows.load::<D>(q, q_stride, first_row, staged);
    pages.copy(first_step, pages.look_up(first_step), 0);
    async_copy::commit();
    let mut next = 0;
    if first_step < last_step {
        next = pages.look_up(first_step + 1);
    }
    async_copy::wait::<0>();
    sync_threads();

    let lanes = Lanes::new();
    let mut fragments: Queries = [[0; 4]; MAX_DIM / 16];
    if D <= 128 {
        for c in 0..D / 16 {
            fragments[c as usize] = lanes.queries(staged + c / 4 * TILE, c % 4);
        }
    }
    // This lane's rows are g and g + 8 of the warp's 16; those past the end repeat the last one.
    let row = first_row + lane_id() / 4;
    let own = [row, row + 8].map(|row| position(if row < rows.end { row } else { rows.end - 1 }));

    let mut output: Output = [[0.0; 4]; MAX_DIM / 8];
    let mut running = Running::new();
    let mut stage = 0;
    let mut step = first_step;
    while step <= last_step {
        // Everyone's copies of this step's keys are in, and nobody reads the other stage any more.
        async_copy::wait::<0>();
        sync_threads();
        if step < last_step {
            pages.copy(step + 1, next, stage ^ 1);
            if step + 1 < last_step {
                next = pages.look_up(step + 2);
            }
        } else {
            grid_dependency_launch();
        }
        async_copy::commit();

        let (k, v) = pages.stage(stage);
        let mut scores = scores::<E, D>(lanes, &fragments, staged, k);
        let scores = &mut scores[..keys as usize / 8];
        soft_cap(scores, cap_inner);
        let start = step * keys;
        if start + keys - 1 > first_position || start < first_key(last_position, window) {
            mask(scores, start, own, window);
        }
        let factors = running.probabilities(scores, scale_log2);
        rescale(&mut output[..D as usize / 8], factors);
        accumulate::<E, D>(lanes, scores, v, &mut output);
        stage ^= 1;
        step += 1;
    }
    rows.store::<E, D>(out, out_stride, first_row, staged, &output, running.total());
}

/// The pages of one (sequence, KV head), and their ring in shared memory.
struct Pages<const D: u32> {
    k: *const u16,
    v: *const u16,
    table: *const u32,
    kv_head: u32,
    kv_heads: u32,
    kv_len: u32,
    ring: u32,
}

impl<const D: u32> Pages<D> {
    /// Addresses of a stage's K and V: [tiles(D)][step_keys(D)][64], swizzled.
    #[inline(always)]
    fn stage(&self, stage: u32) -> (u32, u32) {
        let k = self.ring + stage * stage_bytes(D);
        (k, k + stage_bytes(D) / 2)
    }

    /// The page of the pool that holds step `step`'s keys.
    #[inline(always)]
    unsafe fn look_up(&self, step: u32) -> u32 {
        load_u32(self.table.add((step * step_keys(D) / PAGE_KEYS) as usize))
    }

    /// Starts copying the head's share of step number `step` of the sequence, in page `page` of the pool.
    #[inline(always)]
    unsafe fn copy(&self, step: u32, page: u32, stage: u32) {
        let keys = step_keys(D);
        let (k_to, v_to) = self.stage(stage);
        let share =
            (page as usize * self.kv_heads as usize + self.kv_head as usize) * (tiles(D) * 64 * PAGE_KEYS) as usize;
        for i in 0..tiles(D) * keys / 16 {
            let chunk = thread_idx_x() + i * THREADS;
            let (tile, slot) = (chunk / (keys * 8), chunk / 8 % keys);
            let bytes = if step * keys + slot < self.kv_len { 16 } else { 0 };
            // Rows of 64 elements; half a page is whole swizzle periods of 8 rows.
            let row = tile * PAGE_KEYS + step * keys % PAGE_KEYS + slot;
            let at = share + (row * 64 + chunk % 8 * 8) as usize;
            async_copy::copy_16(k_to + chunk * 16, self.k.add(at).cast(), bytes);
            async_copy::copy_16(v_to + chunk * 16, self.v.add(at).cast(), bytes);
        }
    }
}

/// Scores of the warp's 16 rows, in registers or (head_dim 256) at `staged`, against the step's keys; accumulator n
/// holds keys 8n..8n+8.
#[inline(always)]
unsafe fn scores<E: Elem, const D: u32>(lanes: Lanes, queries: &Queries, staged: u32, k: u32) -> [[f32; 4]; 8] {
    let groups = step_keys(D) as usize / 16;
    let mut scores = [[0.0; 4]; 8];
    for c in 0..D / 16 {
        // All loads in flight, then products that do not wait for each other.
        let a = if D <= 128 { queries[c as usize] } else { lanes.queries(staged + c / 4 * TILE, c % 4) };
        let mut keys = [[0; 4]; 4];
        for i in 0..groups {
            keys[i] = lanes.keys(k + c / 4 * step_keys(D) * 128 + i as u32 * 16 * 128, c % 4);
        }
        for i in 0..groups {
            let b = keys[i];
            E::mma(&mut scores[2 * i], a, [b[0], b[1]]);
            E::mma(&mut scores[2 * i + 1], a, [b[2], b[3]]);
        }
    }
    scores
}

/// Masks what the lane's two rows, at `positions`, do not see of the keys from `start` on.
#[inline(always)]
fn mask(scores: &mut [[f32; 4]], start: u32, positions: [u32; 2], window: u32) {
    let column = start + lane_id() % 4 * 2;
    for half in 0..2 {
        let (first, last) = (first_key(positions[half], window), positions[half]);
        for n in 0..scores.len() {
            for i in 0..2 {
                let key = column + n as u32 * 8 + i as u32;
                if key < first || key > last {
                    scores[n][2 * half + i] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// output += P · V over the step's keys; accumulator n holds dims 8n..8n+8.
#[inline(always)]
unsafe fn accumulate<E: Elem, const D: u32>(lanes: Lanes, p: &[[f32; 4]], v: u32, output: &mut Output) {
    for i in 0..p.len() / 2 {
        let a = pack_probabilities::<E>(p[2 * i], p[2 * i + 1]);
        for tile in 0..tiles(D) {
            // Groups of 16 dims; 96 has two in its second tile.
            let groups = (D / 16 - tile * 4).min(4);
            let mut values = [[0; 4]; 4];
            for c in 0..groups {
                values[c as usize] = lanes.values(v + tile * step_keys(D) * 128 + i as u32 * 16 * 128, c);
            }
            for c in 0..groups as usize {
                let (b, n) = (values[c], tile as usize * 8 + 2 * c);
                E::mma(&mut output[n], a, [b[0], b[1]]);
                E::mma(&mut output[n + 1], a, [b[2], b[3]]);
            }
        }
    }
}
