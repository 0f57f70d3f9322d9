//! One token per row of logits: greedy, or drawn after temperature, top-k, top-p and min-p. In `sample_adjusted` rows may ask for
//! penalties, biases and a mask before that.
//!
//! ```text
//! logit  += penalties of tokens that were there, biases; −∞ where the mask has no bit       (`adjust`)
//! weight = exp((logit − largest) / temperature)          an integer, in units of 2^-44 (`fixed`)
//! top-k   keeps logit ≥ the k-th largest logit
//! top-p   keeps, of those, the fewest by (logit descending, index ascending) with mass ≥ top_p · their mass
//! min-p   keeps, of those, weight ≥ min_p · the largest weight
//! token   the first in index order with Σ weight > random · mass       random from Philox(seed, position)
//! ```
//! Greedy (temperature 0 or top-k 1) is the first of the largest logits. NaN and −∞ are never drawn; a row
//! of nothing else (all banned, too) gives token 0.
//!
//! The token goes to `out[row]` and, for the next step's embedding, to `last_tokens[seq_slot]`; where a row has penalties
//! `counts[seq_slot]` counts it. Rows of sequences with drafts leave both to `sample/accept`.
//!
//! Grid: one block of 1024 threads per row, which stays in L2. Passes over it: one for the largest logit (all of
//! a greedy row); three for each of top-k and top-p, a radix select of 11 + 11 + 10 bits on ordered integer
//! keys with histograms of counts or masses; one for the masses of the 32 warps' segments, the last for the one segment that
//! the draw falls into. All sums are of integers: their order, and so the batch, does not matter.
//! Bound by shared memory atomics in a histogram's first pass, by L2 in the others. An adjusted row takes one more pass, which
//! leaves it in `scratch`: the logits stay as they are, for `sample/top`. Others cost a comparison in `sample_adjusted`
//! and nothing in `sample`.
use super::adjust::{self, Penalties, Tables};
use super::{fixed, params};
use crate::prim::{
    memory::load_v4,
    memory_scalar::{load_u32, store_u32},
    shared, shared_atomic,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, sync_threads, thread_idx_x},
    warp::{LANES, ballot, lane_id, shuffle_u32, shuffle_up_u32, shuffle_xor_u32, warp_id},
};

/// Threads per block.
pub const THREADS: u32 = 1024;
/// Largest vocabulary: a warp's segment is then 8 elements for each thread of the block.
pub const MAX_VOCAB: u32 = 1 << 18;

/// Bins of a histogram: two per thread.
const BINS: u32 = 2 * THREADS;
/// Copies of a bin, for lanes modulo 4: many logits share their upper bits, and atomics of a warp on one
/// word take turns.
const COPIES: u32 = 4;
/// Shared memory: low words of the bins ([bin][copy]), high words, 32 u64 and 32 u32 (one per warp), a result.
const HIGH: u32 = BINS * COPIES * 4;
const WARP_SLOTS: u32 = 2 * HIGH;
const TIE_SLOTS: u32 = WARP_SLOTS + LANES * 8;
const RESULT: u32 = TIE_SLOTS + LANES * 4;
/// Bytes of shared memory.
pub const SHARED_BYTES: u32 = RESULT + 16;

const _: () = assert!(THREADS == LANES * LANES, "one lane per warp reduces the block");
const _: () = assert!(MAX_VOCAB / LANES == THREADS * 8);

entry! {
    /// Arguments: `logits`: [sequences, vocab], `params`: [sequences, 20] (`params`), rows `*_stride` elements apart; `out`:
    /// [sequences]; `last_tokens`: [slots]. For adjusted rows: `counts`: [count_slots], `masks`: [mask_count] and `scratch`:
    /// [scratch_rows] rows, `biases`: [bias_count] pairs (token, f32), `drafts`: [draft_count].
    pub struct Sample {
        logits: *const f32, params: *const u32, out: *mut u32, last_tokens: *mut u32, counts: *mut u32,
        biases: *const u32, masks: *const u32, drafts: *const u32, scratch: *mut f32,
        vocab: u32, logits_stride: u32, params_stride: u32, slots: u32, count_slots: u32, counts_stride: u32,
        bias_count: u32, mask_count: u32, masks_stride: u32, draft_count: u32, scratch_rows: u32, scratch_stride: u32,
    }
    fn sample(threads: THREADS, min_blocks: 1) = sample_row::<false>;
    fn sample_adjusted(threads: THREADS, min_blocks: 1) = sample_row::<true>;
}

/// Whether the parameters ask for the largest logit.
#[inline(always)]
pub fn is_greedy(temperature: f32, top_k: u32) -> bool {
    // A NaN is not above 0 either.
    let positive = temperature > 0.0;
    !positive || top_k == 1
}

#[inline(always)]
unsafe fn sample_row<const ADJUST: bool>(
    logits: *const f32,
    params: *const u32,
    out: *mut u32,
    last_tokens: *mut u32,
    counts: *mut u32,
    biases: *const u32,
    masks: *const u32,
    drafts: *const u32,
    scratch: *mut f32,
    vocab: u32,
    logits_stride: u32,
    params_stride: u32,
    slots: u32,
    count_slots: u32,
    counts_stride: u32,
    bias_count: u32,
    mask_count: u32,
    masks_stride: u32,
    draft_count: u32,
    scratch_rows: u32,
    scratch_stride: u32,
) {
    let sequence = block_idx_x() as usize;
    let mut logits = logits.add(sequence * logits_stride as usize);
    let params = params.add(sequence * params_stride as usize);

    grid_dependency_wait();
    let [temperature, top_p, min_p, top_k] = load_v4(params);
    let [seed_lo, seed_hi, position, slot] = load_v4(params.add(4));
    let [flags, scratch_row, mask, _] = load_v4(params.add(8));
    let (temperature, top_p, min_p) = (f32::from_bits(temperature), f32::from_bits(top_p), f32::from_bits(min_p));

    let own = flags & params::DRAFTED == 0;
    let mut to = Destination {
        out: out.add(sequence),
        last: if own && slot < slots { last_tokens.add(slot as usize) } else { core::ptr::null_mut() },
        counts: core::ptr::null_mut(),
    };
    if ADJUST && scratch_row < scratch_rows {
        let penalties = Penalties::load(params.add(12));
        let [bias_start, biases_here, draft_start, drafts_here] = load_v4(params.add(16));
        let counts = match penalties.any() && slot < count_slots {
            true => counts.add(slot as usize * counts_stride as usize),
            false => core::ptr::null_mut(),
        };
        let tables = Tables {
            penalties,
            counts,
            mask: if mask < mask_count { masks.add(mask as usize * masks_stride as usize) } else { core::ptr::null() },
            biases: adjust::list(biases, bias_start, biases_here, bias_count, 2),
            drafts: adjust::list(drafts, draft_start, drafts_here, draft_count, 1),
        };
        let adjusted = scratch.add(scratch_row as usize * scratch_stride as usize);
        adjust::adjust(&tables, logits, adjusted, vocab);
        logits = adjusted;
        if own {
            to.counts = counts;
        }
    }

    let (largest_key, largest_index) = largest(logits, vocab);
    if is_greedy(temperature, top_k) || largest_key <= fixed::KEY_OF_NEG_INFINITY {
        grid_dependency_launch();
        if thread_idx_x() == 0 {
            to.store::<ADJUST>(if largest_key <= fixed::KEY_OF_NEG_INFINITY { 0 } else { largest_index });
        }
        return;
    }
    let row = Row { logits, vocab, largest_key, largest: fixed::logit(largest_key), scale: fixed::scale(temperature) };
    let mut kept = Kept { least: 1, ties: u32::MAX, min_weight: fixed::min_weight(min_p) };
    if top_k > 0 {
        let found = search::<false>(&row, kept.least, |_| top_k as u64);
        if found.total >= top_k as u64 {
            kept.least = found.key;
        }
    }
    if top_p < 1.0 {
        let found = search::<true>(&row, kept.least, |total| fixed::top_p_mass(top_p, total));
        kept.least = found.key;
        kept.ties = fixed::tokens_to_reach(found.missing, row.weight_of_key(found.key));
    }
    if let Some(token) = draw(&row, &kept, fixed::random([seed_lo, seed_hi], position)) {
        to.store::<ADJUST>(token);
    }
}

/// Where a row's token goes; null where it does not.
struct Destination {
    out: *mut u32,
    last: *mut u32,
    counts: *mut u32,
}

impl Destination {
    /// By one thread of the block. No other block touches the slot.
    #[inline(always)]
    unsafe fn store<const ADJUST: bool>(&self, token: u32) {
        store_u32(self.out, token);
        if !self.last.is_null() {
            store_u32(self.last, token);
        }
        if ADJUST && !self.counts.is_null() {
            let pair = self.counts.add(token as usize / 2);
            store_u32(pair, adjust::count_one(load_u32(pair), token));
        }
    }
}

/// A row of logits.
struct Row {
    logits: *const f32,
    vocab: u32,
    largest_key: u32,
    largest: f32,
    scale: f32,
}

impl Row {
    #[inline(always)]
    fn weight(&self, logit: f32) -> u64 {
        fixed::weight(logit, self.largest, self.scale)
    }
    #[inline(always)]
    fn weight_of_key(&self, key: u32) -> u64 {
        self.weight(fixed::logit(key))
    }
}

/// What top-k, top-p and min-p leave: keys above `least`, the first `ties` tokens with that key, and of
/// those what weighs at least `min_weight`.
struct Kept {
    least: u32,
    ties: u32,
    min_weight: u64,
}

impl Kept {
    /// (weight where the key is above `least`, 1 where it is equal)
    #[inline(always)]
    fn split(&self, row: &Row, logit: f32) -> (u64, u32) {
        let key = fixed::key(logit);
        if key < self.least {
            return (0, 0);
        }
        let weight = row.weight(logit);
        match weight >= self.min_weight {
            false => (0, 0),
            true if key == self.least => (0, 1),
            true => (weight, 0),
        }
    }
}

/// Four logits from `column`, a multiple of 4; NaN beyond the row.
#[inline(always)]
pub(super) unsafe fn load4(logits: *const f32, column: u32, vocab: u32) -> [f32; 4] {
    let at = logits.add(column as usize);
    if column + 4 <= vocab {
        return load_v4(at.cast()).map(f32::from_bits);
    }
    let mut x = [f32::NAN; 4];
    for i in 0..4 {
        if column + (i as u32) < vocab {
            x[i] = *at.add(i);
        }
    }
    x
}

/// Key and index of the largest logit, the first of equal ones; in every thread.
#[inline(always)]
unsafe fn largest(logits: *const f32, vocab: u32) -> (u32, u32) {
    let (mut key, mut index) = (0, 0);
    let mut column = thread_idx_x() * 4;
    while column < vocab {
        let x = load4(logits, column, vocab);
        for i in 0..4 {
            let k = fixed::key(x[i]);
            // Columns rise, so the first of equal ones stays.
            if k > key {
                (key, index) = (k, column + i as u32);
            }
        }
        column += THREADS * 4;
    }
    let best = block_max((key as u64) << 32 | !index as u64);
    ((best >> 32) as u32, !(best as u32))
}

/// What [`search`] finds.
struct Found {
    /// The largest key such that the tokens with at least that key reach the goal; meaningless where the
    /// total is below it.
    key: u32,
    /// What tokens above the key leave missing.
    missing: u64,
    /// All of what was searched.
    total: u64,
}

/// Finds the key where the count (or `MASS`) of tokens with weight, in descending order, reaches
/// `goal(total)`, which is at least 1. Only keys from `floor` on count. A radix select on the distance from
/// the largest key.
#[inline(always)]
unsafe fn search<const MASS: bool>(row: &Row, floor: u32, goal: impl Fn(u64) -> u64) -> Found {
    let base = shared::base();
    // The bin found so far holds the distances start ..= start + span; `above` is what comes before it.
    let (mut start, mut span, mut shift) = (0u32, u32::MAX, 21u32);
    let mut found = Found { key: 0, missing: 0, total: 0 };
    loop {
        clear_histogram();
        sync_threads();
        histogram::<MASS>(row, floor, start, span, shift);
        sync_threads();

        // Thread t has bins 2t and 2t + 1.
        let bin = thread_idx_x() * 2;
        let (first, second) = (bin_sum(bin), bin_sum(bin + 1));
        let (before, total) = block_scan(first + second);
        if span == u32::MAX {
            found.total = total;
            found.missing = goal(total);
            if total < found.missing {
                return found;
            }
        }
        if before < found.missing && found.missing <= before + first + second {
            let in_first = found.missing <= before + first;
            shared::store_u32(base + RESULT, if in_first { bin } else { bin + 1 });
            shared::store_u64(base + RESULT + 8, found.missing - before - if in_first { 0 } else { first });
        }
        sync_threads();
        start += shared::load_u32(base + RESULT) << shift;
        found.missing = shared::load_u64(base + RESULT + 8);
        if shift == 0 {
            found.key = row.largest_key - start;
            return found;
        }
        span = (1 << shift) - 1;
        shift = if shift == 21 { 10 } else { 0 };
    }
}

#[inline(always)]
unsafe fn clear_histogram() {
    let mut at = thread_idx_x() * 16;
    while at < 2 * HIGH {
        shared::store_v4(shared::base() + at, [0; 4]);
        at += THREADS * 16;
    }
}

/// Adds 1 or the weight of each token in range to its bin: low words wrap, and whoever sees one wrap carries.
#[inline(always)]
unsafe fn histogram<const MASS: bool>(row: &Row, floor: u32, start: u32, span: u32, shift: u32) {
    let copy = shared::base() + lane_id() % COPIES * 4;
    let mut column = thread_idx_x() * 4;
    while column < row.vocab {
        let x = load4(row.logits, column, row.vocab);
        for i in 0..4 {
            let key = fixed::key(x[i]);
            let distance = (row.largest_key - key).wrapping_sub(start);
            if key >= floor && distance <= span {
                let weight = row.weight(x[i]);
                let at = copy + (distance >> shift) * (COPIES * 4);
                if MASS && weight > 0 {
                    let low = weight as u32;
                    let old = shared_atomic::fetch_add_u32(at, low);
                    let high = (weight >> 32) as u32 + old.overflowing_add(low).1 as u32;
                    if high > 0 {
                        shared_atomic::add_u32(at + HIGH, high);
                    }
                } else if !MASS && weight > 0 {
                    shared_atomic::add_u32(at, 1);
                }
            }
        }
        column += THREADS * 4;
    }
}

/// A bin's copies added up.
#[inline(always)]
unsafe fn bin_sum(bin: u32) -> u64 {
    let at = shared::base() + bin * (COPIES * 4);
    let (low, high) = (shared::load_v4(at), shared::load_v4(at + HIGH));
    let mut sum = 0;
    for i in 0..COPIES as usize {
        sum += low[i] as u64 + ((high[i] as u64) << 32);
    }
    sum
}

/// The token that `random` falls to among the `kept`, in one thread.
#[inline(always)]
unsafe fn draw(row: &Row, kept: &Kept, random: u64) -> Option<u32> {
    // Warp w sums columns w · segment .. (w + 1) · segment.
    let segment = row.vocab.div_ceil(LANES).next_multiple_of(4 * LANES);
    let begin = warp_id() * segment;
    let end = min(begin + segment, row.vocab);
    let (mut mass, mut ties) = (0u64, 0u32);
    let mut column = begin + lane_id() * 4;
    while column < end {
        let x = load4(row.logits, column, row.vocab);
        for i in 0..4 {
            let (m, t) = kept.split(row, x[i]);
            mass += m;
            ties += t;
        }
        column += 4 * LANES;
    }
    let base = shared::base();
    let (mass, ties) = (warp_sum_u64(mass), warp_sum_u64(ties as u64) as u32);
    // `largest` may still be reading the slots.
    sync_threads();
    if lane_id() == 0 {
        shared::store_u64(base + WARP_SLOTS + warp_id() * 8, mass);
        shared::store_u32(base + TIE_SLOTS + warp_id() * 4, ties);
    }
    sync_threads();

    // Every warp finds the segment of the draw: lane l has warp l's sums.
    let tie_weight = if kept.least > fixed::KEY_OF_NEG_INFINITY { row.weight_of_key(kept.least) } else { 0 };
    let ties = shared::load_u32(base + TIE_SLOTS + lane_id() * 4);
    let ties_before = warp_scan(ties as u64) as u32 - ties;
    let kept_ties = min(ties, kept.ties.saturating_sub(ties_before));
    let mass = shared::load_u64(base + WARP_SLOTS + lane_id() * 8) + kept_ties as u64 * tie_weight;
    let up_to = warp_scan(mass);
    let drawn = fixed::draw(random, shuffle_u64(up_to, LANES - 1));
    let chosen = ballot(up_to > drawn).trailing_zeros();
    let left = drawn - shuffle_u64(up_to - mass, chosen);
    let ties_left = kept.ties.saturating_sub(shuffle_u32(ties_before, chosen));

    // All threads take 8 consecutive columns each of that segment.
    let begin = chosen * segment;
    let end = min(begin + segment, row.vocab);
    let first = begin + thread_idx_x() * 8;
    let mut x = [f32::NAN; 8];
    if first < end {
        let (low, high) = (load4(row.logits, first, end), load4(row.logits, first + 4, end));
        for i in 0..4 {
            (x[i], x[i + 4]) = (low[i], high[i]);
        }
    }
    grid_dependency_launch();
    let mut own_ties = 0;
    for i in 0..8 {
        own_ties += kept.split(row, x[i]).1;
    }
    let (ties_before, _) = block_scan(own_ties as u64);
    let mut ties_left = ties_left.saturating_sub(ties_before as u32);
    let mut weights = [0; 8];
    let mut own = 0;
    for i in 0..8 {
        let (m, t) = kept.split(row, x[i]);
        weights[i] = m;
        if t == 1 && ties_left > 0 {
            ties_left -= 1;
            weights[i] = tie_weight;
        }
        own += weights[i];
    }
    let (before, _) = block_scan(own);
    if !(before <= left && left < before + own) {
        return None;
    }
    let mut sum = before;
    let mut token = first;
    for i in 0..8 {
        sum += weights[i];
        // Counts the columns whose running sum does not exceed the draw.
        if sum <= left {
            token += 1;
        }
    }
    Some(token)
}

#[inline(always)]
fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[inline(always)]
fn shuffle_u64(value: u64, lane: u32) -> u64 {
    pair(shuffle_u32(value as u32, lane), shuffle_u32((value >> 32) as u32, lane))
}

#[inline(always)]
fn shuffle_xor_u64(value: u64, mask: u32) -> u64 {
    pair(shuffle_xor_u32(value as u32, mask), shuffle_xor_u32((value >> 32) as u32, mask))
}

#[inline(always)]
fn warp_sum_u64(mut value: u64) -> u64 {
    for mask in [16, 8, 4, 2, 1] {
        value += shuffle_xor_u64(value, mask);
    }
    value
}

#[inline(always)]
fn warp_max_u64(mut value: u64) -> u64 {
    for mask in [16, 8, 4, 2, 1] {
        let other = shuffle_xor_u64(value, mask);
        value = if other > value { other } else { value };
    }
    value
}

/// Inclusive sums by lane.
#[inline(always)]
fn warp_scan(mut value: u64) -> u64 {
    for delta in [1, 2, 4, 8, 16] {
        let below = pair(shuffle_up_u32(value as u32, delta), shuffle_up_u32((value >> 32) as u32, delta));
        value += if lane_id() >= delta { below } else { 0 };
    }
    value
}

/// Largest value of the block, in every thread.
#[inline(always)]
unsafe fn block_max(value: u64) -> u64 {
    let slots = shared::base() + WARP_SLOTS;
    let value = warp_max_u64(value);
    if lane_id() == 0 {
        shared::store_u64(slots + warp_id() * 8, value);
    }
    sync_threads();
    warp_max_u64(shared::load_u64(slots + lane_id() * 8))
}

/// (sum of the threads before this one, sum of all)
#[inline(always)]
unsafe fn block_scan(value: u64) -> (u64, u64) {
    let slots = shared::base() + WARP_SLOTS;
    let up_to = warp_scan(value);
    // Whoever used the slots before has read them.
    sync_threads();
    if lane_id() == LANES - 1 {
        shared::store_u64(slots + warp_id() * 8, up_to);
    }
    sync_threads();
    let warps = warp_scan(shared::load_u64(slots + lane_id() * 8));
    let before = shuffle_u64(warps, (warp_id() + LANES - 1) % LANES);
    let before = if warp_id() == 0 { 0 } else { before };
    (before + up_to - value, shuffle_u64(warps, LANES - 1))
}
