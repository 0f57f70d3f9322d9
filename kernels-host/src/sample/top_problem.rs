//! Cases of the log-probabilities, checked against the definitions in f64.
use super::problem::Logits;
use super::{SamplingParams, TopLogprobs, TopRow};
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Work};
use crate::{Buffer, DType, Error, Stream};
use kernels_gpu::sample::top as gpu;
use std::cmp::Ordering;

/// Tests and benches.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "sample/top",
        entries: gpu::ENTRIES.to_vec(),
        pinned,
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            let kinds = vec![Logits::Normal, Logits::Ties, Logits::Special, Logits::Peaked, Logits::Nothing];
            let vocab = prop_oneof![1usize..70, 70usize..9000, 9000usize..40_000];
            (1usize..5, vocab, 0usize..3, prop::sample::select(kinds), 0usize..=64, -3f32..3.0)
                .prop_map(|(rows, vocab, pad, logits, n, spread)| {
                    let spread = spread.exp();
                    Box::new(Problem { rows, vocab, pad, logits, n, spread, all: false }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

fn pinned() -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    let mut add = |rows, vocab, pad, logits, n| {
        let all = vocab == 128_256;
        cases.push(Box::new(Problem { rows, vocab, pad, logits, n, spread: 2.5, all }));
    };
    for rows in [1, 32, 256] {
        for n in [0, 5, 20] {
            add(rows, 128_256, 0, Logits::Normal, n);
        }
    }
    add(8, 128_256, 0, Logits::Normal, 64);
    for (vocab, n) in [(1, 3), (3, 3), (37, 20), (700, 64), (4095, 20), (8193, 20), (32_003, 64), (262_144, 8)] {
        add(2, vocab, 1, Logits::Normal, n);
    }
    for logits in [Logits::Ties, Logits::Special, Logits::Peaked, Logits::Nothing] {
        add(4, 9001, 0, logits, 20);
    }
    cases
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    rows: usize,
    vocab: usize,
    /// Row stride beyond the vocabulary rounded up to 4, in fours.
    pad: usize,
    logits: Logits,
    /// Tokens that there is room for.
    n: usize,
    spread: f32,
    /// Whether all rows ask for n tokens: some for none otherwise.
    all: bool,
}

impl Case for Problem {
    fn id(&self) -> String {
        let Problem { rows, vocab, pad, logits, n, spread, .. } = self;
        format!("top {logits:?} rows={rows} vocab={vocab} pad={pad} n={n} spread={spread}")
    }

    fn work(&self) -> Work {
        Work { bytes: (self.rows * (self.vocab * 4 + 80 + 4 * TopLogprobs::words(self.n))) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.all
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let stride = self.vocab.next_multiple_of(4) + 4 * self.pad;
        let mut logits = vec![f32::MAX; self.rows * stride];
        for row in logits.chunks_mut(stride) {
            row[..self.vocab].fill_with(|| self.logits.draw(&mut rng, self.spread, self.vocab));
        }
        let wanted = |rng: &mut Rng| match self.all {
            true => self.n as u32 + 1,
            // None, the token's alone, fewer, more than there is room for.
            false => [0, 1, 2, self.n as u32 + 1, self.n as u32 + 9][rng.below(5)],
        };
        let params = (0..self.rows).map(|_| SamplingParams { logprobs: wanted(&mut rng), ..SamplingParams::GREEDY });
        let params: Vec<SamplingParams> = params.collect();
        let token = |rng: &mut Rng| match rng.below(6) {
            0 => [u32::MAX, self.vocab as u32][rng.below(2)],
            _ => rng.below(self.vocab) as u32,
        };
        let tokens: Vec<u32> = (0..self.rows).map(|_| token(&mut rng)).collect();
        let u32s = |len: usize| Buffer::new(stream.device(), DType::U32, len);
        let mut data = Data {
            problem: *self,
            device_logits: Buffer::new(stream.device(), DType::F32, logits.len())?,
            device_params: u32s(self.rows * SamplingParams::WORDS)?,
            device_tokens: u32s(self.rows)?,
            // As many as a larger launch needs, of which this one uses some.
            arrivals: u32s(self.rows + 3)?,
            workspace: u32s(TopLogprobs::workspace_len(self.rows, self.vocab, self.n) + 5)?,
            out: u32s(self.rows * TopLogprobs::words(self.n))?,
            logits,
            params,
            tokens,
        };
        stream.upload(&data.logits, data.device_logits.view_mut())?;
        stream.upload(&data.params, data.device_params.matrix_mut(self.rows, SamplingParams::WORDS))?;
        stream.upload(&data.tokens, data.device_tokens.view_mut())?;
        stream.fill(data.arrivals.view_mut(), 0)?;
        Ok(Box::new(data))
    }
}

struct Data {
    problem: Problem,
    logits: Vec<f32>,
    params: Vec<SamplingParams>,
    tokens: Vec<u32>,
    device_logits: Buffer,
    device_params: Buffer,
    device_tokens: Buffer,
    arrivals: Buffer,
    workspace: Buffer,
    out: Buffer,
}

/// What the output holds before.
const FORMER: u32 = 0x1234_5678;

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { rows, vocab, n, .. } = self.problem;
        TopLogprobs {
            logits: self.device_logits.matrix(rows, self.logits.len() / rows).columns(0, vocab),
            params: self.device_params.matrix(rows, SamplingParams::WORDS),
            tokens: Some(self.device_tokens.view()),
            arrivals: self.arrivals.view_mut(),
            workspace: self.workspace.view_mut(),
            out: self.out.matrix_mut(rows, TopLogprobs::words(n)),
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        stream.upload(&vec![FORMER; self.out.len()], self.out.view_mut())?;
        self.launch(stream)?;
        let out = Output::of("out", &self.out, stream)?;
        // Tokens and ranks are exact, log-probabilities are not: one tensor each.
        let (n, words) = (self.problem.n, TopLogprobs::words(self.problem.n));
        let part = |name, dtype, is_float: bool| {
            let wanted = |at: usize| (at < 2 || at >= gpu::HEAD as usize + n) == is_float;
            let bytes = out.bytes.chunks_exact(4).enumerate().filter(|(index, _)| wanted(index % words));
            Output { name, dtype, bytes: bytes.flat_map(|(_, word)| word).copied().collect() }
        };
        Ok(vec![part("tokens", DType::U32, false), part("logprobs", DType::F32, true)])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let (vocab, words) = (self.problem.vocab, TopLogprobs::words(self.problem.n));
        // Twice: the first launch must leave the arrivals as it found them.
        self.outputs(stream)?;
        self.outputs(stream)?;
        let mut found = vec![0u32; self.out.len()];
        stream.download(self.out.view(), &mut found)?;
        let stride = self.logits.len() / self.problem.rows;
        for (row, found) in found.chunks(words).enumerate() {
            let wrong = |what: String| Mismatch::Other(format!("row {row}: {what}"));
            let asked = self.params[row].logprobs as usize;
            if asked == 0 {
                if found.iter().any(|&word| word != FORMER) {
                    return Err(wrong("it asked for nothing, but was written".into()));
                }
                continue;
            }
            let logits = &self.logits[row * stride..][..vocab];
            by_definition(logits, self.tokens[row], (asked - 1).min(self.problem.n), &TopRow::read(found))
                .map_err(wrong)?;
        }
        Ok(())
    }
}

/// Whether a row is what the definitions give. Differences and logarithms in f32 are within 1e-6 of their size, the sum of
/// exponentials within 1e-5.
fn by_definition(logits: &[f32], token: u32, n: usize, found: &TopRow) -> Result<(), String> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| !logits[i].is_nan()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
    let largest = order.first().map_or(f64::NAN, |&i| f64::from(logits[i]));
    let sum: f64 =
        order.iter().map(|&i| f64::from(logits[i])).map(|x| if x == largest { 1.0 } else { (x - largest).exp() }).sum();
    let logprob = |i: usize| match f64::from(logits[i]) {
        x if x.is_nan() || x == f64::NEG_INFINITY => f64::NEG_INFINITY,
        x if x == largest => -sum.ln(),
        x => x - largest - sum.ln(),
    };
    let close = |found: f32, expected: f64| {
        let found = f64::from(found);
        found == expected || (found - expected).abs() <= 1e-5 + 1e-6 * expected.abs()
    };
    let tokens: Vec<u32> = order.iter().take(n).map(|&i| i as u32).collect();
    let listed: Vec<u32> = found.top.iter().map(|(token, _)| *token).collect();
    if listed != tokens {
        return Err(format!("the top is {listed:?}, expected {tokens:?}"));
    }
    if let Some((token, x)) = found.top.iter().find(|(token, x)| !close(*x, logprob(*token as usize))) {
        return Err(format!("log-probability of {token} is {x}, expected {}", logprob(*token as usize)));
    }
    let token = token as usize;
    let rank = match token < logits.len() {
        true => 1 + order.iter().position(|&i| i == token).unwrap_or(order.len()),
        false => 0,
    };
    if found.rank as usize != rank {
        return Err(format!("rank of {token} is {}, expected {rank}", found.rank));
    }
    let expected = if rank > 0 { logprob(token) } else { f64::NEG_INFINITY };
    if !close(found.logprob, expected) {
        return Err(format!("log-probability of the given {token} is {}, expected {expected}", found.logprob));
    }
    let expected = if largest.is_finite() { largest + sum.ln() } else { largest };
    let both_nan = found.log_sum_exp.is_nan() && expected.is_nan();
    if !both_nan && !close(found.log_sum_exp, expected) {
        return Err(format!("log of the sum is {}, expected {expected}", found.log_sum_exp));
    }
    Ok(())
}
