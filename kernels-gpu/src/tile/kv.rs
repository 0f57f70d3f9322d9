//! The layout of the paged KV cache.
//!
//! K and V are separate pools of pages of [`PAGE`] tokens. Within a pool:
//! `[page][kv_head][head_dim / 64][PAGE tokens][64 dims]`, two bytes an element, each 128-byte row of 64
//! dims already swizzled as `wgmma`, TMA and conflict-free `ldmatrix` want it: the 16-byte chunk c of
//! token row t sits at chunk `c ^ (t % 8)`. One head's share of a page is contiguous, so it moves
//! by a plain bulk copy, and swapping a page out is a memcpy.

/// Tokens per page.
pub const PAGE: usize = 64;
/// Dimensions per swizzled row.
pub const ROW: usize = 64;

/// Elements that one page of one pool takes.
pub const fn page_elems(kv_heads: usize, head_dim: usize) -> usize {
    kv_heads * PAGE * head_dim.next_multiple_of(ROW)
}

/// Position of 16-byte chunk `chunk` (0..8) in row `row` of a tile with 128-byte rows, in chunks from
/// the tile's start, under the 128-byte swizzle.
#[inline(always)]
pub const fn swizzle_chunk(row: u32, chunk: u32) -> u32 {
    row * 8 + (chunk ^ (row & 7))
}

/// Element offset in a pool of dimension `dim` of token `slot` (0..[`PAGE`]) of `page`.
#[inline(always)]
pub const fn offset(page: usize, kv_head: usize, slot: usize, dim: usize, kv_heads: usize, head_dim: usize) -> usize {
    let columns = head_dim.div_ceil(ROW);
    let tile = ((page * kv_heads + kv_head) * columns + dim / ROW) * PAGE * ROW;
    let chunk = swizzle_chunk(slot as u32, (dim % ROW / 8) as u32) as usize;
    tile + chunk * 8 + dim % 8
}
