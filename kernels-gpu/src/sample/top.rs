//! Log-probabilities: log-softmax of raw logits for the n largest, and for a given token with its rank.
//!
//! ```text
//! M = max logit     S = Σ exp(logit − M)     logprob(t) = (logit[t] − M) − ln S
//! top   the n largest by (logit descending, token ascending); NaN is not among them
//! rank  1 + how many come before the token in that order
//! ```
//! A row of `params` that asks for none is skipped, and its output left alone.
//!
//! Grid: (⌈vocab / 8192⌉ equal chunks, rows) blocks of 512 threads, 16 logits a thread, kept in registers. The chunks depend
//! on the vocabulary only, and are merged in their order by the block that arrives last: neither the batch nor the
//! scheduling changes a bit. Bytes: 4 · vocab per row, and 16 + 8n per chunk written and read. Bound by memory for many rows, by
//! latency for one.
//!
//! The n largest of a chunk: with w warps, all of a warp's lanes give their largest, and the ⌈n / w⌉-th largest of those
//! bounds the n-th largest from below; so does the least of these bounds over the warps. What reaches it (for random logits
//! about 5n) goes to a list in shared memory, and each element finds its place by counting the larger ones. Elements are (key,
//! ~token) in 64 bits, so no two are equal.
use super::{fixed, params};
use crate::prim::{
    global_atomic, math,
    memory_scalar::{load_f32, load_u32, store_f32, store_u32},
    opaque, shared, shared_atomic,
    thread::{block_idx_x, block_idx_y, grid_dependency_launch, grid_dependency_wait, sync_threads, thread_idx_x},
    warp::{LANES, lane_id, warp_id, warp_max_u32, warp_min_u32, warp_sum, warp_sum_u32},
};
use crate::tile::reduce;

/// Threads per block.
pub const THREADS: u32 = 512;
/// Columns of a block, at most.
pub const CHUNK: u32 = THREADS * VECTORS as u32 * 4;
/// Largest n.
pub const MOST: u32 = 64;
/// Words of a chunk's or a row's results before the n tokens.
pub const HEAD: u32 = 4;
/// Stands for no token: where fewer than n logits are numbers.
pub const NO_TOKEN: u32 = u32::MAX;

const VECTORS: usize = 4;
const WARPS: u32 = THREADS / LANES;
/// Shared memory: the list, a bound for each warp, sums for `reduce`, the list's length, a word for all.
const LIST: u32 = 0;
const BOUNDS: u32 = CHUNK * 8;
const SUMS: u32 = BOUNDS + WARPS * 8;
const LENGTH: u32 = SUMS + reduce::SCRATCH_BYTES;
const WORD: u32 = LENGTH + 4;
/// Bytes of shared memory.
pub const SHARED_BYTES: u32 = WORD + 12;

const _: () = assert!(crate::sample::token::MAX_VOCAB / CHUNK <= LANES, "a lane per chunk merges a row");
const _: () = assert!(MOST * LANES <= CHUNK, "the merged list fits");

entry! {
    /// Arguments: `logits`: [rows, vocab], `params`: [rows, 20] (`params`), `tokens`: [rows] or null; `out`: [rows, 4 + 2 · width]: log
    /// Σ exp, log-probability and rank of the token, n; then `width` tokens, `width` log-probabilities. `partial`: [rows,
    /// chunks, 4 + 2 · width], `arrivals`: [rows], zero, and left so. `chunk`: columns of a chunk, a multiple of 4.
    pub struct TopLogprobs {
        logits: *const f32, params: *const u32, tokens: *const u32, out: *mut u32, partial: *mut u32, arrivals: *mut u32,
        vocab: u32, chunk: u32, chunks: u32, width: u32, logits_stride: u32, params_stride: u32, out_stride: u32,
    }
    fn top_logprobs(threads: THREADS, min_blocks: 2) = top;
}

/// (key, ~token): in the order of the top.
#[inline(always)]
fn element(key: u32, token: u32) -> u64 {
    (key as u64) << 32 | !token as u64
}

/// The log-probability of a logit; −∞ of NaN.
#[inline(always)]
fn logprob(logit: f32, largest: f32, ln_sum: f32) -> f32 {
    if logit.is_nan() || logit == f32::NEG_INFINITY {
        f32::NEG_INFINITY
    } else if logit == largest {
        // Also where both are infinite.
        -ln_sum
    } else {
        (logit - largest) - ln_sum
    }
}

/// exp(logit − largest), 0 of NaN.
#[inline(always)]
fn share(logit: f32, largest: f32) -> f32 {
    if logit == largest {
        1.0
    } else if logit.is_nan() {
        0.0
    } else {
        math::exp(logit - largest)
    }
}

#[inline(always)]
unsafe fn top(
    logits: *const f32,
    params: *const u32,
    tokens: *const u32,
    out: *mut u32,
    partial: *mut u32,
    arrivals: *mut u32,
    vocab: u32,
    chunk: u32,
    chunks: u32,
    width: u32,
    logits_stride: u32,
    params_stride: u32,
    out_stride: u32,
) {
    let (part, row) = (block_idx_x(), block_idx_y() as usize);
    grid_dependency_wait();
    grid_dependency_launch();
    let asked = load_u32(params.add(row * params_stride as usize + params::LOGPROBS));
    if asked == 0 {
        return;
    }
    let n = min(asked - 1, width);
    let logits = logits.add(row * logits_stride as usize);
    let token = if tokens.is_null() { NO_TOKEN } else { load_u32(tokens.add(row)) };
    let token_logit = if token < vocab { load_f32(logits.add(token as usize)) } else { f32::NAN };

    let stride = (HEAD + 2 * width) as usize;
    let partials = partial.add(row * chunks as usize * stride);
    let begin = part * chunk;
    let block = Chunk::load(logits, begin, min(begin + chunk, vocab));
    let goal = if token < vocab { element(fixed::key(token_logit), token) } else { u64::MAX };
    block.reduce(goal, n, partials.add(part as usize * stride));

    sync_threads();
    if thread_idx_x() == 0 {
        let before = global_atomic::add_acq_rel_u32(arrivals.add(row), 1);
        let last = before + 1 == chunks;
        if last {
            store_u32(arrivals.add(row), 0);
        }
        shared::store_u32(shared::base() + WORD, last as u32);
    }
    sync_threads();
    if shared::load_u32(shared::base() + WORD) == 1 {
        let token = if token < vocab { Some(token_logit) } else { None };
        merge(partials, stride, chunks, n, width, token, out.add(row * out_stride as usize));
    }
}

/// A thread's logits of a chunk as keys: four consecutive ones at a time.
struct Chunk {
    keys: [[u32; 4]; VECTORS],
    begin: u32,
    end: u32,
}

impl Chunk {
    #[inline(always)]
    unsafe fn load(logits: *const f32, begin: u32, end: u32) -> Self {
        let mut keys = [[0; 4]; VECTORS];
        for i in 0..VECTORS {
            let column = begin + (i as u32 * THREADS + thread_idx_x()) * 4;
            if column < end {
                // Only the keys stay: LLVM would keep the logits beside them.
                keys[i] = super::token::load4(logits, column, end).map(|x| opaque(fixed::key(x) as i32) as u32);
            }
        }
        Chunk { keys, begin, end }
    }

    /// Calls `f` with the thread's keys and columns. Those of NaN, or beyond the chunk, have key 0.
    #[inline(always)]
    fn each(&self, mut f: impl FnMut(u32, u32)) {
        // Columns anew for each pass: kept, they would take too many registers.
        let first = opaque((self.begin + thread_idx_x() * 4) as i32) as u32;
        for i in 0..VECTORS {
            for j in 0..4 {
                f(self.keys[i][j], first + i as u32 * THREADS * 4 + j as u32);
            }
        }
    }

    /// Writes the chunk's key of the largest logit, Σ exp, elements above `goal`, and the `n` largest (0 for none).
    #[inline(always)]
    unsafe fn reduce(&self, goal: u64, n: u32, to: *mut u32) {
        let base = shared::base();
        let (mut best_key, mut best_column, mut above) = (0, self.begin, 0);
        // Key 0 is never above: no column is below the 0 of a goal with that key.
        let goal_key = (goal >> 32) as u32;
        let goal_column = if goal_key == 0 { 0 } else { !(goal as u32) };
        self.each(|key, column| {
            // Columns rise, so the first of equal ones stays.
            if key > best_key {
                (best_key, best_column) = (key, column);
            }
            above += (key > goal_key || key == goal_key && column < goal_column) as u32;
        });
        let best = element(best_key, best_column);
        if thread_idx_x() == 0 {
            shared::store_u32(base + LENGTH, 0);
        }
        let bound = if n > 0 { self.bound_of_warp(best, n) } else { 0 };
        let warp_key = warp_max_u32((best >> 32) as u32);
        if lane_id() == 0 {
            shared::store_u64(base + BOUNDS + warp_id() * 8, bound);
            shared::store_u32(base + SUMS + warp_id() * 4, warp_key);
        }
        sync_threads();
        let key = warp_max_u32(shared::load_u32(base + SUMS + lane_id() % WARPS * 4));
        if n > 0 {
            // Key 0 is below every bound.
            let bound = warp_min(shared::load_u64(base + BOUNDS + lane_id() % WARPS * 8)).max(1 << 32);
            let bound_key = (bound >> 32) as u32;
            self.each(|key, column| {
                if key >= bound_key && element(key, column) >= bound {
                    append(element(key, column));
                }
            });
        }
        // `block_sum` writes where the keys were read, and is a barrier for the list.
        sync_threads();
        let largest = fixed::logit(key);
        let mut sum = 0.0;
        self.each(|key, _| sum += share(fixed::logit(key), largest));
        let sum = reduce::block_sum(sum, base + SUMS);
        sync_threads();
        let above = warp_sum_u32(above);
        if lane_id() == 0 {
            shared::store_u32(base + SUMS + warp_id() * 4, above);
        }
        sync_threads();
        let above = shared::load_u32(base + SUMS + lane_id() % WARPS * 4);
        let above = warp_sum_u32(if lane_id() < WARPS { above } else { 0 });
        if thread_idx_x() == 0 {
            store_u32(to, key);
            store_f32(to.add(1).cast(), sum);
            store_u32(to.add(2), above);
        }
        select(n, |place, element| store_element(to.add(HEAD as usize + 2 * place as usize), element));
    }

    /// A warp's bound: at least ⌈n / w⌉ of its elements reach it, and w warps give one; 0 where that cannot be,
    /// and for the warps without a full share, which give none, the largest number.
    #[inline(always)]
    fn bound_of_warp(&self, best: u64, n: u32) -> u64 {
        let warps = min(WARPS, (self.end - self.begin) / (LANES * 4));
        if warps == 0 || n > warps * LANES {
            return 0;
        }
        if warp_id() >= warps {
            return u64::MAX;
        }
        let mut best = best;
        let mut bound = 0;
        let mut left = n.div_ceil(warps);
        while left > 0 {
            bound = warp_max(best);
            if best == bound {
                best = 0;
            }
            left -= 1;
        }
        bound
    }
}

/// Merges a row's chunks. `token`: the logit of the given one.
#[inline(always)]
unsafe fn merge(
    partials: *const u32,
    stride: usize,
    chunks: u32,
    n: u32,
    width: u32,
    token: Option<f32>,
    out: *mut u32,
) {
    // Lane c of every warp has chunk c.
    let lane = lane_id();
    let own = partials.add(min(lane, chunks - 1) as usize * stride);
    let (mut key, mut sum, mut above) = (load_u32(own), load_f32(own.add(1).cast()), load_u32(own.add(2)));
    if lane >= chunks {
        (key, sum, above) = (0, 0.0, 0);
    }
    let largest_key = warp_max_u32(key);
    let largest = fixed::logit(largest_key);
    let part = sum * share(fixed::logit(key), largest);
    let ln_sum = math::log2(warp_sum(part)) * core::f32::consts::LN_2;
    let above = warp_sum_u32(above);

    let base = shared::base();
    if thread_idx_x() == 0 {
        shared::store_u32(base + LENGTH, 0);
        store_f32(out.cast(), if largest.is_finite() { largest + ln_sum } else { largest });
        store_f32(out.add(1).cast(), logprob(token.unwrap_or(f32::NAN), largest, ln_sum));
        store_u32(out.add(2), if token.is_some() { above + 1 } else { 0 });
        store_u32(out.add(3), n);
    }
    sync_threads();
    if n == 0 {
        return;
    }
    // Of each chunk ⌈n / chunks⌉ elements reach its bound, so n reach the least of them.
    let nth = load_element(own.add((HEAD + 2 * (n.div_ceil(chunks) - 1)) as usize));
    let bound = warp_min(if lane < chunks { nth } else { u64::MAX });
    let mut index = thread_idx_x();
    while index < chunks * n {
        let from = partials.add((index / n) as usize * stride + (HEAD + 2 * (index % n)) as usize);
        let element = load_element(from);
        if element >= bound && element != 0 {
            append(element);
        }
        index += THREADS;
    }
    sync_threads();
    select(n, |place, element| {
        let to = out.add((HEAD + place) as usize);
        let token = if element == 0 { NO_TOKEN } else { !(element as u32) };
        // No element has NaN's key.
        let logit = if element == 0 { f32::NAN } else { fixed::logit((element >> 32) as u32) };
        store_u32(to, token);
        store_f32(to.add(width as usize).cast(), logprob(logit, largest, ln_sum));
    });
}

/// Adds to the list.
#[inline(always)]
unsafe fn append(element: u64) {
    let base = shared::base();
    let place = shared_atomic::fetch_add_u32(base + LENGTH, 1);
    shared::store_u64(base + LIST + place * 8, element);
}

/// Calls `store` with (place, element) for the `n` largest of the list, 0 where it ends before.
#[inline(always)]
unsafe fn select(n: u32, mut store: impl FnMut(u32, u64)) {
    let list = shared::base() + LIST;
    let length = shared::load_u32(shared::base() + LENGTH);
    let mut index = thread_idx_x();
    while index < length && n > 0 {
        let own = shared::load_u64(list + index * 8);
        let mut place = 0;
        let mut other = 0;
        while other + 1 < length {
            let [a, b, c, d] = shared::load_v4(list + other * 8);
            place += (pair(a, b) > own) as u32 + (pair(c, d) > own) as u32;
            other += 2;
        }
        if other < length {
            place += (shared::load_u64(list + other * 8) > own) as u32;
        }
        if place < n {
            store(place, own);
        }
        index += THREADS;
    }
    let missing = length + thread_idx_x();
    if missing < n {
        store(missing, 0);
    }
}

#[inline(always)]
unsafe fn store_element(to: *mut u32, element: u64) {
    store_u32(to, element as u32);
    store_u32(to.add(1), (element >> 32) as u32);
}

#[inline(always)]
unsafe fn load_element(from: *const u32) -> u64 {
    pair(load_u32(from), load_u32(from.add(1)))
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[inline(always)]
fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// Largest of the warp.
#[inline(always)]
fn warp_max(value: u64) -> u64 {
    let high = warp_max_u32((value >> 32) as u32);
    pair(warp_max_u32(if (value >> 32) as u32 == high { value as u32 } else { 0 }), high)
}

/// Least of the warp.
#[inline(always)]
fn warp_min(value: u64) -> u64 {
    let high = warp_min_u32((value >> 32) as u32);
    pair(warp_min_u32(if (value >> 32) as u32 == high { value as u32 } else { u32::MAX }), high)
}
