//! Launcher, reference and cases of `kernels-gpu/src/embed/gather.rs`.
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Tensor, Work, compare};
use crate::{Buffer, Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::embed::gather as gpu;
pub use kernels_gpu::embed::gather::{FROM_DRAFT, FROM_SLOT};
use kernels_gpu::prim::DevicePtr;

/// `out[token] = table[ids[token]] · scale`, zeros where the id is not below `vocab`. Ids may name a place on the
/// device that holds the token instead: [`FROM_SLOT`], [`FROM_DRAFT`].
pub struct EmbeddingGather<'a> {
    /// [vocab, width], bf16 or f16; width a multiple of 8.
    pub table: View<'a>,
    /// u32 [1, tokens]: ids below 2^30, `FROM_SLOT | slot` or `FROM_DRAFT | index`.
    pub ids: View<'a>,
    /// u32 [1, slots]: what `FROM_SLOT` reads, as `Sample` writes it. A slot that is not there reads as zeros.
    pub last_tokens: Option<View<'a>>,
    /// u32 [1, drafts]: what `FROM_DRAFT` reads, likewise.
    pub drafts: Option<View<'a>>,
    /// 1 copies the bits.
    pub scale: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

impl EmbeddingGather<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let EmbeddingGather { table, ids, last_tokens, drafts, scale, out } = self;
        let mut check = Check::new("embedding_gather");
        check.half("table", &table, ["vocab", "width"])?;
        check.typed("ids", &ids, DType::U32, ["1", "tokens"])?;
        check.half("out", &out.as_view(), ["tokens", "width"])?;
        for (name, view) in [("last_tokens", &last_tokens), ("drafts", &drafts)] {
            if let Some(view) = view {
                check.typed(name, view, DType::U32, ["1", "_"])?;
            }
        }
        let (vocab, tokens, width) = (check.dim("vocab"), check.dim("tokens"), check.dim("width"));
        check.require(width.is_multiple_of(8), || format!("width {width} must be a multiple of 8"))?;
        check.require(vocab <= FROM_DRAFT as usize, || format!("vocab {vocab} must be at most 2^30"))?;
        if stream.is_cpu() {
            reference(table, &resolve(ids, last_tokens, drafts), scale, out);
            return Ok(());
        }
        let args = gpu::EmbeddingGather {
            table: table.ptr(),
            ids: ids.ptr(),
            out: out.ptr(),
            vocab: vocab as u32,
            width: width as u32,
            table_stride: table.stride() as u32,
            out_stride: out.stride() as u32,
            scale,
            last_tokens: last_tokens.map_or(DevicePtr(0), |view| view.ptr()),
            drafts: drafts.map_or(DevicePtr(0), |view| view.ptr()),
            slots: last_tokens.map_or(0, |view| view.cols() as u32),
            draft_count: drafts.map_or(0, |view| view.cols() as u32),
        };
        let entry = match (scale, table.dtype()) {
            (1.0, _) => gpu::embedding_gather,
            (_, DType::F16) => gpu::embedding_gather_scaled_f16,
            _ => gpu::embedding_gather_scaled_bf16,
        };
        let grid = Launch::grid3(tokens, width.div_ceil(gpu::SPAN as usize), 1);
        // SAFETY: one block per token and span; the kernel checks the id against `vocab`, a slot or a draft's index against
        // what is there, and the column against `width`, and the views were checked to have those rows.
        unsafe { stream.launch(entry, grid.dependent(), &args) }
    }
}

/// The naive reference, and the CPU device's kernel.
fn reference(table: View<'_>, ids: &[u32], scale: f32, mut out: ViewMut<'_>) {
    let dtype = table.dtype();
    for (token, &id) in ids.iter().enumerate() {
        let row = out.row_mut::<u16>(token);
        if (id as usize) < table.rows() {
            row.copy_from_slice(table.row(id as usize));
            if scale != 1.0 {
                row.iter_mut().for_each(|bits| *bits = dtype.encode(dtype.decode(*bits) * scale));
            }
        } else {
            row.fill(0);
        }
    }
}

/// The tokens that ids stand for; `u32::MAX` for places that are not there.
fn resolve(ids: View<'_>, last_tokens: Option<View<'_>>, drafts: Option<View<'_>>) -> Vec<u32> {
    let read = |view: Option<View<'_>>, index: u32| {
        view.and_then(|view| view.row::<u32>(0).get(index as usize).copied()).unwrap_or(u32::MAX)
    };
    let resolve = |&id: &u32| match id {
        FROM_SLOT.. => read(last_tokens, id - FROM_SLOT),
        FROM_DRAFT.. => read(drafts, id - FROM_DRAFT),
        _ => id,
    };
    ids.row::<u32>(0).iter().map(resolve).collect()
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "embed/gather",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for dtype in [DType::Bf16, DType::F16] {
                for (tokens, vocab, width) in
                    [(2048, 8192, 4096), (1, 8192, 4096), (1, 1, 8), (5, 3, 2056), (33, 100, 16384)]
                {
                    cases.push(Box::new(Problem { dtype, tokens, vocab, width, gap: 0, scale: 1.0, places: false }));
                }
                // Gemma 2 9B's √3584.
                cases.push(Box::new(Problem {
                    dtype,
                    tokens: 512,
                    vocab: 9000,
                    width: 3584,
                    gap: 0,
                    scale: 59.75,
                    places: false,
                }));
                // A shard's columns of a wider table.
                cases.push(Box::new(Problem {
                    dtype,
                    tokens: 7,
                    vocab: 50,
                    width: 264,
                    gap: 16,
                    scale: 0.3,
                    places: false,
                }));
                // Decodes whose tokens only the device knows.
                cases.push(Box::new(Problem {
                    dtype,
                    tokens: 19,
                    vocab: 70,
                    width: 2056,
                    gap: 0,
                    scale: 1.0,
                    places: true,
                }));
            }
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            let scale = prop_oneof![Just(1f32), 0.1f32..90.0];
            (any::<(bool, bool)>(), 1usize..60, 1usize..300, 1usize..600, 0usize..4, scale)
                .prop_map(|((f16, places), tokens, vocab, eighths, gap, scale)| {
                    let dtype = if f16 { DType::F16 } else { DType::Bf16 };
                    let (width, gap) = (eighths * 8, gap * 8);
                    Box::new(Problem { dtype, tokens, vocab, width, gap, scale, places }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

/// Places that ids may name.
const SLOTS: usize = 5;
const DRAFTS: usize = 9;

#[derive(Clone, Copy, Debug)]
struct Problem {
    dtype: DType,
    tokens: usize,
    vocab: usize,
    width: usize,
    /// Columns of the table and of the output that belong to others.
    gap: usize,
    scale: f32,
    /// Whether some ids name places on the device.
    places: bool,
}

impl Case for Problem {
    fn id(&self) -> String {
        let Problem { dtype, tokens, vocab, width, gap, scale, places } = self;
        let places = if *places { " places" } else { "" };
        format!("{dtype} tokens={tokens} vocab={vocab} width={width} gap={gap} scale={scale}{places}")
    }

    fn work(&self) -> Work {
        Work { bytes: (self.tokens * (self.width * 4 + 4)) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.width == 4096
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        // Two in eight are out of range, at the border and far outside.
        let mut tokens = |len: usize| -> Vec<u32> {
            let token = |_| match rng.below(8) {
                0 => self.vocab as u32,
                1 => u32::MAX,
                2 => self.vocab as u32 - 1,
                _ => rng.below(self.vocab) as u32,
            };
            (0..len).map(token).collect()
        };
        let (tokens, last_tokens, drafts) = (tokens(self.tokens), tokens(SLOTS), tokens(DRAFTS));
        // What is uploaded, and the tokens that it stands for.
        let (mut ids, mut expected) = (tokens.clone(), tokens);
        for (id, token) in ids.iter_mut().zip(&mut expected).filter(|_| self.places) {
            let (slot, draft) = (rng.below(SLOTS + 1), rng.below(DRAFTS + 1));
            (*id, *token) = match rng.below(3) {
                // One slot and one draft too many are asked for; tokens that were read are tokens, whatever their bits.
                0 => (FROM_SLOT | slot as u32, last_tokens.get(slot).copied().unwrap_or(u32::MAX)),
                1 => (FROM_DRAFT | draft as u32, drafts.get(draft).copied().unwrap_or(u32::MAX)),
                _ => continue,
            };
        }
        let upload = |values: &[u32]| -> Result<Buffer, Error> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, values.len())?;
            stream.upload(values, buffer.view_mut())?;
            Ok(buffer)
        };
        let stride = self.width + self.gap;
        Ok(Box::new(Data {
            problem: *self,
            table: Tensor::random(stream, &mut rng, self.dtype, self.vocab * stride, 1.0)?,
            out: Tensor::output(stream, self.dtype, self.tokens * stride)?,
            expected,
            ids: upload(&ids)?,
            last_tokens: upload(&last_tokens)?,
            drafts: upload(&drafts)?,
        }))
    }
}

struct Data {
    problem: Problem,
    table: Tensor,
    out: Tensor,
    expected: Vec<u32>,
    ids: Buffer,
    last_tokens: Buffer,
    drafts: Buffer,
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { tokens, vocab, width, gap, scale, places, .. } = self.problem;
        EmbeddingGather {
            table: self.table.buffer.matrix(vocab, width + gap).columns(0, width),
            ids: self.ids.view(),
            last_tokens: places.then(|| self.last_tokens.view()),
            drafts: places.then(|| self.drafts.view()),
            scale,
            out: self.out.buffer.matrix_mut(tokens, width + gap).columns(0, width),
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
        let Problem { dtype, vocab, width, gap, scale, .. } = self.problem;
        let table = self.table.f32();
        let mut expected = Vec::new();
        for &id in &self.expected {
            for column in 0..width {
                let inside = (id as usize) < vocab;
                let value = if inside { table[id as usize * (width + gap) + column] } else { 0.0 };
                // One product in f32, rounded once: exact in the order of operations.
                expected.push(dtype.decode(dtype.encode(value * scale)));
            }
            // The output was filled with NaNs, which must still stand between the rows.
            expected.extend(std::iter::repeat_n(f32::NAN, gap));
        }
        compare("out", &self.out.read(stream)?, &expected, 0.0, 0.0)
    }
}
