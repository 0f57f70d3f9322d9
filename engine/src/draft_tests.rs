//! Speculation with a draft model: the plain answers, whatever the drafts are worth, and drafts that are worth what the
//! draft model knows: one that is the target itself is never wrong, unless its cache lacks something.
use super::step_tests::{EAGER, config, request};
use super::*;
use crate::chat_template::{ChatInput, message};
use crate::embedded::{TINY_CHAT, TINY_DRAFT};
use crate::pooling::Pooling;
use crate::sampling::SamplingParams;
use crate::source::ModelSource;
use crate::tokenizer::Tokenizer;
use kernels_host::Target;

const DRAFTS: usize = 3;
const SPECULATION: Speculation = Speculation::Draft { drafts: DRAFTS };

/// The model of the plain tests, with a draft model of the same shape: itself, or one that knows nothing of it.
fn load(device: &Device, draft_seed: u64, config_: EngineConfig) -> Engine {
    let shape = config();
    let draft = DraftModel::Dummy { config: Box::new(shape.clone()), seed: draft_seed };
    let config = EngineConfig { max_drafts: DRAFTS, draft: Some(draft), ..config_ };
    Engine::load(device, &shape, WeightSource::Dummy { seed: 3 }, &config, &|_, _| ()).unwrap()
}

fn run(engine: &mut Engine, requests: Vec<SequenceRequest>) -> Vec<Vec<u32>> {
    let ids: Vec<_> = requests.into_iter().map(|request| engine.add(request).unwrap()).collect();
    let mut answers = vec![Vec::new(); ids.len()];
    while engine.has_work() {
        for progress in engine.step().unwrap() {
            answers[ids.iter().position(|id| *id == progress.id).unwrap()].extend(progress.token);
        }
    }
    answers
}

/// Requests of all kinds, some of them without drafts.
fn mixed(speculation: Speculation) -> Vec<SequenceRequest> {
    let of = |i| if i == 3 { Speculation::Off } else { speculation };
    (0..5).map(|i| SequenceRequest { speculation: of(i), max_tokens: 9, ..request(i) }).collect()
}

pub(super) fn greedy(prompt: Vec<u32>, max_tokens: usize) -> SequenceRequest {
    SequenceRequest { prompt, max_tokens, speculation: SPECULATION, ..SequenceRequest::default() }
}

fn prompt(len: u32, salt: u32) -> Vec<u32> {
    (0..len).map(|i| (i * 7 + salt * 31) % 160).collect()
}

fn check_mixed(device: &Device, configs: &[(u64, EngineConfig)]) {
    let mut plain = load(device, 3, EAGER);
    let plain = run(&mut plain, mixed(Speculation::Off));
    for (seed, config) in configs {
        let mut engine = load(device, *seed, config.clone());
        assert_eq!(run(&mut engine, mixed(SPECULATION)), plain, "draft {seed}, {config:?}, {device:?}");
        assert!(engine.metrics().drafted[DRAFTS - 1] > 0);
    }
}

#[test]
fn drafts_change_no_answer_on_the_cpu() {
    let small = EngineConfig { max_num_batched_tokens: Some(19), overlap: Some(true), ..EAGER };
    check_mixed(&Device::cpu(), &[(3, EAGER), (9, EAGER), (3, small.clone()), (9, small)]);
}

#[test]
fn drafts_change_no_answer_on_an_emulated_gpu() {
    let graphs = EngineConfig { eager: false, overlap: Some(true), ..EAGER };
    check_mixed(&Device::emulated(Target::Sm90a, 1), &[(9, EAGER), (3, graphs)]);
}

/// Verified drafts are rows like others: the same bits with them and without.
#[test]
fn drafts_change_no_bit_where_steps_are_batch_invariant() {
    let device = Device::emulated(Target::Sm90a, 1);
    let config = EngineConfig { batch_invariant: true, prefix_cache: false, ..EAGER };
    let [(plain, none), (drafted, accepted)] = [Speculation::Off, SPECULATION].map(|speculation| {
        let mut engine = load(&device, 3, config.clone());
        let requests = (0..3).map(|i| {
            let mut request = SequenceRequest { speculation, max_tokens: 6, ..request(i) };
            request.sampling.logprobs = Some(2);
            request
        });
        let ids: Vec<_> = requests.map(|request| engine.add(request).unwrap()).collect();
        let mut answers = vec![Vec::new(); ids.len()];
        while engine.has_work() {
            for Progress { id, token, logprobs, .. } in engine.step().unwrap() {
                answers[ids.iter().position(|own| *own == id).unwrap()].push((token, logprobs));
            }
        }
        (answers, engine.metrics().accepted[0])
    });
    assert!(accepted > 0 && none == 0);
    assert_eq!(drafted, plain);
}

#[test]
fn steps_with_drafts_run_as_graphs_and_allocate_nothing() {
    let device = Device::emulated(Target::Sm80, 1);
    let mut engine = load(&device, 9, EngineConfig { eager: false, overlap: Some(true), ..EAGER });
    let (counted, used) = (engine.runner().memory().total(), engine.load_times().used.unwrap());
    assert!(counted.abs_diff(used) < 64 << 10, "{counted} counted, {used} used: {:?}", engine.runner().memory());
    let free = device.memory().unwrap();
    engine.start_trace();
    run(&mut engine, vec![greedy(prompt(5, 0), 12), greedy(prompt(9, 1), 12)]);
    let steps = engine.take_trace().unwrap().unwrap();
    let decodes = steps.iter().skip(1);
    assert!(decodes.filter(|step| step.graph.is_some()).count() > 3, "{steps:?}");
    assert_eq!(device.memory().unwrap(), free);
}

/// A graph of contexts up to 512 tokens and one of the longest: padding of the last steps reaches beyond the sequence's end.
#[test]
fn graphs_of_two_contexts_lead_to_the_longest_sequence() {
    let device = Device::emulated(Target::Sm80, 1);
    let config = EngineConfig { max_model_len: Some(512), max_num_seqs: 1, eager: false, ..EAGER };
    let [plain, drafted] = [Speculation::Off, SPECULATION].map(|speculation| {
        let mut engine = load(&device, 9, config.clone());
        assert_eq!(engine.runner().graphs(), 4, "two contexts, with and without drafts");
        engine.start_trace();
        let answer = run(&mut engine, vec![SequenceRequest { speculation, ..greedy(prompt(500, 1), 50) }]).remove(0);
        let steps = engine.take_trace().unwrap().unwrap();
        assert!(steps.iter().filter(|step| step.graph.is_some()).count() > 3, "{steps:?}");
        answer
    });
    assert_eq!(plain.len(), 12);
    assert_eq!(drafted, plain);
}

/// A draft model that is the target agrees with it wherever both caches hold the same.
fn assert_all_accepted(engine: &Engine, what: &str) {
    let metrics = engine.metrics();
    assert!(metrics.drafted[0] > 0, "{what}");
    assert_eq!(metrics.accepted, metrics.drafted, "{what}");
}

#[test]
fn a_perfect_draft_model_is_never_wrong() {
    let device = Device::cpu();
    let mut engine = load(&device, 3, EAGER);
    // Past pages' ends, and again with the answer in the prompt: all but the last block is found in the tree.
    let first = run(&mut engine, vec![greedy(prompt(5, 0), 140)]).remove(0);
    assert_all_accepted(&engine, "alone");
    let longer = [prompt(5, 0), first.clone()].concat();
    assert_eq!(run(&mut engine, vec![greedy(longer[..135].to_vec(), 10)])[0], first[130..]);
    assert!(engine.metrics().prefix_hits >= 128);
    assert_all_accepted(&engine, "prefix hit");

    let requests = |speculation| -> Vec<_> {
        let of = |i: u32| if i == 2 { Speculation::Off } else { speculation };
        (0..4).map(|i| SequenceRequest { speculation: of(i), ..greedy(prompt(30 + 20 * i, i % 2), 70) }).collect()
    };
    let plain = run(&mut load(&device, 3, EAGER), requests(Speculation::Off));
    let few = EngineConfig { policy: Policy::MaxUtilization, kv_cache_tokens: Some(192), ..EAGER };
    for (what, config) in [
        ("batched", EAGER),
        ("chunked", EngineConfig { max_num_batched_tokens: Some(17), overlap: Some(true), ..EAGER }),
        ("preempted", few.clone()),
        ("swapped", EngineConfig { host_cache_bytes: 1 << 20, ..few.clone() }),
    ] {
        let mut engine = load(&device, 3, config);
        assert_eq!(run(&mut engine, requests(SPECULATION)), plain, "{what}");
        assert_all_accepted(&engine, what);
        assert!(what != "preempted" || engine.metrics().preemptions > 0);
    }
}

#[test]
fn answers_that_fork_are_drafted_too() {
    let device = Device::cpu();
    let sampling = SamplingParams { temperature: 1.0, seed: 40, ..SamplingParams::default() };
    let both =
        |speculation| SequenceRequest { sampling: sampling.clone(), n: 2, speculation, ..greedy(prompt(70, 1), 9) };
    let answers = |engine: &mut Engine, request| {
        engine.add(request).unwrap();
        let mut answers = [Vec::new(), Vec::new()];
        while engine.has_work() {
            engine.step().unwrap().iter().for_each(|progress| answers[progress.index as usize].extend(progress.token));
        }
        answers
    };
    let mut engine = load(&device, 3, EAGER);
    let plain = answers(&mut engine, both(Speculation::Off));
    assert_eq!(answers(&mut engine, both(SPECULATION)), plain);
    assert!(engine.metrics().drafted[0] > 0);
}

#[test]
fn synthetic_acceptance_accepts_its_share() {
    let config = EngineConfig { synthetic_acceptance: Some(0.75), ..EAGER };
    let mut engine = load(&Device::cpu(), 9, config);
    let requests = (0..3).map(|i| {
        let sampling = SamplingParams { seed: u64::from(i), ..SamplingParams::default() };
        SequenceRequest { sampling, ..greedy(prompt(8, i), 180) }
    });
    run(&mut engine, requests.collect());
    let metrics = engine.metrics();
    let share = metrics.accepted[0] as f64 / metrics.drafted[0] as f64;
    assert!((0.65..0.85).contains(&share), "{metrics:?}");
    assert!(metrics.accepted[1] < metrics.accepted[0]);
}

#[test]
fn a_draft_model_of_another_family_is_refused() {
    let load = |vocab_size, config: EngineConfig| {
        let draft = Box::new(ModelConfig { vocab_size, ..super::step_tests::config() });
        let config = EngineConfig { draft: Some(DraftModel::Dummy { config: draft, seed: 1 }), ..config };
        let weights = WeightSource::Dummy { seed: 1 };
        Engine::load(&Device::cpu(), &super::step_tests::config(), weights, &config, &|_, _| ())
    };
    let config = EngineConfig { speculation: SPECULATION, ..EAGER };
    let error = load(170, config.clone()).err().unwrap().to_string();
    assert!(error.contains("170 tokens, the model's 160"), "{error}");
    let error = load(160, EAGER).err().unwrap().to_string();
    assert!(error.contains("--num-draft-tokens"), "{error}");
    let mut engine = load(160, config).unwrap();
    let ngram = SequenceRequest {
        speculation: Speculation::Ngram { drafts: 2, max_n: 2, min_n: 1 },
        ..greedy(prompt(5, 0), 3)
    };
    assert!(engine.add(ngram).unwrap_err().to_string().contains("n-grams"));
}

#[test]
fn a_draft_model_with_other_tokens_is_refused() {
    assert!(tiny_draft().unwrap().check_tokenizer(&TINY_CHAT.tokenizer().unwrap()).is_ok());
    let mut json: serde_json::Value = serde_json::from_slice(TINY_CHAT.file("tokenizer.json").unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let last = vocab.len() as u64 - 1;
    for id in vocab.values_mut() {
        *id = match id.as_u64().unwrap() {
            id if id == last => last - 1,
            id if id == last - 1 => last,
            id => id,
        }
        .into();
    }
    let other = Tokenizer::from_slice("swapped", json.to_string().as_bytes()).unwrap();
    let error = tiny_draft().unwrap().check_tokenizer(&other).unwrap_err().to_string();
    assert!(error.contains("same tokenizer"), "{error}");
}

fn tiny_chat(config: EngineConfig) -> Engine {
    let (weights, shape) = (TINY_CHAT.checkpoint().unwrap(), TINY_CHAT.config().unwrap());
    Engine::load(&Device::cpu(), &shape, WeightSource::Checkpoint(&weights), &config, &|_, _| ()).unwrap()
}

pub(super) fn tiny_draft() -> Option<DraftModel> {
    Some(DraftModel::Model(ModelSource::Embedded(&TINY_DRAFT)))
}

pub(super) fn question(text: &str) -> Vec<u32> {
    later_question(text, 0)
}

/// A question after `turns` others.
pub(super) fn later_question(text: &str, turns: usize) -> Vec<u32> {
    let turn =
        |i: usize| [message("user", &format!("What is {i} plus 7?")), message("assistant", &(i + 7).to_string())];
    let messages = (0..turns).flat_map(turn).chain([message("user", text)]).collect();
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    let text = TINY_CHAT.chat_template().unwrap().render(&input).unwrap();
    TINY_CHAT.tokenizer().unwrap().encode(&text, true).unwrap()
}

#[test]
fn tiny_chats_embeddings_are_the_same_alone_and_in_a_batch() {
    let questions: Vec<Vec<u32>> =
        ["Hello.", "What is 12 plus 7?", "Count from 1 to 9.", "Spell river."].into_iter().map(question).collect();
    let embed = |engine: &mut Engine, prompts: &[Vec<u32>], pooling| {
        let request = |prompt: &Vec<u32>| SequenceRequest {
            prompt: prompt.clone(),
            pooling: Some(pooling),
            ..Default::default()
        };
        let ids: Vec<_> = prompts.iter().map(|prompt| engine.add(request(prompt)).unwrap()).collect();
        let mut found = vec![Vec::new(); ids.len()];
        while engine.has_work() {
            for progress in engine.step().unwrap() {
                found[ids.iter().position(|id| *id == progress.id).unwrap()] = progress.embedding.unwrap();
            }
        }
        found
    };
    for pooling in [Pooling::Mean, Pooling::Last] {
        let fresh = |tokens| tiny_chat(EngineConfig { max_num_batched_tokens: Some(tokens), ..EAGER });
        let alone: Vec<_> = questions
            .iter()
            .map(|prompt| embed(&mut fresh(512), std::slice::from_ref(prompt), pooling).remove(0))
            .collect();
        for tokens in [512, 23] {
            let mut engine = fresh(tokens);
            assert_eq!(embed(&mut engine, &questions, pooling), alone, "{pooling:?}, {tokens} tokens a step");
            assert_eq!(embed(&mut engine, &questions, pooling), alone, "{pooling:?}, with the prefix cache");
        }
    }
}

#[test]
fn tiny_draft_drafts_for_tiny_chat() {
    let config = EngineConfig { draft: tiny_draft(), speculation: SPECULATION, ..EngineConfig::default() };
    let mut engine = tiny_chat(EngineConfig { kv_cache_tokens: Some(2048), ..config });
    let requests = |speculation| -> Vec<_> {
        ["What is 12 plus 7?", "Count from 1 to 10.", "Spell cat.", "Who are you?"]
            .map(|text| SequenceRequest { speculation, ..greedy(question(text), 24) })
            .into()
    };
    let plain = run(&mut engine, requests(Speculation::Off));
    assert_eq!(run(&mut engine, requests(Speculation::Auto)), plain);
    let metrics = engine.metrics();
    let share = metrics.accepted[0] as f64 / metrics.drafted[0] as f64;
    assert!(share > 0.5, "{metrics:?}");
}

/// Questions of many kinds; every third answer is sampled, every fifth has penalties. Half of them share a page of turns
/// before them, the others need a second page while they are answered.
fn questions() -> Vec<SequenceRequest> {
    let request = |i: u32| {
        let text = match i % 4 {
            0 => format!("What is {} plus {}?", 3 * i, i + 7),
            1 => format!("Count from {i} to {}.", i + 9),
            2 => format!("Reverse the word {}.", ["apple", "river", "stone", "cloud"][i as usize / 4 % 4]),
            _ => format!("Repeat this: one two three {i} four five six one two three {i} four five."),
        };
        let temperature = if i.is_multiple_of(3) { 0.8 } else { 0.0 };
        let repetition_penalty = if i.is_multiple_of(5) { 1.2 } else { 1.0 };
        let sampling =
            SamplingParams { temperature, seed: u64::from(i), repetition_penalty, ..SamplingParams::default() };
        SequenceRequest {
            sampling,
            speculation: Speculation::Auto,
            ..greedy(later_question(&text, [5, 3, 5, 2][i as usize % 4]), 14)
        }
    };
    (0..32).map(request).collect()
}

/// Requests arrive a few at a time, and with every fourth comes one that is cancelled two steps later.
fn arrivals(engine: &mut Engine) -> Vec<Vec<u32>> {
    let mut waiting = questions().into_iter().enumerate();
    let (mut ids, mut answers, mut doomed) = (Vec::new(), vec![Vec::new(); 32], Vec::new());
    let mut step = 0;
    loop {
        for (i, request) in waiting.by_ref().take([3, 0, 1, 5][step % 4]) {
            if i % 4 == 1 {
                doomed.push((step + 2, engine.add(SequenceRequest { max_tokens: 40, ..request.clone() }).unwrap()));
            }
            ids.push(engine.add(request).unwrap());
        }
        doomed.iter().filter(|(at, _)| *at == step).for_each(|(_, id)| engine.cancel(*id));
        for progress in engine.step().unwrap() {
            if let Some(at) = ids.iter().position(|id| *id == progress.id) {
                answers[at].extend(progress.token);
            }
        }
        step += 1;
        if ids.len() == 32 && !engine.has_work() {
            return answers;
        }
    }
}

/// All combinations, but for the host's memory behind few pages, which says nothing new with speculation.
#[test]
fn nothing_changes_with_arrivals_cancels_chunks_prefix_hits_few_pages_overlap_and_speculation() {
    let base = EngineConfig { max_num_seqs: 32, kv_cache_tokens: Some(4096), ..EngineConfig::default() };
    let mut engine = tiny_chat(base.clone());
    let alone: Vec<_> = questions().into_iter().map(|request| run(&mut engine, vec![request]).remove(0)).collect();
    drop(engine);
    let ngram = Speculation::Ngram { drafts: 5, max_n: 4, min_n: 1 };
    let few = EngineConfig { policy: Policy::MaxUtilization, kv_cache_tokens: Some(7 * 64), ..base.clone() };
    let drafted = [(Speculation::Off, None), (ngram, None), (SPECULATION, tiny_draft())];
    let both = [false, true];
    let switches = both.into_iter().flat_map(|few| {
        both.into_iter().flat_map(move |chunks| {
            both.into_iter().flat_map(move |prefix| both.map(|overlap| (few, chunks, prefix, overlap)))
        })
    });
    let mut preemptions = 0;
    for (few_pages, chunks, prefix_cache, overlap) in switches {
        for (speculation, draft) in drafted.clone() {
            let config = EngineConfig {
                speculation,
                draft,
                max_num_batched_tokens: Some(if chunks { 48 } else { 256 }),
                prefix_cache,
                overlap: Some(overlap),
                ..if few_pages { few.clone() } else { base.clone() }
            };
            let mut engine = tiny_chat(config.clone());
            assert_eq!(arrivals(&mut engine), alone, "{config:?}");
            let metrics = engine.metrics();
            assert_eq!((metrics.used_pages, metrics.drafted[0] > 0), (0, speculation != Speculation::Off));
            assert!(few_pages || metrics.preemptions == 0, "{config:?}: {metrics:?}");
            preemptions += metrics.preemptions;
            assert_eq!(metrics.prefix_hits > 0, prefix_cache, "{config:?}: {metrics:?}");
        }
    }
    assert!(preemptions > 24, "{preemptions} in 24 runs");
}

#[test]
fn on_the_cpu_a_token_has_the_same_logits_to_the_bit_alone_and_in_a_batch() {
    let config =
        EngineConfig { max_num_seqs: 32, kv_cache_tokens: Some(4096), prefix_cache: false, ..EngineConfig::default() };
    let bits = |engine: &mut Engine, requests: Vec<SequenceRequest>| {
        let ids: Vec<_> = requests.into_iter().map(|request| engine.add(request).unwrap()).collect();
        let mut bits = vec![Vec::new(); ids.len()];
        while engine.has_work() {
            for progress in engine.step().unwrap() {
                let at = ids.iter().position(|id| *id == progress.id).unwrap();
                let logprobs = progress.logprobs.iter().flat_map(|logprobs| &logprobs.top);
                bits[at].extend(logprobs.map(|(token, logprob)| (*token, logprob.to_bits())));
            }
        }
        bits
    };
    let asked = || -> Vec<_> {
        let ask = |mut request: SequenceRequest| {
            request.sampling.logprobs = Some(20);
            request
        };
        questions().into_iter().map(ask).collect()
    };
    let mut engine = tiny_chat(config.clone());
    let alone: Vec<_> = asked().into_iter().map(|request| bits(&mut engine, vec![request]).remove(0)).collect();
    assert!(alone.iter().all(|bits| bits.len() >= 20));
    for step in [256, 37] {
        let mut engine = tiny_chat(EngineConfig { max_num_batched_tokens: Some(step), ..config.clone() });
        assert!(bits(&mut engine, asked()) == alone, "steps of {step} tokens");
    }
}
