//! Chooses tokens on the device: parameters of every row that samples, the tables that they name, and what comes back.
use super::biases::Biases;
use crate::error::Result;
use crate::scheduler::{FROM_DRAFT, FROM_SLOT, MAX_DRAFTS, SampleRow, Sampled, StepPlan, TokenLogprobs};
use kernels_host::sample::{self, AcceptDrafts, Adjust, CountTokens, Sample, TopLogprobs, TopRow, counts_words};
use kernels_host::{Buffer, DType, Device, Pinned, Stream, View, ViewMut};

/// Entries of a request's `logit_bias`, at most.
pub const MAX_BIASES: usize = 1024;
/// Words of a row's parameters.
pub(super) const WORDS: usize = sample::SamplingParams::WORDS;
/// Words of an accepted sequence: how many drafts, these, the token after them.
const ACCEPTED: usize = MAX_DRAFTS + 2;
/// Words that say whose tokens are counted.
const COUNTED: usize = 4;

/// What sampling needs on the device.
pub(super) struct Sampler {
    sizes: Sizes,
    /// [rows, stride] f32.
    logits: Buffer,
    /// As the logits: what rows with penalties or biases are drawn from.
    scratch: Buffer,
    /// [sequences, counts_words] u32.
    counts: Buffer,
    /// Rows of `COUNTED` words, then tokens: what `counts` is made from.
    counted: Buffer,
    /// [1, sequences + 1] u32; the last one is for padding.
    last_tokens: Buffer,
    /// [1, sequences · MAX_DRAFTS] u32: the draft model's tokens.
    drafts: Buffer,
    /// [rows, ⌈vocab / 32⌉] u32: which tokens rows with a grammar may choose.
    masks: Buffer,
    /// [1, rows] u32: what was drawn.
    tokens: Buffer,
    /// [samples, `ACCEPTED`] u32: which drafts came true.
    accepted: Buffer,
    /// [rows, words] u32: log-probabilities.
    top: Buffer,
    top_workspace: Buffer,
    /// [1, rows] u32.
    top_arrivals: Buffer,
    /// Accept each draft with this probability, for benchmarks with random weights.
    pub synthetic_acceptance: Option<f32>,
}

/// Bounds of sampling.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub vocab: usize,
    /// Rows of logits in a step.
    pub rows: usize,
    /// Slots.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub max_len: usize,
}

impl Sizes {
    /// Floats of a row of logits.
    fn stride(&self) -> usize {
        self.vocab.next_multiple_of(8)
    }

    /// Words of a row's mask.
    fn mask_words(&self) -> usize {
        self.vocab.div_ceil(32)
    }

    /// Words of all buffers but the logits.
    fn words(&self) -> [usize; 11] {
        let Sizes { vocab, rows, sequences, .. } = *self;
        [
            rows * self.stride(),
            sequences * counts_words(vocab),
            self.counted_words(),
            sequences + 1,
            sequences * MAX_DRAFTS,
            rows * self.mask_words(),
            rows,
            rows * ACCEPTED,
            rows * TopLogprobs::words(TopLogprobs::MOST),
            TopLogprobs::workspace_len(rows, vocab, TopLogprobs::MOST),
            rows,
        ]
    }

    /// Words of what is counted at once: a longest sequence fits, and many short ones.
    fn counted_words(&self) -> usize {
        COUNTED * self.sequences + self.max_len
    }

    /// Bytes of the logits, and of the rest.
    pub fn bytes(&self) -> (usize, usize) {
        let words: usize = self.words().iter().sum();
        (self.rows * self.stride() * size_of::<f32>(), words * size_of::<u32>())
    }

    /// Words of a step's parameters, at most.
    pub fn most_params(&self) -> usize {
        self.rows * (WORDS + 2) + 2 * self.sequences * MAX_BIASES + 8
    }
}

/// A step's parameters in the packed inputs: rows, then biases, then who has drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Params {
    start: usize,
    rows: usize,
    biases: usize,
    samples: usize,
    adjusted: bool,
    /// Rows with a grammar.
    masks: usize,
    /// Most drafts of a sample; 0: nothing to accept.
    drafts: usize,
    /// Whether drafts are among the tokens instead of in the draft model's buffer.
    host_drafts: bool,
    /// Most log-probabilities that a row asks for, plus one; 0: none do.
    logprobs: usize,
}

impl Params {
    /// Whether masks must be there before the tokens are chosen.
    pub fn is_masked(&self) -> bool {
        self.masks > 0
    }

    fn biases_start(&self) -> usize {
        self.start + self.rows * WORDS
    }

    fn table_start(&self) -> usize {
        (self.biases_start() + 2 * self.biases).next_multiple_of(4)
    }

    /// The end of the packed inputs.
    pub fn end(&self) -> usize {
        if self.drafts > 0 { self.table_start() + 2 * self.samples } else { self.biases_start() + 2 * self.biases }
    }
}

/// Pinned memory of one step.
pub(super) struct SampleStaging {
    outputs: Pinned,
    counted: Pinned,
    masks: Pinned,
}

impl SampleStaging {
    pub fn bytes(&self) -> usize {
        self.outputs.len() + self.counted.len() + self.masks.len()
    }
}

impl Sampler {
    /// Allocates everything.
    pub fn new(stream: &Stream, sizes: Sizes) -> Result<Self> {
        let device = stream.device();
        let [scratch, counts, counted, last_tokens, drafts, masks, tokens, accepted, top, top_workspace, arrivals] =
            sizes.words();
        let u32s = |len| Buffer::new(device, DType::U32, len);
        let mut sampler = Sampler {
            logits: Buffer::new(device, DType::F32, sizes.rows * sizes.stride())?,
            scratch: Buffer::new(device, DType::F32, scratch)?,
            counts: u32s(counts)?,
            counted: u32s(counted)?,
            last_tokens: u32s(last_tokens)?,
            drafts: u32s(drafts)?,
            masks: u32s(masks)?,
            tokens: u32s(tokens)?,
            accepted: u32s(accepted)?,
            top: u32s(top)?,
            top_workspace: u32s(top_workspace)?,
            top_arrivals: u32s(arrivals)?,
            synthetic_acceptance: None,
            sizes,
        };
        let Sampler { counts, last_tokens, drafts, top, top_arrivals, .. } = &mut sampler;
        // Of the log-probabilities whole rows come back, also of those that ask for fewer.
        for buffer in [counts, last_tokens, drafts, top, top_arrivals] {
            stream.fill(buffer.view_mut(), 0)?;
        }
        Ok(sampler)
    }

    /// Pinned memory for one step.
    pub fn staging(&self, device: &Device) -> Result<SampleStaging> {
        let row = ACCEPTED + TopLogprobs::words(TopLogprobs::MOST);
        Ok(SampleStaging {
            outputs: Pinned::new(device, self.sizes.rows * row * size_of::<u32>())?,
            counted: Pinned::new(device, self.sizes.counted_words() * size_of::<u32>())?,
            masks: Pinned::new(device, self.sizes.rows * self.sizes.mask_words() * size_of::<u32>())?,
        })
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
    pub fn logits_mut(&mut self, rows: usize) -> ViewMut<'_> {
        self.logits.matrix_mut(rows, self.sizes.stride()).columns(0, self.sizes.vocab)
    }

    /// Where a draft model's head writes: f32 [rows, vocab], its vocabulary being no larger than the target's.
    pub fn draft_logits_mut(&mut self, rows: usize, vocab: usize) -> ViewMut<'_> {
        self.logits.matrix_mut(rows, self.sizes.stride()).columns(0, vocab)
    }

    /// Chooses drafts: the likeliest token of every row goes where its parameters' `seq_slot` says among the drafts.
    pub fn draft(&mut self, stream: &Stream, params: View<'_>, vocab: usize) -> Result<()> {
        let rows = params.rows();
        Ok(Sample {
            logits: self.logits.matrix(rows, self.sizes.stride()).columns(0, vocab),
            params,
            out: self.tokens.matrix_mut(1, rows),
            last_tokens: Some(self.drafts.view_mut()),
            adjust: None,
        }
        .launch(stream)?)
    }

    /// Rows of logits.
    pub fn max_rows(&self) -> usize {
        self.sizes.rows
    }

    /// Copies `rows` rows of logits to the host and waits: [rows, vocab].
    pub fn download_logits(&self, stream: &Stream, rows: usize, into: &mut Vec<f32>) -> Result<()> {
        let Sizes { vocab, rows: most, .. } = self.sizes;
        into.resize(rows * vocab, 0.0);
        for (row, into) in into.chunks_mut(vocab).enumerate() {
            let from = self.logits.matrix(most, self.sizes.stride()).row_range(row, 1).columns(0, vocab);
            stream.download(from, into)?;
        }
        Ok(())
    }

    /// Counts the tokens of sequences with penalties that take a slot with this step.
    pub fn enter(&mut self, stream: &Stream, plan: &StepPlan, staging: &mut SampleStaging) -> Result<()> {
        let has_penalties = |sampling: &crate::sampling::SamplingParams| {
            sampling.repetition_penalty != 1.0 || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0
        };
        let mut entering = plan.entering.iter().filter(|entering| has_penalties(&entering.sampling)).peekable();
        let Sizes { vocab, sequences, .. } = self.sizes;
        while entering.peek().is_some() {
            // As many as fit; more wait for the copy of these.
            let words = staging.counted.host::<u32>()?;
            let (rows, tokens) = words.split_at_mut(COUNTED * sequences);
            let (mut count, mut used) = (0, 0);
            while let Some(next) = entering.peek()
                && count < sequences
                && used + next.prompt.len() + next.generated.len() <= tokens.len()
            {
                let len = next.prompt.len() + next.generated.len();
                let (prompt, generated) = tokens[used..used + len].split_at_mut(next.prompt.len());
                prompt.copy_from_slice(&next.prompt);
                generated.copy_from_slice(&next.generated);
                rows[COUNTED * count..][..COUNTED].copy_from_slice(&[
                    next.seq_slot,
                    used as u32,
                    next.prompt.len() as u32,
                    len as u32,
                ]);
                (count, used) = (count + 1, used + len);
                entering.next();
            }
            assert!(count > 0, "a sequence of more than {} tokens", tokens.len());
            let (at, end) = (COUNTED * sequences, COUNTED * sequences + used);
            stream.upload_pinned(&mut staging.counted, 0, self.counted.view_mut().columns(0, end))?;
            CountTokens {
                tokens: self.counted.view().columns(at, used),
                rows: self.counted.view().columns(0, COUNTED * count).matrix(count, COUNTED),
                counts: self.counts.matrix_mut(sequences, counts_words(vocab)),
                vocab,
            }
            .launch(stream)?;
        }
        Ok(())
    }

    /// Writes the parameters of the plan's rows from word `start` on. `tokens` is where the plan's tokens are among the
    /// packed inputs: host-given drafts are there.
    /// `queries`: as [`Layout::write`](super::layout::Layout::write) takes it.
    pub fn write(&self, plan: &StepPlan, queries: usize, start: usize, words: &mut [u32]) -> Params {
        let rows: usize = plan.samples.iter().map(|sample| 1 + sample.drafts as usize).sum();
        let drafts = plan.samples.iter().map(|sample| sample.drafts as usize).max().unwrap_or(0);
        // Drafts of the host are among the tokens; of a draft model in its buffer.
        let host_drafts = plan
            .samples
            .iter()
            .filter(|sample| sample.drafts > 0)
            .all(|sample| !(FROM_DRAFT..FROM_SLOT).contains(&plan.tokens[sample.row as usize + 1]));
        let mut params = Params { start, rows, drafts, host_drafts, samples: plan.samples.len(), ..Params::default() };
        let (into, lists) = words[start..].split_at_mut(rows * WORDS);
        let mut into = into.chunks_exact_mut(WORDS);
        let mut row = 0;
        for (i, sample) in plan.samples.iter().enumerate() {
            let mut device = device_params(sample);
            let biases = Biases::of(sample);
            device.draft_start = match host_drafts {
                true if queries > 1 => (i * queries) as u32 + 1,
                true => sample.row + 1,
                false => sample.seq_slot * MAX_DRAFTS as u32,
            };
            let first_bias = params.biases;
            for (pair, (token, bias)) in lists[2 * first_bias..].chunks_exact_mut(2).zip(biases.list()) {
                pair.copy_from_slice(&[token, bias.to_bits()]);
            }
            params.biases += biases.len();
            params.logprobs = params.logprobs.max(device.logprobs as usize);
            let masked = sample.sampling.grammar.is_some();
            let needs = device.needs_scratch() || masked || biases.len() > 0;
            params.adjusted |= needs;
            for draft in 0..=sample.drafts {
                let scratch_row = if needs { row } else { sample::SamplingParams::NONE };
                let position = sample.position + draft;
                let own = biases.at(position);
                let (bias_start, bias_len) = ((first_bias + own.start) as u32, own.len() as u32);
                let mask_row = if masked { params.masks as u32 } else { sample::SamplingParams::NONE };
                params.masks += usize::from(masked);
                let device = sample::SamplingParams {
                    position,
                    scratch_row,
                    mask_row,
                    bias_start,
                    bias_len,
                    draft_len: draft,
                    ..device
                };
                if let Some(into) = into.next() {
                    into.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&device)));
                }
                row += 1;
            }
        }
        if drafts > 0 {
            let mut first = 0;
            let table = words[params.table_start()..].chunks_exact_mut(2);
            for (entry, sample) in table.zip(&plan.samples) {
                entry.copy_from_slice(&[first, sample.drafts]);
                first += 1 + sample.drafts;
            }
        }
        params
    }

    /// Queues the masks' way to the device. `fill` writes all of them: so many rows, of so many words each.
    pub fn upload_masks(
        &mut self,
        stream: &Stream,
        params: Params,
        staging: &mut SampleStaging,
        fill: impl FnOnce(&mut [u32], usize),
    ) -> Result<()> {
        let words = self.sizes.mask_words();
        let len = params.masks * words;
        fill(&mut staging.masks.host::<u32>()?[..len], words);
        Ok(stream.upload_pinned(&mut staging.masks, 0, self.masks.matrix_mut(1, len))?)
    }

    /// Chooses the tokens of the rows whose logits are there, and queues their way to the host. `tokens`: the step's.
    pub fn sample(
        &mut self,
        stream: &Stream,
        packed: &Buffer,
        tokens: View<'_>,
        params: Params,
        staging: &mut SampleStaging,
    ) -> Result<()> {
        let (Params { rows, samples, .. }, Sizes { vocab, sequences, .. }) = (params, self.sizes);
        if rows == 0 {
            return Ok(());
        }
        let stride = self.sizes.stride();
        let section =
            |start: usize, rows: usize, cols: usize| packed.view().columns(start, rows * cols).matrix(rows, cols);
        let rows_params = section(params.start, rows, WORDS);
        let logits = self.logits.matrix(rows, stride).columns(0, vocab);
        let drafts = if params.host_drafts { tokens } else { self.drafts.view() };
        let biases = section(params.biases_start(), params.biases, 2);
        let adjust = Adjust {
            counts: Some(self.counts.matrix_mut(sequences, counts_words(vocab))),
            biases: (params.biases > 0).then_some(biases),
            masks: (params.masks > 0).then(|| self.masks.matrix(params.masks, self.sizes.mask_words())),
            drafts: (params.drafts > 0).then_some(drafts),
            scratch: self.scratch.matrix_mut(rows, stride).columns(0, vocab),
        };
        Sample {
            logits,
            params: rows_params,
            out: self.tokens.matrix_mut(1, rows),
            last_tokens: Some(self.last_tokens.view_mut()),
            adjust: params.adjusted.then_some(adjust),
        }
        .launch(stream)?;
        let mut end = 0;
        let mut download = |from: View<'_>| -> Result<()> {
            let words = from.rows() * from.cols();
            stream.download_pinned(from, &mut staging.outputs, end * size_of::<u32>())?;
            end += words;
            Ok(())
        };
        if params.drafts > 0 {
            AcceptDrafts {
                table: section(params.table_start(), samples, 2),
                sampled: self.tokens.matrix(1, rows),
                params: rows_params,
                drafts,
                last_tokens: Some(self.last_tokens.view_mut()),
                counts: Some(self.counts.matrix_mut(sequences, counts_words(vocab))),
                vocab,
                synthetic: self.synthetic_acceptance,
                out: self.accepted.matrix_mut(samples, params.drafts + 2),
            }
            .launch(stream)?;
            download(self.accepted.matrix(samples, params.drafts + 2))?;
        } else {
            download(self.tokens.matrix(1, rows))?;
        }
        if params.logprobs > 0 {
            let width = TopLogprobs::words(params.logprobs - 1);
            TopLogprobs {
                logits,
                params: rows_params,
                tokens: Some(self.tokens.matrix(1, rows)),
                arrivals: self.top_arrivals.view_mut(),
                workspace: self.top_workspace.view_mut(),
                out: self.top.matrix_mut(rows, width),
            }
            .launch(stream)?;
            download(self.top.matrix(rows, width))?;
        }
        Ok(())
    }

    /// Launches what [`Sampler::sample`] and [`Sampler::enter`] may launch, for a stream that only loads kernels.
    pub fn prepare(&mut self, stream: &Stream, packed: &Buffer, staging: &mut SampleStaging) -> Result<()> {
        let one = Params { rows: 1, samples: 1, ..Params::default() };
        for params in [one, Params { adjusted: true, drafts: 1, logprobs: 1, ..one }] {
            self.sample(stream, packed, packed.view(), params, staging)?;
        }
        let Sizes { vocab, sequences, .. } = self.sizes;
        let counts = self.counts.matrix_mut(sequences, counts_words(vocab));
        let (tokens, rows) = (self.counted.view().columns(0, 1), self.counted.matrix(1, COUNTED));
        Ok(CountTokens { tokens, rows, counts, vocab }.launch(stream)?)
    }

    /// What came back.
    pub fn collect(&self, wanted: &Wanted, staging: &mut SampleStaging) -> Result<Vec<Sampled>> {
        let words = staging.outputs.host::<u32>()?;
        let (params, samples) = (wanted.params, wanted.logprobs.len());
        let width = if params.drafts > 0 { params.drafts + 2 } else { 1 };
        let (tokens, rest) = words.split_at(samples * width);
        let mut out = Vec::with_capacity(samples);
        let mut row = 0;
        for ((i, words), asked) in tokens.chunks_exact(width).enumerate().zip(&wanted.logprobs) {
            let tokens = match words {
                [token] => vec![*token],
                [accepted, tokens @ ..] => tokens[..=(*accepted as usize).min(tokens.len() - 1)].to_vec(),
                [] => Vec::new(),
            };
            let logprobs = match asked {
                Some(n) => {
                    let width = TopLogprobs::words(params.logprobs - 1);
                    rest[row * width..].chunks_exact(width).take(tokens.len()).map(|row| logprobs(row, *n)).collect()
                }
                None => Vec::new(),
            };
            row += 1 + wanted.drafts.get(i).map_or(0, |drafts| *drafts as usize);
            out.push(Sampled { tokens, logprobs });
        }
        Ok(out)
    }
}

/// What a step in flight will bring.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    params: Params,
    /// Log-probabilities that each sample asks for.
    logprobs: Vec<Option<u32>>,
    /// Drafts of each sample; empty if none has any.
    drafts: Vec<u32>,
}

impl Wanted {
    pub fn of(plan: &StepPlan, params: Params) -> Self {
        let drafts = plan.samples.iter().map(|sample| sample.drafts);
        Wanted {
            params,
            logprobs: plan.samples.iter().map(|sample| sample.sampling.logprobs).collect(),
            drafts: if params.drafts > 0 { drafts.collect() } else { Vec::new() },
        }
    }
}

/// A row of log-probabilities, of which `n` were asked for.
fn logprobs(words: &[u32], n: u32) -> TokenLogprobs {
    let TopRow { logprob, rank, mut top, .. } = TopRow::read(words);
    top.truncate(n as usize);
    TokenLogprobs { logprob, rank, top }
}

fn device_params(sample: &SampleRow) -> sample::SamplingParams {
    let sampling = &*sample.sampling;
    sample::SamplingParams {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        top_k: sampling.top_k,
        seed_lo: sampling.seed as u32,
        seed_hi: (sampling.seed >> 32) as u32,
        position: sample.position,
        seq_slot: sample.seq_slot,
        flags: if sample.drafts > 0 { sample::SamplingParams::DRAFTED } else { 0 },
        logprobs: sampling.logprobs.map_or(0, |n| n.min(TopLogprobs::MOST as u32) + 1),
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        ..sample::SamplingParams::GREEDY
    }
}
