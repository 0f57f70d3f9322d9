//! What becomes of drafts: the longest prefix that the target's sampler agrees with.
//!
//! ```text
//! sequence with rows first .. first + k of `sampled` and drafts d_0 .. d_{k-1}:
//! accepted = the first j with sampled[first + j] ≠ d_j, or k
//! tokens   = d_0 .. d_{accepted-1}, sampled[first + accepted]
//! ```
//! The sampler's random number at a position depends on seed and position only, so these are the very tokens of the plain
//! path: row j was drawn from the logits after d_0 .. d_{j-1}. For benchmarks with meaningless weights a draft is instead
//! accepted with a given probability, drawn from Philox(seed, position) on a stream of its own.
//!
//! The last of the tokens goes to `last_tokens`; where the sequence has penalties its tokens are counted, in order.
//! Grid: blocks of 4 warps, a warp per sequence, a lane per row. Bound by the latency of four dependent loads.
use super::adjust::{Penalties, count_one};
use super::{fixed, params};
use crate::prim::{
    memory::load_v4,
    memory_scalar::{load_u32, load_v2, store_u32},
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait},
    warp::{LANES, ballot, lane_id, shuffle_u32, warp_id},
};

/// Threads per block.
pub const THREADS: u32 = 128;
/// Most drafts of a sequence: one lane is for the row after them.
pub const MOST_DRAFTS: u32 = LANES - 1;
/// Stands for no token in the output.
pub const NO_TOKEN: u32 = u32::MAX;

entry! {
    /// Arguments: `table`: [sequences, 2]: first row, drafts; `sampled`: [rows]; `params`: [rows, 20] (`params`);
    /// `drafts`: [draft_count]; `last_tokens`: [slots]; `counts`: [count_slots] rows; `out`: [sequences, width + 2]: accepted
    /// drafts, then tokens. `synthetic`: probability of acceptance, below 0 for the comparison.
    pub struct AcceptDrafts {
        table: *const u32, sampled: *const u32, params: *const u32, drafts: *const u32, last_tokens: *mut u32,
        counts: *mut u32, out: *mut u32, sequences: u32, rows: u32, params_stride: u32, draft_count: u32, slots: u32,
        count_slots: u32, counts_stride: u32, vocab: u32, width: u32, out_stride: u32, synthetic: f32,
    }
    fn accept_drafts(threads: THREADS, min_blocks: 1) = accept;
}

/// Whether a draft at `position` is accepted with this probability.
#[inline(always)]
pub fn by_chance(seed: [u32; 2], position: u32, probability: f32) -> bool {
    let random = fixed::random_stream(seed, position, 1);
    // 24 bits: every value is an f32.
    ((random >> 40) as f32) < probability * 16_777_216.0
}

#[inline(always)]
unsafe fn accept(
    table: *const u32,
    sampled: *const u32,
    params: *const u32,
    drafts: *const u32,
    last_tokens: *mut u32,
    counts: *mut u32,
    out: *mut u32,
    sequences: u32,
    rows: u32,
    params_stride: u32,
    draft_count: u32,
    slots: u32,
    count_slots: u32,
    counts_stride: u32,
    vocab: u32,
    width: u32,
    out_stride: u32,
    synthetic: f32,
) {
    grid_dependency_wait();
    grid_dependency_launch();
    let sequence = block_idx_x() * (THREADS / LANES) + warp_id();
    if sequence >= sequences {
        return;
    }
    let out = out.add(sequence as usize * out_stride as usize);
    let [first, asked] = load_v2(table.add(2 * sequence as usize));
    // Both are as the caller says in a sound step; `width` is at most 31.
    let most = rows.saturating_sub(first).saturating_sub(1);
    let drafted = min(min(asked, width), most);
    let lane = lane_id();
    let row = first + min(lane, drafted);
    if row >= rows {
        return;
    }
    let params = params.add(row as usize * params_stride as usize);
    let [seed_lo, seed_hi, position, slot] = load_v4(params.add(params::SEED));
    let own = load_u32(sampled.add(row as usize));
    let [start, _] = load_v2(params.add(params::DRAFTS));
    let place = start.wrapping_add(lane);
    let draft = if lane < drafted && place < draft_count { load_u32(drafts.add(place as usize)) } else { NO_TOKEN };

    let agreed = match synthetic >= 0.0 {
        true => by_chance([seed_lo, seed_hi], position, synthetic),
        false => own == draft,
    };
    // Lane `drafted` never agrees, so there is a first that does not.
    let accepted = ballot(!(agreed && lane < drafted && draft != NO_TOKEN)).trailing_zeros();
    let token = if lane < accepted { draft } else { own };
    let last = shuffle_u32(token, accepted);
    if lane == 0 {
        store_u32(out, accepted);
        if slot < slots {
            store_u32(last_tokens.add(slot as usize), last);
        }
    }
    if lane <= width {
        store_u32(out.add(1 + lane as usize), if lane <= accepted { token } else { NO_TOKEN });
    }

    let counted = load_u32(params.add(params::FLAGS)) & params::DRAFTED != 0
        && slot < count_slots
        && Penalties::load(params.add(params::PENALTIES)).any();
    // The same in all lanes: the rows are one sequence's.
    let counted = shuffle_u32(counted as u32, 0) != 0;
    let mut index = 0;
    while counted && index <= accepted {
        let token = shuffle_u32(token, index);
        if lane == 0 && token < vocab {
            let pair = counts.add(slot as usize * counts_stride as usize + token as usize / 2);
            store_u32(pair, count_one(load_u32(pair), token));
        }
        index += 1;
    }
}

#[inline(always)]
fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}
