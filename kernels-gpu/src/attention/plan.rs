//! Who computes what in `decode`: every block finds its part from the context lengths.
//!
//! An item is a (sequence, KV head, row block), and has a unit for every page that its queries see; one if the cache
//! is empty, so that somebody stores the zeros. Units are numbered sequence by sequence, KV head by KV head, row block
//! by row block. Of U units B blocks take ⌊U / B⌋ each, the first U mod B one more.
//!
//! The block that has an item's first unit owns it: it merges the others' parts and stores the rows. Such a part is
//! the block's last, and all other parts of the item are their blocks' first, so that a block waits at its end at
//! most, and leaves one part at most. It waits for blocks of higher numbers, and blocks are numbered against their
//! hardware's indices: hardware starts blocks by ascending index, so those waited for have started.
use super::rows::first_key;
use crate::prim::{
    memory_scalar::load_u32,
    shared,
    thread::{block_idx_x, grid_dim_x},
    warp::{LANES, ballot, lane_id, shuffle_u32, shuffle_up_u32, shuffle_xor_u32, sync_warp},
};
use crate::tile::kv::PAGE;

const KEYS: u32 = PAGE as u32;
/// Bytes of a parked place.
pub const PARKED_BYTES: u32 = 64;
/// Sequences whose lengths a lane loads at once.
const BATCH: usize = 4;

/// What the plan is made from.
#[derive(Clone, Copy)]
pub struct Batch {
    /// One per sequence.
    pub kv_lens: *const u32,
    /// Null for one query per sequence.
    pub query_starts: *const u32,
    pub sequences: u32,
    pub kv_heads: u32,
    /// Heads per KV head.
    pub group: u32,
    /// Rows of a row block.
    pub rows: u32,
    /// Keys that a query sees.
    pub window: u32,
}

/// The numbers of a sequence.
#[derive(Clone, Copy)]
pub struct Lengths {
    token: u32,
    queries: u32,
    kv_len: u32,
}

impl Batch {
    #[inline(always)]
    unsafe fn lengths(&self, index: u32) -> Lengths {
        let kv_len = load_u32(self.kv_lens.add(index as usize));
        let (mut token, mut queries) = (index, 1);
        if !self.query_starts.is_null() {
            token = load_u32(self.query_starts.add(index as usize));
            queries = load_u32(self.query_starts.add(index as usize + 1)) - token;
        }
        Lengths { token, queries, kv_len }
    }

    /// Those of the sequence whose number is the lane's, or of the last: asked for ahead of [`Plan::new`].
    #[inline(always)]
    pub unsafe fn ahead(&self) -> Lengths {
        let lane = lane_id();
        self.lengths(if lane < self.sequences { lane } else { self.sequences - 1 })
    }

    #[inline(always)]
    fn sequence(&self, lengths: Lengths) -> Sequence {
        let Lengths { token, queries, kv_len } = lengths;
        let first_page = first_key(kv_len.saturating_sub(queries), self.window) / KEYS;
        let rows = queries * self.group;
        // A division takes about a hundred cycles.
        let row_blocks = if rows <= self.rows { u32::from(rows > 0) } else { rows.div_ceil(self.rows) };
        let pages = kv_len.div_ceil(KEYS).saturating_sub(first_page);
        Sequence { token, queries, kv_len, first_page, pages, row_blocks }
    }

    #[inline(always)]
    fn units(&self, sequence: &Sequence) -> u32 {
        self.kv_heads * sequence.row_blocks * sequence.item()
    }

    /// Units of the lane's sequences of 32 · BATCH from `first` on.
    #[inline(always)]
    unsafe fn several(&self, first: u32) -> [u32; BATCH] {
        let mut units = [0; BATCH];
        for i in 0..BATCH {
            let index = first + lane_id() * BATCH as u32 + i as u32;
            // Loads without a branch, so that their latencies overlap.
            let exists = index < self.sequences;
            let sequence = self.sequence(self.lengths(if exists { index } else { 0 }));
            units[i] = if exists { self.units(&sequence) } else { 0 };
        }
        units
    }
}

/// A place in the block's part of the batch. All lanes of a warp hold the same.
pub struct Plan {
    pub batch: Batch,
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
pub struct Share {
    /// Units of every block.
    pub each: u32,
    /// Blocks with one more.
    pub longer: u32,
}

impl Share {
    fn new(units: u32, blocks: u32) -> Self {
        Share { each: units / blocks, longer: units % blocks }
    }

    /// First unit of a block.
    pub fn start(self, block: u32) -> u32 {
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

/// Consecutive pages of one item.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Number of the sequence.
    pub sequence: u32,
    /// The first page, counted from the sequence's first, and the one after the last.
    pub pages: (u32, u32),
    pub part: Part,
}

/// Whose rows a segment has, and what becomes of them.
#[derive(Clone, Copy)]
pub struct Part {
    /// Row of the matrices that holds the sequence's first query.
    pub token: u32,
    /// Its queries.
    pub queries: u32,
    /// Tokens in its cache.
    pub kv_len: u32,
    /// The item's KV head.
    pub kv_head: u32,
    /// The item's row block.
    pub row_block: u32,
    /// Whether the item is this block's.
    pub owned: bool,
    /// If so, how many other blocks, the next ones, have parts of it.
    pub others: u32,
}

/// The block's number in the plan.
#[inline(always)]
pub fn block() -> u32 {
    grid_dim_x() - 1 - block_idx_x()
}

impl Plan {
    /// At the start of this block's part. All lanes of the warp.
    #[inline(always)]
    pub unsafe fn new(batch: Batch, ahead: Lengths) -> Self {
        let share = Share { each: 0, longer: 0 };
        let mut plan = Plan { batch, share, sequence: 0, before: 0, unit: 0, end: 0 };
        let mut own = batch.units(&batch.sequence(ahead));
        if batch.sequences == 1 {
            plan.divide(own);
        } else if batch.sequences <= LANES {
            if lane_id() >= batch.sequences {
                own = 0;
            }
            let until = sum_until(own);
            plan.divide(shuffle_u32(until, LANES - 1));
            // None: the part is empty.
            let lane = ballot(until > plan.unit).trailing_zeros();
            plan.sequence = lane;
            plan.before = shuffle_u32(until - own, lane % LANES);
        } else {
            plan.search();
        }
        plan
    }

    #[inline(always)]
    fn divide(&mut self, units: u32) {
        self.share = Share::new(units, grid_dim_x());
        self.unit = self.share.start(block());
        self.end = self.share.start(block() + 1);
    }

    /// For more sequences than lanes.
    #[inline(always)]
    unsafe fn search(&mut self) {
        let mut units = 0;
        let mut first = 0;
        while first < self.batch.sequences {
            for own in self.batch.several(first) {
                units += own;
            }
            first += LANES * BATCH as u32;
        }
        for mask in [16, 8, 4, 2, 1] {
            units += shuffle_xor_u32(units, mask);
        }
        self.divide(units);
        first = 0;
        while first < self.batch.sequences {
            let own = self.batch.several(first);
            let sum = own[0] + own[1] + own[2] + own[3];
            let until = sum_until(sum);
            let found = ballot(self.before + until > self.unit);
            if found != 0 {
                let lane = found.trailing_zeros();
                self.before += shuffle_u32(until - sum, lane);
                self.sequence = first + lane * BATCH as u32;
                // `next` goes on from there.
                return;
            }
            self.before += shuffle_u32(until, LANES - 1);
            first += LANES * BATCH as u32;
        }
        self.sequence = self.batch.sequences;
    }

    /// Writes the place and what a segment is part of to shared memory at `to`, [`PARKED_BYTES`] of the warp's own: the
    /// loop over keys needs their registers.
    #[inline(always)]
    pub unsafe fn park(&self, part: &Part, to: u32) {
        let Part { token, queries, kv_len, kv_head, row_block, owned, others } = *part;
        sync_warp();
        if lane_id() == 0 {
            shared::store_v4(to, [self.sequence, self.before, self.unit, self.end]);
            shared::store_v4(to + 16, [self.share.each, self.share.longer, token, queries]);
            shared::store_v4(to + 32, [kv_len, kv_head, row_block, others]);
            shared::store_u32(to + 48, u32::from(owned));
        }
        sync_warp();
    }

    /// Reads what [`Self::park`] wrote.
    #[inline(always)]
    pub unsafe fn resume(&mut self, from: u32) -> Part {
        [self.sequence, self.before, self.unit, self.end] = shared::load_v4(from);
        let [each, longer, token, queries] = shared::load_v4(from + 16);
        self.share = Share { each, longer };
        let [kv_len, kv_head, row_block, others] = shared::load_v4(from + 32);
        let owned = shared::load_u32(from + 48) != 0;
        Part { token, queries, kv_len, kv_head, row_block, owned, others }
    }

    /// The block's next segment.
    #[inline(always)]
    pub unsafe fn next(&mut self) -> Option<Segment> {
        while self.unit < self.end && self.sequence < self.batch.sequences {
            let sequence = self.batch.sequence(self.batch.lengths(self.sequence));
            let units = self.batch.units(&sequence);
            if self.unit >= self.before + units {
                self.before += units;
                self.sequence += 1;
                continue;
            }
            let length = sequence.item();
            let (item, start) = ((self.unit - self.before) / length, (self.unit - self.before) % length);
            let left = self.end - self.unit;
            let count = if length - start < left { length - start } else { left };
            let (kv_head, row_block) = match sequence.row_blocks {
                1 => (item, 0),
                blocks => (item / blocks, item % blocks),
            };
            let split = start == 0 && count < length;
            let others = if split { self.share.block(self.unit + length - 1) - block() } else { 0 };
            self.unit += count;
            let first = sequence.first_page + start;
            let Sequence { token, queries, kv_len, pages, .. } = sequence;
            return Some(Segment {
                sequence: self.sequence,
                pages: (first, if pages == 0 { first } else { first + count }),
                part: Part { token, queries, kv_len, kv_head, row_block, owned: start == 0, others },
            });
        }
        None
    }
}

/// Of the lanes up to this one.
#[inline(always)]
fn sum_until(own: u32) -> u32 {
    let mut until = own;
    for delta in [1, 2, 4, 8, 16] {
        let other = shuffle_up_u32(until, delta);
        if lane_id() >= delta {
            until += other;
        }
    }
    until
}

#[cfg(test)]
mod tests {
    use super::Share;

    #[test]
    fn every_unit_has_one_block() {
        for (units, blocks) in [(0, 4), (1, 4), (3, 4), (4, 4), (5, 4), (256, 132), (16384, 132), (131, 132), (1000, 7)]
        {
            let share = Share::new(units, blocks);
            assert_eq!((share.start(0), share.start(blocks)), (0, units));
            for unit in 0..units {
                let block = share.block(unit);
                assert!((share.start(block)..share.start(block + 1)).contains(&unit), "{unit} of {units}");
            }
        }
    }
}
