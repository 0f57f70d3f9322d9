//! Launcher and cases of `kernels-gpu/src/attention/decode.rs` and `decode_merge.rs`.
use super::testing::{Cache, Problem, Rows, Scores};
use super::{Geometry, PagedKv, reference};
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Work};
use crate::{Buffer, Check, DType, Device, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::attention::{decode as gpu, decode_merge as merge};
use kernels_gpu::prim::DevicePtr;
use kernels_gpu::tile::kv::PAGE;
use std::f32::consts::LOG2_E;

/// Attention of one query per sequence, at position `kv_len - 1`. A sequence with an empty cache gets zeros.
pub struct DecodeAttention<'a> {
    /// [sequences, heads · head_dim], bf16 or f16; may be a column slice of the qkv matrix.
    pub q: View<'a>,
    /// Keys and values, this step's included.
    pub kv: PagedKv<'a>,
    /// Query heads.
    pub heads: usize,
    /// KV heads; query head h reads KV head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// 64 or 128.
    pub head_dim: usize,
    /// Multiplies q·k before the softmax: positive, as a rule 1/√head_dim.
    pub scale: f32,
    /// The query sees the last `window` keys only.
    pub window: Option<usize>,
    /// An upper bound of `kv_lens`: it decides into how many parts a context is split.
    pub max_kv: usize,
    /// Partial results of the parts: f32 [1, at least [`DecodeAttention::workspace_len`]]. Needs no initial
    /// value and may be shared by launches of one stream.
    pub workspace: ViewMut<'a>,
    /// [sequences, heads · head_dim].
    pub out: ViewMut<'a>,
}

/// Rows of a block's query tile: heads of one group.
const ROWS: usize = gpu::ROWS as usize;

/// Most parts of one context.
const MAX_SPLITS: usize = 128;

impl DecodeAttention<'_> {
    /// Floats of workspace that suffice for up to `sequences` sequences of up to `max_kv` tokens.
    pub fn workspace_len(
        device: &Device,
        sequences: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        max_kv: usize,
    ) -> usize {
        let multiprocessors = device.multiprocessors();
        let items = kv_heads * (heads / kv_heads.max(1)).div_ceil(ROWS);
        // Fewer sequences can mean more parts in all.
        (1..=sequences.min(multiprocessors))
            .map(|sequences| match most_splits(multiprocessors, sequences * items, max_kv.div_ceil(PAGE)) {
                1 => 0,
                splits => sequences * heads * splits * (head_dim + 2),
            })
            .max()
            .unwrap_or(0)
    }

    /// Queues the kernel.
    pub fn launch(mut self, stream: &Stream) -> Result<(), Error> {
        let Self { heads, kv_heads, head_dim, scale, window, .. } = self;
        let geometry = Geometry { heads, kv_heads, head_dim, scale, window };
        let mut check = Check::new("decode_attention");
        geometry.check(&mut check, &self.q, &self.kv, &self.out.as_view())?;
        check.typed("workspace", &self.workspace.as_view(), DType::F32, ["1", "workspace"])?;
        let sequences = check.dim("sequences");
        check.bind("q", "sequences", self.q.rows())?;
        let needed = Self::workspace_len(stream.device(), sequences, heads, kv_heads, head_dim, self.max_kv);
        check.require(self.workspace.cols() >= needed, || {
            format!("workspace has {} floats, {needed} are needed: see workspace_len", self.workspace.cols())
        })?;
        if stream.is_cpu() {
            let queries: Vec<_> = (0..sequences).map(|sequence| sequence..sequence + 1).collect();
            for (sequence, &kv_len) in self.kv.kv_lens.row::<u32>(0).iter().enumerate() {
                if kv_len == 0 {
                    self.out.row_mut::<u16>(sequence).fill(0);
                }
            }
            reference::attention(&geometry, &self.q, &self.kv, &queries, &mut self.out);
            return Ok(());
        }
        self.launch_gpu(stream, &check, &geometry)
    }

    fn launch_gpu(self, stream: &Stream, check: &Check, geometry: &Geometry) -> Result<(), Error> {
        let Geometry { heads, kv_heads, head_dim, scale, window } = *geometry;
        let sequences = self.q.rows();
        let group = geometry.group();
        let row_blocks = group.div_ceil(ROWS);
        // A window of w tokens can touch one page more than ⌈w / 64⌉.
        let pages = self.max_kv.div_ceil(PAGE).min(window.map_or(usize::MAX, |window| window.div_ceil(PAGE) + 1));
        let splits = splits(stream.device().multiprocessors(), sequences * kv_heads * row_blocks, pages);
        let workspace = self.workspace.ptr();
        check.require(workspace.0.is_multiple_of(16), || "workspace must start at a multiple of 16 bytes".into())?;
        let partial_bytes = sequences * heads * splits * head_dim * size_of::<f32>();
        let state = DevicePtr(workspace.0 + partial_bytes as u64);
        let (entry, merge_entry) = match (self.q.dtype(), head_dim) {
            (DType::F16, 64) => (gpu::decode_attention_f16_64, merge::decode_merge_f16_64),
            (DType::F16, _) => (gpu::decode_attention_f16_128, merge::decode_merge_f16_128),
            (_, 64) => (gpu::decode_attention_bf16_64, merge::decode_merge_bf16_64),
            _ => (gpu::decode_attention_bf16_128, merge::decode_merge_bf16_128),
        };
        let args = gpu::Decode {
            q: self.q.ptr(),
            k: self.kv.k.ptr(),
            v: self.kv.v.ptr(),
            block_tables: self.kv.block_tables.ptr(),
            kv_lens: self.kv.kv_lens.ptr(),
            partial: workspace,
            state,
            out: self.out.ptr(),
            q_stride: self.q.stride() as u32,
            out_stride: self.out.stride() as u32,
            table_stride: self.kv.block_tables.stride() as u32,
            kv_heads: kv_heads as u32,
            group: group as u32,
            row_blocks: row_blocks as u32,
            scale_log2: scale * LOG2_E,
            window: geometry.device_window(),
        };
        let grid = Launch::grid3(kv_heads * row_blocks, splits, sequences);
        let grid = grid.shared(gpu::shared_bytes(head_dim as u32)).dependent();
        // SAFETY: a block touches row `sequence` of q and out and the pages that the tables name for
        // kv_lens[sequence] tokens, which is what the fields ask of the caller; the workspace was checked to
        // hold all splits.
        unsafe { stream.launch(entry, grid, &args)? };
        if splits == 1 {
            return Ok(());
        }
        let rows = sequences * heads;
        let args = merge::DecodeMerge {
            partial: workspace,
            state,
            out: self.out.ptr(),
            rows: rows as u32,
            heads: heads as u32,
            splits: splits as u32,
            out_stride: self.out.stride() as u32,
        };
        // SAFETY: reads what the launch above wrote, one warp per row of `out`.
        unsafe { stream.launch(merge_entry, Launch::grid(rows.div_ceil(merge::HEADS as usize)).dependent(), &args) }
    }
}

/// Into how many parts each context of up to `pages` pages is split, so that `items` blocks fill the GPU: the
/// fewest that keep its multiprocessors within 85 % of the best balance.
fn splits(multiprocessors: usize, items: usize, pages: usize) -> usize {
    let busy = |splits: usize| {
        let blocks = items * splits;
        blocks as f64 / (blocks.div_ceil(multiprocessors) * multiprocessors) as f64
    };
    // Only counts that make the parts shorter.
    let candidates = || {
        (1..=most_splits(multiprocessors, items, pages))
            .filter(|&n| n == 1 || pages.div_ceil(n) != pages.div_ceil(n - 1))
    };
    let best = candidates().map(busy).fold(0.0, f64::max);
    candidates().find(|&n| busy(n) >= 0.85 * best).unwrap_or(1)
}

/// A bound of [`splits`] that grows with `pages`: one where the blocks nearly fill the GPU as they are, else
/// up to two blocks per multiprocessor.
fn most_splits(multiprocessors: usize, items: usize, pages: usize) -> usize {
    if items * 5 >= multiprocessors * 4 || items == 0 {
        return 1;
    }
    (2 * multiprocessors / items).min(pages).clamp(1, MAX_SPLITS)
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "attention/decode",
        entries: [gpu::ENTRIES, merge::ENTRIES].concat(),
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
    let mut cases: Vec<Problem> =
        [1, 32, 64].iter().map(|&n| decode(&Problem { bench: true, ..base.clone() }, &vec![2048; n])).collect();
    for dtype in [DType::Bf16, DType::F16] {
        for head_dim in [64, 128] {
            let small = Problem::new(dtype, 4, 2, head_dim);
            cases.extend([1, 15, 16, 17, 63, 64, 65, 1100, 5000].map(|kv_len| decode(&small, &[kv_len])));
            cases.push(decode(&small, &[1, 700, 64, 0, 129, 33, 65]));
            cases.push(decode(&small, &[300; 80]));
            for window in [1, 16, 64, 100, 5000] {
                cases.push(decode(&Problem { window: Some(window), ..small.clone() }, &[1000, 1, 64, 65, 130]));
            }
            cases.push(decode(&Problem { scores: Scores::Equal, ..small.clone() }, &[500, 64]));
            cases.push(decode(&Problem { scores: Scores::Large, ..small.clone() }, &[700, 90]));
        }
        for (heads, kv_heads) in [(3, 3), (8, 2), (16, 2), (7, 1), (16, 1), (17, 1), (71, 1), (128, 2)] {
            cases.push(decode(&Problem::new(dtype, heads, kv_heads, 64), &[300, 90]));
        }
        cases.push(decode(&Problem::new(dtype, 14, 2, 128), &[900, 20]));
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

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let problem = self.0.clone();
        let mut cache = Cache::new(&problem, stream, seed)?;
        let rows = Rows::new(&problem, stream, cache.rng())?;
        // Graphs bound the length from above: sometimes far above.
        let slack = if problem.bench { 0 } else { cache.rng().below(3) * 700 };
        let max_kv = problem.sequences.iter().map(|&(_, kv_len)| kv_len).max().unwrap_or(0) + slack;
        let len = DecodeAttention::workspace_len(
            stream.device(),
            problem.sequences.len(),
            problem.heads,
            problem.kv_heads,
            problem.head_dim,
            max_kv,
        );
        let mut workspace = Buffer::new(stream.device(), DType::F32, len)?;
        stream.fill(workspace.view_mut(), 0xff)?;
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
        let (q, _, out) = self.rows.views();
        DecodeAttention {
            q,
            kv: self.cache.paged(),
            heads: self.problem.heads,
            kv_heads: self.problem.kv_heads,
            head_dim: self.problem.head_dim,
            scale: self.problem.scale(),
            window: self.problem.window,
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
        self.rows.reset(stream)?;
        self.launch(stream)?;
        self.rows.compare(stream, &self.problem, &self.cache, Some(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::splits;

    #[test]
    fn splits_fill_the_gpu_and_no_more() {
        assert_eq!(splits(132, 8, 32), 16); // 1 x 2048 tokens of 8 KV heads
        assert_eq!(splits(132, 256, 32), 1);
        assert_eq!(splits(132, 8, 1), 1);
        assert_eq!(splits(132, 0, 32), 1);
        for items in 1..200 {
            for pages in [0, 1, 2, 7, 64, 2048] {
                let n = splits(132, items, pages);
                assert!(n >= 1 && n <= pages.max(1), "{items} {pages} {n}");
            }
        }
    }
}
