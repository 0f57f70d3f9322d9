//! The pre-norm decoder: Llama 2 and 3, Mistral, Qwen2, Qwen3, Starcoder2, Gemma 2.
//!
//! ```text
//! h  = embed(tokens)
//! h += attention(norm(h))        for each layer
//! h += mlp(norm(h))              (Gemma 2: h += norm(attention(norm(h))), h += norm(mlp(norm(h))))
//! logits = head(norm(h))
//! ```
//! What tells the architectures apart (norm, biases, q/k norm, gating, rope, window, soft-caps) is data of the blocks.
use super::StepInput;
use super::blocks::{Activations, Attention, Join, Linear, Mlp, Norm};
use super::load::{LoadProgress, Loader, WeightSource};
use crate::config::{ModelConfig, RopeTable};
use crate::error::Result;
use crate::kv::KvCache;
use crate::weights::layer_prefix;
use kernels_host::act::SoftCap;
use kernels_host::embed::EmbeddingGather;
use kernels_host::gemm::{Activation, Gemm};
use kernels_host::{Buffer, DType, Stream, View, ViewMut};
use std::ops::Range;

/// A model's weights on a device.
pub struct Model {
    config: ModelConfig,
    dtype: DType,
    embedding: Buffer,
    embedding_scale: f32,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None`: the embedding is the head too.
    head: Option<Linear>,
    rope: Rope,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    after_attention: Join,
    mlp_norm: Norm,
    mlp: Mlp,
    after_mlp: Join,
}

/// Rotary frequencies on the device.
pub(super) struct Rope {
    pub frequencies: Buffer,
    pub attention_scale: f32,
}

impl Model {
    /// Loads or makes the weights of `config`. F32 checkpoints are computed in bf16.
    pub fn load(
        stream: &Stream,
        config: &ModelConfig,
        source: WeightSource<'_>,
        progress: &LoadProgress<'_>,
    ) -> Result<Self> {
        let loader = Loader::new(stream, config, source, progress);
        let RopeTable { inv_freq, attention_scale } = config.rope.table();
        let mut frequencies = Buffer::new(stream.device(), DType::F32, inv_freq.len())?;
        stream.upload(&inv_freq, frequencies.view_mut())?;
        let hidden = config.hidden_size;
        let layer = |i: usize| -> Result<Layer> {
            let prefix = layer_prefix(i);
            Ok(Layer {
                attention_norm: loader.norm(&format!("{prefix}input_layernorm"), hidden)?,
                attention: Attention::load(&loader, config, &prefix, config.sliding_window[i])?,
                after_attention: Join::load(&loader, config, &format!("{prefix}post_attention_layernorm"))?,
                mlp_norm: loader.norm(
                    &match config.post_norms {
                        true => format!("{prefix}pre_feedforward_layernorm"),
                        false => format!("{prefix}post_attention_layernorm"),
                    },
                    hidden,
                )?,
                mlp: Mlp::load(&loader, config, &prefix)?,
                after_mlp: Join::load(&loader, config, &format!("{prefix}post_feedforward_layernorm"))?,
            })
        };
        let dtype = loader.dtype();
        let embedding_scale = match config.scaled_embeddings {
            true => dtype.decode(dtype.encode((hidden as f64).sqrt() as f32)),
            false => 1.0,
        };
        let model = Model {
            dtype,
            embedding_scale,
            embedding: loader.matrix(&["model.embed_tokens"], &[config.vocab_size], hidden)?,
            layers: (0..config.num_layers).map(layer).collect::<Result<_>>()?,
            norm: loader.norm("model.norm", hidden)?,
            head: if config.tied_embeddings {
                None
            } else {
                Some(loader.linear(&["lm_head"], &[config.vocab_size], hidden, false)?)
            },
            rope: Rope { frequencies, attention_scale },
            config: config.clone(),
        };
        loader.finish()?;
        Ok(model)
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Element type of weights, activations and cache.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Embeds the step's tokens into `work.hidden`.
    pub fn embed(&self, stream: &Stream, step: &StepInput<'_>, work: &mut Activations) -> Result<()> {
        let table = self.embedding.matrix(self.config.vocab_size, self.config.hidden_size);
        let out = work.hidden.matrix_mut(step.num_tokens(), self.config.hidden_size);
        Ok(EmbeddingGather {
            table,
            ids: step.tokens,
            last_tokens: Some(step.last_tokens),
            drafts: step.drafts,
            scale: self.embedding_scale,
            out,
        }
        .launch(stream)?)
    }

    /// Runs a range of layers over `work.hidden` [tokens, hidden_size], in place.
    pub fn layers(
        &self,
        stream: &Stream,
        range: Range<usize>,
        step: &StepInput<'_>,
        kv: &mut KvCache,
        work: &mut Activations,
    ) -> Result<()> {
        let (tokens, mut layers) = (step.num_tokens(), range.clone().zip(&self.layers[range]).peekable());
        if let Some((_, first)) = layers.peek() {
            first.attention_norm.forward(stream, work, tokens)?;
        }
        while let Some((i, layer)) = layers.next() {
            layer.attention.forward(stream, step, &self.rope, kv.layer(i), work)?;
            layer.after_attention.forward(stream, work, tokens, Some(&layer.mlp_norm))?;
            layer.mlp.forward(stream, work, tokens)?;
            layer.after_mlp.forward(stream, work, tokens, layers.peek().map(|(_, next)| &next.attention_norm))?;
        }
        Ok(())
    }

    /// The whole stack: embedding and all layers.
    pub fn forward(
        &self,
        stream: &Stream,
        step: &StepInput<'_>,
        kv: &mut KvCache,
        work: &mut Activations,
    ) -> Result<()> {
        self.embed(stream, step, work)?;
        self.layers(stream, 0..self.layers.len(), step, kv, work)
    }

    /// `work.normed` = the final norm of `work.hidden`, both [tokens, hidden_size].
    pub fn final_norm(&self, stream: &Stream, tokens: usize, work: &mut Activations) -> Result<()> {
        self.norm.forward(stream, work, tokens)
    }

    /// Logits of some rows of `work.hidden`: `rows` is u32 [1, n], `logits` f32 [n, vocab_size].
    pub fn head(&self, stream: &Stream, rows: View<'_>, work: &mut Activations, logits: ViewMut<'_>) -> Result<()> {
        let (count, hidden) = (rows.cols(), self.config.hidden_size);
        let tokens = work.max_tokens();
        let table = work.hidden.matrix(tokens, hidden);
        EmbeddingGather {
            table,
            ids: rows,
            last_tokens: None,
            drafts: None,
            scale: 1.0,
            out: work.head_rows.matrix_mut(count, hidden),
        }
        .launch(stream)?;
        self.norm.apply(stream, work.head_rows.matrix(count, hidden), work.normed.matrix_mut(count, hidden))?;
        self.project(stream, work.normed.matrix(count, hidden), logits)
    }

    /// Logits, f32 [n, vocab_size], of states after the final norm, [n, hidden_size].
    pub fn project(&self, stream: &Stream, x: View<'_>, mut logits: ViewMut<'_>) -> Result<()> {
        let hidden = self.config.hidden_size;
        let out = logits.reborrow();
        match &self.head {
            Some(head) => head.forward(stream, x, Activation::None, false, out)?,
            None => {
                let w = self.embedding.matrix(self.config.vocab_size, hidden);
                let activation = Activation::None;
                Gemm { a: x, w, bias: None, activation, accumulate: false, out }.launch(stream)?;
            }
        }
        if let Some(cap) = self.config.final_softcap {
            SoftCap { x: logits, cap: cap as f32 }.launch(stream)?;
        }
        Ok(())
    }
}
