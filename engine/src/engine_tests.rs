//! The same answers however a step is run: alone, batched, in chunks, kernel by kernel or by graphs, with the next step
//! queued or not.
use super::*;
use crate::pooling::Pooling;
use crate::sampling::SamplingParams;
use crate::scheduler::Speculation;
use kernels_host::Target;
use std::collections::HashMap;

/// Random weights; heads of 64 as real models have.
const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":96,"torch_dtype":"bfloat16",
    "num_attention_heads":2,"num_hidden_layers":2,"num_key_value_heads":1,"head_dim":64,"vocab_size":160,
    "max_position_embeddings":512,"rope_theta":10000.0,"rms_norm_eps":1e-5}"#;

pub(super) const EAGER: EngineConfig = EngineConfig {
    max_model_len: Some(192),
    max_num_seqs: 3,
    max_num_batched_tokens: Some(100),
    kv_cache_tokens: Some(1024),
    kv_cache_memory_bytes: None,
    gpu_memory_utilization: 0.9,
    prefix_cache: true,
    host_cache_bytes: 0,
    policy: Policy::GuaranteedNoEvict,
    max_drafts: 0,
    draft: None,
    speculation: Speculation::Off,
    synthetic_acceptance: None,
    eager: true,
    batch_invariant: false,
    overlap: Some(false),
};

pub(super) fn config() -> ModelConfig {
    ModelConfig::from_slice("config.json", CONFIG.as_bytes()).unwrap()
}

fn load(device: &Device, config: EngineConfig) -> Engine {
    Engine::load(device, &self::config(), WeightSource::Dummy { seed: 3 }, &config, &|_, _| ()).unwrap()
}

pub(super) fn request(i: u32) -> SequenceRequest {
    let len = [5, 70, 64, 1, 130][i as usize % 5];
    let sampling = match i % 3 {
        0 => SamplingParams::default(),
        1 => SamplingParams { temperature: 0.8, seed: u64::from(i), top_k: 20, ..SamplingParams::default() },
        _ => SamplingParams {
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            logit_bias: vec![(7, f32::NEG_INFINITY), (9, 0.01)],
            ..SamplingParams::default()
        },
    };
    SequenceRequest {
        prompt: (0..len).map(|j| (j * 7 + i * 31) % 160).collect(),
        max_tokens: 5,
        sampling,
        ..SequenceRequest::default()
    }
}

fn run(engine: &mut Engine, requests: &[u32]) -> Vec<Vec<u32>> {
    let ids: Vec<_> = requests.iter().map(|&i| engine.add(request(i)).unwrap()).collect();
    let mut answers = vec![Vec::new(); ids.len()];
    while engine.has_work() {
        for progress in engine.step().unwrap() {
            let at = ids.iter().position(|id| *id == progress.id).unwrap();
            answers[at].extend(progress.token);
        }
    }
    answers
}

/// Of every answer the tokens' log-probabilities and those of the three likeliest, in bits.
fn logprob_bits(engine: &mut Engine, requests: &[u32]) -> Vec<Vec<u32>> {
    let request = |i| {
        let mut request = request(i);
        request.sampling.logprobs = Some(3);
        request
    };
    let ids: Vec<_> = requests.iter().map(|&i| engine.add(request(i)).unwrap()).collect();
    let mut answers = vec![Vec::new(); ids.len()];
    while engine.has_work() {
        for progress in engine.step().unwrap() {
            let at = ids.iter().position(|id| *id == progress.id).unwrap();
            let logprobs = progress.logprobs.unwrap();
            answers[at].push(logprobs.logprob.to_bits());
            answers[at].extend(logprobs.top.iter().map(|(_, logprob)| logprob.to_bits()));
        }
    }
    answers
}

#[test]
fn batch_invariant_steps_give_the_same_bits_alone_batched_and_in_chunks() {
    let devices =
        [Target::Sm90a, Target::Sm80].map(|target| Device::emulated(target, 1)).into_iter().chain([Device::cpu()]);
    for device in devices {
        let config = EngineConfig { batch_invariant: true, prefix_cache: false, ..EAGER };
        let mut engine = load(&device, config.clone());
        let alone: Vec<_> = ALL.iter().map(|&i| logprob_bits(&mut engine, &[i]).remove(0)).collect();
        // More than 128 rows take another kernel.
        for tokens in [192, 23] {
            let mut engine = load(&device, EngineConfig { max_num_batched_tokens: Some(tokens), ..config.clone() });
            assert_eq!(logprob_bits(&mut engine, &ALL), alone, "{tokens} tokens a step");
        }
    }
}

const OVERLAPS: [bool; 2] = [false, true];
const ALL: [u32; 5] = [0, 1, 2, 3, 4];

/// Each by itself.
fn alone(device: &Device) -> Vec<Vec<u32>> {
    let mut engine = load(device, EAGER);
    ALL.iter().map(|&i| run(&mut engine, &[i]).remove(0)).collect()
}

#[test]
fn batched_chunked_and_overlapped_steps_answer_the_same_on_the_cpu() {
    let device = Device::cpu();
    let alone = alone(&device);
    assert!(alone.iter().all(|tokens| tokens.len() == 5));
    for (overlap, step) in OVERLAPS.into_iter().flat_map(|on| [(on, 100), (on, 17)]) {
        let config = EngineConfig { overlap: Some(overlap), max_num_batched_tokens: Some(step), ..EAGER };
        assert_eq!(run(&mut load(&device, config), &ALL), alone, "overlap {overlap}, steps of {step}");
    }
}

#[test]
fn graphs_answer_the_same_on_emulated_gpus() {
    for target in [Target::Sm80, Target::Sm90a] {
        let device = Device::emulated(target, 1);
        let alone = alone(&device);
        for overlap in OVERLAPS {
            let config = EngineConfig { eager: false, overlap: Some(overlap), ..EAGER };
            let mut engine = load(&device, config);
            assert_eq!(engine.runner().graphs(), 3, "1, 2 and 3 sequences");
            engine.start_trace();
            assert_eq!(run(&mut engine, &ALL), alone, "{target}, overlap {overlap}");
            let steps = engine.take_trace().unwrap().unwrap();
            assert!(steps.iter().any(|step| step.graph == Some(3)), "{steps:?}");
            assert!(steps.iter().all(|step| step.graph.is_none_or(|size| size >= step.sequences)));
        }
    }
}

#[test]
fn nothing_is_allocated_by_a_step() {
    let device = Device::emulated(Target::Sm80, 1);
    let mut engine = load(&device, EngineConfig { eager: false, ..EAGER });
    let free = device.memory().unwrap();
    run(&mut engine, &[0, 2]);
    assert_eq!(device.memory().unwrap(), free);
}

#[test]
fn the_budget_is_what_the_device_gave() {
    let device = Device::emulated(Target::Sm80, 1);
    let engine = load(&device, EngineConfig { eager: false, ..EAGER });
    let (counted, used) = (engine.runner().memory().total(), engine.load_times().used.unwrap());
    // What nobody counts: rotary frequencies, and the rounding of small buffers.
    assert!(counted.abs_diff(used) < 64 << 10, "{counted} counted, {used} used: {:?}", engine.runner().memory());
}

#[test]
fn a_cancelled_step_in_flight_is_dropped() {
    let mut engine = load(&Device::cpu(), EngineConfig { overlap: Some(true), ..EAGER });
    let expected = run(&mut engine, &[1]);
    let id = engine.add(request(0)).unwrap();
    engine.step().unwrap();
    engine.cancel(id);
    assert_eq!(run(&mut engine, &[1]), expected);
}

/// Everything that an engine reports for one request.
fn reports(engine: &mut Engine, request: SequenceRequest) -> Vec<Progress> {
    engine.add(request).unwrap();
    let mut all = Vec::new();
    while engine.has_work() {
        all.extend(engine.step().unwrap());
    }
    all
}

fn devices() -> [Device; 2] {
    [Device::cpu(), Device::emulated(Target::Sm90a, 1)]
}

#[test]
fn log_probabilities_come_with_the_tokens() {
    for device in devices() {
        let sampling = SamplingParams { logprobs: Some(3), ..SamplingParams::default() };
        let request = SequenceRequest { sampling, ..request(1) };
        let reports = reports(&mut load(&device, EngineConfig { eager: false, overlap: Some(true), ..EAGER }), request);
        assert_eq!(reports.len(), 5);
        for report in reports {
            let logprobs = report.logprobs.unwrap();
            assert_eq!((logprobs.rank, logprobs.top.len()), (1, 3), "greedy");
            assert_eq!(logprobs.top[0], (report.token.unwrap(), logprobs.logprob));
            assert!(logprobs.top.windows(2).all(|pair| pair[0].1 >= pair[1].1) && logprobs.logprob < 0.0);
        }
    }
}

#[test]
fn answers_that_fork_are_those_of_single_requests() {
    for device in devices() {
        let mut engine = load(&device, EngineConfig { eager: false, overlap: Some(true), ..EAGER });
        let sampling = SamplingParams { temperature: 1.0, seed: 40, ..SamplingParams::default() };
        // 70 tokens: the forks share a page and copy a partly filled one.
        let both = SequenceRequest { sampling: sampling.clone(), n: 2, ..request(1) };
        let forked = reports(&mut engine, both);
        for index in 0..2 {
            let one = SamplingParams { seed: 40 + u64::from(index), ..sampling.clone() };
            let alone = reports(&mut engine, SequenceRequest { sampling: one, ..request(1) });
            let of = |reports: &[Progress], index| -> Vec<_> {
                reports.iter().filter(|report| report.index == index).map(|report| report.token).collect()
            };
            assert_eq!(of(&forked, index), of(&alone, 0), "answer {index} on {device:?}");
        }
    }
}

#[test]
fn verified_drafts_give_the_plain_answers() {
    for device in devices() {
        let plain = run(&mut load(&device, EAGER), &ALL);
        for eager in [true, false] {
            let config = EngineConfig { eager, max_drafts: 3, overlap: Some(true), ..EAGER };
            let mut engine = load(&device, config);
            let ids: Vec<_> = ALL
                .iter()
                .map(|&i| {
                    // Anything that has been there is tried: most drafts are wrong.
                    let speculation = Speculation::Ngram { drafts: 3, max_n: 2, min_n: 1 };
                    engine.add(SequenceRequest { speculation, ..request(i) }).unwrap()
                })
                .collect();
            let mut answers = vec![Vec::new(); ids.len()];
            while engine.has_work() {
                for progress in engine.step().unwrap() {
                    answers[ids.iter().position(|id| *id == progress.id).unwrap()].extend(progress.token);
                }
            }
            assert_eq!(answers, plain, "eager {eager} on {device:?}");
            assert!(engine.metrics().drafted[0] > 0, "no drafts were checked");
        }
    }
}

#[test]
fn blocks_that_went_to_the_host_come_back() {
    for device in devices() {
        // Four pages: the second prompt pushes the first one's blocks out.
        let config =
            EngineConfig { kv_cache_tokens: Some(256), host_cache_bytes: 1 << 20, overlap: Some(true), ..EAGER };
        let mut engine = load(&device, config);
        let first = run(&mut engine, &[4]);
        let _ = run(&mut engine, &[1]);
        let other = SequenceRequest { prompt: (0..150).map(|j| (j * 11 + 5) % 160).collect(), ..request(1) };
        let _ = reports(&mut engine, other);
        assert!(engine.metrics().swapped_out > 0);
        assert_eq!(run(&mut engine, &[4]), first, "{device:?}");
        assert!(engine.metrics().swapped_in > 0, "{:?}", engine.metrics());
    }
}

/// Prompts' embeddings, all at once.
fn embed(engine: &mut Engine, requests: &[u32], pooling: Pooling) -> Vec<Vec<f32>> {
    let request =
        |i: u32| SequenceRequest { prompt: request(i).prompt, pooling: Some(pooling), ..SequenceRequest::default() };
    let ids: Vec<_> = requests.iter().map(|&i| engine.add(request(i)).unwrap()).collect();
    let mut embeddings = vec![Vec::new(); ids.len()];
    while engine.has_work() {
        for progress in engine.step().unwrap() {
            let at = ids.iter().position(|id| *id == progress.id).unwrap();
            embeddings[at] = progress.embedding.unwrap();
        }
    }
    embeddings
}

#[test]
fn embeddings_are_the_same_alone_batched_and_in_chunks() {
    let cpu = Device::cpu();
    for pooling in [Pooling::Mean, Pooling::Last] {
        let alone: Vec<_> = ALL.iter().map(|&i| embed(&mut load(&cpu, EAGER), &[i], pooling).remove(0)).collect();
        assert!(alone.iter().all(|embedding| embedding.len() == 64));
        assert_ne!(alone[0], alone[1]);
        for tokens in [192, 23] {
            for overlap in OVERLAPS {
                let step = EngineConfig { max_num_batched_tokens: Some(tokens), overlap: Some(overlap), ..EAGER };
                let mut engine = load(&cpu, step);
                assert_eq!(embed(&mut engine, &ALL, pooling), alone, "{tokens} tokens a step");
                // Again, with the prompts' blocks in the cache; and beside answers.
                let backwards: Vec<u32> = ALL.into_iter().rev().collect();
                let beside = engine.add(self::request(4)).unwrap();
                let mut again = Vec::new();
                for &i in &backwards {
                    again.extend(embed_beside(&mut engine, i, pooling));
                }
                engine.cancel(beside);
                again.reverse();
                assert_eq!(again, alone);
            }
        }
    }
}

/// One embedding, while others are computed.
fn embed_beside(engine: &mut Engine, i: u32, pooling: Pooling) -> Option<Vec<f32>> {
    let prompt = request(i).prompt;
    let id = engine.add(SequenceRequest { prompt, pooling: Some(pooling), ..SequenceRequest::default() }).unwrap();
    loop {
        let found = engine.step().unwrap().into_iter().find(|progress| progress.id == id);
        if let Some(progress) = found {
            return progress.embedding;
        }
    }
}

#[test]
fn embeddings_are_the_states_that_the_head_sees() {
    let engine = &mut load(&Device::cpu(), EAGER);
    let prompt = request(1).prompt;
    let logits = engine.score(&prompt).unwrap();
    let embedding = embed(engine, &[1], Pooling::Last).remove(0);
    assert_eq!(engine.runner.project(&embedding).unwrap(), logits[logits.len() - 160..]);
    let means = embed(engine, &[1], Pooling::Mean).remove(0);
    // A prompt's mean is the mean of its prefixes' last tokens.
    let mut sum = vec![0.0f64; 64];
    for len in 1..=prompt.len() {
        let prompt = prompt[..len].to_vec();
        let id = engine.add(SequenceRequest { prompt, pooling: Some(Pooling::Last), ..Default::default() }).unwrap();
        while engine.has_work() {
            for progress in engine.step().unwrap() {
                assert_eq!(progress.id, id);
                sum.iter_mut().zip(progress.embedding.unwrap()).for_each(|(sum, x)| *sum += f64::from(x));
            }
        }
    }
    let by_prefixes: Vec<f32> = sum.iter().map(|sum| (sum / prompt.len() as f64) as f32).collect();
    assert_eq!(means, by_prefixes);
}

#[test]
fn embeddings_of_gpus_are_the_cpus() {
    let cpu = embed(&mut load(&Device::cpu(), EAGER), &ALL, Pooling::Mean);
    for target in [Target::Sm90a, Target::Sm80] {
        // Graphs and overlap, as on a real one.
        let step = EngineConfig { eager: false, overlap: Some(true), ..EAGER };
        let found = embed(&mut load(&Device::emulated(target, 1), step), &ALL, Pooling::Mean);
        for (found, expected) in found.iter().zip(&cpu) {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let cosine = dot(found, expected) / (dot(found, found) * dot(expected, expected)).sqrt();
            assert!(cosine > 0.999, "{target:?}: {cosine}");
        }
    }
}

/// Masks are the same bits on every device: three sequences with a grammar beside one without, alone and overlapped.
#[test]
fn grammars_are_followed_on_emulated_gpus() {
    let grammar = crate::grammar::synthetic_json(512).unwrap();
    let shape = ModelConfig::from_slice("config.json", CONFIG.replace("160", "512").as_bytes()).unwrap();
    let devices = [Device::emulated(Target::Sm90a, 1), Device::emulated(Target::Sm80, 1)];
    for (device, overlap) in devices.into_iter().zip([true, false]) {
        let config = EngineConfig { overlap: Some(overlap), max_num_seqs: 4, eager: !overlap, ..EAGER };
        let mut engine = Engine::load(&device, &shape, WeightSource::Dummy { seed: 3 }, &config, &|_, _| ()).unwrap();
        let mut answers = HashMap::new();
        for i in 0..4u64 {
            let grammar = (i < 3).then(|| grammar.clone());
            let sampling = SamplingParams { temperature: 1.0, seed: i, grammar, ..SamplingParams::default() };
            let request =
                SequenceRequest { prompt: vec![7, 8, 9], max_tokens: 8, sampling, ..SequenceRequest::default() };
            answers.insert(engine.add(request).unwrap(), (i < 3, Vec::new()));
        }
        while engine.has_work() {
            for progress in engine.step().unwrap() {
                if let Some((_, tokens)) = answers.get_mut(&progress.id) {
                    tokens.extend(progress.token);
                }
            }
        }
        for (masked, tokens) in answers.into_values() {
            assert_eq!(tokens.len(), 8);
            let followed = grammar.matcher().validate_tokens(&tokens).unwrap() == tokens.len();
            assert_eq!(followed, masked, "{tokens:?}: a random model follows no grammar by itself");
        }
        assert_eq!(engine.open_grammars(), 0);
    }
}
