//! What each fusion of a decoder layer is worth: the layer as the engine runs it, against itself with one fusion
//! switched off, and with all of them.
mod layer;

use super::Bench;
use super::gemm::TURN_US;
use super::row::{Group, Rival, Row};
use crate::bench::timing::{Replay, alternate};
use anyhow::Result;
use kernels_host::Stream;
use layer::{LLAMA_8B, Layers, Mlp, Plan};

/// A step: its sequences, and the queries of each; the context is 2048 tokens.
const STEPS: [(usize, usize); 3] = [(1, 1), (32, 1), (1, LLAMA_8B.context)];

/// The norm, q, k, v, RoPE and the KV write as more than one kernel: what the fusions within are measured in.
const HEAD: Plan = Plan { norm_qkv: false, ..Plan::FUSED };
/// What can be switched off: a layer with it, and without.
const FUSIONS: [(&str, Plan, Plan); 9] = [
    ("norm, q, k, v, RoPE and KV write as one kernel", Plan::FUSED, HEAD),
    ("norm in the products", HEAD, Plan { norm: false, ..HEAD }),
    ("q, k and v as one product", HEAD, Plan { qkv: false, ..HEAD }),
    ("RoPE with KV write", HEAD, Plan { rope: false, ..HEAD }),
    ("residual in the products of attention and MLP", Plan::FUSED, Plan { residual: false, ..Plan::FUSED }),
    ("SwiGLU in the product of gate and up", Plan::FUSED, Plan { mlp: Mlp::Apart, ..Plan::FUSED }),
    ("gate and up as one product, with SwiGLU", Plan::FUSED, Plan { mlp: Mlp::TwoProducts, ..Plan::FUSED }),
    ("programmatic launch", Plan::FUSED, Plan { overlap: false, ..Plan::FUSED }),
    ("all of these", Plan::FUSED, Plan::APART),
];

/// Decoding at batch 1 and 32, and a prompt of 2048 tokens.
pub fn run(bench: &mut Bench<'_>) -> Result<()> {
    let overlapped = bench.overlapped()?;
    let mut layers = Layers::new(&overlapped, LLAMA_8B)?;
    for (sequences, queries) in STEPS {
        layers.prepare(&overlapped, sequences, queries)?;
        let step = match queries {
            1 => format!("decode, batch {sequences}"),
            _ => format!("prefill, {queries} tokens"),
        };
        compare(bench, &layers, &overlapped, &step)?;
    }
    Ok(())
}

/// Those of [`FUSIONS`], each once.
fn plans() -> Vec<Plan> {
    let mut plans: Vec<Plan> = Vec::new();
    for plan in FUSIONS.iter().flat_map(|(_, on, off)| [on, off]) {
        if !plans.contains(plan) {
            plans.push(*plan);
        }
    }
    plans
}

/// All fusions that change something in the step: some kernels are for few rows.
fn compare(bench: &mut Bench<'_>, layers: &Layers, overlapped: &Stream, step: &str) -> Result<()> {
    let plans = plans();
    // Runs each once, which also loads its kernels: a capture must not.
    let works = plans.iter().map(|plan| layers.kernels(overlapped, plan)).collect::<Result<Vec<_>>>()?;
    let capture = |plan: &Plan| {
        let (stream, plan) = (if plan.overlap { overlapped } else { &bench.stream }, *plan);
        Replay::capture(stream, LLAMA_8B.layers, move |stream, turn| layers.launch(stream, &plan, turn))
    };
    let replays = plans.iter().map(capture).collect::<Result<Vec<_>, _>>()?;
    let samples = alternate(overlapped, &replays.iter().collect::<Vec<_>>(), bench.rounds(), 2.0 * TURN_US)?;
    let of = |plan: &Plan| plans.iter().position(|other| other == plan).unwrap_or(0);
    for (name, on, off) in &FUSIONS {
        let (ours, apart) = (of(on), of(off));
        let (work, rival) = (works[ours], works[apart]);
        if work == rival && on.overlap == off.overlap {
            continue;
        }
        bench.add(Row {
            group: Group::Fusions,
            work: format!("{step}: {name}"),
            ours: (&samples[ours]).into(),
            rival: Rival::Unfused {
                time: (&samples[apart]).into(),
                kernels: [work.kernels, rival.kernels],
                bytes: rival.bytes,
            },
            rival_name: "apart".into(),
            bar: None,
            value: None,
            bytes: work.bytes,
            flops: work.flops,
            reads: false,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::layer::Size;
    use super::*;
    use kernels_host::{Device, Target};

    /// The plans are the same computation: a layer of each on the same numbers, on a device that rounds as a GPU does.
    #[test]
    fn every_plan_computes_the_same() {
        let size = Size { layers: 2, batch: 3, context: 64, heads: 4, kv_heads: 2, inner: 256 };
        let device = Device::emulated(Target::Sm80, 1);
        let stream = device.stream().unwrap();
        for (sequences, queries) in [(1, 1), (1, 9)] {
            let result = |plan: &Plan| {
                let mut layers = Layers::new(&stream, size).unwrap();
                layers.prepare(&stream, sequences, queries).unwrap();
                let work = layers.kernels(&stream, plan).unwrap();
                (work, layers.hidden(&stream).unwrap())
            };
            let (fused, expected) = result(&Plan::FUSED);
            // Which takes the rows of gate and up in another order.
            let (_, expected_of_two) = result(&Plan { mlp: Mlp::TwoProducts, ..Plan::FUSED });
            let untouched = Layers::new(&stream, size).unwrap().hidden(&stream).unwrap();
            assert_ne!(expected, untouched);
            for plan in plans() {
                let (work, found) = result(&plan);
                assert!(work.kernels >= fused.kernels, "{plan:?}: {work:?}");
                let expected = if plan.mlp == Mlp::TwoProducts { &expected_of_two } else { &expected };
                for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                    // Where a product is rounded before the sum, that may fall on the other side: twice in a layer.
                    let tolerance = expected.abs() / 64.0 + 5e-4;
                    assert!((found - expected).abs() < tolerance, "{plan:?}, [{i}]: {found}, fused {expected}");
                }
            }
            // One kernel up to attention, which is one, then products with norm and residual.
            assert_eq!(fused.kernels, if sequences * queries == 1 { 5 } else { 8 });
            assert_eq!(result(&Plan::APART).0.kernels, 15);
        }
    }
}
