//! What the commands share: the model, its bounds, and how tokens are chosen.
use crate::device::DeviceArgs;
use crate::hub::{Hub, HubId, Part};
use crate::speculation::SpeculationArgs;
use crate::terminal::{Progress, Terminal};
use crate::{parse, units};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use engine::config::ModelConfig;
use engine::engine::{DraftModel, Engine, EngineConfig, compute_dtype};
use engine::generation_config::GenerationConfig;
use engine::llm::{Llm, SamplingParams};
use engine::runner::MemoryBudget;
use engine::scheduler::Policy;
use engine::source::ModelSource;
use kernels_host::Device;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A Hugging Face model directory, or a name on the hub (ORG/NAME, ORG/NAME@REVISION); by default tiny-chat, which is inside the binary.
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
}

impl ModelArgs {
    /// Where the files are. Looks whether there is such a directory; a name on the hub is downloaded if it is not in the
    /// cache.
    pub fn source(&self) -> Result<ModelSource> {
        self.part(Part::All)
    }

    /// Where the files are; for random weights a path to a config.json will do.
    pub fn source_for(&self, format: LoadFormat) -> Result<ModelSource> {
        match (&self.model, format) {
            (Some(path), LoadFormat::Dummy) if path.is_file() => Ok(ModelSource::Config(path.clone())),
            _ => self.source(),
        }
    }

    fn part(&self, part: Part) -> Result<ModelSource> {
        let Some(path) = &self.model else { return Ok(ModelSource::default()) };
        let shown = path.display();
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => Ok(ModelSource::Dir(path.clone())),
            Ok(_) => {
                bail!("{shown} is a file; MODEL must be a directory with config.json, *.safetensors and tokenizer.json")
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some(embedded @ ModelSource::Embedded(_)) = path.to_str().map(ModelSource::from) {
                    return Ok(embedded);
                }
                let Some(id) = path.to_str().and_then(HubId::parse) else {
                    bail!(
                        "{shown} does not exist; MODEL must be a directory with config.json, *.safetensors and \
                         tokenizer.json, or a name on Hugging Face's hub (ORG/NAME)"
                    )
                };
                let dir = Hub::from_env(Terminal::detect().stderr)?.model(&id, part)?;
                Ok(ModelSource::Hub { id: id.name, dir })
            }
            Err(error) => Err(error).with_context(|| format!("cannot open {shown}")),
        }
    }

    /// Name and config alone, which is all that `inspect` and random weights need: a path to a config.json will do.
    pub fn config(&self) -> Result<(String, ModelConfig)> {
        match &self.model {
            Some(path) if path.is_file() => {
                let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                let config = ModelConfig::from_slice(&path.display().to_string(), &bytes)?;
                Ok((named_after(path), config))
            }
            _ => {
                let source = self.part(Part::Config)?;
                Ok((source.name(), source.config()?))
            }
        }
    }
}

/// A model's name by its configuration: the file's, or of a config.json the folder's.
fn named_after(config: &Path) -> String {
    let folder = || config.canonicalize().ok()?.parent()?.file_name().map(ToOwned::to_owned);
    let stem = config.file_stem().filter(|stem| *stem != "config").map(ToOwned::to_owned);
    stem.or_else(folder).map_or_else(|| config.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// The model's safetensors.
    Auto,
    /// Random weights.
    Dummy,
}

/// Bounds and memory; names and meanings are vLLM's.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub struct LimitArgs {
    /// Longest sequence, prompt and answer together; 32K is 32·1024, 32k is 32·1000 [default: the model's]
    #[arg(long, value_name = "TOKENS", value_parser = parse::tokens)]
    pub max_model_len: Option<usize>,
    /// Most sequences that run at once [default: 64, of `chat` 1]
    #[arg(long, value_name = "N", value_parser = parse::count_in(1..=4096))]
    pub max_num_seqs: Option<usize>,
    /// Most tokens in a step: longer prompts are prefilled in pieces [default: 2048, on the CPU 256]
    #[arg(long, value_name = "TOKENS", value_parser = batched_tokens)]
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens that the KV cache holds [default: what GPU memory allows; on the CPU 4 full sequences]
    #[arg(long, value_name = "TOKENS", value_parser = parse::tokens)]
    pub kv_cache_tokens: Option<usize>,
    /// Bytes that the KV cache takes, such as 20GiB, whatever --gpu-memory-utilization says
    #[arg(long, value_name = "BYTES", value_parser = parse::memory, conflicts_with = "kv_cache_tokens")]
    pub kv_cache_memory_bytes: Option<u64>,
    /// Share of GPU memory for weights, activations and KV cache
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = parse::share)]
    pub gpu_memory_utilization: f32,
    /// Compute every prompt whole, also where its start is in the KV cache
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Host memory for blocks that the GPU has no room for, such as 32GiB
    #[arg(long, value_name = "BYTES", value_parser = parse::memory)]
    pub host_cache_bytes: Option<u64>,
    /// When a waiting request starts: when it is sure to fit to its end, or when its prompt fits
    #[arg(long, value_name = "POLICY", default_value = "guaranteed-no-evict", value_parser = policy)]
    pub scheduler_policy: Policy,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    /// Launch every kernel by itself instead of by CUDA graphs
    #[arg(long, visible_alias = "enforce-eager")]
    pub eager: bool,
    /// The same tokens to the bit whatever else is in the batch; slower
    #[arg(long)]
    pub batch_invariant: bool,
    /// Plan a step only once the one before it has ended
    #[arg(long, visible_alias = "no-async-scheduling")]
    pub no_overlap: bool,
    /// One conversation instead of many requests: one sequence, and memory for no more.
    #[arg(skip)]
    pub one_conversation: bool,
    /// Say on stderr how long loading took and what memory is used for
    #[arg(short, long)]
    pub verbose: bool,
}

fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "guaranteed-no-evict" => Ok(Policy::GuaranteedNoEvict),
        "max-utilization" => Ok(Policy::MaxUtilization),
        _ => Err("expected guaranteed-no-evict or max-utilization".into()),
    }
}

fn batched_tokens(text: &str) -> Result<usize, String> {
    let tokens = parse::tokens(text)?;
    if tokens <= 1 << 20 { Ok(tokens) } else { Err("must be from 1 to 1M".into()) }
}

impl LimitArgs {
    /// The engine's configuration for `model`; refuses a context that it was not made for.
    pub fn engine_config(&self, model: &ModelConfig) -> Result<EngineConfig> {
        let most = model.max_position_embeddings;
        if let Some(len) = self.max_model_len {
            ensure!(
                len <= most,
                "--max-model-len {len} is above the model's {most} (max_position_embeddings in config.json)"
            );
            ensure!(len >= 2, "--max-model-len {len} leaves no room for a prompt and an answer: at least 2");
        }
        let default = EngineConfig::default();
        let mut config = EngineConfig {
            max_model_len: self.max_model_len,
            max_num_seqs: self.max_num_seqs.unwrap_or(if self.one_conversation { 1 } else { default.max_num_seqs }),
            max_num_batched_tokens: self.max_num_batched_tokens,
            kv_cache_tokens: self.kv_cache_tokens,
            kv_cache_memory_bytes: self.kv_cache_memory_bytes.map(|bytes| bytes as usize),
            gpu_memory_utilization: self.gpu_memory_utilization,
            prefix_cache: !self.no_prefix_cache,
            fill_memory: !self.one_conversation,
            host_cache_bytes: self.host_cache_bytes.unwrap_or(0) as usize,
            policy: self.scheduler_policy,
            eager: self.eager,
            batch_invariant: self.batch_invariant,
            overlap: self.no_overlap.then_some(false),
            ..default
        };
        self.speculation.apply(None, &mut config)?;
        Ok(config)
    }
}

/// Refuses a model that the machine's memory cannot hold: on the CPU nobody else would, until the kernel
/// kills the process.
pub fn check_host_memory(device: &Device, model: &ModelConfig, config: &EngineConfig) -> Result<()> {
    let (true, Some(total)) = (device.is_cpu(), host_memory()) else { return Ok(()) };
    let limits = config.limits(device.is_cpu(), model);
    let draft = config.draft.as_ref().map(DraftModel::config).transpose()?;
    let draft = draft.as_ref().map(|draft| (draft, compute_dtype(draft)));
    let budget =
        MemoryBudget::of(model, compute_dtype(model), &limits).with_drafts(model, &limits, config.drafts(), draft);
    let fixed = (budget.weights + budget.activations) as u64;
    let cache = match (config.kv_cache_tokens, config.kv_cache_memory_bytes) {
        (Some(tokens), _) => (tokens.div_ceil(engine::kv::PAGE_TOKENS) as u64).saturating_mul(budget.page as u64),
        (None, bytes) => bytes.unwrap_or(0) as u64,
    };
    let cache = cache.saturating_add(config.host_cache_bytes as u64);
    ensure!(
        fixed.saturating_add(cache) <= total,
        "too little memory: weights and activations take {}, the KV cache {}, this machine has {}; use a smaller model, \
         lower --kv-cache-tokens, --kv-cache-memory-bytes or --host-cache-bytes, or run on a GPU",
        units::bytes(fixed),
        units::bytes(cache),
        units::bytes(total)
    );
    Ok(())
}

/// Bytes of memory of this machine, where it tells.
pub fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Loads a model, with a progress bar where it takes long.
pub fn load(source: &ModelSource, device: &DeviceArgs, limits: &LimitArgs, terminal: &Terminal) -> Result<Llm> {
    load_format(source, LoadFormat::Auto, device, limits, terminal)
}

/// As [`load`], or with random weights.
pub fn load_format(
    source: &ModelSource,
    format: LoadFormat,
    device: &DeviceArgs,
    limits: &LimitArgs,
    terminal: &Terminal,
) -> Result<Llm> {
    let model = source.config()?;
    let config = limits.engine_config(&model)?;
    let device = device.open()?;
    check_host_memory(&device, &model, &config)?;
    let progress = Progress::new(terminal, &format!("loading {}", source.name()));
    let set = |done, total| progress.set(done, total);
    let mut builder = Llm::builder(source).device(&device).config(config).progress(&set);
    if format == LoadFormat::Dummy {
        builder = builder.dummy_weights(0);
    }
    let llm = builder.load()?;
    drop(progress);
    if limits.verbose {
        let _ = write!(std::io::stderr(), "{}", memory_table(llm.engine()));
    }
    Ok(llm)
}

/// How long an engine took to load, and what its memory is used for.
pub fn memory_table(engine: &Engine) -> String {
    let (load, memory) = (engine.load_times(), engine.runner().memory());
    let mut text = format!(
        "Loaded in {}: weights {}, kernels, cache and graphs {}\n",
        units::duration(load.weights + load.ready),
        units::duration(load.weights),
        units::duration(load.ready)
    );
    for (name, bytes) in memory.lines().iter().filter(|(_, bytes)| *bytes > 0) {
        let more = match *name {
            "KV cache" => format!("   {} tokens", units::grouped(engine.kv_tokens() as u64)),
            "CUDA graphs" => format!("   {} batch sizes", engine.runner().graphs()),
            _ => String::new(),
        };
        text.push_str(&format!("  {name:<26}{:>10}{more}\n", units::bytes(*bytes as u64)));
    }
    text.push_str(&format!("  {:<26}{:>10}", "in all", units::bytes(memory.total() as u64)));
    if let Some(used) = load.used {
        text.push_str(&format!("   {} by the driver's count", units::bytes(used as u64)));
    }
    text.push('\n');
    if memory.pinned > 0 {
        text.push_str(&format!("  {:<26}{:>10}\n", "pinned host memory", units::bytes(memory.pinned as u64)));
    }
    text
}

/// How tokens are chosen, and when the answer ends.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divides the logits; 0 is greedy
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Only the K most likely tokens; 0 is off
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = parse::top_k)]
    pub top_k: Option<u32>,
    /// Only the most likely tokens that together have this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Only tokens at least this fraction as likely as the most likely one
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from logits of tokens in the answer, -2 to 2
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time that a token is in the answer, -2 to 2
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Added to a token's logit: its id and a number, or -inf to ban it (repeatable)
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = parse::logit_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers: the same seed gives the same answer [default: another one each time]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Most tokens of an answer
    #[arg(long, value_name = "TOKENS", value_parser = parse::tokens)]
    pub max_tokens: Option<usize>,
    /// A string that ends the answer and is not part of it (repeatable)
    #[arg(long, value_name = "TEXT", value_parser = stop_string)]
    pub stop: Vec<String>,
}

fn stop_string(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.to_owned()) }
}

impl SamplingArgs {
    /// Refuses senseless values before a model is loaded.
    pub fn validate(&self) -> Result<()> {
        Ok(self.over(SamplingParams::default()).validate()?)
    }

    /// Greedy unless a flag asks for sampling.
    pub fn greedy_unless_asked(&self, model: &GenerationConfig) -> SamplingParams {
        let asked = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.seed.is_some();
        self.over(if asked { sampled(model) } else { SamplingParams::default() })
    }

    /// What the model's makers recommend, changed by the flags.
    pub fn recommended(&self, model: &GenerationConfig) -> SamplingParams {
        let base = if model.do_sample { Some(sampled(model)) } else { None };
        base.map_or_else(|| self.greedy_unless_asked(model), |base| self.over(base))
    }

    fn over(&self, base: SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            seed: self.seed.unwrap_or(base.seed),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ..base
        }
    }
}

/// Sampling as the model's makers recommend it; temperature 1 where they say nothing.
fn sampled(model: &GenerationConfig) -> SamplingParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    SamplingParams {
        temperature: model.temperature.unwrap_or(1.0),
        top_k: model.top_k.unwrap_or(0),
        top_p: model.top_p.unwrap_or(1.0),
        min_p: model.min_p.unwrap_or(0.0),
        seed: now,
        ..SamplingParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_models_have_names() {
        for name in ["tiny-chat", "tiny-draft"] {
            assert_eq!(ModelArgs { model: Some(name.into()) }.source().unwrap().name(), name);
        }
        assert!(ModelArgs { model: Some("tiny".into()) }.source().is_err());
    }

    #[test]
    fn models_are_named_after_their_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(named_after(&dir.path().join("shapes.json")), "shapes");
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(named_after(&dir.path().join("config.json")), folder);
    }

    #[test]
    fn greedy_unless_a_flag_asks() {
        let model =
            GenerationConfig { do_sample: true, temperature: Some(0.6), top_p: Some(0.9), ..Default::default() };
        let none = SamplingArgs::default();
        assert_eq!(none.greedy_unless_asked(&model), SamplingParams::default());
        assert_eq!(none.recommended(&model).temperature, 0.6);
        let seeded = SamplingArgs { seed: Some(3), ..Default::default() }.greedy_unless_asked(&model);
        assert_eq!((seeded.temperature, seeded.top_p, seeded.seed), (0.6, 0.9, 3));
        let plain = GenerationConfig::default();
        assert_eq!(none.recommended(&plain), SamplingParams::default());
        let flag = SamplingArgs { top_k: Some(5), ..Default::default() }.recommended(&plain);
        assert_eq!((flag.temperature, flag.top_k), (1.0, 5));
    }

    #[test]
    fn senseless_sampling_is_refused() {
        for args in [
            SamplingArgs { temperature: Some(-1.0), ..Default::default() },
            SamplingArgs { top_p: Some(0.0), ..Default::default() },
            SamplingArgs { min_p: Some(2.0), ..Default::default() },
            SamplingArgs { presence_penalty: Some(3.0), ..Default::default() },
            SamplingArgs { logit_bias: vec![(1, 1.0), (1, 2.0)], ..Default::default() },
        ] {
            assert!(args.validate().is_err(), "{args:?}");
        }
    }
}
