//! Cases of the kernel, and a check in f64 that reads the cache back through `tile::kv::offset`.
use super::RopeKv;
#[cfg(feature = "proptest")]
use crate::attention::HEAD_DIMS;
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work, compare};
use crate::{Buffer, DType, Error, Stream};
use kernels_gpu::rope::rope_kv as gpu;
use kernels_gpu::tile::kv;

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "rope/rope_kv",
        entries: gpu::ENTRIES.to_vec(),
        pinned,
        #[cfg(feature = "proptest")]
        random,
    }
}

fn pinned() -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for dtype in [DType::Bf16, DType::F16] {
        let llama = Problem {
            dtype,
            tokens: 1,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            rotary: 128,
            interleaved: false,
            norm: Norm::None,
            slots: Slots::Sequences,
            yarn: false,
        };
        let small = Problem { heads: 4, kv_heads: 2, head_dim: 64, rotary: 64, tokens: 65, ..llama };
        cases.extend(
            [
                // Llama 3 8B: prefill (one block a token) and decode.
                Problem { tokens: 2048, ..llama },
                Problem { tokens: 32, slots: Slots::Shuffled, ..llama },
                llama,
                // Qwen3 8B: norms of q and k.
                Problem { tokens: 130, norm: Norm::Both, ..llama },
                // 65 tokens: the last page holds one. Grouped, one KV head, as many as heads.
                small,
                Problem { norm: Norm::Both, ..small },
                Problem { kv_heads: 1, slots: Slots::Shuffled, ..small },
                Problem { heads: 3, kv_heads: 3, slots: Slots::Padded, ..small },
                // Both conventions, partial rotary: 1/4, 3/4 and all of the head.
                Problem { interleaved: true, ..small },
                Problem { interleaved: true, norm: Norm::Both, heads: 5, kv_heads: 1, ..llama },
                Problem { rotary: 16, ..small },
                Problem { rotary: 48, norm: Norm::Keys, slots: Slots::Padded, ..small },
                Problem { rotary: 32, interleaved: true, tokens: 3, ..llama },
                Problem { rotary: 96, tokens: 9, slots: Slots::Shuffled, ..llama },
                Problem { rotary: 96, norm: Norm::Queries, interleaved: true, ..small.wide() },
                Problem { yarn: true, slots: Slots::Padded, ..small },
                // More heads than one block holds, not a multiple, and the other grid.
                Problem { heads: 71, kv_heads: 1, tokens: 2, ..small },
                Problem { heads: 17, kv_heads: 1, tokens: 520, ..small.wide() },
                // Phi-3's and Gemma 2's dimensions.
                small.of(96),
                Problem { heads: 33, norm: Norm::Both, slots: Slots::Padded, ..small.of(96) },
                Problem { rotary: 48, interleaved: true, norm: Norm::Keys, tokens: 600, ..small.of(96) },
                small.of(256),
                Problem { heads: 9, norm: Norm::Both, slots: Slots::Padded, ..small.of(256) },
                Problem { rotary: 128, interleaved: true, norm: Norm::Queries, tokens: 600, ..small.of(256) },
            ]
            .map(|problem| Box::new(problem) as Box<dyn Case>),
        );
    }
    cases
}

#[cfg(feature = "proptest")]
fn random() -> proptest::strategy::BoxedStrategy<Box<dyn Case>> {
    use proptest::prelude::*;
    use proptest::sample::select;
    let shape = (1usize..150, 1usize..5, 1usize..5, select(&HEAD_DIMS), 0usize..=16);
    let flags = (any::<[bool; 3]>(), select(Norm::ALL), select(Slots::ALL));
    (shape, flags)
        .prop_map(|((tokens, group, kv_heads, head_dim, sixteenths), ([f16, interleaved, yarn], norm, slots))| {
            Box::new(Problem {
                dtype: if f16 { DType::F16 } else { DType::Bf16 },
                tokens,
                heads: group * kv_heads,
                kv_heads,
                head_dim,
                rotary: (sixteenths * 16).min(head_dim),
                interleaved,
                norm,
                slots,
                yarn,
            }) as Box<dyn Case>
        })
        .boxed()
}

/// Which of q and k are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Norm {
    None,
    Queries,
    Keys,
    Both,
}

/// Where tokens go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slots {
    /// One after another through pages in random order.
    Sequences,
    /// Anywhere.
    Shuffled,
    /// As sequences, but about a third is padding or just beyond the pool.
    Padded,
}

#[cfg(feature = "proptest")]
impl Norm {
    const ALL: &'static [Norm] = &[Norm::None, Norm::Queries, Norm::Keys, Norm::Both];
}
#[cfg(feature = "proptest")]
impl Slots {
    const ALL: &'static [Slots] = &[Slots::Sequences, Slots::Shuffled, Slots::Padded];
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    dtype: DType,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary: usize,
    interleaved: bool,
    norm: Norm,
    slots: Slots,
    yarn: bool,
}

const EPS: f32 = 1e-6;

impl Problem {
    fn wide(self) -> Self {
        self.of(128)
    }
    fn of(self, head_dim: usize) -> Self {
        Problem { head_dim, rotary: head_dim, ..self }
    }
    /// Pages of each pool: some stay empty.
    fn pages(&self) -> usize {
        self.tokens.div_ceil(kv::PAGE) + 2
    }
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    fn pool(&self) -> usize {
        self.pages() * kv::page_elems(self.kv_heads, self.head_dim)
    }
    fn attention_scale(&self) -> f32 {
        if self.yarn { 1.276 } else { 1.0 }
    }

    /// The first tokens stand at the awkward positions.
    fn positions(&self, rng: &mut Rng) -> Vec<u32> {
        (0..self.tokens)
            .map(|token| match token {
                1 => 0,
                2 => 1,
                0 => 131_071,
                3 => (1 << 20) - 1,
                _ => rng.below(1 << 20) as u32,
            })
            .collect()
    }

    fn slots(&self, rng: &mut Rng) -> Vec<u32> {
        let mut pages: Vec<usize> = (0..self.pages()).collect();
        shuffle(rng, &mut pages);
        let mut slots: Vec<u32> =
            pages.iter().flat_map(|page| (0..kv::PAGE).map(move |slot| (page * kv::PAGE + slot) as u32)).collect();
        if self.slots == Slots::Shuffled {
            shuffle(rng, &mut slots);
        }
        slots.truncate(self.tokens);
        if self.slots == Slots::Padded {
            let beyond = (self.pages() * kv::PAGE) as u32;
            for slot in &mut slots {
                match rng.below(6) {
                    0 => *slot = u32::MAX,
                    // Within the page that guards the pool's end.
                    1 => *slot = beyond + rng.below(kv::PAGE) as u32,
                    _ => {}
                }
            }
        }
        slots
    }
}

fn shuffle<T>(rng: &mut Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i + 1));
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        let Problem { dtype, tokens, heads, kv_heads, head_dim, rotary, norm, slots, .. } = self;
        let pairs = if self.interleaved { "interleaved" } else { "halves" };
        let yarn = if self.yarn { " yarn" } else { "" };
        format!(
            "{dtype} tokens={tokens} heads={heads}/{kv_heads}x{head_dim} rotary={rotary} {pairs} norm={norm:?} slots={slots:?}{yarn}"
        )
    }

    fn work(&self) -> Work {
        Work { bytes: (self.tokens * (self.width() * 4 + 8)) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.heads == 32 && self.rotary == 128
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let dtype = self.dtype;
        let frequencies: Vec<f32> =
            (0..self.rotary / 2).map(|i| 500_000f32.powf(-(2.0 * i as f32) / self.rotary as f32)).collect();
        let (positions, slots) = (self.positions(&mut rng), self.slots(&mut rng));
        let upload = |values: &[u32]| -> Result<Buffer, Error> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, values.len())?;
            stream.upload(values, buffer.view_mut())?;
            Ok(buffer)
        };
        let mut device_frequencies = Buffer::new(stream.device(), DType::F32, frequencies.len())?;
        stream.upload(&frequencies, device_frequencies.view_mut())?;
        // One page more than the launch is told of: a guard against writes beyond the pool.
        let guarded = self.pool() + kv::page_elems(self.kv_heads, self.head_dim);
        Ok(Box::new(Data {
            problem: *self,
            qkv: Tensor::random(stream, &mut rng, dtype, self.tokens * self.width(), 1.0)?,
            q_norm: Tensor::random(stream, &mut rng, dtype, self.head_dim, 1.0)?,
            k_norm: Tensor::random(stream, &mut rng, dtype, self.head_dim, 1.0)?,
            k_cache: Tensor::output(stream, dtype, guarded)?,
            v_cache: Tensor::output(stream, dtype, guarded)?,
            device_positions: upload(&positions)?,
            device_slots: upload(&slots)?,
            device_frequencies,
            positions,
            slots,
            frequencies,
        }))
    }
}

struct Data {
    problem: Problem,
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    device_positions: Buffer,
    device_slots: Buffer,
    device_frequencies: Buffer,
    positions: Vec<u32>,
    slots: Vec<u32>,
    frequencies: Vec<f32>,
}

impl Data {
    /// One head as the formula says, in f64 but for the angle, which is f32 by definition.
    fn turned(&self, token: usize, head: &[f32], weight: Option<&[f32]>) -> Vec<f32> {
        let mut x: Vec<f64> = head.iter().map(|&v| f64::from(v)).collect();
        if let Some(weight) = weight {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
            x.iter_mut().zip(weight).for_each(|(x, &w)| *x *= scale * f64::from(w));
        }
        let before = x.clone();
        let half = self.frequencies.len();
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = f64::from(self.positions[token] as f32 * frequency).sin_cos();
            let scale = f64::from(self.problem.attention_scale());
            let (a, b) = if self.problem.interleaved { (2 * i, 2 * i + 1) } else { (i, half + i) };
            x[a] = scale * (before[a] * cos - before[b] * sin);
            x[b] = scale * (before[a] * sin + before[b] * cos);
        }
        x.into_iter().map(|v| v as f32).collect()
    }

    /// A pool and its guard page as [slot, kv_head, dimension].
    fn slot_major(&self, pool: &[f32]) -> Vec<f32> {
        let Problem { kv_heads, head_dim, .. } = self.problem;
        let mut out = Vec::with_capacity(pool.len());
        for slot in 0..(self.problem.pages() + 1) * kv::PAGE {
            for head in 0..kv_heads {
                for dim in 0..head_dim {
                    out.push(pool[kv::offset(slot / kv::PAGE, head, slot % kv::PAGE, dim, kv_heads, head_dim)]);
                }
            }
        }
        out
    }
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { tokens, heads, kv_heads, head_dim, interleaved, norm, .. } = self.problem;
        let pool = self.problem.pool();
        RopeKv {
            qkv: self.qkv.buffer.matrix_mut(tokens, self.problem.width()),
            q_norm: matches!(norm, Norm::Both | Norm::Queries).then(|| self.q_norm.buffer.view()),
            k_norm: matches!(norm, Norm::Both | Norm::Keys).then(|| self.k_norm.buffer.view()),
            norm_eps: EPS,
            positions: self.device_positions.view(),
            slots: self.device_slots.view(),
            frequencies: self.device_frequencies.view(),
            attention_scale: self.problem.attention_scale(),
            interleaved,
            heads,
            kv_heads,
            head_dim,
            k_cache: self.k_cache.buffer.matrix_mut(1, pool),
            v_cache: self.v_cache.buffer.matrix_mut(1, pool),
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        for tensor in [&mut self.qkv, &mut self.k_cache, &mut self.v_cache] {
            tensor.reset(stream)?;
        }
        self.launch(stream)?;
        let outputs = [("qkv", &self.qkv), ("k_cache", &self.k_cache), ("v_cache", &self.v_cache)];
        outputs.into_iter().map(|(name, tensor)| Output::of(name, &tensor.buffer, stream)).collect()
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        for tensor in [&mut self.qkv, &mut self.k_cache, &mut self.v_cache] {
            tensor.reset(stream)?;
        }
        self.launch(stream)?;
        let Problem { tokens, heads, kv_heads, head_dim, norm, dtype, .. } = self.problem;
        let (q_width, kv_width, width) = (heads * head_dim, kv_heads * head_dim, self.problem.width());
        let mut expected = self.qkv.f32();
        // Where nothing is written, the NaNs of `Tensor::output` stand.
        let mut k_cache = vec![f32::NAN; (self.problem.pages() + 1) * kv::PAGE * kv_width];
        let mut v_cache = k_cache.clone();
        let (q_norm, k_norm) = (self.q_norm.f32(), self.k_norm.f32());
        let q_norm = matches!(norm, Norm::Both | Norm::Queries).then_some(q_norm.as_slice());
        let k_norm = matches!(norm, Norm::Both | Norm::Keys).then_some(k_norm.as_slice());
        for (token, row) in expected.chunks_mut(width).enumerate() {
            let (q, kv) = row.split_at_mut(q_width);
            let (k, v) = kv.split_at(kv_width);
            for head in q.chunks_mut(head_dim) {
                head.copy_from_slice(&self.turned(token, head, q_norm));
            }
            let slot = self.slots[token] as usize;
            if slot < self.problem.pages() * kv::PAGE {
                let k = k.chunks(head_dim).flat_map(|head| self.turned(token, head, k_norm));
                k_cache.splice(slot * kv_width..(slot + 1) * kv_width, k);
                v_cache[slot * kv_width..][..kv_width].copy_from_slice(v);
            }
        }
        // One rounding to the element type; sines and cosines are good to 2^-20, and values reach 3.5 (12 after
        // a norm with such weights) times yarn's factor.
        let (relative, absolute) = (dtype.epsilon() * 1.01 + 1e-5, 4e-5);
        let found = self.qkv.read(stream)?;
        let part = |values: &[f32], from: usize, to: usize| -> Vec<f32> {
            (0..tokens).flat_map(|token| values[token * width + from..token * width + to].to_vec()).collect()
        };
        compare("q", &part(&found, 0, q_width), &part(&expected, 0, q_width), relative, absolute)?;
        compare("kv of qkv", &part(&found, q_width, width), &part(&expected, q_width, width), 0.0, 0.0)?;
        compare("k_cache", &self.slot_major(&self.k_cache.read(stream)?), &k_cache, relative, absolute)?;
        compare("v_cache", &self.slot_major(&self.v_cache.read(stream)?), &v_cache, 0.0, 0.0)
    }
}
