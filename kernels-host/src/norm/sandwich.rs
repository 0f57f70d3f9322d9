//! Launcher, reference and cases of `kernels-gpu/src/norm/sandwich.rs`.
use super::row::sum;
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work, compare};
use crate::host::{for_each_row, row_f32};
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::norm::{row::threads, sandwich as gpu};

/// `residual += rms_norm(x) · weight; out = rms_norm(residual) · next_weight`, per row.
pub struct SandwichNorm<'a> {
    /// [tokens, width], bf16 or f16; width a multiple of 8 up to 8192.
    pub x: View<'a>,
    /// [1, width].
    pub weight: View<'a>,
    /// [tokens, width], read and written.
    pub residual: ViewMut<'a>,
    /// [1, width].
    pub next_weight: View<'a>,
    /// Added to both mean squares.
    pub eps: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

impl SandwichNorm<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let SandwichNorm { x, weight, residual, next_weight, eps, out } = self;
        let mut check = Check::new("sandwich_norm");
        check.half("x", &x, ["tokens", "width"])?;
        check.half("weight", &weight, ["1", "width"])?;
        check.half("residual", &residual.as_view(), ["tokens", "width"])?;
        check.half("next_weight", &next_weight, ["1", "width"])?;
        check.half("out", &out.as_view(), ["tokens", "width"])?;
        let (tokens, width) = (check.dim("tokens"), check.dim("width"));
        check.require(width.is_multiple_of(8) && width <= gpu::MAX_WIDTH as usize, || {
            format!("width {width} must be a multiple of 8, at most {}", gpu::MAX_WIDTH)
        })?;
        if stream.is_cpu() {
            reference(x, weight, residual, next_weight, eps, out);
            return Ok(());
        }
        let entry = if x.dtype() == DType::F16 { gpu::sandwich_norm_f16 } else { gpu::sandwich_norm_bf16 };
        let args = gpu::SandwichNorm {
            x: x.ptr(),
            residual: residual.ptr(),
            weight: weight.ptr(),
            next_weight: next_weight.ptr(),
            out: out.ptr(),
            width: width as u32,
            x_stride: x.stride() as u32,
            residual_stride: residual.stride() as u32,
            out_stride: out.stride() as u32,
            eps,
        };
        // SAFETY: one block per token; every access is below `width` of a row that the views were checked to have.
        unsafe {
            stream.launch(
                entry,
                Launch::grid(tokens).threads(threads(width as u32)).shared(gpu::SHARED_BYTES).dependent(),
                &args,
            )
        }
    }
}

/// The naive reference, and the CPU device's kernel.
fn reference(
    x: View<'_>,
    weight: View<'_>,
    mut residual: ViewMut<'_>,
    next_weight: View<'_>,
    eps: f32,
    out: ViewMut<'_>,
) {
    let scale = |row: &[f32]| 1.0 / (sum(row, |v| v * v) / row.len() as f32 + eps).sqrt();
    let (weight, next_weight) = (weight.to_f32(), next_weight.to_f32());
    let mut h = residual.as_view().to_f32();
    let mut row = Vec::new();
    for (token, h) in h.chunks_mut(weight.len()).enumerate() {
        row_f32(&x, token, &mut row);
        let scale = scale(&row);
        h.iter_mut().zip(&row).zip(&weight).for_each(|((h, x), w)| *h += x * scale * w);
    }
    residual.store_f32(&h);
    let residual = residual.as_view();
    for_each_row(out, |token, values| {
        let mut row = Vec::with_capacity(values.len());
        row_f32(&residual, token, &mut row);
        let scale = scale(&row);
        values.iter_mut().zip(&row).zip(&next_weight).for_each(|((value, h), w)| *value = h * scale * w);
    });
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "norm/sandwich",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for dtype in [DType::Bf16, DType::F16] {
                // 3584: Gemma 2 9B.
                for (tokens, width) in [(2048, 3584), (1, 3584), (32, 3584), (3, 8), (2, 4104), (5, 8192)] {
                    cases.push(Box::new(Problem { dtype, tokens, width, scale: 1.0 }));
                }
                // f16 overflows when squared; and a row of zeros.
                cases.push(Box::new(Problem { dtype, tokens: 4, width: 1024, scale: 1e4 }));
                cases.push(Box::new(Problem { dtype, tokens: 2, width: 64, scale: 0.0 }));
            }
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (any::<bool>(), 1usize..40, 1usize..700, -3f32..3.0)
                .prop_map(|(f16, tokens, eighths, magnitude)| {
                    let dtype = if f16 { DType::F16 } else { DType::Bf16 };
                    Box::new(Problem { dtype, tokens, width: eighths * 8, scale: magnitude.exp() }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    dtype: DType,
    tokens: usize,
    width: usize,
    /// Standard deviation of x.
    scale: f32,
}

const EPS: f32 = 1e-6;

impl Case for Problem {
    fn id(&self) -> String {
        format!("{} tokens={} width={} scale={}", self.dtype, self.tokens, self.width, self.scale)
    }

    fn work(&self) -> Work {
        Work { bytes: ((self.tokens * 4 + 2) * self.width * 2) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.width == 3584
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let len = self.tokens * self.width;
        Ok(Box::new(Data {
            problem: *self,
            x: Tensor::random(stream, &mut rng, self.dtype, len, self.scale)?,
            residual: Tensor::random(stream, &mut rng, self.dtype, len, 2.0)?,
            weight: Tensor::random(stream, &mut rng, self.dtype, self.width, 1.0)?,
            next_weight: Tensor::random(stream, &mut rng, self.dtype, self.width, 1.0)?,
            out: Tensor::output(stream, self.dtype, len)?,
        }))
    }
}

struct Data {
    problem: Problem,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    next_weight: Tensor,
    out: Tensor,
}

/// A row's norm in f64.
fn normalised(row: &[f32], weight: &[f32]) -> Vec<f64> {
    let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
    row.iter().zip(weight).map(|(&v, &w)| f64::from(v) * scale * f64::from(w)).collect()
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { tokens, width, .. } = self.problem;
        SandwichNorm {
            x: self.x.buffer.matrix(tokens, width),
            weight: self.weight.buffer.view(),
            residual: self.residual.buffer.matrix_mut(tokens, width),
            next_weight: self.next_weight.buffer.view(),
            eps: EPS,
            out: self.out.buffer.matrix_mut(tokens, width),
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.residual.reset(stream)?;
        self.out.reset(stream)?;
        self.launch(stream)?;
        let outputs = [("residual", &self.residual), ("out", &self.out)];
        outputs.into_iter().map(|(name, tensor)| Output::of(name, &tensor.buffer, stream)).collect()
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        self.residual.reset(stream)?;
        self.out.reset(stream)?;
        self.launch(stream)?;
        let Problem { dtype, width, .. } = self.problem;
        let (weight, next_weight) = (self.weight.f32(), self.next_weight.f32());
        let mut expected = self.residual.f32();
        for (h, x) in expected.chunks_mut(width).zip(self.x.f32().chunks(width)) {
            h.iter_mut().zip(normalised(x, &weight)).for_each(|(h, x)| *h = (f64::from(*h) + x) as f32);
        }
        // One rounding, and the f32 roundings of terms of at most 3.5 · 3.5.
        let relative = dtype.epsilon() * 1.01 + 1e-5;
        let found = self.residual.read(stream)?;
        compare("residual", &found, &expected, relative, 4e-6)?;
        // The second norm is of what was written.
        let out: Vec<f32> =
            found.chunks(width).flat_map(|row| normalised(row, &next_weight)).map(|v| v as f32).collect();
        compare("out", &self.out.read(stream)?, &out, relative, 1e-7)
    }
}
