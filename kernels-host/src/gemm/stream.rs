//! Launcher and cases of `kernels-gpu/src/gemm/stream.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::{Case, Kernel};
use crate::{Error, Launch, Stream, Target};
use kernels_gpu::gemm::stream as gpu;
use kernels_gpu::prim::{DevicePtr, Entry};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Most rows of a.
pub(super) const MAX_TOKENS: usize = 128;
/// Shared memory that leaves room for a second block on a multiprocessor: the next kernel's, which then fetches its
/// first weights while this one ends.
const HALF_SHARED: u32 = 113 << 10;
/// Shared memory that a block can have.
const ALL_SHARED: u32 = 227 << 10;
/// Blocks of K in flight from which on half of the shared memory is enough: 80 KiB of weights in tiles of 128 rows.
const ENOUGH_BLOCKS: u32 = 5;

/// How much slower a cut may seem than the best to be measured.
const PROMISING_PERCENT: usize = 160;

/// Where blocks run, one on a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Room {
    multiprocessors: usize,
    /// Clusters of four at once: fewer than a quarter, as they do not reach across the groups of 16 or 18 that
    /// multiprocessors come in.
    fours: usize,
}

impl Room {
    #[cfg(test)]
    pub(super) const H200: Room = Room { multiprocessors: 132, fours: 32 };

    /// Clusters of so many blocks that run at once.
    pub(super) fn clusters(self, blocks: u32) -> usize {
        match blocks {
            1 | 2 => (self.multiprocessors / blocks as usize).max(1),
            _ => self.fours.max(1),
        }
    }

    pub(super) fn of(stream: &Stream) -> Result<Room, Error> {
        let multiprocessors = stream.device().multiprocessors();
        let fours = stream.clusters_at_once(gpu::gemm_stream_t16_bf16, gpu::MAX_SPLIT, ALL_SHARED)?;
        Ok(Room { multiprocessors, fours })
    }
}

/// How a product is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Weight rows of a tile: a multiple of 8, of 16 for gated products.
    pub rows: u32,
    /// Blocks that share a tile's K, a cluster: 1, 2 or 4.
    pub split: u32,
    /// Blocks of 64 elements of K in a stage: 1, 2 or 4.
    pub depth: u32,
    /// Warpgroups that take a slab's stages in turn: 1, 2 or 4, at most 4 with all slabs of 64 rows.
    pub teams: u32,
    /// Most stages of the ring: fewer leave shared memory to the next kernel, which then fetches ahead.
    pub stages: u32,
}

impl Cut {
    /// A cut that every GPU with the kernel can do.
    pub const fn simple(rows: u32) -> Cut {
        Cut { rows, split: 1, depth: 1, teams: 1, stages: gpu::MAX_STAGES }
    }

    /// Every cut into tiles of `rows`.
    fn of(rows: u32) -> impl Iterator<Item = Cut> {
        const POWERS: [u32; 3] = [1, 2, 4];
        POWERS.into_iter().flat_map(move |split| {
            POWERS
                .into_iter()
                .flat_map(move |depth| POWERS.map(|teams| Cut { split, depth, teams, ..Cut::simple(rows) }))
        })
    }

    /// Consumer warpgroups that have something to do.
    fn warpgroups(self) -> u32 {
        self.rows.div_ceil(gpu::SLAB) * self.teams
    }

    /// Stages below which copies would not overlap products, if there is more to do: every team holds one.
    fn fewest_stages(self) -> u32 {
        (2 * self.teams).max(3)
    }

    /// With a ring that leaves half of the shared memory to another block, if that is deep enough.
    fn halved(self, shape: &Shape, room: Room) -> Option<Cut> {
        let ring = Ring::new(self, shape, room);
        let stages = ring.stages(self, HALF_SHARED);
        // A team multiplies one of them; the others are in flight.
        let enough = self.teams + ENOUGH_BLOCKS.div_ceil(self.depth);
        (stages >= enough.max(self.fewest_stages()).min(ring.most)).then_some(Cut { stages, ..self })
    }

    fn tiles(self, shape: &Shape) -> usize {
        shape.n.div_ceil(self.rows as usize)
    }

    /// Nanoseconds, about. A multiprocessor streams in 128 bytes in 4 ns, activations from L2 in half of that; a team
    /// takes at least 120 for a stage and 40 for every block of K. A tile's end costs half a microsecond and its sums,
    /// the cluster's meeting one more.
    fn time(self, shape: &Shape, room: Room) -> usize {
        let rounds = self.tiles(shape).div_ceil(room.clusters(self.split));
        let stages = stages(shape, self.depth).div_ceil(self.split) as usize;
        let (rows, tokens, depth) = (self.rows as usize, tokens(shape) as usize, self.depth as usize);
        let stage = (depth * (4 * rows + 2 * tokens)).max((120 + 40 * depth) / self.teams as usize);
        let meeting = if self.split > 1 { 1000 } else { 0 };
        rounds * (stages * stage + 500 + rows * tokens * self.teams as usize / 16) + meeting
    }

    /// Whether the kernel can do it at all.
    fn is_valid(self, shape: &Shape) -> bool {
        [self.split, self.depth, self.teams].iter().all(|count| matches!(count, 1 | 2 | 4))
            && self.rows.is_multiple_of(8)
            && (8..=gpu::most_rows(4)).contains(&self.rows)
            && self.warpgroups() <= gpu::MOST_WARPGROUPS
            && (self.depth == 1 || shape.k.is_multiple_of(gpu::TILE_K as usize) && shape.n.is_multiple_of(8))
    }

    /// Whether the kernel can do it there: where K is split a cluster has one tile a block, and the sums of a block
    /// that has several need room beside the stages.
    fn fits(self, shape: &Shape, room: Room) -> bool {
        self.is_valid(shape) && (self.split == 1 || self.tiles(shape) <= room.clusters(self.split)) && {
            let ring = Ring::new(self, shape, room);
            ring.stages(self, ALL_SHARED) >= self.fewest_stages().min(ring.most)
                && gpu::STAGES_AT + ring.sums + ring.mail <= ALL_SHARED
        }
    }

    /// [`Cut::fitting`], found once: it compares hundreds.
    fn remembered(shape: &Shape, gated: bool, most_split: u32, room: Room) -> Cut {
        static KNOWN: Mutex<BTreeMap<(Shape, bool, u32, Room), Cut>> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = (*shape, gated, most_split, room);
        *known.entry(key).or_insert_with(|| Cut::fitting(shape, gated, most_split, room))
    }

    /// The fastest cut by [`Cut::time`], of those that split K into at most `most_split` parts, be it among blocks or teams.
    fn fitting(shape: &Shape, gated: bool, most_split: u32, room: Room) -> Cut {
        let step = if gated { 16 } else { 8 };
        (step..=gpu::most_rows(4))
            .step_by(step as usize)
            .flat_map(Cut::of)
            .filter(|cut| cut.split <= most_split && cut.teams <= most_split && cut.fits(shape, room))
            .map(|cut| cut.halved(shape, room).unwrap_or(cut))
            .min_by_key(|cut| (cut.time(shape, room), cut.split))
            // Few rows always fit.
            .unwrap_or(Cut::simple(step))
    }
}

/// Cuts that may be the fastest for a shape: of every way to split, and of both sizes of a ring, the smallest
/// tiles that leave no multiprocessor another round, the next larger ones, and those that make one, two or more rounds
/// more; without those that [`Cut::time`] finds much slower.
pub(super) fn candidates(shape: &Shape, gated: bool, stream: &Stream) -> Result<Vec<Cut>, Error> {
    let room = Room::of(stream)?;
    let step = if gated { 16 } else { 8 };
    let mut cuts = Vec::new();
    for way in Cut::of(step) {
        let places = room.clusters(way.split);
        let fewest = shape.n.div_ceil(places * gpu::most_rows(4) as usize);
        let most = if way.split == 1 { fewest + if fewest == 1 { 2 } else { 4 } } else { 1 };
        for rounds in fewest..=most {
            let rows = shape.n.div_ceil(places * rounds).next_multiple_of(step as usize) as u32;
            for rows in [rows, rows + step, rows.next_multiple_of(gpu::SLAB)] {
                let cut = Cut { rows, ..way };
                if cut.fits(shape, room) {
                    let full = Cut { stages: Plan::new(cut, shape, room).stages, ..cut };
                    cuts.extend(cut.halved(shape, room).filter(|half| half != &full && !cuts.contains(half)));
                    cuts.extend(Some(full).filter(|full| !cuts.contains(full)));
                }
            }
        }
    }
    let best = cuts.iter().map(|cut| cut.time(shape, room)).min().unwrap_or(0);
    cuts.retain(|cut| cut.time(shape, room) <= best * PROMISING_PERCENT / 100);
    Ok(cuts)
}

/// Stages' worth of K.
fn stages(shape: &Shape, depth: u32) -> u32 {
    shape.k.div_ceil((gpu::TILE_K * depth) as usize) as u32
}

/// Rows of a in a stage.
fn tokens(shape: &Shape) -> u32 {
    shape.m.next_multiple_of(8) as u32
}

/// Columns of the matrix instruction.
fn columns(shape: &Shape) -> u32 {
    shape.m.next_power_of_two().max(16) as u32
}

/// What determines a ring's stages.
struct Ring {
    /// Bytes of a stage.
    stage: u32,
    /// Bytes that the last slab and the last token tile read behind the last stage.
    slack: u32,
    /// Bytes of the sums, and of those from other blocks.
    sums: u32,
    mail: u32,
    /// Whether blocks have several tiles: then the sums lie beside the stages.
    persistent: bool,
    /// Stages that a block has a use for.
    most: u32,
}

impl Ring {
    fn new(cut: Cut, shape: &Shape, room: Room) -> Ring {
        let tokens = tokens(shape);
        let slab = (cut.rows.next_multiple_of(gpu::SLAB) - cut.rows).saturating_sub(tokens) * cut.depth;
        let persistent = cut.tiles(shape) > room.clusters(cut.split);
        // A tile's steps are all that a block of one tile can use.
        let steps = if persistent { u32::MAX } else { stages(shape, cut.depth).div_ceil(cut.split) };
        Ring {
            stage: gpu::stage_bytes(cut.rows, tokens, cut.depth),
            slack: slab.max(columns(shape) - tokens) * gpu::ROW_BYTES,
            sums: gpu::sums_bytes(cut.rows, tokens) * cut.teams,
            mail: gpu::mail_bytes(cut.rows, tokens, cut.split, cut.teams),
            persistent,
            most: steps,
        }
    }

    /// Stages that so much shared memory has room for.
    fn stages(&self, cut: Cut, budget: u32) -> u32 {
        let beside = if self.persistent { self.sums } else { 0 };
        let room = budget.saturating_sub(gpu::STAGES_AT + self.slack + beside) / self.stage;
        let stages = cut.stages.min(gpu::MAX_STAGES).min(room);
        // Those that are used again belong to one team.
        if stages < self.most { stages / cut.teams * cut.teams } else { self.most }
    }
}

/// What a [`Cut`] makes of a block.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Whether the block has four consumer warpgroups instead of two.
    wide: bool,
    stages: u32,
    /// Where the sums start in shared memory, and those from other blocks.
    sums: u32,
    mail: u32,
    shared: u32,
    blocks: usize,
}

impl Plan {
    fn new(cut: Cut, shape: &Shape, room: Room) -> Plan {
        let ring = Ring::new(cut, shape, room);
        let stages = ring.stages(cut, ALL_SHARED);
        let end = gpu::STAGES_AT + stages * ring.stage;
        let sums = if ring.persistent { end } else { gpu::STAGES_AT };
        let end = (end + ring.slack).max(sums + ring.sums);
        // Beside the ring, where nobody has to be waited for, if that costs no stage.
        let mail = if end + ring.mail <= ALL_SHARED { end } else { sums + ring.sums };
        let clusters = cut.tiles(shape).min(room.clusters(cut.split));
        Plan {
            wide: cut.warpgroups() > 2,
            stages,
            sums,
            mail,
            shared: end.max(mail + ring.mail),
            blocks: clusters * cut.split as usize,
        }
    }
}

/// Whether the kernel can do it: TMA and `wgmma` are Hopper's, and a tensor map of nothing is an error.
pub(super) fn supports(shape: &Shape, cut: Option<Cut>, target: Target) -> bool {
    let fits = cut.is_none_or(|cut| Cut::simple(cut.rows).is_valid(shape));
    target == Target::Sm90a && (1..=MAX_TOKENS).contains(&shape.m) && shape.k > 0 && fits
}

/// Queues the kernel; `gemm` has been checked to have `shape`, which is not empty.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, cut: Option<Cut>, stream: &Stream) -> Result<(), Error> {
    let room = Room::of(stream)?;
    let gated = gemm.activation.is_gated();
    let cut = match cut {
        // Tiles of gated products are whole groups of gate and up rows.
        Some(cut) if gated && !cut.rows.is_multiple_of(16) => Cut::simple(cut.rows.next_multiple_of(16)),
        // A forced cut that the shape or the GPU cannot have: its tiles at least.
        Some(cut) if !cut.fits(shape, room) => Cut::simple(cut.rows),
        Some(cut) => cut,
        None => Cut::remembered(shape, gated, if stream.is_batch_invariant() { 1 } else { gpu::MAX_SPLIT }, room),
    };
    let plan = Plan::new(cut, shape, room);
    let args = gpu::GemmStream {
        a: stream.tensor_map_3d(&gemm.a, tokens(shape), cut.depth)?,
        w: stream.tensor_map_4d(&gemm.w, cut.rows / 8, cut.depth)?,
        bias: gemm.bias.as_ref().map_or(DevicePtr::default(), |bias| bias.ptr()),
        out: gemm.out.ptr(),
        out_stride: gemm.out.stride() as u32,
        m: shape.m as u32,
        n: shape.n as u32,
        k: shape.k as u32,
        kind: entry_index(gemm) as u32 / 2,
        activation: gemm.activation.code(),
        accumulate: u32::from(gemm.accumulate),
        tiles: cut.tiles(shape) as u32,
        rows: cut.rows,
        tokens: tokens(shape),
        stages: plan.stages,
        split: cut.split,
        sums: plan.sums,
        mail: plan.mail,
        depth: cut.depth,
        teams: cut.teams,
        column_step: if shape.k.is_multiple_of(gpu::TILE_K as usize) { 0 } else { gpu::TILE_K },
        grouped: u32::from(shape.n.is_multiple_of(8)),
    };
    let launch = Launch::grid(plan.blocks).shared(plan.shared).cluster(cut.split).dependent();
    let entry = entry(columns(shape), plan.wide, entry_index(gemm) % 2);
    // SAFETY: TMA stays inside of the views that the maps describe; the epilogue stores to rows below m and columns
    // below out's width, and reads bias below n, as `Gemm::check` bound them. Shared memory holds what `Plan` counts.
    unsafe { stream.launch(entry, launch, &args) }
}

/// The entry for `columns` tokens; `f16` is 0 or 1.
fn entry(columns: u32, wide: bool, f16: usize) -> Entry<gpu::GemmStream> {
    let entries = match (columns, wide) {
        (16, false) => [gpu::gemm_stream_t16_bf16, gpu::gemm_stream_t16_f16],
        (16, true) => [gpu::gemm_stream_t16_wide_bf16, gpu::gemm_stream_t16_wide_f16],
        (32, false) => [gpu::gemm_stream_t32_bf16, gpu::gemm_stream_t32_f16],
        (32, true) => [gpu::gemm_stream_t32_wide_bf16, gpu::gemm_stream_t32_wide_f16],
        (64, false) => [gpu::gemm_stream_t64_bf16, gpu::gemm_stream_t64_f16],
        (64, true) => [gpu::gemm_stream_t64_wide_bf16, gpu::gemm_stream_t64_wide_f16],
        (_, false) => [gpu::gemm_stream_t128_bf16, gpu::gemm_stream_t128_f16],
        _ => [gpu::gemm_stream_t128_wide_bf16, gpu::gemm_stream_t128_wide_f16],
    };
    entries[f16]
}

/// Tests and benches that force this kernel, also with cuts that no small shape would be given.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/stream",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let fitting = Some(Path::Stream(None));
            let mut pinned: Vec<Box<dyn Case>> = cases::real(fitting, &[8, 16, 32, 64, 128]);
            pinned.extend(cases::head(fitting, &[1, 32]));
            pinned.extend(cases::awkward(fitting, &[1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 127, 128]));
            for cut in CUTS {
                let path = Some(Path::Stream(Some(cut)));
                pinned.extend(cases::striped(path, cut.rows as usize, &[1, 16, 31, 57, 128]));
            }
            // No small problem is given the wide blocks.
            let wide = CUTS[5];
            pinned.extend(cases::both_types(Some(Path::Stream(Some(wide))), wide.rows as usize, &[16, 32, 64, 128]));
            pinned
        },
        #[cfg(feature = "proptest")]
        random: || cases::random(Some(Path::Stream(None)), MAX_TOKENS),
    }
}

/// Cuts of the tests: one slab, two, three, four; each split, depth and number of teams.
const CUTS: [Cut; 11] = {
    const fn cut(rows: u32, split: u32, depth: u32, teams: u32) -> Cut {
        Cut { split, depth, teams, ..Cut::simple(rows) }
    }
    [
        cut(16, 1, 1, 1),
        cut(64, 1, 2, 1),
        cut(112, 1, 4, 1),
        cut(64, 2, 1, 1),
        cut(128, 4, 2, 1),
        cut(208, 2, 1, 1),
        cut(256, 4, 1, 1),
        cut(96, 2, 2, 1),
        cut(32, 1, 1, 2),
        cut(48, 2, 2, 4),
        cut(112, 1, 2, 2),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Room = Room::H200;
    const SHAPES: [(usize, usize, bool); 10] = [
        (6144, 4096, false),
        (4096, 4096, false),
        (28672, 4096, true),
        (4096, 14336, false),
        (128_256, 4096, false),
        (1, 8, false),
        (37, 2048, false),
        (1024, 8192, false),
        (272, 576, true),
        (1_000_000, 64, false),
    ];

    #[test]
    fn plans_fit_the_shared_memory() {
        // Whether the sums from other blocks come in where the ring is: both ways are tested.
        let mut in_ring = [false; 2];
        // Its ring could have 63 stages, one of which another team would get each time.
        let many = Cut { teams: 2, ..Cut::simple(8) };
        for (n, k, gated) in SHAPES {
            for m in 1..=MAX_TOKENS {
                let shape = Shape { m, n, k };
                let fitting = Cut::fitting(&shape, gated, gpu::MAX_SPLIT, H200);
                for cut in CUTS.into_iter().filter(|cut| cut.fits(&shape, H200)).chain([fitting, many]) {
                    let plan = Plan::new(cut, &shape, H200);
                    assert!(plan.stages >= 1 && plan.shared <= ALL_SHARED, "{shape:?} {cut:?} {plan:?}");
                    // A buffer that is used again is always the same team's.
                    let steps = stages(&shape, cut.depth).div_ceil(cut.split);
                    let once = cut.tiles(&shape) <= H200.clusters(cut.split) && plan.stages >= steps;
                    assert!(once || plan.stages.is_multiple_of(cut.teams), "{shape:?} {cut:?} {plan:?}");
                    assert!(cut != fitting || !gated || cut.rows % 16 == 0, "{shape:?} {cut:?}");
                    let tokens = tokens(&shape);
                    let stage = gpu::stage_bytes(cut.rows, tokens, cut.depth);
                    let last = gpu::STAGES_AT + (plan.stages - 1) * stage;
                    if cut.split > 1 && CUTS.contains(&cut) {
                        in_ring[usize::from(plan.mail < last + stage)] = true;
                    }
                    let (blocks, row) = (cut.depth - 1, gpu::ROW_BYTES);
                    let slab_rows = cut.depth * cut.rows.next_multiple_of(gpu::SLAB);
                    assert!(last + slab_rows * row <= plan.shared, "{shape:?} {cut:?} {plan:?}");
                    let token_rows = cut.depth * cut.rows + blocks * tokens + columns(&shape);
                    assert!(last + token_rows * row <= plan.shared, "{shape:?} {cut:?} {plan:?}");
                }
            }
        }
        assert_eq!(in_ring, [true; 2]);
    }

    #[test]
    fn llamas_products_fill_an_h200_in_one_round() {
        for (n, k, gated) in &SHAPES[..4] {
            for m in [8, 16, 32, 64, 128] {
                let shape = Shape { m, n: *n, k: *k };
                let cut = Cut::fitting(&shape, *gated, gpu::MAX_SPLIT, H200);
                let blocks = Plan::new(cut, &shape, H200).blocks;
                assert!((120..=132).contains(&blocks), "m = {m}, n = {n}: {cut:?}");
                assert!(cut.tiles(&shape) <= H200.clusters(cut.split), "m = {m}, n = {n}: {cut:?}");
            }
        }
    }
}
