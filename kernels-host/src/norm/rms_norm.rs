//! Launchers, reference and cases of `kernels-gpu/src/norm/rms_norm.rs`.
use crate::case::{Case, Kernel, Mismatch, Prepared, Rng, Tensor, Work, compare};
use crate::host::{for_each_row, row_f32};
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::norm::rms_norm as gpu;
use kernels_gpu::tile::reduce::SCRATCH_BYTES;

/// `out = rms_norm(x) · weight`, per row.
pub struct RmsNorm<'a> {
    /// [tokens, width], bf16 or f16; width a multiple of 8 up to 16384.
    pub x: View<'a>,
    /// [width].
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

/// `residual += x; out = rms_norm(residual) · weight`, per row.
pub struct AddRmsNorm<'a> {
    /// [tokens, width], as [`RmsNorm`].
    pub x: View<'a>,
    /// [tokens, width], read and written.
    pub residual: ViewMut<'a>,
    /// [width].
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

impl RmsNorm<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        launch(stream, self.x, None, self.weight, self.eps, self.out)
    }
}

impl AddRmsNorm<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        launch(stream, self.x, Some(self.residual), self.weight, self.eps, self.out)
    }
}

fn launch(
    stream: &Stream,
    x: View<'_>,
    mut residual: Option<ViewMut<'_>>,
    weight: View<'_>,
    eps: f32,
    mut out: ViewMut<'_>,
) -> Result<(), Error> {
    let mut check = Check::new("rms_norm");
    check.half("x", &x, ["tokens", "width"])?;
    check.half("weight", &weight, ["1", "width"])?;
    check.half("out", &out.as_view(), ["tokens", "width"])?;
    if let Some(residual) = &residual {
        check.half("residual", &residual.as_view(), ["tokens", "width"])?;
    }
    let (tokens, width) = (check.dim("tokens"), check.dim("width"));
    check.require(width.is_multiple_of(8) && width <= gpu::MAX_WIDTH as usize, || {
        format!("width {width} must be a multiple of 8, at most {}", gpu::MAX_WIDTH)
    })?;
    if stream.is_cpu() {
        reference(x, residual.as_mut().map(ViewMut::reborrow), weight, eps, out.reborrow());
        return Ok(());
    }
    let entry = match (x.dtype(), &residual) {
        (DType::F16, None) => gpu::rms_norm_f16,
        (DType::F16, Some(_)) => gpu::add_rms_norm_f16,
        (_, None) => gpu::rms_norm_bf16,
        (_, Some(_)) => gpu::add_rms_norm_bf16,
    };
    let args = gpu::RmsNorm {
        x: x.ptr(),
        residual: residual.as_ref().map_or(out.ptr(), |residual| residual.ptr()),
        weight: weight.ptr(),
        out: out.ptr(),
        width: width as u32,
        x_stride: x.stride() as u32,
        residual_stride: residual.as_ref().map_or(0, |residual| residual.stride() as u32),
        out_stride: out.stride() as u32,
        eps,
    };
    // SAFETY: one block per token; every access is below `width` of a row that the views were checked to have.
    unsafe { stream.launch(entry, Launch::grid(tokens).shared(SCRATCH_BYTES).dependent(), &args) }
}

/// The naive reference, and the CPU device's kernel.
fn reference(x: View<'_>, residual: Option<ViewMut<'_>>, weight: View<'_>, eps: f32, out: ViewMut<'_>) {
    let mut gain = Vec::new();
    row_f32(&weight, 0, &mut gain);
    let normalise = |h: &mut [f32]| {
        let mean_square = h.iter().map(|v| v * v).sum::<f32>() / h.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        h.iter_mut().zip(&gain).for_each(|(v, w)| *v = *v * scale * w);
    };
    match residual {
        None => for_each_row(out, |token, h| {
            let mut row = Vec::new();
            row_f32(&x, token, &mut row);
            h.copy_from_slice(&row);
            normalise(h);
        }),
        Some(mut residual) => {
            let sum: Vec<f32> = residual.as_view().to_f32().iter().zip(x.to_f32()).map(|(r, x)| r + x).collect();
            residual.store_f32(&sum);
            let residual = residual.as_view();
            for_each_row(out, |token, h| {
                let mut row = Vec::new();
                row_f32(&residual, token, &mut row);
                h.copy_from_slice(&row);
                normalise(h);
            });
        }
    }
}

/// Tests and benches of both entries.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "norm/rms_norm",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for dtype in [DType::Bf16, DType::F16] {
                for add in [true, false] {
                    for (tokens, width) in
                        [(1, 4096), (2048, 4096), (64, 8192), (1, 8), (3, 2056), (5, 16384), (2, 256)]
                    {
                        cases.push(Box::new(Problem { dtype, add, tokens, width, scale: 1.0 }));
                    }
                    // Overflows f16's range when squared: the sum must be taken in f32.
                    cases.push(Box::new(Problem { dtype, add, tokens: 4, width: 1024, scale: 1e4 }));
                    cases.push(Box::new(Problem { dtype, add, tokens: 2, width: 64, scale: 0.0 }));
                }
            }
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (any::<bool>(), any::<bool>(), 1usize..40, 1usize..700, -3f32..3.0)
                .prop_map(|(f16, add, tokens, eighths, magnitude)| {
                    let dtype = if f16 { DType::F16 } else { DType::Bf16 };
                    Box::new(Problem { dtype, add, tokens, width: eighths * 8, scale: magnitude.exp() })
                        as Box<dyn Case>
                })
                .boxed()
        },
    }
}

#[derive(Debug)]
struct Problem {
    dtype: DType,
    add: bool,
    tokens: usize,
    width: usize,
    scale: f32,
}

const EPS: f32 = 1e-5;

impl Case for Problem {
    fn id(&self) -> String {
        let name = if self.add { "add_rms_norm" } else { "rms_norm" };
        format!("{name} {} tokens={} width={} scale={}", self.dtype, self.tokens, self.width, self.scale)
    }

    fn work(&self) -> Work {
        let row = (self.width * 2) as u64;
        let passes = if self.add { 4 } else { 2 };
        Work { bytes: self.tokens as u64 * row * passes + row, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.tokens * self.width >= 4096 && self.width.is_power_of_two() && self.scale == 1.0
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let len = self.tokens * self.width;
        Ok(Box::new(Data {
            x: Tensor::random(stream, &mut rng, self.dtype, len, self.scale)?,
            residual: Tensor::random(stream, &mut rng, self.dtype, len, self.scale)?,
            weight: Tensor::random(stream, &mut rng, self.dtype, self.width, 1.0)?,
            out: Tensor::output(stream, self.dtype, len)?,
            add: self.add,
            width: self.width,
        }))
    }
}

struct Data {
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    out: Tensor,
    add: bool,
    width: usize,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let tokens = self.x.values.len() / self.width;
        let x = self.x.buffer.matrix(tokens, self.width);
        let weight = self.weight.buffer.view();
        let out = self.out.buffer.matrix_mut(tokens, self.width);
        if self.add {
            AddRmsNorm { x, residual: self.residual.buffer.matrix_mut(tokens, self.width), weight, eps: EPS, out }
                .launch(stream)
        } else {
            RmsNorm { x, weight, eps: EPS, out }.launch(stream)
        }
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        self.residual.reset(stream)?;
        self.launch(stream)?;
        let dtype = self.x.buffer.dtype();
        let mut h = self.x.f32();
        if self.add {
            h.iter_mut().zip(self.residual.f32()).for_each(|(h, r)| *h = dtype.decode(dtype.encode(*h + r)));
            compare("residual", &self.residual.read(stream)?, &h, 0.0, 0.0)?;
        }
        let weight = self.weight.f32();
        let mut expected = Vec::new();
        for row in h.chunks(self.width) {
            let mean = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / self.width as f64;
            let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
            expected.extend(row.iter().zip(&weight).map(|(&v, &w)| (f64::from(v) * scale * f64::from(w)) as f32));
        }
        // One rounding to the element type, and f32 noise in the sum and rsqrt.
        compare("out", &self.out.read(stream)?, &expected, dtype.epsilon() * 1.01 + 1e-5, 1e-7)
    }
}
