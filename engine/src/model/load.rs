//! Weights from a checkpoint, or random ones, into device buffers in the layout that kernels want.
use super::blocks::{Linear, Norm};
use crate::checkpoint::{Checkpoint, TensorRef};
use crate::config::{self, Dtype, ModelConfig};
use crate::error::{Error, Result};
use crate::weights::TensorKind;
use kernels_host::fill::FillNormal;
use kernels_host::gemm::interleave_gate_up;
use kernels_host::{Buffer, DType, Stream};
use std::cell::Cell;

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum WeightSource<'a> {
    /// A checkpoint.
    Checkpoint(&'a Checkpoint),
    /// Random ones made on the device from a seed (`--load-format dummy`).
    Dummy {
        /// The same seed gives the same weights on every device.
        seed: u64,
    },
}

/// Called with the parameters loaded so far and in all.
pub type LoadProgress<'a> = dyn Fn(u64, u64) + 'a;

/// Standard deviation of random matrices: Hugging Face's `initializer_range`.
const DUMMY_STD: f32 = 0.02;

pub(super) struct Loader<'a> {
    stream: &'a Stream,
    config: &'a ModelConfig,
    source: WeightSource<'a>,
    dtype: DType,
    progress: &'a LoadProgress<'a>,
    done: Cell<u64>,
    total: u64,
}

impl<'a> Loader<'a> {
    pub fn new(
        stream: &'a Stream,
        config: &'a ModelConfig,
        source: WeightSource<'a>,
        progress: &'a LoadProgress<'a>,
    ) -> Self {
        let dtype = match config.dtype {
            Dtype::F16 => DType::F16,
            Dtype::Bf16 | Dtype::F32 => DType::Bf16,
        };
        Loader {
            stream,
            config,
            source,
            dtype,
            progress,
            done: Cell::new(0),
            total: crate::weights::parameter_count(config),
        }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Waits for the uploads.
    pub fn finish(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    /// `NAME.weight`s of the given rows each, stacked, [sum of rows, cols].
    pub fn matrix(&self, names: &[&str], rows: &[usize], cols: usize) -> Result<Buffer> {
        let shapes: Vec<_> = rows.iter().map(|&rows| vec![rows, cols]).collect();
        self.stacked(names, "weight", &shapes, TensorKind::Matrix)
    }

    /// As [`Loader::matrix`], with the `NAME.bias`es if there are.
    pub fn linear(&self, names: &[&str], rows: &[usize], cols: usize, bias: bool) -> Result<Linear> {
        let weight = self.matrix(names, rows, cols)?;
        let shapes: Vec<_> = rows.iter().map(|&rows| vec![rows]).collect();
        let bias = if bias { Some(self.stacked(names, "bias", &shapes, TensorKind::Bias)?) } else { None };
        Ok(Linear::new(weight, bias, rows.iter().sum(), cols))
    }

    /// Gate and up projections, rows interleaved in groups of 8 as the gated epilogue wants them.
    pub fn gate_up(&self, gate: &str, up: &str, inner: usize, hidden: usize, bias: bool) -> Result<Linear> {
        let interleaved = |part: &str, shape: &[usize], kind| -> Result<Buffer> {
            let cols = shape.get(1).copied().unwrap_or(1);
            let WeightSource::Checkpoint(checkpoint) = self.source else {
                return self.random(&format!("{gate}.{part}"), 2 * inner * cols, kind);
            };
            let read = |name: &str| -> Result<Vec<u16>> {
                let mut values = vec![0; inner * cols];
                self.convert(&checkpoint.expect(&format!("{name}.{part}"), shape)?, &mut values)?;
                Ok(values)
            };
            let mut merged = vec![0; 2 * inner * cols];
            interleave_gate_up(&read(gate)?, &read(up)?, inner, cols, &mut merged);
            self.upload(&merged)
        };
        let weight = interleaved("weight", &[inner, hidden], TensorKind::Matrix)?;
        let bias = if bias { Some(interleaved("bias", &[inner], TensorKind::Bias)?) } else { None };
        Ok(Linear::new(weight, bias, 2 * inner, hidden))
    }

    /// One vector by its full name.
    pub fn vector(&self, name: &str, len: usize, kind: TensorKind) -> Result<Buffer> {
        match self.source {
            WeightSource::Dummy { .. } => self.random(name, len, kind),
            WeightSource::Checkpoint(checkpoint) => {
                let mut values = vec![0; len];
                self.convert(&checkpoint.expect(name, &[len])?, &mut values)?;
                if kind == TensorKind::NormWeight && self.config.norm_plus_one {
                    // The sum takes one more rounding, of the size of the norm's own.
                    values.iter_mut().for_each(|bits| *bits = self.dtype.encode(self.dtype.decode(*bits) + 1.0));
                }
                self.upload(&values)
            }
        }
    }

    /// The model's kind of norm.
    pub fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.vector(&format!("{name}.weight"), width, TensorKind::NormWeight)?;
        let bias = match self.config.norm {
            config::Norm::Rms { .. } => None,
            config::Norm::Layer { .. } => Some(self.vector(&format!("{name}.bias"), width, TensorKind::Bias)?),
        };
        Ok(Norm::new(weight, bias, self.config.norm.eps()))
    }

    pub fn unsupported_activation(&self, gated: bool, activation: config::Activation) -> Error {
        let shape = if gated { "a gated" } else { "an ungated" };
        Error::Config {
            origin: "config.json".into(),
            field: "hidden_act".into(),
            problem: format!(
                "{activation:?} in {shape} MLP has no kernel; supported are gated silu and gelu_pytorch_tanh, ungated gelu and gelu_pytorch_tanh"
            ),
        }
    }

    fn stacked(&self, names: &[&str], part: &str, shapes: &[Vec<usize>], kind: TensorKind) -> Result<Buffer> {
        let sizes: Vec<usize> = shapes.iter().map(|shape| shape.iter().product()).collect();
        let len = sizes.iter().sum();
        let WeightSource::Checkpoint(checkpoint) = self.source else {
            return self.random(&format!("{}.{part}", names[0]), len, kind);
        };
        let mut values = vec![0; len];
        let mut rest = values.as_mut_slice();
        for ((name, shape), size) in names.iter().zip(shapes).zip(sizes) {
            let (into, tail) = rest.split_at_mut(size);
            self.convert(&checkpoint.expect(&format!("{name}.{part}"), shape)?, into)?;
            rest = tail;
        }
        self.upload(&values)
    }

    fn convert(&self, tensor: &TensorRef<'_>, into: &mut [u16]) -> Result<()> {
        match self.dtype {
            DType::F16 => tensor.to_f16(into),
            _ => tensor.to_bf16(into),
        }
    }

    fn upload(&self, values: &[u16]) -> Result<Buffer> {
        let mut buffer = Buffer::new(self.stream.device(), self.dtype, values.len())?;
        self.stream.upload(values, buffer.view_mut())?;
        self.advance(values.len());
        Ok(buffer)
    }

    fn random(&self, name: &str, len: usize, kind: TensorKind) -> Result<Buffer> {
        let WeightSource::Dummy { seed } = self.source else { unreachable!("only dummy weights are random") };
        // FNV-1a of the name: every tensor has its own stream of random numbers.
        let seed =
            name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let (scale, offset) = match kind {
            TensorKind::Matrix | TensorKind::Bias => (DUMMY_STD, 0.0),
            TensorKind::NormWeight => (DUMMY_STD, 1.0),
        };
        let mut buffer = Buffer::new(self.stream.device(), self.dtype, len)?;
        FillNormal { out: buffer.view_mut(), seed, scale, offset }.launch(self.stream)?;
        self.advance(len);
        Ok(buffer)
    }

    fn advance(&self, parameters: usize) {
        self.done.set(self.done.get() + parameters as u64);
        (self.progress)(self.done.get(), self.total);
    }
}
