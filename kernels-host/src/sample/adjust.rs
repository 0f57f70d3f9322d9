//! What changes a row of logits before a token is drawn from it; the reference of `kernels-gpu/src/sample/adjust.rs`.
use super::params::SamplingParams;
use super::token::vectors;
use crate::{Check, DType, Error, View, ViewMut};
use kernels_gpu::prim::DevicePtr;
pub use kernels_gpu::sample::adjust::counts_words;
use kernels_gpu::sample::adjust::{IN_PROMPT, MOST, count_one};
use kernels_gpu::sample::token as gpu;

/// Tables for the rows that have a `scratch_row`. What is left out is off: no counts, no penalties.
pub struct Adjust<'a> {
    /// [slots, [`counts_words`]\(vocab)] u32, 16-byte aligned: two tokens a word, the even one in the low half; 15 bits how often
    /// the answer has the token (up to 32767), the top bit set if the prompt has it. `CountTokens` makes a row; a row
    /// of the launch with penalties counts its token in.
    pub counts: Option<ViewMut<'a>>,
    /// [entries, 2] u32 without gaps: token and the bits of its f32 bias. −∞ bans.
    pub biases: Option<View<'a>>,
    /// [masks, ⌈vocab / 32⌉] u32: bit `token % 32` of word `token / 32` is 1 where the token is allowed.
    pub masks: Option<View<'a>>,
    /// [1, n] u32: draft tokens.
    pub drafts: Option<View<'a>>,
    /// [rows, vocab] f32, stride and start as the logits': what is drawn from. Its contents afterwards are not specified.
    pub scratch: ViewMut<'a>,
}

impl Adjust<'_> {
    pub(super) fn check(&self, check: &mut Check) -> Result<(), Error> {
        let vocab = check.dim("vocab");
        check.typed("scratch", &self.scratch.as_view(), DType::F32, ["scratch_rows", "vocab"])?;
        vectors(check, "scratch", &self.scratch.as_view())?;
        if let Some(counts) = &self.counts {
            check_counts(check, &counts.as_view(), vocab)?;
        }
        if let Some(biases) = &self.biases {
            check.typed("biases", biases, DType::U32, ["entries", "2"])?;
            check.require(biases.is_contiguous(), || "biases must have no gaps between rows".into())?;
        }
        if let Some(masks) = &self.masks {
            check.typed("masks", masks, DType::U32, ["masks", "words"])?;
            check.require(masks.cols() == vocab.div_ceil(32), || {
                format!("masks has {} words a row, vocab {vocab} takes {}", masks.cols(), vocab.div_ceil(32))
            })?;
        }
        if let Some(drafts) = &self.drafts {
            check.typed("drafts", drafts, DType::U32, ["1", "drafts"])?;
        }
        Ok(())
    }

    pub(super) fn arguments(&self, args: &mut gpu::Sample) {
        let null = DevicePtr(0);
        let counts = self.counts.as_ref().map(ViewMut::as_view);
        args.counts = counts.map_or(null, |view| view.ptr());
        args.count_slots = counts.map_or(0, |view| view.rows() as u32);
        args.counts_stride = counts.map_or(0, |view| view.stride() as u32);
        args.biases = self.biases.map_or(null, |view| view.ptr());
        args.bias_count = self.biases.map_or(0, |view| view.rows() as u32);
        args.masks = self.masks.map_or(null, |view| view.ptr());
        args.mask_count = self.masks.map_or(0, |view| view.rows() as u32);
        args.masks_stride = self.masks.map_or(0, |view| view.stride() as u32);
        args.drafts = self.drafts.map_or(null, |view| view.ptr());
        args.draft_count = self.drafts.map_or(0, |view| view.cols() as u32);
        args.scratch = self.scratch.ptr();
        args.scratch_rows = self.scratch.rows() as u32;
        args.scratch_stride = self.scratch.stride() as u32;
    }

    /// Counts a row's token in, on the CPU device.
    pub(super) fn count(&mut self, params: &SamplingParams, token: u32) {
        let counted = params.has_penalties() && (params.scratch_row as usize) < self.scratch.rows();
        if let Some(counts) = self.counts.as_mut().filter(|_| counted) {
            count(counts, params.seq_slot, token);
        }
    }
}

/// Counts a token in, on the CPU device, if there is such a slot.
pub(super) fn count(counts: &mut ViewMut<'_>, slot: u32, token: u32) {
    if (slot as usize) < counts.rows() {
        let word = &mut counts.row_mut::<u32>(slot as usize)[token as usize / 2];
        *word = count_one(*word, token);
    }
}

/// Checks a table of counts.
pub(super) fn check_counts(check: &mut Check, counts: &View<'_>, vocab: usize) -> Result<(), Error> {
    check.typed("counts", counts, DType::U32, ["count_slots", "_"])?;
    check.require(counts.cols() == counts_words(vocab), || {
        format!("counts has {} words a row, vocab {vocab} takes {}", counts.cols(), counts_words(vocab))
    })?;
    vectors(check, "counts", counts)
}

/// The tables of a launch on the CPU device.
pub(super) struct Tables<'a> {
    counts: Option<View<'a>>,
    biases: &'a [u32],
    masks: Option<View<'a>>,
    drafts: &'a [u32],
    scratch_rows: usize,
}

impl<'a> Tables<'a> {
    pub(super) fn of(adjust: &'a Adjust<'_>) -> Self {
        Tables {
            counts: adjust.counts.as_ref().map(ViewMut::as_view),
            biases: adjust.biases.map_or(&[], |view| view.host()),
            masks: adjust.masks,
            drafts: adjust.drafts.map_or(&[], |view| view.row(0)),
            scratch_rows: adjust.scratch.rows(),
        }
    }

    pub(super) fn adjusts(&self, params: &SamplingParams) -> bool {
        (params.scratch_row as usize) < self.scratch_rows
    }

    pub(super) fn adjusted(&self, logits: &[f32], params: &SamplingParams) -> Vec<f32> {
        let mut x = logits.to_vec();
        let (penalties, slot) = (params.penalties(), params.seq_slot as usize);
        if let Some(counts) = self.counts.filter(|counts| penalties.any() && slot < counts.rows()) {
            let words = counts.row::<u32>(slot);
            let drafts = part(self.drafts, params.draft_start, params.draft_len, 1);
            for (token, x) in x.iter_mut().enumerate() {
                let count = words[token / 2] >> (token % 2 * 16) & 0xffff;
                let drafted = drafts.iter().filter(|&&draft| draft as usize == token).count() as u32;
                *x = penalties.apply(*x, count & IN_PROMPT | ((count & MOST) + drafted).min(MOST));
            }
        }
        for pair in part(self.biases, params.bias_start, params.bias_len, 2).chunks(2) {
            if let Some(x) = x.get_mut(pair[0] as usize) {
                *x += f32::from_bits(pair[1]);
            }
        }
        if let Some(masks) = self.masks.filter(|masks| (params.mask_row as usize) < masks.rows()) {
            let words = masks.row::<u32>(params.mask_row as usize);
            for (token, x) in x.iter_mut().enumerate() {
                if words[token / 32] >> (token % 32) & 1 == 0 {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
        x
    }
}

/// The elements `start..start + len`, of `size` words each, as far as they are there.
fn part(words: &[u32], start: u32, len: u32, size: usize) -> &[u32] {
    let end = words.len() / size;
    let start = (start as usize).min(end);
    &words[start * size..start.saturating_add(len as usize).min(end) * size]
}
