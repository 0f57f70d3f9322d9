//! What the normalisations share on the host: checks, the residual add of the references, cases.
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work, compare};
use crate::host::{for_each_row, row_f32};
use crate::norm::{AddLayerNorm, AddRmsNorm, LayerNorm, RmsNorm};
use crate::{Check, DType, Error, Stream, View, ViewMut};
use kernels_gpu::norm::row::MAX_WIDTH;

/// Checks the views that every normalisation has; returns tokens and width.
pub(super) fn check(
    kernel: &'static str,
    x: &View<'_>,
    residual: Option<&ViewMut<'_>>,
    parameters: &[(&'static str, View<'_>)],
    out: &ViewMut<'_>,
) -> Result<(usize, usize), Error> {
    let mut check = Check::new(kernel);
    check.half("x", x, ["tokens", "width"])?;
    for (name, view) in parameters {
        check.half(name, view, ["1", "width"])?;
    }
    check.half("out", &out.as_view(), ["tokens", "width"])?;
    if let Some(residual) = residual {
        check.half("residual", &residual.as_view(), ["tokens", "width"])?;
    }
    let (tokens, width) = (check.dim("tokens"), check.dim("width"));
    check.require(width.is_multiple_of(8) && width <= MAX_WIDTH as usize, || {
        format!("width {width} must be a multiple of 8, at most {MAX_WIDTH}")
    })?;
    Ok((tokens, width))
}

/// The shape of every normalisation's reference: h = x (+ residual, written back), then `normalise` in place.
pub(super) fn reference(
    x: View<'_>,
    residual: Option<ViewMut<'_>>,
    out: ViewMut<'_>,
    normalise: impl Fn(&mut [f32]) + Sync,
) {
    let run = |h: View<'_>, out: ViewMut<'_>| {
        for_each_row(out, |token, values| {
            let mut row = Vec::with_capacity(values.len());
            row_f32(&h, token, &mut row);
            values.copy_from_slice(&row);
            normalise(values);
        });
    };
    match residual {
        None => run(x, out),
        Some(mut residual) => {
            let sum: Vec<f32> = residual.as_view().to_f32().iter().zip(x.to_f32()).map(|(r, x)| r + x).collect();
            residual.store_f32(&sum);
            run(residual.as_view(), out);
        }
    }
}

/// Σ f(v) in sixteen partial sums: the compiler turns them into vectors, and rounding grows with width / 16.
pub(super) fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane += f(v));
    }
    lanes.iter().sum::<f32>() + rest
}

/// Which normalisation a problem is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norm {
    Rms,
    Layer,
}

/// The kernel's cases.
pub(super) fn pinned(norm: Norm) -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for dtype in [DType::Bf16, DType::F16] {
        for add in [true, false] {
            let base = Problem { norm, dtype, add, tokens: 1, width: 4096, scale: 1.0, offset: 0.0 };
            for (tokens, width) in
                [(1, 4096), (2048, 4096), (16384, 4096), (64, 8192), (1, 8), (3, 2056), (5, 16384), (2, 256)]
            {
                cases.push(Box::new(Problem { tokens, width, ..base }));
            }
            // Overflows f16's range when squared: the sum must be taken in f32.
            cases.push(Box::new(Problem { tokens: 4, width: 1024, scale: 1e4, ..base }));
            cases.push(Box::new(Problem { tokens: 2, width: 64, scale: 0.0, ..base }));
            // A mean far above the deviation: E[x²] − E[x]² would lose it. And rows of equal values.
            cases.push(Box::new(Problem { tokens: 3, width: 3000, offset: 500.0, ..base }));
            cases.push(Box::new(Problem { tokens: 2, width: 136, scale: 0.0, offset: 3.0, ..base }));
        }
    }
    cases
}

/// Random cases.
#[cfg(feature = "proptest")]
pub(super) fn random(norm: Norm) -> proptest::strategy::BoxedStrategy<Box<dyn Case>> {
    use proptest::prelude::*;
    (any::<bool>(), any::<bool>(), 1usize..40, 1usize..700, -3f32..3.0, -20f32..20.0)
        .prop_map(move |(f16, add, tokens, eighths, magnitude, offset)| {
            let dtype = if f16 { DType::F16 } else { DType::Bf16 };
            let scale = magnitude.exp();
            Box::new(Problem { norm, dtype, add, tokens, width: eighths * 8, scale, offset }) as Box<dyn Case>
        })
        .boxed()
}

#[derive(Debug, Clone, Copy)]
struct Problem {
    norm: Norm,
    dtype: DType,
    add: bool,
    tokens: usize,
    width: usize,
    /// Standard deviation of the inputs.
    scale: f32,
    /// Their mean.
    offset: f32,
}

const EPS: f32 = 1e-5;

impl Case for Problem {
    fn id(&self) -> String {
        let name = match (self.norm, self.add) {
            (Norm::Rms, false) => "rms_norm",
            (Norm::Rms, true) => "add_rms_norm",
            (Norm::Layer, false) => "layer_norm",
            (Norm::Layer, true) => "add_layer_norm",
        };
        let offset = if self.offset == 0.0 { String::new() } else { format!(" offset={}", self.offset) };
        format!("{name} {} tokens={} width={} scale={}{offset}", self.dtype, self.tokens, self.width, self.scale)
    }

    fn work(&self) -> Work {
        let row = (self.width * 2) as u64;
        let passes = if self.add { 4 } else { 2 };
        let parameters = if self.norm == Norm::Layer { 2 } else { 1 };
        Work { bytes: self.tokens as u64 * row * passes + row * parameters, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.tokens * self.width >= 4096 && self.width.is_power_of_two() && self.scale == 1.0
    }

    fn checked_on_cpu(&self) -> bool {
        self.tokens < 16384
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let len = self.tokens * self.width;
        let x = (0..len).map(|_| self.dtype.encode(self.offset + rng.normal() * self.scale)).collect();
        Ok(Box::new(Data {
            problem: *self,
            x: Tensor::from_bits(stream, self.dtype, x)?,
            residual: Tensor::random(stream, &mut rng, self.dtype, len, self.scale)?,
            weight: Tensor::random(stream, &mut rng, self.dtype, self.width, 1.0)?,
            bias: Tensor::random(stream, &mut rng, self.dtype, self.width, 1.0)?,
            out: Tensor::output(stream, self.dtype, len)?,
        }))
    }
}

struct Data {
    problem: Problem,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
}

impl Data {
    /// What the norm makes of a row, in f64, and the error that f32 arithmetic may add to its values.
    fn expected(&self, row: &[f32], weight: &[f32], bias: &[f32]) -> (Vec<f32>, f32) {
        let len = row.len() as f64;
        let mean = match self.problem.norm {
            Norm::Rms => 0.0,
            Norm::Layer => row.iter().map(|&v| f64::from(v)).sum::<f64>() / len,
        };
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / len;
        let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
        let out = row.iter().zip(weight).zip(bias).map(|((&v, &w), &b)| {
            let b = if self.problem.norm == Norm::Layer { f64::from(b) } else { 0.0 };
            ((f64::from(v) - mean) * scale * f64::from(w) + b) as f32
        });
        // The mean is off by a few f32 roundings of its own size; the weights are at most 3.5. The bias may
        // cancel the rest, which leaves the roundings of terms of at most 3.5 · 3.5.
        let noise = if self.problem.norm == Norm::Layer { 4e-6 * (1.0 + (mean * scale).abs()) } else { 1e-7 };
        (out.collect(), noise as f32)
    }
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { norm, add, tokens, width, .. } = self.problem;
        let x = self.x.buffer.matrix(tokens, width);
        let (weight, bias) = (self.weight.buffer.view(), self.bias.buffer.view());
        let residual = self.residual.buffer.matrix_mut(tokens, width);
        let out = self.out.buffer.matrix_mut(tokens, width);
        match (norm, add) {
            (Norm::Rms, false) => RmsNorm { x, weight, eps: EPS, out }.launch(stream),
            (Norm::Rms, true) => AddRmsNorm { x, residual, weight, eps: EPS, out }.launch(stream),
            (Norm::Layer, false) => LayerNorm { x, weight, bias, eps: EPS, out }.launch(stream),
            (Norm::Layer, true) => AddLayerNorm { x, residual, weight, bias, eps: EPS, out }.launch(stream),
        }
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
        self.launch(stream)?;
        let dtype = self.problem.dtype;
        let mut h = self.x.f32();
        if self.problem.add {
            h.iter_mut().zip(self.residual.f32()).for_each(|(h, r)| *h = dtype.decode(dtype.encode(*h + r)));
            compare("residual", &self.residual.read(stream)?, &h, 0.0, 0.0)?;
        }
        let (weight, bias) = (self.weight.f32(), self.bias.f32());
        let (mut expected, mut absolute) = (Vec::new(), 0f32);
        for row in h.chunks(self.problem.width) {
            let (row, noise) = self.expected(row, &weight, &bias);
            expected.extend(row);
            absolute = absolute.max(noise);
        }
        // One rounding to the element type, and f32 noise in the sums and rsqrt.
        compare("out", &self.out.read(stream)?, &expected, dtype.epsilon() * 1.01 + 1e-5, absolute)
    }
}

/// The kernel of a norm.
pub(super) fn kernel(name: &'static str, entries: &[&'static str], norm: Norm) -> Kernel {
    Kernel {
        name,
        entries: entries.to_vec(),
        pinned: match norm {
            Norm::Rms => || pinned(Norm::Rms),
            Norm::Layer => || pinned(Norm::Layer),
        },
        #[cfg(feature = "proptest")]
        random: match norm {
            Norm::Rms => || random(Norm::Rms),
            Norm::Layer => || random(Norm::Layer),
        },
    }
}
