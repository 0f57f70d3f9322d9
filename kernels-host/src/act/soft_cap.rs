//! Launcher, reference and cases of `kernels-gpu/src/act/soft_cap.rs`.
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Work, compare};
use crate::{Buffer, Check, DType, Error, Launch, Stream, ViewMut};
use kernels_gpu::act::soft_cap as gpu;
use std::f32::consts::LOG2_E;

/// `x ← cap · tanh(x / cap)`, element by element: logits.
pub struct SoftCap<'a> {
    /// f32 [rows, width].
    pub x: ViewMut<'a>,
    /// Positive.
    pub cap: f32,
}

impl SoftCap<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let SoftCap { mut x, cap } = self;
        let mut check = Check::new("soft_cap");
        check.typed("x", &x.as_view(), DType::F32, ["rows", "width"])?;
        check.require(cap.is_finite() && cap > 0.0, || format!("cap {cap} must be positive and finite"))?;
        if stream.is_cpu() {
            for row in 0..x.rows() {
                x.row_mut::<f32>(row).iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
            }
            return Ok(());
        }
        let args = gpu::SoftCap {
            x: x.ptr(),
            width: x.cols() as u32,
            stride: x.stride() as u32,
            cap,
            scale: 2.0 * LOG2_E / cap,
        };
        let grid = Launch::grid3(x.rows(), x.cols().div_ceil(gpu::SPAN as usize), 1);
        // SAFETY: one block per row and span; the kernel compares the column with the width.
        unsafe { stream.launch(gpu::soft_cap_f32, grid.dependent(), &args) }
    }
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "act/soft_cap",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            // 256000: Gemma 2's vocabulary.
            [(32, 256_000, 0, 30.0, 10.0), (1, 256_000, 0, 30.0, 10.0), (3, 1025, 7, 5.0, 1.0), (2, 1, 0, 30.0, 1e4)]
                .map(|(rows, width, gap, cap, scale)| {
                    Box::new(Problem { rows, width, gap, cap, scale }) as Box<dyn Case>
                })
                .into()
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (1usize..20, 1usize..3000, 0usize..9, 0.5f32..60.0, -4f32..6.0)
                .prop_map(|(rows, width, gap, cap, magnitude)| {
                    Box::new(Problem { rows, width, gap, cap, scale: magnitude.exp() }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    rows: usize,
    width: usize,
    /// Columns between the rows.
    gap: usize,
    cap: f32,
    /// Standard deviation of the values.
    scale: f32,
}

impl Case for Problem {
    fn id(&self) -> String {
        let Problem { rows, width, gap, cap, scale } = self;
        format!("rows={rows} width={width} gap={gap} cap={cap} scale={scale}")
    }

    fn work(&self) -> Work {
        Work { bytes: (self.rows * self.width * 8) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.width == 256_000
    }

    /// 1 − 2 / (E + 1), E = e^2|y| ≥ 1, in units of the cap. The manual's ex2.approx is off by 2^-22·E, which makes
    /// 2E / (E + 1)^2 · 2^-22 ≤ 2^-23 here; its rcp.approx by 2^-23 of at most 1. Against functions rounded correctly
    /// (2^-24 at most), that is 2^-22 + 2^-24; and the roundings of E + 1, of the product and of the difference, 2^-24
    /// each on either device, may go different ways: 2^-22 + 2^-24 + 6·2^-24 < 3·2^-22.
    fn absolute_error(&self) -> f64 {
        3.0 * f64::from(self.cap) * (-22f64).exp2()
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let values: Vec<f32> = (0..self.rows * (self.width + self.gap)).map(|_| rng.normal() * self.scale).collect();
        let x = Buffer::new(stream.device(), DType::F32, values.len())?;
        Ok(Box::new(Data { problem: *self, values, x }))
    }
}

struct Data {
    problem: Problem,
    values: Vec<f32>,
    x: Buffer,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { rows, width, gap, cap, .. } = self.problem;
        SoftCap { x: self.x.matrix_mut(rows, width + gap).columns(0, width), cap }.launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        stream.upload(&self.values, self.x.view_mut())?;
        self.launch(stream)?;
        Ok(vec![Output::of("x", &self.x, stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        stream.upload(&self.values, self.x.view_mut())?;
        self.launch(stream)?;
        let Problem { width, gap, cap, .. } = self.problem;
        let mut expected = self.values.clone();
        for row in expected.chunks_mut(width + gap) {
            row[..width]
                .iter_mut()
                .for_each(|x| *x = (f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh()) as f32);
        }
        let mut found = vec![0f32; expected.len()];
        stream.download(self.x.view(), &mut found)?;
        // ex2.approx, rcp.approx and the argument's rounding, where tanh' is greatest: 2^-21 of the cap.
        compare("x", &found, &expected, 1e-6, cap * 5e-7)
    }
}
