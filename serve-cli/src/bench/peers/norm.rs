//! Residual add and RMSNorm in one kernel against what torch.compile makes of it.
use super::Bench;
use super::calibrate::random;
use super::gemm::{part, part_mut, rotation};
use super::row::{Group, Row};
use crate::bench::timing::{Replay, graph_works, timed};
use anyhow::Result;
use kernels_host::norm::AddRmsNorm;
use kernels_host::{Buffer, DType, Stream};
use serde_json::json;
use std::cell::RefCell;

const WIDTH: usize = 4096;

/// 2048 and 16384 rows of 4096.
pub fn run(bench: &mut Bench<'_>) -> Result<()> {
    if bench.torch.is_none() {
        return Ok(());
    }
    for tokens in [2048, 16384] {
        let bytes = 2 * (4 * tokens * WIDTH + WIDTH) as u64;
        let copies = rotation(bytes);
        let case = json!({"case": "add_rms_norm", "tokens": tokens, "width": WIDTH, "copies": copies});
        let stream = &bench.stream;
        let len = copies * tokens * WIDTH;
        let (x, weight) = (random(stream, len, 21)?, random(stream, WIDTH, 22)?);
        let residual = RefCell::new(random(stream, len, 23)?);
        let out = RefCell::new(Buffer::new(stream.device(), DType::Bf16, len)?);
        let launch = |stream: &Stream, turn: usize| {
            let turn = turn % copies;
            let (mut residual, mut out) = (residual.borrow_mut(), out.borrow_mut());
            AddRmsNorm {
                x: part(&x, turn, tokens, WIDTH),
                residual: part_mut(&mut residual, turn, tokens, WIDTH),
                weight: weight.view(),
                eps: 1e-5,
                out: part_mut(&mut out, turn, tokens, WIDTH),
            }
            .launch(stream)
        };
        launch(stream, 0)?;
        let estimate = timed(stream, || launch(stream, 0))?;
        let ours = Replay::capture(stream, graph_works(estimate, copies), launch)?;
        let work = format!("add+RMSNorm {tokens}x{WIDTH}");
        if let Some((ours, rival)) = bench.against_torch(&work, &case, &ours)? {
            bench.add(Row {
                group: Group::Norm,
                work,
                ours,
                rival,
                rival_name: "torch.compile".into(),
                bar: None,
                value: None,
                bytes,
                flops: 0,
                reads: false,
            })?;
        }
    }
    Ok(())
}
