//! Launcher and reference of `kernels-gpu/src/sample/token.rs`.
use super::adjust::{Adjust, Tables};
use super::params::SamplingParams;
use crate::buffer::Mem;
use crate::{Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::prim::DevicePtr;
use kernels_gpu::sample::fixed;
use kernels_gpu::sample::token as gpu;
use rayon::prelude::*;

/// Draws one token per row. The token depends on the row's logits, parameters and tables only: neither on the other rows
/// nor on the device. NaN and −∞ are never drawn; a row of nothing else (also after biases and mask) gives token 0.
///
/// The logits stay as they are: adjusted rows are copied to `adjust.scratch`, so that `TopLogprobs` may run afterwards and
/// see the raw logits of the drawn token.
pub struct Sample<'a> {
    /// [sequences, vocab] f32; vocab at most 262144, row stride a multiple of 4, start 16-byte aligned.
    pub logits: View<'a>,
    /// [sequences, 20] u32: [`SamplingParams`] as words; aligned as the logits.
    pub params: View<'a>,
    /// [1, sequences] u32: token ids.
    pub out: ViewMut<'a>,
    /// [1, slots] u32: gets the token at the row's `seq_slot`, if there is such a slot and the row is not
    /// [`SamplingParams::DRAFTED`]. Rows of one launch must have different slots.
    pub last_tokens: Option<ViewMut<'a>>,
    /// What rows with a `scratch_row` use. Leave it out where no row has one: that kernel is the smaller one.
    pub adjust: Option<Adjust<'a>>,
}

impl Sample<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let Sample { logits, params, mut out, mut last_tokens, mut adjust } = self;
        let mut check = Check::new("sample");
        check.typed("logits", &logits, DType::F32, ["sequences", "vocab"])?;
        check.typed("params", &params, DType::U32, ["sequences", "20"])?;
        check.typed("out", &out.as_view(), DType::U32, ["1", "sequences"])?;
        let (sequences, vocab) = (check.dim("sequences"), check.dim("vocab"));
        check.require((1..=gpu::MAX_VOCAB as usize).contains(&vocab), || {
            format!("vocab {vocab} must be 1 to {}", gpu::MAX_VOCAB)
        })?;
        vectors(&check, "logits", &logits)?;
        vectors(&check, "params", &params)?;
        if let Some(last_tokens) = &last_tokens {
            check.typed("last_tokens", &last_tokens.as_view(), DType::U32, ["1", "slots"])?;
        }
        if let Some(adjust) = &adjust {
            adjust.check(&mut check)?;
        }
        if stream.is_cpu() {
            let last_tokens = last_tokens.as_mut().map_or(&mut [][..], |view| view.row_mut::<u32>(0));
            reference(logits, params, out.row_mut(0), last_tokens, adjust.as_mut());
            return Ok(());
        }
        let mut args = gpu::Sample {
            logits: logits.ptr(),
            params: params.ptr(),
            out: out.ptr(),
            last_tokens: last_tokens.as_ref().map_or(DevicePtr(0), |view| view.ptr()),
            counts: DevicePtr(0),
            biases: DevicePtr(0),
            masks: DevicePtr(0),
            drafts: DevicePtr(0),
            scratch: DevicePtr(0),
            vocab: vocab as u32,
            logits_stride: logits.stride() as u32,
            params_stride: params.stride() as u32,
            slots: last_tokens.as_ref().map_or(0, |view| view.cols() as u32),
            count_slots: 0,
            counts_stride: 0,
            bias_count: 0,
            mask_count: 0,
            masks_stride: 0,
            draft_count: 0,
            scratch_rows: 0,
            scratch_stride: 0,
        };
        let mut entry = gpu::sample;
        if let Some(adjust) = &adjust {
            adjust.arguments(&mut args);
            entry = gpu::sample_adjusted;
        }
        // SAFETY: one block per sequence; every access is below `vocab` of a row of logits, below 20 words of a row of
        // parameters, or a sequence's element of `out`, all of which the views were checked to have. Slots, rows and
        // ranges that the parameters name are compared with the numbers of those that there are before they are used.
        unsafe { stream.launch(entry, Launch::grid(sequences).shared(gpu::SHARED_BYTES).dependent(), &args) }
    }
}

/// Whether rows can be accessed in 16-byte vectors.
pub(super) fn vectors(check: &Check, name: &'static str, view: &View<'_>) -> Result<(), Error> {
    check.require(view.rows() <= 1 || view.stride().is_multiple_of(4), || {
        format!("{name}'s row stride of {} must be a multiple of 4 elements", view.stride())
    })?;
    let aligned = !matches!(view.mem, Mem::Device(ptr, _) if !ptr.0.is_multiple_of(16));
    check.require(aligned, || format!("{name} must start at a multiple of 16 bytes"))
}

/// The CPU device's kernel: all rows see the counts from before the launch.
fn reference(
    logits: View<'_>,
    params: View<'_>,
    out: &mut [u32],
    last_tokens: &mut [u32],
    adjust: Option<&mut Adjust<'_>>,
) {
    let params: Vec<SamplingParams> = (0..out.len()).map(|row| SamplingParams::read(params, row)).collect();
    let tables = adjust.as_deref().map(Tables::of);
    out.par_iter_mut().enumerate().for_each(|(row, token)| {
        let (logits, params) = (logits.row::<f32>(row), &params[row]);
        *token = match &tables {
            Some(tables) if tables.adjusts(params) => sample_row(&tables.adjusted(logits, params), params),
            _ => sample_row(logits, params),
        };
    });
    let mut adjust = adjust;
    for (params, &token) in params.iter().zip(out.iter()).filter(|(params, _)| !params.is_drafted()) {
        if let Some(last) = last_tokens.get_mut(params.seq_slot as usize) {
            *last = token;
        }
        if let Some(adjust) = adjust.as_deref_mut() {
            adjust.count(params, token);
        }
    }
}

/// The reference, and the CPU device's kernel: by sorting, with the device's integer weights.
pub(super) fn sample_row(logits: &[f32], params: &SamplingParams) -> u32 {
    let Some(best) = argmax(logits) else { return 0 };
    if params.is_greedy() {
        return best as u32;
    }
    let (largest, scale) = (logits[best], fixed::scale(params.temperature));
    let mut weights: Vec<u64> = logits.iter().map(|&x| fixed::weight(x, largest, scale)).collect();
    if params.top_k > 0 || params.top_p < 1.0 {
        truncate(logits, &mut weights, params);
    }
    let least = fixed::min_weight(params.min_p);
    weights.iter_mut().filter(|weight| **weight < least).for_each(|weight| *weight = 0);

    let random = fixed::random([params.seed_lo, params.seed_hi], params.position);
    let mut left = fixed::draw(random, weights.iter().sum());
    let drawn = weights.iter().position(|&weight| match left.checked_sub(weight) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    // The draw is below the sum, so there always is one.
    drawn.unwrap_or(best) as u32
}

/// The first of the largest logits; none where all are NaN or −∞.
fn argmax(logits: &[f32]) -> Option<usize> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY { None } else { logits.iter().position(|&x| x == largest) }
}

/// Zeroes the weights of tokens that top-k or top-p leaves out.
fn truncate(logits: &[f32], weights: &mut [u64], params: &SamplingParams) {
    // Most probable first. A token without weight cannot be drawn and moves no threshold that matters.
    let mut order: Vec<(u32, u32)> = (0..logits.len())
        .filter(|&token| weights[token] > 0)
        .map(|token| (!fixed::key(logits[token]), token as u32))
        .collect();
    order.sort_unstable();
    let mut kept = order.len();
    let k = params.top_k as usize;
    if k > 0 && k < kept {
        let last = order[k - 1].0;
        kept = order.partition_point(|&(key, _)| key <= last);
    }
    if params.top_p < 1.0 {
        let total = order[..kept].iter().map(|&(_, token)| weights[token as usize]).sum();
        let goal = fixed::top_p_mass(params.top_p, total);
        let mut mass = 0;
        let before = |&&(_, token): &&(u32, u32)| {
            let missing = mass < goal;
            mass += weights[token as usize];
            missing
        };
        kept = order[..kept].iter().take_while(before).count();
    }
    for &(_, token) in &order[kept..] {
        weights[token as usize] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(logits: &[f32], params: SamplingParams) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for position in 0..2000 {
            counts[sample_row(logits, &SamplingParams { position, ..params }) as usize] += 1;
        }
        counts
    }

    const PLAIN: SamplingParams = SamplingParams { temperature: 1.0, seed_lo: 7, ..SamplingParams::GREEDY };

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sample_row(&[1.0, f32::NAN, 3.0, 3.0], &SamplingParams::GREEDY), 2);
        assert_eq!(sample_row(&[f32::NEG_INFINITY, f32::NAN], &SamplingParams::GREEDY), 0);
        assert_eq!(sample_row(&[f32::NEG_INFINITY, f32::NAN], &PLAIN), 0);
        assert_eq!(sample_row(&[-0.0, 0.0], &SamplingParams::GREEDY), 0);
        assert_eq!(sample_row(&[1.0, 3.0, 3.0], &SamplingParams { top_k: 1, ..PLAIN }), 1);
    }

    #[test]
    fn top_k_keeps_ties_of_the_last() {
        let counts = draw(&[2.0, 1.0, 1.0, 0.0], SamplingParams { top_k: 2, ..PLAIN });
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] > 0 && counts[3] == 0, "{counts:?}");
    }

    #[test]
    fn top_p_keeps_the_first_of_ties() {
        let counts = draw(&[1.0; 8], SamplingParams { top_p: 0.3, ..PLAIN });
        assert!(counts[..3].iter().all(|&n| n > 500) && counts[3..].iter().all(|&n| n == 0), "{counts:?}");
        let counts = draw(&[0.0, 5.0, 0.0], SamplingParams { top_p: 0.0, ..PLAIN });
        assert_eq!(counts, [0, 2000, 0]);
    }

    #[test]
    fn top_p_renormalises_after_top_k() {
        // Of all four tokens 0.6 takes three; of the two that top-k leaves it takes two.
        let params = SamplingParams { top_k: 2, top_p: 0.6, ..PLAIN };
        let counts = draw(&[1.0, 1.0 + 1e-3, 0.9, 0.9], params);
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] + counts[3] == 0, "{counts:?}");
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable() {
        let counts = draw(&[0.0, -1.0, -2.0], SamplingParams { min_p: 0.3, ..PLAIN });
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn tiny_temperatures_do_not_overflow() {
        let logits = [100.0, -100.0, 99.9];
        assert_eq!(draw(&logits, SamplingParams { temperature: 1e-4, ..PLAIN }), [2000, 0, 0]);
        assert_eq!(draw(&logits, SamplingParams { temperature: 1e-44, ..PLAIN }), [2000, 0, 0]);
    }
}
