//! Random problems.
use super::HEAD_DIMS;
use super::decode::Decode;
use super::prefill::{Path, Prefill};
use super::testing::{Problem, Scores};
use crate::DType;
use crate::case::Case;
use proptest::prelude::*;
use proptest::sample::select;

fn problem(max_group: usize) -> impl Strategy<Value = Problem> {
    let window = prop_oneof![2 => Just(None), 1 => (1usize..200).prop_map(Some)];
    let softcap = prop_oneof![2 => Just(None), 1 => (1f32..60.0).prop_map(Some)];
    let scores = prop_oneof![4 => Just(Scores::Normal), 1 => Just(Scores::Equal), 1 => Just(Scores::Large)];
    (any::<bool>(), select(&HEAD_DIMS), 1usize..4, 1..=max_group, window, scores, softcap).prop_map(
        |(f16, head_dim, kv_heads, group, window, scores, softcap)| {
            let dtype = if f16 { DType::F16 } else { DType::Bf16 };
            let base = Problem::new(dtype, kv_heads * group, kv_heads, head_dim);
            Problem { window, scores, softcap, ..base }
        },
    )
}

/// Batches with and without cached prefixes, some sequences without queries.
pub(super) fn prefill(path: Path) -> BoxedStrategy<Box<dyn Case>> {
    let prefix = prop_oneof![Just(0usize), 1usize..200];
    let sequences = prop::collection::vec((0usize..100, prefix), 1..5);
    (problem(9), sequences)
        .prop_map(move |(problem, sequences)| {
            let sequences: Vec<_> =
                sequences.into_iter().map(|(queries, prefix)| (queries, prefix + queries)).collect();
            Box::new(Prefill { problem: problem.sequences(&sequences), path }) as Box<dyn Case>
        })
        .boxed()
}

/// Batches of mixed lengths, some empty; half of them with drafts to verify.
pub(super) fn decode() -> BoxedStrategy<Box<dyn Case>> {
    let length = prop_oneof![1 => Just(0usize), 4 => 1usize..200, 2 => 200usize..1500];
    (problem(20), any::<bool>(), prop::collection::vec((length, 0usize..9), 1..6))
        .prop_map(|(problem, drafts, lengths)| {
            let queries = |kv_len: usize, queries: usize| match (drafts, kv_len) {
                (false, _) => 1,
                (true, 0) => queries,
                (true, _) => queries.min(kv_len),
            };
            let sequences: Vec<_> = lengths.into_iter().map(|(kv_len, n)| (queries(kv_len, n), kv_len)).collect();
            Box::new(Decode(problem.sequences(&sequences))) as Box<dyn Case>
        })
        .boxed()
}
