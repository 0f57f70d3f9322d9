//! Checkpoints with random weights: the real files and shapes of a model without its download.
//!
//! For benchmarks and tests. The tokenizer is generated as well (byte-level BPE whose tokens are
//! pronounceable syllables), so everything that runs on a real model directory runs on these.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::config::{Dtype, ModelConfig};
use crate::error::{Error, Result};
use crate::weights::{TensorKind, TensorSpec, tensors};

/// Standard deviation of matrices and biases; the initialiser of every supported architecture.
const STD: f32 = 0.02;
/// Bytes generated at once: bounded memory, enough for all threads.
const CHUNK_BYTES: usize = 32 << 20;

/// ChatML, which has no model-specific parts.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// What [`write_dummy`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DummySummary {
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Number of safetensors files.
    pub shards: usize,
}

/// Writes config, random weights and a tokenizer to `dir`, which is created.
///
/// `config_json` is the text of a `config.json`; weights have its dtype and fill shards of at most
/// `shard_bytes` (a larger tensor gets a shard of its own). Equal seeds give equal files.
///
/// # Errors
/// The config is refused, its vocabulary is below 260 (256 bytes and the special tokens), or a file
/// cannot be written.
pub fn write_dummy(
    config_json: &[u8],
    dir: &Path,
    shard_bytes: u64,
    seed: u64,
) -> Result<DummySummary> {
    let config = ModelConfig::from_slice("config.json", config_json)?;
    let (tokenizer, eos) = tokenizer_json(&config)?;
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).map_err(Error::io("write", &path))
    };
    write("config.json", config_json)?;
    write("tokenizer.json", tokenizer.to_string().as_bytes())?;
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": false,
        "model_max_length": config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    });
    write(
        "tokenizer_config.json",
        pretty(&tokenizer_config).as_bytes(),
    )?;
    let generation = json!({"do_sample": false, "eos_token_id": eos});
    write("generation_config.json", pretty(&generation).as_bytes())?;
    write_shards(&config, dir, shard_bytes, seed)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write_shards(
    config: &ModelConfig,
    dir: &Path,
    shard_bytes: u64,
    seed: u64,
) -> Result<DummySummary> {
    let specs = tensors(config);
    let bytes = |t: &TensorSpec| (t.elements() * config.dtype.size()) as u64;
    let mut shards: Vec<(u64, Vec<&TensorSpec>)> = Vec::new();
    for spec in &specs {
        match shards.last_mut() {
            Some((size, list)) if *size + bytes(spec) <= shard_bytes => {
                *size += bytes(spec);
                list.push(spec);
            }
            _ => shards.push((bytes(spec), vec![spec])),
        }
    }
    let count = shards.len();
    let mut weight_map = Map::new();
    let mut total = 0;
    for (i, (size, list)) in shards.iter().enumerate() {
        let name = match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let path = dir.join(&name);
        write_shard(&path, list, config.dtype, seed).map_err(Error::io("write", &path))?;
        weight_map.extend(list.iter().map(|t| (t.name.clone(), json!(name))));
        total += size;
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let path = dir.join(INDEX_FILE);
        std::fs::write(&path, pretty(&index)).map_err(Error::io("write", &path))?;
    }
    Ok(DummySummary {
        parameters: specs.iter().map(|t| t.elements() as u64).sum(),
        bytes: total,
        shards: count,
    })
}

fn write_shard(path: &Path, list: &[&TensorSpec], dtype: Dtype, seed: u64) -> std::io::Result<()> {
    let name = match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
    };
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for t in list {
        let end = offset + t.elements() * dtype.size();
        let info = json!({"dtype": name, "shape": t.shape, "data_offsets": [offset, end]});
        header.insert(t.name.clone(), info);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // The format asks for data at a multiple of 8.
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));

    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for t in list {
        write_tensor(&mut out, t, dtype, seed)?;
    }
    out.flush()
}

fn write_tensor(
    out: &mut impl Write,
    t: &TensorSpec,
    dtype: Dtype,
    seed: u64,
) -> std::io::Result<()> {
    let stream = name_hash(&t.name) ^ splitmix(seed);
    let mean = match t.kind {
        TensorKind::NormWeight => 1.0,
        TensorKind::Matrix | TensorKind::Bias => 0.0,
    };
    let chunk = CHUNK_BYTES / dtype.size();
    let mut buffer = Vec::new();
    for start in (0..t.elements()).step_by(chunk) {
        let len = chunk.min(t.elements() - start);
        buffer.resize(len * dtype.size(), 0);
        let pieces = buffer
            .par_chunks_mut(dtype.size())
            .with_min_len(1 << 14)
            .enumerate();
        pieces.for_each(|(i, piece)| {
            let value = mean + STD * normal(stream.wrapping_add((start + i) as u64));
            match dtype {
                Dtype::F32 => piece.copy_from_slice(&value.to_le_bytes()),
                Dtype::F16 => piece.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                Dtype::Bf16 => piece.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            }
        });
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// A number of mean 0 and standard deviation 1, a function of the counter alone: the sum of four uniform
/// 16-bit numbers, within 3.5 of zero, which is normal enough for weights and needs one hash.
fn normal(counter: u64) -> f32 {
    let bits = splitmix(counter);
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    // Each has mean 32767.5 and variance 65536^2 / 12.
    (sum as f32 - 4.0 * 32767.5) * (1.732_050_8 / 65536.0)
}

fn splitmix(x: u64) -> u64 {
    let mut z = x
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, then mixed: streams of different tensors start far apart.
fn name_hash(name: &str) -> u64 {
    let fnv = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    splitmix(name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// A `tokenizer.json` with exactly `vocab_size` tokens, and the end-of-sequence ids.
fn tokenizer_json(config: &ModelConfig) -> Result<(Value, Vec<u32>)> {
    let vocab_size = config.vocab_size;
    let special = special_tokens(config);
    if vocab_size < 256 + special.len() {
        return Err(Error::Config {
            origin: "config.json".to_owned(),
            field: "vocab_size".to_owned(),
            problem: format!(
                "{vocab_size} is too small for a generated tokenizer; use at least {}",
                256 + special.len()
            ),
        });
    }
    let taken: BTreeSet<u32> = special.iter().map(|(id, _)| *id).collect();
    let mut free = (0..vocab_size as u32).filter(|id| !taken.contains(id));
    let mut vocab = Map::new();
    let mut merges = Vec::new();
    for c in byte_chars() {
        vocab.extend(free.next().map(|id| (c.to_string(), json!(id))));
    }
    for ((left, right), id) in syllables().zip(&mut free) {
        vocab.insert(format!("{left}{right}"), json!(id));
        merges.push(json!([left, right]));
    }
    for id in free {
        vocab.insert(format!("<|reserved_{id}|>"), json!(id));
    }
    for (id, token) in &special {
        vocab.insert(token.clone(), json!(id));
    }
    let added: Vec<Value> = special
        .iter()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level(false), "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    });
    let is_eos = |token: &str| token == "<|im_end|>" || token.starts_with("<|eos_");
    let eos = special
        .iter()
        .filter(|(_, t)| is_eos(t))
        .map(|(id, _)| *id)
        .collect();
    Ok((tokenizer, eos))
}

/// Special tokens at the ids that the config gives them, the others at the end of the vocabulary; by id.
fn special_tokens(config: &ModelConfig) -> Vec<(u32, String)> {
    let size = config.vocab_size as u32;
    let mut tokens: Vec<(u32, String)> = Vec::new();
    let place = |id: Option<u32>, name: String, tokens: &mut Vec<(u32, String)>| {
        let free = |id: &u32| *id < size && tokens.iter().all(|(taken, _)| taken != id);
        if let Some(id) = id.filter(free).or_else(|| (0..size).rev().find(free)) {
            tokens.push((id, name));
        }
    };
    let eos = &config.eos_token_ids;
    place(eos.first().copied(), "<|im_end|>".to_owned(), &mut tokens);
    for id in eos.iter().skip(1) {
        place(Some(*id), format!("<|eos_{id}|>"), &mut tokens);
    }
    place(
        config.bos_token_id,
        "<|begin_of_text|>".to_owned(),
        &mut tokens,
    );
    place(None, "<|im_start|>".to_owned(), &mut tokens);
    tokens.sort();
    tokens
}

/// GPT-2's printable stand-ins for the 256 bytes, in byte order.
fn byte_chars() -> impl Iterator<Item = char> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    (0..256u32).filter_map(move |b| {
        let code = match printable(b) {
            true => b,
            false => {
                next += 1;
                next - 1
            }
        };
        char::from_u32(code)
    })
}

/// Merges in order of rank, each of tokens that exist by then: letter pairs, pairs after a space
/// (written as in the byte alphabet), then pairs of pairs; 458 thousand in all.
fn syllables() -> impl Iterator<Item = (String, String)> {
    let letters = || 'a'..='z';
    let pairs = move || letters().flat_map(move |a| letters().map(move |b| (a, b)));
    let join = |(a, b): (char, char)| format!("{a}{b}");
    let spaced = pairs().map(move |p| ("\u{120}".to_owned(), join(p)));
    let quads = pairs().flat_map(move |p| pairs().map(move |q| (join(p), join(q))));
    pairs()
        .map(|(a, b)| (a.to_string(), b.to_string()))
        .chain(spaced)
        .chain(quads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::tokenizer::Tokenizer;

    const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":128,"intermediate_size":256,
        "num_attention_heads":2,"num_hidden_layers":2,"num_key_value_heads":1,"vocab_size":2048,"bos_token_id":1,
        "eos_token_id":[2,5],"torch_dtype":"bfloat16","max_position_embeddings":512}"#;

    #[test]
    fn loads_as_a_checkpoint_in_shards() {
        let dir = tempfile::tempdir().unwrap();
        let summary = write_dummy(CONFIG.as_bytes(), dir.path(), 600_000, 7).unwrap();
        assert_eq!(summary.shards, 3);
        let config = ModelConfig::from_dir(dir.path()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for t in tensors(&config) {
            checkpoint.expect(&t.name, &t.shape).unwrap();
        }
        assert_eq!(checkpoint.names().count(), tensors(&config).len());

        let q = checkpoint
            .tensor("model.layers.0.self_attn.q_proj.weight")
            .unwrap();
        let mut values = vec![0f32; q.elements()];
        q.to_f32(&mut values).unwrap();
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
        // 16384 draws: standard errors 1.6e-4 and 1.1e-4.
        assert!(
            mean.abs() < 1e-3 && (std - STD).abs() < 1e-3,
            "{mean} {std}"
        );
        let k = checkpoint
            .tensor("model.layers.0.self_attn.k_proj.weight")
            .unwrap();
        assert_ne!(&q.bytes[..64], &k.bytes[..64]);
        let mut norm = vec![0f32; 128];
        checkpoint
            .tensor("model.norm.weight")
            .unwrap()
            .to_f32(&mut norm)
            .unwrap();
        assert!(norm.iter().all(|w| (w - 1.0).abs() < 0.1));
    }

    #[test]
    fn seeded() {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let read = |i: usize, seed| {
            write_dummy(CONFIG.as_bytes(), dirs[i].path(), u64::MAX, seed).unwrap();
            std::fs::read(dirs[i].path().join(SINGLE_FILE)).unwrap()
        };
        let (a, b, c) = (read(0, 1), read(1, 1), read(2, 2));
        assert!(a == b && a != c);
    }

    #[test]
    fn tokenizer_covers_the_vocabulary() {
        for vocab in [300, 2048, 151_936] {
            let json = CONFIG.replace("2048", &vocab.to_string());
            let config = ModelConfig::from_slice("config.json", json.as_bytes()).unwrap();
            let (value, eos) = tokenizer_json(&config).unwrap();
            assert_eq!(eos, [2, 5]);
            let t = Tokenizer::from_slice("tokenizer.json", value.to_string().as_bytes()).unwrap();
            assert_eq!(t.vocab_size(), vocab);
            t.check_vocab(config.vocab_size).unwrap();
            let text = "hello wonderful world, 你好 \n 12+7?";
            let ids = t.encode(text, true).unwrap();
            assert_eq!(t.decode(&ids, false), text);
            assert_eq!(t.token_id("<|im_end|>"), Some(2));
        }
        let small = CONFIG.replace("2048", "200");
        let config = ModelConfig::from_slice("config.json", small.as_bytes()).unwrap();
        assert!(
            tokenizer_json(&config)
                .unwrap_err()
                .to_string()
                .contains("use at least 260")
        );
    }
}
