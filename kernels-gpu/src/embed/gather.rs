//! Embedding gather: row `ids[token]` of the table for every token.
//!
//! ```text
//! out[token] = table[id] (· scale)       zeros where the id is not below the vocabulary's size
//! id = last_tokens[slot] where ids[token] is FROM_SLOT | slot
//!      drafts[index]     where ids[token] is FROM_DRAFT | index
//!      ids[token]        otherwise
//! ```
//! So a step can be planned and uploaded before the tokens that it starts from are sampled: their values never leave
//! the device. That costs one dependent load for those tokens, and nothing for the others.
//!
//! Grid: (tokens, ⌈width / 2048⌉) blocks of 256 threads, 16 bytes a thread, so that one token of decode is
//! spread over all its blocks' threads at once. Bytes per token: 2·width read and written. Bound by
//! memory. An id that is out of range (padding, or a sampler that went wrong) reads nothing.
use crate::prim::{
    memory::{load_v4, store_v4},
    memory_scalar::load_u32,
    thread::{block_idx_x, block_idx_y, grid_dependency_launch, grid_dependency_wait, thread_idx_x},
};
use crate::tile::{Bf16, Elem, F16};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Elements per thread.
const VECTOR: u32 = 8;
/// Elements per block.
pub const SPAN: u32 = THREADS * VECTOR;

/// In `ids`: the token that was sampled last for this slot, `FROM_SLOT | slot`.
pub const FROM_SLOT: u32 = 1 << 31;
/// In `ids`: a draft token, `FROM_DRAFT | index`.
pub const FROM_DRAFT: u32 = 1 << 30;

entry! {
    /// Arguments of the gather: `table`: [vocab, width], `ids`: [tokens], `out`: [tokens, width], rows
    /// `*_stride` elements apart; `last_tokens`: [slots], `drafts`: [draft_count], not touched where they are empty. Without a scale (Gemma has one) elements are opaque 16-bit values, so that one entry
    /// serves both formats.
    pub struct EmbeddingGather {
        table: *const u16, ids: *const u32, out: *mut u16,
        vocab: u32, width: u32, table_stride: u32, out_stride: u32, scale: f32,
        last_tokens: *const u32, drafts: *const u32, slots: u32, draft_count: u32,
    }
    fn embedding_gather(threads: THREADS, min_blocks: 4) = gather::<Bf16, false>;
    fn embedding_gather_scaled_bf16(threads: THREADS, min_blocks: 4) = gather::<Bf16, true>;
    fn embedding_gather_scaled_f16(threads: THREADS, min_blocks: 4) = gather::<F16, true>;
}

#[inline(always)]
unsafe fn gather<E: Elem, const SCALED: bool>(
    table: *const u16,
    ids: *const u32,
    out: *mut u16,
    vocab: u32,
    width: u32,
    table_stride: u32,
    out_stride: u32,
    scale: f32,
    last_tokens: *const u32,
    drafts: *const u32,
    slots: u32,
    draft_count: u32,
) {
    let token = block_idx_x() as usize;
    let column = block_idx_y() * SPAN + thread_idx_x() * VECTOR;
    grid_dependency_wait();
    grid_dependency_launch();
    if column < width {
        let mut id = load_u32(ids.add(token));
        if id >= FROM_DRAFT {
            let (from, len, index) = match id >= FROM_SLOT {
                true => (last_tokens, slots, id - FROM_SLOT),
                false => (drafts, draft_count, id - FROM_DRAFT),
            };
            id = if index < len { load_u32(from.add(index as usize)) } else { vocab };
        }
        let mut v = [0; 4];
        if id < vocab {
            v = load_v4(table.add(id as usize * table_stride as usize + column as usize).cast());
            if SCALED {
                v = E::pack8(E::unpack8(v).map(|x| x * scale));
            }
        }
        store_v4(out.add(token * out_stride as usize + column as usize).cast(), v);
    }
}
