//! Cases of the sampling kernel with penalties, biases and masks, checked against their definitions.
use super::problem::Logits;
use super::token::{Sample, sample_row};
use super::{Adjust, SamplingParams, counts_words};
use crate::case::{Case, Mismatch, Output, Prepared, Rng, Work};
use crate::{Buffer, DType, Error, Stream};

pub(super) fn pinned() -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for (rows, vocab, greedy) in [
        (64, 128_256, true),
        (64, 128_256, false),
        (3, 128_256, false),
        (40, 1000, true),
        (40, 1003, false),
        (30, 37, false),
        (9, 1, true),
        (10, 32_003, false),
    ] {
        cases.push(Box::new(Problem { rows, vocab, greedy, logits: Logits::Normal }));
    }
    for logits in [Logits::Ties, Logits::Special, Logits::Nothing] {
        cases.push(Box::new(Problem { rows: 20, vocab: 2500, greedy: false, logits }));
    }
    cases
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    pub rows: usize,
    pub vocab: usize,
    pub greedy: bool,
    pub logits: Logits,
}

/// A sequence so far.
#[derive(Clone, Debug)]
struct History {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// Tables and parameters of all rows.
struct Tables {
    params: Vec<SamplingParams>,
    histories: Vec<History>,
    biases: Vec<u32>,
    masks: Vec<u32>,
    drafts: Vec<u32>,
}

impl Problem {
    /// Tokens that histories, drafts and biases are about: few, and made probable, so that they matter.
    fn favourite(&self, rng: &mut Rng) -> u32 {
        (rng.below(30) * 97 % self.vocab) as u32
    }

    fn history(&self, rng: &mut Rng) -> History {
        let mut tokens = |len: usize| (0..rng.below(len)).map(|_| self.favourite(rng)).collect::<Vec<u32>>();
        let (prompt, mut answer) = (tokens(20), tokens(40));
        if rng.below(4) == 0 {
            // The count is at its end.
            answer = vec![self.favourite(rng); 32_767];
        }
        History { prompt, answer }
    }

    fn tables(&self, rng: &mut Rng) -> Tables {
        let words = self.vocab.div_ceil(32);
        let mut tables = Tables {
            params: Vec::new(),
            histories: (0..self.rows).map(|_| self.history(rng)).collect(),
            biases: vec![0, f32::NEG_INFINITY.to_bits()],
            masks: (0..2 * words).map(|_| (rng.bits() & rng.bits()) as u32).collect(),
            drafts: vec![0, 0, 0],
        };
        // The third allows nothing.
        tables.masks.extend(vec![0; words]);
        while tables.params.len() < self.rows {
            self.add_sequence(rng, &mut tables);
        }
        tables
    }

    /// A row, or three of one sequence with drafts.
    fn add_sequence(&self, rng: &mut Rng, tables: &mut Tables) {
        let (row, bits) = (tables.params.len() as u32, rng.bits());
        let mut params = SamplingParams {
            temperature: if self.greedy { 0.0 } else { [0.5, 1.0, 1.5][rng.below(3)] },
            top_k: [0, 7][rng.below(2)],
            top_p: [1.0, 0.9][rng.below(2)],
            seed_lo: bits as u32,
            seed_hi: (bits >> 32) as u32,
            position: rng.below(1000) as u32,
            seq_slot: row,
            ..SamplingParams::GREEDY
        };
        // In turn, so that few rows have all of them: plain, penalties, biases, masks, all of these, drafts, nonsense.
        let kind = row % 7;
        if kind > 0 {
            params.scratch_row = self.rows as u32 - 1 - row;
        }
        if [1, 4, 5, 6].contains(&kind) {
            params.repetition_penalty = [1.0, 1.3, 0.8][rng.below(3)];
            params.presence_penalty = [0.0, 0.7, -0.4][rng.below(3)];
            params.frequency_penalty = [0.1, 1.2, -0.2][rng.below(3)];
        }
        if [2, 4, 5].contains(&kind) {
            self.add_biases(rng, tables, &mut params);
        }
        if [3, 4, 5].contains(&kind) {
            params.mask_row = [0, 1, 0, 1, 2][rng.below(5)];
        }
        if kind == 6 {
            // Places that are not there.
            (params.seq_slot, params.mask_row) = (SamplingParams::NONE, 3);
            (params.bias_start, params.bias_len) = (u32::MAX - 1, 17);
            (params.draft_start, params.draft_len) = (u32::MAX - 1, 3);
        }
        if kind == 5 && row as usize + 3 <= self.rows {
            params.draft_start = tables.drafts.len() as u32;
            let token = self.favourite(rng);
            tables.drafts.extend([token, [token, self.favourite(rng)][rng.below(2)]]);
            params.flags = SamplingParams::DRAFTED;
            tables.params.extend((0..2).map(|draft_len| SamplingParams {
                draft_len,
                position: params.position + draft_len,
                scratch_row: params.scratch_row - draft_len,
                ..params
            }));
            (params.draft_len, params.position) = (2, params.position + 2);
            params.scratch_row -= 2;
        }
        tables.params.push(params);
    }

    fn add_biases(&self, rng: &mut Rng, tables: &mut Tables, params: &mut SamplingParams) {
        let mut tokens: Vec<u32> = (0..rng.below(30)).map(|_| self.favourite(rng)).collect();
        // A real list of OpenAI's length, and a token that is not there.
        tokens.extend((0..if rng.below(3) == 0 { 300 } else { 0 }).map(|_| rng.below(self.vocab) as u32));
        tokens.push(self.vocab as u32);
        tokens.sort_unstable();
        tokens.dedup();
        params.bias_start = tables.biases.len() as u32 / 2;
        params.bias_len = tokens.len() as u32;
        for token in tokens {
            let bias = [f32::NEG_INFINITY, -3.0, 1.5, 4.0][rng.below(4)];
            tables.biases.extend([token, bias.to_bits()]);
        }
    }

    fn data(&self, stream: &Stream, seed: u64) -> Result<Data, Error> {
        let mut rng = Rng::new(seed);
        let tables = self.tables(&mut rng);
        let stride = self.vocab.next_multiple_of(4);
        // What lies between rows would win.
        let mut logits = vec![f32::MAX; self.rows * stride];
        for row in logits.chunks_mut(stride) {
            row[..self.vocab].fill_with(|| self.logits.draw(&mut rng, 2.0, self.vocab));
            for _ in 0..20 {
                row[self.favourite(&mut rng) as usize] += 4.0;
            }
        }
        let upload = |words: &[u32]| -> Result<Buffer, Error> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, words.len())?;
            stream.upload(words, buffer.view_mut())?;
            Ok(buffer)
        };
        let f32s = |len| Buffer::new(stream.device(), DType::F32, len);
        let mut device_logits = f32s(logits.len())?;
        stream.upload(&logits, device_logits.view_mut())?;
        let counts = tables.counts(self.vocab);
        Ok(Data {
            problem: *self,
            device_logits,
            device_params: upload(bytemuck::cast_slice(&tables.params))?,
            device_biases: upload(&tables.biases)?,
            device_masks: upload(&tables.masks)?,
            device_drafts: upload(&tables.drafts)?,
            device_counts: upload(&counts)?,
            scratch: f32s(logits.len())?,
            last_tokens: upload(&vec![0; self.rows])?,
            out: upload(&vec![0; self.rows])?,
            logits,
            tables,
            counts,
        })
    }
}

impl Tables {
    fn counts(&self, vocab: usize) -> Vec<u32> {
        let width = 2 * counts_words(vocab);
        let mut counts = vec![0u16; self.histories.len() * width];
        for (history, counts) in self.histories.iter().zip(counts.chunks_mut(width)) {
            history.prompt.iter().for_each(|&token| counts[token as usize] |= 1 << 15);
            history.answer.iter().for_each(|&token| counts[token as usize] += 1);
        }
        counts.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
    }

    /// A row's logits by the definitions.
    fn adjusted(&self, logits: &[f32], params: &SamplingParams) -> Vec<f32> {
        let mut x = logits.to_vec();
        if params.scratch_row == SamplingParams::NONE {
            return x;
        }
        if let Some(history) = self.histories.get(params.seq_slot as usize).filter(|_| params.has_penalties()) {
            let drafts = &self.drafts[params.draft_start as usize..][..params.draft_len as usize];
            let answer: Vec<u32> = history.answer.iter().chain(drafts).copied().collect();
            let mut seen: Vec<u32> = history.prompt.iter().chain(&answer).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                let (logit, times) = (&mut x[token as usize], answer.iter().filter(|&&t| t == token).count());
                let r = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
                *logit -= params.frequency_penalty * times.min(32_767) as f32;
                *logit -= if times > 0 { params.presence_penalty } else { 0.0 };
            }
        }
        let biases = self.biases.chunks(2).skip(params.bias_start as usize).take(params.bias_len as usize);
        for pair in biases.filter(|pair| (pair[0] as usize) < logits.len()) {
            x[pair[0] as usize] += f32::from_bits(pair[1]);
        }
        let words = logits.len().div_ceil(32);
        if let Some(mask) = self.masks.chunks(words).nth(params.mask_row as usize) {
            let banned = |token: usize| mask[token / 32] & 1 << (token % 32) == 0;
            (0..x.len()).filter(|&token| banned(token)).for_each(|token| x[token] = f32::NEG_INFINITY);
        }
        x
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        let Problem { rows, vocab, greedy, logits } = self;
        format!("sample adjusted {logits:?} rows={rows} vocab={vocab} greedy={greedy}")
    }

    fn work(&self) -> Work {
        // Most rows are written and read once more, and half of them have counts.
        Work { bytes: (self.rows * (self.vocab * 12 + 84)) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.rows == 64
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        Ok(Box::new(self.data(stream, seed)?))
    }
}

struct Data {
    problem: Problem,
    logits: Vec<f32>,
    tables: Tables,
    counts: Vec<u32>,
    device_logits: Buffer,
    device_params: Buffer,
    device_biases: Buffer,
    device_masks: Buffer,
    device_drafts: Buffer,
    device_counts: Buffer,
    scratch: Buffer,
    last_tokens: Buffer,
    out: Buffer,
}

/// What outputs hold before.
const FORMER: u32 = 0x7654_3210;

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { rows, vocab, .. } = self.problem;
        let stride = vocab.next_multiple_of(4);
        Sample {
            logits: self.device_logits.matrix(rows, stride).columns(0, vocab),
            params: self.device_params.matrix(rows, SamplingParams::WORDS),
            out: self.out.view_mut(),
            last_tokens: Some(self.last_tokens.view_mut()),
            adjust: Some(Adjust {
                counts: Some(self.device_counts.matrix_mut(rows, counts_words(vocab))),
                biases: Some(self.device_biases.matrix(self.tables.biases.len() / 2, 2)),
                masks: Some(self.device_masks.matrix(3, vocab.div_ceil(32))),
                drafts: Some(self.device_drafts.view()),
                scratch: self.scratch.matrix_mut(rows, stride).columns(0, vocab),
            }),
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        let former = vec![FORMER; self.problem.rows];
        stream.upload(&former, self.out.view_mut())?;
        stream.upload(&former, self.last_tokens.view_mut())?;
        stream.upload(&self.counts, self.device_counts.view_mut())?;
        self.launch(stream)?;
        let outputs = [
            ("tokens", &self.out),
            ("last_tokens", &self.last_tokens),
            ("counts", &self.device_counts),
            ("logits", &self.device_logits),
        ];
        outputs.into_iter().map(|(name, buffer)| Output::of(name, buffer, stream)).collect()
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let outputs = self.outputs(stream)?;
        let Problem { rows, vocab, .. } = self.problem;
        let stride = vocab.next_multiple_of(4);
        let mut expected: [Vec<u32>; 4] = [Vec::new(), vec![FORMER; rows], self.counts.clone(), Vec::new()];
        // The raw logits are still there.
        expected[3] = self.logits.iter().map(|x| x.to_bits()).collect();
        for (row, params) in self.tables.params.iter().enumerate() {
            let adjusted = self.tables.adjusted(&self.logits[row * stride..][..vocab], params);
            let token = sample_row(&adjusted, params);
            expected[0].push(token);
            let slot = params.seq_slot as usize;
            if slot >= rows || params.flags != 0 {
                continue;
            }
            expected[1][slot] = token;
            let (word, shift) = (slot * counts_words(vocab) + token as usize / 2, token % 2 * 16);
            let word = &mut expected[2][word];
            if params.has_penalties() && *word >> shift & 0x7fff < 0x7fff {
                *word += 1 << shift;
            }
        }
        for (output, expected) in outputs.iter().zip(&expected) {
            let found = output.words();
            if let Some(at) = (0..expected.len()).find(|&i| found[i] != expected[i]) {
                let params = self.tables.params.get(at);
                let what = format!("{}[{at}] is {}, expected {} ({params:?})", output.name, found[at], expected[at]);
                return Err(Mismatch::Other(what));
            }
        }
        Ok(())
    }
}
