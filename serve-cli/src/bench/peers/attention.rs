//! Attention over the paged cache against cuDNN's over dense keys and values, through PyTorch.
use super::Bench;
use super::calibrate::normal;
use super::gemm::{ROTATED_BYTES, part, part_mut};
use super::row::{Group, Row};
use crate::bench::timing::{Replay, graph_works, timed};
use anyhow::Result;
use kernels_host::attention::{DecodeAttention, PagedKv, PrefillAttention};
use kernels_host::case::Rng;
use kernels_host::kv::{PAGE, page_elems};
use kernels_host::{Buffer, DType, Error, Stream};
use serde_json::json;
use std::cell::RefCell;

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
/// 1/√head_dim.
const SCALE: f32 = 0.088_388_35;
/// Bytes of a token's keys and values.
const TOKEN_BYTES: usize = 2 * 2 * KV_HEADS * HEAD_DIM;

/// Prefill of 2k, 8k and 16k tokens, then decode of 1 to 128 sequences of 512 to 32k.
pub fn run(bench: &mut Bench<'_>) -> Result<()> {
    if bench.torch.is_none() {
        return Ok(());
    }
    let mut problems: Vec<Problem> =
        [2048, 8192, 16384].map(|context| Problem { batch: 1, queries: context, context }).into();
    let contexts: &[usize] = if bench.quick { &[2048] } else { &[512, 2048, 8192, 32768] };
    for &context in contexts {
        problems.extend([1, 8, 32, 64, 128].map(|batch| Problem { batch, queries: 1, context }));
    }
    let pages = problems.iter().map(|problem| problem.copies() * problem.pages()).max().unwrap_or(0);
    let pool = pages * page_elems(KV_HEADS, HEAD_DIM);
    let (k, v) = (normal(&bench.stream, pool, 31, 1.0)?, normal(&bench.stream, pool, 32, 1.0)?);
    for problem in &problems {
        let data = Data::new(problem, &bench.stream, pages)?;
        let launch = |stream: &Stream, turn: usize| data.launch(stream, turn % problem.copies(), &k, &v);
        launch(&bench.stream, 0)?;
        let estimate = timed(&bench.stream, || launch(&bench.stream, 0))?;
        let ours = Replay::capture(&bench.stream, graph_works(estimate, problem.copies()), launch)?;
        let Problem { batch, queries, context } = *problem;
        let copies = problem.copies();
        let case = json!({"case": "sdpa", "batch": batch, "queries": queries, "context": context, "copies": copies});
        if let Some((ours, rival)) = bench.against_torch(&problem.id(), &case, &ours)? {
            bench.add(Row {
                group: if queries > 1 { Group::PrefillAttention } else { Group::DecodeAttention },
                work: problem.id(),
                ours,
                rival,
                rival_name: "cuDNN".into(),
                bar: ((batch, queries, context) == (1, 1, 2048)).then_some(1.3),
                value: None,
                bytes: problem.bytes(),
                flops: problem.flops(),
                reads: queries == 1 && problem.bytes() >= 100_000_000,
            })?;
        }
    }
    Ok(())
}

/// Sequences that are all alike: one query each, or the whole context causally.
struct Problem {
    batch: usize,
    queries: usize,
    context: usize,
}

impl Problem {
    fn id(&self) -> String {
        let kind = if self.queries > 1 { "prefill" } else { "decode" };
        format!("{kind} {}x{}", self.batch, self.context)
    }

    /// Of one set of data.
    fn pages(&self) -> usize {
        self.batch * self.context.div_ceil(PAGE)
    }

    /// Sets of data.
    fn copies(&self) -> usize {
        let keys = self.batch * self.context * TOKEN_BYTES;
        // A context of 512 tokens takes 2 MB: more sets than other works have.
        ROTATED_BYTES.div_ceil(keys as u64).clamp(1, if self.queries > 1 { 8 } else { 200 }) as usize
    }

    fn bytes(&self) -> u64 {
        (self.batch * (self.context * TOKEN_BYTES + 2 * 2 * self.queries * HEADS * HEAD_DIM)) as u64
    }

    fn flops(&self) -> u64 {
        let pairs = if self.queries > 1 { self.context * (self.context + 1) / 2 } else { self.context };
        (4 * self.batch * pairs * HEADS * HEAD_DIM) as u64
    }
}

/// A problem's queries, tables and outputs; keys and values are a pool that all problems share.
struct Data<'a> {
    problem: &'a Problem,
    q: Buffer,
    tables: Buffer,
    lens: Buffer,
    starts: Buffer,
    workspace: RefCell<Buffer>,
    out: RefCell<Buffer>,
}

impl<'a> Data<'a> {
    /// With pages scattered over a pool of `pool` pages.
    fn new(problem: &'a Problem, stream: &Stream, pool: usize) -> Result<Self, Error> {
        let &Problem { batch, queries, context } = problem;
        let mut pages: Vec<u32> = (0..pool as u32).collect();
        let mut rng = Rng::new(33);
        for i in (1..pages.len()).rev() {
            pages.swap(i, rng.below(i + 1));
        }
        pages.truncate(problem.copies() * problem.pages());
        let words = |values: &[u32]| -> Result<Buffer, Error> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, values.len())?;
            stream.upload(values, buffer.view_mut())?;
            Ok(buffer)
        };
        let starts: Vec<u32> = (0..=batch).map(|sequence| (sequence * queries) as u32).collect();
        let rows = problem.copies() * batch * queries * HEADS * HEAD_DIM;
        let workspace = match queries {
            1 => DecodeAttention::workspace_len(stream.device(), HEAD_DIM),
            _ => 0,
        };
        let mut workspace = Buffer::new(stream.device(), DType::F32, workspace)?;
        stream.fill(workspace.view_mut(), 0)?;
        Ok(Data {
            problem,
            q: normal(stream, rows, 34, 1.0)?,
            tables: words(&pages)?,
            lens: words(&vec![context as u32; batch])?,
            starts: words(&starts)?,
            workspace: RefCell::new(workspace),
            out: RefCell::new(Buffer::new(stream.device(), DType::Bf16, rows)?),
        })
    }

    fn launch(&self, stream: &Stream, turn: usize, k: &Buffer, v: &Buffer) -> Result<(), Error> {
        let &Problem { batch, queries, context } = self.problem;
        let (tokens, width) = (batch * queries, HEADS * HEAD_DIM);
        let (mut out, mut workspace) = (self.out.borrow_mut(), self.workspace.borrow_mut());
        let q = part(&self.q, turn, tokens, width);
        let out = part_mut(&mut out, turn, tokens, width);
        let kv = PagedKv {
            k: k.view(),
            v: v.view(),
            block_tables: part(&self.tables, turn, batch, context.div_ceil(PAGE)),
            kv_lens: self.lens.view(),
        };
        let (heads, kv_heads, head_dim, scale) = (HEADS, KV_HEADS, HEAD_DIM, SCALE);
        let (window, softcap, max_query) = (None, None, queries);
        if queries > 1 {
            let query_starts = self.starts.view();
            #[rustfmt::skip]
            let attention = PrefillAttention {
                q, kv, query_starts, heads, kv_heads, head_dim, scale, window, softcap, max_query, out,
            };
            attention.launch(stream)
        } else {
            let (max_kv, workspace, query_starts) = (context, workspace.view_mut(), None);
            #[rustfmt::skip]
            let attention = DecodeAttention {
                q, kv, query_starts, heads, kv_heads, head_dim, scale, window, softcap, max_query, max_kv, workspace, out,
            };
            attention.launch(stream)
        }
    }
}
