//! What this GPU does today: a matrix product, a copy, and reading.
use super::Calibration;
use crate::bench::timing::Replay;
use kernels_host::cublaslt::CublasLt;
use kernels_host::fill::{FillNormal, Sum};
use kernels_host::gemm::{Activation, Gemm};
use kernels_host::{Buffer, DType, Error, Stream};
use std::time::Instant;

/// Elements of the copied and read buffers: 2 GiB.
const COPIED: usize = 1 << 30;
/// Side of the product.
const SIDE: usize = 8192;

/// Measures; takes about three seconds.
pub fn run(stream: &Stream, cublaslt: Option<&CublasLt>, quick: bool) -> Result<Calibration, Error> {
    let seconds = if quick { 0.5 } else { 2.0 };
    Ok(Calibration {
        product_tflop_per_s: product(stream, cublaslt, seconds)?,
        copy_gb_per_s: copy(stream)?,
        read_gb_per_s: read(stream)?,
    })
}

/// The mean rate over `seconds`: a long product is bound by power, and the clocks follow.
fn product(stream: &Stream, cublaslt: Option<&CublasLt>, seconds: f64) -> Result<f64, Error> {
    let mut operands = random(stream, 2 * SIDE * SIDE, 1)?;
    let mut out = Buffer::new(stream.device(), DType::Bf16, SIDE * SIDE)?;
    let product = cublaslt.map(|library| library.product(SIDE, SIDE, SIDE)).transpose()?;
    let operands = &mut operands;
    let mut launch = |stream: &Stream, _| {
        let [a, w] = [0, 1].map(|i| operands.view().columns(i * SIDE * SIDE, SIDE * SIDE).matrix(SIDE, SIDE));
        let out = out.matrix_mut(SIDE, SIDE);
        match &product {
            Some(product) => product.launch(0, a, w, out, stream),
            None => Gemm { a, w, bias: None, activation: Activation::None, accumulate: false, out }.launch(stream),
        }
    };
    launch(stream, 0)?;
    let replay = Replay::capture(stream, 10, launch)?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed().as_secs_f64() < seconds {
        times.push(replay.sample(stream, 10)?);
    }
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    Ok(2.0 * (SIDE as f64).powi(3) / mean / 1e6)
}

/// Bytes read and written.
fn copy(stream: &Stream) -> Result<f64, Error> {
    let from = random(stream, COPIED, 2)?;
    let mut into = Buffer::new(stream.device(), DType::Bf16, COPIED)?;
    let us = best(stream, |stream, _| stream.copy(from.view(), into.view_mut()))?;
    Ok(2.0 * 2.0 * COPIED as f64 / us / 1e3)
}

/// Of 2 GiB, which the cache cannot hold.
fn read(stream: &Stream) -> Result<f64, Error> {
    let values = random(stream, COPIED, 5)?;
    let mut out = Buffer::new(stream.device(), DType::U32, Sum::parts(stream.device()))?;
    stream.synchronize()?;
    let mut launch = |stream: &Stream, _| Sum { words: values.view().words(), out: out.view_mut() }.launch(stream);
    // Loads the kernel, which a capture must not.
    launch(stream, 0)?;
    Ok(2.0 * COPIED as f64 / best(stream, launch)? / 1e3)
}

/// Microseconds of one work in the best of ten samples.
fn best(stream: &Stream, work: impl FnMut(&Stream, usize) -> Result<(), Error>) -> Result<f64, Error> {
    let replay = Replay::capture(stream, 4, work)?;
    (0..10).try_fold(f64::INFINITY, |best, _| Ok(best.min(replay.sample(stream, 1)?)))
}

/// About normal values of deviation 1/√8192, so that products of the largest shapes are about 1.
pub fn random(stream: &Stream, len: usize, seed: u64) -> Result<Buffer, Error> {
    normal(stream, len, seed, 0.011)
}

/// About normal values of deviation `scale`.
pub fn normal(stream: &Stream, len: usize, seed: u64, scale: f32) -> Result<Buffer, Error> {
    let mut buffer = Buffer::new(stream.device(), DType::Bf16, len)?;
    FillNormal { out: buffer.view_mut(), seed, scale, offset: 0.0 }.launch(stream)?;
    Ok(buffer)
}
