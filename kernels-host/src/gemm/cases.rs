//! Cases of all matrix product kernels, and the naive check.
use super::{Activation, Gemm, Path};
use crate::case::{Case, Mismatch, Output, Prepared, Rng, Tensor, Work, compare_each};
use crate::{Buffer, DType, Error, Stream};
use rayon::prelude::*;

/// Linear layers of Llama-3.1-8B, [n, k]: qkv, attention output, gate and up, down.
const LLAMA_8B: [(usize, usize, Activation, bool); 4] = [
    (6144, 4096, Activation::None, false),
    (4096, 4096, Activation::None, true),
    (28672, 4096, Activation::SwiGlu, false),
    (4096, 14336, Activation::None, true),
];

/// The real shapes at decode, batched decode and prefill, the first to be benched.
pub(super) fn real(path: Option<Path>, tokens: &[usize]) -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for &m in tokens {
        for (n, k, activation, accumulate) in LLAMA_8B {
            let problem = Problem { path, m, n, k, activation, accumulate, ..Problem::default() };
            cases.push(Box::new(Problem { real: true, ..problem }));
        }
    }
    cases
}

/// The head of Llama-3.1-8B, with f32 logits.
pub(super) fn head(path: Option<Path>, tokens: &[usize]) -> Vec<Box<dyn Case>> {
    let head = Problem { path, n: 128_256, k: 4096, f32_out: true, real: true, ..Problem::default() };
    tokens.iter().map(|&m| Box::new(Problem { m, ..head }) as Box<dyn Case>).collect()
}

/// Up to 128 rows by one shape per edge of a tile of `rows` weight rows: many tiles, tails of k, strided rows.
pub(super) fn striped(path: Option<Path>, rows: usize, tokens: &[usize]) -> Vec<Box<dyn Case>> {
    let mut problems = Vec::new();
    for (turn, &m) in tokens.iter().enumerate() {
        let dtype = if turn % 2 == 0 { DType::Bf16 } else { DType::F16 };
        let base = Problem { path, dtype, m, n: 3 * rows, k: 1024, ..Problem::default() };
        problems.push(base);
        problems.push(Problem { n: 2 * rows + 5, k: 648, bias: true, accumulate: true, gap: true, ..base });
        problems.push(Problem { n: rows - 3, k: 4096, f32_out: true, bias: true, ..base });
        problems.push(Problem { n: rows + 6, k: 72, f32_out: true, ..base });
        let gated = Problem { n: (2 * rows).next_multiple_of(16) + 16, activation: Activation::SwiGlu, ..base };
        problems.push(Problem { k: 520, bias: true, ..gated });
        if rows <= 64 {
            // More tiles than multiprocessors.
            let many = Problem { n: 150 * rows + 1, k: 136, bias: true, ..base };
            problems.push(Problem { activation: Activation::GeluTanh, ..many });
        }
    }
    problems.into_iter().map(|problem| Box::new(problem) as Box<dyn Case>).collect()
}

/// Two tiles of `rows` weight rows in both types: small enough for any device.
pub(super) fn both_types(path: Option<Path>, rows: usize, tokens: &[usize]) -> Vec<Box<dyn Case>> {
    let problem = |m, dtype| Problem { path, dtype, m, n: rows + 6, k: 200, bias: true, ..Problem::default() };
    let both = |&m| [DType::Bf16, DType::F16].map(|dtype| Box::new(problem(m, dtype)) as Box<dyn Case>);
    tokens.iter().flat_map(both).collect()
}

/// The awkward shapes with `tokens` rows: odd widths, tails of k, every activation, both types.
pub(super) fn awkward(path: Option<Path>, tokens: &[usize]) -> Vec<Box<dyn Case>> {
    let mut problems = Vec::new();
    for (index, &m) in tokens.iter().enumerate() {
        for (turn, (n, k)) in
            [(1, 8), (37, 24), (131, 64), (128, 136), (131, 576), (256, 2048), (37, 2048)].into_iter().enumerate()
        {
            let dtype = if (index + turn) % 2 == 0 { DType::Bf16 } else { DType::F16 };
            let base = Problem { path, dtype, m, n, k, ..Problem::default() };
            problems.push(Problem { bias: turn % 3 == 0, accumulate: turn % 2 == 1, gap: turn % 4 == 2, ..base });
            if turn < 5 {
                problems.push(Problem { f32_out: true, bias: turn % 2 == 0, ..base });
            }
        }
        for (turn, (n, k)) in [(16, 8), (48, 136), (272, 576), (160, 2048)].into_iter().enumerate() {
            let dtype = if (index + turn) % 2 == 0 { DType::F16 } else { DType::Bf16 };
            let base = Problem { path, dtype, m, n, k, ..Problem::default() };
            for activation in [Activation::SwiGlu, Activation::GeGlu] {
                problems.push(Problem {
                    activation,
                    bias: turn % 2 == 1,
                    accumulate: turn == 2,
                    gap: turn == 1,
                    ..base
                });
            }
        }
        for activation in [Activation::GeluTanh, Activation::GeluErf] {
            for dtype in [DType::Bf16, DType::F16] {
                let base = Problem { path, dtype, m, n: 72, k: 136, ..Problem::default() };
                problems.push(Problem { activation, bias: true, accumulate: dtype == DType::F16, ..base });
            }
        }
    }
    problems.into_iter().map(|problem| Box::new(problem) as Box<dyn Case>).collect()
}

/// Several tiles a multiprocessor, each of several laps of the ring.
pub(super) fn long(path: Option<Path>) -> Box<dyn Case> {
    Box::new(Problem { path, m: 2000, n: 4000, k: 1304, ..Problem::default() })
}

/// Shapes of one and several 128-row tiles, with edges and tails of k in every position, large enough to give a
/// multiprocessor several tiles.
pub(super) fn tiled(path: Option<Path>) -> Vec<Box<dyn Case>> {
    let mut problems = Vec::new();
    let shapes = [
        (65, 8, 8),
        (100, 37, 64),
        (128, 128, 72),
        (128, 256, 64),
        (200, 136, 136),
        (256, 256, 1024),
        (300, 320, 4096),
        (300, 8, 1024),
        (512, 1000, 72),
        (512, 37, 136),
        (2048, 4096, 136),
        (2100, 4100, 320),
    ];
    for (turn, (m, n, k)) in shapes.into_iter().enumerate() {
        let dtype = if turn % 2 == 0 { DType::Bf16 } else { DType::F16 };
        let base = Problem { path, dtype, m, n, k, ..Problem::default() };
        problems.push(base);
        problems.push(Problem { bias: true, accumulate: true, gap: true, ..base });
        problems.push(Problem { f32_out: true, bias: turn % 2 == 0, ..base });
        let gated = Problem { n: n.next_multiple_of(16), activation: Activation::SwiGlu, ..base };
        problems.push(Problem { bias: turn % 3 == 0, accumulate: turn % 3 == 1, ..gated });
    }
    for activation in [Activation::GeluTanh, Activation::GeluErf, Activation::GeGlu] {
        problems.push(Problem { path, m: 200, n: 336, k: 136, activation, bias: true, ..Problem::default() });
    }
    problems.into_iter().map(|problem| Box::new(problem) as Box<dyn Case>).collect()
}

/// Square products.
pub(super) fn square(path: Option<Path>, sizes: &[usize]) -> Vec<Box<dyn Case>> {
    let problem = |&size| Problem { path, m: size, n: size, k: size, real: true, ..Problem::default() };
    sizes.iter().map(|size| Box::new(problem(size)) as Box<dyn Case>).collect()
}

/// Random shapes with up to `tokens` rows.
#[cfg(feature = "proptest")]
pub(super) fn random(path: Option<Path>, tokens: usize) -> proptest::strategy::BoxedStrategy<Box<dyn Case>> {
    use proptest::prelude::*;
    let activations =
        [Activation::None, Activation::GeluTanh, Activation::GeluErf, Activation::SwiGlu, Activation::GeGlu];
    let sizes = (1..=tokens, 1usize..300, 1usize..120);
    (sizes, 0..activations.len(), any::<[bool; 5]>())
        .prop_map(move |((m, n, eighths), activation, [f16, bias, accumulate, gap, f32_out])| {
            let activation = activations[activation];
            let f32_out = f32_out && activation == Activation::None;
            let problem = Problem {
                path,
                dtype: if f16 { DType::F16 } else { DType::Bf16 },
                m,
                n: if activation.is_gated() { n.next_multiple_of(16) } else { n },
                k: eighths * 8,
                activation,
                bias,
                accumulate: accumulate && !f32_out,
                f32_out,
                gap,
                real: false,
            };
            Box::new(problem) as Box<dyn Case>
        })
        .boxed()
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    path: Option<Path>,
    dtype: DType,
    m: usize,
    n: usize,
    k: usize,
    activation: Activation,
    bias: bool,
    accumulate: bool,
    f32_out: bool,
    /// Whether rows of a lie further apart than they are long.
    gap: bool,
    real: bool,
}

impl Default for Problem {
    fn default() -> Self {
        Problem {
            path: None,
            dtype: DType::Bf16,
            m: 1,
            n: 1,
            k: 8,
            activation: Activation::None,
            bias: false,
            accumulate: false,
            f32_out: false,
            gap: false,
            real: false,
        }
    }
}

impl Problem {
    fn a_stride(&self) -> usize {
        self.k + if self.gap { 24 } else { 0 }
    }
    /// Columns of out.
    fn width(&self) -> usize {
        if self.activation.is_gated() { self.n / 2 } else { self.n }
    }
    /// Rows start at multiples of 8 elements unless there is only one.
    fn out_stride(&self) -> usize {
        if self.m == 1 { self.width() } else { self.width().next_multiple_of(8) }
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        let mut id = format!("{} m={} n={} k={}", self.dtype, self.m, self.n, self.k);
        if let Some(Path::Wgmma(Some(tile))) = self.path {
            id += &format!(" cols={} bands={} share={} split={}", tile.cols, tile.bands, tile.share, tile.split);
        }
        if let Some(Path::Stream(Some(cut))) = self.path {
            id += &format!(" rows={} split={} depth={} teams={}", cut.rows, cut.split, cut.depth, cut.teams);
        }
        if self.activation != Activation::None {
            id += &format!(" {:?}", self.activation);
        }
        for (on, name) in
            [(self.bias, " bias"), (self.accumulate, " accumulate"), (self.f32_out, " f32"), (self.gap, " gap")]
        {
            id += if on { name } else { "" };
        }
        id
    }

    fn work(&self) -> Work {
        let (m, n, k) = (self.m as u64, self.n as u64, self.k as u64);
        let out = m * self.width() as u64;
        let per_out = if self.f32_out { 4 } else { 2 } + if self.accumulate { 2 } else { 0 };
        Work { bytes: 2 * k * (m + n) + out * per_out + if self.bias { 2 * n } else { 0 }, flops: 2 * m * n * k }
    }

    fn bench(&self) -> bool {
        self.real
    }

    fn checked_on_cpu(&self) -> bool {
        self.m * self.n * self.k <= 1 << 25
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let &Problem { dtype, m, n, k, .. } = self;
        let mut rng = Rng::new(seed);
        let a = random_rows(seed ^ 1, dtype, m, self.a_stride(), 1.0);
        // Outputs of about 1: every activation is exercised where it bends, and f16 does not overflow.
        let w = random_rows(seed ^ 2, dtype, n, k, 1.5 / (k as f32).sqrt());
        let out_len = m * self.out_stride();
        let out = if self.accumulate {
            Out::Half(Tensor::random(stream, &mut rng, dtype, out_len, 1.0)?)
        } else if self.f32_out {
            Out::F32(Buffer::new(stream.device(), DType::F32, out_len)?)
        } else {
            Out::Half(Tensor::output(stream, dtype, out_len)?)
        };
        Ok(Box::new(Data {
            a: Tensor::from_bits(stream, dtype, a)?,
            w: Tensor::from_bits(stream, dtype, w)?,
            bias: self.bias.then(|| Tensor::random(stream, &mut rng, dtype, n, 0.5)).transpose()?,
            out,
            problem: *self,
        }))
    }
}

/// Random rows, each from its own seed, in parallel: the largest case has 117 M values.
fn random_rows(seed: u64, dtype: DType, rows: usize, cols: usize, scale: f32) -> Vec<u16> {
    let mut bits = vec![0; rows * cols];
    bits.par_chunks_mut(cols).enumerate().for_each(|(row, bits)| {
        let mut rng = Rng::new(seed.wrapping_mul(0x1_0000_0001).wrapping_add(row as u64));
        bits.iter_mut().for_each(|bits| *bits = dtype.encode(rng.normal() * scale));
    });
    bits
}

struct Data {
    a: Tensor,
    w: Tensor,
    bias: Option<Tensor>,
    out: Out,
    problem: Problem,
}

enum Out {
    Half(Tensor),
    F32(Buffer),
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let p = self.problem;
        let (rows, stride) = (p.m, p.out_stride());
        let out = match &mut self.out {
            Out::Half(tensor) => tensor.buffer.matrix_mut(rows, stride),
            Out::F32(buffer) => buffer.matrix_mut(rows, stride),
        };
        Gemm {
            a: self.a.buffer.matrix(p.m, p.a_stride()).columns(0, p.k),
            w: self.w.buffer.matrix(p.n, p.k),
            bias: self.bias.as_ref().map(|bias| bias.buffer.view()),
            activation: p.activation,
            accumulate: p.accumulate,
            out: out.columns(0, p.width()),
        }
        .launch_with(stream, p.path)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        match &mut self.out {
            Out::Half(tensor) => tensor.reset(stream)?,
            Out::F32(buffer) => stream.fill(buffer.view_mut(), 0xff)?,
        }
        self.launch(stream)?;
        let (Out::Half(Tensor { buffer, .. }) | Out::F32(buffer)) = &self.out;
        Ok(vec![Output::of("out", buffer, stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let p = self.problem;
        let residual = match &mut self.out {
            Out::Half(tensor) => {
                tensor.reset(stream)?;
                p.accumulate.then(|| tensor.f32())
            }
            Out::F32(buffer) => {
                stream.fill(buffer.view_mut(), 0xff)?;
                None
            }
        };
        self.launch(stream)?;
        let found = match &self.out {
            Out::Half(tensor) => tensor.read(stream)?,
            Out::F32(buffer) => {
                let mut found = vec![0f32; buffer.len()];
                stream.download(buffer.view(), &mut found)?;
                found
            }
        };
        let rounding = if p.f32_out { DType::F32 } else { p.dtype }.epsilon();
        let naive = Naive { p, a: self.a.f32(), w: &self.w.values, bias: self.bias.as_ref().map(|bias| bias.f32()) };
        let positions = p.checked_positions();
        let (expected, tolerance): (Vec<f32>, Vec<f32>) = positions
            .par_iter()
            .map(|&(row, col)| {
                let (mut value, error) = naive.output(row, col);
                if let Some(residual) = &residual {
                    value += f64::from(residual[row * p.out_stride() + col]);
                }
                // The rounding of the output; 1e-7 also covers f16's subnormals.
                (value as f32, (error + value.abs() * f64::from(rounding) * 1.01 + 1e-7) as f32)
            })
            .unzip();
        let picked: Vec<f32> = positions.iter().map(|&(row, col)| found[row * p.out_stride() + col]).collect();
        compare_each("out", &picked, &expected, |index| tolerance[index])?;
        // What lies between the rows is not the kernel's to write.
        let gaps = if p.accumulate || p.f32_out { 0..0 } else { 0..p.m };
        for row in gaps {
            for col in p.width()..p.out_stride() {
                if !found[row * p.out_stride() + col].is_nan() {
                    return Err(Mismatch::Other(format!(
                        "out[{row}, {col}] lies outside of the matrix and was written"
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Problem {
    /// All outputs; of the real shapes four columns and, thinned out, four rows.
    fn checked_positions(&self) -> Vec<(usize, usize)> {
        let (m, width) = (self.m, self.width());
        if m * self.n * self.k <= 1 << 27 {
            return (0..m).flat_map(|row| (0..width).map(move |col| (row, col))).collect();
        }
        let whole_rows = [0, 1, m / 2, m - 1];
        let whole_cols = [0, 9, width / 3, width - 1];
        let rows = whole_rows.into_iter().flat_map(|row| (0..width).step_by(1 + m / 64).map(move |col| (row, col)));
        let cols = whole_cols.into_iter().flat_map(|col| (0..m).map(move |row| (row, col)));
        rows.chain(cols).filter(|&(row, _)| row < m).collect()
    }
}

/// The product by the definition, in f64.
struct Naive<'a> {
    p: Problem,
    a: Vec<f32>,
    w: &'a [u16],
    bias: Option<Vec<f32>>,
}

impl Naive<'_> {
    /// A column of the product with its bias, and what f32 accumulation in any order may be off by.
    fn product(&self, row: usize, col: usize) -> (f64, f64) {
        let a = &self.a[row * self.p.a_stride()..][..self.p.k];
        let w = &self.w[col * self.p.k..][..self.p.k];
        let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[col]));
        let (mut sum, mut magnitude) = (bias, bias.abs());
        for (&a, &w) in a.iter().zip(w) {
            let term = f64::from(a) * f64::from(self.p.dtype.decode(w));
            sum += term;
            magnitude += term.abs();
        }
        // Roundings add up like a random walk; tensor cores truncate, which doubles each.
        let steps = 2.0 * (self.p.k as f64).sqrt() + 4.0;
        (sum, steps * magnitude / f64::from(1u32 << 24))
    }

    /// An output before the residual, and its error before the last rounding.
    fn output(&self, row: usize, col: usize) -> (f64, f64) {
        // No activation is steeper than 1.13; their f32 formulas are good to 2e-6 of their argument.
        let bent = |x: f64, error: f64, y: f64| (y, 1.2 * error + 2e-6 * x.abs());
        let activate = |(x, error): (f64, f64)| match self.p.activation {
            Activation::None => (x, error),
            Activation::GeluTanh | Activation::GeGlu => bent(x, error, gelu_tanh(x)),
            Activation::GeluErf => bent(x, error, 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))),
            Activation::SwiGlu => bent(x, error, x / (1.0 + (-x).exp())),
        };
        if !self.p.activation.is_gated() {
            return activate(self.product(row, col));
        }
        let gate = col / 8 * 16 + col % 8;
        let (gate, gate_error) = activate(self.product(row, gate));
        let (up, up_error) = self.product(row, col / 8 * 16 + 8 + col % 8);
        (gate * up, gate_error * up.abs() + gate.abs() * up_error + 1e-7 * (gate * up).abs())
    }
}

/// The tanh form, in f64.
pub(crate) fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// erf by its Maclaurin series; beyond 5 it is ±1 to 1e-12.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[cfg(test)]
mod tests {
    use super::erf;

    #[test]
    fn erf_agrees_with_tables() {
        for (x, y) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0), (4.5, 1.0)] {
            assert!((erf(x) - y).abs() < 1e-9, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + y).abs() < 1e-9);
        }
    }
}
