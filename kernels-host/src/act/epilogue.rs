//! Launcher, reference and cases of `kernels-gpu/src/act/epilogue.rs`.
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work, compare_each};
use crate::gemm::{Activation, cases};
use crate::host::{for_each_row, row_f32};
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::act::epilogue as gpu;
use rayon::prelude::*;

/// `out = activation(x + bias) (+ out)`: what [`crate::gemm::Gemm`] does to its product, as a kernel of its own.
pub struct Epilogue<'a> {
    /// [rows, width], bf16 or f16; [rows, 2 · width] when gated, gate and up columns in alternating groups of 8.
    pub x: View<'a>,
    /// [1, columns of x].
    pub bias: Option<View<'a>>,
    /// What happens to the sum.
    pub activation: Activation,
    /// Whether to add what `out` holds.
    pub accumulate: bool,
    /// [rows, width]; width a multiple of 8.
    pub out: ViewMut<'a>,
}

impl Epilogue<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let Epilogue { x, bias, activation, accumulate, out } = self;
        let mut check = Check::new("epilogue");
        check.half("x", &x, ["rows", "columns"])?;
        if let Some(bias) = &bias {
            check.half("bias", bias, ["1", "columns"])?;
        }
        check.half("out", &out.as_view(), ["rows", "width"])?;
        let (rows, columns, width) = (check.dim("rows"), check.dim("columns"), check.dim("width"));
        let per_out = if activation.is_gated() { 2 } else { 1 };
        check.require(columns == per_out * width, || {
            format!("x has {columns} columns, {width} of out need {}", per_out * width)
        })?;
        check.require(width.is_multiple_of(8), || format!("width {width} must be a multiple of 8"))?;
        if stream.is_cpu() {
            reference(x, bias, activation, accumulate, out);
            return Ok(());
        }
        let entry = match (x.dtype(), activation.is_gated()) {
            (DType::F16, false) => gpu::epilogue_f16,
            (DType::F16, true) => gpu::epilogue_gated_f16,
            (_, false) => gpu::epilogue_bf16,
            (_, true) => gpu::epilogue_gated_bf16,
        };
        let args = gpu::Epilogue {
            x: x.ptr(),
            bias: bias.map_or(Default::default(), |bias| bias.ptr()),
            out: out.ptr(),
            width: width as u32,
            x_stride: x.stride() as u32,
            out_stride: out.stride() as u32,
            activation: activation.code(),
            accumulate: u32::from(accumulate),
        };
        let grid = Launch::grid3(rows, width.div_ceil(gpu::SPAN as usize), 1);
        // SAFETY: one block per row and span; the kernel compares the column with `width`, which the views have.
        unsafe { stream.launch(entry, grid.dependent(), &args) }
    }
}

/// The naive reference, and the CPU device's kernel.
fn reference(x: View<'_>, bias: Option<View<'_>>, activation: Activation, accumulate: bool, out: ViewMut<'_>) {
    let before = accumulate.then(|| out.as_view().to_f32());
    let mut added = vec![0.0; x.cols()];
    if let Some(bias) = &bias {
        row_f32(bias, 0, &mut added);
    }
    let width = out.cols();
    for_each_row(out, |row, values| {
        let mut v = Vec::new();
        row_f32(&x, row, &mut v);
        v.iter_mut().zip(&added).for_each(|(v, bias)| *v += bias);
        for (column, value) in values.iter_mut().enumerate() {
            *value = if activation.is_gated() {
                let gate = column / 8 * 16 + column % 8;
                activation.apply(v[gate]) * v[gate + 8]
            } else {
                activation.apply(v[column])
            };
            if let Some(before) = &before {
                *value += before[row * width + column];
            }
        }
    });
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::GeluTanh, Activation::GeluErf, Activation::SwiGlu, Activation::GeGlu];

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "act/epilogue",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for dtype in [DType::Bf16, DType::F16] {
                for (turn, activation) in ACTIVATIONS.into_iter().enumerate() {
                    let base =
                        Problem { dtype, activation, rows: 64, width: 14336, bias: turn == 0, accumulate: false };
                    cases.push(Box::new(base));
                    cases.push(Box::new(Problem {
                        rows: 3,
                        width: 2056,
                        bias: turn % 2 == 1,
                        accumulate: true,
                        ..base
                    }));
                    cases.push(Box::new(Problem { rows: 1, width: 8, ..base }));
                }
            }
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (any::<[bool; 3]>(), 1usize..40, 1usize..400, 0..ACTIVATIONS.len())
                .prop_map(|([f16, bias, accumulate], rows, eighths, activation)| {
                    let dtype = if f16 { DType::F16 } else { DType::Bf16 };
                    let (width, activation) = (eighths * 8, ACTIVATIONS[activation]);
                    Box::new(Problem { dtype, activation, rows, width, bias, accumulate }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    dtype: DType,
    activation: Activation,
    rows: usize,
    /// Of out.
    width: usize,
    bias: bool,
    accumulate: bool,
}

impl Problem {
    /// Of x.
    fn columns(&self) -> usize {
        if self.activation.is_gated() { 2 * self.width } else { self.width }
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        let Problem { dtype, activation, rows, width, .. } = self;
        let bias = if self.bias { " bias" } else { "" };
        let accumulate = if self.accumulate { " accumulate" } else { "" };
        format!("epilogue {dtype} {activation:?} rows={rows} width={width}{bias}{accumulate}")
    }

    fn work(&self) -> Work {
        let per_row = self.columns() + self.width * if self.accumulate { 2 } else { 1 };
        let bias = if self.bias { self.columns() } else { 0 };
        Work { bytes: 2 * (self.rows * per_row + bias) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.rows == 64
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let mut random = |len| Tensor::random(stream, &mut rng, self.dtype, len, 1.5);
        let (x, bias) = (random(self.rows * self.columns())?, random(self.columns())?);
        let len = self.rows * self.width;
        let out = if self.accumulate { random(len)? } else { Tensor::output(stream, self.dtype, len)? };
        Ok(Box::new(Data { problem: *self, x, bias, out }))
    }
}

struct Data {
    problem: Problem,
    x: Tensor,
    bias: Tensor,
    out: Tensor,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { activation, rows, width, bias, accumulate, .. } = self.problem;
        Epilogue {
            x: self.x.buffer.matrix(rows, self.problem.columns()),
            bias: bias.then(|| self.bias.buffer.view()),
            activation,
            accumulate,
            out: self.out.buffer.matrix_mut(rows, width),
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.out.reset(stream)?;
        self.launch(stream)?;
        Ok(vec![Output::of("out", &self.out.buffer, stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        self.out.reset(stream)?;
        self.launch(stream)?;
        let p = self.problem;
        let (x, bias, before) = (self.x.f32(), self.bias.f32(), self.out.f32());
        let value =
            |at: usize, column: usize| f64::from(x[at + column]) + if p.bias { f64::from(bias[column]) } else { 0.0 };
        let expected = (0..p.rows * p.width).into_par_iter().map(|index| {
            let (row, column) = (index / p.width * p.columns(), index % p.width);
            let gate = column / 8 * 16 + column % 8;
            let y = match p.activation {
                Activation::None => value(row, column),
                Activation::GeluTanh => cases::gelu_tanh(value(row, column)),
                Activation::GeluErf => {
                    let x = value(row, column);
                    0.5 * x * (1.0 + cases::erf(x * std::f64::consts::FRAC_1_SQRT_2))
                }
                Activation::SwiGlu => value(row, gate) / (1.0 + (-value(row, gate)).exp()) * value(row, gate + 8),
                Activation::GeGlu => cases::gelu_tanh(value(row, gate)) * value(row, gate + 8),
            };
            (y + if p.accumulate { f64::from(before[index]) } else { 0.0 }) as f32
        });
        let expected: Vec<f32> = expected.collect();
        // One rounding; the fast functions are good to 2e-6 of arguments of up to 11, times an up value of up to 11.
        let rounding = p.dtype.epsilon() * 1.01;
        compare_each("out", &self.out.read(stream)?, &expected, |index| expected[index].abs() * rounding + 1.5e-4)
    }
}
