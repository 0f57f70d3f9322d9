//! Attention of one query per sequence over the paged KV cache, with sm_80 instructions.
//!
//! ```text
//! out[s, h] = softmax(scale · Q[s, h]·Kᵀ, over keys max(0, kv_len - window) .. kv_len) · V
//! ```
//! Grid: x = (KV head, block of 16 heads of its group), y = split, z = sequence. The heads of a group are the
//! rows of one m16 tile (fewer than 16 leave rows idle: the tensor cores have nothing else to do), so every
//! key is read once per group. Each split takes an equal part of the pages that the sequence's query sees,
//! each of the 4 warps a quarter (16 tokens) of every page, through its own `cp.async` ring: no block
//! barriers before the end, where the warps' results merge in shared memory. With one split that is the
//! output; else the block leaves its unnormalised sum over V in f32, the row's maximum (in units of log2) and
//! the sum of exponentials in the workspace, for `decode_merge`.
//!
//! Bound by memory: 4 · head_dim bytes per (token, KV head). The ring keeps up to 64 KiB (head_dim 128) or
//! 80 KiB (64) of a block in flight.
use super::fragment::{Lanes, MAX_DIM, Output, Queries, Running, pack_probabilities, rescale};
use crate::prim::{
    async_copy,
    math::{exp2, rcp},
    memory::store_v4,
    memory_scalar::{load_u32, store_f32},
    shared,
    thread::{
        block_idx_x, block_idx_y, block_idx_z, grid_dependency_launch, grid_dependency_wait, grid_dim_y, sync_threads,
        thread_idx_x,
    },
    warp::{lane_id, sync_warp, warp_id},
};
use crate::tile::{Bf16, Elem, F16, kv::PAGE};

/// Threads per block.
pub const THREADS: u32 = 128;
/// Heads of one group per block.
pub const ROWS: u32 = 16;
/// Keys per page.
const KEYS: u32 = PAGE as u32;
/// Keys per warp and step.
const QUARTER: u32 = 16;
/// Warps per block.
const WARPS: u32 = THREADS / 32;
/// Bytes of a quarter's 16 rows of 64 elements.
const TILE: u32 = QUARTER * 128;
/// Bytes of all warps' rings: the most that two blocks fit of on an H200 and one on an sm_86.
const RING: u32 = 96 * 1024;
const _: () = assert!(WARPS * QUARTER == KEYS);

/// Bytes of shared memory. (The merge at the end reuses the ring.)
pub const fn shared_bytes(_head_dim: u32) -> u32 {
    RING
}

/// Stages of a warp's ring: 3 at head_dim 128, 6 at 64.
const fn stages(head_dim: u32) -> u32 {
    RING / WARPS / stage_bytes(head_dim)
}

/// Bytes of a stage: a quarter's K, then its V.
const fn stage_bytes(head_dim: u32) -> u32 {
    2 * TILE * (head_dim / 64)
}

entry! {
    /// Arguments of the decode kernels: `q`, `out`: [sequences, heads · head_dim], rows `*_stride` elements
    /// apart; `k`, `v`: page pools; `block_tables`: a row of pages per sequence, `table_stride` apart; `kv_lens`: one
    /// per sequence; `partial`: f32 [sequences, heads, splits, head_dim] and `state`: f32 [sequences, heads, splits,
    /// 2] (maximum and sum), both unused with one split; `group`: heads per KV head; `row_blocks`:
    /// ⌈group / 16⌉; `scale_log2`: scale · log2(e); `window`: keys that a query sees, `u32::MAX` for all.
    pub struct Decode {
        q: *const u16, k: *const u16, v: *const u16, block_tables: *const u32, kv_lens: *const u32,
        partial: *mut f32, state: *mut f32, out: *mut u16,
        q_stride: u32, out_stride: u32, table_stride: u32, kv_heads: u32, group: u32, row_blocks: u32, scale_log2: f32,
        window: u32,
    }
    fn decode_attention_bf16_64(threads: THREADS, min_blocks: 2) = decode::<Bf16, 64>;
    fn decode_attention_bf16_128(threads: THREADS, min_blocks: 2) = decode::<Bf16, 128>;
    fn decode_attention_f16_64(threads: THREADS, min_blocks: 2) = decode::<F16, 64>;
    fn decode_attention_f16_128(threads: THREADS, min_blocks: 2) = decode::<F16, 128>;
}

#[inline(always)]
unsafe fn decode<E: Elem, const D: u32>(
    q: *const u16,
    k: *const u16,
    v: *const u16,
    block_tables: *const u32,
    kv_lens: *const u32,
    partial: *mut f32,
    state: *mut f32,
    out: *mut u16,
    q_stride: u32,
    out_stride: u32,
    table_stride: u32,
    kv_heads: u32,
    group: u32,
    row_blocks: u32,
    scale_log2: f32,
    window: u32,
) {
    let sequence = block_idx_z() as usize;
    let (kv_head, row_block) = (block_idx_x() / row_blocks, block_idx_x() % row_blocks);
    let first_head = kv_head * group + row_block * ROWS;
    let left = group - row_block * ROWS;
    let rows = if left < ROWS { left } else { ROWS };

    grid_dependency_wait();
    let kv_len = load_u32(kv_lens.add(sequence));
    let first_key = kv_len.saturating_sub(window);
    // This split's pages; none when the sequence has fewer pages than there are splits.
    let (first_page, end_page) = (first_key / KEYS, kv_len.div_ceil(KEYS));
    let per_split = (end_page - first_page).div_ceil(grid_dim_y());
    let begin = first_page + block_idx_y() * per_split;
    let end = if begin + per_split < end_page { begin + per_split } else { end_page };
    let quarters = Quarters::<D> {
        k,
        v,
        table: block_tables.add(sequence * table_stride as usize),
        kv_head,
        kv_heads,
        first_key,
        kv_len,
        end,
        ring: shared::base() + warp_id() * (RING / WARPS),
    };
    let mut ahead = begin;
    let mut page = quarters.look_up(ahead);
    for stage in 0..stages(D) - 1 {
        quarters.copy(ahead, page, stage);
        async_copy::commit();
        ahead += 1;
        page = quarters.look_up(ahead);
    }
    let queries = load_queries::<D>(q.add(sequence * q_stride as usize + (first_head * D) as usize), rows);

    let lanes = Lanes::new();
    let mut output: Output = [[0.0; 4]; MAX_DIM / 8];
    let mut running = Running::new();
    let mut stage = 0;
    let mut index = begin;
    while index < end {
        // All lanes' copies of this quarter are in, and no lane reads the stage before it: refill that.
        if D == 128 { async_copy::wait::<1>() } else { async_copy::wait::<4>() }
        sync_warp();
        let refill = if stage == 0 { stages(D) - 1 } else { stage - 1 };
        quarters.copy(ahead, page, refill);
        async_copy::commit();
        ahead += 1;
        page = quarters.look_up(ahead);

        let k = quarters.ring + stage * stage_bytes(D);
        let mut scores = scores::<E, D>(lanes, &queries, k);
        let values = load_values::<D>(lanes, k + stage_bytes(D) / 2);
        mask(&mut scores, index * KEYS + warp_id() * QUARTER, first_key, kv_len);
        let factors = running.probabilities(&mut scores, scale_log2);
        rescale(&mut output[..D as usize / 8], factors);
        accumulate::<E, D>(&scores, &values, &mut output);
        stage = if stage + 1 == stages(D) { 0 } else { stage + 1 };
        index += 1;
    }
    grid_dependency_launch();
    async_copy::wait::<0>();
    sync_threads();
    share::<D>(&output, &running, scale_log2);
    sync_threads();
    if grid_dim_y() == 1 {
        let to = out.add(sequence * out_stride as usize + (first_head * D) as usize);
        store_merged::<E, D>(to, rows);
    } else {
        let heads = (kv_heads * group) as usize;
        let at = (sequence * heads + first_head as usize) * grid_dim_y() as usize + block_idx_y() as usize;
        store_partial::<D>(partial.add(at * D as usize), state.add(at * 2), rows);
    }
}
const _: () = assert!(stages(128) - 2 == 1 && stages(64) - 2 == 4, "what the loop waits for");

/// A operands of up to 16 rows of D elements, one after the other in memory; the others are zero.
#[inline(always)]
unsafe fn load_queries<const D: u32>(q: *const u16, rows: u32) -> Queries {
    let (g, t) = (lane_id() / 4, lane_id() % 4);
    let mut queries: Queries = [[0; 4]; MAX_DIM / 16];
    for c in 0..D / 16 {
        // Registers 0..4: rows g, g + 8, g, g + 8; columns 2t and 2t + 8.
        for i in 0..4 {
            let (row, column) = (g + i % 2 * 8, c * 16 + i / 2 * 8 + t * 2);
            if row < rows {
                queries[c as usize][i as usize] = load_u32(q.add((row * D + column) as usize).cast());
            }
        }
    }
    queries
}

/// A warp's quarters of the pages of one (sequence, KV head), and their ring in shared memory.
struct Quarters<const D: u32> {
    k: *const u16,
    v: *const u16,
    table: *const u32,
    kv_head: u32,
    kv_heads: u32,
    first_key: u32,
    kv_len: u32,
    end: u32,
    ring: u32,
}

impl<const D: u32> Quarters<D> {
    /// The page of the pool that is number `index` of the sequence; anything past the split's end.
    #[inline(always)]
    unsafe fn look_up(&self, index: u32) -> u32 {
        if index < self.end { load_u32(self.table.add(index as usize)) } else { 0 }
    }

    /// Starts copying the warp's quarter of a page, keys that the query sees; the others become zero: their
    /// values meet probabilities of 0, and 0 · NaN is NaN. Does nothing past the split's end.
    #[inline(always)]
    unsafe fn copy(&self, index: u32, page: u32, stage: u32) {
        if index >= self.end {
            return;
        }
        let to = self.ring + stage * stage_bytes(D);
        let share = (page as usize * self.kv_heads as usize + self.kv_head as usize) * (D * KEYS) as usize;
        for i in 0..D / 16 {
            // Per 64 dims: 16 rows of 8 chunks, contiguous.
            let (tile, chunk) = (i / 4, lane_id() + i % 4 * 32);
            let slot = warp_id() * QUARTER + chunk / 8;
            let key = index * KEYS + slot;
            let bytes = if key >= self.first_key && key < self.kv_len { 16 } else { 0 };
            let at = share + (tile * KEYS * 64 + warp_id() * QUARTER * 64 + chunk * 8) as usize;
            let to = to + tile * TILE + chunk * 16;
            async_copy::copy_16(to, self.k.add(at).cast(), bytes);
            async_copy::copy_16(to + stage_bytes(D) / 2, self.v.add(at).cast(), bytes);
        }
    }
}

/// Scores of the 16 rows against the quarter's 16 keys; accumulator n holds keys 8n..8n+8. All loads come
/// first, and even and odd steps have their own sums: a warp has nobody to hide its latencies behind.
#[inline(always)]
unsafe fn scores<E: Elem, const D: u32>(lanes: Lanes, queries: &Queries, k: u32) -> [[f32; 4]; 2] {
    let mut keys = [[0; 4]; MAX_DIM / 16];
    for c in 0..D / 16 {
        keys[c as usize] = lanes.keys(k + c / 4 * TILE, c % 4);
    }
    let mut sums = [[[0.0; 4]; 2]; 2];
    for c in 0..D as usize / 16 {
        E::mma(&mut sums[c % 2][0], queries[c], [keys[c][0], keys[c][1]]);
        E::mma(&mut sums[c % 2][1], queries[c], [keys[c][2], keys[c][3]]);
    }
    let mut scores = sums[0];
    for n in 0..2 {
        for i in 0..4 {
            scores[n][i] += sums[1][n][i];
        }
    }
    scores
}

/// Masks what lies outside first..end of the keys from `start` on.
#[inline(always)]
fn mask(scores: &mut [[f32; 4]; 2], start: u32, first: u32, end: u32) {
    let column = start + lane_id() % 4 * 2;
    for n in 0..2 {
        for i in 0..2 {
            let key = column + n as u32 * 8 + i as u32;
            if key < first || key >= end {
                scores[n][i] = f32::NEG_INFINITY;
                scores[n][2 + i] = f32::NEG_INFINITY;
            }
        }
    }
}

/// B operands of the quarter's values.
#[inline(always)]
unsafe fn load_values<const D: u32>(lanes: Lanes, v: u32) -> [[u32; 4]; MAX_DIM / 16] {
    let mut values = [[0; 4]; MAX_DIM / 16];
    for c in 0..D / 16 {
        values[c as usize] = lanes.values(v + c / 4 * TILE, c % 4);
    }
    values
}

/// output += P · V over the quarter's 16 keys; accumulator n holds dims 8n..8n+8.
#[inline(always)]
fn accumulate<E: Elem, const D: u32>(p: &[[f32; 4]; 2], values: &[[u32; 4]; MAX_DIM / 16], output: &mut Output) {
    let a = pack_probabilities::<E>(p[0], p[1]);
    for c in 0..D as usize / 16 {
        let b = values[c];
        E::mma(&mut output[2 * c], a, [b[0], b[1]]);
        E::mma(&mut output[2 * c + 1], a, [b[2], b[3]]);
    }
}

/// Bytes from one row of a warp's shared result to the next: 32 more than D floats, so that the four rows of
/// a half-warp's stores fall into different banks.
const fn row_bytes(head_dim: u32) -> u32 {
    head_dim * 4 + 32
}

/// Address of a warp's result: 16 rows of D floats.
#[inline(always)]
fn result(head_dim: u32, warp: u32, row: u32) -> u32 {
    shared::base() + (warp * ROWS + row) * row_bytes(head_dim)
}

/// Address of a warp's maximum and sum of a row.
#[inline(always)]
fn result_state(head_dim: u32, warp: u32, row: u32) -> u32 {
    shared::base() + WARPS * ROWS * row_bytes(head_dim) + (warp * ROWS + row) * 8
}

/// Writes the warp's result to shared memory.
#[inline(always)]
unsafe fn share<const D: u32>(output: &Output, running: &Running, scale_log2: f32) {
    let (g, t) = (lane_id() / 4, lane_id() % 4);
    let sums = running.total();
    for half in 0..2 {
        let row = g + 8 * half as u32;
        let to = result(D, warp_id(), row) + t * 8;
        for n in 0..D / 8 {
            let o = &output[n as usize];
            let (low, high) = (o[2 * half].to_bits() as u64, o[2 * half + 1].to_bits() as u64);
            shared::store_u64(to + n * 32, low | high << 32);
        }
        if t == 0 {
            let to = result_state(D, warp_id(), row);
            shared::store_f32(to, running.max[half] * scale_log2);
            shared::store_f32(to + 4, sums[half]);
        }
    }
}

/// Eight columns of a row, merged over the warps in their order.
struct Merged {
    values: [f32; 8],
    max: f32,
    sum: f32,
}

#[inline(always)]
unsafe fn merge<const D: u32>(row: u32, chunk: u32) -> Merged {
    let mut max = f32::NEG_INFINITY;
    for warp in 0..WARPS {
        max = max.max(shared::load_f32(result_state(D, warp, row)));
    }
    // Nothing but masked keys: -inf - -inf would be NaN.
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut merged = Merged { values: [0.0; 8], max, sum: 0.0 };
    for warp in 0..WARPS {
        let state = result_state(D, warp, row);
        let weight = exp2(shared::load_f32(state) - base);
        merged.sum += weight * shared::load_f32(state + 4);
        for half in 0..2 {
            let values = shared::load_v4(result(D, warp, row) + chunk * 32 + half as u32 * 16);
            for i in 0..4 {
                merged.values[4 * half + i] += weight * f32::from_bits(values[i]);
            }
        }
    }
    merged
}

/// Normalises and stores the block's rows: `out` is [rows, D] without gaps.
#[inline(always)]
unsafe fn store_merged<E: Elem, const D: u32>(out: *mut u16, rows: u32) {
    for i in 0..D / 64 {
        let index = thread_idx_x() + i * THREADS;
        let (row, chunk) = (index / (D / 8), index % (D / 8));
        if row < rows {
            let merged = merge::<D>(row, chunk);
            // An empty cache: zeros.
            let inverse = if merged.sum == 0.0 { 0.0 } else { rcp(merged.sum) };
            store_v4(out.add((row * D + chunk * 8) as usize).cast(), E::pack8(merged.values.map(|x| x * inverse)));
        }
    }
}

/// Stores the block's rows for `decode_merge`: rows are one head apart, which is grid_dim_y splits.
#[inline(always)]
unsafe fn store_partial<const D: u32>(partial: *mut f32, state: *mut f32, rows: u32) {
    for i in 0..D / 64 {
        let index = thread_idx_x() + i * THREADS;
        let (row, chunk) = (index / (D / 8), index % (D / 8));
        if row < rows {
            let merged = merge::<D>(row, chunk);
            let at = (row * grid_dim_y()) as usize;
            let bits = merged.values.map(f32::to_bits);
            let to: *mut u32 = partial.add(at * D as usize + (chunk * 8) as usize).cast();
            store_v4(to, [bits[0], bits[1], bits[2], bits[3]]);
            store_v4(to.add(4), [bits[4], bits[5], bits[6], bits[7]]);
            if chunk == 0 {
                store_f32(state.add(at * 2), merged.max);
                store_f32(state.add(at * 2 + 1), merged.sum);
            }
        }
    }
}
