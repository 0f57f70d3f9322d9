//! Launcher and reference of `kernels-gpu/src/rope/rope_kv.rs`; its cases are in `cases`.
mod cases;

use crate::attention::HEAD_DIMS;
use crate::host::{for_each_row, row_f32};
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::prim::DevicePtr;
use kernels_gpu::rope::rope_kv as gpu;
use kernels_gpu::tile::kv;

pub(crate) use cases::kernel;

/// Rotates q and k (after an RMSNorm of each head where its weight is given) and writes k and v into the
/// paged KV cache.
///
/// In order, in f32 with one rounding at the end: `x · rsqrt(mean(x²) + norm_eps) · weight` over each head of
/// q and k; then every pair of the first `rotary_dim` = 2 · `frequencies.cols()` dimensions is turned by
/// position · frequency, the rest passes through. `rotary_dim` is a multiple of 16, at most `head_dim`.
pub struct RopeKv<'a> {
    /// [tokens, (heads + 2·kv_heads)·head_dim], bf16 or f16: q, k and v. q changes in place; k and v are only read.
    pub qkv: ViewMut<'a>,
    /// [1, head_dim]: weight of q's norm.
    pub q_norm: Option<View<'a>>,
    /// [1, head_dim]: weight of k's norm.
    pub k_norm: Option<View<'a>>,
    /// Added to the mean square in both norms.
    pub norm_eps: f32,
    /// u32 [1, tokens]. Angles are exact to f32's rounding of position · frequency, sines to 2^-20 up to position 2^20.
    pub positions: View<'a>,
    /// u32 [1, tokens]: page · 64 + slot in the page. A slot beyond the pools (`u32::MAX` for padding) writes
    /// nothing; q is rotated nevertheless. Two tokens of a launch must not share a slot.
    pub slots: View<'a>,
    /// f32 [1, rotary_dim / 2]: radians per position, scaling (linear, llama3, yarn) already applied.
    pub frequencies: View<'a>,
    /// Factor on sine and cosine: yarn's attention factor, 1 otherwise.
    pub attention_scale: f32,
    /// Which dimensions make a pair: false: (i, i + rotary_dim / 2), as Hugging Face's Llama; true: (2i, 2i + 1), as GPT-J.
    pub interleaved: bool,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// 64, 96, 128 or 256. Heads of 96 take the room of 128 in the cache; the rest of it is not touched.
    pub head_dim: usize,
    /// One layer's pool of K pages in the layout of `kernels_gpu::tile::kv`, contiguous, whole pages, qkv's type.
    pub k_cache: ViewMut<'a>,
    /// The pool of V pages, as `k_cache`.
    pub v_cache: ViewMut<'a>,
}

impl RopeKv<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let pool_slots = self.check()?;
        if stream.is_cpu() {
            self.reference();
            return Ok(());
        }
        let entry = match (self.head_dim, self.qkv.dtype()) {
            (64, DType::F16) => gpu::rope_kv_64_f16,
            (64, _) => gpu::rope_kv_64_bf16,
            (96, DType::F16) => gpu::rope_kv_96_f16,
            (96, _) => gpu::rope_kv_96_bf16,
            (128, DType::F16) => gpu::rope_kv_128_f16,
            (128, _) => gpu::rope_kv_128_bf16,
            (_, DType::F16) => gpu::rope_kv_256_f16,
            (_, _) => gpu::rope_kv_256_bf16,
        };
        let args = gpu::RopeKv {
            qkv: self.qkv.ptr(),
            q_norm: self.q_norm.map_or(DevicePtr(0), |weight| weight.ptr()),
            k_norm: self.k_norm.map_or(DevicePtr(0), |weight| weight.ptr()),
            positions: self.positions.ptr(),
            slots: self.slots.ptr(),
            frequencies: self.frequencies.ptr(),
            k_cache: self.k_cache.ptr(),
            v_cache: self.v_cache.ptr(),
            stride: self.qkv.stride() as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            rotating: (self.rotary_dim() / gpu::ROTARY_MULTIPLE) as u32,
            interleaved: u32::from(self.interleaved),
            pool_slots: pool_slots as u32,
            norm_eps: self.norm_eps,
            attention_scale: self.attention_scale,
        };
        // With tokens enough to fill the GPU (4 blocks on each of an H200's 132 SMs) a block takes all heads of its
        // token and computes the sines once; otherwise the heads are spread for latency.
        let tokens = self.qkv.rows();
        let per_block = gpu::heads_per_block(self.head_dim);
        let groups = if tokens >= 512 { 1 } else { (self.heads + 2 * self.kv_heads).div_ceil(per_block) };
        // SAFETY: one block per token and group of heads; columns are below the width and slots below `pool_slots`
        // (the kernel compares each), both of which the views were checked to have.
        unsafe { stream.launch(entry, Launch::grid3(tokens, groups, 1).dependent(), &args) }
    }

    fn rotary_dim(&self) -> usize {
        2 * self.frequencies.cols()
    }

    /// Checks everything that a launch relies on; returns the tokens that a pool holds.
    pub(crate) fn check(&self) -> Result<usize, Error> {
        let RopeKv { heads, kv_heads, head_dim, .. } = *self;
        let mut check = Check::new("rope_kv");
        check.require(HEAD_DIMS.contains(&head_dim), || format!("head_dim {head_dim} must be one of {HEAD_DIMS:?}"))?;
        check
            .require(heads > 0 && kv_heads > 0, || format!("{heads} heads and {kv_heads} KV heads: both must exist"))?;
        check.half("qkv", &self.qkv.as_view(), ["tokens", "width"])?;
        check.bind("qkv", "width", (heads + 2 * kv_heads) * head_dim)?;
        check.bind("head_dim", "head_dim", head_dim)?;
        for (name, weight) in [("q_norm", &self.q_norm), ("k_norm", &self.k_norm)] {
            if let Some(weight) = weight {
                check.half(name, weight, ["1", "head_dim"])?;
            }
        }
        check.typed("positions", &self.positions, DType::U32, ["1", "tokens"])?;
        check.typed("slots", &self.slots, DType::U32, ["1", "tokens"])?;
        check.typed("frequencies", &self.frequencies, DType::F32, ["1", "_"])?;
        let aligned = match self.frequencies.mem {
            crate::buffer::Mem::Device(ptr, _) => ptr.0.is_multiple_of(16),
            crate::buffer::Mem::Host(_) => true,
        };
        check.require(aligned, || "frequencies must start at a multiple of 16 bytes".into())?;
        let rotary = self.rotary_dim();
        check.require(rotary.is_multiple_of(gpu::ROTARY_MULTIPLE) && rotary <= head_dim, || {
            format!("rotary dimension {rotary} must be a multiple of {}, at most head_dim", gpu::ROTARY_MULTIPLE)
        })?;
        let page = kv::page_elems(kv_heads, head_dim);
        for (name, cache) in [("k_cache", &self.k_cache), ("v_cache", &self.v_cache)] {
            check.half(name, &cache.as_view(), ["_", "_"])?;
            let len = cache.rows() * cache.cols();
            check.require(cache.is_contiguous() && len.is_multiple_of(page), || {
                format!("{name} must be whole pages of {page} elements without gaps, it has {len}")
            })?;
            check.bind(name, "elements", len)?;
        }
        let pool_slots = check.dim("elements") / page * kv::PAGE;
        check.require(pool_slots < u32::MAX as usize, || format!("{pool_slots} slots do not fit 32 bits"))?;
        Ok(pool_slots)
    }

    /// The naive reference, and the CPU device's kernel.
    fn reference(mut self) {
        let RopeKv { heads, kv_heads, head_dim, .. } = self;
        let (q_width, k_width) = (heads * head_dim, kv_heads * head_dim);
        let dtype = self.qkv.dtype();
        let weight = |view: Option<View<'_>>| view.map(|view| view.to_f32());
        let (q_weight, k_weight) = (weight(self.q_norm), weight(self.k_norm));
        let angles = Angles::new(&self);
        let eps = self.norm_eps;
        let turn = |token: usize, values: &mut [f32], weight: Option<&Vec<f32>>| {
            let (sin, cos) = angles.of(token);
            for head in values.chunks_mut(head_dim) {
                if let Some(weight) = weight {
                    normalise(head, weight, eps);
                }
                rotate(head, &sin, &cos, angles.interleaved);
            }
        };
        // Before q changes, which nothing else reads: k and v of every token into its slot.
        let slots = self.slots.row::<u32>(0);
        let (k_pool, v_pool) = (self.k_cache.host_mut::<u16>(), self.v_cache.host_mut::<u16>());
        let pool_slots = k_pool.len() / kv::page_elems(kv_heads, head_dim) * kv::PAGE;
        let mut k = Vec::new();
        for (token, &slot) in slots.iter().enumerate().filter(|&(_, &slot)| (slot as usize) < pool_slots) {
            let qkv = self.qkv.as_view();
            row_f32(&qkv.columns(q_width, k_width), token, &mut k);
            turn(token, &mut k, k_weight.as_ref());
            let v = qkv.columns(q_width + k_width, k_width).row::<u16>(token);
            for i in (0..k_width).step_by(8) {
                let (page, row) = (slot as usize / kv::PAGE, slot as usize % kv::PAGE);
                let at = kv::offset(page, i / head_dim, row, i % head_dim, kv_heads, head_dim);
                v_pool[at..at + 8].copy_from_slice(&v[i..i + 8]);
                k_pool[at..at + 8].iter_mut().zip(&k[i..]).for_each(|(bits, &x)| *bits = dtype.encode(x));
            }
        }
        let q = self.qkv.columns(0, q_width);
        let before = q.as_view().to_f32();
        for_each_row(q, |token, values| {
            values.copy_from_slice(&before[token * q_width..][..q_width]);
            turn(token, values, q_weight.as_ref());
        });
    }
}

/// What the reference needs to know of the angles.
struct Angles<'a> {
    positions: &'a [u32],
    frequencies: &'a [f32],
    scale: f32,
    interleaved: bool,
}

impl<'a> Angles<'a> {
    fn new(rope: &RopeKv<'a>) -> Self {
        Angles {
            positions: rope.positions.row(0),
            frequencies: rope.frequencies.row(0),
            scale: rope.attention_scale,
            interleaved: rope.interleaved,
        }
    }

    /// Sines and cosines of a token's pairs.
    fn of(&self, token: usize) -> (Vec<f32>, Vec<f32>) {
        let position = self.positions[token] as f32;
        self.frequencies
            .iter()
            .map(|frequency| {
                let (sin, cos) = (position * frequency).sin_cos();
                (sin * self.scale, cos * self.scale)
            })
            .unzip()
    }
}

fn normalise(head: &mut [f32], weight: &[f32], eps: f32) {
    let mean_square = head.iter().map(|x| x * x).sum::<f32>() / head.len() as f32;
    let scale = 1.0 / (mean_square + eps).sqrt();
    head.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w);
}

fn rotate(head: &mut [f32], sin: &[f32], cos: &[f32], interleaved: bool) {
    let half = sin.len();
    for i in 0..half {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (x, y) = (head[a], head[b]);
        (head[a], head[b]) = (x * cos[i] - y * sin[i], y * cos[i] + x * sin[i]);
    }
}
