//! Runs steps: uploads a plan, calls the model, samples. Owns all device memory; allocates nothing after
//! it was made.
use crate::config::ModelConfig;
use crate::error::Result;
use crate::kv::KvCache;
use crate::model::{Activations, Model, StepInput};
use crate::sampling::SamplingParams;
use crate::scheduler::{Limits, Sampled, StepOutput, StepPlan};
use kernels_host::sample::{self, Sample};
use kernels_host::{Buffer, DType, Device, Stream};

/// A model ready to run.
pub struct Runner {
    stream: Stream,
    model: Model,
    kv: KvCache,
    work: Activations,
    inputs: Inputs,
    logits: Buffer,
    logits_stride: usize,
    sampled: Buffer,
    max_sequences: usize,
}

/// A step's inputs on the device.
struct Inputs {
    tokens: Buffer,
    positions: Buffer,
    slots: Buffer,
    block_tables: Buffer,
    kv_lens: Buffer,
    query_starts: Buffer,
    rows: Buffer,
    params: Buffer,
}

/// Bytes of device memory that a runner takes, by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Weights.
    pub weights: usize,
    /// Activations, inputs and logits of the largest step.
    pub activations: usize,
    /// One page of the KV cache, over all layers.
    pub page: usize,
}

impl MemoryBudget {
    /// Counts what a model needs without allocating.
    pub fn of(config: &ModelConfig, dtype: DType, limits: &Limits) -> Self {
        let size = dtype.size();
        let branch = if config.post_norms { config.hidden_size } else { 0 };
        let per_token =
            branch + 3 * config.hidden_size + config.q_size() * 2 + 2 * config.kv_size() + config.intermediate_size;
        let per_sequence = (config.vocab_size + 8) * 4 + limits.max_model_len / 16 + 64;
        // Attention's workspace is not counted here: it is below 64 MB for all supported models.
        MemoryBudget {
            weights: crate::weights::parameter_count(config) as usize * size,
            activations: limits.max_tokens * (per_token * size + 12) + limits.max_sequences * per_sequence + (64 << 20),
            page: KvCache::page_bytes(config, dtype),
        }
    }
}

impl Runner {
    /// Allocates everything for steps within `limits` over `pages` pages.
    pub fn new(stream: Stream, model: Model, limits: &Limits, pages: usize) -> Result<Self> {
        let device = stream.device().clone();
        let config = model.config();
        let mut kv = KvCache::new(&device, config, model.dtype(), pages)?;
        kv.clear(&stream)?;
        let work = Activations::new(&stream, config, model.dtype(), limits)?;
        let logits_stride = config.vocab_size.next_multiple_of(8);
        let u32s = |len| Buffer::new(&device, DType::U32, len);
        let inputs = Inputs {
            tokens: u32s(limits.max_tokens)?,
            positions: u32s(limits.max_tokens)?,
            slots: u32s(limits.max_tokens)?,
            block_tables: u32s(limits.max_sequences * limits.max_model_len.div_ceil(crate::kv::PAGE_TOKENS))?,
            kv_lens: u32s(limits.max_sequences)?,
            query_starts: u32s(limits.max_sequences + 1)?,
            rows: u32s(limits.max_sequences)?,
            params: u32s(limits.max_sequences * sample::SamplingParams::WORDS)?,
        };
        Ok(Runner {
            logits: Buffer::new(&device, DType::F32, limits.max_sequences * logits_stride)?,
            sampled: u32s(limits.max_sequences)?,
            stream,
            model,
            kv,
            work,
            inputs,
            logits_stride,
            max_sequences: limits.max_sequences,
        })
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Runs one step and returns a token for each of the plan's `samples`.
    pub fn step(&mut self, plan: &StepPlan) -> Result<StepOutput> {
        self.forward(plan)?;
        let count = plan.samples.len();
        if count == 0 {
            return Ok(StepOutput::default());
        }
        let rows: Vec<u32> = plan.samples.iter().map(|sample| sample.row).collect();
        self.head(&rows)?;
        let params: Vec<_> =
            plan.samples.iter().map(|sample| device_params(&sample.sampling, sample.position)).collect();
        self.stream.upload(&params, self.inputs.params.matrix_mut(count, sample::SamplingParams::WORDS))?;
        let vocab = self.model.config().vocab_size;
        Sample {
            logits: self.logits.matrix(count, self.logits_stride).columns(0, vocab),
            params: self.inputs.params.matrix(count, sample::SamplingParams::WORDS),
            out: self.sampled.matrix_mut(1, count),
        }
        .launch(&self.stream)?;
        let mut tokens = vec![0; count];
        self.stream.download(self.sampled.matrix(1, count), &mut tokens)?;
        let samples = tokens.into_iter().map(|token| Sampled { tokens: vec![token], logprobs: Vec::new() });
        Ok(StepOutput { samples: samples.collect() })
    }

    /// Runs one step without sampling and calls `each` with every token's row and its logits, `vocab_size` of them.
    pub fn logits(&mut self, plan: &StepPlan, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        self.forward(plan)?;
        let vocab = self.model.config().vocab_size;
        let rows: Vec<u32> = (0..plan.tokens.len() as u32).collect();
        let mut host = vec![0.0; self.max_sequences * self.logits_stride];
        for rows in rows.chunks(self.max_sequences) {
            self.head(rows)?;
            let logits = &mut host[..rows.len() * self.logits_stride];
            self.stream.download(self.logits.matrix(1, logits.len()), logits)?;
            for (row, logits) in rows.iter().zip(logits.chunks(self.logits_stride)) {
                each(*row as usize, &logits[..vocab]);
            }
        }
        Ok(())
    }

    fn head(&mut self, rows: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        self.stream.upload(rows, self.inputs.rows.matrix_mut(1, rows.len()))?;
        let logits = self.logits.matrix_mut(rows.len(), self.logits_stride).columns(0, vocab);
        self.model.head(&self.stream, self.inputs.rows.matrix(1, rows.len()), &mut self.work, logits)
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<()> {
        let step = self.inputs.upload(&self.stream, plan)?;
        self.model.forward(&self.stream, &step, &mut self.kv, &mut self.work)
    }
}

impl Inputs {
    fn upload(&mut self, stream: &Stream, plan: &StepPlan) -> Result<StepInput<'_>> {
        let (tokens, sequences) = (plan.tokens.len(), plan.sequences.len());
        let width = plan.sequences.iter().map(|sequence| sequence.pages.len()).max().unwrap_or(0);
        let tables: Vec<u32> = plan
            .sequences
            .iter()
            .flat_map(|sequence| {
                let padding = std::iter::repeat_n(u32::MAX, width - sequence.pages.len());
                plan.pages[sequence.pages.clone()].iter().copied().chain(padding)
            })
            .collect();
        let kv_lens: Vec<u32> = plan.sequences.iter().map(|sequence| sequence.kv_len).collect();
        let mut query_starts = vec![0];
        for sequence in &plan.sequences[plan.decodes..] {
            query_starts.push(query_starts[query_starts.len() - 1] + sequence.queries);
        }
        stream.upload(&plan.tokens, self.tokens.matrix_mut(1, tokens))?;
        stream.upload(&plan.positions, self.positions.matrix_mut(1, tokens))?;
        stream.upload(&plan.slots, self.slots.matrix_mut(1, tokens))?;
        stream.upload(&tables, self.block_tables.matrix_mut(1, tables.len()))?;
        stream.upload(&kv_lens, self.kv_lens.matrix_mut(1, sequences))?;
        stream.upload(&query_starts, self.query_starts.matrix_mut(1, query_starts.len()))?;
        Ok(StepInput {
            tokens: self.tokens.matrix(1, tokens),
            positions: self.positions.matrix(1, tokens),
            slots: self.slots.matrix(1, tokens),
            block_tables: self.block_tables.matrix(sequences, width),
            kv_lens: self.kv_lens.matrix(1, sequences),
            query_starts: self.query_starts.matrix(1, query_starts.len()),
            decodes: plan.decodes,
            max_query: plan.max_query(),
            max_kv: plan.max_kv(),
        })
    }
}

fn device_params(params: &SamplingParams, position: u32) -> sample::SamplingParams {
    sample::SamplingParams {
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        top_k: params.top_k,
        seed_lo: params.seed as u32,
        seed_hi: (params.seed >> 32) as u32,
        position,
        reserved: 0,
    }
}
