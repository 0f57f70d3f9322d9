//! Who computes what in `decode`: every block finds its part from the context lengths.
//!
//! An item is a (sequence, KV head, row block), and has a unit for every page that its queries see; one if the cache
//! is empty, so that somebody stores the zeros. Units are numbered sequence by sequence, KV head by KV head, row block
//! by row block. Of U units B blocks take ⌊U / B⌋ each, the first U mod B one more.
use super::rows::first_key;
use crate::prim::{
    memory_scalar::load_u32,
    shared,
    thread::{block_idx_x, grid_dim_x},
    warp::{LANES, ballot, lane_id, shuffle_u32, shuffle_up_u32, shuffle_xor_u32, sync_warp},
};
use crate::tile::kv::PAGE;
use core::ops::Range;

const KEYS: u32 = PAGE as u32;
/// Words of a parked place.
const PARKED: usize = 17;
/// Bytes of a parked place.
pub const PARKED_BYTES: u32 = 80;
const _: () = assert!(PARKED as u32 * 4 <= PARKED_BYTES);
/// Sequences whose lengths a lane loads at once.
const BATCH: usize = 4;

/// The batch, and a place in the block's part of it. All lanes of a warp hold the same.
pub struct Plan {
    kv_lens: *const u32,
    /// Null for one query per sequence.
    query_starts: *const u32,
    sequences: u32,
    kv_heads: u32,
    /// Heads per KV head.
    pub group: u32,
    /// Rows of a row block.
    pub rows: u32,
    /// Keys that a query sees.
    pub window: u32,
    share: Share,
    /// The sequence of the next unit, and the number of units before it.
    sequence: u32,
    before: u32,
    /// The next unit, and the end of the block's part.
    unit: u32,
    end: u32,
}

/// How units are shared out.
#[derive(Clone, Copy)]
struct Share {
    /// Units of every block.
    each: u32,
    /// Blocks with one more.
    longer: u32,
}

impl Share {
    fn new(units: u32, blocks: u32) -> Self {
        Share { each: units / blocks, longer: units % blocks }
    }

    /// First unit of a block.
    fn start(self, block: u32) -> u32 {
        block * self.each + if block < self.longer { block } else { self.longer }
    }

    /// The block that has a unit.
    fn block(self, unit: u32) -> u32 {
        let long = self.longer * (self.each + 1);
        if unit < long { unit / (self.each + 1) } else { self.longer + (unit - long) / self.each }
    }
}

/// What a sequence asks for.
#[derive(Clone, Copy)]
struct Sequence {
    token: u32,
    queries: u32,
    kv_len: u32,
    first_page: u32,
    pages: u32,
    row_blocks: u32,
}

impl Sequence {
    /// Units of an item.
    #[inline(always)]
    fn item(&self) -> u32 {
        if self.pages == 0 { 1 } else { self.pages }
    }
}

/// Consecutive units of one item.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Number of the sequence.
    pub sequence: u32,
    /// Row of the matrices that holds its first query.
    pub token: u32,
    /// Its queries.
    pub queries: u32,
    /// Tokens in its cache.
    pub kv_len: u32,
    /// The item's KV head.
    pub kv_head: u32,
    /// The item's row block.
    pub row_block: u32,
    pages: Range2,
    item: Range2,
    whole: bool,
}

/// A range that can be copied.
#[derive(Clone, Copy)]
struct Range2 {
    start: u32,
    end: u32,
}

impl Segment {
    /// First page, counted from the sequence's first.
    #[inline(always)]
    pub fn first_page(&self) -> u32 {
        self.pages.start
    }
    /// The page after the last.
    #[inline(always)]
    pub fn end_page(&self) -> u32 {
        self.pages.end
    }
    /// Whether it is all of the item.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

impl Plan {
    /// At the start of this block's part. All lanes of the warp.
    #[inline(always)]
    pub unsafe fn new(
        kv_lens: *const u32,
        query_starts: *const u32,
        sequences: u32,
        kv_heads: u32,
        group: u32,
        rows: u32,
        window: u32,
    ) -> Self {
        let share = Share { each: 0, longer: 0 };
        let mut plan = Plan {
            kv_lens,
            query_starts,
            sequences,
            kv_heads,
            group,
            rows,
            window,
            share,
            sequence: 0,
            before: 0,
            unit: 0,
            end: 0,
        };
        let mut units = 0;
        let mut first = 0;
        while first < sequences {
            for own in plan.batch(first) {
                units += own;
            }
            first += LANES * BATCH as u32;
        }
        for mask in [16, 8, 4, 2, 1] {
            units += shuffle_xor_u32(units, mask);
        }
        plan.share = Share::new(units, grid_dim_x());
        plan.unit = plan.share.start(block_idx_x());
        plan.end = plan.share.start(block_idx_x() + 1);
        plan.locate();
        plan
    }

    /// Units of the lane's sequences of a batch of 32 · BATCH from `first` on.
    #[inline(always)]
    unsafe fn batch(&self, first: u32) -> [u32; BATCH] {
        let mut units = [0; BATCH];
        for i in 0..BATCH {
            let index = first + lane_id() * BATCH as u32 + i as u32;
            // Loads without a branch, so that their latencies overlap.
            let exists = index < self.sequences;
            let sequence = self.sequence(if exists { index } else { 0 });
            units[i] = if exists { self.units(&sequence) } else { 0 };
        }
        units
    }

    /// Finds the sequence of the block's first unit.
    #[inline(always)]
    unsafe fn locate(&mut self) {
        let mut first = 0;
        while first < self.sequences {
            let own = self.batch(first);
            let sum = own[0] + own[1] + own[2] + own[3];
            let mut until = sum;
            for delta in [1, 2, 4, 8, 16] {
                let other = shuffle_up_u32(until, delta);
                if lane_id() >= delta {
                    until += other;
                }
            }
            let found = ballot(self.before + until > self.unit);
            if found == 0 {
                self.before += shuffle_u32(until, LANES - 1);
                first += LANES * BATCH as u32;
                continue;
            }
            let lane = found.trailing_zeros();
            self.before += shuffle_u32(until - sum, lane);
            self.sequence = first + lane * BATCH as u32;
            // `next` goes on from there.
            return;
        }
        self.sequence = self.sequences;
    }

    #[inline(always)]
    unsafe fn sequence(&self, index: u32) -> Sequence {
        let (mut token, mut queries) = (index, 1);
        if !self.query_starts.is_null() {
            token = load_u32(self.query_starts.add(index as usize));
            queries = load_u32(self.query_starts.add(index as usize + 1)) - token;
        }
        let kv_len = load_u32(self.kv_lens.add(index as usize));
        let first_page = first_key(kv_len.saturating_sub(queries), self.window) / KEYS;
        Sequence {
            token,
            queries,
            kv_len,
            first_page,
            pages: kv_len.div_ceil(KEYS).saturating_sub(first_page),
            row_blocks: (queries * self.group).div_ceil(self.rows),
        }
    }

    #[inline(always)]
    fn units(&self, sequence: &Sequence) -> u32 {
        self.kv_heads * sequence.row_blocks * sequence.item()
    }

    /// Writes the place and a segment to shared memory at `to`, [`PARKED_BYTES`] of the warp's own: the loop over keys
    /// needs their registers.
    #[inline(always)]
    pub unsafe fn park(&self, segment: &Segment, to: u32) {
        let Segment { sequence, token, queries, kv_len, kv_head, row_block, pages, item, whole } = *segment;
        let words = [
            self.sequence,
            self.before,
            self.unit,
            self.end,
            self.share.each,
            self.share.longer,
            sequence,
            token,
            queries,
            kv_len,
            kv_head,
            row_block,
            pages.start,
            pages.end,
            item.start,
            item.end,
            u32::from(whole),
        ];
        sync_warp();
        if lane_id() == 0 {
            for i in 0..PARKED {
                shared::store_u32(to + i as u32 * 4, words[i]);
            }
        }
        sync_warp();
    }

    /// Reads what [`Self::park`] wrote.
    #[inline(always)]
    pub unsafe fn resume(&mut self, from: u32) -> Segment {
        let mut words = [0; PARKED];
        for i in 0..PARKED {
            words[i] = shared::load_u32(from + i as u32 * 4);
        }
        (self.sequence, self.before, self.unit, self.end) = (words[0], words[1], words[2], words[3]);
        self.share = Share { each: words[4], longer: words[5] };
        Segment {
            sequence: words[6],
            token: words[7],
            queries: words[8],
            kv_len: words[9],
            kv_head: words[10],
            row_block: words[11],
            pages: Range2 { start: words[12], end: words[13] },
            item: Range2 { start: words[14], end: words[15] },
            whole: words[16] == 1,
        }
    }

    /// The block's next segment.
    #[inline(always)]
    pub unsafe fn next(&mut self) -> Option<Segment> {
        while self.unit < self.end && self.sequence < self.sequences {
            let sequence = self.sequence(self.sequence);
            let units = self.units(&sequence);
            if self.unit >= self.before + units {
                self.before += units;
                self.sequence += 1;
                continue;
            }
            let length = sequence.item();
            let (item, start) = ((self.unit - self.before) / length, (self.unit - self.before) % length);
            let left = self.end - self.unit;
            let count = if length - start < left { length - start } else { left };
            let item_start = self.unit - start;
            self.unit += count;
            let first = sequence.first_page + start;
            return Some(Segment {
                sequence: self.sequence,
                token: sequence.token,
                queries: sequence.queries,
                kv_len: sequence.kv_len,
                kv_head: item / sequence.row_blocks,
                row_block: item % sequence.row_blocks,
                pages: Range2 { start: first, end: if sequence.pages == 0 { first } else { first + count } },
                item: Range2 { start: item_start, end: item_start + length },
                whole: count == length,
            });
        }
        None
    }

    /// The blocks that have a part of the segment's item.
    #[inline(always)]
    pub fn blocks(&self, segment: &Segment) -> Range<u32> {
        self.share.block(segment.item.start)..self.share.block(segment.item.end - 1) + 1
    }

    /// Whether a block's part of the item is its first segment (0) or its last (1): if it begins with the item, it is
    /// the last, for the item goes on in the next block.
    #[inline(always)]
    pub fn which(&self, block: u32, segment: &Segment) -> u32 {
        u32::from(self.share.start(block) < segment.item.start)
    }
}

#[cfg(test)]
mod tests {
    use super::Share;

    #[test]
    fn every_unit_has_one_block() {
        for (units, blocks) in [(0, 4), (1, 4), (3, 4), (4, 4), (5, 4), (256, 132), (16384, 132), (131, 132), (1000, 7)] {
            let share = Share::new(units, blocks);
            assert_eq!((share.start(0), share.start(blocks)), (0, units));
            for unit in 0..units {
                let block = share.block(unit);
                assert!((share.start(block)..share.start(block + 1)).contains(&unit), "{unit} of {units}");
            }
        }
    }
}
