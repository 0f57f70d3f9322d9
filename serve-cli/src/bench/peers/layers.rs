//! A decode step's layers as one graph, against the time that their bytes take at the run's best bandwidth.
use super::Bench;
use super::gemm::TURN_US;
use super::row::{Group, Rival, Row};
use crate::bench::timing::{Replay, alternate};
use anyhow::Result;
use engine::config::ModelConfig;
use engine::kv::{KvCache, PAGE_TOKENS};
use engine::model::{Activations, Model, StepInput, WeightSource};
use engine::scheduler::Limits;
use kernels_host::case::Rng;
use kernels_host::fill::FillNormal;
use kernels_host::{Buffer, DType, Error, Stream};
use std::cell::RefCell;

/// The model: Llama-3.1-8B, random weights.
const CONFIG: &str = include_str!("../../../../benches/configs/llama-3.1-8b.json");
/// Tokens in the cache, the step's own included.
const CONTEXT: usize = 2048;
/// Sequences of a step, and the share of the bandwidth that it must reach.
const BATCHES: [(usize, f64); 4] = [(1, 0.91), (8, 0.88), (32, 0.85), (128, 0.80)];

/// 32 decoder layers at batch 1 to 128.
pub fn run(bench: &mut Bench<'_>) -> Result<()> {
    let stream = bench.overlapped()?;
    let config = ModelConfig::from_slice("llama-3.1-8b.json", CONFIG.as_bytes())?;
    let model = Model::load(&stream, &config, WeightSource::Dummy { seed: 1 }, &|_, _| ())?;
    let most = BATCHES.iter().map(|&(batch, _)| batch).max().unwrap_or(1);
    let limits = Limits { max_tokens: most, max_sequences: most, max_model_len: CONTEXT };
    let pages = most * CONTEXT / PAGE_TOKENS;
    let mut kv = KvCache::new(stream.device(), &config, model.dtype(), pages, 0)?;
    for i in 0..config.num_layers {
        let layer = kv.layer(i);
        for (part, out) in [layer.k, layer.v].into_iter().enumerate() {
            let seed = (2 * i + part) as u64;
            FillNormal { out, seed, scale: 1.0, offset: 0.0 }.launch(&stream)?;
        }
    }
    let kv = RefCell::new(kv);
    let work = RefCell::new(Activations::new(&stream, &config, model.dtype(), &limits)?);
    let weights = layer_weight_bytes(&config);
    for (batch, bar) in BATCHES {
        if bench.quick && batch != 1 && batch != 32 {
            continue;
        }
        let step = Step::new(&stream, batch, pages)?;
        let input = step.input();
        model.embed(&stream, &input, &mut work.borrow_mut())?;
        let layers = |stream: &Stream, _| {
            let (mut kv, mut work) = (kv.borrow_mut(), work.borrow_mut());
            let done = model.layers(stream, 0..config.num_layers, &input, &mut kv, &mut work);
            done.map_err(|error| Error::Unsupported { kernel: "layers", what: error.to_string() })
        };
        layers(&stream, 0)?;
        let replay = Replay::capture(&stream, 1, layers)?;
        let samples = alternate(&stream, &[&replay], bench.rounds(), 10.0 * TURN_US)?;
        let cache = config.num_layers * batch * CONTEXT * 2 * config.kv_size() * model.dtype().size();
        bench.add(Row {
            group: Group::Layers,
            work: format!("32 layers of 8B, batch {batch} x {CONTEXT}"),
            ours: (&samples[0]).into(),
            rival: Rival::Floor,
            rival_name: "best read".into(),
            bar: Some(bar),
            value: None,
            bytes: (weights + cache) as u64,
            flops: (batch * weights) as u64,
            reads: false,
        })?;
    }
    Ok(())
}

/// Bytes of the layers' matrices; the norms' are below a thousandth.
fn layer_weight_bytes(config: &ModelConfig) -> usize {
    let hidden = config.hidden_size;
    let attention = hidden * (config.q_size() + 2 * config.kv_size()) + config.q_size() * hidden;
    2 * config.num_layers * (attention + 3 * hidden * config.intermediate_size)
}

/// One query for each of some sequences of [`CONTEXT`] tokens, their pages scattered.
struct Step {
    batch: usize,
    tokens: Buffer,
    positions: Buffer,
    slots: Buffer,
    tables: Buffer,
    lens: Buffer,
    starts: Buffer,
}

impl Step {
    fn new(stream: &Stream, batch: usize, pool: usize) -> Result<Self> {
        let mut rng = Rng::new(41);
        let mut pages: Vec<u32> = (0..pool as u32).collect();
        for i in (1..pages.len()).rev() {
            pages.swap(i, rng.below(i + 1));
        }
        let width = CONTEXT / PAGE_TOKENS;
        pages.truncate(batch * width);
        let slots: Vec<u32> =
            pages.chunks(width).map(|pages| pages[width - 1] * PAGE_TOKENS as u32 + PAGE_TOKENS as u32 - 1).collect();
        let words = |values: &[u32]| -> Result<Buffer> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, values.len())?;
            stream.upload(values, buffer.view_mut())?;
            Ok(buffer)
        };
        let tokens: Vec<u32> = (0..batch).map(|_| rng.below(128_000) as u32).collect();
        Ok(Step {
            batch,
            tokens: words(&tokens)?,
            positions: words(&vec![CONTEXT as u32 - 1; batch])?,
            slots: words(&slots)?,
            tables: words(&pages)?,
            lens: words(&vec![CONTEXT as u32; batch])?,
            starts: words(&[0])?,
        })
    }

    fn input(&self) -> StepInput<'_> {
        StepInput {
            tokens: self.tokens.view(),
            last_tokens: self.starts.view(),
            drafts: None,
            positions: self.positions.view(),
            slots: self.slots.view(),
            block_tables: self.tables.matrix(self.batch, CONTEXT / PAGE_TOKENS),
            kv_lens: self.lens.view(),
            query_starts: self.starts.view(),
            decodes: self.batch,
            decode_tokens: self.batch,
            decode_starts: None,
            max_decode_query: 1,
            max_query: 0,
            max_kv: CONTEXT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_llamas_and_its_layers_weigh_14_gb() {
        let config = ModelConfig::from_slice("llama-3.1-8b.json", CONFIG.as_bytes()).unwrap();
        assert_eq!(layer_weight_bytes(&config), 13_958_643_712);
    }
}
