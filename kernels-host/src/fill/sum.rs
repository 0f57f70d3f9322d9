//! Launcher, reference and cases of `kernels-gpu/src/fill/sum.rs`.
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Work};
use crate::{Buffer, Check, DType, Device, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::fill::sum as gpu;
use rayon::prelude::*;

/// The wrapping sum of a buffer's 32-bit words, in parts: add the elements of `out`.
pub struct Sum<'a> {
    /// u32 [1, len], len a multiple of 4. The launch right before must not write it.
    pub words: View<'a>,
    /// u32 [1, [`Sum::parts`]].
    pub out: ViewMut<'a>,
}

impl Sum<'_> {
    /// Elements of `out` on a device.
    pub fn parts(device: &Device) -> usize {
        if device.is_cpu() { 1 } else { device.multiprocessors() * gpu::BLOCKS as usize }
    }

    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let Sum { words, mut out } = self;
        let mut check = Check::new("sum");
        check.typed("words", &words, DType::U32, ["1", "len"])?;
        check.typed("out", &out.as_view(), DType::U32, ["1", "parts"])?;
        let len = check.dim("len");
        check.require(len.is_multiple_of(4), || format!("len {len} must be a multiple of 4"))?;
        let parts = Self::parts(stream.device());
        check.require(out.cols() == parts, || format!("out has {} elements, {parts} are written", out.cols()))?;
        if stream.is_cpu() {
            let words = words.row::<u32>(0).par_chunks(1 << 16);
            out.row_mut::<u32>(0)[0] = words.map(wrapping_sum).reduce(|| 0, u32::wrapping_add);
            return Ok(());
        }
        let args = gpu::Sum { words: words.ptr(), len: len as u64, out: out.ptr() };
        let launch = Launch::grid(parts).shared(gpu::SHARED_BYTES).dependent();
        // SAFETY: the kernel reads the `len` words of the view and writes one part per block.
        unsafe { stream.launch(gpu::sum_u32, launch, &args) }
    }
}

fn wrapping_sum(words: &[u32]) -> u32 {
    words.iter().fold(0, |sum, &word| sum.wrapping_add(word))
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "fill/sum",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            // 256 MiB; less than a thread each; spans and rests; more spans than blocks.
            [1 << 26, 0, 4, 1024, gpu::SPAN, gpu::SPAN + 4, 3 * gpu::SPAN - 4, 2500 * gpu::SPAN + 1028]
                .map(|len| Box::new(Problem { len }) as Box<dyn Case>)
                .into()
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (0usize..100_000).prop_map(|quads| Box::new(Problem { len: quads * 4 }) as Box<dyn Case>).boxed()
        },
    }
}

#[derive(Debug)]
struct Problem {
    len: usize,
}

impl Case for Problem {
    fn id(&self) -> String {
        format!("sum len={}", self.len)
    }

    fn work(&self) -> Work {
        Work { bytes: 4 * self.len as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.len == 1 << 26
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let values: Vec<u32> = (0..self.len).map(|_| rng.bits() as u32).collect();
        let mut words = Buffer::new(stream.device(), DType::U32, self.len)?;
        stream.upload(&values, words.view_mut())?;
        let out = Buffer::new(stream.device(), DType::U32, Sum::parts(stream.device()))?;
        Ok(Box::new(Data { words, expected: wrapping_sum(&values), out }))
    }
}

struct Data {
    words: Buffer,
    expected: u32,
    out: Buffer,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        Sum { words: self.words.view(), out: self.out.view_mut() }.launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        stream.fill(self.out.view_mut(), 0xff)?;
        self.launch(stream)?;
        Ok(vec![Output::of("out", &self.out, stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        stream.fill(self.out.view_mut(), 0xff)?;
        self.launch(stream)?;
        let mut parts = vec![0u32; self.out.len()];
        stream.download(self.out.view(), &mut parts)?;
        let (found, expected) = (wrapping_sum(&parts), self.expected);
        if found == expected {
            return Ok(());
        }
        Err(Mismatch::Other(format!("the sum is {found:#010x}, expected {expected:#010x}")))
    }
}
