//! The linear layers of a decode step, one after another, against the same chain on cuBLASLt.
use super::Bench;
use super::calibrate::random;
use super::gemm::{LLAMA_8B, TURN_US};
use super::row::{Group, Rival, Row};
use crate::bench::timing::{Replay, alternate};
use anyhow::{Result, ensure};
use kernels_host::cublaslt::{CublasLt, Product};
use kernels_host::gemm::{Activation, Gemm};
use kernels_host::{Buffer, DType, Error, Stream, View, ViewMut};
use std::cell::RefCell;

/// Layers.
const LAYERS: usize = 32;
/// Most rows.
const MOST_ROWS: usize = 128;

/// 128 products, each on weights of its own, as one graph: 1 to 128 rows.
pub fn run(bench: &mut Bench<'_>) -> Result<()> {
    let Some(library) = bench.cublaslt else { return Ok(()) };
    let stream = bench.overlapped()?;
    let weights = LLAMA_8B
        .iter()
        .enumerate()
        .map(|(i, &(_, n, k))| random(&stream, LAYERS * n * k, i as u64))
        .collect::<Result<Vec<_>, _>>()?;
    let tokens: &[usize] = if bench.quick { &[1, 32] } else { &[1, 8, 32, 128] };
    for &m in tokens {
        let algorithms = algorithms(library, &stream, &weights, m)?;
        let (ours, theirs) = (RefCell::new(Activations::new(&stream)?), RefCell::new(Activations::new(&stream)?));
        let launch = |stream: &Stream, _| {
            chain(m, &weights, &mut ours.borrow_mut(), |_, a, w, out| {
                Gemm { a, w, bias: None, activation: Activation::None, accumulate: false, out }.launch(stream)
            })
        };
        // Loads the kernels, which a capture must not.
        launch(&stream, 0)?;
        let ours = Replay::capture(&stream, 1, launch)?;
        let theirs = Replay::capture(&stream, 1, |stream, _| {
            chain(m, &weights, &mut theirs.borrow_mut(), |linear, a, w, out| {
                let (product, algorithm) = &algorithms[linear];
                product.launch(*algorithm, a, w, out, stream)
            })
        })?;
        let samples = alternate(&stream, &[&ours, &theirs], bench.rounds(), 4.0 * TURN_US)?;
        let size: usize = LLAMA_8B.iter().map(|(_, n, k)| n * k).sum();
        let between: usize = LLAMA_8B.iter().map(|(_, n, k)| n + k).sum();
        bench.add(Row {
            group: Group::Chain,
            work: format!("128 linears of 8B, m={m}"),
            ours: (&samples[0]).into(),
            rival: Rival::Timed((&samples[1]).into()),
            rival_name: "cuBLASLt chain".into(),
            bar: None,
            value: None,
            bytes: (2 * LAYERS * (size + m * between)) as u64,
            flops: (2 * LAYERS * m * size) as u64,
            reads: m == 1,
        })?;
    }
    Ok(())
}

/// What flows between the layers.
struct Activations {
    input: Buffer,
    hidden: Buffer,
    wide: Buffer,
}

impl Activations {
    fn new(stream: &Stream) -> Result<Self, Error> {
        let most = LLAMA_8B.iter().map(|(_, n, _)| MOST_ROWS * n).max().unwrap_or(0);
        let empty = |len| Buffer::new(stream.device(), DType::Bf16, len);
        Ok(Activations {
            input: random(stream, MOST_ROWS * 4096, 9)?,
            hidden: empty(MOST_ROWS * 4096)?,
            wide: empty(most)?,
        })
    }
}

/// Calls `product` for each of the linear layers, whose inputs are the outputs before them: qkv and gate-up write the wide
/// buffer, attention's output and down read the front of it.
fn chain(
    m: usize,
    weights: &[Buffer],
    work: &mut Activations,
    mut product: impl FnMut(usize, View<'_>, View<'_>, ViewMut<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    for layer in 0..LAYERS {
        for (linear, &(_, n, k)) in LLAMA_8B.iter().enumerate() {
            let w = weights[linear].view().columns(layer * n * k, n * k).matrix(n, k);
            let Activations { input, hidden, wide } = work;
            if linear % 2 == 1 {
                product(linear, wide.matrix(m, k), w, hidden.matrix_mut(m, n))?;
            } else {
                // The same input in every replay: products of products would vanish.
                let from = if (layer, linear) == (0, 0) { &*input } else { &*hidden };
                product(linear, from.matrix(m, k), w, wide.matrix_mut(m, n))?;
            }
        }
    }
    Ok(())
}

/// The fastest algorithm of each linear layer, by a graph over its weights in all layers.
fn algorithms<'a>(
    library: &'a CublasLt,
    stream: &Stream,
    weights: &[Buffer],
    m: usize,
) -> Result<Vec<(Product<'a>, usize)>> {
    let mut chosen = Vec::new();
    for (&(name, n, k), weights) in LLAMA_8B.iter().zip(weights) {
        let product = library.product(m, n, k)?;
        let a = random(stream, m * k, 10)?;
        let out = RefCell::new(Buffer::new(stream.device(), DType::Bf16, m * n)?);
        let mut best: Option<(f64, usize)> = None;
        for algorithm in 0..product.algorithms() {
            let launch = |stream: &Stream, turn: usize| {
                let w = weights.view().columns(turn * n * k, n * k).matrix(n, k);
                product.launch(algorithm, a.matrix(m, k), w, out.borrow_mut().matrix_mut(m, n), stream)
            };
            if launch(stream, 0).is_err() {
                continue;
            }
            let replay = Replay::capture(stream, LAYERS, launch)?;
            let us = replay.sample(stream, 2)?.min(replay.sample(stream, 2)?);
            if best.is_none_or(|(least, _)| us < least) {
                best = Some((us, algorithm));
            }
        }
        ensure!(best.is_some(), "none of cuBLASLt's algorithms runs {name} with m = {m}");
        chosen.push((product, best.map_or(0, |(_, algorithm)| algorithm)));
    }
    Ok(chosen)
}
