//! The warps of `decode` that compute: scores, softmax and sums of a quarter of every page.
use super::decode::{GROUP, KEYS, QUARTER, ROWS, WARPS, stage_bytes};
use super::decode_math::{ValidKeys, accumulate, load_queries, mask, scores};
use super::decode_merge::{Results, Workspace};
use super::fragment::{Lanes, MAX_DIM, Output, Queries, Running, rescale, soft_cap};
use super::plan::{PARKED_BYTES, Part, Plan, block};
use super::rows::{anew, first_key};
use crate::prim::{
    mbarrier, opaque, shared,
    thread::{barrier_sync, grid_dependency_wait},
    warp::{lane_id, sync_warp, warp_id},
};
use crate::tile::{DeepRing, Elem};

/// Queries and results.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub q: *const u16,
    pub q_stride: u32,
    pub out: *mut u16,
    pub out_stride: u32,
}

/// The rows of a tile in a segment.
#[derive(Clone, Copy)]
pub(super) struct TileRows {
    /// Packed row of the tile's first.
    first: u32,
    /// How many there are.
    pub count: u32,
    group: u32,
    kv_head: u32,
    /// Row of the matrices that holds the sequence's first query.
    token: u32,
    /// Position of the sequence's first query.
    prefix: u32,
    kv_len: u32,
}

impl TileRows {
    /// Element offset of row `row` of the tile in a matrix of [tokens, heads · D].
    #[inline(always)]
    pub fn offset<const D: u32>(&self, row: u32, stride: u32) -> usize {
        let row = self.first + row;
        // One query needs no division, which takes about a hundred cycles.
        let query = if row < self.group { 0 } else { row / self.group };
        let head = self.kv_head * self.group + row - query * self.group;
        (self.token + query) as usize * stride as usize + (head * D) as usize
    }

    /// Position of a row's query; rows that do not exist repeat the last one.
    #[inline(always)]
    fn position(&self, row: u32) -> u32 {
        let row = self.first + if row < self.count { row } else { self.count - 1 };
        let position = self.prefix + if row < self.group { 0 } else { row / self.group };
        if position < self.kv_len { position } else { self.kv_len - 1 }
    }
}

/// A warp of a row tile.
pub(super) struct Consumer<const D: u32> {
    pub ring: DeepRing,
    pub scratch: u32,
    pub scale_log2: f32,
    pub cap_inner: f32,
}

// Where the warp is: asked for each time, kept it costs the loop over keys its registers.
impl<const D: u32> Consumer<D> {
    /// The row tile.
    #[inline(always)]
    fn tile(&self) -> u32 {
        (opaque(warp_id() as i32) as u32 - 1) / WARPS
    }

    /// The quarter of every page.
    #[inline(always)]
    fn quarter(&self) -> u32 {
        (opaque(warp_id() as i32) as u32 - 1) % WARPS
    }

    /// The thread's number in its tile.
    #[inline(always)]
    fn thread(&self) -> u32 {
        self.quarter() * 32 + anew()
    }
}

impl<const D: u32> Consumer<D> {
    /// All segments of the block.
    #[inline(always)]
    pub unsafe fn run<E: Elem>(mut self, mut plan: Plan, matrix: Matrix, workspace: Workspace) {
        let Some(mut segment) = plan.next() else { return };
        grid_dependency_wait();
        let mut queries = load_queries::<D>(&self.rows(&plan, &segment.part), &matrix);
        loop {
            let parked = self.scratch + (self.tile() * WARPS + self.quarter()) * PARKED_BYTES;
            plan.park(&segment.part, parked);
            let rows = self.rows(&plan, &segment.part);
            let (output, running) = self.attend::<E>(segment.pages, &rows, plan.batch.window, &queries);
            let part = plan.resume(parked);
            let rows = self.rows(&plan, &part);
            let results = Results::<D> { scratch: self.scratch, tile: self.tile(), rows: plan.batch.rows };
            if rows.count > 0 {
                self.share(&results, &output, &running);
            }
            if part.others > 0 {
                // The block's last segment.
                let blocks = (block(), part.others);
                barrier_sync(1 + self.tile(), GROUP);
                results.collect::<E>(self.thread(), &rows, blocks, workspace, &matrix);
                barrier_sync(1 + self.tile(), GROUP);
                results.clear(self.thread(), &rows, blocks, workspace);
                return;
            }
            // The next segment's queries are on their way while this one's results merge.
            let next = plan.next();
            if let Some(next) = &next {
                queries = load_queries::<D>(&self.rows(&plan, &next.part), &matrix);
            }
            barrier_sync(1 + self.tile(), GROUP);
            if part.owned {
                results.store::<E>(self.thread(), &rows, &matrix);
            } else {
                results.leave(self.thread(), &rows, block(), workspace);
            }
            // All of the tile have read the results.
            barrier_sync(1 + self.tile(), GROUP);
            match next {
                Some(next) => segment = next,
                None => return,
            }
        }
    }

    #[inline(always)]
    fn rows(&self, plan: &Plan, part: &Part) -> TileRows {
        let batch = &plan.batch;
        let end = part.queries * batch.group;
        let block_end = (part.row_block + 1) * batch.rows;
        let end = if block_end < end { block_end } else { end };
        let first = part.row_block * batch.rows + self.tile() * ROWS;
        let left = end.saturating_sub(first);
        TileRows {
            first,
            count: if left < ROWS { left } else { ROWS },
            group: batch.group,
            kv_head: part.kv_head,
            token: part.token,
            prefix: part.kv_len.saturating_sub(part.queries),
            kv_len: part.kv_len,
        }
    }

    /// The warp's quarters of pages `pages.0 .. pages.1`.
    #[inline(always)]
    unsafe fn attend<E: Elem>(
        &mut self,
        pages: (u32, u32),
        rows: &TileRows,
        window: u32,
        queries: &Queries,
    ) -> (Output, Running) {
        let mut output: Output = [[0.0; 4]; MAX_DIM / 8];
        let mut running = Running::new();
        let lanes = Lanes::new();
        let row = lane_id() / 4;
        let (mut own, mut first_position, mut last_first_key) = ([0; 2], 0, 0);
        if rows.count > 0 && rows.kv_len > 0 {
            own = [rows.position(row), rows.position(row + 8)];
            first_position = rows.position(0);
            last_first_key = first_key(rows.position(ROWS - 1), window);
        }
        let quarter = self.quarter() * QUARTER;
        let (mut page, end) = pages;
        while page < end {
            let start = page * KEYS + quarter;
            let k = self.wait() + quarter * 128;
            let mut probabilities = [[0.0; 4]; 2];
            if rows.count > 0 {
                probabilities = scores::<E, D>(lanes, queries, k);
            }
            self.release();
            if rows.count > 0 {
                soft_cap(&mut probabilities, self.cap_inner);
                if start + QUARTER - 1 > first_position || start < last_first_key {
                    mask(&mut probabilities, start, own, window);
                }
                let factors = running.probabilities(&mut probabilities, self.scale_log2);
                rescale(&mut output[..D as usize / 8], factors);
            }
            let v = self.wait() + quarter * 128;
            if rows.count > 0 {
                let valid = ValidKeys::new(start, rows.kv_len);
                accumulate::<E, D>(lanes, &probabilities, v, valid, &mut output);
            }
            self.release();
            page += 1;
        }
        (output, running)
    }

    /// Waits for the ring's stage; its address.
    #[inline(always)]
    unsafe fn wait(&self) -> u32 {
        self.ring.wait_full();
        sync_warp();
        shared::base() + self.ring.stage() * stage_bytes(D)
    }

    /// The stage may be filled anew.
    #[inline(always)]
    unsafe fn release(&mut self) {
        sync_warp();
        if lane_id() == 0 {
            mbarrier::arrive(self.ring.empty());
        }
        self.ring.advance();
    }

    /// Writes the warp's result to shared memory.
    #[inline(always)]
    unsafe fn share(&self, results: &Results<D>, output: &Output, running: &Running) {
        let lane = anew();
        let (g, t) = (lane / 4, lane % 4);
        let sums = running.total();
        for half in 0..2 {
            let row = g + 8 * half as u32;
            // A block of fewer rows than a tile has no room for the others.
            if results.tile * ROWS + row < results.rows {
                let to = results.sums(self.quarter(), row) + t * 8;
                for n in 0..D / 8 {
                    let o = &output[n as usize];
                    let (low, high) = (o[2 * half].to_bits() as u64, o[2 * half + 1].to_bits() as u64);
                    shared::store_u64(to + n * 32, low | high << 32);
                }
                if t == 0 {
                    let to = results.state(self.quarter(), row);
                    shared::store_f32(to, running.max[half] * self.scale_log2);
                    shared::store_f32(to + 4, sums[half]);
                }
            }
        }
    }
}
