//! Matrix products against cuBLASLt.
use super::Bench;
use super::calibrate::random;
use super::row::{Group, Rival, Row};
use crate::bench::timing::{Replay, alternate, graph_works, timed};
use anyhow::{Result, ensure};
use kernels_host::cublaslt::{CublasLt, Product};
use kernels_host::gemm::{Activation, Gemm};
use kernels_host::{Buffer, DType, Error, Stream, View, ViewMut};
use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Linear layers as (name, n, k): Llama-3.1-8B.
pub const LLAMA_8B: [(&str, usize, usize); 4] =
    [("8B qkv", 6144, 4096), ("8B o", 4096, 4096), ("8B gate-up", 28672, 4096), ("8B down", 4096, 14336)];
/// A quarter of Llama-3.1-70B's.
const LLAMA_70B_TP4: [(&str, usize, usize); 4] =
    [("70B/4 qkv", 2560, 8192), ("70B/4 o", 8192, 2048), ("70B/4 gate-up", 14336, 8192), ("70B/4 down", 8192, 7168)];
/// The head of either.
const HEAD: (&str, usize, usize) = ("8B head", 128_256, 4096);

/// Data of a rotation: eight times an H200's L2 cache.
pub const ROTATED_BYTES: u64 = 400_000_000;
/// Microseconds of a side's turn.
pub const TURN_US: f64 = 3000.0;
/// Algorithms that go into the alternation, after each had two turns to qualify.
const FINALISTS: usize = 2;

/// Where Python's packages have NVIDIA's libraries, and where toolkits are installed.
pub fn library_folders(python: &Path) -> Vec<PathBuf> {
    let script = "import sys; print('\\n'.join(sys.path))";
    let output = Command::new(python).args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let paths = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let packages = paths.lines().filter(|line| !line.is_empty()).map(PathBuf::from);
    let wheels = packages.flat_map(|path| ["cu13", "cublas"].map(|part| path.join("nvidia").join(part).join("lib")));
    let toolkits = ["/usr/local/cuda/lib64", "/opt/cuda/lib64"].map(PathBuf::from);
    wheels.filter(|folder| folder.is_dir()).chain(toolkits).collect()
}

/// Products of 512 to 8192 rows.
pub fn prefill(bench: &mut Bench<'_>) -> Result<()> {
    let mut shapes = Vec::new();
    let tokens: &[usize] = if bench.quick { &[2048] } else { &[512, 1024, 2048, 4096, 8192] };
    for &m in tokens {
        shapes.extend(linears().map(|(name, n, k)| (name, m, n, k)));
    }
    shapes.extend([4096, 8192].map(|side| ("square", side, side, side)));
    compare_all(bench, Group::GemmPrefill, &shapes)
}

/// Products of 1 to 128 rows.
pub fn decode(bench: &mut Bench<'_>) -> Result<()> {
    let mut shapes = Vec::new();
    let tokens: &[usize] = if bench.quick { &[1, 16, 128] } else { &[1, 2, 4, 8, 16, 32, 64, 128] };
    for &m in tokens {
        shapes.extend(linears().chain([HEAD]).map(|(name, n, k)| (name, m, n, k)));
    }
    compare_all(bench, Group::GemmDecode, &shapes)
}

fn linears() -> impl Iterator<Item = (&'static str, usize, usize)> {
    LLAMA_8B.into_iter().chain(LLAMA_70B_TP4)
}

fn compare_all(bench: &mut Bench<'_>, group: Group, shapes: &[(&str, usize, usize, usize)]) -> Result<()> {
    let Some(library) = bench.cublaslt else { return Ok(()) };
    let sizes: Vec<Size> = shapes.iter().map(|&(_, m, n, k)| Size::new(m, n, k)).collect();
    let mut pools = Pools::new(&bench.stream, &sizes)?;
    for (&(name, ..), &size) in shapes.iter().zip(&sizes) {
        let work = format!("{name} {}x{}x{}", size.m, size.n, size.k);
        match compare(bench, library, &mut pools, size) {
            Ok((ours, rival)) => {
                let large = size.m <= 128 && size.weight_bytes() >= 100_000_000;
                let row = Row {
                    group,
                    work,
                    ours,
                    rival,
                    rival_name: "cuBLASLt".into(),
                    bar: None,
                    value: None,
                    bytes: size.bytes(),
                    flops: 2 * (size.m * size.n * size.k) as u64,
                    reads: large && size.m <= 16,
                };
                if large {
                    let rival_name = "best read".into();
                    let share = Row { group: Group::GemmRead, rival: Rival::Floor, rival_name, ..row.clone() };
                    bench.results.rows.push(share);
                }
                bench.add(row)?;
            }
            Err(error) => writeln!(io::stdout(), "{work:<44}FAILED: {error:#}")?,
        }
    }
    Ok(())
}

/// A product and how many sets of its operands there are.
#[derive(Clone, Copy, Debug)]
struct Size {
    m: usize,
    n: usize,
    k: usize,
    copies: usize,
}

impl Size {
    fn new(m: usize, n: usize, k: usize) -> Self {
        let size = Size { m, n, k, copies: 1 };
        Size { copies: rotation(size.bytes()), ..size }
    }
    fn weight_bytes(&self) -> u64 {
        2 * (self.n * self.k) as u64
    }
    fn bytes(&self) -> u64 {
        self.weight_bytes() + 2 * (self.m * (self.n + self.k)) as u64
    }
}

/// Sets of data of `bytes` each that a rotation has.
pub fn rotation(bytes: u64) -> usize {
    ROTATED_BYTES.div_ceil(bytes.max(1)).clamp(1, 64) as usize
}

/// Memory for every shape's operands, filled once.
struct Pools {
    a: Buffer,
    w: Buffer,
    ours: Buffer,
    theirs: Buffer,
}

impl Pools {
    fn new(stream: &Stream, sizes: &[Size]) -> Result<Self, Error> {
        let most = |len: &dyn Fn(&Size) -> usize| sizes.iter().map(|size| size.copies * len(size)).max().unwrap_or(0);
        let out = most(&|size| size.m * size.n);
        Ok(Pools {
            a: random(stream, most(&|size| size.m * size.k), 3)?,
            w: random(stream, most(&|size| size.n * size.k), 4)?,
            ours: Buffer::new(stream.device(), DType::Bf16, out)?,
            theirs: Buffer::new(stream.device(), DType::Bf16, out)?,
        })
    }
}

/// Number `turn` of the matrices that follow each other in `pool`.
pub fn part(pool: &Buffer, turn: usize, rows: usize, cols: usize) -> View<'_> {
    pool.view().columns(turn * rows * cols, rows * cols).matrix(rows, cols)
}

/// As [`part`].
pub fn part_mut(pool: &mut Buffer, turn: usize, rows: usize, cols: usize) -> ViewMut<'_> {
    pool.view_mut().columns(turn * rows * cols, rows * cols).matrix(rows, cols)
}

fn compare(bench: &Bench<'_>, library: &CublasLt, pools: &mut Pools, size: Size) -> Result<(super::row::Time, Rival)> {
    let Size { m, n, k, copies } = size;
    let stream = &bench.stream;
    let product = library.product(m, n, k)?;
    let Pools { a, w, ours, theirs } = pools;
    let (a, w, ours, theirs) = (&*a, &*w, RefCell::new(ours), RefCell::new(theirs));
    let our_launch = |stream: &Stream, turn: usize| {
        let turn = turn % copies;
        let mut out = ours.borrow_mut();
        let out = part_mut(&mut out, turn, m, n);
        let (a, w) = (part(a, turn, m, k), part(w, turn, n, k));
        Gemm { a, w, bias: None, activation: Activation::None, accumulate: false, out }.launch(stream)
    };
    our_launch(stream, 0)?;
    let estimate = timed(stream, || our_launch(stream, 0))?;
    let works = graph_works(estimate, copies);
    let our_side = Replay::capture(stream, works, our_launch)?;
    let their_launch = |algorithm: usize| {
        let (product, theirs) = (&product, &theirs);
        move |stream: &Stream, turn: usize| {
            let turn = turn % copies;
            let mut out = theirs.borrow_mut();
            let out = part_mut(&mut out, turn, m, n);
            product.launch(algorithm, part(a, turn, m, k), part(w, turn, n, k), out, stream)
        }
    };
    let mut candidates = Vec::new();
    for algorithm in qualify(&product, stream, &their_launch) {
        let replay = Replay::capture(stream, works, their_launch(algorithm))?;
        let us = replay.sample(stream, 1)?.min(replay.sample(stream, 1)?);
        candidates.push((us, replay));
    }
    ensure!(!candidates.is_empty(), "none of cuBLASLt's algorithms runs");
    candidates.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut sides = vec![&our_side];
    sides.extend(candidates.iter().take(FINALISTS).map(|(_, replay)| replay));
    let samples = alternate(stream, &sides, bench.rounds(), TURN_US)?;
    let best = samples[1..].iter().min_by(|a, b| a.median().total_cmp(&b.median()));
    let rival = best.map(|samples| Rival::Timed(samples.into()));
    drop((our_side, candidates));
    agree(stream, &ours.borrow(), &theirs.borrow(), m, n)?;
    Ok(((&samples[0]).into(), rival.unwrap_or(Rival::Floor)))
}

/// The algorithms that run at all.
fn qualify<F: FnMut(&Stream, usize) -> Result<(), Error>>(
    product: &Product<'_>,
    stream: &Stream,
    launch: &dyn Fn(usize) -> F,
) -> Vec<usize> {
    (0..product.algorithms()).filter(|&algorithm| launch(algorithm)(stream, 0).is_ok()).collect()
}

/// Both sides computed the same: three rows of the first result, to a rounding and the noise of sums in another order.
fn agree(stream: &Stream, ours: &Buffer, theirs: &Buffer, m: usize, n: usize) -> Result<()> {
    for row in [0, m / 2, m - 1] {
        let [ours, theirs] = [ours, theirs].map(|buffer| {
            let mut bits = vec![0u16; n];
            stream.download(buffer.matrix(m, n).row_range(row, 1), &mut bits).map(|()| bits)
        });
        let decode = |bits: u16| DType::Bf16.decode(bits);
        for (column, (ours, theirs)) in ours?.into_iter().zip(theirs?).enumerate() {
            let (ours, theirs) = (decode(ours), decode(theirs));
            let tolerance = theirs.abs() / 128.0 + 1e-4;
            ensure!((ours - theirs).abs() <= tolerance, "[{row}, {column}] is {ours}, cuBLASLt's is {theirs}");
        }
    }
    Ok(())
}
