//! Launcher, reference and cases of `kernels-gpu/src/sample/accept.rs`.
use super::adjust::{check_counts, count, counts_words};
use super::params::SamplingParams;
use super::token::vectors;
use crate::case::{Case, Kernel, Mismatch, Output, Prepared, Rng, Work};
use crate::{Buffer, Check, DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::prim::DevicePtr;
use kernels_gpu::sample::accept as gpu;

/// Decides which drafts come true: the longest prefix of a sequence's drafts that equals what `Sample` drew for its
/// rows. Runs after `Sample`, on the same parameters.
///
/// A sequence with k drafts has 1 + k rows, one after the other, all [`SamplingParams::DRAFTED`], with `draft_start` where its
/// drafts start and, for row j, `draft_len` j and the position of row 0 plus j. Penalties are allowed: row j of `Sample` sees the
/// counts from before the step and the drafts before it, and the tokens that come true are counted here.
/// Sequences without drafts may be among the others: 0 drafts, their one row `DRAFTED` or not.
pub struct AcceptDrafts<'a> {
    /// u32 [sequences, 2] without gaps: first row, drafts.
    pub table: View<'a>,
    /// u32 [1, rows]: what `Sample` drew.
    pub sampled: View<'a>,
    /// [rows, 20] u32: `Sample`'s.
    pub params: View<'a>,
    /// u32 [1, n]: draft tokens.
    pub drafts: View<'a>,
    /// u32 [1, slots]: gets the last of each sequence's tokens.
    pub last_tokens: Option<ViewMut<'a>>,
    /// As in `Adjust`: gets the tokens of `DRAFTED` sequences with penalties.
    pub counts: Option<ViewMut<'a>>,
    /// Tokens that there are.
    pub vocab: usize,
    /// For benchmarks with meaningless weights: each draft is accepted with this probability, given that those before it were,
    /// whatever was sampled. The sampled token of the row after them still follows.
    pub synthetic: Option<f32>,
    /// u32 [sequences, k + 2], for sequences of up to k drafts, k at most 31: how many drafts were accepted, then these,
    /// the token after them, and `u32::MAX`.
    pub out: ViewMut<'a>,
}

impl AcceptDrafts<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        let AcceptDrafts { table, sampled, params, drafts, mut last_tokens, mut counts, vocab, synthetic, mut out } =
            self;
        let mut check = Check::new("accept_drafts");
        check.typed("table", &table, DType::U32, ["sequences", "2"])?;
        check.require(table.is_contiguous(), || "table must have no gaps between rows".into())?;
        check.typed("sampled", &sampled, DType::U32, ["1", "rows"])?;
        check.typed("params", &params, DType::U32, ["rows", "20"])?;
        vectors(&check, "params", &params)?;
        check.typed("drafts", &drafts, DType::U32, ["1", "drafts"])?;
        check.typed("out", &out.as_view(), DType::U32, ["sequences", "width"])?;
        let (sequences, width) = (check.dim("sequences"), check.dim("width"));
        check.require((2..=gpu::MOST_DRAFTS as usize + 2).contains(&width), || {
            format!(
                "out has {width} words a row, 2 and one per draft are needed, for at most {} drafts",
                gpu::MOST_DRAFTS
            )
        })?;
        check.require(synthetic.is_none_or(|p| (0.0..=1.0).contains(&p)), || {
            format!("the probability of acceptance is {synthetic:?}, it must be between 0 and 1")
        })?;
        if let Some(last_tokens) = &last_tokens {
            check.typed("last_tokens", &last_tokens.as_view(), DType::U32, ["1", "slots"])?;
        }
        if let Some(counts) = &counts {
            check_counts(&mut check, &counts.as_view(), vocab)?;
        }
        if stream.is_cpu() {
            let last_tokens = last_tokens.as_mut().map_or(&mut [][..], |view| view.row_mut::<u32>(0));
            for (sequence, row) in table.host::<u32>().chunks(2).enumerate() {
                let rows = Rows { sampled: sampled.row(0), params, drafts: drafts.row(0), synthetic };
                rows.accept([row[0], row[1]], out.row_mut(sequence), last_tokens, counts.as_mut(), vocab);
            }
            return Ok(());
        }
        let args = gpu::AcceptDrafts {
            table: table.ptr(),
            sampled: sampled.ptr(),
            params: params.ptr(),
            drafts: drafts.ptr(),
            last_tokens: last_tokens.as_ref().map_or(DevicePtr(0), ViewMut::ptr),
            counts: counts.as_ref().map_or(DevicePtr(0), ViewMut::ptr),
            out: out.ptr(),
            sequences: sequences as u32,
            rows: sampled.cols() as u32,
            params_stride: params.stride() as u32,
            draft_count: drafts.cols() as u32,
            slots: last_tokens.as_ref().map_or(0, |view| view.cols() as u32),
            count_slots: counts.as_ref().map_or(0, |view| view.rows() as u32),
            counts_stride: counts.as_ref().map_or(0, |view| view.stride() as u32),
            vocab: vocab as u32,
            width: width as u32 - 2,
            out_stride: out.stride() as u32,
            synthetic: synthetic.unwrap_or(-1.0),
        };
        let blocks = sequences.div_ceil(gpu::THREADS as usize / 32);
        // SAFETY: a warp per sequence; rows, drafts, slots and tokens are compared with the numbers of those that there are,
        // and the views were checked to have them and a row of `width` words per sequence.
        unsafe { stream.launch(gpu::accept_drafts, Launch::grid(blocks).dependent(), &args) }
    }
}

/// What the sequences share, on the CPU device.
struct Rows<'a> {
    sampled: &'a [u32],
    params: View<'a>,
    drafts: &'a [u32],
    synthetic: Option<f32>,
}

impl Rows<'_> {
    fn accept(
        &self,
        [first, drafts]: [u32; 2],
        out: &mut [u32],
        last_tokens: &mut [u32],
        counts: Option<&mut ViewMut<'_>>,
        vocab: usize,
    ) {
        let first = first as usize;
        let Some(left) = self.sampled.len().checked_sub(first + 1) else { return };
        let drafts = (drafts as usize).min(out.len() - 2).min(left);
        let draft = |j: usize| {
            let start = SamplingParams::read(self.params, first).draft_start as usize;
            self.drafts.get(start + j).copied().filter(|&token| token != gpu::NO_TOKEN)
        };
        let agreed = |&j: &usize| {
            let params = SamplingParams::read(self.params, first + j);
            draft(j).is_some_and(|draft| match self.synthetic {
                Some(p) => gpu::by_chance([params.seed_lo, params.seed_hi], params.position, p),
                None => draft == self.sampled[first + j],
            })
        };
        let accepted = (0..drafts).take_while(agreed).count();
        let last = self.sampled[first + accepted];
        let tokens: Vec<u32> = (0..accepted).filter_map(draft).chain([last]).collect();
        out.fill(gpu::NO_TOKEN);
        out[0] = accepted as u32;
        out[1..][..tokens.len()].copy_from_slice(&tokens);

        let params = SamplingParams::read(self.params, first);
        if let Some(slot) = last_tokens.get_mut(params.seq_slot as usize) {
            *slot = last;
        }
        if let Some(counts) = counts.filter(|_| params.is_drafted() && params.has_penalties()) {
            let known = tokens.iter().filter(|&&token| (token as usize) < vocab);
            known.for_each(|&token| count(counts, params.seq_slot, token));
        }
    }
}

/// Tests and benches.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        name: "sample/accept",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases: Vec<Box<dyn Case>> = Vec::new();
            for (sequences, drafts) in [(32, 5), (1, 7), (256, 3), (5, 31), (9, 0)] {
                for synthetic in [None, Some(0.8)] {
                    cases.push(Box::new(Problem { sequences, drafts, synthetic }));
                }
            }
            cases.push(Box::new(Problem { sequences: 4, drafts: 4, synthetic: Some(0.0) }));
            cases.push(Box::new(Problem { sequences: 4, drafts: 4, synthetic: Some(1.0) }));
            cases.push(Box::new(Chances));
            cases
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            (1usize..50, 0usize..=31, proptest::option::of(0f32..1.0))
                .prop_map(|(sequences, drafts, synthetic)| {
                    Box::new(Problem { sequences, drafts, synthetic }) as Box<dyn Case>
                })
                .boxed()
        },
    }
}

/// Few, so that drafts often have a token twice.
const VOCAB: usize = 11;

#[derive(Clone, Copy, Debug)]
struct Problem {
    sequences: usize,
    /// The most that a sequence has.
    drafts: usize,
    synthetic: Option<f32>,
}

impl Problem {
    /// Sequences of up to `drafts` drafts that come true with probability 3/4, rows in an order of their own.
    fn data(&self, stream: &Stream, seed: u64) -> Result<Data, Error> {
        let mut rng = Rng::new(seed);
        let (mut table, mut sampled, mut params, mut drafts) = (Vec::new(), Vec::new(), Vec::new(), vec![7]);
        for sequence in 0..self.sequences {
            let count = if sequence == 0 { self.drafts } else { rng.below(self.drafts + 1) };
            // A sequence without drafts may be a plain one.
            let drafted = count > 0 || rng.below(2) == 0;
            table.extend([sampled.len() as u32, count as u32]);
            let own: Vec<u32> = (0..=count).map(|_| rng.below(VOCAB) as u32).collect();
            let (seed, position, penalised) = (rng.bits(), rng.below(1000) as u32, rng.below(2) == 0);
            params.extend((0..=count as u32).map(|row| SamplingParams {
                seed_lo: seed as u32,
                seed_hi: (seed >> 32) as u32,
                position: position + row,
                seq_slot: if rng.below(9) == 0 { SamplingParams::NONE } else { sequence as u32 },
                flags: if drafted { SamplingParams::DRAFTED } else { 0 },
                presence_penalty: if penalised { 0.5 } else { 0.0 },
                draft_start: drafts.len() as u32,
                draft_len: row,
                ..SamplingParams::GREEDY
            }));
            // The rows of one sequence name one slot.
            let slot = params[params.len() - 1].seq_slot;
            let rows = params.len() - 1 - count;
            params[rows..].iter_mut().for_each(|row| row.seq_slot = slot);
            drafts.extend(own[..count].iter().map(|&token| if rng.below(4) == 0 { (token + 1) % 11 } else { token }));
            sampled.extend(own);
        }
        let upload = |words: &[u32]| -> Result<Buffer, Error> {
            let mut buffer = Buffer::new(stream.device(), DType::U32, words.len())?;
            stream.upload(words, buffer.view_mut())?;
            Ok(buffer)
        };
        Ok(Data {
            problem: *self,
            device_table: upload(&table)?,
            device_sampled: upload(&sampled)?,
            device_params: upload(bytemuck::cast_slice(&params))?,
            device_drafts: upload(&drafts)?,
            last_tokens: Buffer::new(stream.device(), DType::U32, self.sequences)?,
            counts: Buffer::new(stream.device(), DType::U32, self.sequences * counts_words(VOCAB))?,
            out: Buffer::new(stream.device(), DType::U32, self.sequences * (self.drafts + 2))?,
            table,
            sampled,
            params,
            drafts,
        })
    }
}

impl Case for Problem {
    fn id(&self) -> String {
        format!("accept sequences={} drafts={} synthetic={:?}", self.sequences, self.drafts, self.synthetic)
    }

    fn work(&self) -> Work {
        Work { bytes: (self.sequences * ((self.drafts + 1) * 48 + 16)) as u64, flops: 0 }
    }

    fn bench(&self) -> bool {
        self.sequences == 32 && self.synthetic.is_none()
    }

    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        Ok(Box::new(self.data(stream, seed)?))
    }
}

struct Data {
    problem: Problem,
    table: Vec<u32>,
    sampled: Vec<u32>,
    params: Vec<SamplingParams>,
    drafts: Vec<u32>,
    device_table: Buffer,
    device_sampled: Buffer,
    device_params: Buffer,
    device_drafts: Buffer,
    last_tokens: Buffer,
    counts: Buffer,
    out: Buffer,
}

/// What `last_tokens` holds before; counts start at 1 for odd tokens.
const FORMER: u32 = 0x7654_3210;

impl Prepared for Data {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Problem { sequences, drafts, synthetic } = self.problem;
        AcceptDrafts {
            table: self.device_table.matrix(sequences, 2),
            sampled: self.device_sampled.view(),
            params: self.device_params.matrix(self.params.len(), SamplingParams::WORDS),
            drafts: self.device_drafts.view(),
            last_tokens: Some(self.last_tokens.view_mut()),
            counts: Some(self.counts.matrix_mut(sequences, counts_words(VOCAB))),
            vocab: VOCAB,
            synthetic,
            out: self.out.matrix_mut(sequences, drafts + 2),
        }
        .launch(stream)
    }

    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        stream.upload(&vec![FORMER; self.last_tokens.len()], self.last_tokens.view_mut())?;
        stream.upload(&vec![1u32 << 16; self.counts.len()], self.counts.view_mut())?;
        stream.upload(&vec![FORMER; self.out.len()], self.out.view_mut())?;
        self.launch(stream)?;
        let outputs = [("out", &self.out), ("last_tokens", &self.last_tokens), ("counts", &self.counts)];
        outputs.into_iter().map(|(name, buffer)| Output::of(name, buffer, stream)).collect()
    }

    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        let outputs = self.outputs(stream)?;
        let found: Vec<Vec<u32>> = outputs.iter().map(Output::words).collect();
        let mut expected = [Vec::new(), vec![FORMER; self.last_tokens.len()], vec![1u32 << 16; self.counts.len()]];
        for row in self.table.chunks(2) {
            let (first, count) = (row[0] as usize, row[1] as usize);
            let params = &self.params[first];
            let drafts = &self.drafts[params.draft_start as usize..][..count];
            let accepts = |j: &usize| match self.problem.synthetic {
                None => drafts[*j] == self.sampled[first + j],
                Some(p) => {
                    let seed = [params.seed_lo, params.seed_hi];
                    let [low, high, ..] =
                        kernels_gpu::tile::philox::philox4x32::<10>([params.position + *j as u32, 1, 0, 0], seed);
                    let random = f64::from(high) / 2f64.powi(32) + f64::from(low) / 2f64.powi(64);
                    random < f64::from(p)
                }
            };
            let accepted = (0..count).take_while(accepts).count();
            let mut tokens = drafts[..accepted].to_vec();
            tokens.push(self.sampled[first + accepted]);
            expected[0].push(accepted as u32);
            expected[0].extend(&tokens);
            expected[0].extend(vec![u32::MAX; self.problem.drafts - accepted]);
            let slot = params.seq_slot as usize;
            if slot >= self.problem.sequences {
                continue;
            }
            expected[1][slot] = tokens[accepted];
            for &token in tokens.iter().filter(|_| params.presence_penalty > 0.0 && params.flags != 0) {
                expected[2][slot * counts_words(VOCAB) + token as usize / 2] += 1 << (token % 2 * 16);
            }
        }
        for ((output, found), expected) in outputs.iter().zip(&found).zip(&expected) {
            if let Some(at) = (0..expected.len()).find(|&i| found[i] != expected[i]) {
                let what = format!("{}[{at}] is {:#x}, expected {:#x}", output.name, found[at], expected[at]);
                return Err(Mismatch::Other(what));
            }
        }
        Ok(())
    }
}

/// Synthetic acceptance happens as often as it should.
#[derive(Debug)]
struct Chances;

struct Counted(Data);

impl Case for Chances {
    fn id(&self) -> String {
        "accept frequencies".into()
    }
    fn work(&self) -> Work {
        Work { bytes: 4000 * 400, flops: 0 }
    }
    fn prepare(&self, stream: &Stream, seed: u64) -> Result<Box<dyn Prepared>, Error> {
        let problem = Problem { sequences: 4000, drafts: 7, synthetic: Some(0.8) };
        Ok(Box::new(Counted(problem.data(stream, seed)?)))
    }
}

impl Prepared for Counted {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        self.0.launch(stream)
    }
    fn outputs(&mut self, stream: &Stream) -> Result<Vec<Output>, Error> {
        self.0.outputs(stream)
    }
    fn check(&mut self, stream: &Stream) -> Result<(), Mismatch> {
        self.0.check(stream)?;
        let out = self.0.outputs(stream)?[0].words();
        // Trials are drafts that came up: those accepted, and the first that was not.
        let (mut trials, mut accepted) = (0.0, 0.0);
        for (row, out) in self.0.table.chunks(2).zip(out.chunks(self.0.problem.drafts + 2)) {
            accepted += f64::from(out[0]);
            trials += f64::from(if out[0] < row[1] { out[0] + 1 } else { out[0] });
        }
        // About 8000 trials, deviation 0.0045 at most: five of them.
        let rate = accepted / trials;
        match (rate - 0.8).abs() < 0.0225 {
            true => Ok(()),
            false => Err(Mismatch::Other(format!("{rate} of the drafts were accepted, expected 0.8"))),
        }
    }
}
