//! Grammars on the built-in model: whatever it would rather say, the answer is what was asked for.
use super::*;
use crate::engine::EngineConfig;
use crate::llm::{Answer, Llm, SamplingParams};
use crate::scheduler::{FinishReason, Speculation};
use crate::{Error, message};
use kernels_host::Device;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Mutex;

fn load(config: EngineConfig) -> Llm {
    Llm::builder("tiny-chat").device(&Device::cpu()).config(config).load().unwrap()
}

fn with(grammar: Grammar) -> SamplingParams {
    SamplingParams { grammar: Some(grammar), max_tokens: Some(200), ..SamplingParams::default() }
}

fn regex(text: &str) -> Grammar {
    Grammar::Regex(text.into())
}

fn schema(schema: &Value) -> Grammar {
    Grammar::JsonSchema(schema.to_string().into())
}

fn ask(llm: &mut Llm, params: SamplingParams) -> Answer {
    let answer = llm.chat(&[message("user", "What is 12 plus 7?")], params).unwrap().into_answer().unwrap();
    assert_eq!(llm.engine().open_grammars(), 0, "an answer that has ended is forgotten");
    answer
}

#[test]
fn an_answer_is_what_the_grammar_says_and_ends_there() {
    let mut llm = load(EngineConfig::default());
    for (grammar, wanted) in [
        (regex("[a-f]{3}-[0-9]{4}"), None),
        (Grammar::choice(["yes (of course)", "no."]), None),
        (Grammar::Lark("start: \"x\" INT \"!\"\nINT: /[0-9]{2}/\n".into()), None),
        (regex("Jena|Gera"), Some(["Jena", "Gera"])),
    ] {
        let answer = ask(&mut llm, with(grammar.clone()));
        assert_eq!(answer.finish_reason, FinishReason::Stop, "{answer:?}");
        match &grammar {
            Grammar::Regex(text) if &**text == "[a-f]{3}-[0-9]{4}" => {
                let (left, right) = answer.text.split_once('-').unwrap();
                assert!(left.len() == 3 && left.bytes().all(|b| (b'a'..=b'f').contains(&b)), "{}", answer.text);
                assert!(right.len() == 4 && right.bytes().all(|b| b.is_ascii_digit()), "{}", answer.text);
            }
            Grammar::Lark(_) => {
                let digits = answer.text.strip_prefix('x').unwrap().strip_suffix('!').unwrap();
                assert!(digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()), "{}", answer.text);
            }
            _ => {
                let wanted = wanted.unwrap_or(["yes (of course)", "no."]);
                assert!(wanted.contains(&&*answer.text), "{}", answer.text);
            }
        }
    }
    // What the model says anyway, it says with a grammar that allows it.
    let free = ask(&mut llm, SamplingParams::default());
    assert_eq!(ask(&mut llm, with(regex("[0-9]+"))).text, free.text);
}

#[test]
fn stop_strings_lengths_and_cancelling_end_an_answer_as_ever() {
    let mut llm = load(EngineConfig::default());
    let stopped = ask(&mut llm, SamplingParams { stop: vec!["-".into()], ..with(regex("[a-f]{3}-[0-9]{4}")) });
    assert_eq!((stopped.text.len(), stopped.finish_reason), (3, FinishReason::Stop));
    let short = ask(&mut llm, SamplingParams { max_tokens: Some(3), ..with(regex("[a-z]{300}")) });
    assert_eq!(short.finish_reason, FinishReason::Length);
    let endless = SamplingParams { ignore_eos: true, max_tokens: Some(40), ..with(regex("[a-z ]*")) };
    let answer = ask(&mut llm, endless.clone());
    assert_eq!((answer.tokens.len(), answer.finish_reason), (40, FinishReason::Length));
    let prompt = llm.text_prompt("Hello").unwrap();
    let all = llm.stream(&[prompt], &endless, None, |_, _| std::ops::ControlFlow::Break(())).unwrap();
    assert_eq!(all[0].answers[0].finish_reason, FinishReason::Abort);
    while llm.engine().has_work() {
        llm.engine_mut().step().unwrap();
    }
    assert_eq!(llm.engine().open_grammars(), 0);
}

#[test]
fn what_cannot_be_followed_is_one_line() {
    let mut llm = load(EngineConfig::default());
    for (grammar, part) in [
        (regex("(a"), "regular expression"),
        (Grammar::JsonSchema("{".into()), "not JSON"),
        (Grammar::JsonSchema("[]".into()), "neither an object nor a boolean"),
        (schema(&json!({"type": "strange"})), "strange"),
        (Grammar::Lark("start: missing".into()), "missing"),
        (Grammar::Regex("a".repeat(2 << 20).into()), "bytes"),
    ] {
        let error = llm.generate("a", with(grammar)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Request { .. }) && text.contains(part) && !text.contains('\n'), "{text}");
        assert!(text.len() < 500, "{text}");
    }
    assert!(!llm.engine().has_work());
}

/// Greedy answers with different grammars to different prompts, one of them without.
fn batch(llm: &mut Llm, speculation: Speculation, alone: bool) -> Vec<Vec<u32>> {
    let person = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3}}, "required": ["name", "age", "tags"],
        "additionalProperties": false});
    let grammars =
        [Some(schema(&person)), None, Some(regex("(ab|cd){4,20}!")), Some(regex("[a-c ]{20}")), Some(schema(&person))];
    let questions = ["Who are you?", "What is 6 times 7?", "Spell the word garden", "Hello!", "What is 12 plus 7?"];
    let asked = grammars.into_iter().zip(questions).map(|(grammar, question)| {
        let prompt = llm.chat_prompt(&[message("user", question)]).unwrap();
        let params = SamplingParams { grammar, speculation, max_tokens: Some(60), ..SamplingParams::default() };
        llm.text_model().request(prompt, &params).unwrap()
    });
    let asked: Vec<_> = asked.collect();
    let engine = llm.engine_mut();
    let mut answers = vec![Vec::new(); asked.len()];
    let mut ids = Vec::new();
    for (at, request) in asked.into_iter().enumerate() {
        ids.push((engine.add(request).unwrap(), at));
        while alone && engine.has_work() {
            run(engine, &ids, &mut answers);
        }
    }
    while engine.has_work() {
        run(engine, &ids, &mut answers);
    }
    assert_eq!(engine.open_grammars(), 0);
    answers
}

fn run(engine: &mut crate::engine::Engine, ids: &[(crate::scheduler::RequestId, usize)], answers: &mut [Vec<u32>]) {
    for progress in engine.step().unwrap() {
        let at = ids.iter().find(|(id, _)| *id == progress.id).unwrap().1;
        answers[at].extend(progress.token);
    }
}

#[test]
fn answers_do_not_depend_on_batch_overlap_speculation_or_preemption() {
    let exact = EngineConfig { batch_invariant: true, ..EngineConfig::default() };
    let wanted = batch(&mut load(exact.clone()), Speculation::Off, true);
    assert!(wanted.iter().all(|tokens| !tokens.is_empty()));
    let ngram = Speculation::Ngram { drafts: 4, max_n: 3, min_n: 1 };
    let tight =
        EngineConfig { kv_cache_tokens: Some(320), policy: crate::scheduler::Policy::MaxUtilization, ..exact.clone() };
    for (name, config, speculation, alone) in [
        ("batch", exact.clone(), Speculation::Off, false),
        ("overlap", EngineConfig { overlap: Some(true), ..exact.clone() }, Speculation::Off, false),
        ("n-grams", EngineConfig { max_drafts: 4, ..exact.clone() }, ngram, false),
        ("n-grams, overlap", EngineConfig { max_drafts: 4, overlap: Some(true), ..exact }, ngram, true),
        ("few pages", EngineConfig { overlap: Some(true), ..tight }, Speculation::Off, false),
    ] {
        assert_eq!(batch(&mut load(config), speculation, alone), wanted, "{name}");
    }
}

#[test]
fn each_of_n_answers_has_a_matcher_of_its_own() {
    for overlap in [false, true] {
        let mut llm = load(EngineConfig { overlap: Some(overlap), ..EngineConfig::default() });
        let params = SamplingParams { n: 4, temperature: 1.5, seed: 3, ..with(regex("[a-z]{2,30}[0-9]{2}")) };
        let completion = llm.chat(&[message("user", "Hello!")], params).unwrap().remove_answers();
        for text in &completion {
            let (word, digits) = text.split_at(text.len() - 2);
            assert!(
                word.bytes().all(|b| b.is_ascii_lowercase()) && digits.bytes().all(|b| b.is_ascii_digit()),
                "{text}"
            );
        }
        assert!(completion.iter().any(|text| *text != completion[0]));
        assert_eq!(llm.engine().open_grammars(), 0);
    }
}

trait Texts {
    fn remove_answers(self) -> Vec<String>;
}

impl Texts for crate::Completion {
    fn remove_answers(self) -> Vec<String> {
        self.answers.into_iter().map(|answer| answer.text).collect()
    }
}

/// Schemas whose values are short, since a model without sense fills what it may.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (1usize..8).prop_map(|most| json!({"type": "string", "maxLength": most})),
        (0i64..50).prop_map(|least| json!({"type": "integer", "minimum": least, "maximum": least + 50})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        Just(json!({"enum": ["a", 1, null]})),
        Just(json!({"type": "string", "pattern": "^[a-f]{2,4}$"})),
    ];
    leaf.prop_recursive(3, 10, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0usize..3).prop_map(|(items, least)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": least + 1})
            }),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|values| {
                let names: Vec<String> = (0..values.len()).map(|i| format!("p{i}")).collect();
                let properties: serde_json::Map<_, _> = names.iter().cloned().zip(values).collect();
                json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
            }),
            (inner.clone(), inner).prop_map(|(a, b)| json!({"anyOf": [a, b]})),
        ]
    })
}

/// Whether a value is what a schema of [`schemas`] describes.
fn fits(value: &Value, schema: &Value) -> bool {
    if let Some(any) = schema.get("anyOf") {
        return any.as_array().unwrap().iter().any(|schema| fits(value, schema));
    }
    if let Some(choices) = schema.get("enum") {
        return choices.as_array().unwrap().contains(value);
    }
    match schema["type"].as_str().unwrap() {
        "string" => value.as_str().is_some_and(|text| match schema.get("pattern") {
            Some(_) => (2..=4).contains(&text.len()) && text.bytes().all(|b| (b'a'..=b'f').contains(&b)),
            None => text.chars().count() <= schema["maxLength"].as_u64().unwrap() as usize,
        }),
        "integer" => value.as_i64().is_some_and(|number| {
            (schema["minimum"].as_i64().unwrap()..=schema["maximum"].as_i64().unwrap()).contains(&number)
        }),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.as_array().is_some_and(|items| {
            let bounds = schema["minItems"].as_u64().unwrap()..=schema["maxItems"].as_u64().unwrap();
            bounds.contains(&(items.len() as u64)) && items.iter().all(|item| fits(item, &schema["items"]))
        }),
        _ => value.as_object().is_some_and(|fields| {
            let properties = schema["properties"].as_object().unwrap();
            fields.len() == properties.len()
                && properties.iter().all(|(name, schema)| fields.get(name).is_some_and(|value| fits(value, schema)))
        }),
    }
}

static LLM: Mutex<Option<Llm>> = Mutex::new(None);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn json_always_parses_and_fits_its_schema(wanted in schemas(), seed in 0u64..1000, hot in any::<bool>()) {
        let mut llm = LLM.lock().unwrap_or_else(|e| e.into_inner());
        let llm = llm.get_or_insert_with(|| load(EngineConfig { max_drafts: 3, overlap: Some(true), ..EngineConfig::default() }));
        let params = SamplingParams {
            temperature: if hot { 1.0 } else { 0.0 },
            seed,
            max_tokens: Some(600),
            speculation: if hot { Speculation::Off } else { Speculation::Ngram { drafts: 3, max_n: 3, min_n: 1 } },
            ..with(schema(&wanted))
        };
        let answer = ask(llm, params);
        prop_assert_eq!(answer.finish_reason, FinishReason::Stop, "{}", answer.text);
        let value: Value = serde_json::from_str(&answer.text).map_err(|e| TestCaseError::fail(format!("{e}: {}", answer.text)))?;
        prop_assert!(fits(&value, &wanted), "{} for {wanted}", answer.text);
    }
}

#[test]
fn forced_tool_calls_are_calls_of_these_tools() {
    use crate::chat_output::{ChatFormat, ChatMessage, ToolChoice, ToolFormat, force_tools};
    let mut llm = load(EngineConfig::default());
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties":
            {"city": {"$ref": "#/$defs/city"}}, "required": ["city"], "additionalProperties": false,
            "$defs": {"city": {"enum": ["Jena", "Gera"]}}}}})
    };
    let tools = [tool("weather"), tool("time")];
    for format in [None, Some(ToolFormat::Hermes), Some(ToolFormat::Llama3Json), Some(ToolFormat::Mistral)] {
        for choice in [ToolChoice::Required, ToolChoice::Named("time")] {
            for parallel in [false, true] {
                let (grammar, tools) = force_tools(&tools, choice, format, parallel).unwrap();
                // Any number of calls may follow the first; the model has no reason to stop.
                let answer = ask(&mut llm, with(grammar));
                let message =
                    ChatMessage::parse(ChatFormat { tools: Some(tools), ..ChatFormat::default() }, &answer.text);
                let first = &message.tool_calls.first().unwrap_or_else(|| panic!("{format:?}: {}", answer.text));
                let names: &[&str] = if choice == ToolChoice::Required { &["weather", "time"] } else { &["time"] };
                assert!(names.contains(&&*first.name) && message.content.is_empty(), "{}", answer.text);
                let arguments: Value = serde_json::from_str(&first.arguments).unwrap();
                assert!(["Jena", "Gera"].contains(&arguments["city"].as_str().unwrap()));
                assert!(parallel || (message.tool_calls.len() == 1 && answer.finish_reason == FinishReason::Stop));
            }
        }
    }
    assert!(force_tools(&tools, ToolChoice::Named("none"), None, false).is_err());
    assert!(force_tools(&[], ToolChoice::Required, None, false).is_err());
}

#[test]
fn the_benchmarks_grammar_never_ends() {
    let grammar = synthetic_json(32_000).unwrap();
    let mut matcher = grammar.matcher();
    let mut next = 12345u64;
    for _ in 0..2000 {
        let mask = matcher.compute_mask().unwrap();
        let allowed: Vec<u32> = mask.iter().filter(|token| !grammar.eos().contains(token)).collect();
        next = next.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let token = allowed[(next >> 33) as usize % allowed.len()];
        matcher.consume_token(token).unwrap();
    }
    assert!(!matcher.is_stopped());
    assert!(synthetic_json(256).is_err());
}

#[test]
fn a_grammar_may_begin_after_reasoning() {
    let llm = load(EngineConfig::default());
    let text = llm.text_model();
    let object = schema(
        &json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}),
    );
    for (format, open, answer, good) in [
        (ReasoningFormat::Think, true, "1 < 2 {\n</think>\n\n{\"a\": 1}", true),
        (ReasoningFormat::Think, true, "</think>{\"a\": 1}", true),
        (ReasoningFormat::Think, true, "</think>none", false),
        (ReasoningFormat::Think, false, "<think>so</think>{\"a\": 1}", true),
        (ReasoningFormat::Think, false, "{\"a\": 1}", true),
        (ReasoningFormat::Think, false, "so", false),
        (ReasoningFormat::Mistral, false, "[THINK]so[/THINK]{\"a\": 1}", true),
    ] {
        let grammar = text.grammars.compile(&object.clone().after_reasoning(format, open)).unwrap();
        let tokens = text.tokenizer().encode(answer, false).unwrap();
        let mut matcher = grammar.matcher();
        let taken = matcher.validate_tokens(&tokens).unwrap();
        assert_eq!(taken == tokens.len(), good, "{answer}: {taken} of {}", tokens.len());
        if good {
            matcher.consume_tokens(&tokens).unwrap();
            assert!(matcher.is_stopped() || matcher.is_accepting().unwrap(), "{answer}");
        }
    }
}

#[test]
fn an_answer_that_cannot_go_on_is_aborted_and_no_other() {
    for overlap in [false, true] {
        let mut llm = load(EngineConfig { overlap: Some(overlap), ..EngineConfig::default() });
        // The grammar wants digits, the biases ban them.
        let text = llm.text_model().clone();
        let vocab = text.tokenizer().vocab_size() as u32;
        let digits = (0..vocab).filter(|id| text.tokenizer().decode(&[*id], true).bytes().any(|b| b.is_ascii_digit()));
        let stuck = SamplingParams {
            logit_bias: digits.map(|id| (id, f32::NEG_INFINITY)).collect(),
            ..with(regex("ab[0-9]{3}"))
        };
        let prompt = text.text_prompt("Hello").unwrap();
        let fine = with(regex("ab[0-9]{3}"));
        let requests = [stuck, fine].map(|params| text.request(prompt.clone(), &params).unwrap());
        let engine = llm.engine_mut();
        let ids = requests.map(|request| engine.add(request).unwrap());
        let mut ends = Vec::new();
        while engine.has_work() {
            let ended = engine.step().unwrap().into_iter().filter(|progress| progress.finished.is_some());
            ends.extend(ended.map(|progress| (progress.id, progress.finished.unwrap())));
        }
        ends.sort_unstable_by_key(|(id, _)| *id);
        assert_eq!(ends, [(ids[0], FinishReason::Abort), (ids[1], FinishReason::Stop)]);
        assert_eq!(engine.open_grammars(), 0);
    }
}
