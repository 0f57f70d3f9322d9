//! Launcher, reference and cases of `kernels-gpu/src/sample/count.rs`.
use super::adjust::{check_counts, count, counts_words};
use super::token::vectors;
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Work};
use crate::{Buffer, Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::sample::adjust::IN_PROMPT;
use kernels_gpu::sample::count as gpu;
use std::collections::HashMap;

/// Makes rows of `counts` from the tokens of the sequences that take their slots: what `Sample`'s penalties read.
pub struct CountTokens<'a> {
    /// u32 [1, n]: the sequences' tokens. Those not below `vocab` are not counted.
    pub tokens: View<'a>,
    /// u32 [sequences, 4], 16-byte aligned: slot, first of the sequence's tokens, length of its prompt, length in all.
    /// The slots must differ; a slot that is not there is skipped.
    pub rows: View<'a>,
    /// u32 [slots, [`counts_words`]\(vocab)], as in `Adjust`.
    pub counts: ViewMut<'a>,
    /// Tokens that there are.
    pub vocab: usize,
}

impl CountTokens<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let CountTokens { tokens, rows, mut counts, vocab } = self;
        let mut check = Check::new("count_tokens");
        check.typed("tokens", &tokens, DType::U32, ["1", "tokens"])?;
        check.typed("rows", &rows, DType::U32, ["sequences", "4"])?;
        check.require(rows.is_contiguous(), || "rows must have no gaps between them".into())?;
        vectors(&check, "rows", &rows)?;
        check_counts(&mut check, &counts.as_view(), vocab)?;
        if stream.is_cpu() {
            let tokens = tokens.row::<u32>(0);
            (0..rows.rows()).for_each(|row| reference(tokens, rows.row(row), &mut counts, vocab));
            return Ok(());
        }
        let args = gpu::CountTokens {
            tokens: tokens.ptr(),
            rows: rows.ptr(),
            counts: counts.ptr(),
            token_count: tokens.cols() as u32,
            vocab: vocab as u32,
            slots: counts.rows() as u32,
            words: counts.cols() as u32,
            counts_stride: counts.stride() as u32,
        };
        // SAFETY: one block per row; the kernel compares slots, places and tokens with the numbers of those that there are,
        // and `counts` was checked to have a word for each two of `vocab` tokens.
        unsafe { stream.launch(gpu::count_tokens, Launch::grid(rows.rows()).dependent(), &args) }
    }
}

/// The CPU device's kernel.
fn reference(tokens: &[u32], row: &[u32], counts: &mut ViewMut<'_>, vocab: usize) {
    let (slot, [start, prompt, len]) = (row[0], [row[1], row[2], row[3]].map(|x| x as usize));
    if slot as usize >= counts.rows() {
        return;
    }
    counts.row_mut::<u32>(slot as usize).fill(0);
    let tokens = tokens.iter().skip(start).take(len).enumerate().filter(|&(_, &token)| (token as usize) < vocab);
    for (index, &token) in tokens {
        if index < prompt {
            counts.row_mut::<u32>(slot as usize)[token as usize / 2] |= IN_PROMPT << (token % 2 * 16);
        } else {
            count(counts, slot, token);
        }
    }
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "sample/count",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for (sequences, vocab, prompt, answer, distinct) in [
                (1, 128_256, 8192, 1000, 128_256),
                (64, 128_256, 2048, 256, 5000),
                (3, 5003, 100, 3000, 7),
                (2, 1, 3, 5, 1),
                (5, 9, 0, 0, 9),
                // More than 15 bits of one token.
                (2, 300, 10, 40_000, 1),
            ] {
                cases.push(Box::new(Problem { sequences, vocab, prompt, answer, distinct }));
            }
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (1usize..6, 1usize..3000, 0usize..2000, 0usize..2000, 1usize..3000)
                .prop_map(|(sequences, vocab, prompt, answer, distinct)| {
                    Box::new(Problem { sequences, vocab, prompt, answer, distinct }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    sequences: usize,
    vocab: usize,
    /// Most tokens of a prompt and of an answer; the first sequence has as many.
    prompt: usize,
    answer: usize,
    /// Different tokens, of which a few are beyond the vocabulary where there are more.
    distinct: usize,
}

impl Case for Problem {
    fn id(&self) -> String {
        let Problem { sequences, vocab, prompt, answer, distinct } = self;
        format!("count sequences={sequences} vocab={vocab} prompt={prompt} answer={answer} distinct={distinct}")
    }

    fn work(&self) -> Work {
        let bytes = self.sequences * (self.vocab * 2 + (self.prompt + self.answer) * 36);
        Work { bytes: bytes as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.vocab == 128_256
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        // A gap before each sequence's tokens; slots in falling order, the last of the table for nobody.
        let (mut tokens, mut rows) = (Vec::new(), Vec::new());
        for sequence in 0..self.sequences {
            let whole = sequence == 0;
            let prompt = if whole { self.prompt } else { rng.below(self.prompt + 1) };
            let answer = if whole { self.answer } else { rng.below(self.answer + 1) };
            tokens.push(0);
            rows.extend([self.sequences - 1 - sequence, tokens.len(), prompt, prompt + answer].map(|x| x as u32));
            tokens.extend((0..prompt + answer).map(|_| rng.below(self.distinct) as u32));
        }
        rows.extend([self.sequences as u32 + 1, 0, 1, 2]);
        let mut buffers = [tokens.len(), rows.len()].map(|len| Buffer::new(stream.device(), DType::U32, len));
        for (buffer, values) in buffers.iter_mut().zip([&tokens, &rows]) {
            if let Ok(buffer) = buffer {
                stream.upload(values, buffer.view_mut())?;
            }
        }
        let [device_tokens, device_rows] = buffers;
        let counts = Buffer::new(stream.device(), DType::U32, (self.sequences + 1) * counts_words(self.vocab))?;
        let (device_tokens, device_rows) = (device_tokens?, device_rows?);
        Ok(Box::new(Data { problem: *self, tokens, rows, device_tokens, device_rows, counts }))
    }
}

struct Data {
    problem: Problem,
    tokens: Vec<u32>,
    rows: Vec<u32>,
    device_tokens: Buffer,
    device_rows: Buffer,
    counts: Buffer,
}

/// What the rows hold before.
const FORMER: u32 = 0xdead_beef;

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { sequences, vocab, .. } = self.problem;
        CountTokens {
            tokens: self.device_tokens.view(),
            rows: self.device_rows.matrix(self.rows.len() / 4, 4),
            counts: self.counts.matrix_mut(sequences + 1, counts_words(vocab)),
            vocab,
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        stream.upload(&vec![FORMER; self.counts.len()], self.counts.view_mut())?;
        self.launch(stream)?;
        Ok(vec![Output::of("counts", &self.counts, stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let found = &self.outputs(stream)?[0].bytes;
        let found: Vec<u16> = found.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let width = 2 * counts_words(self.problem.vocab);
        for row in self.rows.chunks(4).take(self.problem.sequences) {
            let [slot, start, prompt, len] = [row[0], row[1], row[2], row[3]].map(|x| x as usize);
            let mut expected: HashMap<u32, (bool, usize)> = HashMap::new();
            for (index, &token) in self.tokens[start..start + len].iter().enumerate() {
                let (in_prompt, times) = expected.entry(token).or_default();
                if index < prompt { *in_prompt = true } else { *times += 1 }
            }
            for token in 0..width {
                // Beyond the vocabulary all is zero.
                let known = expected.get(&(token as u32)).filter(|_| token < self.problem.vocab);
                let (in_prompt, times) = known.copied().unwrap_or_default();
                let expected = u16::from(in_prompt) << 15 | times.min(32_767) as u16;
                let found = found[slot * width + token];
                if found != expected {
                    let what = format!("count of {token} in slot {slot} is {found:#x}, expected {expected:#x}");
                    return Err(Mismatch::Other(what));
                }
            }
        }
        let nobodys = &found[self.problem.sequences * width..];
        if nobodys.chunks(2).any(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16 != FORMER) {
            return Err(Mismatch::Other("a slot changed that no row names".into()));
        }
        Ok(())
    }
}
