//! What each fusion of a decoder layer is worth: the layer as the engine runs it, against itself with one fusion
//! switched off, and with all of them.
mod layer;

use super::Bench;
use super::gemm::TURN_US;
use super::row::{Group, Rival, Row};
use crate::bench::timing::{Replay, alternate};
use anyhow::Result;
use kernels_host::Stream;
use layer::{LAYERS, Layers, Mlp, Plan};

/// A step: its sequences, and the queries of each; the context is [`layer::CONTEXT`].
const STEPS: [(usize, usize); 3] = [(1, 1), (32, 1), (1, layer::CONTEXT)];

/// What can be switched off.
const FUSIONS: [(&str, Plan); 8] = [
    ("norm and product", Plan { norm: false, ..Plan::FUSED }),
    ("q, k and v as one product", Plan { qkv: false, ..Plan::FUSED }),
    ("RoPE and KV write", Plan { rope: false, ..Plan::FUSED }),
    ("residual in the products of attention and MLP", Plan { residual: false, ..Plan::FUSED }),
    ("SwiGLU in the product of gate and up", Plan { mlp: Mlp::Apart, ..Plan::FUSED }),
    ("gate and up as one product, with SwiGLU", Plan { mlp: Mlp::TwoProducts, ..Plan::FUSED }),
    ("programmatic launch", Plan { overlap: false, ..Plan::FUSED }),
    ("all of these", Plan::APART),
];

/// Decoding at batch 1 and 32, and a prompt of 2048 tokens.
pub fn run(bench: &mut Bench<'_>) -> Result<()> {
    let overlapped = bench.overlapped()?;
    let mut layers = Layers::new(&overlapped)?;
    for (sequences, queries) in STEPS {
        layers.prepare(&overlapped, sequences, queries)?;
        let layers = &layers;
        // What changes nothing in this step is left out: the norm is a kernel of its own but for few rows.
        let fused = layers.kernels(&overlapped, &Plan::FUSED)?;
        let mut plans = vec![("", Plan::FUSED, fused)];
        for (name, plan) in FUSIONS {
            let work = layers.kernels(&overlapped, &plan)?;
            if work != fused || !plan.overlap {
                plans.push((name, plan, work));
            }
        }
        let replays = plans
            .iter()
            .map(|(_, plan, _)| {
                let stream = if plan.overlap { &overlapped } else { &bench.stream };
                let plan = *plan;
                Ok(Replay::capture(stream, LAYERS, move |stream: &Stream, turn| layers.launch(stream, &plan, turn))?)
            })
            .collect::<Result<Vec<_>>>()?;
        let samples = alternate(&overlapped, &replays.iter().collect::<Vec<_>>(), bench.rounds(), 2.0 * TURN_US)?;
        let step = match queries {
            1 => format!("decode, batch {sequences}"),
            _ => format!("prefill, {queries} tokens"),
        };
        for ((name, _, work), times) in plans.iter().zip(&samples).skip(1) {
            bench.add(Row {
                group: Group::Fusions,
                work: format!("{step}: {name}"),
                ours: (&samples[0]).into(),
                rival: Rival::Unfused { time: times.into(), kernels: [fused.kernels, work.kernels], bytes: work.bytes },
                rival_name: "apart".into(),
                bar: None,
                value: None,
                bytes: fused.bytes,
                flops: fused.flops,
                reads: false,
            })?;
        }
    }
    Ok(())
}
