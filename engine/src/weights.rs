//! The names and shapes of a checkpoint's tensors, by architecture.
//!
//! The one list that the loader, `inspect` and the dummy checkpoints share.

use crate::config::{ModelConfig, Norm};

/// Prefix of layer `i`'s tensors, with the trailing dot.
pub fn layer_prefix(i: usize) -> String {
    format!("model.layers.{i}.")
}

/// What a tensor is to the model; decides how random weights are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorKind {
    /// Matrix of a projection or of the embedding, `[out, in]` row-major.
    Matrix,
    /// Scale of a norm.
    NormWeight,
    /// Bias of a projection or a norm.
    Bias,
}

/// One tensor that the architecture needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Row-major shape; matrices are `[out, in]`.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: TensorKind,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every tensor of `config`, in the order of the forward pass. A tied head is not listed.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut list = List::default();
    let hidden = config.hidden_size;
    list.matrix("model.embed_tokens", config.vocab_size, hidden, false);
    for i in 0..config.num_layers {
        list.layer(config, &layer_prefix(i));
    }
    list.norm(config.norm, "model.norm", hidden);
    if !config.tied_embeddings {
        list.matrix("lm_head", config.vocab_size, hidden, false);
    }
    list.0
}

/// Parameters of the whole model, tied ones once.
pub fn parameter_count(config: &ModelConfig) -> u64 {
    tensors(config).iter().map(|t| t.elements() as u64).sum()
}

#[derive(Default)]
struct List(Vec<TensorSpec>);

impl List {
    fn push(&mut self, name: String, shape: Vec<usize>, kind: TensorKind) {
        self.0.push(TensorSpec { name, shape, kind });
    }

    fn matrix(&mut self, name: &str, out: usize, k: usize, bias: bool) {
        self.push(format!("{name}.weight"), vec![out, k], TensorKind::Matrix);
        if bias {
            self.push(format!("{name}.bias"), vec![out], TensorKind::Bias);
        }
    }

    fn norm(&mut self, norm: Norm, name: &str, width: usize) {
        self.push(format!("{name}.weight"), vec![width], TensorKind::NormWeight);
        if matches!(norm, Norm::Layer { .. }) {
            self.push(format!("{name}.bias"), vec![width], TensorKind::Bias);
        }
    }

    fn layer(&mut self, c: &ModelConfig, prefix: &str) {
        let at = |name: &str| format!("{prefix}{name}");
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        self.norm(c.norm, &at("input_layernorm"), hidden);
        self.matrix(&at("self_attn.q_proj"), c.q_size(), hidden, c.qkv_bias);
        self.matrix(&at("self_attn.k_proj"), c.kv_size(), hidden, c.qkv_bias);
        self.matrix(&at("self_attn.v_proj"), c.kv_size(), hidden, c.qkv_bias);
        if c.qk_norm {
            for name in ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] {
                self.push(at(name), vec![c.head_dim], TensorKind::NormWeight);
            }
        }
        self.matrix(&at("self_attn.o_proj"), hidden, c.q_size(), c.o_bias);
        self.norm(c.norm, &at("post_attention_layernorm"), hidden);
        if c.post_norms {
            self.norm(c.norm, &at("pre_feedforward_layernorm"), hidden);
            self.norm(c.norm, &at("post_feedforward_layernorm"), hidden);
        }
        if c.gated_mlp {
            self.matrix(&at("mlp.gate_proj"), inner, hidden, c.mlp_bias);
            self.matrix(&at("mlp.up_proj"), inner, hidden, c.mlp_bias);
            self.matrix(&at("mlp.down_proj"), hidden, inner, c.mlp_bias);
        } else {
            self.matrix(&at("mlp.c_fc"), inner, hidden, c.mlp_bias);
            self.matrix(&at("mlp.c_proj"), hidden, inner, c.mlp_bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ModelConfig {
        ModelConfig::from_slice("config.json", json.as_bytes()).unwrap()
    }

    /// Totals published with the models: 8,030,261,248 and 494,032,768 and 596,049,920 and 3,030,371,328 and
    /// 9,241,705,984.
    #[test]
    fn parameter_counts_of_real_models() {
        let llama = config(
            r#"{"architectures":["LlamaForCausalLM"],"hidden_size":4096,"intermediate_size":14336,
            "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"vocab_size":128256}"#,
        );
        assert_eq!(parameter_count(&llama), 8_030_261_248);
        let qwen = config(
            r#"{"architectures":["Qwen2ForCausalLM"],"hidden_size":896,"intermediate_size":4864,"tie_word_embeddings":true,
            "num_attention_heads":14,"num_hidden_layers":24,"num_key_value_heads":2,"vocab_size":151936}"#,
        );
        assert_eq!(parameter_count(&qwen), 494_032_768);
        let qwen3 = config(
            r#"{"architectures":["Qwen3ForCausalLM"],"hidden_size":1024,"intermediate_size":3072,"tie_word_embeddings":true,
            "num_attention_heads":16,"num_hidden_layers":28,"num_key_value_heads":8,"vocab_size":151936}"#,
        );
        assert_eq!(parameter_count(&qwen3), 596_049_920);
        let starcoder = config(
            r#"{"architectures":["Starcoder2ForCausalLM"],"hidden_size":3072,"intermediate_size":12288,
            "num_attention_heads":24,"num_hidden_layers":30,"num_key_value_heads":2,"vocab_size":49152}"#,
        );
        assert_eq!(parameter_count(&starcoder), 3_030_371_328);
        let gemma = config(
            r#"{"architectures":["Gemma2ForCausalLM"],"hidden_size":3584,"intermediate_size":14336,"head_dim":256,
            "num_attention_heads":16,"num_hidden_layers":42,"num_key_value_heads":8,"vocab_size":256000}"#,
        );
        assert_eq!(parameter_count(&gemma), 9_241_705_984);
        assert!(tensors(&qwen).iter().all(|t| t.name != "lm_head.weight"));
    }
}
