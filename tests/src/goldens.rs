//! Golden checkpoints: tiny random models of every supported architecture, with the logits and
//! greedy continuations that Hugging Face transformers computes for them in f32.
//!
//! `tests/goldens/make.py` writes them and `tests/goldens/README.md` says what is in a folder.
//! A case's folder is also a complete model directory (but for a tokenizer), so an engine loads
//! [`Golden::dir`] as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// How far an engine's logits may stray, in multiples of what rounding to the checkpoint's dtype
/// does to transformers' own logits. Two honest roundings differ by about √2 of it; the smallest
/// mistake that `make.py` provokes on purpose moves them by more than 10.
pub const RMS_TOLERANCE: f64 = 2.0;

/// As [`RMS_TOLERANCE`], for the largest difference: an extreme of some 40 000 values, so looser.
pub const MAX_TOLERANCE: f64 = 3.0;

/// One golden case: what transformers says of the checkpoint beside it.
#[derive(Debug, Clone)]
pub struct Golden {
    /// The folder: `config.json` and the weights, loadable as a model directory.
    pub dir: PathBuf,
    /// What `golden.json` says.
    pub meta: Meta,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// 150 tokens of prompt (two full pages of 64 and part of a third) and 24 generated ones.
    pub a: Transcript,
    /// 5 tokens of prompt and 24 generated ones.
    pub b: Transcript,
    /// `[layers + 1, positions, hidden]` over [`Golden::a`]'s prompt: the embedding, then each
    /// layer's output, all before the final norm.
    layer_out: Vec<f32>,
}

/// `golden.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Meta {
    /// Name of the case and of its folder.
    pub case: String,
    /// Which features it is there for.
    pub about: String,
    /// As in `architectures` of `config.json`.
    pub architecture: String,
    /// The weights' dtype: `bfloat16` or `float16`.
    pub dtype: String,
    /// The positions of prompt `a` that [`Golden::layer_out`] has.
    pub positions: Vec<usize>,
    /// What rounding alone does.
    pub noise: Noise,
    /// Standard deviation of all logits.
    pub logits_std: f64,
    /// How much each omission (no rope scaling, no window …) moves the logits, in multiples of
    /// the noise.
    pub sensitivity: BTreeMap<String, Multiple>,
    /// Version that made it.
    pub transformers: String,
    /// Version that made it.
    pub torch: String,
}

/// Difference between transformers run in the checkpoint's dtype and in f32.
#[derive(Debug, Clone, Deserialize)]
pub struct Noise {
    /// The dtype it was run in.
    pub dtype: String,
    /// Largest difference of a logit.
    pub max_abs: f64,
    /// Root mean square over all logits.
    pub rms: f64,
    /// Root mean square over the rows of [`Golden::layer_out`], the embedding first (where it is 0).
    pub layer_rms: Vec<f64>,
}

/// A difference, in multiples of [`Noise`].
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Multiple {
    /// Of [`Noise::max_abs`].
    pub max: f64,
    /// Of [`Noise::rms`].
    pub rms: f64,
}

/// A prompt, its logits and its greedy continuation.
#[derive(Debug, Clone)]
pub struct Transcript {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// `[prompt, vocab]`, row-major.
    pub logits: Vec<f32>,
    /// Token ids generated after the prompt; none of them is a special token.
    pub greedy: Vec<u32>,
    /// For each generated token, how far its logit was above the second best.
    pub margin: Vec<f32>,
}

/// How far logits are from the golden ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Largest absolute difference; NaN counts as infinite.
    pub max_abs: f64,
    /// Row (position in the prompt) where it is.
    pub row: usize,
    /// Root mean square over all logits.
    pub rms: f64,
}

/// The folder of all goldens: `WOOTZ_GOLDENS` if it is set (the machine that runs the tests need not have the
/// sources), else `tests/goldens`.
pub fn root() -> PathBuf {
    match std::env::var_os("WOOTZ_GOLDENS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens"),
    }
}

/// The folders of all cases under [`root`], sorted.
///
/// # Errors
/// When the folder is missing or holds no case.
pub fn cases() -> Result<Vec<PathBuf>> {
    let root = root();
    let hint = || {
        format!(
            "no golden checkpoints in {}: set WOOTZ_GOLDENS to the folder, or run tests/goldens/make.py",
            root.display()
        )
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).with_context(hint)? {
        let dir = entry.with_context(hint)?.path();
        if dir.join("golden.json").is_file() {
            found.push(dir);
        }
    }
    ensure!(!found.is_empty(), hint());
    found.sort();
    Ok(found)
}

impl Golden {
    /// Reads `golden.json` and `golden.safetensors` in `dir` and checks that their shapes agree.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing or has another dtype or shape.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("golden.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let meta: Meta =
            serde_json::from_str(&text).with_context(|| format!("{} is not what make.py writes", path.display()))?;

        let path = dir.join("golden.safetensors");
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("{} is not a safetensors file", path.display()))?;
        Self::from_parts(dir, meta, &file).with_context(|| format!("in {}", path.display()))
    }

    fn from_parts(dir: &Path, meta: Meta, file: &SafeTensors<'_>) -> Result<Self> {
        let (a, vocab) = Transcript::read(file, "a")?;
        let (b, vocab_b) = Transcript::read(file, "b")?;
        ensure!(vocab == vocab_b, "logits_a has {vocab} columns and logits_b {vocab_b}");

        let (shape, layer_out) = read_f32(file, "layer_out")?;
        let &[outputs, positions, hidden] = shape.as_slice() else {
            bail!("layer_out has shape {shape:?}, expected [layers + 1, positions, hidden]");
        };
        ensure!(
            positions == meta.positions.len() && outputs == meta.noise.layer_rms.len() && outputs > 1,
            "layer_out has shape {shape:?}, but golden.json lists {} positions and {} outputs",
            meta.positions.len(),
            meta.noise.layer_rms.len()
        );
        let outside = meta.positions.iter().find(|&&p| p >= a.prompt.len());
        ensure!(outside.is_none(), "position {outside:?} is outside prompt_a");
        Ok(Self { dir: dir.to_owned(), meta, vocab, hidden, layers: outputs - 1, a, b, layer_out })
    }

    /// The residual stream of prompt `a` at `meta.positions[at]`, `hidden` values: the embedding
    /// for `output` 0, else the output of layer `output - 1`.
    ///
    /// # Panics
    /// When `output > layers` or `at >= meta.positions.len()`.
    pub fn layer_out(&self, output: usize, at: usize) -> &[f32] {
        assert!(output <= self.layers, "layer output {output} of {}", self.layers);
        assert!(at < self.meta.positions.len(), "position {at} of {}", self.meta.positions.len());
        let start = (output * self.meta.positions.len() + at) * self.hidden;
        &self.layer_out[start..start + self.hidden]
    }

    /// Whether a greedy choice with this top-two margin stands whatever the rounding: both logits
    /// may move by the noise, towards each other.
    pub fn is_sure(&self, margin: f32) -> bool {
        f64::from(margin) > 2.0 * self.meta.noise.max_abs
    }

    /// Compares `[prompt, vocab]` logits of an engine with the golden ones.
    ///
    /// # Errors
    /// When they differ by more than [`RMS_TOLERANCE`] or [`MAX_TOLERANCE`] times the noise.
    pub fn check_logits(&self, golden: &Transcript, got: &[f32]) -> Result<Difference> {
        let d = golden.difference(got)?;
        let noise = &self.meta.noise;
        ensure!(
            d.rms <= RMS_TOLERANCE * noise.rms && d.max_abs <= MAX_TOLERANCE * noise.max_abs,
            "{}: logits differ by {:.4} rms ({:.1} x the {} noise) and {:.4} at most ({:.1} x), at row {}",
            self.meta.case,
            d.rms,
            d.rms / noise.rms,
            noise.dtype,
            d.max_abs,
            d.max_abs / noise.max_abs,
            d.row
        );
        Ok(d)
    }

    /// Compares a free-running greedy continuation with the golden one, token for token up to the
    /// first choice that rounding may turn (after it the two texts are different prompts).
    /// Returns how many tokens were compared.
    ///
    /// # Errors
    /// Names the first step where a sure choice differs, or says that `got` is too short.
    pub fn check_greedy(&self, golden: &Transcript, got: &[u32]) -> Result<usize> {
        for (step, (&want, &margin)) in golden.greedy.iter().zip(&golden.margin).enumerate() {
            let Some(&token) = got.get(step) else {
                bail!("{}: {} tokens generated, expected {}", self.meta.case, got.len(), golden.greedy.len());
            };
            if token != want {
                ensure!(
                    !self.is_sure(margin),
                    "{}: step {step} chose token {token}, not {want}, whose margin {margin:.3} is above \
                     twice the noise of {:.3}",
                    self.meta.case,
                    self.meta.noise.max_abs
                );
                return Ok(step);
            }
        }
        Ok(golden.greedy.len())
    }
}

impl Transcript {
    /// Tensors `prompt_X`, `logits_X`, `greedy_X`, `margin_X`; the vocabulary's size beside them.
    fn read(file: &SafeTensors<'_>, which: &str) -> Result<(Self, usize)> {
        let prompt = read_tokens(file, &format!("prompt_{which}"))?;
        let (shape, logits) = read_f32(file, &format!("logits_{which}"))?;
        let &[rows, vocab] = shape.as_slice() else {
            bail!("logits_{which} has shape {shape:?}, expected [prompt, vocab]");
        };
        ensure!(rows == prompt.len(), "logits_{which} has {rows} rows for {} tokens", prompt.len());
        let greedy = read_tokens(file, &format!("greedy_{which}"))?;
        let (_, margin) = read_f32(file, &format!("margin_{which}"))?;
        ensure!(greedy.len() == margin.len(), "greedy_{which} and margin_{which} differ in length");
        let outside = prompt.iter().chain(&greedy).find(|&&t| t as usize >= vocab);
        ensure!(outside.is_none(), "token {outside:?} is outside the vocabulary of {vocab}");
        Ok((Self { prompt, logits, greedy, margin }, vocab))
    }

    /// The logits after prompt token `row`.
    ///
    /// # Panics
    /// When `row` is outside the prompt.
    pub fn logits_row(&self, row: usize) -> &[f32] {
        let vocab = self.logits.len() / self.prompt.len();
        &self.logits[row * vocab..(row + 1) * vocab]
    }

    /// Prompt and continuation as one sequence, for teacher-forced runs: the logits after token
    /// `prompt.len() - 1 + i` choose `greedy[i]`.
    pub fn tokens(&self) -> Vec<u32> {
        [self.prompt.as_slice(), &self.greedy].concat()
    }

    /// How far `got`, `[prompt, vocab]`, is from the golden logits.
    ///
    /// # Errors
    /// When `got` has another number of values.
    pub fn difference(&self, got: &[f32]) -> Result<Difference> {
        ensure!(got.len() == self.logits.len(), "{} logits, expected {}", got.len(), self.logits.len());
        let vocab = self.logits.len() / self.prompt.len();
        let mut d = Difference { max_abs: 0.0, row: 0, rms: 0.0 };
        for (i, (&want, &got)) in self.logits.iter().zip(got).enumerate() {
            let diff = f64::from(got) - f64::from(want);
            let diff = if diff.is_nan() { f64::INFINITY } else { diff.abs() };
            if diff > d.max_abs {
                (d.max_abs, d.row) = (diff, i / vocab);
            }
            d.rms += diff * diff;
        }
        d.rms = (d.rms / self.logits.len() as f64).sqrt();
        Ok(d)
    }
}

fn read_f32(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let (shape, words) = read_words(file, name, Dtype::F32)?;
    Ok((shape, words.map(f32::from_le_bytes).collect()))
}

fn read_tokens(file: &SafeTensors<'_>, name: &str) -> Result<Vec<u32>> {
    let (shape, words) = read_words(file, name, Dtype::I32)?;
    ensure!(shape.len() == 1 && shape[0] > 0, "{name} has shape {shape:?}, expected one dimension");
    words
        .map(|w| u32::try_from(i32::from_le_bytes(w)).with_context(|| format!("{name} has a negative token")))
        .collect()
}

/// A tensor's shape and its 4-byte values.
fn read_words<'a>(
    file: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
) -> Result<(Vec<usize>, impl Iterator<Item = [u8; 4]> + use<'a>)> {
    let view = file.tensor(name).with_context(|| format!("no tensor {name}"))?;
    ensure!(view.dtype() == dtype, "{name} is {:?}, expected {dtype:?}", view.dtype());
    let (words, _) = view.data().as_chunks::<4>();
    Ok((view.shape().to_vec(), words.iter().copied()))
}

/// Tests of the goldens themselves, one per case: that they load, agree with themselves and can
/// tell a right engine from a wrong one.
pub fn trials() -> Vec<Trial> {
    match cases() {
        Ok(dirs) => dirs.into_iter().map(trial).collect(),
        Err(e) => vec![Trial::test("goldens", move || Err(format!("{e:#}").into()))],
    }
}

fn trial(dir: PathBuf) -> Trial {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Trial::test(format!("goldens::{name}"), move || {
        Golden::load(&dir).and_then(|g| check_consistent(&g)).map_err(|e| format!("{e:#}").into())
    })
}

fn check_consistent(g: &Golden) -> Result<()> {
    ensure!(g.dir.join("config.json").is_file(), "no config.json");
    for t in [&g.a, &g.b] {
        // The last prompt row chooses the first generated token, by the margin on file.
        let (best, margin) = top_two(t.logits_row(t.prompt.len() - 1));
        ensure!(
            best == t.greedy[0] && (margin - t.margin[0]).abs() < 1e-3,
            "last row chooses {best} by {margin}, golden {} by {}",
            t.greedy[0],
            t.margin[0]
        );
        ensure!(g.check_logits(t, &t.logits)?.max_abs == 0.0, "golden logits differ from themselves");
        ensure!(g.check_greedy(t, &t.greedy)? == t.greedy.len(), "golden tokens differ from themselves");

        // Every row moved by one position is a plausible mistake, and must be seen.
        let vocab = t.logits.len() / t.prompt.len();
        let mut shifted = t.logits.clone();
        shifted.rotate_left(vocab);
        ensure!(g.check_logits(t, &shifted).is_err(), "a shift by one row goes unseen");
        if let Some(step) = t.margin.iter().position(|&m| g.is_sure(m)) {
            let mut wrong = t.greedy.clone();
            wrong[step] ^= 1;
            ensure!(g.check_greedy(t, &wrong).is_err(), "a wrong token at step {step} goes unseen");
        }
    }
    let sure = g.a.margin.iter().chain(&g.b.margin).filter(|&&m| g.is_sure(m)).count();
    ensure!(sure >= 24, "only {sure} of 48 greedy choices stand above the noise");
    for output in 0..=g.layers {
        let row = g.layer_out(output, g.meta.positions.len() - 1);
        ensure!(row.iter().all(|v| v.is_finite()) && row.iter().any(|&v| v != 0.0), "layer output {output}");
    }
    Ok(())
}

/// Index of the largest value and its distance from the second largest.
fn top_two(row: &[f32]) -> (u32, f32) {
    let (mut best, mut top, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &v) in row.iter().enumerate() {
        if v > top {
            (best, second, top) = (i as u32, top, v);
        } else if v > second {
            second = v;
        }
    }
    (best, top - second)
}
