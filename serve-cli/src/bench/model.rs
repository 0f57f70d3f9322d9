//! The engine of a bench.
use crate::device::DeviceArgs;
use crate::model::{self, LimitArgs, LoadFormat, ModelArgs};
use crate::terminal::{Progress, Terminal};
use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use engine::checkpoint::Checkpoint;
use engine::config::ModelConfig;
use engine::engine::{DraftModel, Engine, EngineConfig};
use engine::grammar::{self, CompiledGrammar};
use engine::model::WeightSource;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What `latency` and `throughput` share.
#[derive(Args, Debug)]
pub struct BenchModelArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Read the checkpoint, or make random weights from config.json alone
    #[arg(long, value_enum, default_value = "auto")]
    pub load_format: LoadFormat,
    /// A config.json for a draft model with random weights
    #[arg(long, value_name = "FILE", conflicts_with_all = ["draft_model", "spec_ngram"])]
    pub draft_config: Option<PathBuf>,
    /// Seed of the prompts and of random weights
    #[arg(long, default_value = "0")]
    pub seed: u64,
    /// Make every answer follow a grammar: lines of JSON over an artificial vocabulary, without end
    #[arg(long, value_enum, value_name = "KIND")]
    pub structured_output: Option<StructuredOutput>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// What answers must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StructuredOutput {
    /// Lines of JSON objects with strings, numbers and arrays.
    Json,
}

/// Most tokens in a step of a bench on a GPU, unless --max-num-batched-tokens says otherwise. Nobody waits for the next
/// token offline, and products of 8192 tokens are 2 to 4 % faster per token than four of 2048.
const OFFLINE_STEP_TOKENS: usize = 8192;

/// Sequences that a bench makes.
pub struct Workload {
    /// Tokens of a prompt, in all.
    pub input: usize,
    /// Tokens of an answer.
    pub output: usize,
    /// Sequences at once, unless a flag says otherwise.
    pub sequences: usize,
}

impl BenchModelArgs {
    /// Name and config.
    pub fn config(&self) -> Result<(String, ModelConfig)> {
        self.model.config()
    }

    /// Whether the weights are random.
    pub fn is_dummy(&self) -> bool {
        self.load_format == LoadFormat::Dummy
    }

    /// An engine for a workload. Says on stdout what its memory is used for.
    pub fn load(&self, name: &str, config: &ModelConfig, workload: &Workload, terminal: &Terminal) -> Result<Engine> {
        let Workload { input, output, sequences } = *workload;
        let (len, most) = (input + output, config.max_position_embeddings);
        let lens = format!("--input-len {input} and --output-len {output}");
        ensure!(len <= most, "{lens} do not fit in the model's context of {most}");
        let mut limits = self.limits.clone();
        // Memory for this workload and no more, unless flags say so.
        limits.max_model_len.get_or_insert(len.max(2));
        limits.max_num_seqs.get_or_insert(sequences);
        let device = self.device.open()?;
        if !device.is_cpu() && device.emulation().is_none() {
            limits.max_num_batched_tokens.get_or_insert(OFFLINE_STEP_TOKENS);
        }
        // It is asked for below, where this command's own flags are known.
        let speculation = std::mem::take(&mut limits.speculation);
        let mut engine_config = limits.engine_config(config)?;
        speculation.apply(self.draft()?, &mut engine_config)?;
        if device.is_cpu() && engine_config.kv_cache_memory_bytes.is_none() {
            let cache = len.next_multiple_of(engine::kv::PAGE_TOKENS) * sequences;
            engine_config =
                EngineConfig { kv_cache_tokens: engine_config.kv_cache_tokens.or(Some(cache)), ..engine_config };
        }
        model::check_host_memory(&device, config, &engine_config)?;
        let checkpoint = if self.is_dummy() { None } else { Some(self.checkpoint()?) };
        let source = checkpoint.as_ref().map_or(WeightSource::Dummy { seed: self.seed }, WeightSource::Checkpoint);
        let progress = Progress::new(terminal, &format!("loading {name}"));
        let engine = Engine::load(&device, config, source, &engine_config, &|done, total| progress.set(done, total))?;
        drop(progress);
        let fits = engine.max_len();
        ensure!(len <= fits, "{lens} do not fit in the {fits} tokens that the KV cache leaves for a sequence");
        print!("{}", model::memory_table(&engine));
        Ok(engine)
    }

    /// What answers must be; `None`: anything.
    pub fn grammar(&self, config: &ModelConfig) -> Result<Option<CompiledGrammar>> {
        let compile = |_| grammar::synthetic_json(config.vocab_size);
        Ok(self.structured_output.map(compile).transpose()?)
    }

    /// A draft model with random weights.
    fn draft(&self) -> Result<Option<DraftModel>> {
        let Some(path) = &self.draft_config else { return Ok(None) };
        let (_, config) = ModelArgs { model: Some(path.clone()) }.config()?;
        Ok(Some(DraftModel::Dummy { config: Box::new(config), seed: self.seed }))
    }

    /// The checkpoint, beside the config.json if that is what MODEL names.
    fn checkpoint(&self) -> Result<Checkpoint> {
        match &self.model.model {
            Some(path) if path.is_file() => Ok(Checkpoint::open(path.parent().unwrap_or(path))?),
            _ => Ok(self.model.source()?.checkpoint()?),
        }
    }

    /// What ran, into a JSON object.
    pub fn describe(&self, engine: &Engine, name: &str, device: &str, value: &mut Value) {
        let (memory, load) = (engine.runner().memory(), engine.load_times());
        value["model"] = json!(name);
        value["device"] = json!(device);
        value["version"] = json!(env!("CARGO_PKG_VERSION"));
        value["load_format"] = json!(if self.is_dummy() { "dummy" } else { "auto" });
        value["load_time_s"] = json!((load.weights + load.ready).as_secs_f64());
        value["load_weights_s"] = json!(load.weights.as_secs_f64());
        value["load_ready_s"] = json!(load.ready.as_secs_f64());
        value["structured_output"] = json!(self.structured_output.map(|StructuredOutput::Json| "json"));
        value["max_num_seqs"] = json!(engine.limits().max_sequences);
        value["max_num_batched_tokens"] = json!(engine.limits().max_tokens);
        let config = engine.runner().config();
        value["num_draft_tokens"] = json!(config.drafts);
        value["spec_synthetic_acceptance"] = json!(config.synthetic_acceptance);
        value["kv_cache_tokens"] = json!(engine.kv_tokens());
        value["memory_bytes"] = memory.lines().iter().map(|(name, bytes)| ((*name).to_owned(), json!(bytes))).collect();
        value["memory_driver_bytes"] = json!(load.used);
    }
}
