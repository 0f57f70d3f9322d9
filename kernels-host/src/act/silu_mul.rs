//! Launcher, reference and cases of `kernels-gpu/src/act/silu_mul.rs`.
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work, compare};
use crate::host::{for_each_row, row_f32};
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::act::silu_mul as gpu;

/// `out = silu(gate) · up`, element by element.
pub struct SiluMul<'a> {
    /// [tokens, width], bf16 or f16; width a multiple of 8.
    pub gate: View<'a>,
    /// [tokens, width].
    pub up: View<'a>,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

impl SiluMul<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let SiluMul { gate, up, out } = self;
        let mut check = Check::new("silu_mul");
        check.half("gate", &gate, ["tokens", "width"])?;
        check.half("up", &up, ["tokens", "width"])?;
        check.half("out", &out.as_view(), ["tokens", "width"])?;
        let (tokens, width) = (check.dim("tokens"), check.dim("width"));
        check.require(width.is_multiple_of(8), || format!("width {width} must be a multiple of 8"))?;
        if stream.is_cpu() {
            reference(gate, up, out);
            return Ok(());
        }
        let entry = if gate.dtype() == DType::F16 { gpu::silu_mul_f16 } else { gpu::silu_mul_bf16 };
        let args = gpu::SiluMul {
            gate: gate.ptr(),
            up: up.ptr(),
            out: out.ptr(),
            width: width as u32,
            gate_stride: gate.stride() as u32,
            up_stride: up.stride() as u32,
            out_stride: out.stride() as u32,
        };
        let grid = Launch::grid3(tokens, width.div_ceil(gpu::SPAN as usize), 1);
        // SAFETY: one block per token and span; the kernel compares the column with `width`, which the views have.
        unsafe { stream.launch(entry, grid.dependent(), &args) }
    }
}

/// The naive reference, and the CPU device's kernel.
fn reference(gate: View<'_>, up: View<'_>, out: ViewMut<'_>) {
    for_each_row(out, |token, values| {
        let (mut g, mut u) = (Vec::new(), Vec::new());
        row_f32(&gate, token, &mut g);
        row_f32(&up, token, &mut u);
        for ((value, g), u) in values.iter_mut().zip(g).zip(u) {
            *value = g / (1.0 + (-g).exp()) * u;
        }
    });
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "act/silu_mul",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for dtype in [DType::Bf16, DType::F16] {
                // 14336: Llama 3 8B's MLP.
                for (tokens, width) in [(256, 14336), (1, 14336), (1, 8), (3, 2056)] {
                    cases.push(Box::new(Problem { dtype, tokens, width, scale: 1.0 }));
                }
                // e^-gate overflows f32 at gate = -88.7: the result must be a zero, no NaN.
                cases.push(Box::new(Problem { dtype, tokens: 4, width: 512, scale: 60.0 }));
            }
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (any::<bool>(), 1usize..40, 1usize..700, -3f32..4.0)
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
    scale: f32,
}

impl Case for Problem {
    fn id(&self) -> String {
        format!("{} tokens={} width={} scale={}", self.dtype, self.tokens, self.width, self.scale)
    }

    fn work(&self) -> Work {
        Work { bytes: (self.tokens * self.width * 6) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.width == 14336
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let len = self.tokens * self.width;
        Ok(Box::new(Data {
            problem: *self,
            // Gate and up side by side, as one merged product leaves them.
            gate_up: Tensor::random(stream, &mut rng, self.dtype, 2 * len, self.scale)?,
            out: Tensor::output(stream, self.dtype, len)?,
        }))
    }
}

struct Data {
    problem: Problem,
    gate_up: Tensor,
    out: Tensor,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { tokens, width, .. } = self.problem;
        let gate_up = self.gate_up.buffer.matrix(tokens, 2 * width);
        SiluMul {
            gate: gate_up.columns(0, width),
            up: gate_up.columns(width, width),
            out: self.out.buffer.matrix_mut(tokens, width),
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
        let Problem { dtype, width, .. } = self.problem;
        let gate_up = self.gate_up.f32();
        let mut expected = Vec::new();
        for row in gate_up.chunks(2 * width) {
            let (gate, up) = row.split_at(width);
            expected.extend(gate.iter().zip(up).map(|(&gate, &up)| {
                let (gate, up) = (f64::from(gate), f64::from(up));
                (gate / (1.0 + (-gate).exp()) * up) as f32
            }));
        }
        // One rounding to the element type; the fast exponential of an argument of up to 88 is good to 88 · 2^-24
        // + 2^-22, which only counts where the result is not tiny. f16's subnormals are 6e-8 apart.
        compare("out", &self.out.read(stream)?, &expected, dtype.epsilon() * 1.01 + 1e-5, 1e-7)
    }
}
