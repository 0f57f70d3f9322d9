//! `wootz bench tune`: measures which kernel, cut how, computes each product fastest, and writes the table of it.
use super::timing::{Replay, alternate, graph_works, timed};
use crate::device::{DeviceArgs, DeviceChoice};
use anyhow::{Context, Result, ensure};
use clap::Args;
use kernels_host::fill::FillNormal;
use kernels_host::gemm::{Activation, Choice, Gemm};
use kernels_host::{Buffer, DType, Device, Error, Stream, View};
use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `wootz bench tune`.
#[derive(Args, Debug)]
#[command(after_help = "Example: wootz bench tune --only \"4096 14336 \" --out tuned.txt\n\n\
    The table that launches go by is kernels-host/src/gemm/tuned.txt; `cargo xtask tune` writes it.")]
pub struct TuneArgs {
    /// Write the table to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write every choice's time to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Only products whose "n k m" contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only products of at least this many rows
    #[arg(long, value_name = "M", default_value_t = 1)]
    rows_from: usize,
    /// Only products of at most this many rows
    #[arg(long, value_name = "M", default_value_t = usize::MAX, hide_default_value = true)]
    rows_to: usize,
    /// What the table's header says besides the GPU and the driver: date, commit, compilers
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Linear layers, [n, k], and whether they are gated: of Llama-3.1-8B with its head, a quarter of the 70B's, of
/// Llama-3.2-1B and 3B; squares.
const LINEARS: [(usize, usize, bool); 18] = [
    (6144, 4096, false),
    (4096, 4096, false),
    (28672, 4096, true),
    (4096, 14336, false),
    (128_256, 4096, false),
    (2560, 8192, false),
    (8192, 2048, false),
    (14336, 8192, true),
    (8192, 7168, false),
    (3072, 2048, false),
    (2048, 2048, false),
    (16384, 2048, true),
    (2048, 8192, false),
    (5120, 3072, false),
    (3072, 3072, false),
    (16384, 3072, true),
    (3072, 8192, false),
    (8192, 8192, false),
];
/// The layers of each model above in the order of a step: places in [`LINEARS`].
const MODELS: [[usize; 4]; 4] = [[0, 1, 2, 3], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]];
/// Layers of a chain, and of them those with weights of their own: at least 600 MB.
const CHAINED_LAYERS: usize = 12;
const CHAINED_COPIES: usize = 6;
const DECODE: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
const PREFILL: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
/// Data of a rotation: five times an H200's L2 cache.
const ROTATED_BYTES: usize = 300_000_000;
/// How choices are timed against each other: how many of the fastest, rounds, and microseconds of a turn.
struct Finals {
    finalists: usize,
    rounds: usize,
    turn_us: f64,
}
const FINALS: Finals = Finals { finalists: 8, rounds: 5, turn_us: 1500.0 };
/// Of products of [`SUSTAINED_ROWS`] and more, long enough for the card to be at its power limit, as it is in the steps of
/// a prefill. There another choice wins than in a burst.
const SUSTAINED: Finals = Finals { finalists: 8, rounds: 3, turn_us: 50_000.0 };
const SUSTAINED_ROWS: usize = 1024;

/// A product to be tuned.
#[derive(Clone, Copy)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    gated: bool,
}

impl Product {
    fn name(self) -> String {
        format!("{} {} {}", self.n, self.k, self.m)
    }
    /// Sets of weights.
    fn copies(self) -> usize {
        ROTATED_BYTES.div_ceil(2 * self.n * self.k).clamp(1, 64)
    }
    fn width(self) -> usize {
        if self.gated { self.n / 2 } else { self.n }
    }
    fn launch(self, choice: Choice, w: View<'_>, pools: &Pools, stream: &Stream) -> Result<(), Error> {
        let mut out = pools.out.borrow_mut();
        let activation = if self.gated { Activation::SwiGlu } else { Activation::None };
        let (a, out) = (pools.a.matrix(self.m, self.k), out.matrix_mut(self.m, self.width()));
        Gemm { a, w, bias: None, activation, accumulate: false, out }.launch_as(stream, choice)
    }
}

fn products(only: &str) -> Vec<Product> {
    let mut products = Vec::new();
    for (n, k, gated) in LINEARS {
        // Prompts do not come to the head, and the square is no layer.
        let decode: &[usize] = if n == k && n == 8192 { &[] } else { &DECODE };
        let prefill: &[usize] = if n > 100_000 { &[] } else { &PREFILL };
        products.extend(decode.iter().chain(prefill).map(|&m| Product { m, n, k, gated }));
    }
    products.retain(|product| product.name().contains(only));
    products
}

/// The operands: large enough for each product's, which overlap.
struct Pools {
    a: Buffer,
    w: Buffer,
    out: RefCell<Buffer>,
}

/// Runs the command.
pub fn run(args: &TuneArgs) -> Result<ExitCode> {
    let mut out = io::stdout();
    let device = match args.device.device {
        DeviceChoice::Cuda(ordinal, target) => Device::cuda_with_target(ordinal, target),
        _ => Device::cuda(0),
    };
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            writeln!(out, "tuning NOT RUN: {error}")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    // What runs before and after differs from model to model: kernels are measured by themselves.
    let stream = device.stream()?.without_overlap();
    let mut products = products(args.only.as_deref().unwrap_or_default());
    products.retain(|product| (args.rows_from..=args.rows_to).contains(&product.m));
    ensure!(!products.is_empty(), "no product of --rows-from to --rows-to contains {:?}", args.only);
    let most = |size: &dyn Fn(&Product) -> usize| products.iter().map(size).max().unwrap_or(0);
    let models = models(&products);
    let chained = models.iter().map(Model::elements).max().unwrap_or(0);
    let pools = Pools {
        a: random(&stream, most(&|p| p.m * p.k), 1.0)?,
        // Outputs of about 1.
        w: random(&stream, most(&|p| p.copies() * p.n * p.k).max(chained), 1.0 / 64.0)?,
        out: RefCell::new(Buffer::new(&device, DType::Bf16, most(&|p| p.m * p.width()))?),
    };
    let mut table = header(&device, &args.note)?;
    let mut log = String::new();
    let mut tuned = Vec::new();
    for product in products {
        let name = product.name();
        let times = tune(product, &pools, &stream, &mut log).with_context(|| name.clone())?;
        let next: Vec<_> = times.iter().skip(1).map(|(choice, us)| format!("{choice} {us:.2}")).collect();
        if let Some((choice, us)) = times.first() {
            writeln!(out, "{name:18} {us:9.2} µs  {choice}  (then {})", next.join(", "))?;
        }
        tuned.push((product, times));
    }
    let overlapped = device.stream()?;
    for model in models {
        writeln!(out, "{}", model.tune(&mut tuned, &pools, &overlapped)?)?;
    }
    for (product, times) in &tuned {
        let Some((choice, us)) = times.first() else { continue };
        writeln!(table, "{} {choice} | {us:.2}", product.name())?;
    }
    for (path, text) in [(&args.out, &table), (&args.log, &log)] {
        if let Some(path) = path {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn header(device: &Device, note: &str) -> Result<String> {
    let mut text = String::from(
        "# Which kernel computes a product: n k m kernel parameters | microseconds. `wootz bench tune` writes it.\n\
         # bf16, weights from memory. The time is that of the product alone, in a graph without programmatic launch. Up to\n\
         # 128 rows the choice is the one with which a chain of a model's layers with programmatic launch is fastest; of 1024\n\
         # rows and more, of turns of 50 ms, with the card at its power limit.\n",
    );
    writeln!(
        text,
        "# {}, driver for CUDA {}, wootz {}",
        device.name(),
        Device::driver_version()?,
        env!("CARGO_PKG_VERSION")
    )?;
    if !note.is_empty() {
        writeln!(text, "# {note}")?;
    }
    writeln!(text, "# multiprocessors {}", device.multiprocessors())?;
    Ok(text)
}

/// A product, and its choices with their times alone, the first the chosen one.
type Tuned = (Product, Vec<(Choice, f64)>);

/// A model's four linear layers at a number of rows, which run one after another.
struct Model {
    m: usize,
    linears: [usize; 4],
}

/// Those of which all products are tuned.
fn models(products: &[Product]) -> Vec<Model> {
    let all = MODELS.into_iter().flat_map(|linears| DECODE.map(|m| Model { m, linears }));
    all.filter(|model| {
        let tuned = |&i: &usize| products.iter().any(|p| (p.m, p.n, p.k) == (model.m, LINEARS[i].0, LINEARS[i].1));
        model.linears.iter().all(tuned)
    })
    .collect()
}

impl Model {
    /// Elements of weights of a layer.
    fn layer(&self) -> usize {
        self.linears.iter().map(|&i| LINEARS[i].0 * LINEARS[i].1).sum()
    }

    fn elements(&self) -> usize {
        CHAINED_COPIES * self.layer()
    }

    /// A kernel that is fast alone may be slow behind another: they start while their predecessors run, and share
    /// multiprocessors with them. So each layer tries its choices in the chain, twice in turn, and what is faster by more
    /// than the noise stays.
    fn tune(&self, tuned: &mut [Tuned], pools: &Pools, stream: &Stream) -> Result<String> {
        let place = |i: usize| {
            let (n, k, _) = LINEARS[i];
            tuned.iter().position(|(p, _)| (p.m, p.n, p.k) == (self.m, n, k)).context("a product that was not tuned")
        };
        let places = self.linears.iter().map(|&i| place(i)).collect::<Result<Vec<_>>>()?;
        let mut best =
            places.iter().map(|&at| Ok(tuned[at].1.first().context("no choice")?.0)).collect::<Result<Vec<_>>>()?;
        let first = self.capture(&best, pools, stream)?;
        let mut replay = self.capture(&best, pools, stream)?;
        for _ in 0..2 {
            for (layer, &at) in places.iter().enumerate() {
                for &(choice, _) in &tuned[at].1 {
                    if choice == best[layer] {
                        continue;
                    }
                    let mut trial = best.clone();
                    trial[layer] = choice;
                    let candidate = self.capture(&trial, pools, stream)?;
                    let samples = alternate(stream, &[&replay, &candidate], 3, FINALS.turn_us)?;
                    if samples[1].median() < 0.997 * samples[0].median() {
                        (best, replay) = (trial, candidate);
                    }
                }
            }
        }
        let samples = alternate(stream, &[&first, &replay], FINALS.rounds, 2.0 * FINALS.turn_us)?;
        for (&at, chosen) in places.iter().zip(&best) {
            let times = &mut tuned[at].1;
            let chosen =
                times.iter().position(|(choice, _)| choice == chosen).context("a choice that was not timed")?;
            times[..=chosen].rotate_right(1);
        }
        let names: Vec<_> = best.iter().map(Choice::to_string).collect();
        Ok(format!(
            "{} x {}, m={}: a layer takes {:.2} µs with what is fastest alone, {:.2} with {}",
            LINEARS[self.linears[0]].0,
            LINEARS[self.linears[0]].1,
            self.m,
            samples[0].median(),
            samples[1].median(),
            names.join(", ")
        ))
    }

    fn capture(&self, choices: &[Choice], pools: &Pools, stream: &Stream) -> Result<Replay> {
        let launch = |stream: &Stream, turn: usize| -> Result<(), Error> {
            let mut at = turn % CHAINED_COPIES * self.layer();
            for (&i, &choice) in self.linears.iter().zip(choices) {
                let (n, k, gated) = LINEARS[i];
                let product = Product { m: self.m, n, k, gated };
                product.launch(choice, pools.w.view().columns(at, n * k).matrix(n, k), pools, stream)?;
                at += n * k;
            }
            Ok(())
        };
        // Loads the kernels, which a capture must not.
        launch(stream, 0)?;
        Ok(Replay::capture(stream, CHAINED_LAYERS, launch)?)
    }
}

/// The finalists' times, the fastest first, then the fastest choice of each other kernel. Choices that fail or that compute something else are named and left out.
fn tune(product: Product, pools: &Pools, stream: &Stream, log: &mut String) -> Result<Vec<(Choice, f64)>> {
    let Product { m, n, k, gated } = product;
    let launch = |choice: Choice| {
        move |stream: &Stream, turn: usize| {
            product.launch(choice, weights(&pools.w, turn % product.copies(), n, k), pools, stream)
        }
    };
    let mut expected: Option<Vec<f32>> = None;
    let mut times = Vec::new();
    for choice in Gemm::choices(m, n, k, gated, stream)? {
        let qualified = (|| {
            launch(choice)(stream, 0)?;
            let found = rows(stream, &pools.out.borrow(), m, product.width())?;
            let expected = expected.get_or_insert_with(|| found.clone());
            agree(&found, expected)?;
            let estimate = timed(stream, || launch(choice)(stream, 0))?;
            let replay = Replay::capture(stream, graph_works(estimate, product.copies()), launch(choice))?;
            anyhow::Ok((replay.sample(stream, 1)?, replay))
        })();
        match qualified {
            Ok((us, replay)) => {
                writeln!(log, "{} {choice} | {us:.2}", product.name())?;
                times.push((us, choice, replay));
            }
            Err(error) => writeln!(io::stdout(), "{} {choice}: LEFT OUT: {error:#}", product.name())?,
        }
    }
    times.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
    let how = if m < SUSTAINED_ROWS { FINALS } else { SUSTAINED };
    let others = times.split_off(how.finalists.min(times.len()));
    let replays: Vec<&Replay> = times.iter().map(|(.., replay)| replay).collect();
    let samples = alternate(stream, &replays, how.rounds, how.turn_us)?;
    let mut finals: Vec<_> =
        times.iter().zip(samples).map(|((_, choice, _), samples)| (*choice, samples.median())).collect();
    finals.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    for (us, choice, _) in others {
        if finals.iter().all(|(other, _)| other.kernel() != choice.kernel()) {
            finals.push((choice, us));
        }
    }
    Ok(finals)
}

fn random(stream: &Stream, len: usize, scale: f32) -> Result<Buffer> {
    let mut buffer = Buffer::new(stream.device(), DType::Bf16, len)?;
    FillNormal { out: buffer.view_mut(), seed: len as u64, scale, offset: 0.0 }.launch(stream)?;
    Ok(buffer)
}

/// Number `turn` of the weights.
fn weights(pool: &Buffer, turn: usize, n: usize, k: usize) -> View<'_> {
    pool.view().columns(turn * n * k, n * k).matrix(n, k)
}

/// The first, the middle and the last row of the result.
fn rows(stream: &Stream, out: &Buffer, m: usize, width: usize) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(3 * width);
    for row in [0, m / 2, m - 1] {
        let mut bits = vec![0u16; width];
        stream.download(out.matrix(m, width).row_range(row, 1), &mut bits)?;
        values.extend(bits.into_iter().map(|bits| DType::Bf16.decode(bits)));
    }
    Ok(values)
}

/// To a rounding and the noise of sums in another order.
fn agree(found: &[f32], expected: &[f32]) -> Result<()> {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let tolerance = expected.abs() / 100.0 + 5e-3;
        ensure!((found - expected).abs() <= tolerance, "value {i} is {found}, the first choice's {expected}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{agree, products};

    #[test]
    fn products_are_picked_by_their_names() {
        let picked = products("4096 14336 ");
        assert_eq!(picked.len(), 14);
        assert!(picked.iter().all(|product| (product.n, product.k) == (4096, 14336)));
        assert_eq!(products("8192 8192 ").len(), 6);
        assert!(products("128256 4096").iter().all(|product| product.m <= 128));
    }

    #[test]
    fn results_agree_to_a_rounding() {
        assert!(agree(&[1.0, -2.0], &[1.004, -2.01]).is_ok());
        assert!(agree(&[1.0], &[1.1]).is_err());
        assert!(agree(&[f32::NAN], &[1.0]).is_err());
    }
}
