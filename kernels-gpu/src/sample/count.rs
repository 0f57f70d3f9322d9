//! Rebuilds rows of `counts` (see `adjust`) from the tokens of sequences that take a slot.
//!
//! ```text
//! row (slot, start, prompt, len):
//! counts[slot][token] = 2^15 · [token in tokens[start .. start + prompt]]
//!                     + min(32767, how often tokens[start + prompt .. start + len] have it)
//! ```
//! Grid: one block of 1024 threads per row. Bytes: 2 · vocab written, 4 per token read, a 32-byte sector read and written per token in
//! L2. Bound by stores of one multiprocessor (256 kB: about 3 µs), for long prompts by atomics.
use super::adjust::{IN_PROMPT, MOST, count_one};
use crate::prim::{
    global_atomic,
    memory::{load_v4, store_v4},
    memory_scalar::load_u32,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, sync_threads, thread_idx_x},
};

/// Threads per block.
pub const THREADS: u32 = 1024;

entry! {
    /// Arguments: `tokens`: [token_count]; `rows`: [rows, 4]: slot, start, length of the prompt, length in all; `counts`:
    /// [slots] rows, `counts_stride` words apart.
    pub struct CountTokens {
        tokens: *const u32, rows: *const u32, counts: *mut u32,
        token_count: u32, vocab: u32, slots: u32, words: u32, counts_stride: u32,
    }
    fn count_tokens(threads: THREADS, min_blocks: 1) = count;
}

#[inline(always)]
unsafe fn count(
    tokens: *const u32,
    rows: *const u32,
    counts: *mut u32,
    token_count: u32,
    vocab: u32,
    slots: u32,
    words: u32,
    counts_stride: u32,
) {
    grid_dependency_wait();
    grid_dependency_launch();
    let [slot, start, prompt, len] = load_v4(rows.add(block_idx_x() as usize * 4));
    if slot >= slots {
        return;
    }
    let counts = counts.add(slot as usize * counts_stride as usize);
    let mut word = thread_idx_x() * 4;
    while word < words {
        store_v4(counts.add(word as usize), [0; 4]);
        word += THREADS * 4;
    }
    // No atomic of another thread comes before its word is zero.
    sync_threads();
    let left = token_count.saturating_sub(start);
    let len = if len < left { len } else { left };
    // Where no count can pass 32767 one reduction does; a loop of compare-and-swap elsewhere.
    let short = len.saturating_sub(prompt) <= MOST;
    let mut index = thread_idx_x();
    while index < len {
        let token = load_u32(tokens.add((start + index) as usize));
        if token < vocab {
            let pair = counts.add(token as usize / 2);
            let shift = token % 2 * 16;
            if index < prompt {
                global_atomic::or_u32(pair, IN_PROMPT << shift);
            } else if short {
                global_atomic::add_u32(pair, 1 << shift);
            } else {
                count_up_to_most(pair, token);
            }
        }
        index += THREADS;
    }
}

#[inline(always)]
unsafe fn count_up_to_most(pair: *mut u32, token: u32) {
    let mut known = 0;
    loop {
        let found = global_atomic::compare_and_swap_u32(pair, known, count_one(known, token));
        if found == known {
            return;
        }
        known = found;
    }
}
