//! Cases: concrete problems for a kernel, for tests and benches alike.
use crate::{Buffer, DType, Device, Error, Stream, View, ptx};
use std::fmt;

/// A kernel as tests and benches see it.
pub struct Kernel {
    /// Family and file, such as "norm/rms_norm".
    pub name: &'static str,
    /// The PTX entries that its cases reach.
    pub entries: Vec<&'static str>,
    /// Chosen shapes: the awkward ones and the real ones. The first is benched first.
    pub pinned: fn() -> Vec<Box<dyn Case>>,
    /// Random shapes for property tests.
    #[cfg(feature = "proptest")]
    pub random: fn() -> proptest::strategy::BoxedStrategy<Box<dyn Case>>,
}

impl Kernel {
    /// Whether the device has any of the entries: Hopper's kernels have nothing to run elsewhere.
    pub fn runs_on(&self, device: &Device) -> bool {
        let built = |target| self.entries.iter().any(|entry| ptx::runs_on(target, entry));
        self.entries.is_empty() || device.target().is_none_or(built)
    }
}

/// One problem: shapes, types and parameters, no data.
pub trait Case: fmt::Debug + Send + Sync {
    /// For reports, such as "bf16 tokens=128 width=4096".
    fn id(&self) -> String;
    /// Bytes that must move and operations that must be done.
    fn work(&self) -> Work;
    /// Whether benches run it (the real shapes, not the awkward ones).
    fn bench(&self) -> bool {
        false
    }
    /// Whether tests run it on the CPU device too: not where the real shape takes seconds there.
    fn checked_on_cpu(&self) -> bool {
        true
    }
    /// Whether tests run it on emulated devices too: where it takes about a second at most.
    fn checked_on_emulator(&self) -> bool {
        let work = self.work();
        work.bytes <= EMULATED_WORK.bytes && work.flops <= EMULATED_WORK.flops
    }
    /// By how much two devices' results may differ in absolute terms, beside what is relative to them, where their
    /// approximate functions do: of a result that is the small difference of large numbers.
    fn absolute_error(&self) -> f64 {
        0.0
    }
    /// Makes seeded inputs on the stream's device.
    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error>;
}

/// A problem with its data on a device.
pub trait Prepared {
    /// Runs the kernel once.
    fn launch(&mut self, stream: &Stream) -> Result<(), Error>;
    /// Compares what one launch on fresh inputs left with the naive reference.
    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch>;
    /// What one launch on fresh inputs left, byte for byte: two devices are compared by it.
    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error>;
}

/// What a launch left in a buffer.
pub struct Output {
    /// The argument.
    pub name: &'static str,
    /// Type of its elements.
    pub dtype: DType,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

impl Output {
    /// Copies a whole buffer from the device.
    pub fn of(name: &'static str, buffer: &Buffer, stream: &Stream) -> Result<Self, Error> {
        let mut bytes = vec![0; buffer.len() * buffer.dtype().size()];
        stream.download(buffer.view(), &mut bytes)?;
        Ok(Output { name, dtype: buffer.dtype(), bytes })
    }

    /// The bytes as words.
    pub fn words(&self) -> Vec<u32> {
        self.bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
    }
}

/// The least work that a case takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes through device memory: each input read once, each output written once.
    pub bytes: u64,
    /// Floating-point operations, where they bound the kernel.
    pub flops: u64,
}

/// The work that takes about a second on an emulated device, with the naive reference. (Four times as much makes the
/// thousands of emulated cases take ten minutes on two cores instead of five.)
const EMULATED_WORK: Work = Work { bytes: 2 << 20, flops: 1 << 26 };

/// A result that is not what the reference says.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The check could not run.
    #[error(transparent)]
    Device(#[from] Error),
    /// A wrong value.
    #[error(
        "{what}[{index}] is {found}, the reference says {expected} (tolerance {tolerance:e}); {wrong} of {len} are wrong"
    )]
    Value {
        /// The output.
        what: &'static str,
        /// The worst position.
        index: usize,
        /// What the kernel wrote.
        found: f32,
        /// What the reference says.
        expected: f32,
        /// What was allowed there.
        tolerance: f32,
        /// Positions outside the tolerance.
        wrong: usize,
        /// Positions in all.
        len: usize,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Compares outputs with the reference: |found − expected| ≤ `relative` · |expected| + `absolute`; NaN equals
/// NaN, an infinity equals itself.
pub fn compare(
    what: &'static str,
    found: &[f32],
    expected: &[f32],
    relative: f32,
    absolute: f32,
) -> Result<(), Mismatch> {
    compare_each(what, found, expected, |index| relative * expected[index].abs() + absolute)
}

/// As [`compare`], with a tolerance per position.
pub fn compare_each(
    what: &'static str,
    found: &[f32],
    expected: &[f32],
    tolerance: impl Fn(usize) -> f32,
) -> Result<(), Mismatch> {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let mut worst: Option<(f32, usize)> = None;
    let mut wrong = 0;
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        if found == expected || (found.is_nan() && expected.is_nan()) {
            continue;
        }
        let excess = (found - expected).abs() / tolerance(index);
        if excess.is_nan() || excess > 1.0 {
            wrong += 1;
            let excess = if excess.is_nan() { f32::INFINITY } else { excess };
            if worst.is_none_or(|(most, _)| excess > most) {
                worst = Some((excess, index));
            }
        }
    }
    let Some((_, index)) = worst else { return Ok(()) };
    Err(Mismatch::Value {
        what,
        index,
        found: found[index],
        expected: expected[index],
        tolerance: tolerance(index),
        wrong,
        len: found.len(),
    })
}

/// A small seeded generator for test data (SplitMix64).
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }
    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }
    /// About normal (sum of four uniforms), standard deviation 1: bounded by ±3.5, so sums stay tame.
    pub fn normal(&mut self) -> f32 {
        ((0..4).map(|_| self.uniform()).sum::<f32>() - 2.0) * 1.732_050_8
    }
    /// `len` values of [`Rng::normal`] times `scale`, rounded to `dtype`, as bits.
    pub fn halves(&mut self, dtype: DType, len: usize, scale: f32) -> Vec<u16> {
        (0..len).map(|_| dtype.encode(self.normal() * scale)).collect()
    }
}

/// A test input or output: device memory and, for references, the same values on the host.
pub struct Tensor {
    /// On the device.
    pub buffer: Buffer,
    /// On the host: the initial values.
    pub values: Vec<u16>,
}

impl Tensor {
    /// Random half-precision values.
    pub fn random(stream: &Stream, rng: &mut Rng, dtype: DType, len: usize, scale: f32) -> Result<Self, Error> {
        Self::from_bits(stream, dtype, rng.halves(dtype, len, scale))
    }
    /// Given bits.
    pub fn from_bits(stream: &Stream, dtype: DType, values: Vec<u16>) -> Result<Self, Error> {
        let mut buffer = Buffer::new(stream.device(), dtype, values.len())?;
        stream.upload(&values, buffer.view_mut())?;
        Ok(Tensor { buffer, values })
    }
    /// An output, filled with NaNs so that an element that nothing writes is seen.
    pub fn output(stream: &Stream, dtype: DType, len: usize) -> Result<Self, Error> {
        Self::from_bits(stream, dtype, vec![0xffff; len])
    }
    /// Restores the initial values on the device.
    pub fn reset(&mut self, stream: &Stream) -> Result<(), Error> {
        stream.upload(&self.values, self.buffer.view_mut())
    }
    /// The initial values as f32.
    pub fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|&bits| self.buffer.dtype().decode(bits)).collect()
    }
    /// What the device holds now, as f32.
    pub fn read(&self, stream: &Stream) -> Result<Vec<f32>, Error> {
        read_half(stream, self.buffer.view())
    }
}

/// A contiguous half-precision view as f32 on the host.
pub fn read_half(stream: &Stream, view: View<'_>) -> Result<Vec<f32>, Error> {
    let mut bits = vec![0u16; view.rows() * view.cols()];
    stream.download(view, &mut bits)?;
    Ok(bits.into_iter().map(|bits| view.dtype().decode(bits)).collect())
}
