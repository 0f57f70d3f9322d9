//! Products with fused epilogues against the plain product and a kernel of its own for the rest.
use super::Bench;
use super::calibrate::random;
use super::gemm::{TURN_US, part, part_mut, rotation};
use super::row::{Group, Rival, Row};
use crate::bench::timing::{Replay, alternate, graph_works, timed};
use anyhow::Result;
use kernels_host::act::Epilogue;
use kernels_host::gemm::{Activation, Gemm};
use kernels_host::{Buffer, DType, Error, Stream};
use std::cell::RefCell;

/// What is fused, in the layer that has it.
struct Fusion {
    name: &'static str,
    n: usize,
    k: usize,
    bias: bool,
    activation: Activation,
    accumulate: bool,
}

const FUSIONS: [Fusion; 5] = [
    Fusion { name: "bias", n: 6144, k: 4096, bias: true, activation: Activation::None, accumulate: false },
    Fusion { name: "GELU", n: 14336, k: 4096, bias: false, activation: Activation::GeluTanh, accumulate: false },
    Fusion { name: "SwiGLU", n: 28672, k: 4096, bias: false, activation: Activation::SwiGlu, accumulate: false },
    Fusion { name: "GeGLU", n: 28672, k: 4096, bias: false, activation: Activation::GeGlu, accumulate: false },
    Fusion { name: "residual", n: 4096, k: 14336, bias: false, activation: Activation::None, accumulate: true },
];

/// Every fusion at 2048 and 8 rows.
pub fn run(bench: &mut Bench<'_>) -> Result<()> {
    for m in [2048, 8] {
        for fusion in &FUSIONS {
            let row = compare(bench, fusion, m)?;
            bench.add(row)?;
        }
    }
    Ok(())
}

/// Queues one turn.
type Side<'a> = &'a dyn Fn(&Stream, usize) -> Result<(), Error>;

/// What the three sides share.
struct Data<'a> {
    fusion: &'a Fusion,
    m: usize,
    copies: usize,
    a: Buffer,
    w: Buffer,
    bias: Buffer,
    /// The plain product, for the separate kernel.
    product: RefCell<Buffer>,
    out: RefCell<Buffer>,
}

impl Data<'_> {
    /// Columns of the output.
    fn width(&self) -> usize {
        if self.fusion.activation.is_gated() { self.fusion.n / 2 } else { self.fusion.n }
    }

    fn fused(&self, stream: &Stream, turn: usize) -> Result<(), Error> {
        let &Fusion { n, k, activation, accumulate, .. } = self.fusion;
        let turn = turn % self.copies;
        let mut out = self.out.borrow_mut();
        Gemm {
            a: part(&self.a, turn, self.m, k),
            w: part(&self.w, turn, n, k),
            bias: self.fusion.bias.then(|| self.bias.view()),
            activation,
            accumulate,
            out: part_mut(&mut out, turn, self.m, self.width()),
        }
        .launch(stream)
    }

    fn plain(&self, stream: &Stream, turn: usize) -> Result<(), Error> {
        let (n, k) = (self.fusion.n, self.fusion.k);
        let turn = turn % self.copies;
        let mut product = self.product.borrow_mut();
        let (a, w) = (part(&self.a, turn, self.m, k), part(&self.w, turn, n, k));
        let out = part_mut(&mut product, turn, self.m, n);
        Gemm { a, w, bias: None, activation: Activation::None, accumulate: false, out }.launch(stream)
    }

    fn separate(&self, stream: &Stream, turn: usize) -> Result<(), Error> {
        let &Fusion { n, activation, accumulate, .. } = self.fusion;
        let turn = turn % self.copies;
        let (product, mut out) = (self.product.borrow(), self.out.borrow_mut());
        Epilogue {
            x: part(&product, turn, self.m, n),
            bias: self.fusion.bias.then(|| self.bias.view()),
            activation,
            accumulate,
            out: part_mut(&mut out, turn, self.m, self.width()),
        }
        .launch(stream)
    }
}

fn compare(bench: &Bench<'_>, fusion: &Fusion, m: usize) -> Result<Row> {
    let stream = &bench.stream;
    let &Fusion { n, k, .. } = fusion;
    let bytes = 2 * (m * (n + k) + n * k) as u64;
    let copies = rotation(bytes);
    let empty = |len| Buffer::new(stream.device(), DType::Bf16, len).map(RefCell::new);
    let data = Data {
        fusion,
        m,
        copies,
        a: random(stream, copies * m * k, 11)?,
        w: random(stream, copies * n * k, 12)?,
        bias: random(stream, n, 13)?,
        product: empty(copies * m * n)?,
        out: RefCell::new(random(stream, copies * m * n, 14)?),
    };
    let sides: [Side<'_>; 3] = [
        &|stream, turn| data.fused(stream, turn),
        &|stream, turn| data.plain(stream, turn).and_then(|()| data.separate(stream, turn)),
        &|stream, turn| data.separate(stream, turn),
    ];
    let mut replays = Vec::new();
    for side in sides {
        side(stream, 0)?;
        let estimate = timed(stream, || side(stream, 0))?;
        replays.push(Replay::capture(stream, graph_works(estimate, copies), side)?);
    }
    let samples = alternate(stream, &replays.iter().collect::<Vec<_>>(), bench.rounds(), TURN_US)?;
    let [fused, unfused, separate] = [0, 1, 2].map(|side| samples[side].median());
    Ok(Row {
        group: Group::Epilogues,
        work: format!("{} {m}x{n}x{k}, separate {separate:.1} µs", fusion.name),
        ours: (&samples[0]).into(),
        rival: Rival::Timed((&samples[1]).into()),
        rival_name: "plain + separate".into(),
        bar: None,
        value: Some((unfused - fused) / separate),
        bytes,
        flops: 2 * (m * n * k) as u64,
        reads: false,
    })
}
