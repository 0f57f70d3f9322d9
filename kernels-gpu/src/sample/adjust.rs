//! What changes a row of logits before a token is drawn from it: penalties, biases, a mask.
//!
//! ```text
//! repetition  x = x > 0 ? x / r : x · r        tokens of the prompt or the answer (as Hugging Face)
//! frequency   x = x − frequency · count        tokens of the answer (as OpenAI)
//! presence    x = x − presence                 tokens of the answer
//! bias        x = x + bias                     listed tokens; −∞ bans
//! mask        x = −∞                           tokens whose bit is 0
//! ```
//! in this order, each operation rounded once, the same on host and device. `counts` has 16 bits for each token: how often
//! the answer has it, up to 32767, and in the top bit whether the prompt has it. Where a sequence has drafts, a row
//! counts those before it in as well.
use super::token::{THREADS, load4};
use crate::prim::{
    memory::{load_v4, store_v4},
    memory_scalar::{load_f32, load_u32, load_v2, store_f32},
    thread::{sync_threads, thread_idx_x},
};

/// In a token's 16 bits of `counts`: the prompt has it.
pub const IN_PROMPT: u32 = 1 << 15;
/// The largest count.
pub const MOST: u32 = IN_PROMPT - 1;

/// Words of a row of `counts`: two tokens each, whole 16 bytes.
pub const fn counts_words(vocab: usize) -> usize {
    vocab.div_ceil(2).next_multiple_of(4)
}

/// A word of `counts` with the `token` counted once more; 32767 stays.
#[inline(always)]
pub fn count_one(word: u32, token: u32) -> u32 {
    let shift = token % 2 * 16;
    if (word >> shift) & MOST < MOST { word + (1 << shift) } else { word }
}

/// A row's penalties.
#[derive(Clone, Copy, Debug)]
pub struct Penalties {
    /// 1: off.
    pub repetition: f32,
    /// 0: off.
    pub presence: f32,
    /// 0: off.
    pub frequency: f32,
}

impl Penalties {
    /// From a row's parameters.
    #[inline(always)]
    pub unsafe fn load(words: *const u32) -> Self {
        let [repetition, presence, frequency, _] = load_v4(words).map(f32::from_bits);
        Penalties { repetition, presence, frequency }
    }

    /// Whether there are any.
    #[inline(always)]
    pub fn any(&self) -> bool {
        let off = self.repetition == 1.0 && self.presence == 0.0 && self.frequency == 0.0;
        !off
    }

    /// The logit of a token with these 16 bits of `counts`.
    #[inline(always)]
    pub fn apply(&self, logit: f32, count: u32) -> f32 {
        if count == 0 {
            return logit;
        }
        let repeated = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let times = count & MOST;
        if times == 0 { repeated } else { repeated - self.frequency * times as f32 - self.presence }
    }
}

/// What a row is adjusted by; null and empty where it is not.
pub(super) struct Tables {
    pub penalties: Penalties,
    /// The slot's.
    pub counts: *const u32,
    /// The row's: one bit per token.
    pub mask: *const u32,
    /// Pairs (token, f32); each token at most once.
    pub biases: (*const u32, u32),
    /// Tokens.
    pub drafts: (*const u32, u32),
}

/// A list's first element and length, cut to the `total` elements of `size` words that there are.
#[inline(always)]
pub(super) unsafe fn list(all: *const u32, start: u32, len: u32, total: u32, size: u32) -> (*const u32, u32) {
    let left = total.saturating_sub(start);
    (all.add(if left > 0 { start as usize * size as usize } else { 0 }), if len < left { len } else { left })
}

impl Tables {
    #[inline(always)]
    unsafe fn count(&self, token: u32) -> u32 {
        (load_u32(self.counts.add(token as usize / 2)) >> (token % 2 * 16)) & 0xffff
    }

    /// How often the drafts have the token that is draft `index`; 0 if an earlier one has it.
    #[inline(always)]
    unsafe fn times_drafted(&self, index: u32, token: u32) -> u32 {
        let (drafts, len) = self.drafts;
        let mut times = 0;
        let mut other = 0;
        while other < len {
            if load_u32(drafts.add(other as usize)) == token {
                if other < index {
                    return 0;
                }
                times += 1;
            }
            other += 1;
        }
        times
    }
}

/// Writes a row's adjusted logits to `to`. All threads of the block; ends with a barrier.
#[inline(always)]
pub(super) unsafe fn adjust(tables: &Tables, logits: *const f32, to: *mut f32, vocab: u32) {
    let mut column = thread_idx_x() * 4;
    while column < vocab {
        let mut x = load4(logits, column, vocab);
        if !tables.counts.is_null() {
            let [low, high] = load_v2(tables.counts.add(column as usize / 2));
            let counts = [low & 0xffff, low >> 16, high & 0xffff, high >> 16];
            for i in 0..4 {
                x[i] = tables.penalties.apply(x[i], counts[i]);
            }
        }
        if !tables.mask.is_null() {
            let bits = load_u32(tables.mask.add(column as usize / 32)) >> (column % 32);
            for i in 0..4 {
                x[i] = if bits >> i & 1 == 0 { f32::NEG_INFINITY } else { x[i] };
            }
        }
        let at = to.add(column as usize);
        if column + 4 <= vocab {
            store_v4(at.cast(), x.map(f32::to_bits));
        } else {
            for i in 0..4 {
                if column + (i as u32) < vocab {
                    store_f32(at.add(i), x[i]);
                }
            }
        }
        column += THREADS * 4;
    }
    sync_threads();
    if !tables.counts.is_null() && tables.drafts.1 > 0 {
        adjust_drafted(tables, logits, to, vocab);
        sync_threads();
    }
    // −∞ that the mask left stays (or, with a bias of ∞, becomes NaN): such a token is never drawn.
    let (biases, len) = tables.biases;
    let mut index = thread_idx_x();
    while index < len {
        let pair = biases.add(2 * index as usize);
        let token = load_u32(pair);
        if token < vocab {
            let at = to.add(token as usize);
            store_f32(at, load_f32(at) + f32::from_bits(load_u32(pair.add(1))));
        }
        index += THREADS;
    }
    sync_threads();
}

/// Tokens that the drafts have: anew, with their counts.
#[inline(always)]
unsafe fn adjust_drafted(tables: &Tables, logits: *const f32, to: *mut f32, vocab: u32) {
    let (drafts, len) = tables.drafts;
    let mut index = thread_idx_x();
    while index < len {
        let token = load_u32(drafts.add(index as usize));
        let times = if token < vocab { tables.times_drafted(index, token) } else { 0 };
        if times > 0 {
            let count = tables.count(token);
            let sum = (count & MOST) + times;
            let count = count & IN_PROMPT | if sum < MOST { sum } else { MOST };
            let allowed =
                tables.mask.is_null() || (load_u32(tables.mask.add(token as usize / 32)) >> (token % 32)) & 1 == 1;
            let x = tables.penalties.apply(load_f32(logits.add(token as usize)), count);
            store_f32(to.add(token as usize), if allowed { x } else { f32::NEG_INFINITY });
        }
        index += THREADS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stop_before_the_prompt_bit() {
        assert_eq!(count_one(0, 0), 1);
        assert_eq!(count_one(0, 3), 1 << 16);
        assert_eq!(count_one(IN_PROMPT | MOST, 2), IN_PROMPT | MOST);
        assert_eq!(count_one(((IN_PROMPT | (MOST - 1)) << 16) | MOST, 1), ((IN_PROMPT | MOST) << 16) | MOST);
        assert_eq!(counts_words(128_256), 64_128);
        assert_eq!((counts_words(1), counts_words(9)), (4, 8));
    }

    #[test]
    fn penalties_follow_their_definitions() {
        let all = Penalties { repetition: 2.0, presence: 0.5, frequency: 0.25 };
        assert_eq!(all.apply(3.0, 0), 3.0);
        assert_eq!((all.apply(3.0, IN_PROMPT), all.apply(-3.0, IN_PROMPT)), (1.5, -6.0));
        assert_eq!((all.apply(3.0, 2), all.apply(-3.0, IN_PROMPT | 3)), (0.5, -7.25));
        assert!(all.any() && Penalties { repetition: f32::NAN, ..all }.any());
        assert!(!Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 }.any());
    }
}
