//! Pages and context that follow from the memory that there is.
use super::*;

const GB: usize = 1_000_000_000;

/// Llama-3.1-8B: 16.06 GB of weights, 131,072 bytes of cache a token.
fn model() -> ModelConfig {
    let json = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":4096,"intermediate_size":14336,"dtype":"bfloat16",
        "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"vocab_size":128256,
        "max_position_embeddings":131072}"#;
    ModelConfig::from_slice("config.json", json.as_bytes()).unwrap()
}

fn plan(memory: Option<(usize, usize)>, config: EngineConfig) -> Result<(usize, Limits)> {
    let mut limits = config.limits(false, &model());
    let pages = plan_pages(memory, Shapes { model: &model(), draft: None }, &config, &mut limits)?;
    Ok((pages, limits))
}

#[test]
fn the_cache_takes_what_is_left_and_the_context_follows() {
    let (pages, limits) = plan(Some((24 * GB, 24 * GB)), EngineConfig::default()).unwrap();
    let tokens = pages * PAGE_TOKENS;
    assert!((35_000..45_000).contains(&tokens), "{tokens}");
    assert_eq!(limits.max_model_len, tokens, "a sequence must fit");
    let (_, limits) = plan(Some((140 * GB, 140 * GB)), EngineConfig::default()).unwrap();
    assert_eq!(limits.max_model_len, 131_072);
    let asked = EngineConfig { kv_cache_tokens: Some(1000), ..EngineConfig::default() };
    assert_eq!(plan(Some((24 * GB, 24 * GB)), asked).unwrap().0, 16);
}

#[test]
fn too_little_memory_is_one_line_with_sizes() {
    for (memory, config) in [
        ((16 * GB, 16 * GB), EngineConfig::default()),
        ((10 * GB, 80 * GB), EngineConfig::default()),
        ((24 * GB, 24 * GB), EngineConfig { max_model_len: Some(131_072), ..EngineConfig::default() }),
    ] {
        let message = plan(Some(memory), config).unwrap_err().to_string();
        assert!(message.starts_with("too little GPU memory: weights 16.1 GB"), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
}
