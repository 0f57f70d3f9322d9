//! Chooses tokens on the device: parameters of every row that samples, the tables that they name, and what comes back.
use crate::error::Result;
use crate::sampling::SamplingParams;
use crate::scheduler::{MAX_DRAFTS, SampleRow, Sampled, StepPlan};
use kernels_host::sample::{self, Adjust, Sample, counts_words};
use kernels_host::{Buffer, DType, Device, Pinned, Stream, View};

/// Biases of a request, at most.
pub(super) const MAX_BIASES: usize = 1024;
/// Words of a row's parameters.
const WORDS: usize = sample::SamplingParams::WORDS;

/// What sampling needs on the device.
pub(super) struct Sampler {
    vocab: usize,
    stride: usize,
    /// [rows, stride] f32.
    logits: Buffer,
    /// As the logits: what rows with penalties or biases are drawn from.
    scratch: Buffer,
    /// [sequences, counts_words] u32.
    counts: Buffer,
    /// [1, sequences + 1] u32; the last one is for padding.
    last_tokens: Buffer,
    /// [1, sequences · MAX_DRAFTS] u32: the draft model's tokens.
    drafts: Buffer,
    /// [1, rows] u32: what was chosen.
    tokens: Buffer,
    rows: usize,
    sequences: usize,
}

/// A step's parameters in the packed inputs: rows, then biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Params {
    start: usize,
    rows: usize,
    biases: usize,
    adjusted: bool,
}

impl Params {
    /// Words that they take.
    fn words(&self) -> usize {
        self.rows * WORDS + 2 * self.biases
    }

    /// The end of the packed inputs.
    pub fn end(&self) -> usize {
        self.start + self.words()
    }
}

/// Words of the parameters of a step within the bounds.
pub(super) fn most_words(rows: usize, sequences: usize) -> usize {
    rows * WORDS + 2 * sequences * MAX_BIASES
}

impl Sampler {
    /// For `rows` rows of logits a step, and sequences in `sequences` slots.
    pub fn new(stream: &Stream, vocab: usize, rows: usize, sequences: usize) -> Result<Self> {
        let (device, stride) = (stream.device(), stride(vocab));
        let u32s = |len| Buffer::new(device, DType::U32, len);
        let mut sampler = Sampler {
            vocab,
            stride,
            logits: Buffer::new(device, DType::F32, rows * stride)?,
            scratch: Buffer::new(device, DType::F32, rows * stride)?,
            counts: u32s(sequences * counts_words(vocab))?,
            last_tokens: u32s(sequences + 1)?,
            drafts: u32s(sequences * MAX_DRAFTS)?,
            tokens: u32s(rows)?,
            rows,
            sequences,
        };
        for buffer in [&mut sampler.counts, &mut sampler.last_tokens, &mut sampler.drafts] {
            stream.fill(buffer.view_mut(), 0)?;
        }
        Ok(sampler)
    }

    /// Bytes of the logits and of the rest.
    pub fn bytes(vocab: usize, rows: usize, sequences: usize) -> (usize, usize) {
        let words = sequences * counts_words(vocab) + sequences + 1 + sequences * MAX_DRAFTS + rows;
        (rows * stride(vocab) * 4, (rows * stride(vocab) + words) * 4)
    }

    /// Pinned memory for what comes back of one step.
    pub fn staging(&self, device: &Device) -> Result<Pinned> {
        Ok(Pinned::new(device, self.rows * size_of::<u32>())?)
    }

    /// The token that the sequence in each slot sampled last: u32 [1, slots].
    pub fn last_tokens(&self) -> View<'_> {
        self.last_tokens.view()
    }

    /// The draft model's tokens: u32 [1, slots · MAX_DRAFTS].
    pub fn drafts(&self) -> View<'_> {
        self.drafts.view()
    }

    /// Where the head writes `rows` rows of logits: f32 [rows, vocab].
    pub fn logits_mut(&mut self, rows: usize) -> kernels_host::ViewMut<'_> {
        self.logits.matrix_mut(rows, self.stride).columns(0, self.vocab)
    }

    /// Rows of logits.
    pub fn max_rows(&self) -> usize {
        self.rows
    }

    /// Copies `rows` rows of logits to the host and waits: [rows, stride].
    pub fn download_logits(&self, stream: &Stream, rows: usize, into: &mut Vec<f32>) -> Result<usize> {
        into.resize(rows * self.stride, 0.0);
        for (row, into) in into.chunks_mut(self.stride).enumerate() {
            let from = self.logits.matrix(self.rows, self.stride).row_range(row, 1).columns(0, self.vocab);
            stream.download(from, &mut into[..self.vocab])?;
        }
        Ok(self.stride)
    }

    /// Writes the parameters of the plan's rows from word `start` on.
    pub fn write(&self, plan: &StepPlan, start: usize, words: &mut [u32]) -> Params {
        let rows: usize = plan.samples.iter().map(|sample| 1 + sample.drafts as usize).sum();
        let mut params = Params { start, rows, ..Params::default() };
        let (into, biases) = words[start..].split_at_mut(rows * WORDS);
        let mut into = into.chunks_exact_mut(WORDS);
        let mut row = 0;
        for sample in &plan.samples {
            let list = &sample.sampling.logit_bias;
            let mut device = device_params(sample);
            device.bias_start = params.biases as u32;
            device.bias_len = list.len() as u32;
            for (pair, &(token, bias)) in biases[2 * params.biases..].chunks_exact_mut(2).zip(list) {
                pair.copy_from_slice(&[token, bias.to_bits()]);
            }
            params.biases += list.len();
            for draft in 0..=sample.drafts {
                let needs = device.needs_scratch();
                let scratch_row = if needs { row } else { sample::SamplingParams::NONE };
                params.adjusted |= needs;
                let device = sample::SamplingParams {
                    position: sample.position + draft,
                    scratch_row,
                    draft_start: sample.seq_slot * MAX_DRAFTS as u32,
                    draft_len: draft,
                    ..device
                };
                if let Some(into) = into.next() {
                    into.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&device)));
                }
                row += 1;
            }
        }
        params
    }

    /// Chooses the tokens of the rows whose logits are there, and queues their way to the host.
    pub fn sample(&mut self, stream: &Stream, packed: &Buffer, params: Params, staging: &mut Pinned) -> Result<()> {
        let rows = params.rows;
        if rows == 0 {
            return Ok(());
        }
        let biases = packed.view().columns(params.start + rows * WORDS, 2 * params.biases).matrix(params.biases, 2);
        let adjust = Adjust {
            counts: Some(self.counts.matrix_mut(self.sequences, counts_words(self.vocab))),
            biases: (params.biases > 0).then_some(biases),
            masks: None,
            drafts: Some(self.drafts.view()),
            scratch: self.scratch.matrix_mut(rows, self.stride).columns(0, self.vocab),
        };
        Sample {
            logits: self.logits.matrix(rows, self.stride).columns(0, self.vocab),
            params: packed.view().columns(params.start, rows * WORDS).matrix(rows, WORDS),
            out: self.tokens.matrix_mut(1, rows),
            last_tokens: Some(self.last_tokens.view_mut()),
            adjust: params.adjusted.then_some(adjust),
        }
        .launch(stream)?;
        Ok(stream.download_pinned(self.tokens.matrix(1, rows), staging, 0)?)
    }

    /// Launches what [`Sampler::sample`] may launch, for a stream that only loads kernels.
    pub fn prepare(&mut self, stream: &Stream, packed: &Buffer) -> Result<()> {
        let mut nowhere = Pinned::new(&Device::cpu(), 64)?;
        for adjusted in [false, true] {
            let params = Params { start: 0, rows: 1, biases: 0, adjusted };
            self.sample(stream, packed, params, &mut nowhere)?;
        }
        Ok(())
    }

    /// What came back.
    pub fn collect(&self, samples: &[Wanted], staging: &mut Pinned) -> Result<Vec<Sampled>> {
        let words = staging.host::<u32>()?;
        let mut rows = words.iter().copied();
        let tokens = |wanted: &Wanted| rows.by_ref().take(wanted.rows).collect();
        Ok(samples.iter().map(tokens).map(|tokens| Sampled { tokens, logprobs: Vec::new() }).collect())
    }
}

/// What a sample of a step in flight will bring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Rows: 1 + drafts.
    rows: usize,
}

impl Wanted {
    pub fn of(sample: &SampleRow) -> Self {
        Wanted { rows: 1 + sample.drafts as usize }
    }
}

/// Floats of a row of logits.
fn stride(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

fn device_params(sample: &SampleRow) -> sample::SamplingParams {
    let SamplingParams { temperature, top_p, min_p, top_k, seed, .. } = *sample.sampling;
    sample::SamplingParams {
        temperature,
        top_p,
        min_p,
        top_k,
        seed_lo: seed as u32,
        seed_hi: (seed >> 32) as u32,
        position: sample.position,
        seq_slot: sample.seq_slot,
        flags: if sample.drafts > 0 { sample::SamplingParams::DRAFTED } else { 0 },
        repetition_penalty: sample.sampling.repetition_penalty,
        presence_penalty: sample.sampling.presence_penalty,
        frequency_penalty: sample.sampling.frequency_penalty,
        ..sample::SamplingParams::GREEDY
    }
}
