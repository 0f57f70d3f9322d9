//! What users get wrong and what downloads lose: one clear line, never a panic.
use super::{model, path, trial, wootz};
use anyhow::{Context, Result, ensure};
use kernels_host::Device;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: &str, run: fn() -> Result<()>| trials.push(trial(name, run));
    add("bad_flags", bad_flags);
    add("no_model", no_model);
    add("broken_config", broken_config);
    add("broken_weights", broken_weights);
    add("broken_tokenizer", broken_tokenizer);
    add("broken_template", broken_template);
    add("long_prompt", long_prompt);
    if Device::cuda_count() == 0 {
        add("no_gpu", no_gpu);
    } else {
        add("little_gpu_memory", little_gpu_memory);
    }
    trials
}

/// `wootz chat` of a model that `damage` has changed fails, naming `parts`.
pub(super) fn damaged(damage: impl FnOnce(&Path) -> Result<()>, parts: &[&str]) -> Result<()> {
    let dir = model()?;
    damage(dir.path())?;
    let args = ["chat", path(&dir)?, "--device", "cpu", "--ask", "hi"];
    wootz(&args)?.failed(parts).with_context(|| format!("{parts:?}"))
}

/// Changes a JSON file.
pub(super) fn edit(path: PathBuf, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut value = serde_json::from_slice(&fs::read(&path)?)?;
    change(&mut value);
    Ok(fs::write(path, value.to_string())?)
}

fn shard(dir: &Path, i: usize) -> Result<PathBuf> {
    let mut shards: Vec<_> = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    shards.retain(|path| path.extension().is_some_and(|ext| ext == "safetensors"));
    shards.sort();
    ensure!(shards.len() > 1, "{shards:?}");
    shards.get(i).cloned().context("a shard")
}

/// Replaces text of the same length in a file's first bytes: a safetensors header.
fn patch(path: &Path, from: &str, to: &str) -> Result<()> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(path)?;
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.with_context(|| format!("{} has no {from:?}", path.display()))?;
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    Ok(fs::write(path, bytes)?)
}

fn bad_flags() -> Result<()> {
    for (flag, value, part) in [
        ("--device", "gpu", "expected auto, cpu, cuda, cuda:N, cuda:N:TARGET, emulated or"),
        ("--max-model-len", "7Q", "32K"),
        ("--max-num-seqs", "0", "must be from 1"),
        ("--max-num-batched-tokens", "2M", "must be from 1 to 1M"),
        ("--gpu-memory-utilization", "1.5", "at most 1"),
        ("--top-k", "-2", "0 is off"),
        ("--max-tokens", "0", "must be from 1"),
        ("--stop", "", "must not be empty"),
        ("--seed", "x", "--seed"),
    ] {
        wootz(&["chat", "--ask", "hi", flag, value])?.refused(part)?;
    }
    for (flag, value, part) in [
        ("--temperature", "-1", "temperature is -1"),
        ("--temperature", "nan", "temperature is NaN"),
        ("--top-p", "0", "top_p is 0"),
        ("--min-p", "2", "min_p is 2"),
        ("--max-model-len", "4K", "--max-model-len 4096 is above the model's 2048"),
        ("--max-model-len", "1", "at least 2"),
        ("--kv-cache-tokens", "2G", "too little memory"),
    ] {
        wootz(&["chat", "--device", "cpu", "--ask", "hi", flag, value])?.failed(&[part])?;
    }
    wootz(&["chat", "--device", "cpu", "--ask", ""])?.failed(&["--ask"])
}

fn no_model() -> Result<()> {
    for command in [["chat", "--ask"], ["generate", "--prompt"]] {
        wootz(&[command[0], "/nowhere/x", command[1], "hi"])?.failed(&["/nowhere/x does not exist", "config.json"])?;
    }
    wootz(&["inspect", "/nowhere/x"])?.failed(&["/nowhere/x does not exist"])?;
    wootz(&["bench", "latency", "/nowhere/x"])?.failed(&["/nowhere/x does not exist"])?;
    let empty = tempfile::tempdir()?;
    let chat = |model: &str| wootz(&["chat", model, "--device", "cpu", "--ask", "hi"]);
    chat(path(&empty)?)?.failed(&["config.json", "does not exist"])?;
    let file = empty.path().join("model.gguf");
    fs::write(&file, "x")?;
    chat(file.to_str().context("path")?)?.failed(&["is a file", "directory"])
}

fn broken_config() -> Result<()> {
    let config = |change: fn(&mut Value)| move |dir: &Path| edit(dir.join("config.json"), change);
    damaged(
        |dir| Ok(fs::write(dir.join("config.json"), "{\"architectures\": [")?),
        &["config.json", "not valid JSON"],
    )?;
    damaged(|dir| Ok(fs::write(dir.join("config.json"), [0xff, 0xfe, 0])?), &["config.json"])?;
    damaged(
        config(|c| c["architectures"] = json!(["MambaForCausalLM"])),
        &["MambaForCausalLM is not supported", "LlamaForCausalLM"],
    )?;
    damaged(config(|c| c["hidden_size"] = json!("wide")), &["hidden_size"])?;
    damaged(config(|c| c["hidden_size"] = json!(u64::MAX)), &["hidden_size"])?;
    damaged(config(|c| c["num_key_value_heads"] = json!(3)), &["num_key_value_heads"])?;
    damaged(config(|c| c["quantization_config"] = json!({"bits": 4})), &["quantization_config"])?;
    damaged(|dir| Ok(fs::write(dir.join("generation_config.json"), "[")?), &["generation_config.json"])
}

fn broken_weights() -> Result<()> {
    damaged(|dir| Ok(fs::remove_file(shard(dir, 1)?)?), &["model-00002-of"])?;
    let truncate =
        |len: u64| move |dir: &Path| Ok(fs::OpenOptions::new().write(true).open(shard(dir, 1)?)?.set_len(len)?);
    damaged(truncate(20_000), &["model-00002-of", "truncated"])?;
    damaged(truncate(5), &["model-00002-of"])?;
    damaged(truncate(0), &["model-00002-of"])?;
    damaged(|dir| patch(&shard(dir, 0)?, "[512,128]", "[128,512]"), &["model.embed_tokens.weight", "[128, 512]"])?;
    // F16 has BF16's size, I16 too, and nobody computes on it.
    damaged(|dir| patch(&shard(dir, 0)?, "\"BF16\"", "\"I16\" "), &["model.embed_tokens.weight", "I16"])?;
    damaged(|dir| patch(&shard(dir, 0)?, "model.embed_tokens", "model.embed_tokenz"), &["model.embed_tokens.weight"])?;
    damaged(|dir| patch(&shard(dir, 0)?, "\"shape\"", "\"shapé"), &["model-00001-of"])?;
    damaged(|dir| Ok(fs::remove_file(dir.join("model.safetensors.index.json"))?), &["model.safetensors.index.json"])?;
    damaged(|dir| edit(dir.join("config.json"), |c| c["num_hidden_layers"] = json!(3)), &["model.layers.2."])
}

fn broken_tokenizer() -> Result<()> {
    damaged(|dir| Ok(fs::remove_file(dir.join("tokenizer.json"))?), &["tokenizer.json", "does not exist"])?;
    damaged(|dir| Ok(fs::write(dir.join("tokenizer.json"), "{}")?), &["tokenizer.json"])?;
    damaged(|dir| Ok(fs::write(dir.join("tokenizer_config.json"), "{")?), &["tokenizer_config.json"])
}

fn broken_template() -> Result<()> {
    let template = |text: &'static str| {
        move |dir: &Path| edit(dir.join("tokenizer_config.json"), |value| value["chat_template"] = json!(text))
    };
    damaged(template("{% for m in messages %}"), &["chat template"])?;
    damaged(template("{{ messages | nosuchfilter }}"), &["chat template"])?;
    damaged(template("{{ raise_exception('only Latin') }}"), &["refuses this conversation", "only Latin"])?;
    damaged(
        template("{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"),
        &["chat template"],
    )
}

fn long_prompt() -> Result<()> {
    let text = "hello ".repeat(400);
    let dir = model()?;
    wootz(&["chat", path(&dir)?, "--device", "cpu", "--ask", &text])?.failed(&["the prompt has", "at most 127 fit"])?;
    wootz(&["generate", path(&dir)?, "--device", "cpu", "--prompt", &text])?
        .failed(&["the prompt has", "at most 127 fit"])
}

fn no_gpu() -> Result<()> {
    for device in ["cuda", "cuda:1"] {
        wootz(&["chat", "--device", device, "--ask", "hi"])?.failed(&["--device cpu"])?;
    }
    wootz(&["inspect", "--device", "cuda"])?.failed(&["--device cpu"])?;
    wootz(&["bench", "latency", "--device", "cuda", "--load-format", "dummy"])?.failed(&["--device cpu"])
}

fn little_gpu_memory() -> Result<()> {
    let args = ["chat", "--device", "cuda", "--gpu-memory-utilization", "0.0001", "--ask", "hi"];
    wootz(&args)?.failed(&["too little GPU memory", "--device cpu"])?;
    let gpus = Device::cuda_count();
    wootz(&["chat", "--device", &format!("cuda:{gpus}"), "--ask", "hi"])?.failed(&["does not exist", "nvidia-smi"])
}
