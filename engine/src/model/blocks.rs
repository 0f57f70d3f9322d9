//! The blocks that model files are made of. Each is a few kernel calls over the step's activations.
use super::StepInput;
use super::llama::Rope;
use super::load::Loader;
use crate::config::{self, ModelConfig};
use crate::error::Result;
use crate::kv::LayerCache;
use crate::scheduler::Limits;
use crate::weights::TensorKind;
use kernels_host::attention::{DecodeAttention, PagedKv, PrefillAttention};
use kernels_host::gemm::{Activation, Gemm};
use kernels_host::norm::{LayerNorm, RmsNorm, SandwichNorm};
use kernels_host::rope::RopeKv;
use kernels_host::{Buffer, DType, Stream, View, ViewMut};

/// Buffers for the activations of one step, allocated once for the largest step.
pub struct Activations {
    max_tokens: usize,
    /// The residual stream, [tokens, hidden_size].
    pub hidden: Buffer,
    /// A norm's output, [tokens, hidden_size].
    pub normed: Buffer,
    /// With post-norms a block's result, [tokens, hidden_size].
    branch: Buffer,
    qkv: Buffer,
    attended: Buffer,
    inner: Buffer,
    /// The rows that the head sees, [rows, hidden_size].
    pub head_rows: Buffer,
    attention_workspace: Buffer,
}

impl Activations {
    /// For steps within `limits`.
    pub fn new(stream: &Stream, config: &ModelConfig, dtype: DType, limits: &Limits) -> Result<Self> {
        let device = stream.device();
        let max_tokens = limits.max_tokens;
        let half = |cols: usize| Buffer::new(device, dtype, max_tokens * cols);
        let workspace = DecodeAttention::workspace_len(device, config.head_dim);
        let mut attention_workspace = Buffer::new(device, DType::F32, workspace)?;
        stream.fill(attention_workspace.view_mut(), 0)?;
        Ok(Activations {
            max_tokens,
            hidden: half(config.hidden_size)?,
            normed: half(config.hidden_size)?,
            branch: half(if config.post_norms { config.hidden_size } else { 0 })?,
            qkv: half(config.q_size() + 2 * config.kv_size())?,
            attended: half(config.q_size())?,
            inner: half(config.intermediate_size)?,
            head_rows: half(config.hidden_size)?,
            attention_workspace,
        })
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        let buffers = [
            &self.hidden,
            &self.normed,
            &self.branch,
            &self.qkv,
            &self.attended,
            &self.inner,
            &self.head_rows,
            &self.attention_workspace,
        ];
        buffers.iter().map(|buffer| buffer.len() * buffer.dtype().size()).sum()
    }

    /// Most tokens in a step.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// y = act(x·wᵀ + b), optionally added to y.
pub(super) struct Linear {
    weight: Buffer,
    bias: Option<Buffer>,
    n: usize,
    k: usize,
}

impl Linear {
    pub fn new(weight: Buffer, bias: Option<Buffer>, n: usize, k: usize) -> Self {
        Linear { weight, bias, n, k }
    }

    pub fn forward(
        &self,
        stream: &Stream,
        x: View<'_>,
        activation: Activation,
        accumulate: bool,
        out: ViewMut<'_>,
    ) -> Result<()> {
        let bias = self.bias.as_ref().map(Buffer::view);
        Ok(Gemm { a: x, w: self.weight.matrix(self.n, self.k), bias, activation, accumulate, out }.launch(stream)?)
    }
}

/// RMSNorm or LayerNorm.
pub(super) struct Norm {
    weight: Buffer,
    bias: Option<Buffer>,
    eps: f32,
}

impl Norm {
    pub fn new(weight: Buffer, bias: Option<Buffer>, eps: f64) -> Self {
        Norm { weight, bias, eps: eps as f32 }
    }

    pub fn apply(&self, stream: &Stream, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        let (weight, eps) = (self.weight.view(), self.eps);
        match &self.bias {
            None => RmsNorm { x, weight, eps, out }.launch(stream)?,
            Some(bias) => LayerNorm { x, weight, bias: bias.view(), eps, out }.launch(stream)?,
        }
        Ok(())
    }

    /// `work.normed = norm(work.hidden)`.
    pub fn forward(&self, stream: &Stream, work: &mut Activations, tokens: usize) -> Result<()> {
        let width = self.weight.len();
        self.apply(stream, work.hidden.matrix(tokens, width), work.normed.matrix_mut(tokens, width))
    }
}

/// What happens to a block's result, and the norm of the next block's input.
pub(super) enum Join {
    /// `hidden` has it already: `normed = next(hidden)`.
    Added,
    /// It is in `branch`: `hidden += norm(branch); normed = next(hidden)`.
    Normed(Norm),
}

impl Join {
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, name: &str) -> Result<Self> {
        Ok(if config.post_norms { Join::Normed(loader.norm(name, config.hidden_size)?) } else { Join::Added })
    }

    /// `next` is none after the last layer.
    pub fn forward(&self, stream: &Stream, work: &mut Activations, tokens: usize, next: Option<&Norm>) -> Result<()> {
        let Join::Normed(norm) = self else {
            return next.map_or(Ok(()), |next| next.forward(stream, work, tokens));
        };
        let width = norm.weight.len();
        SandwichNorm {
            x: work.branch.matrix(tokens, width),
            weight: norm.weight.view(),
            residual: work.hidden.matrix_mut(tokens, width),
            // After the last layer nobody reads `normed`.
            next_weight: next.unwrap_or(norm).weight.view(),
            eps: norm.eps,
            out: work.normed.matrix_mut(tokens, width),
        }
        .launch(stream)?;
        Ok(())
    }
}

/// `hidden += o_proj(attention(rope(qkv_proj(normed))))`; with post-norms `branch = o_proj(…)`.
pub(super) struct Attention {
    qkv: Linear,
    o: Linear,
    q_norm: Option<Buffer>,
    k_norm: Option<Buffer>,
    norm_eps: f32,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    scale: f32,
    softcap: Option<f32>,
    post_norm: bool,
}

impl Attention {
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, prefix: &str, window: Option<usize>) -> Result<Self> {
        let name = |part: &str| format!("{prefix}self_attn.{part}");
        let (q, k, v) = (name("q_proj"), name("k_proj"), name("v_proj"));
        let qk_norm = |part: &str| -> Result<Option<Buffer>> {
            if !config.qk_norm {
                return Ok(None);
            }
            loader.vector(&format!("{}.weight", name(part)), config.head_dim, TensorKind::NormWeight).map(Some)
        };
        Ok(Attention {
            qkv: loader.linear(
                &[&q, &k, &v],
                &[config.q_size(), config.kv_size(), config.kv_size()],
                config.hidden_size,
                config.qkv_bias,
            )?,
            o: loader.linear(&[&name("o_proj")], &[config.hidden_size], config.q_size(), config.o_bias)?,
            q_norm: qk_norm("q_norm")?,
            k_norm: qk_norm("k_norm")?,
            norm_eps: config.norm.eps() as f32,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            window,
            scale: config.attention_scale as f32,
            softcap: config.attention_softcap.map(|cap| cap as f32),
            post_norm: config.post_norms,
        })
    }

    pub fn forward(
        &self,
        stream: &Stream,
        step: &StepInput<'_>,
        rope: &Rope,
        mut cache: LayerCache<'_>,
        work: &mut Activations,
    ) -> Result<()> {
        let tokens = step.num_tokens();
        let (hidden, q_size) = (self.qkv.k, self.heads * self.head_dim);
        let qkv_size = q_size + 2 * self.kv_heads * self.head_dim;
        self.qkv.forward(
            stream,
            work.normed.matrix(tokens, hidden),
            Activation::None,
            false,
            work.qkv.matrix_mut(tokens, qkv_size),
        )?;
        RopeKv {
            qkv: work.qkv.matrix_mut(tokens, qkv_size),
            q_norm: self.q_norm.as_ref().map(Buffer::view),
            k_norm: self.k_norm.as_ref().map(Buffer::view),
            norm_eps: self.norm_eps,
            positions: step.positions,
            slots: step.slots,
            frequencies: rope.frequencies.view(),
            attention_scale: rope.attention_scale,
            interleaved: false,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            k_cache: cache.k.reborrow(),
            v_cache: cache.v.reborrow(),
        }
        .launch(stream)?;
        self.attend(stream, step, &cache, work)?;
        let out = if self.post_norm { &mut work.branch } else { &mut work.hidden }.matrix_mut(tokens, hidden);
        self.o.forward(stream, work.attended.matrix(tokens, q_size), Activation::None, !self.post_norm, out)
    }

    /// Decode attention for the leading sequences, which have few queries, prefill attention for the rest.
    fn attend(
        &self,
        stream: &Stream,
        step: &StepInput<'_>,
        cache: &LayerCache<'_>,
        work: &mut Activations,
    ) -> Result<()> {
        let (tokens, first) = (step.num_tokens(), step.decode_tokens);
        let q_size = self.heads * self.head_dim;
        let q = work.qkv.matrix(tokens, q_size + 2 * self.kv_heads * self.head_dim).columns(0, q_size);
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        let (scale, window, softcap) = (self.scale, self.window, self.softcap);
        let (decodes, sequences) = (step.decodes, step.block_tables.rows());
        let kv = |first: usize, count: usize| PagedKv {
            k: cache.k.as_view(),
            v: cache.v.as_view(),
            block_tables: step.block_tables.row_range(first, count),
            kv_lens: step.kv_lens.columns(first, count),
        };
        if decodes > 0 {
            DecodeAttention {
                q: q.row_range(0, first),
                kv: kv(0, decodes),
                query_starts: step.decode_starts,
                heads,
                kv_heads,
                head_dim,
                scale,
                window,
                softcap,
                max_query: step.max_decode_query,
                max_kv: step.max_kv,
                workspace: work.attention_workspace.view_mut(),
                out: work.attended.matrix_mut(tokens, q_size).row_range(0, first),
            }
            .launch(stream)?;
        }
        if sequences > decodes {
            PrefillAttention {
                q: q.row_range(first, tokens - first),
                kv: kv(decodes, sequences - decodes),
                query_starts: step.query_starts,
                heads,
                kv_heads,
                head_dim,
                scale,
                window,
                softcap,
                max_query: step.max_query,
                out: work.attended.matrix_mut(tokens, q_size).row_range(first, tokens - first),
            }
            .launch(stream)?;
        }
        Ok(())
    }
}

/// `hidden += down(act(gate(normed)) * up(normed))`, or `hidden += down(act(up(normed)))`; with post-norms `branch = …`.
pub(super) struct Mlp {
    up: Linear,
    down: Linear,
    activation: Activation,
    inner: usize,
    post_norm: bool,
}

impl Mlp {
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, prefix: &str) -> Result<Self> {
        let name = |part: &str| format!("{prefix}mlp.{part}");
        let (hidden, inner, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        let (up, down) = if config.gated_mlp {
            (loader.gate_up(&name("gate_proj"), &name("up_proj"), inner, hidden, bias)?, name("down_proj"))
        } else {
            (loader.linear(&[&name("c_fc")], &[inner], hidden, bias)?, name("c_proj"))
        };
        let activation = match (config.gated_mlp, config.activation) {
            (true, config::Activation::Silu) => Activation::SwiGlu,
            (true, config::Activation::GeluTanh) => Activation::GeGlu,
            (false, config::Activation::GeluTanh) => Activation::GeluTanh,
            (false, config::Activation::GeluErf) => Activation::GeluErf,
            (gated, other) => return Err(loader.unsupported_activation(gated, other)),
        };
        Ok(Mlp {
            up,
            down: loader.linear(&[&down], &[hidden], inner, bias)?,
            activation,
            inner,
            post_norm: config.post_norms,
        })
    }

    pub fn forward(&self, stream: &Stream, work: &mut Activations, tokens: usize) -> Result<()> {
        let hidden = self.up.k;
        let inner = work.inner.matrix_mut(tokens, self.inner);
        self.up.forward(stream, work.normed.matrix(tokens, hidden), self.activation, false, inner)?;
        let out = if self.post_norm { &mut work.branch } else { &mut work.hidden }.matrix_mut(tokens, hidden);
        self.down.forward(stream, work.inner.matrix(tokens, self.inner), Activation::None, !self.post_norm, out)
    }
}
