//! Prefill attention: its launcher, the launch of `kernels-gpu/src/attention/prefill.rs`, and the cases of all its kernels.
use super::testing::{Cache, Problem, Rows, Scores};
use super::{Geometry, HEAD_DIMS, PagedKv, prefill_wgmma, reference};
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Work};
use crate::{Check, DType, Error, Launch, Stream, Target, View, ViewMut};
use kernels_gpu::attention::prefill as gpu;

/// Causal attention of many queries per sequence.
///
/// The last query of a sequence sits at position `kv_len - 1`, so `kv_len - queries` cached tokens precede
/// them. A sequence without queries or with an empty cache writes nothing.
pub struct PrefillAttention<'a> {
    /// [tokens, heads · head_dim], bf16 or f16; may be a column slice of the qkv matrix.
    pub q: View<'a>,
    /// Keys and values, this step's included.
    pub kv: PagedKv<'a>,
    /// Where each sequence's queries start in `q`, and where the last one's end: u32 [1, sequences + 1],
    /// ascending.
    pub query_starts: View<'a>,
    /// Query heads.
    pub heads: usize,
    /// KV heads; query head h reads KV head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// One of [`HEAD_DIMS`](super::HEAD_DIMS).
    pub head_dim: usize,
    /// Multiplies q·k before the softmax: positive, as a rule 1/√head_dim.
    pub scale: f32,
    /// A query at position p sees keys p - window + 1 ..= p, as in transformers' `sliding_window`.
    pub window: Option<usize>,
    /// Scores s = scale · q·k become cap · tanh(s / cap) before the softmax (Gemma 2).
    pub softcap: Option<f32>,
    /// Most queries of any sequence (an upper bound will do).
    pub max_query: usize,
    /// [tokens, heads · head_dim].
    pub out: ViewMut<'a>,
}

/// The kernels that compute it on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Any GPU.
    Mma,
    /// Hopper.
    Wgmma,
}

impl PrefillAttention<'_> {
    /// Queues the kernel that fits the problem and the GPU.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        self.launch_with(stream, None)
    }

    /// As [`PrefillAttention::launch`]; on a GPU by `path` if it is given.
    pub(super) fn launch_with(mut self, stream: &Stream, path: Option<Path>) -> Result<(), Error> {
        let geometry = self.check()?;
        let Some(target) = stream.device().target() else {
            let starts = self.query_starts.row::<u32>(0);
            let queries: Vec<_> = starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect();
            reference::attention(&geometry, &self.q, &self.kv, &queries, &mut self.out);
            return Ok(());
        };
        let rows = self.max_query * geometry.group();
        let wgmma = target == Target::Sm90a && (rows >= prefill_wgmma::FEWEST_ROWS || stream.is_batch_invariant());
        match path.unwrap_or(if wgmma { Path::Wgmma } else { Path::Mma }) {
            Path::Mma => self.launch_mma(&geometry, stream),
            Path::Wgmma => prefill_wgmma::launch(&self, &geometry, stream),
        }
    }

    fn check(&self) -> Result<Geometry, Error> {
        let Self { heads, kv_heads, head_dim, scale, window, softcap, .. } = *self;
        let geometry = Geometry { heads, kv_heads, head_dim, scale, window, softcap };
        let mut check = Check::new("prefill_attention");
        geometry.check(&mut check, &self.q, &self.kv, &self.out.as_view())?;
        check.typed("query_starts", &self.query_starts, DType::U32, ["1", "sequences + 1"])?;
        let sequences = check.dim("sequences");
        check.require(self.query_starts.cols() == sequences + 1, || {
            format!(
                "query_starts has {} entries, {sequences} sequences need {}",
                self.query_starts.cols(),
                sequences + 1
            )
        })?;
        check.require(u32::try_from(self.max_query * geometry.group()).is_ok(), || {
            format!("{} queries of {heads} heads overflow 32 bits", self.max_query)
        })?;
        Ok(geometry)
    }

    fn launch_mma(&self, geometry: &Geometry, stream: &Stream) -> Result<(), Error> {
        let (group, head_dim) = (geometry.group(), self.head_dim);
        let row_blocks = (self.max_query * group).div_ceil(gpu::ROWS as usize);
        let entry = match (self.q.dtype(), head_dim) {
            (DType::F16, 64) => gpu::prefill_attention_f16_64,
            (DType::F16, 96) => gpu::prefill_attention_f16_96,
            (DType::F16, 128) => gpu::prefill_attention_f16_128,
            (DType::F16, _) => gpu::prefill_attention_f16_256,
            (_, 64) => gpu::prefill_attention_bf16_64,
            (_, 96) => gpu::prefill_attention_bf16_96,
            (_, 128) => gpu::prefill_attention_bf16_128,
            _ => gpu::prefill_attention_bf16_256,
        };
        let (scale_log2, cap_inner) = geometry.device_scale();
        let args = gpu::Prefill {
            q: self.q.ptr(),
            k: self.kv.k.ptr(),
            v: self.kv.v.ptr(),
            block_tables: self.kv.block_tables.ptr(),
            kv_lens: self.kv.kv_lens.ptr(),
            query_starts: self.query_starts.ptr(),
            out: self.out.ptr(),
            q_stride: self.q.stride() as u32,
            out_stride: self.out.stride() as u32,
            table_stride: self.kv.block_tables.stride() as u32,
            kv_heads: self.kv_heads as u32,
            group: group as u32,
            scale_log2,
            window: geometry.device_window(),
            cap_inner,
        };
        let sequences = self.kv.block_tables.rows();
        let launch = Launch::grid3(row_blocks * self.kv_heads, sequences, 1).shared(gpu::shared_bytes(head_dim as u32));
        // SAFETY: blocks touch rows query_starts[s] .. query_starts[s + 1] of q and out and the pages that
        // the tables name for kv_lens[s] tokens; that those lie within the checked views is what the fields
        // ask of the caller.
        unsafe { stream.launch(entry, launch.dependent(), &args) }
    }
}

/// Tests and benches that force this kernel.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "attention/prefill",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || pinned(Path::Mma),
        #[cfg(feature = "proptest")]
        random: || super::random::prefill(Path::Mma),
    }
}

/// The cases of both kernels.
pub(super) fn pinned(path: Path) -> Vec<Box<dyn Case>> {
    let bench = Problem { bench: true, ..Problem::new(DType::Bf16, 32, 8, 128) };
    let mut cases: Vec<_> = [2048, 8192, 16384].map(|tokens| bench.clone().sequences(&[(tokens, tokens)])).into();
    // Gemma 2 9B's heads and cap, and the other dimensions.
    let gemma = Problem { softcap: Some(50.0), bench: true, ..Problem::new(DType::Bf16, 16, 8, 256) };
    for problem in [gemma, Problem { heads: 64, head_dim: 64, ..bench.clone() }, Problem { head_dim: 96, ..bench }] {
        cases.push(problem.sequences(&[(4096, 4096)]));
    }
    for dtype in [DType::Bf16, DType::F16] {
        for head_dim in HEAD_DIMS {
            let small = Problem::new(dtype, 4, 2, head_dim);
            // A cached prefix: one query, a page border, one past it.
            cases.push(small.clone().sequences(&[(1, 65), (17, 128), (64, 129), (3, 3), (1, 1), (100, 163)]));
            // Nothing to write: no queries, or no keys.
            cases.push(small.clone().sequences(&[(0, 70), (5, 69), (0, 0), (3, 0), (2, 2)]));
            // What does not hang on the dimension is tried with two.
            let usual = [64, 128].contains(&head_dim);
            if usual {
                let lone = [(1, 1), (63, 63), (64, 64), (65, 65), (130, 1100)];
                cases.extend(lone.map(|s| small.clone().sequences(&[s])));
            }
            for &window in if usual { &[1, 16, 64, 100, 5000][..] } else { &[70] } {
                let windowed = Problem { window: Some(window), ..small.clone() };
                cases.push(windowed.sequences(&[(150, 300), (1, 65), (70, 70)]));
            }
            cases.push(Problem { scores: Scores::Equal, ..small.clone() }.sequences(&[(70, 200)]));
            cases.push(Problem { scores: Scores::Large, ..small.clone() }.sequences(&[(130, 200)]));
            // Gemma 2's cap on ordinary scores, and a low one on great scores.
            cases.push(Problem { softcap: Some(50.0), ..small.clone() }.sequences(&[(130, 200), (3, 64)]));
            let capped = Problem { softcap: Some(8.0), scores: Scores::Large, window: Some(80), ..small };
            cases.push(capped.sequences(&[(130, 200)]));
        }
        // Group sizes: 1, 4, 8, an odd one, multi-query, more heads than a block has rows.
        for (heads, kv_heads) in [(3, 3), (8, 2), (16, 2), (7, 1), (16, 1), (71, 1)] {
            cases.push(Problem::new(dtype, heads, kv_heads, 64).sequences(&[(37, 90), (1, 64)]));
        }
        cases.push(Problem::new(dtype, 14, 2, 128).sequences(&[(40, 70)]));
        // More blocks of rows than a GPU runs at once, some of them empty.
        for head_dim in HEAD_DIMS {
            let mixed = [(100, 150), (7, 500), (300, 310), (0, 9), (129, 129)];
            cases.push(Problem::new(dtype, 16, 8, head_dim).sequences(&mixed.repeat(4)));
        }
    }
    cases.into_iter().map(|problem| Box::new(Prefill { problem, path }) as Box<dyn Case>).collect()
}

/// A problem for one of the kernels.
#[derive(Debug)]
pub(super) struct Prefill {
    pub problem: Problem,
    pub path: Path,
}

impl Case for Prefill {
    fn id(&self) -> String {
        self.problem.id(match self.path {
            Path::Mma => "prefill",
            Path::Wgmma => "prefill_wgmma",
        })
    }

    fn work(&self) -> Work {
        self.problem.work()
    }

    fn bench(&self) -> bool {
        self.problem.bench
    }

    fn checked_on_cpu(&self) -> bool {
        self.problem.work().flops < 100_000_000_000
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut cache = Cache::new(&self.problem, stream, seed)?;
        let rows = Rows::new(&self.problem, stream, cache.rng())?;
        Ok(Box::new(Data { problem: self.problem.clone(), path: self.path, cache, rows }))
    }
}

struct Data {
    problem: Problem,
    path: Path,
    cache: Cache,
    rows: Rows,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let (q, starts, out) = self.rows.views();
        PrefillAttention {
            q,
            kv: self.cache.paged(),
            query_starts: starts,
            heads: self.problem.heads,
            kv_heads: self.problem.kv_heads,
            head_dim: self.problem.head_dim,
            scale: self.problem.scale(),
            window: self.problem.window,
            softcap: self.problem.softcap,
            max_query: self.problem.sequences.iter().map(|&(queries, _)| queries).max().unwrap_or(0),
            out,
        }
        .launch_with(stream, Some(self.path))
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.rows.reset(stream)?;
        self.launch(stream)?;
        Ok(vec![self.rows.output(stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        self.rows.reset(stream)?;
        self.launch(stream)?;
        self.rows.compare(stream, &self.problem, &self.cache, None)
    }
}
