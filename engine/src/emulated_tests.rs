//! tiny-chat's answers on emulated GPUs: the same alone on the CPU and in a batch on the real PTX, whatever is switched on.
//!
//! All 48 combinations of the switches run on the CPU (`draft_tests`). An emulated step of tiny-chat takes 0.8 to 2 s of
//! CPU time up to 16 rows; beyond, on sm_80 up to 6 s, on sm_90a 8 to 20 s. So six combinations run, in which every two
//! settings of two switches meet: on sm_90a those with chunks of 16 tokens, on sm_80 the others. The requests are the
//! smallest that share a page and need a second one.
use super::draft_tests::{greedy, later_question, question, tiny_draft};
use super::*;
use crate::embedded::TINY_CHAT;
use crate::sampling::SamplingParams;
use kernels_host::Target;

/// With five sequences 15 rows a step: the matrix products of 16 take a tenth of the time of those of 17.
const DRAFTS: usize = 2;
const SEQUENCES: usize = 5;
/// Requests wait for pages; preempted are those of [`preempted`].
const FEW_PAGES: usize = 5;
/// Where logits are further apart no rounding changes their order. (bf16 states: some hundredths.)
const MARGIN: f32 = 1.0;

/// Switches: speculation, then few pages, chunked prompts, prefix cache, overlap.
type Switches = (Speculation, [bool; 4]);

/// Every setting of every two switches, in six runs.
fn covering() -> Vec<Switches> {
    let kinds = [
        Speculation::Off,
        Speculation::Ngram { drafts: DRAFTS, max_n: 3, min_n: 1 },
        Speculation::Draft { drafts: DRAFTS },
    ];
    let settings = [[false, false, false, false], [false, false, true, true], [false, true, false, true]];
    let both = |(kind, bits): (Speculation, [bool; 4])| [(kind, bits), (kind, bits.map(|bit| !bit))];
    kinds.into_iter().zip(settings).flat_map(both).collect()
}

#[test]
fn every_two_settings_meet() {
    let runs = covering();
    for (i, on) in (0..4).flat_map(|i| [(i, false), (i, true)]) {
        let meets = |kind: Speculation| runs.iter().any(|(other, bits)| *other == kind && bits[i] == on);
        assert!(runs.iter().all(|(kind, _)| meets(*kind)), "speculation and {i}");
        for (j, other) in (0..4).filter(|j| *j != i).flat_map(|j| [(j, false), (j, true)]) {
            assert!(runs.iter().any(|(_, bits)| (bits[i], bits[j]) == (on, other)), "{i} and {j}");
        }
    }
}

/// The second and the fourth share a page, the first needs another page for its answer. The fifth is sampled with a penalty
/// (the margin says nothing of it: should a kernel's rounding ever move it, another seed will do).
fn questions() -> [SequenceRequest; 6] {
    let plain = [
        later_question("Spell river.", 4),
        later_question("Spell cat.", 5),
        question("Count from 1 to 9."),
        later_question("What is 3 plus 4?", 5),
        question("Spell dog."),
        question("Who are you?"),
    ];
    let mut requests = plain.map(|prompt| SequenceRequest { speculation: Speculation::Auto, ..greedy(prompt, 6) });
    requests[5].max_tokens = 3;
    requests[4].sampling =
        SamplingParams { temperature: 0.8, seed: 3, repetition_penalty: 1.2, ..SamplingParams::default() };
    requests
}

fn load(device: &Device, config: &EngineConfig) -> Engine {
    let (weights, shape) = (TINY_CHAT.checkpoint().unwrap(), TINY_CHAT.config().unwrap());
    Engine::load(device, &shape, WeightSource::Checkpoint(&weights), config, &|_, _| ()).unwrap()
}

fn base() -> EngineConfig {
    EngineConfig {
        max_model_len: Some(128),
        max_num_seqs: SEQUENCES,
        kv_cache_tokens: Some(1024),
        ..EngineConfig::default()
    }
}

/// Each by itself on the CPU. What is greedy is clear: the likeliest token is [`MARGIN`] ahead of the next.
fn alone() -> Vec<Vec<u32>> {
    let mut engine = load(&Device::cpu(), &base());
    let answer = |mut request: SequenceRequest| {
        request.sampling.logprobs = Some(2);
        let greedy = request.sampling.temperature == 0.0;
        engine.add(request).unwrap();
        let mut tokens = Vec::new();
        while engine.has_work() {
            for progress in engine.step().unwrap() {
                let top = progress.logprobs.unwrap().top;
                assert!(!greedy || top[0].1 - top[1].1 > MARGIN, "token {} of an answer: {top:?}", tokens.len());
                tokens.extend(progress.token);
            }
        }
        tokens
    };
    questions().into_iter().map(answer).collect()
}

/// Two arrive at once, one a step later, two when the second one's page can be found, the last when nothing else is left.
/// Three others are cancelled: while their prompts are computed, and while they answer.
fn arrivals(engine: &mut Engine) -> Vec<Vec<u32>> {
    let requests = questions();
    let (mut ids, mut doomed): (Vec<RequestId>, Vec<(usize, RequestId)>) = (Vec::new(), Vec::new());
    let mut answers = vec![Vec::new(); requests.len()];
    for step in 0.. {
        let arrive = match ids.len() {
            0 => 0..2,
            2 => 2..3,
            3 if !answers[1].is_empty() => 3..5,
            5 if !engine.has_work() => 5..6,
            _ => 0..0,
        };
        for i in arrive {
            ids.push(engine.add(requests[i].clone()).unwrap());
            if [1, 2, 4].contains(&i) {
                doomed.push((step + i, engine.add(requests[i].clone()).unwrap()));
            }
        }
        doomed.iter().filter(|(at, _)| *at == step).for_each(|(_, id)| engine.cancel(*id));
        for progress in engine.step().unwrap() {
            if let Some(at) = ids.iter().position(|id| *id == progress.id) {
                answers[at].extend(progress.token);
            }
        }
        if ids.len() == requests.len() && !engine.has_work() {
            break;
        }
    }
    answers
}

fn check(device: fn() -> Device, chunked: bool) {
    let alone = alone();
    for (speculation, [few, chunks, prefix_cache, overlap]) in covering() {
        if chunks != chunked {
            continue;
        }
        let pages = if few { FEW_PAGES } else { 16 };
        let config = EngineConfig {
            speculation,
            draft: if matches!(speculation, Speculation::Draft { .. }) { tiny_draft() } else { None },
            max_num_batched_tokens: Some(if chunks { 16 } else { 128 }),
            policy: if few { Policy::MaxUtilization } else { Policy::GuaranteedNoEvict },
            kv_cache_tokens: Some(pages * PAGE_TOKENS),
            prefix_cache,
            overlap: Some(overlap),
            ..base()
        };
        let mut engine = load(&device(), &config);
        assert_eq!(arrivals(&mut engine), alone, "{config:?}");
        let metrics = engine.metrics();
        assert_eq!((metrics.used_pages, metrics.drafted[0] > 0), (0, speculation != Speculation::Off));
        assert_eq!(metrics.prefix_hits > 0, prefix_cache, "{config:?}: {metrics:?}");
    }
}

#[test]
fn on_the_cpu_too() {
    [false, true].into_iter().for_each(|chunked| check(Device::cpu, chunked));
}

#[test]
fn in_chunks_on_an_emulated_sm_90a() {
    check(|| Device::emulated(Target::Sm90a, 1), true);
}

#[test]
fn in_large_steps_on_an_emulated_sm_80() {
    check(|| Device::emulated(Target::Sm80, 1), false);
}

/// Two whose prompts fill a page almost. Of three pages the younger, whose prompt is longer, takes the last, and loses both when the
/// older needs it.
fn preempted(device: &Device) {
    let prompts = [later_question("Spell water.", 4), later_question("Spell river.", 4)];
    assert!(prompts[0].len() < prompts[1].len() && prompts[1].len() <= PAGE_TOKENS, "{prompts:?}");
    let answers = |device: &Device, pages| {
        let config = EngineConfig {
            policy: Policy::MaxUtilization,
            kv_cache_tokens: Some(pages * PAGE_TOKENS),
            prefix_cache: false,
            ..base()
        };
        let mut engine = load(device, &config);
        let ids = prompts
            .clone()
            .map(|prompt| engine.add(SequenceRequest { speculation: Speculation::Off, ..greedy(prompt, 6) }).unwrap());
        let mut answers = [Vec::new(), Vec::new()];
        while engine.has_work() {
            for progress in engine.step().unwrap() {
                answers[usize::from(progress.id == ids[1])].extend(progress.token);
            }
        }
        (answers, engine.metrics().preemptions)
    };
    let (alone, none) = answers(&Device::cpu(), 16);
    assert_eq!(none, 0);
    let (few, preemptions) = answers(device, 3);
    assert!(preemptions > 0);
    assert_eq!(few, alone);
}

#[test]
fn preempted_on_the_cpu() {
    preempted(&Device::cpu());
}

#[test]
fn preempted_on_an_emulated_sm_80() {
    preempted(&Device::emulated(Target::Sm80, 1));
}
