//! Launcher and cases of `kernels-gpu/src/attention/decode.rs`.
use super::testing::{Cache, Problem, Rows, Scores};
use super::{Geometry, HEAD_DIMS, PagedKv, reference};
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Work};
use crate::{Buffer, Check, DType, Device, Error, Launch, Stream, Target, View, ViewMut};
use kernels_gpu::attention::decode as gpu;
use kernels_gpu::prim::DevicePtr;
use kernels_gpu::tile::kv::PAGE;

/// Attention of a few queries per sequence: one that decodes, or up to eight or so that verify a draft. The last query
/// of a sequence sits at position `kv_len - 1`. A sequence with an empty cache gets zeros.
pub struct DecodeAttention<'a> {
    /// [tokens, heads · head_dim], bf16 or f16; may be a column slice of the qkv matrix.
    pub q: View<'a>,
    /// Keys and values, this step's included. The kernel starts reading lengths, tables and the pages that hold none of
    /// this step's tokens before the launch right before has ended, so that launch must not write those.
    pub kv: PagedKv<'a>,
    /// Where each sequence's queries start in `q`, and where the last one's end: u32 [1, sequences + 1], ascending. None:
    /// one query per sequence, in order.
    pub query_starts: Option<View<'a>>,
    /// Query heads.
    pub heads: usize,
    /// KV heads; query head h reads KV head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// One of [`HEAD_DIMS`](super::HEAD_DIMS).
    pub head_dim: usize,
    /// Multiplies q·k before the softmax: positive, as a rule 1/√head_dim.
    pub scale: f32,
    /// A query sees the last `window` keys up to its own only.
    pub window: Option<usize>,
    /// As in [`PrefillAttention`](super::PrefillAttention).
    pub softcap: Option<f32>,
    /// Most queries of any sequence (an upper bound will do): decides how many rows share the keys that are read.
    pub max_query: usize,
    /// An upper bound of `kv_lens`: decides how many blocks are launched. Who computes what is planned on the device.
    pub max_kv: usize,
    /// Results of parts of contexts: f32 [1, at least [`DecodeAttention::workspace_len`]], all zeros before the first
    /// launch. Every launch leaves it fit for the next; launches of one stream may share it.
    pub workspace: ViewMut<'a>,
    /// [tokens, heads · head_dim].
    pub out: ViewMut<'a>,
}

/// Most blocks of a multiprocessor.
const MOST_BLOCKS: usize = 2;
/// How much more than its share a block may get for the blocks' shares to be whole items, or parts of one that are alike.
const MOST_PERCENT: usize = 106;
/// Rows of a tile.
const ROWS: usize = gpu::ROWS as usize;

impl DecodeAttention<'_> {
    /// Floats of workspace that suffice for any batch.
    pub fn workspace_len(device: &Device, head_dim: usize) -> usize {
        let blocks = device.multiprocessors();
        MOST_BLOCKS * blocks * gpu::partial_len(head_dim as u32) as usize
    }

    /// Queues the kernel.
    pub fn launch(mut self, stream: &Stream) -> Result<(), Error> {
        let Self { heads, kv_heads, head_dim, scale, window, softcap, .. } = self;
        let geometry = Geometry { heads, kv_heads, head_dim, scale, window, softcap };
        let mut check = Check::new("decode_attention");
        geometry.check(&mut check, &self.q, &self.kv, &self.out.as_view())?;
        check.typed("workspace", &self.workspace.as_view(), DType::F32, ["1", "workspace"])?;
        let sequences = check.dim("sequences");
        match &self.query_starts {
            None => check.bind("q", "sequences", self.q.rows())?,
            Some(starts) => {
                check.typed("query_starts", starts, DType::U32, ["1", "sequences + 1"])?;
                check.require(starts.cols() == sequences + 1, || {
                    format!("query_starts has {} entries, {sequences} sequences need {}", starts.cols(), sequences + 1)
                })?;
            }
        }
        let needed = Self::workspace_len(stream.device(), head_dim);
        check.require(self.workspace.cols() >= needed, || {
            format!("workspace has {} floats, {needed} are needed: see workspace_len", self.workspace.cols())
        })?;
        let Some(target) = stream.device().target() else {
            self.reference(&geometry, sequences);
            return Ok(());
        };
        self.launch_gpu(stream, target, &check, &geometry)
    }

    fn reference(&mut self, geometry: &Geometry, sequences: usize) {
        let queries: Vec<_> = match &self.query_starts {
            None => (0..sequences).map(|sequence| sequence..sequence + 1).collect(),
            Some(starts) => starts.row::<u32>(0).windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect(),
        };
        for (queries, &kv_len) in queries.iter().zip(self.kv.kv_lens.row::<u32>(0)) {
            for row in queries.clone().filter(|_| kv_len == 0) {
                self.out.row_mut::<u16>(row).fill(0);
            }
        }
        reference::attention(geometry, &self.q, &self.kv, &queries, &mut self.out);
    }

    fn launch_gpu(self, stream: &Stream, target: Target, check: &Check, geometry: &Geometry) -> Result<(), Error> {
        let Geometry { kv_heads, head_dim, window, .. } = *geometry;
        let (sequences, group) = (self.kv.block_tables.rows(), geometry.group());
        let rows = (self.max_query * group).max(1);
        let block = Block::new(target, head_dim, rows);
        // The window of the first of q queries begins q - 1 keys earlier and can touch one page more.
        let seen = window.map_or(usize::MAX, |window| window.saturating_add(self.max_query).div_ceil(PAGE) + 1);
        let pages = self.max_kv.div_ceil(PAGE).min(seen).max(1);
        let units = sequences * kv_heads * rows.div_ceil(block.rows) * pages;
        check.require(u32::try_from(units).is_ok(), || format!("{units} pages and heads overflow 32 bits"))?;
        let blocks = stream.device().multiprocessors();
        let (block, grid) = block.grid(target, head_dim, blocks, units, pages);
        let stages = block.stages.min(2 * units.div_ceil(grid.max(1))).max(2);
        let units_each = units / sequences.max(1);
        let workspace = self.workspace.ptr();
        check.require(workspace.0.is_multiple_of(16), || "workspace must start at a multiple of 16 bytes".into())?;
        let entry = match (self.q.dtype(), head_dim) {
            (DType::F16, 64) => gpu::decode_attention_f16_64,
            (DType::F16, 96) => gpu::decode_attention_f16_96,
            (DType::F16, 128) => gpu::decode_attention_f16_128,
            (DType::F16, _) => gpu::decode_attention_f16_256,
            (_, 64) => gpu::decode_attention_bf16_64,
            (_, 96) => gpu::decode_attention_bf16_96,
            (_, 128) => gpu::decode_attention_bf16_128,
            _ => gpu::decode_attention_bf16_256,
        };
        let (scale_log2, cap_inner) = geometry.device_scale();
        let args = gpu::Decode {
            q: self.q.ptr(),
            k: self.kv.k.ptr(),
            v: self.kv.v.ptr(),
            block_tables: self.kv.block_tables.ptr(),
            kv_lens: self.kv.kv_lens.ptr(),
            query_starts: self.query_starts.map_or(DevicePtr(0), |starts| starts.ptr()),
            partial: workspace,
            out: self.out.ptr(),
            q_stride: self.q.stride() as u32,
            out_stride: self.out.stride() as u32,
            table_stride: self.kv.block_tables.stride() as u32,
            sequences: sequences as u32,
            kv_heads: kv_heads as u32,
            group: group as u32,
            rows: block.rows as u32,
            stages: stages as u32,
            scale_log2,
            window: geometry.device_window(),
            cap_inner,
            expected_pages: pages.min(self.kv.block_tables.cols()) as u32,
            expected_units: units_each as u32,
            expected_page: 1.0 / pages as f32,
            expected_unit: 1.0 / units_each.max(1) as f32,
            expected_each: (units / grid.max(1)) as u32,
            expected_longer: (units % grid.max(1)) as u32,
        };
        let launch = Launch::grid(grid)
            .shared(gpu::shared_bytes(head_dim as u32, stages as u32, block.rows as u32))
            .threads(gpu::threads(block.rows.div_ceil(ROWS) as u32))
            .dependent();
        // SAFETY: blocks touch rows query_starts[s] .. query_starts[s + 1] of q and out and the pages that the tables
        // name for kv_lens[s] tokens, which is what the fields ask of the caller; the workspace was checked to hold
        // what all blocks leave.
        unsafe { stream.launch(entry, launch, &args) }
    }
}

/// What a block of the kernel takes on.
#[derive(Clone, Copy)]
struct Block {
    /// Rows that share the keys: whole tiles, or less than one.
    rows: usize,
    /// Most stages of the ring.
    stages: usize,
}

impl Block {
    /// For up to `rows` rows per KV head.
    fn new(target: Target, head_dim: usize, rows: usize) -> Self {
        // What a block may have on an H200, and on the smallest of the others (sm_86).
        let shared = if target == Target::Sm90a { 227 * 1024 } else { 99 * 1024 };
        let dim = head_dim as u32;
        // In flight: Little's law asks for 25 KiB per multiprocessor of an H200, and more covers the end of a segment.
        let most = 192 * 1024 / gpu::stage_bytes(dim);
        let mut rows = rows.min(gpu::most_tiles(dim) as usize * ROWS);
        loop {
            let fits = |stages: &u32| gpu::shared_bytes(dim, *stages, rows as u32) <= shared;
            match (2..=most).rev().find(fits) {
                Some(stages) => return Block { rows, stages: stages as usize },
                None => rows = if rows > ROWS { ROWS } else { rows / 2 },
            }
        }
    }
}

impl Block {
    /// How many blocks compute `units` pages on so many multiprocessors, and the block, which may have to share one.
    ///
    /// Two blocks compute for a multiprocessor while it waits: 32×512 20.0 µs instead of 23.6, 128×2k 243.8 instead of
    /// 246.7. With few pages each, the parts that they leave for each other cost more: 1×2k 8.8 µs instead of 7.4.
    fn grid(
        self,
        target: Target,
        head_dim: usize,
        multiprocessors: usize,
        units: usize,
        pages: usize,
    ) -> (Self, usize) {
        // Half of what a multiprocessor has, less what hardware takes of it for each block.
        let (dim, half) = (head_dim as u32, 113 * 1024);
        let stages = self.stages.min(96 * 1024 / gpu::stage_bytes(dim) as usize);
        let fits = gpu::shared_bytes(dim, stages as u32, self.rows as u32) <= half;
        // Registers for two blocks of one tile are there up to head_dim 128.
        let two = target == Target::Sm90a && fits && self.rows <= ROWS && head_dim <= 128;
        let (block, blocks) = match two && units >= 12 * multiprocessors {
            true => (Block { stages, ..self }, MOST_BLOCKS * multiprocessors),
            false => (self, multiprocessors),
        };
        let each = units.div_ceil(blocks).max(1);
        // Where all contexts are as long as they can be: whole items, or parts of one that are alike.
        let whole = match pages / each {
            0 => Some(each.next_multiple_of(pages)),
            parts => pages.is_multiple_of(parts).then_some(pages / parts),
        };
        if let Some(whole) = whole.filter(|whole| 100 * whole <= MOST_PERCENT * each) {
            return (block, units.div_ceil(whole));
        }
        // With few pages, as few blocks as are done with them in the same time, for fewer parts.
        (block, if each <= 8 { units.div_ceil(each) } else { blocks })
    }
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "attention/decode",
        entries: gpu::ENTRIES.to_vec(),
        pinned,
        #[cfg(feature = "proptest")]
        random: super::random::decode,
    }
}

fn pinned() -> Vec<Box<dyn Case>> {
    let base = Problem::new(DType::Bf16, 32, 8, 128);
    let decode = |problem: &Problem, lens: &[usize]| {
        problem.clone().sequences(&lens.iter().map(|&kv_len| (1, kv_len)).collect::<Vec<_>>())
    };
    let bench = Problem { bench: true, ..base.clone() };
    let mut cases: Vec<Problem> = Vec::new();
    for (batch, contexts) in
        [(1, &[512, 2048, 8192, 32768][..]), (8, &[512, 2048, 8192]), (32, &[512, 2048]), (64, &[2048]), (128, &[4096])]
    {
        cases.extend(contexts.iter().map(|&kv_len| decode(&bench, &vec![kv_len; batch])));
    }
    // A batch of mixed lengths: 2.2 thousand tokens on average. And the verification of drafts of 3 and of 7.
    cases.push(decode(&bench, &[100, 500, 900, 1300, 1700, 2100, 3000, 8000].repeat(4)));
    cases.extend([4, 8].map(|queries| bench.clone().sequences(&[(queries, 2048); 8])));
    cases.push(decode(
        &Problem { softcap: Some(50.0), bench: true, ..Problem::new(DType::Bf16, 16, 8, 256) },
        &[2048; 8],
    ));
    for dtype in [DType::Bf16, DType::F16] {
        for head_dim in HEAD_DIMS {
            let small = Problem::new(dtype, 4, 2, head_dim);
            cases.push(decode(&small, &[1, 700, 64, 0, 129, 33, 65]));
            // What does not hang on the dimension is tried with two.
            let usual = [64, 128].contains(&head_dim);
            if usual {
                cases.extend([1, 15, 16, 17, 63, 64, 65, 1100, 5000].map(|kv_len| decode(&small, &[kv_len])));
                cases.push(decode(&small, &[300; 80]));
                // More sequences than a warp plans at once.
                cases.push(decode(&small, &[70, 1, 200, 0, 129].repeat(40)));
            }
            for &window in if usual { &[1, 16, 64, 100, 5000][..] } else { &[70] } {
                cases.push(decode(&Problem { window: Some(window), ..small.clone() }, &[1000, 1, 64, 65, 130]));
            }
            cases.push(decode(&Problem { scores: Scores::Equal, ..small.clone() }, &[500, 64]));
            cases.push(decode(&Problem { scores: Scores::Large, ..small.clone() }, &[700, 90]));
            cases.push(decode(&Problem { softcap: Some(50.0), ..small.clone() }, &[700, 90]));
            // Drafts: mixed numbers of queries, over page ends, whole contexts, none; two row tiles and several blocks.
            let mixed = [(3, 700), (8, 64), (1, 129), (5, 5), (0, 40), (8, 131), (2, 0), (4, 66)];
            cases.push(small.clone().sequences(&mixed));
            cases.push(Problem { window: Some(70), ..small.clone() }.sequences(&mixed));
            cases.push(Problem { heads: 16, ..small.clone() }.sequences(&mixed));
            cases.push(Problem { softcap: Some(8.0), scores: Scores::Large, ..small }.sequences(&mixed));
        }
        for (heads, kv_heads) in [(3, 3), (8, 2), (16, 2), (7, 1), (16, 1), (17, 1), (71, 1), (128, 2)] {
            cases.push(decode(&Problem::new(dtype, heads, kv_heads, 64), &[300, 90]));
        }
        cases.push(decode(&Problem::new(dtype, 14, 2, 128), &[900, 20]));
        // Whose lanes 1 to 31 poll for the next page, on sm_80, at a place before that where lane 0 gives the last one back.
        cases.push(Problem { softcap: Some(46.6), ..Problem::new(dtype, 22, 2, 128) }.sequences(&[(8, 648), (2, 0)]));
    }
    cases.into_iter().map(|problem| Box::new(Decode(problem)) as Box<dyn Case>).collect()
}

/// A problem for this kernel.
#[derive(Debug)]
pub(super) struct Decode(pub Problem);

impl Case for Decode {
    fn id(&self) -> String {
        self.0.id("decode")
    }

    fn work(&self) -> Work {
        self.0.work()
    }

    fn bench(&self) -> bool {
        self.0.bench
    }

    fn checked_on_cpu(&self) -> bool {
        self.0.work().bytes < 100_000_000
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let problem = self.0.clone();
        let mut cache = Cache::new(&problem, stream, seed)?;
        let rows = Rows::new(&problem, stream, cache.rng())?;
        // Graphs bound the length from above: sometimes far above.
        let slack = if problem.bench { 0 } else { cache.rng().below(3) * 700 };
        let max_kv = problem.sequences.iter().map(|&(_, kv_len)| kv_len).max().unwrap_or(0) + slack;
        let len = DecodeAttention::workspace_len(stream.device(), problem.head_dim);
        let mut workspace = Buffer::new(stream.device(), DType::F32, len)?;
        stream.fill(workspace.view_mut(), 0)?;
        Ok(Box::new(Data { problem, cache, rows, max_kv, workspace }))
    }
}

struct Data {
    problem: Problem,
    cache: Cache,
    rows: Rows,
    max_kv: usize,
    workspace: Buffer,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let (q, starts, out) = self.rows.views();
        let mut queries = self.problem.sequences.iter().map(|&(queries, _)| queries);
        let max_query = queries.clone().max().unwrap_or(0);
        DecodeAttention {
            q,
            kv: self.cache.paged(),
            query_starts: queries.any(|queries| queries != 1).then_some(starts),
            max_query,
            heads: self.problem.heads,
            kv_heads: self.problem.kv_heads,
            head_dim: self.problem.head_dim,
            scale: self.problem.scale(),
            window: self.problem.window,
            softcap: self.problem.softcap,
            max_kv: self.max_kv,
            workspace: self.workspace.view_mut(),
            out,
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.rows.reset(stream)?;
        self.launch(stream)?;
        Ok(vec![self.rows.output(stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        // Twice: a launch must leave the workspace as it wants to find it.
        self.launch(stream)?;
        self.rows.reset(stream)?;
        self.launch(stream)?;
        self.rows.compare(stream, &self.problem, &self.cache, Some(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::Block;
    use crate::Target;

    #[test]
    fn blocks_fit_in_shared_memory() {
        let block = |target, head_dim, rows| {
            let block = Block::new(target, head_dim, rows);
            (block.rows, block.stages)
        };
        assert_eq!(block(Target::Sm90a, 128, 4), (4, 12));
        assert_eq!(block(Target::Sm90a, 128, 64), (32, 9));
        assert_eq!(block(Target::Sm90a, 64, 1), (1, 24));
        assert_eq!(block(Target::Sm90a, 256, 16), (16, 4));
        assert_eq!(block(Target::Sm90a, 256, 2), (2, 6));
        assert_eq!(block(Target::Sm80, 128, 32), (16, 3));
        assert_eq!(block(Target::Sm80, 256, 16), (8, 2));
    }

    #[test]
    fn blocks_are_few_or_alike() {
        let grid = |target, head_dim, rows, (items, pages)| {
            let block = Block::new(target, head_dim, rows);
            let (block, grid) = block.grid(target, head_dim, 132, items * pages, pages);
            (block.stages, grid)
        };
        // 1×512, 1×2k and 1×8k of eight KV heads.
        assert_eq!(grid(Target::Sm90a, 128, 4, (8, 8)), (12, 64));
        assert_eq!(grid(Target::Sm90a, 128, 4, (8, 32)), (12, 128));
        assert_eq!(grid(Target::Sm90a, 128, 4, (8, 128)), (12, 128));
        // 1×32k, 8×2k and 64×2k: thirty-two or four blocks an item, two items a block; then what nothing divides.
        assert_eq!(grid(Target::Sm90a, 128, 4, (8, 512)), (6, 256));
        assert_eq!(grid(Target::Sm90a, 128, 4, (64, 32)), (6, 256));
        assert_eq!(grid(Target::Sm90a, 128, 4, (512, 32)), (6, 256));
        assert_eq!(grid(Target::Sm90a, 128, 4, (8, 510)), (6, 264));
        assert_eq!(grid(Target::Sm90a, 128, 32, (8, 510)), (9, 132));
        assert_eq!(grid(Target::Sm90a, 256, 2, (8, 510)), (6, 132));
        assert_eq!(grid(Target::Sm80, 128, 4, (8, 510)), (5, 132));
        assert_eq!(grid(Target::Sm90a, 128, 4, (0, 1)).1, 0);
    }
}
