//! Launcher, reference and cases of `kernels-gpu/src/fill/normal.rs`.
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Work};
use crate::{Buffer, Check, DType, Error, Launch, Stream, ViewMut};
use kernels_gpu::fill::normal as gpu;
use rayon::prelude::*;

/// Fills with about normal random numbers, `scale` wide around `offset`. Element i depends on the seed and i
/// only, and is the same on every device.
pub struct FillNormal<'a> {
    /// Contiguous, bf16 or f16, 16-byte aligned.
    pub out: ViewMut<'a>,
    /// Seed.
    pub seed: u64,
    /// Standard deviation.
    pub scale: f32,
    /// Mean.
    pub offset: f32,
}

/// Blocks at most: 8 on each of 256 multiprocessors; the threads step.
const MAX_BLOCKS: usize = 2048;

impl FillNormal<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let FillNormal { mut out, seed, scale, offset } = self;
        let mut check = Check::new("fill_normal");
        check.half("out", &out.as_view(), ["rows", "cols"])?;
        check.require(out.is_contiguous(), || "out must be contiguous".into())?;
        check.require(scale.is_finite() && offset.is_finite(), || {
            format!("scale {scale} and offset {offset} must be finite")
        })?;
        let len = out.rows() * out.cols();
        let step = scale * gpu::INVERSE_DEVIATION;
        if stream.is_cpu() {
            let dtype = out.dtype();
            out.host_mut::<u16>().par_chunks_mut(gpu::GROUP * 1024).enumerate().for_each(|(block, bits)| {
                for (i, bits) in bits.chunks_mut(gpu::GROUP).enumerate() {
                    let values = gpu::group(seed, (block * 1024 + i) as u64, step, offset);
                    bits.iter_mut().zip(values).for_each(|(bits, x)| *bits = dtype.encode(x));
                }
            });
            return Ok(());
        }
        let entry = if out.dtype() == DType::F16 { gpu::fill_normal_f16 } else { gpu::fill_normal_bf16 };
        let args = gpu::FillNormal { out: out.ptr(), len: len as u64, seed, step, offset };
        let blocks = len.div_ceil(gpu::GROUP * gpu::THREADS as usize).min(MAX_BLOCKS);
        // SAFETY: the kernel writes the `len` elements that the contiguous view has, and nothing else.
        unsafe { stream.launch(entry, Launch::grid(blocks).dependent(), &args) }
    }
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "fill/normal",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for dtype in [DType::Bf16, DType::F16] {
                for (len, scale, offset) in [
                    (1 << 24, 0.02, 0.0),
                    // More groups than threads in the largest grid, and a rest.
                    ((1 << 22) + 2053, 0.02, 1.0),
                    (1, 1.0, 0.0),
                    (7, 1.0, 0.0),
                    (8, 1.0, 0.0),
                    (2049, 1.0, -3.0),
                    // Overflows f16, and its subnormal numbers.
                    (4096, 3e4, 0.0),
                    (4096, 1e-6, 0.0),
                ] {
                    cases.push(Box::new(Problem { dtype, len, scale, offset }));
                }
            }
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (any::<bool>(), 0usize..100_000, -12f32..3.0, -2f32..2.0)
                .prop_map(|(f16, len, magnitude, offset)| {
                    let dtype = if f16 { DType::F16 } else { DType::Bf16 };
                    Box::new(Problem { dtype, len, scale: magnitude.exp(), offset }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

#[derive(Debug)]
struct Problem {
    dtype: DType,
    len: usize,
    scale: f32,
    offset: f32,
}

impl Case for Problem {
    fn id(&self) -> String {
        format!("fill_normal {} len={} scale={} offset={}", self.dtype, self.len, self.scale, self.offset)
    }

    fn work(&self) -> Work {
        Work { bytes: 2 * self.len as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.len == 1 << 24
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let seed = Rng::new(seed).bits();
        let mut out = Buffer::new(stream.device(), self.dtype, self.len)?;
        stream.upload(&vec![0xffffu16; self.len], out.view_mut())?;
        Ok(Box::new(Data { seed, scale: self.scale, offset: self.offset, out }))
    }
}

struct Data {
    seed: u64,
    scale: f32,
    offset: f32,
    out: Buffer,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        FillNormal { out: self.out.view_mut(), seed: self.seed, scale: self.scale, offset: self.offset }.launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.launch(stream)?;
        Ok(vec![Output::of("out", &self.out, stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        self.launch(stream)?;
        let mut found = vec![0u16; self.out.len()];
        stream.download(self.out.view(), &mut found)?;
        let (dtype, step) = (self.out.dtype(), self.scale * gpu::INVERSE_DEVIATION);
        for (index, &found) in found.iter().enumerate() {
            // One value at a time, as the formula says.
            let value = gpu::group(self.seed, (index / gpu::GROUP) as u64, step, self.offset)[index % gpu::GROUP];
            let expected = dtype.encode(value);
            if found != expected {
                return Err(Mismatch::Other(format!("out[{index}] is {found:#06x}, expected {expected:#06x}")));
            }
        }
        moments(&found, dtype, self.scale, self.offset)
    }
}

/// Mean, deviation and the correlation of neighbours, where there are enough values to tell.
fn moments(bits: &[u16], dtype: DType, scale: f32, offset: f32) -> Result<(), Mismatch> {
    // Below this scale f16 holds few digits or none, above it infinities; an offset that is much larger
    // rounds the values away.
    if bits.len() < 4096 || !(1e-3..1e3).contains(&scale) || offset.abs() > 4.0 * scale {
        return Ok(());
    }
    let values: Vec<f64> = bits.iter().map(|&bits| f64::from((dtype.decode(bits) - offset) / scale)).collect();
    let mean_of = |f: &dyn Fn(usize) -> f64| (0..values.len() - 1).map(f).sum::<f64>() / (values.len() - 1) as f64;
    let noise = 5.0 / (values.len() as f64).sqrt() + 2.0 * f64::from(dtype.epsilon());
    let wanted = [
        ("mean", mean_of(&|i| values[i]), 0.0),
        ("variance", mean_of(&|i| values[i] * values[i]), 1.0),
        ("correlation of neighbours", mean_of(&|i| values[i] * values[i + 1]), 0.0),
        ("share within one deviation", mean_of(&|i| f64::from(u8::from(values[i].abs() < 1.0))), 0.674),
    ];
    for (what, found, expected) in wanted {
        if (found - expected).abs() > noise * 1.5 + 0.01 {
            return Err(Mismatch::Other(format!("{what} is {found}, expected {expected}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::gpu;
    use kernels_gpu::tile::philox::philox4x32;

    #[test]
    fn a_group_follows_the_formula() {
        let (seed, group) = (0x0123_4567_89ab_cdef, (3 << 32) + 17);
        let words = philox4x32::<7>([17, 3, 0, 0], [0x89ab_cdef, 0x0123_4567]);
        let values = gpu::group(seed, group, 1.0, 0.0);
        for (word, pair) in words.iter().zip(values.chunks(2)) {
            let [a, b, c, d] = word.to_be_bytes().map(f32::from);
            assert_eq!(pair, [a + b + c + d - 510.0, a + b - c - d]);
        }
        assert!((gpu::INVERSE_DEVIATION * 21845f32.sqrt() - 1.0).abs() < 1e-6);
    }
}
