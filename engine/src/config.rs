//! `config.json` of a Hugging Face model directory, checked and normalised.
//!
//! Defaults for absent fields are those of the configuration classes of transformers 5, so that a file
//! means here what it means there. Everything is bounded here, once; the rest of the engine may
//! multiply sizes without fear of overflow.

mod fields;
mod rope;

use std::path::Path;

pub(crate) use fields::Fields;
pub use rope::{Rope, RopeScaling, RopeTable};

use crate::error::{Error, Result, read_file};

/// Head dimensions that the attention kernels are instantiated for.
pub const SUPPORTED_HEAD_DIMS: &[usize] = &kernels_host::attention::HEAD_DIMS;
/// The GEMM kernels copy 16-byte rows: every matrix's K must be a multiple of this many 2-byte elements.
pub const GEMM_K_MULTIPLE: usize = 8;
/// Greatest `num_hidden_layers` (Llama-3.1-405B has 126).
pub const MAX_LAYERS: usize = 1024;
/// Greatest `hidden_size` (Llama-3.1-405B has 16384).
pub const MAX_HIDDEN: usize = 1 << 16;
/// Greatest `intermediate_size` (Llama-3.1-405B has 53248).
pub const MAX_INTERMEDIATE: usize = 1 << 18;
/// Greatest number of attention heads.
pub const MAX_HEADS: usize = 1024;
/// Greatest `vocab_size` (the largest in use are near 262144).
pub const MAX_VOCAB: usize = 1 << 21;
/// Greatest `max_position_embeddings` (10 million is the largest in use).
pub const MAX_POSITION: usize = 1 << 26;

/// Model architectures, by the name in `architectures`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `LlamaForCausalLM`: Llama 2 and 3.x and everything of their shape.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`: Qwen2 and Qwen2.5.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
    /// `Starcoder2ForCausalLM`.
    Starcoder2,
    /// `Gemma2ForCausalLM`.
    Gemma2,
}

impl Architecture {
    /// Every supported architecture.
    pub const ALL: [Architecture; 6] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Starcoder2,
        Architecture::Gemma2,
    ];

    /// The name in `config.json`'s `architectures`.
    pub fn hf_name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Starcoder2 => "Starcoder2ForCausalLM",
            Architecture::Gemma2 => "Gemma2ForCausalLM",
        }
    }
}

/// Element types that checkpoints store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Brain floating point: the upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Normalisation between blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// x / rms(x) * weight.
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
    /// (x - mean) / std * weight + bias.
    Layer {
        /// Added to the variance.
        eps: f64,
    },
}

impl Norm {
    /// The epsilon of either kind.
    pub fn eps(self) -> f64 {
        match self {
            Norm::Rms { eps } | Norm::Layer { eps } => eps,
        }
    }
}

/// Non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// A checked `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which model code runs it.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Dimensions of a head, one of [`SUPPORTED_HEAD_DIMS`].
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Kind and epsilon of all norms.
    pub norm: Norm,
    /// Non-linearity of the MLP.
    pub activation: Activation,
    /// down(act(gate(x)) * up(x)) if true, down(act(up(x))) if false.
    pub gated_mlp: bool,
    /// The q, k and v projections have biases.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub o_bias: bool,
    /// The MLP's projections have biases.
    pub mlp_bias: bool,
    /// RMSNorm over each head of q and k before RoPE.
    pub qk_norm: bool,
    /// The results of attention and MLP are normalised too, before they join the residual stream.
    pub post_norms: bool,
    /// Norm weights are stored less 1.
    pub norm_plus_one: bool,
    /// Embeddings are multiplied by √hidden_size, rounded to the model's type.
    pub scaled_embeddings: bool,
    /// What q·k is multiplied by.
    pub attention_scale: f64,
    /// Attention scores s become cap · tanh(s / cap).
    pub attention_softcap: Option<f64>,
    /// Logits x become cap · tanh(x / cap).
    pub final_softcap: Option<f64>,
    /// The head is the transposed embedding.
    pub tied_embeddings: bool,
    /// Rotary embedding of every layer.
    pub rope: Rope,
    /// Per layer: `Some(w)` where a token sees itself and the `w - 1` tokens before it. Length `num_layers`.
    pub sliding_window: Vec<Option<usize>>,
    /// Longest context in tokens, prompt and answer together.
    pub max_position_embeddings: usize,
    /// Element type that the file declares; F32 where it declares none.
    pub dtype: Dtype,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `DIR/config.json`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let bytes = read_file(&path, "MODEL must be a directory with config.json, *.safetensors and tokenizer.json")?;
        Self::from_slice(&path.display().to_string(), &bytes)
    }

    /// Parses the bytes of a `config.json`; `origin` names them in errors.
    pub fn from_slice(origin: &str, bytes: &[u8]) -> Result<Self> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { origin: origin.to_owned(), source })?;
        let fields = Fields::new(origin, &value)?;
        let config = Self::parse(&fields)?;
        config.validate(&fields)?;
        Ok(config)
    }

    /// Elements of one token's query: `num_heads * head_dim`.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Elements of one token's key, or value: `num_kv_heads * head_dim`.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    fn parse(f: &Fields) -> Result<Self> {
        use Architecture::{Gemma2, Llama, Mistral, Qwen2, Qwen3, Starcoder2};
        let architecture = architecture(f)?;
        if f.get("quantization_config").is_some() {
            return Err(
                f.error("quantization_config", "quantized checkpoints are not supported; use the bf16 or f16 one")
            );
        }
        let starcoder = architecture == Starcoder2;
        let gemma = architecture == Gemma2;
        let hidden_size = f.required_int("hidden_size", 1, MAX_HIDDEN)?;
        let num_heads = f.required_int("num_attention_heads", 1, MAX_HEADS)?;
        let num_layers = f.required_int("num_hidden_layers", 1, MAX_LAYERS)?;
        let num_kv_heads = match f.int("num_key_value_heads", 1, MAX_HEADS)? {
            Some(n) => n,
            None if f.has("num_key_value_heads") => num_heads,
            None => match architecture {
                Llama => num_heads,
                Mistral => 8,
                Qwen2 | Qwen3 => 32,
                Starcoder2 => 2,
                Gemma2 => 4,
            },
        };
        let head_dim = match f.int("head_dim", 1, 1024)? {
            Some(dim) => dim,
            None if architecture == Qwen3 => 128,
            None if gemma => 256,
            None => hidden_size / num_heads,
        };
        let default_positions = match architecture {
            Llama => 2048,
            Mistral => 131_072,
            Qwen2 | Qwen3 => 32_768,
            Starcoder2 => 4096,
            Gemma2 => 8192,
        };
        let max_position_embeddings = f.int("max_position_embeddings", 1, MAX_POSITION)?.unwrap_or(default_positions);
        let attention_bias = f.bool("attention_bias")?.unwrap_or(false);
        let use_bias = starcoder && f.bool("use_bias")?.unwrap_or(true);
        Ok(ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: f.required_int("intermediate_size", 1, MAX_INTERMEDIATE)?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size: f.required_int("vocab_size", 1, MAX_VOCAB)?,
            norm: norm(f, starcoder)?,
            activation: activation(f, architecture)?,
            gated_mlp: !starcoder,
            qkv_bias: match architecture {
                Llama | Qwen3 | Gemma2 => attention_bias,
                Mistral => false,
                Qwen2 => true,
                Starcoder2 => use_bias,
            },
            o_bias: match architecture {
                Llama | Qwen3 | Gemma2 => attention_bias,
                Mistral | Qwen2 => false,
                Starcoder2 => use_bias,
            },
            mlp_bias: match architecture {
                Llama => f.bool("mlp_bias")?.unwrap_or(false),
                Starcoder2 => use_bias,
                Mistral | Qwen2 | Qwen3 | Gemma2 => false,
            },
            qk_norm: architecture == Qwen3,
            post_norms: gemma,
            norm_plus_one: gemma,
            scaled_embeddings: gemma,
            attention_scale: attention_scale(f, gemma, head_dim)?,
            attention_softcap: softcap(f, gemma, "attn_logit_softcapping", 50.0)?,
            final_softcap: softcap(f, gemma, "final_logit_softcapping", 30.0)?,
            tied_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(starcoder || gemma),
            rope: Rope::parse(f, head_dim, max_position_embeddings)?,
            sliding_window: sliding_window(f, architecture, num_layers)?,
            max_position_embeddings,
            dtype: dtype(f)?,
            bos_token_id: default_ids(f, "bos_token_id", architecture, [1, 2])?.first().copied(),
            eos_token_ids: default_ids(f, "eos_token_id", architecture, [2, 1])?,
        })
    }

    fn validate(&self, f: &Fields) -> Result<()> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(f.error(
                "num_key_value_heads",
                format!("{} does not divide the {} attention heads", self.num_kv_heads, self.num_heads),
            ));
        }
        if !SUPPORTED_HEAD_DIMS.contains(&self.head_dim) {
            return Err(f.error(
                "head_dim",
                format!("{} is not supported; the attention kernels exist for {SUPPORTED_HEAD_DIMS:?}", self.head_dim),
            ));
        }
        for (field, size) in [("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)] {
            if !size.is_multiple_of(GEMM_K_MULTIPLE) {
                return Err(f.error(
                    field,
                    format!("{size} is not a multiple of {GEMM_K_MULTIPLE}, which the GEMM kernels need"),
                ));
            }
        }
        Ok(())
    }
}

fn architecture(f: &Fields) -> Result<Architecture> {
    let names = f.array("architectures")?.unwrap_or_default();
    let named = |a: &Architecture| names.iter().any(|n| n.as_str() == Some(a.hf_name()));
    if let Some(found) = Architecture::ALL.into_iter().find(named) {
        return Ok(found);
    }
    let strings = names.iter().filter_map(|n| n.as_str());
    let found: Vec<_> = strings.map(|n| n.escape_debug().to_string()).collect();
    Err(Error::UnknownArchitecture {
        origin: f.origin.to_owned(),
        found: match found.as_slice() {
            [] => "(no `architectures` field)".to_owned(),
            _ => found.join(", "),
        },
        supported: Architecture::ALL.map(Architecture::hf_name).join(", "),
    })
}

fn norm(f: &Fields, layer_norm: bool) -> Result<Norm> {
    let eps = |field, default| -> Result<f64> {
        match f.float_in(field, 0.0, 1.0)? {
            Some(eps) if eps > 0.0 => Ok(eps),
            Some(_) => Err(f.error(field, "must be greater than 0")),
            None => Ok(default),
        }
    };
    if layer_norm {
        Ok(Norm::Layer { eps: eps("norm_epsilon", 1e-5)? })
    } else {
        Ok(Norm::Rms { eps: eps("rms_norm_eps", 1e-6)? })
    }
}

/// 1/√head_dim, or what Gemma says instead.
fn attention_scale(f: &Fields, gemma: bool, head_dim: usize) -> Result<f64> {
    let squared = if gemma { f.float_in("query_pre_attn_scalar", 1.0, 1e6)?.unwrap_or(256.0) } else { head_dim as f64 };
    Ok(squared.powf(-0.5))
}

/// A soft-cap of Gemma's: absent means the class default, `null` none.
fn softcap(f: &Fields, gemma: bool, field: &str, default: f64) -> Result<Option<f64>> {
    if !gemma {
        return Ok(None);
    }
    match f.float_in(field, 0.0, 1e6)? {
        Some(cap) if cap > 0.0 => Ok(Some(cap)),
        Some(_) => Err(f.error(field, "must be greater than 0")),
        None => Ok(Some(default).filter(|_| !f.has(field))),
    }
}

fn activation(f: &Fields, architecture: Architecture) -> Result<Activation> {
    let (field, default) = match architecture {
        // Published files have a `hidden_act` beside it, which transformers ignores.
        Architecture::Gemma2 => ("hidden_activation", "gelu_pytorch_tanh"),
        Architecture::Starcoder2 => ("hidden_act", "gelu_pytorch_tanh"),
        _ => ("hidden_act", "silu"),
    };
    match f.str(field)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" | "gelu_python" => Ok(Activation::GeluErf),
        other => {
            Err(f.error(field, format!("{other:?} is not supported; supported are silu, gelu and gelu_pytorch_tanh")))
        }
    }
}

fn sliding_window(f: &Fields, architecture: Architecture, num_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = f.int("sliding_window", 1, MAX_POSITION)?;
    match architecture {
        Architecture::Llama => Ok(vec![None; num_layers]),
        Architecture::Starcoder2 => Ok(vec![window; num_layers]),
        Architecture::Mistral => {
            // The class default is 4096; only an explicit null switches the window off.
            let window = match f.has("sliding_window") {
                true => window,
                false => Some(4096),
            };
            Ok(vec![window; num_layers])
        }
        Architecture::Qwen2 | Architecture::Qwen3 => qwen_windows(f, num_layers, window),
        Architecture::Gemma2 => {
            let window = if f.has("sliding_window") { window } else { Some(4096) };
            let types = layer_types(f, num_layers)?;
            let slides = |i: usize| types.as_ref().map_or(i.is_multiple_of(2), |types| types[i]);
            Ok((0..num_layers).map(|i| window.filter(|_| slides(i))).collect())
        }
    }
}

fn qwen_windows(f: &Fields, num_layers: usize, window: Option<usize>) -> Result<Vec<Option<usize>>> {
    let window = match (f.bool("use_sliding_window")?.unwrap_or(false), window) {
        (false, _) => None,
        (true, None) if f.has("sliding_window") => None,
        (true, window) => Some(window.unwrap_or(4096)),
    };
    let Some(types) = layer_types(f, num_layers)? else {
        let first = f.int("max_window_layers", 0, MAX_POSITION)?.unwrap_or(28);
        return Ok((0..num_layers).map(|i| window.filter(|_| i >= first)).collect());
    };
    Ok(types.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// Which layers have a sliding window, where the file says.
fn layer_types(f: &Fields, num_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = f.array("layer_types")? else { return Ok(None) };
    if types.len() != num_layers {
        return Err(f.error("layer_types", format!("has {} entries for {num_layers} layers", types.len())));
    }
    types
        .iter()
        .map(|t| match t.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(f.error(
                "layer_types",
                format!("{t} is not supported; supported are full_attention and sliding_attention"),
            )),
        })
        .collect::<Result<_>>()
        .map(Some)
}

fn dtype(f: &Fields) -> Result<Dtype> {
    let (field, name) = match f.str("dtype")? {
        Some(name) => ("dtype", Some(name)),
        None => ("torch_dtype", f.str("torch_dtype")?),
    };
    match name.map(|n| n.strip_prefix("torch.").unwrap_or(n)) {
        None | Some("float32" | "float") => Ok(Dtype::F32),
        Some("float16" | "half") => Ok(Dtype::F16),
        Some("bfloat16") => Ok(Dtype::Bf16),
        Some(other) => {
            Err(f.error(field, format!("{other:?} is not supported; supported are float32, float16 and bfloat16")))
        }
    }
}

/// Token ids with the class default of the architecture where the key is absent; `null` means none.
fn default_ids(f: &Fields, field: &str, a: Architecture, [llama_default, gemma_default]: [u32; 2]) -> Result<Vec<u32>> {
    if f.has(field) {
        return f.token_ids(field);
    }
    Ok(match a {
        Architecture::Llama | Architecture::Mistral => vec![llama_default],
        Architecture::Gemma2 => vec![gemma_default],
        Architecture::Starcoder2 => vec![50_256],
        Architecture::Qwen2 | Architecture::Qwen3 => Vec::new(),
    })
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
