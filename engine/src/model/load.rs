//! Weights from a checkpoint, or random ones, into device buffers in the layout that kernels want.
use super::blocks::{Linear, Norm};
use crate::checkpoint::{Checkpoint, TensorRef};
use crate::config::{self, Dtype, ModelConfig};
use crate::error::{Error, Result};
use crate::weights::TensorKind;
use kernels_host::fill::FillNormal;
use kernels_host::{Buffer, DType, Pinned, Stream};
use rayon::prelude::*;
use std::cell::{Cell, RefCell};

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
    /// Pinned memory that takes turns: one is filled while others are copied.
    ring: RefCell<Vec<Pinned>>,
}

/// Elements of a piece on its way to the device: 32 MB, more than a copy's start-up hides.
const PIECE: usize = 16 << 20;
/// Pieces under way.
const PIECES: usize = 3;

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
            ring: RefCell::new(Vec::new()),
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
            let gate = checkpoint.expect(&format!("{gate}.{part}"), shape)?;
            let up = checkpoint.expect(&format!("{up}.{part}"), shape)?;
            // Groups of 8 rows, gate and up in turn.
            let (dtype, group) = (self.dtype, 8 * cols);
            self.stream_in(2 * inner * cols, 2 * group, |start, piece| {
                piece.par_chunks_mut(group).enumerate().try_for_each(|(i, into)| {
                    let i = start / group + i;
                    let tensor = if i.is_multiple_of(2) { &gate } else { &up };
                    convert(dtype, &part_of(tensor, i / 2 * group, into.len()), into)
                })
            })
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
                let (dtype, tensor) = (self.dtype, checkpoint.expect(name, &[len])?);
                self.stream_in(len, 1, |start, piece| {
                    convert(dtype, &part_of(&tensor, start, piece.len()), piece)?;
                    if kind == TensorKind::NormWeight && self.config.norm_plus_one {
                        // The sum takes one more rounding, of the size of the norm's own.
                        piece.iter_mut().for_each(|bits| *bits = dtype.encode(dtype.decode(*bits) + 1.0));
                    }
                    Ok(())
                })
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
        let (dtype, mut tensors) = (self.dtype, Vec::with_capacity(names.len()));
        let mut end = 0;
        for ((name, shape), size) in names.iter().zip(shapes).zip(sizes) {
            end += size;
            tensors.push((checkpoint.expect(&format!("{name}.{part}"), shape)?, end - size..end));
        }
        self.stream_in(len, 1, |start, piece| {
            let here = start..start + piece.len();
            for (tensor, range) in &tensors {
                let (first, last) = (range.start.max(here.start), range.end.min(here.end));
                if first < last {
                    let into = &mut piece[first - start..last - start];
                    convert(dtype, &part_of(tensor, first - range.start, into.len()), into)?;
                }
            }
            Ok(())
        })
    }

    /// A buffer of `len` elements, made in pieces of a multiple of `unit`: `make` gets where a piece starts and its
    /// memory, while the piece before it is on its way to the device.
    fn stream_in(&self, len: usize, unit: usize, make: impl Fn(usize, &mut [u16]) -> Result<()>) -> Result<Buffer> {
        let mut buffer = Buffer::new(self.stream.device(), self.dtype, len)?;
        let most = (PIECE / unit).max(1) * unit;
        let mut ring = self.ring.borrow_mut();
        for start in (0..len).step_by(most) {
            let count = most.min(len - start);
            // The least recently used is the first to be free again.
            let mut pinned = if ring.len() < PIECES {
                let room = PIECE.min(self.total as usize).max(count);
                Pinned::new(self.stream.device(), room * size_of::<u16>())?
            } else {
                ring.remove(0)
            };
            if pinned.len() < count * size_of::<u16>() {
                pinned = Pinned::new(self.stream.device(), count * size_of::<u16>())?;
            }
            make(start, &mut pinned.host::<u16>()?[..count])?;
            self.stream.upload_pinned(&mut pinned, 0, buffer.view_mut().columns(start, count))?;
            ring.push(pinned);
            self.advance(count);
        }
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

/// Writes a tensor as `dtype`.
fn convert(dtype: DType, tensor: &TensorRef<'_>, into: &mut [u16]) -> Result<()> {
    match dtype {
        DType::F16 => tensor.to_f16(into),
        _ => tensor.to_bf16(into),
    }
}

/// `len` elements of a tensor from `start` on, as a tensor.
fn part_of<'a>(tensor: &TensorRef<'a>, start: usize, len: usize) -> TensorRef<'a> {
    let size = tensor.dtype.size();
    TensorRef { bytes: &tensor.bytes[start * size..(start + len) * size], ..*tensor }
}
