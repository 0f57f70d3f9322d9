//! Launcher and reference of `kernels-gpu/src/sample/top.rs`.
use super::params::SamplingParams;
use super::token::vectors;
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::prim::DevicePtr;
use kernels_gpu::sample::fixed;
use kernels_gpu::sample::token::MAX_VOCAB;
use kernels_gpu::sample::top as gpu;

/// Log-probabilities of raw logits: of the n most probable tokens, and of a given one with its rank. Rows whose
/// parameters ask for none ([`SamplingParams::logprobs`] is 0) are skipped. A row's result depends on its logits only.
pub struct TopLogprobs<'a> {
    /// [rows, vocab] f32, as `Sample`'s, which leaves them as they are.
    pub logits: View<'a>,
    /// [rows, 20] u32: [`SamplingParams`] as words.
    pub params: View<'a>,
    /// [1, rows] u32: tokens, such as `Sample`'s `out`. Those that are not in the vocabulary have rank 0.
    pub tokens: Option<View<'a>>,
    /// [1, at least rows] u32: zeros before the first launch; every launch leaves zeros.
    pub arrivals: ViewMut<'a>,
    /// [1, at least [`TopLogprobs::workspace_len`]] u32: anything. No other kernel may use it at the same time.
    pub workspace: ViewMut<'a>,
    /// [rows, [`TopLogprobs::words`]\(n)] u32, for `TopRow::read`; n is at most 64, rows that ask for more get n.
    pub out: ViewMut<'a>,
}

/// What [`TopLogprobs`] says about a row.
#[derive(Clone, Debug, PartialEq)]
pub struct TopRow {
    /// ln Σ exp(logit).
    pub log_sum_exp: f32,
    /// Log-probability of the given token; −∞ where there is none, or its logit is NaN.
    pub logprob: f32,
    /// How many tokens are more probable, or as probable and before it, plus one; 0 where there is no token.
    pub rank: u32,
    /// The most probable tokens, of equal ones the first first, with their log-probabilities. NaN is not among them.
    pub top: Vec<(u32, f32)>,
}

impl TopRow {
    /// From a row of the output.
    ///
    /// # Panics
    /// If it has fewer than four words.
    pub fn read(words: &[u32]) -> Self {
        let (head, rest) = words.split_at(gpu::HEAD as usize);
        let (tokens, logprobs) = rest.split_at(rest.len() / 2);
        let pairs = tokens.iter().zip(logprobs).take(head[3] as usize);
        TopRow {
            log_sum_exp: f32::from_bits(head[0]),
            logprob: f32::from_bits(head[1]),
            rank: head[2],
            top: pairs
                .filter(|(token, _)| **token != gpu::NO_TOKEN)
                .map(|(token, x)| (*token, f32::from_bits(*x)))
                .collect(),
        }
    }

    /// To a row of the output, with the same numbers of tokens and log-probabilities.
    fn write(&self, n: usize, words: &mut [u32]) {
        let (head, rest) = words.split_at_mut(gpu::HEAD as usize);
        head.copy_from_slice(&[self.log_sum_exp.to_bits(), self.logprob.to_bits(), self.rank, n as u32]);
        let (tokens, logprobs) = rest.split_at_mut(rest.len() / 2);
        for (place, (token, logprob)) in tokens.iter_mut().zip(logprobs).take(n).enumerate() {
            let entry = self.top.get(place).copied().unwrap_or((gpu::NO_TOKEN, f32::NEG_INFINITY));
            (*token, *logprob) = (entry.0, entry.1.to_bits());
        }
    }
}

impl TopLogprobs<'_> {
    /// Largest n.
    pub const MOST: usize = gpu::MOST as usize;

    /// Words of a row of `out` for n tokens.
    pub const fn words(n: usize) -> usize {
        gpu::HEAD as usize + 2 * n
    }

    /// Words of workspace for launches of at most `rows` rows and n tokens.
    pub const fn workspace_len(rows: usize, vocab: usize, n: usize) -> usize {
        rows * vocab.div_ceil(gpu::CHUNK as usize) * Self::words(n)
    }

    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let TopLogprobs { logits, params, tokens, arrivals, workspace, mut out } = self;
        let mut check = Check::new("top_logprobs");
        check.typed("logits", &logits, DType::F32, ["rows", "vocab"])?;
        check.typed("params", &params, DType::U32, ["rows", "20"])?;
        if let Some(tokens) = &tokens {
            check.typed("tokens", tokens, DType::U32, ["1", "rows"])?;
        }
        check.typed("arrivals", &arrivals.as_view(), DType::U32, ["1", "arrivals"])?;
        check.typed("workspace", &workspace.as_view(), DType::U32, ["1", "workspace"])?;
        check.typed("out", &out.as_view(), DType::U32, ["rows", "words"])?;
        let (rows, vocab, words) = (check.dim("rows"), check.dim("vocab"), check.dim("words"));
        check
            .require((1..=MAX_VOCAB as usize).contains(&vocab), || format!("vocab {vocab} must be 1 to {MAX_VOCAB}"))?;
        check
            .require(words.is_multiple_of(2) && (Self::words(0)..=Self::words(Self::MOST)).contains(&words), || {
                format!("out has {words} words a row, they must be 4 + 2n for an n up to {}", Self::MOST)
            })?;
        let n = (words - Self::words(0)) / 2;
        check.require(check.dim("arrivals") >= rows, || format!("arrivals must have {rows} words"))?;
        let needed = Self::workspace_len(rows, vocab, n);
        check.require(check.dim("workspace") >= needed, || format!("workspace must have {needed} words"))?;
        check.require(rows <= 65_535, || format!("{rows} rows are too many for one launch, 65535 are the most"))?;
        vectors(&check, "logits", &logits)?;
        if stream.is_cpu() {
            for row in 0..rows {
                let asked = SamplingParams::read(params, row).logprobs as usize;
                if asked > 0 {
                    let token = tokens.map(|tokens| tokens.row::<u32>(0)[row]);
                    let n = (asked - 1).min(n);
                    reference(logits.row(row), token, n).write(n, out.row_mut(row));
                }
            }
            return Ok(());
        }
        let chunks = vocab.div_ceil(gpu::CHUNK as usize);
        let args = gpu::TopLogprobs {
            logits: logits.ptr(),
            params: params.ptr(),
            tokens: tokens.map_or(DevicePtr(0), |tokens| tokens.ptr()),
            out: out.ptr(),
            partial: workspace.ptr(),
            arrivals: arrivals.ptr(),
            vocab: vocab as u32,
            // Equal chunks: a short one would have few warps to bound its largest.
            chunk: vocab.div_ceil(chunks).next_multiple_of(4) as u32,
            chunks: chunks as u32,
            width: n as u32,
            logits_stride: logits.stride() as u32,
            params_stride: params.stride() as u32,
            out_stride: out.stride() as u32,
        };
        let launch = Launch::grid3(chunks, rows, 1).shared(gpu::SHARED_BYTES).dependent();
        // SAFETY: the kernel reads below `vocab` of a row of logits and a word of its parameters, and writes 4 + 2n words of
        // rows of `out` and of each row's chunks in the workspace, and a word of `arrivals` per row: all of which the
        // views were checked to have.
        unsafe { stream.launch(gpu::top_logprobs, launch, &args) }
    }
}

/// The CPU device's kernel, in f64.
fn reference(logits: &[f32], token: Option<u32>, n: usize) -> TopRow {
    let largest = logits.iter().copied().fold(f32::NAN, f32::max);
    let share = |x: f32| if x == largest { 1.0 } else { f64::from(x - largest).exp() };
    let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|&x| share(x)).sum();
    let logprob = |x: f32| match x {
        _ if x.is_nan() || x == f32::NEG_INFINITY => f32::NEG_INFINITY,
        _ if x == largest => -sum.ln() as f32,
        _ => (f64::from(x) - f64::from(largest) - sum.ln()) as f32,
    };
    let element = |token: usize| u64::from(fixed::key(logits[token])) << 32 | u64::from(!(token as u32));
    let mut order: Vec<u64> = (0..logits.len()).filter(|&t| !logits[t].is_nan()).map(element).collect();
    let token = token.map(|token| token as usize).filter(|&token| token < logits.len());
    let rank = token.map_or(0, |token| 1 + order.iter().filter(|&&x| x > element(token)).count());
    if n < order.len() {
        order.select_nth_unstable_by(n, |a, b| b.cmp(a));
        order.truncate(n);
    }
    order.sort_unstable_by(|a, b| b.cmp(a));
    let top = order.into_iter().map(|element| !(element as u32)).map(|token| (token, logprob(logits[token as usize])));
    TopRow {
        log_sum_exp: if largest.is_finite() { (f64::from(largest) + sum.ln()) as f32 } else { largest },
        logprob: token.map_or(f32::NEG_INFINITY, |token| logprob(logits[token])),
        rank: rank as u32,
        top: top.collect(),
    }
}
