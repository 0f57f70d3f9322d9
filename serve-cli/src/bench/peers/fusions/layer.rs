//! Decoder layers of Llama-3.1-8B, kernel by kernel, each fusion a choice.
use crate::bench::peers::calibrate::{normal, random};
use crate::bench::peers::gemm::part;
use anyhow::Result;
use kernels_host::act::{Epilogue, SiluMul};
use kernels_host::attention::{DecodeAttention, PagedKv, PrefillAttention};
use kernels_host::case::Rng;
use kernels_host::gemm::{Activation, Gemm, NormGemm, NormQkv};
use kernels_host::kv::{PAGE, page_elems};
use kernels_host::norm::RmsNorm;
use kernels_host::rope::RopeKv;
use kernels_host::{Buffer, DType, Error, Stream, View, ViewMut};
use std::cell::{Cell, RefCell};

/// The model and the largest step.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Layers, with weights and caches of their own.
    pub layers: usize,
    /// Most sequences.
    pub batch: usize,
    /// Tokens of every sequence in the cache, the step's own included: whole pages.
    pub context: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Columns of the MLP.
    pub inner: usize,
}

/// Llama-3.1-8B; 2.8 GB, so that none of it is found in the L2 cache.
pub const LLAMA_8B: Size = Size { layers: 4, batch: 32, context: 2048, heads: 32, kv_heads: 8, inner: 14336 };

impl Size {
    fn hidden(&self) -> usize {
        self.heads * HEAD_DIM
    }
    /// Columns of k.
    fn kv(&self) -> usize {
        self.kv_heads * HEAD_DIM
    }
    fn qkv(&self) -> usize {
        self.hidden() + 2 * self.kv()
    }
}

const HEAD_DIM: usize = 128;
/// 1/√head_dim.
const SCALE: f32 = 0.088_388_35;
const EPS: f32 = 1e-5;

/// Which fusions are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The norm with the product behind it, where there is such a kernel.
    pub norm: bool,
    /// q, k and v as one product.
    pub qkv: bool,
    /// RoPE of q and k with the write into the cache.
    pub rope: bool,
    /// Both with the norm and the product, where there is such a kernel.
    pub norm_qkv: bool,
    /// The residual's add in the products' epilogues.
    pub residual: bool,
    /// Gate, up and their activation.
    pub mlp: Mlp,
    /// Programmatic launch.
    pub overlap: bool,
}

/// How gate, up and SwiGLU are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// One kernel.
    Fused,
    /// One product, then the activation.
    Apart,
    /// Two products, of the first half of the rows and of the second, then the activation.
    TwoProducts,
}

impl Plan {
    /// As the engine does it.
    pub const FUSED: Plan =
        Plan { norm: true, qkv: true, rope: true, norm_qkv: true, residual: true, mlp: Mlp::Fused, overlap: true };
    /// Every operation a kernel.
    pub const APART: Plan = Plan {
        norm: false,
        qkv: false,
        rope: false,
        norm_qkv: false,
        residual: false,
        mlp: Mlp::TwoProducts,
        overlap: false,
    };
}

/// What the kernels of a layer are asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Launches.
    pub kernels: u64,
    /// Bytes that they read and write, each kernel's inputs and outputs once.
    pub bytes: u64,
    /// Operations of the products and of attention.
    pub flops: u64,
}

/// Weights, caches and activations.
pub struct Layers {
    size: Size,
    qkv: Buffer,
    o: Buffer,
    up: Buffer,
    down: Buffer,
    gain: Buffer,
    frequencies: Buffer,
    k: RefCell<Buffer>,
    v: RefCell<Buffer>,
    work: RefCell<Activations>,
    step: Step,
    /// What was launched since it was last zero.
    done: Cell<Work>,
}

/// What flows through a layer, for a context of tokens.
struct Activations {
    hidden: Buffer,
    normed: Buffer,
    qkv: Buffer,
    attended: Buffer,
    branch: Buffer,
    /// The gate's product, or both.
    gate: Buffer,
    up: Buffer,
    inner: Buffer,
    workspace: Buffer,
}

/// Sequences, the last `queries` of each being the step's; their pages scattered.
struct Step {
    sequences: usize,
    queries: usize,
    positions: Buffer,
    slots: Buffer,
    nowhere: Buffer,
    tables: Buffer,
    lens: Buffer,
    starts: Buffer,
}

impl Step {
    fn new(stream: &Stream, context: usize, sequences: usize, queries: usize) -> Result<Self, Error> {
        let width = context / PAGE;
        let mut pages: Vec<u32> = (0..(sequences * width) as u32).collect();
        let mut rng = Rng::new(51);
        for i in (1..pages.len()).rev() {
            pages.swap(i, rng.below(i + 1));
        }
        let positions: Vec<u32> = (0..sequences).flat_map(|_| (context - queries..context).map(|p| p as u32)).collect();
        let slot = |(i, &p): (usize, &u32)| {
            let p = p as usize;
            pages[i / queries * width + p / PAGE] * PAGE as u32 + (p % PAGE) as u32
        };
        let slots: Vec<u32> = positions.iter().enumerate().map(slot).collect();
        let starts: Vec<u32> = (0..=sequences).map(|sequence| (sequence * queries) as u32).collect();
        let words = |values: &[u32]| -> Result<Buffer, Error> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, values.len())?;
            stream.upload(values, buffer.view_mut())?;
            Ok(buffer)
        };
        Ok(Step {
            sequences,
            queries,
            positions: words(&positions)?,
            slots: words(&slots)?,
            nowhere: words(&vec![u32::MAX; slots.len()])?,
            tables: words(&pages)?,
            lens: words(&vec![context as u32; sequences])?,
            starts: words(&starts)?,
        })
    }

    fn tokens(&self) -> usize {
        self.sequences * self.queries
    }
}

impl Layers {
    /// Random ones.
    pub fn new(stream: &Stream, size: Size) -> Result<Self> {
        let (hidden, inner) = (size.hidden(), size.inner);
        let cache = size.layers * size.batch * size.context / PAGE * page_elems(size.kv_heads, HEAD_DIM);
        let empty = |cols: usize| Buffer::new(stream.device(), DType::Bf16, size.context * cols);
        let workspace = DecodeAttention::workspace_len(stream.device(), HEAD_DIM);
        let mut workspace = Buffer::new(stream.device(), DType::F32, workspace)?;
        stream.fill(workspace.view_mut(), 0)?;
        let angles: Vec<f32> = (0..HEAD_DIM / 2).map(|i| 5e5f32.powf(-2.0 * i as f32 / HEAD_DIM as f32)).collect();
        let mut frequencies = Buffer::new(stream.device(), DType::F32, angles.len())?;
        stream.upload(&angles, frequencies.view_mut())?;
        Ok(Layers {
            size,
            qkv: random(stream, size.layers * size.qkv() * hidden, 61)?,
            o: random(stream, size.layers * hidden * hidden, 62)?,
            up: random(stream, size.layers * 2 * inner * hidden, 63)?,
            down: random(stream, size.layers * hidden * inner, 64)?,
            gain: normal(stream, hidden, 65, 1.0)?,
            frequencies,
            k: RefCell::new(normal(stream, cache, 66, 1.0)?),
            v: RefCell::new(normal(stream, cache, 67, 1.0)?),
            work: RefCell::new(Activations {
                hidden: normal(stream, size.context * hidden, 68, 0.1)?,
                normed: empty(hidden)?,
                qkv: empty(size.qkv())?,
                attended: empty(hidden)?,
                branch: empty(hidden)?,
                gate: empty(2 * inner)?,
                up: empty(inner)?,
                inner: empty(inner)?,
                workspace,
            }),
            step: Step::new(stream, size.context, 1, 1)?,
            done: Cell::default(),
        })
    }

    /// Sets the step: sequences, and queries of each.
    pub fn prepare(&mut self, stream: &Stream, sequences: usize, queries: usize) -> Result<()> {
        self.step = Step::new(stream, self.size.context, sequences, queries)?;
        Ok(())
    }

    /// Runs a layer, and says what its kernels did.
    pub fn kernels(&self, stream: &Stream, plan: &Plan) -> Result<Work> {
        self.done.set(Work::default());
        self.launch(stream, plan, 0)?;
        Ok(self.done.get())
    }

    /// The residual stream of the step's tokens.
    #[cfg(test)]
    pub fn hidden(&self, stream: &Stream) -> Result<Vec<f32>, Error> {
        let work = self.work.borrow();
        kernels_host::case::read_half(stream, work.hidden.matrix(self.step.tokens(), self.size.hidden()))
    }

    /// Queues layer `layer`.
    pub fn launch(&self, stream: &Stream, plan: &Plan, layer: usize) -> Result<(), Error> {
        let mut work = self.work.borrow_mut();
        self.head(stream, plan, layer, &mut work)?;
        self.attend(stream, layer, &mut work)?;
        let Activations { hidden, attended, branch, .. } = &mut *work;
        self.add_product(
            stream,
            plan,
            attended,
            part(&self.o, layer, self.size.hidden(), self.size.hidden()),
            branch,
            hidden,
        )?;
        self.gate_up(stream, plan, layer, &mut work)?;
        let Activations { hidden, inner, branch, .. } = &mut *work;
        self.add_product(
            stream,
            plan,
            inner,
            part(&self.down, layer, self.size.hidden(), self.size.inner),
            branch,
            hidden,
        )
    }

    /// Notes a kernel that reads and writes `elements` of two bytes and does `flops`.
    fn note(&self, elements: usize, flops: usize) {
        let done = self.done.get();
        let (bytes, flops) = (done.bytes + 2 * elements as u64, done.flops + flops as u64);
        self.done.set(Work { kernels: done.kernels + 1, bytes, flops });
    }

    fn product(&self, stream: &Stream, gemm: Gemm<'_>) -> Result<(), Error> {
        let (m, n, k) = (gemm.a.rows(), gemm.w.rows(), gemm.a.cols());
        let out = gemm.out.cols() * if gemm.accumulate { 2 } else { 1 };
        self.note(m * k + n * k + m * out, 2 * m * n * k);
        gemm.launch(stream)
    }

    fn norm(&self, stream: &Stream, hidden: &Buffer, normed: &mut Buffer) -> Result<(), Error> {
        let tokens = self.step.tokens();
        self.note((2 * tokens + 1) * self.size.hidden(), 0);
        let (x, out) = (hidden.matrix(tokens, self.size.hidden()), normed.matrix_mut(tokens, self.size.hidden()));
        RmsNorm { x, weight: self.gain.view(), eps: EPS, out }.launch(stream)
    }

    /// `out = activation(norm(hidden) · wᵀ)`; where the norm is a kernel of its own, it runs only before the `first` of
    /// the products of its output.
    fn norm_product(
        &self,
        stream: &Stream,
        plan: &Plan,
        input: Input<'_>,
        w: View<'_>,
        to: To<'_>,
    ) -> Result<(), Error> {
        let tokens = self.step.tokens();
        let Input { hidden, normed, first } = input;
        let (a, To { activation, out }) = (hidden.matrix(tokens, self.size.hidden()), to);
        let gemm = Gemm { a, w, bias: None, activation, accumulate: false, out };
        if plan.norm && NormGemm::is_one_kernel(&gemm, stream) {
            self.note(
                (tokens + 1 + w.rows()) * self.size.hidden() + tokens * gemm.out.cols(),
                2 * tokens * w.rows() * self.size.hidden(),
            );
            let (weight, normed) = (self.gain.view(), normed.matrix_mut(tokens, self.size.hidden()));
            return NormGemm { gemm, weight, eps: EPS, normed }.launch(stream);
        }
        if first {
            self.norm(stream, hidden, normed)?;
        }
        self.product(stream, Gemm { a: normed.matrix(tokens, self.size.hidden()), ..gemm })
    }

    fn project(&self, stream: &Stream, plan: &Plan, layer: usize, work: &mut Activations) -> Result<(), Error> {
        let tokens = self.step.tokens();
        let w = part(&self.qkv, layer, self.size.qkv(), self.size.hidden());
        let all = [(0, self.size.qkv())];
        let apart = [
            (0, self.size.hidden()),
            (self.size.hidden(), self.size.kv()),
            (self.size.hidden() + self.size.kv(), self.size.kv()),
        ];
        let Activations { hidden, normed, qkv, .. } = work;
        for &(start, rows) in if plan.qkv { &all[..] } else { &apart } {
            let out = qkv.matrix_mut(tokens, self.size.qkv()).columns(start, rows);
            let input = Input { hidden, normed, first: start == 0 };
            let to = To { activation: Activation::None, out };
            self.norm_product(stream, plan, input, w.row_range(start, rows), to)?;
        }
        Ok(())
    }

    /// The norm, the product, RoPE and the write into the cache.
    fn head(&self, stream: &Stream, plan: &Plan, layer: usize, work: &mut Activations) -> Result<(), Error> {
        let tokens = self.step.tokens();
        let (mut k, mut v) = (self.k.borrow_mut(), self.v.borrow_mut());
        if plan.norm_qkv {
            let mut whole = NormQkv {
                a: work.hidden.matrix(tokens, self.size.hidden()),
                weight: self.gain.view(),
                eps: EPS,
                w: part(&self.qkv, layer, self.size.qkv(), self.size.hidden()),
                bias: None,
                normed: work.normed.matrix_mut(tokens, self.size.hidden()),
                rope: self.rope(layer, work.qkv.matrix_mut(tokens, self.size.qkv()), &mut k, &mut v),
            };
            if whole.is_one_kernel(stream) {
                self.note(
                    (tokens + 1 + self.size.qkv()) * self.size.hidden() + tokens * self.size.qkv(),
                    2 * tokens * self.size.qkv() * self.size.hidden(),
                );
                return whole.launch(stream);
            }
        }
        self.project(stream, plan, layer, work)?;
        let qkv = &mut work.qkv;
        if plan.rope {
            self.note(2 * tokens * self.size.qkv(), 0);
            return self.rope(layer, qkv.matrix_mut(tokens, self.size.qkv()), &mut k, &mut v).launch(stream);
        }
        // RoPE in place of all heads of q and k; one self.size.kv() head more must be named, and goes nowhere.
        self.note(2 * tokens * (self.size.hidden() + self.size.kv()), 0);
        let rotated = self.size.heads + self.size.kv_heads;
        let in_place = qkv.matrix_mut(tokens, self.size.qkv()).columns(0, (rotated + 2) * HEAD_DIM);
        let rope = self.rope(layer, in_place, &mut k, &mut v);
        RopeKv { heads: rotated, kv_heads: 1, slots: self.step.nowhere.view(), ..rope }.launch(stream)?;
        // The copy to the cache: no dimension is rotated, and of q one head is named, which stays as it is.
        self.note(4 * tokens * self.size.kv(), 0);
        let copied = qkv
            .matrix_mut(tokens, self.size.qkv())
            .columns(self.size.hidden() - HEAD_DIM, HEAD_DIM + 2 * self.size.kv());
        let rope = self.rope(layer, copied, &mut k, &mut v);
        RopeKv { heads: 1, frequencies: self.frequencies.view().columns(0, 0), ..rope }.launch(stream)
    }

    /// RoPE and self.size.kv() write of the step's tokens in layer `layer`.
    fn rope<'a>(&'a self, layer: usize, qkv: ViewMut<'a>, k: &'a mut Buffer, v: &'a mut Buffer) -> RopeKv<'a> {
        let len = k.len() / self.size.layers;
        RopeKv {
            qkv,
            q_norm: None,
            k_norm: None,
            norm_eps: EPS,
            positions: self.step.positions.view(),
            slots: self.step.slots.view(),
            frequencies: self.frequencies.view(),
            attention_scale: 1.0,
            interleaved: false,
            heads: self.size.heads,
            kv_heads: self.size.kv_heads,
            head_dim: HEAD_DIM,
            k_cache: k.view_mut().columns(layer * len, len),
            v_cache: v.view_mut().columns(layer * len, len),
        }
    }

    fn attend(&self, stream: &Stream, layer: usize, work: &mut Activations) -> Result<(), Error> {
        let &Step { sequences, queries, .. } = &self.step;
        let tokens = self.step.tokens();
        let (k, v) = (self.k.borrow(), self.v.borrow());
        let len = k.len() / self.size.layers;
        let Activations { qkv, attended, workspace, .. } = work;
        let q = qkv.matrix(tokens, self.size.qkv()).columns(0, self.size.hidden());
        let kv = PagedKv {
            k: k.view().columns(layer * len, len),
            v: v.view().columns(layer * len, len),
            block_tables: self.step.tables.matrix(sequences, self.size.context / PAGE),
            kv_lens: self.step.lens.view(),
        };
        let pairs = if queries > 1 { self.size.context * (self.size.context + 1) / 2 } else { self.size.context };
        self.note(
            2 * tokens * self.size.hidden() + 2 * sequences * self.size.context * self.size.kv(),
            4 * sequences * pairs * self.size.hidden(),
        );
        let (heads, kv_heads, head_dim, scale, window, softcap) =
            (self.size.heads, self.size.kv_heads, HEAD_DIM, SCALE, None, None);
        let out = attended.matrix_mut(tokens, self.size.hidden());
        if queries == 1 {
            let (query_starts, max_query, max_kv, workspace) = (None, 1, self.size.context, workspace.view_mut());
            #[rustfmt::skip]
            let attention = DecodeAttention {
                q, kv, query_starts, heads, kv_heads, head_dim, scale, window, softcap, max_query, max_kv, workspace, out,
            };
            attention.launch(stream)
        } else {
            let (query_starts, max_query) = (self.step.starts.view(), queries);
            #[rustfmt::skip]
            let attention = PrefillAttention {
                q, kv, query_starts, heads, kv_heads, head_dim, scale, window, softcap, max_query, out,
            };
            attention.launch(stream)
        }
    }

    /// `hidden += a · wᵀ`.
    fn add_product(
        &self,
        stream: &Stream,
        plan: &Plan,
        a: &Buffer,
        w: View<'_>,
        branch: &mut Buffer,
        hidden: &mut Buffer,
    ) -> Result<(), Error> {
        let tokens = self.step.tokens();
        let a = a.matrix(tokens, w.cols());
        let (bias, activation, sum) = (None, Activation::None, hidden.matrix_mut(tokens, self.size.hidden()));
        if plan.residual {
            return self.product(stream, Gemm { a, w, bias, activation, accumulate: true, out: sum });
        }
        let out = branch.matrix_mut(tokens, self.size.hidden());
        self.product(stream, Gemm { a, w, bias, activation, accumulate: false, out })?;
        self.note(3 * tokens * self.size.hidden(), 0);
        Epilogue { x: branch.matrix(tokens, self.size.hidden()), bias, activation, accumulate: true, out: sum }
            .launch(stream)
    }

    fn gate_up(&self, stream: &Stream, plan: &Plan, layer: usize, work: &mut Activations) -> Result<(), Error> {
        let tokens = self.step.tokens();
        let w = part(&self.up, layer, 2 * self.size.inner, self.size.hidden());
        let Activations { hidden, normed, gate, up, inner, .. } = work;
        let out = inner.matrix_mut(tokens, self.size.inner);
        match plan.mlp {
            Mlp::Fused => {
                let input = Input { hidden, normed, first: true };
                self.norm_product(stream, plan, input, w, To { activation: Activation::SwiGlu, out })
            }
            Mlp::Apart => {
                let input = Input { hidden, normed, first: true };
                let to = To { activation: Activation::None, out: gate.matrix_mut(tokens, 2 * self.size.inner) };
                self.norm_product(stream, plan, input, w, to)?;
                self.note(3 * tokens * self.size.inner, 0);
                let x = gate.matrix(tokens, 2 * self.size.inner);
                Epilogue { x, bias: None, activation: Activation::SwiGlu, accumulate: false, out }.launch(stream)
            }
            Mlp::TwoProducts => {
                for (half, buffer) in [&mut *gate, &mut *up].into_iter().enumerate() {
                    let input = Input { hidden, normed, first: half == 0 };
                    let to = To { activation: Activation::None, out: buffer.matrix_mut(tokens, self.size.inner) };
                    self.norm_product(stream, plan, input, w.row_range(half * self.size.inner, self.size.inner), to)?;
                }
                self.note(3 * tokens * self.size.inner, 0);
                SiluMul { gate: gate.matrix(tokens, self.size.inner), up: up.matrix(tokens, self.size.inner), out }
                    .launch(stream)
            }
        }
    }
}

/// A norm's input and output, and whether it has to be computed.
struct Input<'a> {
    hidden: &'a Buffer,
    normed: &'a mut Buffer,
    first: bool,
}

/// Where a product goes.
struct To<'a> {
    activation: Activation,
    out: ViewMut<'a>,
}
