//! Launcher and cases of `kernels-gpu/src/gemm/gemv_norm.rs`.
use super::{Activation, Gemm, Path, Shape, entry_index, gemv, pick};
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work};
use crate::norm::RmsNorm;
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::gemm::gemv_norm as gpu;
use kernels_gpu::norm::row::MAX_WIDTH;

/// `out = activation(rms_norm(a) · weight · wᵀ + bias) (+ out)`, the norm rounded to the element type: one kernel for
/// the rows that matrix-vector products are for, two for others.
pub struct NormGemm<'a> {
    /// The product; its `a` is what is normalised, k at most 16384.
    pub gemm: Gemm<'a>,
    /// [1, k]: the norm's. Read as early as `w`.
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// [m, k], as `a`: holds the norm between two kernels; undefined afterwards.
    pub normed: ViewMut<'a>,
}

impl NormGemm<'_> {
    /// Queues the kernel, or the two.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let shape = self.check()?;
        if Self::is_one_kernel(&self.gemm, stream) {
            self.launch_fused(&shape, stream)
        } else {
            self.launch_apart(stream, None)
        }
    }

    /// Whether one kernel does the product with a norm before it: on a GPU, where the product alone would be a
    /// matrix-vector product. (The others have few rows of weights to a block, and so too much to normalise for each.)
    pub fn is_one_kernel(gemm: &Gemm<'_>, stream: &Stream) -> bool {
        let shape = Shape { m: gemm.a.rows(), n: gemm.w.rows(), k: gemm.a.cols() };
        supports(gemm, &shape)
            && stream.device().target().is_some_and(|target| pick(gemm, &shape, target, stream) == Some(Path::Gemv))
    }

    pub(super) fn launch_apart(mut self, stream: &Stream, path: Option<Path>) -> Result<(), Error> {
        let (x, weight, eps) = (self.gemm.a, self.weight, self.eps);
        RmsNorm { x, weight, eps, out: self.normed.reborrow() }.launch(stream)?;
        Gemm { a: self.normed.as_view(), ..self.gemm }.launch_with(stream, path)
    }

    fn launch_fused(self, shape: &Shape, stream: &Stream) -> Result<(), Error> {
        let entries = match shape.m {
            1 => [gpu::gemv1_norm_bf16, gpu::gemv1_norm_f16, gpu::gemv1_norm_gated_bf16, gpu::gemv1_norm_gated_f16],
            2 => [gpu::gemv2_norm_bf16, gpu::gemv2_norm_f16, gpu::gemv2_norm_gated_bf16, gpu::gemv2_norm_gated_f16],
            _ => [gpu::gemv4_norm_bf16, gpu::gemv4_norm_f16, gpu::gemv4_norm_gated_bf16, gpu::gemv4_norm_gated_f16],
        };
        let gemm = &self.gemm;
        let args = gpu::GemvNorm {
            a: gemm.a.ptr(),
            norm_weight: self.weight.ptr(),
            w: gemm.w.ptr(),
            bias: gemm.bias.map_or(Default::default(), |bias| bias.ptr()),
            out: gemm.out.ptr(),
            m: shape.m as u32,
            n: shape.n as u32,
            k: shape.k as u32,
            a_stride: gemm.a.stride() as u32,
            w_stride: gemm.w.stride() as u32,
            out_stride: gemm.out.stride() as u32,
            activation: gemm.activation.code(),
            accumulate: u32::from(gemm.accumulate),
            eps: self.eps,
        };
        let launch = geometry(shape, stream);
        // SAFETY: the kernel reads and writes below m, n and k of views that were checked to have them.
        unsafe { stream.launch(entries[entry_index(gemm)], launch, &args) }
    }

    pub(super) fn check(&self) -> Result<Shape, Error> {
        let shape = self.gemm.check()?;
        let mut check = Check::new("norm_gemm");
        check.half("a", &self.gemm.a, ["m", "k"])?;
        check.half("weight", &self.weight, ["1", "k"])?;
        check.half("normed", &self.normed.as_view(), ["m", "k"])?;
        check.require(shape.k <= MAX_WIDTH as usize, || format!("k = {} must be at most {MAX_WIDTH}", shape.k))?;
        Ok(shape)
    }
}

/// Blocks for all multiprocessors, no more than there are groups of weight rows.
pub(super) fn geometry(shape: &Shape, stream: &Stream) -> Launch {
    let groups = shape.n.div_ceil(kernels_gpu::gemm::gemv::WEIGHT_ROWS);
    let blocks = groups.min(stream.device().multiprocessors() * gpu::BLOCKS as usize);
    Launch::grid(blocks).shared(gpu::shared_bytes(shape.m, shape.k) as u32).dependent()
}

/// Whether the kernel can do it: a's rows and the norm's weights must fit in shared memory.
fn supports(gemm: &Gemm<'_>, shape: &Shape) -> bool {
    shape.m > 0
        && shape.n > 0
        && gemv::supports(shape)
        && gpu::shared_bytes(shape.m, shape.k) <= gemv::MOST_SHARED
        && gemm.out.dtype() != DType::F32
}

/// Tests and benches.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/gemv_norm",
        entries: gpu::ENTRIES.to_vec(),
        pinned,
        #[cfg(feature = "proptest")]
        random,
    }
}

fn pinned() -> Vec<Box<dyn Case>> {
    let llama = |m, n, activation| Problem { m, n, k: 4096, activation, real: true, ..Problem::default() };
    let mut problems = Vec::new();
    for m in [1, 2] {
        problems.push(llama(m, 6144, Activation::None));
        problems.push(llama(m, 28672, Activation::SwiGlu));
    }
    for (turn, m) in [1, 2, 3, 4].into_iter().enumerate() {
        for dtype in [DType::Bf16, DType::F16] {
            let base = Problem { m, dtype, ..Problem::default() };
            // k: below a warp of the norm, its second step in part, an odd number of its warps, many of them.
            problems.push(Problem { n: 37, k: 8, ..base });
            problems.push(Problem { n: 131, k: 136, bias: true, gap: true, ..base });
            problems.push(Problem { n: 21, k: 2056, accumulate: true, ..base });
            problems.push(Problem { n: 9, k: 4096, scale: 30.0, ..base });
            let gated = Problem { n: 48, activation: Activation::SwiGlu, ..base };
            problems.push(Problem { k: 1536, gap: turn % 2 == 0, ..gated });
            problems.push(Problem { k: 72, bias: true, activation: Activation::GeGlu, ..gated });
        }
        // More groups than blocks: some go on with a second.
        problems.push(Problem { m, n: 13_001, k: 24, bias: true, ..Problem::default() });
        problems.push(Problem { m, n: 12_816, k: 24, activation: Activation::SwiGlu, ..Problem::default() });
    }
    problems.push(Problem { n: 16, k: 16384, ..Problem::default() });
    problems.push(Problem { m: 2, n: 16, k: 64, scale: 0.0, ..Problem::default() });
    problems.into_iter().map(|problem| Box::new(problem) as Box<dyn Case>).collect()
}

#[cfg(feature = "proptest")]
fn random() -> proptest::strategy::BoxedStrategy<Box<dyn Case>> {
    use proptest::prelude::*;
    let activations = [Activation::None, Activation::GeluTanh, Activation::SwiGlu];
    ((1usize..5, 1usize..200, 1usize..300, -3f32..3.0), 0..activations.len(), any::<[bool; 4]>())
        .prop_map(move |((m, n, eighths, magnitude), activation, [f16, bias, accumulate, gap])| {
            let activation = activations[activation];
            let problem = Problem {
                dtype: if f16 { DType::F16 } else { DType::Bf16 },
                m,
                n: if activation.is_gated() { n.next_multiple_of(16) } else { n },
                k: eighths * 8,
                activation,
                bias,
                accumulate,
                gap,
                scale: magnitude.exp(),
                real: false,
            };
            Box::new(problem) as Box<dyn Case>
        })
        .boxed()
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    dtype: DType,
    m: usize,
    n: usize,
    k: usize,
    activation: Activation,
    bias: bool,
    accumulate: bool,
    /// Whether rows of a lie further apart than they are long.
    gap: bool,
    /// Standard deviation of a.
    scale: f32,
    real: bool,
}

impl Default for Problem {
    fn default() -> Self {
        Problem {
            dtype: DType::Bf16,
            m: 1,
            n: 16,
            k: 8,
            activation: Activation::None,
            bias: false,
            accumulate: false,
            gap: false,
            scale: 1.0,
            real: false,
        }
    }
}

const EPS: f32 = 1e-5;

impl Problem {
    fn a_stride(&self) -> usize {
        self.k + if self.gap { 24 } else { 0 }
    }
    /// Columns of out.
    fn width(&self) -> usize {
        if self.activation.is_gated() { self.n / 2 } else { self.n }
    }
    fn out_stride(&self) -> usize {
        self.width().next_multiple_of(8)
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        let &Problem { dtype, m, n, k, scale, .. } = self;
        let mut id = format!("{dtype} m={m} n={n} k={k}");
        if self.activation != Activation::None {
            id += &format!(" {:?}", self.activation);
        }
        for (on, name) in [(self.bias, " bias"), (self.accumulate, " accumulate"), (self.gap, " gap")] {
            id += if on { name } else { "" };
        }
        if scale == 1.0 { id } else { format!("{id} scale={scale}") }
    }

    fn work(&self) -> Work {
        let (m, n, k) = (self.m as u64, self.n as u64, self.k as u64);
        let out = m * self.width() as u64 * if self.accumulate { 4 } else { 2 };
        Work { bytes: 2 * k * (m + n + 1) + out + if self.bias { 2 * n } else { 0 }, flops: 2 * m * n * k }
    }

    fn bench(&self) -> bool {
        self.real
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let &Problem { dtype, m, n, k, scale, .. } = self;
        let mut rng = Rng::new(seed);
        let out = m * self.out_stride();
        Ok(Box::new(Data {
            a: Tensor::random(stream, &mut rng, dtype, m * self.a_stride(), scale)?,
            weight: Tensor::random(stream, &mut rng, dtype, k, 1.0)?,
            w: Tensor::random(stream, &mut rng, dtype, n * k, 1.5 / (k as f32).sqrt())?,
            bias: self.bias.then(|| Tensor::random(stream, &mut rng, dtype, n, 0.5)).transpose()?,
            normed: Tensor::output(stream, dtype, m * k)?,
            out: match self.accumulate {
                true => Tensor::random(stream, &mut rng, dtype, out, 1.0)?,
                false => Tensor::output(stream, dtype, out)?,
            },
            problem: *self,
        }))
    }
}

struct Data {
    problem: Problem,
    a: Tensor,
    weight: Tensor,
    w: Tensor,
    bias: Option<Tensor>,
    normed: Tensor,
    out: Tensor,
}

impl Data {
    fn product(&mut self) -> NormGemm<'_> {
        let p = self.problem;
        NormGemm {
            gemm: Gemm {
                a: self.a.buffer.matrix(p.m, p.a_stride()).columns(0, p.k),
                w: self.w.buffer.matrix(p.n, p.k),
                bias: self.bias.as_ref().map(|bias| bias.buffer.view()),
                activation: p.activation,
                accumulate: p.accumulate,
                out: self.out.buffer.matrix_mut(p.m, p.out_stride()).columns(0, p.width()),
            },
            weight: self.weight.buffer.view(),
            eps: EPS,
            normed: self.normed.buffer.matrix_mut(p.m, p.k),
        }
    }
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let product = self.product();
        let shape = product.check()?;
        if stream.is_cpu() { product.launch(stream) } else { product.launch_fused(&shape, stream) }
    }

    /// The two kernels, which have naive references of their own, are the reference: not a bit may differ.
    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let p = self.problem;
        let found = self.outputs(stream)?.remove(0).bytes;
        self.out.reset(stream)?;
        self.product().launch_apart(stream, Some(Path::Gemv))?;
        let expected = Output::of("out", &self.out.buffer, stream)?.bytes;
        let wrong = found.chunks_exact(2).zip(expected.chunks_exact(2)).position(|(found, expected)| found != expected);
        wrong.map_or(Ok(()), |at| {
            let (row, col, at) = (at / p.out_stride(), at % p.out_stride(), 2 * at);
            let [found, expected] = [&found, &expected].map(|all| u16::from_le_bytes([all[at], all[at + 1]]));
            Err(Mismatch::Other(format!("out[{row}, {col}] is {found:#06x}, the two kernels have {expected:#06x}")))
        })
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.out.reset(stream)?;
        self.launch(stream)?;
        Ok(vec![Output::of("out", &self.out.buffer, stream)?])
    }
}
