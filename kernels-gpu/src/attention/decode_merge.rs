//! How `decode` puts parts of an item together: of a block's warps in shared memory, of several blocks through the
//! workspace.
//!
//! A block leaves its unnormalised sums over V in f32, the rows' maxima (in units of log2) and sums of exponentials.
//! No flag says when they are there, each word does: the workspace is zero, what is left never is (-0 for 0), and who
//! reads repeats it until nothing is zero, then writes zeros. That is one trip through L2: with stores, a fence and a
//! counter, then loads by who comes last it was four.
use super::decode::{GROUP, HEADER, MOST_TILES, ROWS, WARPS, partial_len, row_bytes};
use super::decode_consume::{Matrix, TileRows};
use crate::prim::{
    math::{exp2, rcp},
    memory_relaxed::{load_v2_if, load_v4_if, store_v2, store_v4},
    memory_scalar, shared,
};
use crate::tile::Elem;

/// Parts that a thread loads at once, their latency being all there is to it: where few blocks share an item, and where
/// it is one of a few in the batch.
const FEW: usize = 4;
const MANY: usize = 16;

/// What blocks leave for each other.
#[derive(Clone, Copy)]
pub(super) struct Workspace {
    pub partial: *mut f32,
}

impl Workspace {
    /// The rows of tile `tile` of a block's part: their D sums, then 2 words each.
    #[inline(always)]
    unsafe fn part<const D: u32>(&self, block: u32, tile: u32) -> (*mut u32, *mut u32) {
        let sums = self.partial.add(((block * MOST_TILES + tile) * ROWS * (D + 2)) as usize);
        (sums.cast(), sums.add((ROWS * D) as usize).cast())
    }
}

/// The results of a row tile's warps in shared memory.
#[derive(Clone, Copy)]
pub(super) struct Results<const D: u32> {
    /// After the parked places.
    pub scratch: u32,
    pub tile: u32,
    /// Rows of a block.
    pub rows: u32,
}

impl<const D: u32> Results<D> {
    /// Address of a warp's result of a row: D floats.
    #[inline(always)]
    pub fn sums(&self, warp: u32, row: u32) -> u32 {
        self.scratch + HEADER + (warp * self.rows + self.tile * ROWS + row) * row_bytes(D)
    }

    /// Address of a warp's maximum and sum of a row.
    #[inline(always)]
    pub fn state(&self, warp: u32, row: u32) -> u32 {
        let sums = WARPS * self.rows * row_bytes(D);
        self.scratch + HEADER + sums + (warp * self.rows + self.tile * ROWS + row) * 8
    }

    /// Four columns of a row, merged over the warps in their order.
    #[inline(always)]
    unsafe fn merge(&self, row: u32, chunk: u32) -> Merged {
        let mut merged = Merged::new();
        let mut states = [[0.0; 2]; WARPS as usize];
        let mut values = [[0; 4]; WARPS as usize];
        let mut max = f32::NEG_INFINITY;
        for warp in 0..WARPS {
            let state = self.state(warp, row);
            states[warp as usize] = [shared::load_f32(state), shared::load_f32(state + 4)];
            values[warp as usize] = shared::load_v4(self.sums(warp, row) + chunk * 16);
            max = max.max(states[warp as usize][0]);
        }
        merged.raise(max);
        for warp in 0..WARPS as usize {
            merged.add(states[warp], values[warp]);
        }
        merged
    }

    /// Leaves the rows of a part of an item in the workspace, as `thread` of the tile's.
    #[inline(always)]
    pub unsafe fn leave(&self, thread: u32, rows: &TileRows, block: u32, workspace: Workspace) {
        let (sums, states) = workspace.part::<D>(block, self.tile);
        let mut index = thread;
        while index < rows.count * (D / 4) {
            let (row, chunk) = (index / (D / 4), index % (D / 4));
            let merged = self.merge(row, chunk);
            store_v4(sums.add((row * D + chunk * 4) as usize), merged.values.map(never_zero));
            if chunk == 0 {
                store_v2(states.add(2 * row as usize), [merged.max, merged.sum].map(never_zero));
            }
            index += GROUP;
        }
    }

    /// Stores the rows of an item that is the block's alone.
    #[inline(always)]
    pub unsafe fn store<E: Elem>(&self, thread: u32, rows: &TileRows, matrix: &Matrix) {
        let mut index = thread;
        while index < rows.count * (D / 4) {
            let (row, chunk) = (index / (D / 4), index % (D / 4));
            self.merge(row, chunk).store::<E, D>(rows, matrix, row, chunk);
            index += GROUP;
        }
    }

    /// Adds the parts of the `others` blocks after `block`, in their order, and stores the rows.
    #[inline(always)]
    pub unsafe fn collect<E: Elem>(
        &self,
        thread: u32,
        rows: &TileRows,
        (block, others): (u32, u32),
        workspace: Workspace,
        matrix: &Matrix,
    ) {
        let mut index = thread;
        while index < rows.count * (D / 4) {
            let (row, chunk) = (index / (D / 4), index % (D / 4));
            let place = Others::<D> { workspace, tile: self.tile, row, chunk, end: block + others };
            let merged = if others <= FEW as u32 {
                self.collect_chunk::<FEW>(&place, block + 1)
            } else {
                self.collect_chunk::<MANY>(&place, block + 1)
            };
            merged.store::<E, D>(rows, matrix, row, chunk);
            index += GROUP;
        }
    }

    #[inline(always)]
    unsafe fn collect_chunk<const BATCH: usize>(&self, others: &Others<D>, mut first: u32) -> Merged {
        // In flight while the warps' results merge.
        let mut parts = others.load::<BATCH>(first);
        let mut merged = self.merge(others.row, others.chunk);
        loop {
            while !parts.complete() {
                others.load_missing(first, &mut parts);
            }
            others.add(&parts, first, &mut merged);
            first += BATCH as u32;
            if first > others.end {
                return merged;
            }
            parts = others.load(first);
        }
    }

    /// After [`Self::collect`] by all threads: zeros for the maxima and sums that it read.
    #[inline(always)]
    pub unsafe fn clear(&self, thread: u32, rows: &TileRows, (block, others): (u32, u32), workspace: Workspace) {
        let mut index = thread;
        while index < ROWS * others {
            let (other, row) = (index / ROWS, index % ROWS);
            if row < rows.count {
                let (_, states) = workspace.part::<D>(block + 1 + other, self.tile);
                store_v2(states.add(2 * row as usize), [0; 2]);
            }
            index += GROUP;
        }
    }
}

/// The bits of a number, those of -0 for 0.
#[inline(always)]
fn never_zero(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits == 0 { 0x8000_0000 } else { bits }
}

/// Where a thread reads other blocks' parts of four columns of a row.
struct Others<const D: u32> {
    workspace: Workspace,
    tile: u32,
    row: u32,
    chunk: u32,
    /// The last block.
    end: u32,
}

/// What it finds there: words that are zero are not there yet.
struct Parts<const BATCH: usize> {
    states: [[u32; 2]; BATCH],
    values: [[u32; 4]; BATCH],
}

impl<const BATCH: usize> Parts<BATCH> {
    #[inline(always)]
    fn part_complete(&self, i: usize) -> bool {
        let [a, b] = self.states[i];
        let [c, d, e, f] = self.values[i];
        a.min(b).min(c.min(d)).min(e.min(f)) != 0
    }

    #[inline(always)]
    fn complete(&self) -> bool {
        let mut complete = true;
        for i in 0..BATCH {
            complete &= self.part_complete(i);
        }
        complete
    }
}

impl<const D: u32> Others<D> {
    /// The parts from block `first` on; ones for those past the end.
    #[inline(always)]
    unsafe fn load<const BATCH: usize>(&self, first: u32) -> Parts<BATCH> {
        let mut parts = Parts { states: [[1; 2]; BATCH], values: [[1; 4]; BATCH] };
        self.load_where(first, &mut parts, |i, _| first + i <= self.end);
        parts
    }

    /// Those again that are not complete.
    #[inline(always)]
    unsafe fn load_missing<const BATCH: usize>(&self, first: u32, parts: &mut Parts<BATCH>) {
        self.load_where(first, parts, |_, complete| !complete);
    }

    #[inline(always)]
    unsafe fn load_where<const BATCH: usize>(
        &self,
        first: u32,
        parts: &mut Parts<BATCH>,
        wanted: impl Fn(u32, bool) -> bool,
    ) {
        let (sums, states) = self.place(first);
        for i in 0..BATCH {
            let wanted = wanted(i as u32, parts.part_complete(i));
            // One base and constant offsets: an address each would take as many registers as the values.
            load_v4_if(wanted, sums.add(i * partial_len(D) as usize), &mut parts.values[i]);
            load_v2_if(wanted, states.add(i * partial_len(D) as usize), &mut parts.states[i]);
        }
    }

    /// Takes complete parts, and clears their place.
    #[inline(always)]
    unsafe fn add<const BATCH: usize>(&self, parts: &Parts<BATCH>, first: u32, merged: &mut Merged) {
        let mut max = f32::NEG_INFINITY;
        for i in 0..BATCH {
            if first + i as u32 <= self.end {
                max = max.max(f32::from_bits(parts.states[i][0]));
            }
        }
        merged.raise(max);
        let (sums, _) = self.place(first);
        for i in 0..BATCH {
            if first + i as u32 <= self.end {
                merged.add(parts.states[i].map(f32::from_bits), parts.values[i]);
                store_v4(sums.add(i * partial_len(D) as usize), [0; 4]);
            }
        }
    }

    /// Where a block leaves the columns, and the row's maximum and sum.
    #[inline(always)]
    unsafe fn place(&self, block: u32) -> (*mut u32, *mut u32) {
        let (sums, states) = self.workspace.part::<D>(block, self.tile);
        (sums.add((self.row * D + self.chunk * 4) as usize), states.add(2 * self.row as usize))
    }
}

/// Four columns of a row: sums over V, the row's maximum and sum of exponentials.
struct Merged {
    values: [f32; 4],
    max: f32,
    sum: f32,
}

impl Merged {
    #[inline(always)]
    fn new() -> Self {
        Merged { values: [0.0; 4], max: f32::NEG_INFINITY, sum: 0.0 }
    }

    /// Takes everything relative to the larger maximum from now on.
    #[inline(always)]
    fn raise(&mut self, max: f32) {
        let max = max.max(self.max);
        let factor = weight(self.max, max);
        self.max = max;
        self.sum *= factor;
        for value in &mut self.values {
            *value *= factor;
        }
    }

    /// Adds a part whose maximum is not above.
    #[inline(always)]
    fn add(&mut self, [max, sum]: [f32; 2], values: [u32; 4]) {
        let weight = weight(max, self.max);
        self.sum += weight * sum;
        for i in 0..4 {
            self.values[i] += weight * f32::from_bits(values[i]);
        }
    }

    #[inline(always)]
    unsafe fn store<E: Elem, const D: u32>(&self, rows: &TileRows, matrix: &Matrix, row: u32, chunk: u32) {
        // An empty cache: zeros.
        let inverse = if self.sum == 0.0 { 0.0 } else { rcp(self.sum) };
        let [a, b, c, d] = self.values.map(|x| x * inverse);
        let to = matrix.out.add(rows.offset::<D>(row, matrix.out_stride) + (chunk * 4) as usize);
        memory_scalar::store_v2(to.cast(), [E::pack(a, b), E::pack(c, d)]);
    }
}

/// 2^(from - to); nothing but masked keys weighs nothing (-inf - -inf would be NaN).
#[inline(always)]
fn weight(from: f32, to: f32) -> f32 {
    if from == f32::NEG_INFINITY { 0.0 } else { exp2(from - to) }
}
