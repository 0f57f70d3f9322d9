//! `wootz inspect`: everything here follows from `config.json`.
use crate::device::{DeviceArgs, DeviceChoice};
use crate::model::{LimitArgs, ModelArgs};
use crate::units::{bytes, count, grouped, plural};
use crate::{device, parse};
use anyhow::Result;
use clap::Args;
use engine::config::{Activation, Dtype, ModelConfig, Norm, RopeScaling};
use engine::engine::compute_dtype;
use engine::kv::PAGE_TOKENS;
use engine::runner::MemoryBudget;
use engine::weights::tensors;
use kernels_host::Device;
use serde_json::{Value, json};
use std::io::{Write, stdout};
use std::process::ExitCode;

/// Arguments of `wootz inspect`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz inspect                                              the model in the binary\n  \
    wootz inspect ./Llama-3.1-8B-Instruct --max-model-len 32K\n  \
    wootz inspect ./Llama-3.1-70B/config.json --gpu-memory 80GB   what would fit on another machine\n  \
    wootz inspect ./Qwen2.5-7B --json\n\n\
    Needs config.json only, not the weights.")]
pub struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Reckon with this much GPU memory instead of looking at the GPU: 80GB, 24GiB
    #[arg(long, value_name = "SIZE", value_parser = parse::memory)]
    gpu_memory: Option<u64>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// What a GPU can hold.
struct Fit {
    gpu: String,
    total: u64,
    free: u64,
    usable: u64,
    /// `None` if not even the weights fit.
    kv_tokens: Option<u64>,
    full_sequences: u64,
}

/// Prints what there is to know.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let (name, config) = args.model.config()?;
    let engine = args.limits.engine_config(&config)?;
    let limits = engine.limits(false, &config);
    let budget = MemoryBudget::of(&config, compute_dtype(&config), &limits);
    let fit = memory(args)?.map(|(gpu, free, total)| {
        let usable = ((total as f64 * f64::from(engine.gpu_memory_utilization)) as u64).min(free);
        let pages =
            usable.checked_sub((budget.weights + budget.activations) as u64).map(|rest| rest / budget.page as u64);
        let full = limits.max_model_len.div_ceil(PAGE_TOKENS) as u64;
        let pages = pages.filter(|pages| *pages > 0);
        let kv_tokens = pages.map(|pages| pages * PAGE_TOKENS as u64);
        Fit { gpu, total, free, usable, kv_tokens, full_sequences: pages.unwrap_or(0) / full }
    });
    let parts = parameters_by_part(&config);
    let mut out = stdout();
    if args.json {
        let value = json(&name, &config, &parts, &budget, limits.max_model_len, fit.as_ref());
        writeln!(out, "{value:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = architecture(&name, &config, &parts);
    lines.push(String::new());
    lines.push("memory".into());
    for (part, parameters) in &parts {
        lines.push(row(part, format!("{:>9}", bytes(parameters * compute_dtype(&config).size() as u64))));
    }
    lines.push(row("weights", format!("{:>9}", bytes(budget.weights as u64))));
    let step = format!("steps of {} tokens, {} sequences", limits.max_tokens, limits.max_sequences);
    lines.push(row("activations", format!("{:>9}   {step}", bytes(budget.activations as u64))));
    lines.push(row("KV cache", format!("{:>9}   per token", bytes((budget.page / PAGE_TOKENS) as u64))));
    let sequence = budget.page * limits.max_model_len.div_ceil(PAGE_TOKENS);
    lines.push(row(
        "",
        format!("{:>9}   per sequence of {} tokens", bytes(sequence as u64), grouped(limits.max_model_len as u64)),
    ));
    lines.push(String::new());
    lines.extend(fit_lines(fit.as_ref(), engine.gpu_memory_utilization, limits.max_model_len));
    writeln!(out, "{}", lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Name, free and total bytes of the GPU to reckon with.
fn memory(args: &InspectArgs) -> Result<Option<(String, u64, u64)>> {
    if let Some(total) = args.gpu_memory {
        return Ok(Some((format!("a GPU with {}", bytes(total)), total, total)));
    }
    let device = match args.device.device {
        DeviceChoice::Auto => Device::cuda(0).unwrap_or_else(|_| Device::cpu()),
        _ => args.device.open()?,
    };
    let memory = device.memory()?;
    Ok(memory.map(|(free, total)| (device::describe(&device), free as u64, total as u64)))
}

fn row(name: &str, value: String) -> String {
    format!("  {name:<16}{value}").trim_end().to_owned()
}

fn architecture(name: &str, c: &ModelConfig, parts: &[(&'static str, u64)]) -> Vec<String> {
    let total: u64 = parts.iter().map(|(_, n)| n).sum();
    let shares: Vec<String> = parts.iter().map(|(part, n)| format!("{part} {}", count(*n))).collect();
    let mut lines = vec![name.to_owned()];
    let mut add = |name: &str, value: String| lines.push(row(name, value));
    add("architecture", format!("{}, {}", c.architecture.hf_name(), dtype_name(c.dtype)));
    add("parameters", format!("{} ({})", count(total), shares.join(", ")));
    add("layers", format!("{}, hidden size {}", c.num_layers, c.hidden_size));
    add("attention", attention(c));
    add("MLP", mlp(c));
    let norm = match c.norm {
        Norm::Rms { .. } => "RMSNorm",
        Norm::Layer { .. } => "LayerNorm",
    };
    add("norm", format!("{norm}, eps {:e}", c.norm.eps()));
    add("rope", rope(c));
    add("context", format!("{} tokens", grouped(c.max_position_embeddings as u64)));
    let windows = c.sliding_window.iter().flatten();
    if let Some(window) = windows.clone().max() {
        add("sliding window", format!("{} in {}", plural(*window, "token"), plural(windows.count(), "layer")));
    }
    let tied = if c.tied_embeddings { ", head tied to the embedding" } else { "" };
    add("vocabulary", format!("{} tokens{tied}", grouped(c.vocab_size as u64)));
    lines
}

fn attention(c: &ModelConfig) -> String {
    let kind = match c.num_kv_heads {
        1 => "MQA",
        n if n == c.num_heads => "MHA",
        _ => "GQA",
    };
    let mut text =
        format!("{kind}, {} query heads, {}, head_dim {}", c.num_heads, plural(c.num_kv_heads, "KV head"), c.head_dim);
    for (there, what) in [(c.qkv_bias, "q/k/v biases"), (c.o_bias, "output bias"), (c.qk_norm, "q/k norm")] {
        if there {
            text.push_str(", ");
            text.push_str(what);
        }
    }
    text
}

fn mlp(c: &ModelConfig) -> String {
    let kind = match (c.activation, c.gated_mlp) {
        (Activation::Silu, true) => "SwiGLU",
        (Activation::Silu, false) => "SiLU",
        (Activation::GeluTanh | Activation::GeluErf, true) => "GeGLU",
        (Activation::GeluTanh, false) => "GELU (tanh)",
        (Activation::GeluErf, false) => "GELU (erf)",
    };
    format!("{kind}, width {}{}", c.intermediate_size, if c.mlp_bias { ", biases" } else { "" })
}

fn rope(c: &ModelConfig) -> String {
    let scaling = match &c.rope.scaling {
        RopeScaling::None => "no scaling".to_owned(),
        RopeScaling::Linear { factor } => format!("linear scaling by {factor}"),
        RopeScaling::Llama3 { factor, original_max_position, .. } => {
            format!("llama3 scaling by {factor} from {original_max_position}")
        }
        RopeScaling::Yarn { factor, original_max_position, .. } => {
            format!("yarn scaling by {factor} from {original_max_position}")
        }
    };
    let partial =
        if c.rope.rotary_dim == c.head_dim { String::new() } else { format!(", {} dimensions", c.rope.rotary_dim) };
    format!("theta {}{partial}, {scaling}", c.rope.theta)
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32 (computed in bf16)",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

/// Parameters by what they are for; what a model lacks is left out.
fn parameters_by_part(c: &ModelConfig) -> Vec<(&'static str, u64)> {
    let mut parts = vec![("embedding", 0), ("attention", 0), ("MLP", 0), ("norms", 0), ("head", 0)];
    for tensor in tensors(c) {
        let part = match tensor.name.as_str() {
            name if name.starts_with("model.embed") => 0,
            name if name.contains("self_attn.") => 1,
            name if name.contains(".mlp.") => 2,
            name if name.starts_with("lm_head") => 4,
            _ => 3,
        };
        parts[part].1 += tensor.elements() as u64;
    }
    parts.retain(|(_, parameters)| *parameters > 0);
    parts
}

fn fit_lines(fit: Option<&Fit>, share: f32, max_len: usize) -> Vec<String> {
    let Some(fit) = fit else {
        return vec!["no GPU here; `--gpu-memory 80GB` shows what would fit on one".into()];
    };
    let mut lines = vec![format!(
        "on {}, {} of {} free, --gpu-memory-utilization {share}",
        fit.gpu,
        bytes(fit.free),
        bytes(fit.total)
    )];
    match fit.kv_tokens {
        Some(tokens) => {
            lines.push(row("KV cache", format!("{} tokens", grouped(tokens))));
            let len = grouped(max_len as u64);
            lines.push(row(
                "sequences",
                match fit.full_sequences {
                    0 => format!("none of {len} tokens: lower --max-model-len to {tokens} or less"),
                    n => format!("{} of {len} tokens at once", grouped(n)),
                },
            ));
        }
        None => lines.push(row("verdict", format!("does not fit: {} may be used", bytes(fit.usable)))),
    }
    lines
}

fn json(
    name: &str,
    c: &ModelConfig,
    parts: &[(&'static str, u64)],
    budget: &MemoryBudget,
    max_len: usize,
    fit: Option<&Fit>,
) -> Value {
    let by_part: serde_json::Map<String, Value> =
        parts.iter().map(|(part, n)| ((*part).to_lowercase(), json!(n))).collect();
    json!({
        "model": name,
        "architecture": c.architecture.hf_name(),
        "dtype": compute_dtype(c).to_string(),
        "parameters": parts.iter().map(|(_, n)| n).sum::<u64>(),
        "parameters_by_part": by_part,
        "num_layers": c.num_layers,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_heads": c.num_heads,
        "num_kv_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "tied_embeddings": c.tied_embeddings,
        "rope": {"theta": c.rope.theta, "rotary_dim": c.rope.rotary_dim, "text": rope(c)},
        "sliding_window": c.sliding_window,
        "max_position_embeddings": c.max_position_embeddings,
        "memory": {
            "weights_bytes": budget.weights,
            "activations_bytes": budget.activations,
            "kv_bytes_per_token": budget.page / PAGE_TOKENS,
            "kv_page_tokens": PAGE_TOKENS,
        },
        "max_model_len": max_len,
        "gpu": fit.map(|fit| json!({
            "name": fit.gpu,
            "free_bytes": fit.free,
            "total_bytes": fit.total,
            "usable_bytes": fit.usable,
            "fits": fit.kv_tokens.is_some(),
            "kv_cache_tokens": fit.kv_tokens.unwrap_or(0),
            "full_sequences": fit.full_sequences,
        })),
    })
}
