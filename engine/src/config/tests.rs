use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn llama31() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256
    })
}

fn qwen25() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645,
        "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151936
    })
}

fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000, "factor": 4.0,
            "original_max_position_embeddings": 32768},
        "sliding_window": null, "tie_word_embeddings": true, "dtype": "bfloat16", "use_sliding_window": false,
        "vocab_size": 151936
    })
}

fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000
    })
}

fn starcoder2() -> Value {
    json!({
        "architectures": ["Starcoder2ForCausalLM"], "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072,
        "intermediate_size": 12288, "max_position_embeddings": 16384, "norm_epsilon": 1e-5,
        "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2, "rope_theta": 999999.4420358813,
        "sliding_window": 4096, "use_bias": true, "vocab_size": 49152, "torch_dtype": "float32"
    })
}

fn parse(v: &Value) -> Result<ModelConfig> {
    ModelConfig::from_slice("config.json", v.to_string().as_bytes())
}

fn parse_with(mut base: Value, field: &str, value: Value) -> Result<ModelConfig> {
    base[field] = value;
    parse(&base)
}

fn message(r: Result<ModelConfig>) -> String {
    r.expect_err("must be refused").to_string()
}

#[test]
fn llama_31() {
    let c = parse(&llama31()).unwrap();
    assert_eq!((c.head_dim, c.q_size(), c.kv_size()), (128, 4096, 1024));
    assert_eq!(c.eos_token_ids, [128001, 128008, 128009]);
    assert_eq!(c.dtype, Dtype::Bf16);
    assert_eq!(c.norm, Norm::Rms { eps: 1e-5 });
    assert!(!c.qkv_bias && !c.o_bias && !c.mlp_bias && !c.qk_norm && c.gated_mlp);
    assert!(matches!(c.rope.scaling, RopeScaling::Llama3 { original_max_position: 8192, .. }));
    assert!(c.sliding_window.iter().all(Option::is_none));
}

#[test]
fn old_and_new_rope_styles_agree() {
    let mut new = llama31();
    let object = new.as_object_mut().unwrap();
    let mut rope = object.remove("rope_scaling").unwrap();
    rope["rope_theta"] = object.remove("rope_theta").unwrap();
    object.insert("rope_parameters".into(), rope);
    let dtype = object.remove("torch_dtype").unwrap();
    object.insert("dtype".into(), dtype);
    assert_eq!(parse(&new).unwrap(), parse(&llama31()).unwrap());
    let linear = parse_with(llama31(), "rope_scaling", json!({"type": "linear", "factor": 2.0})).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn qwen2_biases_and_windows() {
    let c = parse(&qwen25()).unwrap();
    assert!(c.qkv_bias && !c.o_bias && c.tied_embeddings);
    assert_eq!(c.sliding_window, vec![None; 24]);
    let c = parse_with(qwen25(), "use_sliding_window", json!(true)).unwrap();
    assert_eq!((c.sliding_window[20], c.sliding_window[21]), (None, Some(32768)));
    let mut v = qwen25();
    v["use_sliding_window"] = json!(true);
    v["layer_types"] = json!(["full_attention", "sliding_attention"].repeat(12));
    let c = parse(&v).unwrap();
    assert_eq!((c.sliding_window[0], c.sliding_window[1]), (None, Some(32768)));
}

#[test]
fn qwen3_norms_heads_and_yarn() {
    let c = parse(&qwen3()).unwrap();
    assert!(c.qk_norm && !c.qkv_bias);
    assert_eq!((c.head_dim, c.q_size()), (128, 2048));
    assert!(matches!(c.rope.scaling, RopeScaling::Yarn { factor, truncate: true, .. } if factor == 4.0));
}

#[test]
fn mistral_window_default_and_null() {
    assert_eq!(parse(&mistral()).unwrap().sliding_window, vec![Some(4096); 32]);
    let null = parse_with(mistral(), "sliding_window", Value::Null).unwrap();
    assert_eq!(null.sliding_window, vec![None; 32]);
    assert_eq!((null.bos_token_id, null.eos_token_ids), (Some(1), vec![2]));
}

#[test]
fn starcoder2_layer_norm_biases_gelu() {
    let c = parse(&starcoder2()).unwrap();
    assert_eq!(c.norm, Norm::Layer { eps: 1e-5 });
    assert_eq!(c.activation, Activation::GeluTanh);
    assert!(c.qkv_bias && c.o_bias && c.mlp_bias && !c.gated_mlp && c.tied_embeddings);
}

#[test]
fn refusals_name_file_field_and_remedy() {
    let unknown = message(parse_with(llama31(), "architectures", json!(["GemmaForCausalLM"])));
    assert_eq!(
        unknown,
        "config.json: architecture GemmaForCausalLM is not supported; supported are LlamaForCausalLM, \
         MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Starcoder2ForCausalLM, Gemma2ForCausalLM"
    );
    for (field, value, part) in [
        ("num_key_value_heads", json!(5), "5 does not divide the 32 attention heads"),
        ("head_dim", json!(80), "80 is not supported; the attention kernels exist for [64, 96, 128, 256]"),
        ("hidden_size", json!(4100), "4100 is not a multiple of 8"),
        ("hidden_size", json!(1u64 << 40), "must be a whole number from 1 to 65536"),
        ("hidden_size", json!(-4096), "must be a whole number"),
        ("hidden_size", json!("4096"), "must be a whole number, is a string"),
        ("num_hidden_layers", json!(1e300), "must be a whole number"),
        ("num_hidden_layers", json!(null), "is missing"),
        ("hidden_act", json!("relu"), "\"relu\" is not supported"),
        ("torch_dtype", json!("int8"), "\"int8\" is not supported"),
        ("rope_scaling", json!({"rope_type": "longrope"}), "\"longrope\" is not supported"),
        ("rope_scaling", json!({"rope_type": "linear"}), "factor: is missing"),
        ("quantization_config", json!({"bits": 4}), "quantized checkpoints are not supported"),
        ("eos_token_id", json!([1, "x"]), "must be a token id or a list"),
    ] {
        let mut v = llama31();
        v["head_dim"] = json!(128);
        v[field] = value;
        let text = message(parse(&v));
        assert!(text.starts_with("config.json: "), "{text}");
        assert!(text.contains(part), "{field}: {text}");
    }
    let broken = ModelConfig::from_slice("config.json", b"{\"a\": ").unwrap_err().to_string();
    assert!(broken.starts_with("config.json is not valid JSON: EOF"), "{broken}");
}

fn arbitrary_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        "[a-z_0-9]{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["LlamaForCausalLM", "yarn", "llama3", "linear", "sliding_attention", "gelu"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,12}", inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics(v in arbitrary_json()) {
        let _ = parse(&v);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ModelConfig::from_slice("config.json", &bytes);
    }

    /// A real config with some fields replaced by anything: an error, or a config that keeps its invariants.
    #[test]
    fn mutated_configs_never_panic(
        base in prop::sample::select(vec![llama31(), qwen25(), qwen3(), mistral(), starcoder2()]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), arbitrary_json(), any::<bool>()), 1..4),
    ) {
        let mut v = base;
        for (index, value, inner) in edits {
            let keys: Vec<_> = v.as_object().unwrap().keys().cloned().collect();
            let key = index.get(&keys);
            match v[key].as_object_mut() {
                Some(nested) if inner && !nested.is_empty() => {
                    let keys: Vec<_> = nested.keys().cloned().collect();
                    nested.insert(index.get(&keys).clone(), value);
                }
                _ => v[key] = value,
            }
        }
        match parse(&v) {
            Ok(c) => {
                prop_assert_eq!(c.num_heads % c.num_kv_heads, 0);
                prop_assert_eq!(c.sliding_window.len(), c.num_layers);
                let table = c.rope.table();
                prop_assert_eq!(table.inv_freq.len(), c.rope.rotary_dim / 2);
                prop_assert!(table.inv_freq.iter().all(|f| f.is_finite()));
            }
            Err(e) => prop_assert!(!e.to_string().contains('\n'), "{e}"),
        }
    }
}
