//! Cases of the sampling kernel, checked against the definitions in f64.
use super::token::{Sample, sample_row};
use super::{SamplingParams, adjusted};
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Work};
use crate::{Buffer, DType, Error, Stream};
use kernels_gpu::sample::{fixed, token as gpu};
use rayon::prelude::*;

/// Relative error of a weight, hence of masses, shares and boundaries between tokens (`fixed::weight` says
/// 6e-6).
const NOISE: f64 = 1e-5;

/// Tests and benches.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "sample/token",
        entries: gpu::ENTRIES.to_vec(),
        pinned,
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            let logits = prop::sample::select(vec![Logits::Normal, Logits::Ties, Logits::Special, Logits::Peaked]);
            let vocab = prop_oneof![1usize..70, 70usize..5000, 5000usize..20_000];
            (1usize..10, vocab, 0usize..3, logits, prop::sample::select(MODES.to_vec()), -3f32..2.5, any::<bool>())
                .prop_map(|(sequences, vocab, pad, logits, mode, spread, adjusted)| {
                    if adjusted {
                        let greedy = matches!(mode, Mode::Greedy);
                        return Box::new(adjusted::Problem { rows: sequences, vocab, greedy, logits }) as Box<dyn Case>;
                    }
                    Box::new(Problem { sequences, vocab, pad, logits, mode, spread: spread.exp() })
                })
                .boxed()
        },
    }
}

fn pinned() -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    let mut add = |sequences, vocab, pad, logits, mode, spread| {
        cases.push(Box::new(Problem { sequences, vocab, pad, logits, mode, spread }));
    };
    add(64, 128_256, 0, Logits::Normal, Mode::Greedy, 2.5);
    add(1, 128_256, 0, Logits::Normal, Mode::Greedy, 2.5);
    for mode in [Mode::Temperature, Mode::TopK, Mode::TopP, Mode::MinP, Mode::TopKTopP] {
        add(64, 128_256, 0, Logits::Normal, mode, 2.5);
    }
    for vocab in [1, 3, 37, 1000, 4095, 32_003, 151_936, 262_144] {
        for mode in [Mode::Greedy, Mode::Mixed] {
            add(5, vocab, 1, Logits::Normal, mode, 2.5);
        }
    }
    for logits in [Logits::Ties, Logits::Special, Logits::Peaked, Logits::Nothing] {
        for mode in MODES {
            add(6, 5003, 0, logits, *mode, 3.0);
        }
    }
    add(12, 128_256, 0, Logits::Ties, Mode::Mixed, 1.0);
    add(3, 128_256, 0, Logits::Normal, Mode::Mixed, 1e-3);
    cases.push(Box::new(Frequencies { draws: 20_000, vocab: 37 }));
    cases.extend(adjusted::pinned());
    cases
}

const MODES: &[Mode] =
    &[Mode::Greedy, Mode::Temperature, Mode::Cold, Mode::TopK, Mode::TopP, Mode::MinP, Mode::TopKTopP, Mode::Mixed];

/// What the parameters use.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Greedy,
    Temperature,
    /// A temperature of 1e-4.
    Cold,
    TopK,
    TopP,
    MinP,
    TopKTopP,
    /// Everything at random, differently in each row.
    Mixed,
}

/// What the logits look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Logits {
    /// Normal.
    Normal,
    /// Few distinct values.
    Ties,
    /// NaN, infinities and zeros of both signs among them.
    Special,
    /// One token far above the others.
    Peaked,
    /// NaN and −∞ only.
    Nothing,
}

#[derive(Debug)]
struct Problem {
    sequences: usize,
    vocab: usize,
    /// Row stride beyond the vocabulary rounded up to 4, in fours.
    pad: usize,
    logits: Logits,
    mode: Mode,
    spread: f32,
}

impl Problem {
    fn stride(&self) -> usize {
        self.vocab.next_multiple_of(4) + 4 * self.pad
    }

    fn params(&self, rng: &mut Rng) -> SamplingParams {
        let bits = rng.bits();
        let mut params = SamplingParams {
            temperature: [0.7, 1.0, 1.3][rng.below(3)],
            seed_lo: bits as u32,
            seed_hi: (bits >> 32) as u32,
            position: rng.below(100_000) as u32,
            ..SamplingParams::GREEDY
        };
        let top_k = [2, 5, 50, 1000, self.vocab as u32][rng.below(5)];
        let top_p = [0.0, 0.1, 0.5, 0.9, 0.95, 0.999][rng.below(6)];
        let min_p = [1e-6, 0.01, 0.1, 1.0][rng.below(4)];
        match self.mode {
            Mode::Greedy => params.temperature = 0.0,
            Mode::Temperature => {}
            Mode::Cold => params.temperature = 1e-4,
            Mode::TopK => params.top_k = top_k,
            Mode::TopP => params.top_p = top_p,
            Mode::MinP => params.min_p = min_p,
            Mode::TopKTopP => (params.top_k, params.top_p) = (top_k, top_p),
            Mode::Mixed => {
                params.temperature = [0.0, 0.01, 0.5, 1.0, 5.0, f32::INFINITY][rng.below(6)];
                params.top_k = [0, 0, 1, top_k][rng.below(4)];
                params.top_p = [1.0, top_p][rng.below(2)];
                params.min_p = [0.0, min_p][rng.below(2)];
            }
        }
        params
    }
}

impl Logits {
    /// One logit of a row of `vocab`, about `spread` wide.
    pub(super) fn draw(self, rng: &mut Rng, spread: f32, vocab: usize) -> f32 {
        let x = rng.normal() * spread;
        match self {
            Logits::Normal => x,
            Logits::Ties => (x * 2.0).round() * 0.5,
            Logits::Special => match rng.below(12) {
                0 => f32::NAN,
                1 => f32::NEG_INFINITY,
                2 => 0.0,
                3 => -0.0,
                4 if rng.below(2000) == 0 => f32::INFINITY,
                _ => x,
            },
            Logits::Peaked => x + if rng.below(vocab) == 0 { 40.0 } else { 0.0 },
            Logits::Nothing => [f32::NAN, f32::NEG_INFINITY, -f32::NAN][rng.below(3)],
        }
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        format!(
            "sample {:?} {:?} sequences={} vocab={} stride={} spread={}",
            self.mode,
            self.logits,
            self.sequences,
            self.vocab,
            self.stride(),
            self.spread
        )
    }

    fn work(&self) -> Work {
        Work { bytes: (self.sequences * (self.vocab * 4 + 36)) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.vocab == 128_256 && matches!(self.logits, Logits::Normal) && !matches!(self.mode, Mode::Mixed)
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let mut rng = Rng::new(seed);
        let stride = self.stride();
        // What lies between rows would win.
        let mut logits = vec![f32::MAX; self.sequences * stride];
        for row in logits.chunks_mut(stride) {
            row[..self.vocab].fill_with(|| self.logits.draw(&mut rng, self.spread, self.vocab));
        }
        let mut params: Vec<_> = (0..self.sequences).map(|_| self.params(&mut rng)).collect();
        // The last row is the first again: the place in the batch must not matter.
        let last = self.sequences - 1;
        logits.copy_within(..stride, last * stride);
        params[last] = params[0];
        Ok(Box::new(Data::new(stream, logits, params, self.vocab)?))
    }
}

struct Data {
    logits: Vec<f32>,
    params: Vec<SamplingParams>,
    vocab: usize,
    device_logits: Buffer,
    device_params: Buffer,
    out: Buffer,
}

impl Data {
    fn new(stream: &Stream, logits: Vec<f32>, params: Vec<SamplingParams>, vocab: usize) -> Result<Self, Error> {
        let mut device_logits = Buffer::new(stream.device(), DType::F32, logits.len())?;
        stream.upload(&logits, device_logits.view_mut())?;
        let mut device_params = Buffer::new(stream.device(), DType::U32, params.len() * SamplingParams::WORDS)?;
        stream.upload(&params, device_params.view_mut())?;
        let out = Buffer::new(stream.device(), DType::U32, params.len())?;
        Ok(Data { logits, params, vocab, device_logits, device_params, out })
    }

    fn row(&self, sequence: usize) -> &[f32] {
        let stride = self.logits.len() / self.params.len();
        &self.logits[sequence * stride..][..self.vocab]
    }

    fn tokens(&mut self, stream: &Stream) -> Result<Vec<u32>, Error> {
        let mut tokens = vec![u32::MAX; self.params.len()];
        stream.upload(&tokens, self.out.view_mut())?;
        self.launch(stream)?;
        stream.download(self.out.view(), &mut tokens)?;
        Ok(tokens)
    }
}

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let sequences = self.params.len();
        let stride = self.logits.len() / sequences;
        Sample {
            logits: self.device_logits.matrix(sequences, stride).columns(0, self.vocab),
            params: self.device_params.matrix(sequences, SamplingParams::WORDS),
            out: self.out.matrix_mut(1, sequences),
            last_tokens: None,
            adjust: None,
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.tokens(stream)?;
        Ok(vec![Output::of("tokens", &self.out, stream)?])
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let tokens = self.tokens(stream)?;
        let faults: Vec<String> = tokens
            .par_iter()
            .enumerate()
            .filter_map(|(sequence, &token)| {
                let (row, params) = (self.row(sequence), &self.params[sequence]);
                let reference = sample_row(row, params);
                let wrong = match token == reference {
                    false => Some(format!("the reference draws {reference}")),
                    true => by_definition(row, params, token as usize).err(),
                };
                wrong.map(|wrong| format!("token[{sequence}] is {token}: {wrong} ({params:?})"))
            })
            .collect();
        match faults.first() {
            None => Ok(()),
            Some(first) => Err(Mismatch::Other(format!("{first}; {} of {} are wrong", faults.len(), tokens.len()))),
        }
    }
}

/// Whether `token` is what the definitions give, in f64 and up to [`NOISE`]: within noise of a threshold a token may be
/// kept or not, and the random number may fall to either neighbour of a boundary.
fn by_definition(logits: &[f32], params: &SamplingParams, token: usize) -> Result<(), String> {
    let mut order: Vec<usize> =
        (0..logits.len()).filter(|&i| !logits[i].is_nan() && logits[i] != f32::NEG_INFINITY).collect();
    // Not total_cmp: zeros of either sign are equal.
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b)));
    let expect = |expected: usize| if token == expected { Ok(()) } else { Err(format!("not {expected}")) };
    let Some(&best) = order.first() else { return expect(0) };
    if params.is_greedy() {
        return expect(best);
    }
    let largest = f64::from(logits[best]);
    let weight = |i: usize| {
        let x = f64::from(logits[i]);
        if x == largest { 1.0 } else { ((x - largest) / f64::from(params.temperature)).exp() }
    };
    if params.top_k > 0 && (params.top_k as usize) < order.len() {
        let last = logits[order[params.top_k as usize - 1]];
        order.retain(|&i| logits[i] >= last);
    }
    let goal = f64::from(params.top_p.max(0.0)) * order.iter().map(|&i| weight(i)).sum::<f64>();
    let (mut mass, mut kept) = (0.0, Vec::new());
    for &i in &order {
        // (token, its weight, whether it is kept for certain)
        let mut certain = i == best;
        if params.top_p < 1.0 {
            if i != best && mass >= goal * (1.0 + NOISE) + NOISE * NOISE {
                break;
            }
            certain |= mass < goal * (1.0 - NOISE);
        } else {
            certain = true;
        }
        let w = weight(i);
        mass += w;
        let least = f64::from(params.min_p.min(1.0));
        if i == best || w >= least * (1.0 - NOISE) {
            kept.push((i, w, certain && (i == best || w >= least * (1.0 + NOISE))));
        }
    }
    drawn(&kept, params, token)
}

/// Whether the random number falls to `token` among the `kept` (token, weight, certainly).
fn drawn(kept: &[(usize, f64, bool)], params: &SamplingParams, token: usize) -> Result<(), String> {
    let Some(&(_, own, _)) = kept.iter().find(|(i, ..)| *i == token) else {
        return Err("by definition it is not kept".into());
    };
    // Sums over what is kept for certain and over what may be kept; the token itself is.
    let sum = |below: usize, uncertain: bool| {
        kept.iter().filter(|(i, _, certain)| *i < below && (*certain || uncertain)).map(|(_, w, _)| w).sum::<f64>()
    };
    let (least, most) = (sum(usize::MAX, false), sum(usize::MAX, true));
    let random = fixed::random([params.seed_lo, params.seed_hi], params.position) as f64 / 2f64.powi(64);
    let from = sum(token, false) / most - NOISE;
    let to = (sum(token, true) + own) / least + NOISE;
    if (from..=to).contains(&random) {
        Ok(())
    } else {
        Err(format!("the random number {random} is outside its share {from}..{to}"))
    }
}

/// A distribution that many draws must follow.
#[derive(Debug)]
struct Frequencies {
    draws: usize,
    vocab: usize,
}

struct Draws(Data);

impl Case for Frequencies {
    fn id(&self) -> String {
        format!("sample frequencies draws={} vocab={}", self.draws, self.vocab)
    }
    fn work(&self) -> Work {
        Work { bytes: (self.draws * (self.vocab * 4 + 36)) as u64, flops: 0 }
    }
    fn checked_on_emulator(&self) -> bool {
        // As many blocks as draws: most of the work is the few tokens' passes, not their bytes.
        false
    }
    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let stride = self.vocab.next_multiple_of(4);
        // Probabilities that fall by 10 % from token to token.
        let row: Vec<f32> = (0..stride).map(|i| -(i as f32) * 0.105).collect();
        let params = |draw| SamplingParams {
            temperature: 1.0,
            seed_lo: seed as u32,
            // Half the draws are one sequence's positions, the others are 10 positions of many seeds.
            seed_hi: if draw % 2 == 0 { 0 } else { draw / 20 + 1 },
            position: if draw % 2 == 0 { draw } else { draw / 2 % 10 },
            ..SamplingParams::GREEDY
        };
        let params = (0..self.draws as u32).map(params).collect();
        Ok(Box::new(Draws(Data::new(stream, row.repeat(self.draws), params, self.vocab)?)))
    }
}

impl Prepared for Draws {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        self.0.launch(stream)
    }
    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.0.outputs(stream)
    }
    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        self.0.check(stream)?;
        let tokens = self.0.tokens(stream)?;
        let weights: Vec<f64> = self.0.row(0).iter().map(|&x| f64::from(x).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut chi_square = 0.0;
        for (token, weight) in weights.iter().enumerate() {
            let expected = weight / total * tokens.len() as f64;
            let found = tokens.iter().filter(|&&t| t as usize == token).count() as f64;
            chi_square += (found - expected).powi(2) / expected;
        }
        // Mean 36, deviation √72 = 8.5; 86 is exceeded once in 200,000.
        let bound = weights.len() as f64 * 86.0 / 37.0;
        if chi_square < bound {
            Ok(())
        } else {
            Err(Mismatch::Other(format!("chi-square of {} draws is {chi_square}, bound {bound}", tokens.len())))
        }
    }
}
