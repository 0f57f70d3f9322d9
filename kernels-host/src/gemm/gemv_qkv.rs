//! Launcher and cases of `kernels-gpu/src/gemm/gemv_qkv.rs`.
use super::{Activation, Gemm, NormGemm, Path, gemv_norm};
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work};
use crate::rope::RopeKv;
use crate::{Buffer, DType, Error, Stream, View, ViewMut};
use kernels_gpu::gemm::gemv_qkv as gpu;
use kernels_gpu::tile::kv;

/// The head of an attention block: `qkv = rms_norm(a) · weight · wᵀ + bias`, then RoPE of q and k and the write of k and
/// v into the paged cache: one kernel for the tokens that matrix-vector products are for, two or three for others.
pub struct NormQkv<'a> {
    /// [tokens, k], bf16 or f16: what is normalised; k a multiple of 8, at most 16384.
    pub a: View<'a>,
    /// [1, k]: the norm's. Read as early as `w`.
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// [(heads + 2·kv_heads)·head_dim, k], q's rows, then k's, then v's; as [`Gemm::w`](super::Gemm).
    pub w: View<'a>,
    /// [1, rows of w].
    pub bias: Option<View<'a>>,
    /// [tokens, k]: holds the norm between two kernels; undefined afterwards.
    pub normed: ViewMut<'a>,
    /// What follows the product. Its `qkv` gets q; its columns for k and v are undefined afterwards.
    pub rope: RopeKv<'a>,
}

impl NormQkv<'_> {
    /// Queues the kernel, or the others.
    pub fn launch(mut self, stream: &Stream) -> Result<(), Error> {
        let pool_slots = self.rope.check()?;
        let shape = self.product().check()?;
        if self.is_one_kernel(stream) {
            self.launch_fused(&shape, pool_slots, stream)
        } else {
            self.launch_apart(stream, None)
        }
    }

    /// Whether one kernel does it: where one does the norm and the product, heads have no norms of their own, and all of
    /// a head is rotated in halves.
    pub fn is_one_kernel(&mut self, stream: &Stream) -> bool {
        self.rotates_halves() && NormGemm::is_one_kernel(&self.product().gemm, stream)
    }

    fn rotates_halves(&self) -> bool {
        let RopeKv { q_norm, k_norm, frequencies, interleaved, head_dim, .. } = &self.rope;
        q_norm.is_none() && k_norm.is_none() && !interleaved && 2 * frequencies.cols() == *head_dim
    }

    /// The norm and the product.
    fn product(&mut self) -> NormGemm<'_> {
        let gemm = Gemm {
            a: self.a,
            w: self.w,
            bias: self.bias,
            activation: Activation::None,
            accumulate: false,
            out: self.rope.qkv.reborrow(),
        };
        NormGemm { gemm, weight: self.weight, eps: self.eps, normed: self.normed.reborrow() }
    }

    fn launch_apart(mut self, stream: &Stream, path: Option<Path>) -> Result<(), Error> {
        let product = self.product();
        match path {
            Some(_) => product.launch_apart(stream, path)?,
            None => product.launch(stream)?,
        }
        self.rope.launch(stream)
    }

    fn launch_fused(self, shape: &super::Shape, pool_slots: usize, stream: &Stream) -> Result<(), Error> {
        let entries = match shape.m {
            1 => [gpu::gemv1_qkv_bf16, gpu::gemv1_qkv_f16],
            2 => [gpu::gemv2_qkv_bf16, gpu::gemv2_qkv_f16],
            _ => [gpu::gemv4_qkv_bf16, gpu::gemv4_qkv_f16],
        };
        let rope = &self.rope;
        let args = gpu::GemvQkv {
            a: self.a.ptr(),
            norm_weight: self.weight.ptr(),
            w: self.w.ptr(),
            bias: self.bias.map_or(Default::default(), |bias| bias.ptr()),
            out: rope.qkv.ptr(),
            positions: rope.positions.ptr(),
            slots: rope.slots.ptr(),
            frequencies: rope.frequencies.ptr(),
            k_cache: rope.k_cache.ptr(),
            v_cache: rope.v_cache.ptr(),
            m: shape.m as u32,
            n: shape.n as u32,
            k: shape.k as u32,
            a_stride: self.a.stride() as u32,
            w_stride: self.w.stride() as u32,
            out_stride: rope.qkv.stride() as u32,
            eps: self.eps,
            heads: rope.heads as u32,
            kv_heads: rope.kv_heads as u32,
            half: (rope.head_dim / 2) as u32,
            pool_slots: pool_slots as u32,
            attention_scale: rope.attention_scale,
        };
        let entry = entries[usize::from(self.a.dtype() == DType::F16)];
        // SAFETY: the kernel reads and writes below m, n and k of views that were checked to have them, and below
        // `pool_slots`, with which it compares each slot, of the pools.
        unsafe { stream.launch(entry, gemv_norm::geometry(shape, stream), &args) }
    }
}

/// Tests and benches.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/gemv_qkv",
        entries: gpu::ENTRIES.to_vec(),
        pinned,
        #[cfg(feature = "proptest")]
        random,
    }
}

fn pinned() -> Vec<Box<dyn Case>> {
    let mut problems = Vec::new();
    let llama = Problem { heads: 32, kv_heads: 8, head_dim: 128, k: 4096, real: true, ..Problem::default() };
    problems.extend([llama, Problem { tokens: 2, ..llama }]);
    for tokens in 1..5 {
        for dtype in [DType::Bf16, DType::F16] {
            let base = Problem { dtype, tokens, ..Problem::default() };
            problems.push(base);
            problems.push(Problem { heads: 3, kv_heads: 3, bias: true, k: 1032, ..base });
            problems.push(Problem { head_dim: 96, padded: true, ..base });
            problems.push(Problem { heads: 5, kv_heads: 1, head_dim: 128, k: 72, ..base });
            problems.push(Problem { heads: 2, kv_heads: 1, head_dim: 256, bias: true, k: 264, ..base });
        }
        // More groups of rows than blocks.
        problems.push(Problem { tokens, heads: 80, kv_heads: 20, k: 8, head_dim: 64, ..Problem::default() });
    }
    problems.into_iter().map(|problem| Box::new(problem) as Box<dyn Case>).collect()
}

#[cfg(feature = "proptest")]
fn random() -> proptest::strategy::BoxedStrategy<Box<dyn Case>> {
    use crate::attention::HEAD_DIMS;
    use proptest::prelude::*;
    use proptest::sample::select;
    let shape = (1usize..5, 1usize..7, 1usize..4, select(&HEAD_DIMS), 1usize..200);
    (shape, any::<[bool; 3]>())
        .prop_map(|((tokens, heads, kv_heads, head_dim, eighths), [f16, bias, padded])| {
            let dtype = if f16 { DType::F16 } else { DType::Bf16 };
            let (k, real) = (8 * eighths, false);
            Box::new(Problem { dtype, tokens, heads, kv_heads, head_dim, k, bias, padded, real }) as Box<dyn Case>
        })
        .boxed()
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    dtype: DType,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    k: usize,
    bias: bool,
    /// Whether the first token has no slot.
    padded: bool,
    real: bool,
}

impl Default for Problem {
    fn default() -> Self {
        let (tokens, heads, kv_heads, head_dim, k) = (1, 4, 2, 64, 136);
        Problem { dtype: DType::Bf16, tokens, heads, kv_heads, head_dim, k, bias: false, padded: false, real: false }
    }
}

const EPS: f32 = 1e-5;
/// Pages of the pools.
const PAGES: usize = 3;

impl Problem {
    /// Rows of w.
    fn n(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        let &Problem { dtype, tokens, heads, kv_heads, head_dim, k, .. } = self;
        let mut id = format!("{dtype} tokens={tokens} heads={heads}/{kv_heads}x{head_dim} k={k}");
        for (on, name) in [(self.bias, " bias"), (self.padded, " padded")] {
            id += if on { name } else { "" };
        }
        id
    }

    fn work(&self) -> Work {
        let (m, n, k) = (self.tokens as u64, self.n() as u64, self.k as u64);
        Work { bytes: 2 * (k * (m + n + 1) + m * n), flops: 2 * m * n * k }
    }

    fn bench(&self) -> bool {
        self.real
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let &Problem { dtype, tokens, k, .. } = self;
        let mut rng = Rng::new(seed);
        let pool = PAGES * kv::page_elems(self.kv_heads, self.head_dim);
        let words = |values: &[u32]| -> Result<Buffer, Error> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, values.len())?;
            stream.upload(values, buffer.view_mut())?;
            Ok(buffer)
        };
        let positions: Vec<u32> = (0..tokens).map(|_| rng.below(9000) as u32).collect();
        let mut slots: Vec<u32> = (0..tokens).map(|i| (rng.below(40) * 4 + i) as u32).collect();
        if self.padded {
            slots[0] = u32::MAX;
        }
        let angles: Vec<f32> = (0..self.head_dim / 2).map(|_| rng.uniform()).collect();
        let mut frequencies = Buffer::new(stream.device(), DType::F32, angles.len())?;
        stream.upload(&angles, frequencies.view_mut())?;
        Ok(Box::new(Data {
            a: Tensor::random(stream, &mut rng, dtype, tokens * k, 2.0)?,
            weight: Tensor::random(stream, &mut rng, dtype, k, 1.0)?,
            w: Tensor::random(stream, &mut rng, dtype, self.n() * k, 1.5 / (k as f32).sqrt())?,
            bias: self.bias.then(|| Tensor::random(stream, &mut rng, dtype, self.n(), 0.5)).transpose()?,
            normed: Tensor::output(stream, dtype, tokens * k)?,
            qkv: Tensor::output(stream, dtype, tokens * self.n())?,
            k: Tensor::output(stream, dtype, pool)?,
            v: Tensor::output(stream, dtype, pool)?,
            positions: words(&positions)?,
            slots: words(&slots)?,
            frequencies,
            problem: *self,
        }))
    }
}

struct Data {
    problem: Problem,
    a: Tensor,
    weight: Tensor,
    w: Tensor,
    bias: Option<Tensor>,
    normed: Tensor,
    qkv: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Buffer,
    slots: Buffer,
    frequencies: Buffer,
}

impl Data {
    fn product(&mut self) -> NormQkv<'_> {
        let p = self.problem;
        NormQkv {
            a: self.a.buffer.matrix(p.tokens, p.k),
            weight: self.weight.buffer.view(),
            eps: EPS,
            w: self.w.buffer.matrix(p.n(), p.k),
            bias: self.bias.as_ref().map(|bias| bias.buffer.view()),
            normed: self.normed.buffer.matrix_mut(p.tokens, p.k),
            rope: RopeKv {
                qkv: self.qkv.buffer.matrix_mut(p.tokens, p.n()),
                q_norm: None,
                k_norm: None,
                norm_eps: EPS,
                positions: self.positions.view(),
                slots: self.slots.view(),
                frequencies: self.frequencies.view(),
                attention_scale: 1.25,
                interleaved: false,
                heads: p.heads,
                kv_heads: p.kv_heads,
                head_dim: p.head_dim,
                k_cache: self.k.buffer.view_mut(),
                v_cache: self.v.buffer.view_mut(),
            },
        }
    }

    fn reset(&mut self, stream: &Stream) -> Result<(), Error> {
        [&mut self.qkv, &mut self.k, &mut self.v].into_iter().try_for_each(|tensor| tensor.reset(stream))
    }

    /// q and the pools. (Of the product's k and v nothing is promised.)
    fn results(&self, stream: &Stream) -> Result<Vec<Output>, Error> {
        let p = self.problem;
        let mut q = Output::of("q", &self.qkv.buffer, stream)?;
        q.bytes = q.bytes.chunks_exact(2 * p.n()).flat_map(|row| row[..2 * p.q_width()].to_vec()).collect();
        Ok(vec![q, Output::of("k_cache", &self.k.buffer, stream)?, Output::of("v_cache", &self.v.buffer, stream)?])
    }
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let mut product = self.product();
        let (pool_slots, shape) = (product.rope.check()?, product.product().check()?);
        if stream.is_cpu() { product.launch(stream) } else { product.launch_fused(&shape, pool_slots, stream) }
    }

    /// The kernels one by one, which have naive references of their own, are the reference: not a bit may differ.
    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let found = self.outputs(stream)?;
        self.reset(stream)?;
        self.product().launch_apart(stream, Some(Path::Gemv))?;
        let expected = self.results(stream)?;
        for (found, expected) in found.iter().zip(&expected) {
            let name = found.name;
            let pairs = found.bytes.chunks_exact(2).zip(expected.bytes.chunks_exact(2));
            if let Some((at, (found, expected))) = pairs.enumerate().find(|(_, (found, expected))| found != expected) {
                let [found, expected] = [found, expected].map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
                return Err(Mismatch::Other(format!(
                    "{name}[{at}] is {found:#06x}, the kernels one by one have {expected:#06x}"
                )));
            }
        }
        Ok(())
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.reset(stream)?;
        self.launch(stream)?;
        self.results(stream)
    }
}
