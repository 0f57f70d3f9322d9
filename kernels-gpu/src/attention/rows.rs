//! Query rows: what the prefill kernels share.
//!
//! The query heads of a group are packed: row r of a (sequence, KV head) is query r / group of head
//! kv_head · group + r % group, so that a block shares its keys whatever the group. Blocks stage rows in tiles of
//! 64 swizzled rows of 64 elements, and every warp moves its own 16 of them.
use crate::prim::{
    async_copy,
    math::rcp,
    memory::store_v4,
    opaque, shared,
    warp::{lane_id, sync_warp},
};
use crate::tile::{Elem, kv::swizzle_chunk};

/// Bytes of 64 swizzled rows of 64 elements.
pub const TILE: u32 = 64 * 128;

/// Tiles of 64 dims that a head takes: the last one of 96 is half empty.
pub const fn tiles(head_dim: u32) -> u32 {
    head_dim.div_ceil(64)
}

/// The lane's number, so that what follows from it is computed here: kept from item to item it costs the loop over
/// keys its registers.
#[inline(always)]
pub fn anew() -> u32 {
    opaque(lane_id() as i32) as u32
}

/// The first key that a query at `position` sees.
#[inline(always)]
pub fn first_key(position: u32, window: u32) -> u32 {
    if position >= window { position + 1 - window } else { 0 }
}

/// Packed rows of one (sequence, KV head).
#[derive(Clone, Copy)]
pub struct Rows {
    /// The block's first.
    pub first: u32,
    /// The sequence's end.
    pub end: u32,
    pub group: u32,
    pub kv_head: u32,
    /// Row of the matrices that holds the sequence's first query.
    pub token: u32,
}

impl Rows {
    /// Element offset of a packed row in a matrix of [tokens, heads · D].
    #[inline(always)]
    fn offset<const D: u32>(&self, row: u32, stride: u32) -> usize {
        let (query, head) = (row / self.group, self.kv_head * self.group + row % self.group);
        (self.token + query) as usize * stride as usize + (head * D) as usize
    }

    /// Starts copying the 16 queries from `first` on to `own`, the warp's rows of the first of `tiles(D)` tiles; those
    /// past the sequence's end become zero.
    #[inline(always)]
    pub unsafe fn load<const D: u32>(&self, q: *const u16, stride: u32, first: u32, own: u32) {
        let lane = anew();
        for i in 0..4 * tiles(D) {
            // Eight neighbouring lanes copy the 128 bytes of one row of one tile.
            let index = lane + i * 32;
            let (tile, row, chunk) = (index / 128, index / 8 % 16, index % 8);
            let at = first + row;
            let (at, bytes) = if at < self.end { (at, 16) } else { (self.end - 1, 0) };
            if tile * 64 + chunk * 8 < D {
                let from = q.add(self.offset::<D>(at, stride) + (tile * 64 + chunk * 8) as usize);
                async_copy::copy_16(own + tile * TILE + swizzle_chunk(row, chunk) * 16, from.cast(), bytes);
            }
        }
    }

    /// Divides the warp's accumulators of 16 rows from `first` on by the sums, rounds, and stores them in 16-byte
    /// vectors, through shared memory at `own` (laid out as for [`Self::load`]).
    #[inline(always)]
    pub unsafe fn store<E: Elem, const D: u32>(
        &self,
        out: *mut u16,
        stride: u32,
        first: u32,
        own: u32,
        output: &[[f32; 4]],
        sums: [f32; 2],
    ) {
        let lane = anew();
        let (g, t) = (lane / 4, lane % 4);
        let inverse = sums.map(rcp);
        sync_warp();
        for n in 0..D / 8 {
            for half in 0..2 {
                let o = &output[n as usize];
                let bits = E::pack(o[2 * half] * inverse[half], o[2 * half + 1] * inverse[half]);
                let row = g + 8 * half as u32;
                shared::store_u32(own + n / 8 * TILE + swizzle_chunk(row, n % 8) * 16 + t * 4, bits);
            }
        }
        sync_warp();
        for i in 0..4 * tiles(D) {
            let index = lane + i * 32;
            let (tile, row, chunk) = (index / 128, index / 8 % 16, index % 8);
            let at = first + row;
            if at < self.end && tile * 64 + chunk * 8 < D {
                let bits = shared::load_v4(own + tile * TILE + swizzle_chunk(row, chunk) * 16);
                store_v4(out.add(self.offset::<D>(at, stride) + (tile * 64 + chunk * 8) as usize).cast(), bits);
            }
        }
    }
}
