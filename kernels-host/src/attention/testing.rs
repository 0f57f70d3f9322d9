//! Problems, their data and the naive softmax for the cases of both kernels.
use super::PagedKv;
use crate::case::{Mismatch, Output, Rng, Tensor, Work};
use crate::{Buffer, DType, Error, Stream, View, ViewMut};
use kernels_gpu::tile::kv::{PAGE, ROW, offset, page_elems};
use rayon::prelude::*;

/// What the scores before the softmax look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scores {
    /// About normal, standard deviation 1.
    Normal,
    /// All 0: the output is the mean of the values.
    Equal,
    /// About ±60: exp overflows f16 and, summed unshifted, loses everything.
    Large,
}

/// A batch and its heads.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub dtype: DType,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub scores: Scores,
    /// (queries, kv_len) of each sequence.
    pub sequences: Vec<(usize, usize)>,
    pub bench: bool,
}

impl Problem {
    pub fn new(dtype: DType, heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let sequences = Vec::new();
        let (window, softcap, scores) = (None, None, Scores::Normal);
        Problem { dtype, heads, kv_heads, head_dim, window, softcap, scores, sequences, bench: false }
    }

    pub fn sequences(self, sequences: &[(usize, usize)]) -> Self {
        Problem { sequences: sequences.to_vec(), ..self }
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    pub fn id(&self, kernel: &str) -> String {
        let window = self.window.map_or(String::new(), |window| format!(" window={window}"));
        let cap = self.softcap.map_or(String::new(), |cap| format!(" cap={cap}"));
        let scores = if self.scores == Scores::Normal { String::new() } else { format!(" {:?}", self.scores) };
        // Equal neighbours as "64x(1,2048)", so that big batches stay readable.
        let runs = self.sequences.chunk_by(|a, b| a == b).map(|run| match (run.len(), run[0]) {
            (1, (queries, kv_len)) => format!("({queries},{kv_len})"),
            (count, (queries, kv_len)) => format!("{count}x({queries},{kv_len})"),
        });
        format!(
            "{kernel} {} heads={}/{} d={}{window}{cap}{scores} {}",
            self.dtype,
            self.heads,
            self.kv_heads,
            self.head_dim,
            runs.collect::<Vec<_>>().join("")
        )
    }

    /// The first key that a query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    pub fn work(&self) -> Work {
        let mut work = Work::default();
        for &(queries, kv_len) in &self.sequences {
            if kv_len == 0 || queries == 0 {
                continue;
            }
            let prefix = kv_len - queries;
            let keys = |position: usize| position + 1 - self.first_key(position);
            let pairs: usize = (prefix..kv_len).map(keys).sum();
            let kv_bytes = (kv_len - self.first_key(prefix)) * self.kv_heads * self.head_dim * 2 * 2;
            work.bytes += (kv_bytes + queries * self.heads * self.head_dim * 2 * 2) as u64;
            work.flops += (4 * pairs * self.heads * self.head_dim) as u64;
        }
        work
    }
}

/// One pool's values: a block of random ones, repeated. (A pool of hundreds of MB is not kept twice.)
struct Pool {
    block: Vec<u16>,
    buffer: Buffer,
}

/// Prime, so that pages differ.
const PERIOD: usize = 1_048_573;

impl Pool {
    fn value(&self, at: usize) -> f32 {
        self.buffer.dtype().decode(self.block[at % self.block.len()])
    }
}

/// A filled KV cache: pages shuffled over the pool; NaN and infinities wherever no query may look.
pub(super) struct Cache {
    k: Pool,
    v: Pool,
    /// Pages of each sequence.
    pages: Vec<Vec<usize>>,
    tables: Buffer,
    table_shape: (usize, usize),
    lens: Buffer,
    rng: Rng,
}

impl Cache {
    pub fn new(problem: &Problem, stream: &Stream, seed: u64) -> Result<Self, Error> {
        let mut rng = Rng::new(seed);
        let needed: Vec<usize> = problem.sequences.iter().map(|(_, kv_len)| kv_len.div_ceil(PAGE)).collect();
        let total = needed.iter().sum::<usize>() + 3;
        let mut free: Vec<usize> = (0..total).collect();
        for i in (1..total).rev() {
            free.swap(i, rng.below(i + 1));
        }
        let pages: Vec<Vec<usize>> = needed.iter().map(|&n| free.split_off(free.len() - n)).collect();
        let k = Self::pool(problem, stream, &mut rng, total, &pages, &free)?;
        let v = Self::pool(problem, stream, &mut rng, total, &pages, &free)?;

        let table_shape = (pages.len(), needed.iter().max().copied().unwrap_or(0) + 2);
        let mut entries = vec![u32::MAX; table_shape.0 * table_shape.1];
        for ((row, pages), &(queries, kv_len)) in entries.chunks_mut(table_shape.1).zip(&pages).zip(&problem.sequences)
        {
            // Pages before every window stay garbage.
            let first = problem.first_key(kv_len.saturating_sub(queries)) / PAGE;
            row.iter_mut().zip(pages).skip(first).for_each(|(entry, &page)| *entry = page as u32);
        }
        let mut tables = Buffer::new(stream.device(), DType::U32, entries.len())?;
        stream.upload(&entries, tables.view_mut())?;
        let kv_lens: Vec<u32> = problem.sequences.iter().map(|&(_, kv_len)| kv_len as u32).collect();
        let mut lens = Buffer::new(stream.device(), DType::U32, kv_lens.len())?;
        stream.upload(&kv_lens, lens.view_mut())?;
        Ok(Cache { k, v, pages, tables, table_shape, lens, rng })
    }

    fn pool(
        problem: &Problem,
        stream: &Stream,
        rng: &mut Rng,
        total: usize,
        pages: &[Vec<usize>],
        unused: &[usize],
    ) -> Result<Pool, Error> {
        let Problem { dtype, kv_heads, head_dim, .. } = *problem;
        let page = page_elems(kv_heads, head_dim);
        let block = rng.halves(dtype, PERIOD.min(total * page), 1.0);
        let mut bits: Vec<u16> = block.iter().copied().cycle().take(total * page).collect();
        let poison = [dtype.encode(f32::NAN), dtype.encode(f32::INFINITY), dtype.encode(f32::NEG_INFINITY)];
        for &unused in unused {
            bits[unused * page..][..page].fill(poison[0]);
        }
        for (pages, (_, kv_len)) in pages.iter().zip(&problem.sequences) {
            let Some(&last) = pages.last() else { continue };
            for slot in (kv_len - 1) % PAGE + 1..PAGE {
                for (kv_head, dim) in (0..kv_heads).flat_map(|head| (0..head_dim).map(move |dim| (head, dim))) {
                    bits[offset(last, kv_head, slot, dim, kv_heads, head_dim)] = poison[(slot + dim) % 3];
                }
            }
        }
        // What fills the room of a head up to whole rows is nobody's.
        for (at, bits) in bits.iter_mut().enumerate().filter(|_| !head_dim.is_multiple_of(ROW)) {
            let (row, chunk) = (at / ROW % PAGE, at % ROW / 8);
            let column = at / (PAGE * ROW) % head_dim.div_ceil(ROW);
            if column * ROW + (chunk ^ (row % 8)) * 8 >= head_dim {
                *bits = poison[0];
            }
        }
        let mut buffer = Buffer::new(stream.device(), dtype, bits.len())?;
        stream.upload(&bits, buffer.view_mut())?;
        Ok(Pool { block, buffer })
    }

    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    pub fn paged(&self) -> PagedKv<'_> {
        let (rows, columns) = self.table_shape;
        PagedKv {
            k: self.k.buffer.view(),
            v: self.v.buffer.view(),
            block_tables: self.tables.matrix(rows, columns),
            kv_lens: self.lens.view(),
        }
    }
}

/// Queries and outputs: q is a slice of a wider matrix of NaN, out has a gap after each row.
pub(super) struct Rows {
    q: Tensor,
    q_stride: usize,
    starts: Buffer,
    out: Tensor,
    out_stride: usize,
    tokens: usize,
    width: usize,
}

/// A (query, head) whose output is compared.
struct Probe {
    sequence: usize,
    row: usize,
    position: usize,
    head: usize,
}

/// Most multiply-adds of the naive softmax per case: of larger ones a part of the rows is compared.
const BUDGET: usize = 10_000_000;

impl Rows {
    pub fn new(problem: &Problem, stream: &Stream, rng: &mut Rng) -> Result<Self, Error> {
        let width = problem.heads * problem.head_dim;
        let tokens: usize = problem.sequences.iter().map(|(queries, _)| queries).sum();
        let q_stride = width + 2 * problem.kv_heads * problem.head_dim;
        let out_stride = width + 8 * rng.below(3);
        let scale = match problem.scores {
            Scores::Normal => 1.0,
            Scores::Equal => 0.0,
            Scores::Large => 20.0,
        };
        let mut q = vec![0xffff; tokens * q_stride];
        for row in q.chunks_mut(q_stride) {
            row[..width].copy_from_slice(&rng.halves(problem.dtype, width, scale));
        }
        let mut starts = vec![0u32];
        starts.extend(problem.sequences.iter().scan(0, |end, (queries, _)| {
            *end += *queries as u32;
            Some(*end)
        }));
        let mut starts_buffer = Buffer::new(stream.device(), DType::U32, starts.len())?;
        stream.upload(&starts, starts_buffer.view_mut())?;
        Ok(Rows {
            q: Tensor::from_bits(stream, problem.dtype, q)?,
            q_stride,
            starts: starts_buffer,
            out: Tensor::output(stream, problem.dtype, tokens * out_stride)?,
            out_stride,
            tokens,
            width,
        })
    }

    pub fn views(&mut self) -> (View<'_>, View<'_>, ViewMut<'_>) {
        (
            self.q.buffer.matrix(self.tokens, self.q_stride).columns(0, self.width),
            self.starts.view(),
            self.out.buffer.matrix_mut(self.tokens, self.out_stride).columns(0, self.width),
        )
    }

    /// What the output holds now, on the CPU device.
    #[cfg(test)]
    pub fn bits(&self) -> Vec<u16> {
        self.out.buffer.view().row::<u16>(0).to_vec()
    }

    pub fn reset(&mut self, stream: &Stream) -> Result<(), Error> {
        self.out.reset(stream)
    }

    /// What the output holds now, gaps included.
    pub fn output(&self, stream: &Stream) -> Result<Output, Error> {
        Output::of("out", &self.out.buffer, stream)
    }

    /// Every element that must be written is finite, no other was touched, and the probes agree with the
    /// naive softmax. A row of an empty cache holds `empty`, or is untouched where that is none.
    pub fn compare(
        &self,
        stream: &Stream,
        problem: &Problem,
        cache: &Cache,
        empty: Option<f32>,
    ) -> Result<(), Mismatch> {
        let found = self.out.read(stream)?;
        let probes = self.probes(problem, &found, empty)?;
        let dim = problem.head_dim;
        let results: Vec<(usize, Vec<Expected>)> = probes
            .par_iter()
            .map(|probe| {
                let at = probe.row * self.out_stride + probe.head * dim;
                (at, self.naive(problem, cache, probe))
            })
            .collect();
        let (mut wrong, mut worst) = (0, None::<(f64, usize, &Expected)>);
        for (at, expected) in &results {
            for (i, expected) in expected.iter().enumerate() {
                let excess = (f64::from(found[at + i]) - expected.value).abs() / expected.tolerance;
                if excess.is_nan() || excess > 1.0 {
                    wrong += 1;
                    if worst.as_ref().is_none_or(|(most, ..)| excess.is_nan() || excess > *most) {
                        worst = Some((excess, at + i, expected));
                    }
                }
            }
        }
        let Some((_, index, expected)) = worst else { return Ok(()) };
        Err(Mismatch::Value {
            what: "out",
            index,
            found: found[index],
            expected: expected.value as f32,
            tolerance: expected.tolerance as f32,
            wrong,
            len: results.len() * dim,
        })
    }

    /// Checks what is and what is not written, and picks the rows to compare.
    fn probes(&self, problem: &Problem, found: &[f32], empty: Option<f32>) -> Result<Vec<Probe>, Mismatch> {
        let work = (problem.work().flops / 2) as usize;
        // Odd steps meet every head and position in turn.
        let step = (work / BUDGET) | 1;
        let (mut probes, mut row, mut count) = (Vec::new(), 0, 0);
        for (sequence, &(queries, kv_len)) in problem.sequences.iter().enumerate() {
            for query in 0..queries {
                let values = &found[row * self.out_stride..][..self.out_stride];
                let right = |(i, x): (usize, &f32)| match (i < self.width, kv_len, empty) {
                    (true, 1.., _) => x.is_finite(),
                    (true, 0, Some(empty)) => *x == empty,
                    _ => x.is_nan(),
                };
                if let Some(column) = values.iter().enumerate().position(|pair| !right(pair)) {
                    let what = if column < self.width { "not what it should be" } else { "outside the view" };
                    let at = format!("out[row {row}, column {column}] (sequence {sequence}, query {query})");
                    return Err(Mismatch::Other(format!("{at} = {} is {what}", values[column])));
                }
                for head in 0..if kv_len == 0 { 0 } else { problem.heads } {
                    if count % step == 0 || query + 1 == queries && head == 0 {
                        probes.push(Probe { sequence, row, position: kv_len - queries + query, head });
                    }
                    count += 1;
                }
                row += 1;
            }
        }
        Ok(probes)
    }

    /// The definition, in f64.
    fn naive(&self, problem: &Problem, cache: &Cache, probe: &Probe) -> Vec<Expected> {
        let (dim, kv_heads, dtype) = (problem.head_dim, problem.kv_heads, problem.dtype);
        let kv_head = probe.head / (problem.heads / kv_heads);
        let at = |key: usize, i| offset(cache.pages[probe.sequence][key / PAGE], kv_head, key % PAGE, i, kv_heads, dim);
        let bits = &self.q.values[probe.row * self.q_stride + probe.head * dim..][..dim];
        let q: Vec<f64> = bits.iter().map(|&bits| f64::from(dtype.decode(bits))).collect();
        let keys = problem.first_key(probe.position)..probe.position + 1;
        let products = |key| q.iter().enumerate().map(move |(i, q)| q * f64::from(cache.k.value(at(key, i))));
        let scale = f64::from(problem.scale());
        let cap = |score: f64| problem.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        let scores: Vec<f64> = keys.clone().map(|key| cap(products(key).sum::<f64>() * scale)).collect();
        // What tanh.approx may be off by: 2^-11 of the capped score.
        let capping = if problem.softcap.is_some() { 1.05 * 2f64.powi(-11) } else { 0.0 };
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();

        let magnitude = keys.clone().map(|key| products(key).map(f64::abs).sum::<f64>() * scale).fold(0.0, f64::max);
        let column = |i| {
            let values = keys.clone().map(move |key| f64::from(cache.v.value(at(key, i))));
            let value = values.clone().zip(&weights).map(|(v, p)| v * p).sum::<f64>() / sum;
            let mean_abs = values.clone().zip(&weights).map(|(v, p)| v.abs() * p).sum::<f64>() / sum;
            let abs = values.clone().map(f64::abs).sum::<f64>() / sum;
            let off = |((v, p), score): ((f64, &f64), &f64)| (v - value).abs() * p * score.abs();
            let capping = capping * values.zip(&weights).zip(&scores).map(off).sum::<f64>() / sum;
            Expected { value, tolerance: tolerance(dtype, value, mean_abs, abs, magnitude) + capping }
        };
        (0..dim).map(column).collect()
    }
}

struct Expected {
    value: f64,
    tolerance: f64,
}

/// What separates a right kernel from the definition:
/// - P is rounded to the 16-bit type before it weighs V: relative to the weighted mean of |v|;
/// - in f16, P below 2^-14 is subnormal: up to 2^-25 of each |v|;
/// - the output's own rounding;
/// - scores: f32 sums of head_dim products (tensor cores truncate each of up to 8 steps to about 2^-23 of
///   `magnitude`, the greatest scaled Σ|q·k|), which exp turns into relative errors of P; ex2.approx and l's sum.
fn tolerance(dtype: DType, value: f64, mean_abs: f64, sum_abs: f64, magnitude: f64) -> f64 {
    let epsilon = f64::from(dtype.epsilon());
    let subnormal = if dtype == DType::F16 { sum_abs * 2f64.powi(-25) } else { 0.0 };
    let scores = 2e-5 + 2e-6 * magnitude;
    1.01 * epsilon * (mean_abs + value.abs()) + subnormal + scores * mean_abs + 1e-6
}
