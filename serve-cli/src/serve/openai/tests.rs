//! The endpoints against tiny-chat on the CPU.
use super::{chat, completions, models, responses, tokenize};
use crate::serve::limits::Limits;
use crate::serve::registry::Slot;
use crate::serve::state::{AppState, Served};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock, OnceLock};
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// One for all tests: its engine has a thread of its own.
fn state() -> AppState {
    static STATE: OnceLock<AppState> = OnceLock::new();
    let load = || {
        let state = AppState::new(Limits::default());
        let slot = Slot { name: "tiny-chat".into(), version: None };
        let llm = engine::Llm::builder("tiny-chat").device(&engine::Device::cpu()).load().unwrap();
        let llm = engine::AsyncLlm::new(llm).unwrap();
        state.registry().reserve(&slot, &[], 1).unwrap();
        state.registry().ready(&slot, Arc::new(Served { id: slot.name.clone(), llm, created: 1 }));
        state.loaded();
        state
    };
    STATE.get_or_init(load).clone()
}

fn app() -> Router {
    let routes = chat::routes().merge(completions::routes()).merge(responses::routes());
    routes.merge(models::routes()).merge(tokenize::routes()).with_state(state())
}

/// Sends a request: the status and the body.
fn send(request: Request<Body>) -> (u16, String) {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> =
        LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
    RUNTIME.block_on(async {
        let response = app().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    })
}

fn post(path: &str, body: &Value) -> (u16, String) {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    send(request.body(Body::from(body.to_string())).unwrap())
}

fn ask(path: &str, body: &Value) -> Value {
    let (status, text) = post(path, body);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The field that a 400 names.
#[track_caller]
fn refused(path: &str, body: &Value) -> Option<String> {
    let (status, text) = post(path, body);
    assert_eq!(status, 400, "{body}: {text}");
    let error: Value = serde_json::from_str(&text).unwrap();
    assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
    error["error"]["param"].as_str().map(str::to_owned)
}

/// The chunks of a stream that ends with `[DONE]`.
fn stream(path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let (status, text) = post(path, &body);
    assert_eq!(status, 200, "{text}");
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// The messages that a stream's chunks amount to, as clients put them together.
fn messages(chunks: &[Value]) -> Vec<Value> {
    let mut messages: Vec<Value> = Vec::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let at = choice["index"].as_u64().unwrap() as usize;
        if messages.len() <= at {
            messages
                .resize(at + 1, json!({ "content": "", "reasoning_content": "", "tool_calls": [], "logprobs": [] }));
        }
        let (message, delta) = (&mut messages[at], &choice["delta"]);
        for field in ["content", "reasoning_content"] {
            let text = format!("{}{}", message[field].as_str().unwrap(), delta[field].as_str().unwrap_or_default());
            message[field] = text.into();
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().unwrap();
            if call["index"] == calls.len() {
                assert!(call["id"].as_str().unwrap().starts_with("call_"));
                calls.push(json!({ "name": call["function"]["name"], "arguments": "" }));
            }
            let call_at = call["index"].as_u64().unwrap() as usize;
            let arguments = calls[call_at]["arguments"].as_str().unwrap();
            calls[call_at]["arguments"] =
                format!("{arguments}{}", call["function"]["arguments"].as_str().unwrap()).into();
        }
        let logprobs = choice["logprobs"]["content"].as_array().into_iter().flatten().cloned();
        message["logprobs"].as_array_mut().unwrap().extend(logprobs);
        if !choice["finish_reason"].is_null() {
            assert!(message["finish_reason"].is_null(), "an answer ends once");
            message["finish_reason"] = choice["finish_reason"].clone();
        }
    }
    messages
}

/// The same from a whole answer.
fn whole(answer: &Value) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |choice: &Value| {
        let message = &choice["message"];
        let calls: Vec<Value> =
            message["tool_calls"].as_array().into_iter().flatten().map(|call| call["function"].clone()).collect();
        json!({
            "content": text(&message["content"]), "reasoning_content": text(&message["reasoning_content"]),
            "tool_calls": calls,
            "logprobs": choice["logprobs"]["content"].as_array().cloned().unwrap_or_default(),
            "finish_reason": choice["finish_reason"],
        })
    };
    answer["choices"].as_array().unwrap().iter().map(one).collect()
}

fn user(text: &str) -> Value {
    json!({ "model": "tiny-chat", "temperature": 0, "seed": 1, "messages": [{ "role": "user", "content": text }] })
}

fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn weather() -> Value {
    let city = json!({ "type": "object", "properties": { "city": { "enum": ["Jena", "Ulm"] } }, "required": ["city"],
        "additionalProperties": false });
    json!([{ "type": "function", "function": { "name": "weather", "parameters": city } }])
}

#[test]
fn a_chat() {
    let answer = ask(CHAT, &user("What is 845 minus 367?"));
    assert_eq!(answer["object"], "chat.completion");
    let message = json!({ "role": "assistant", "content": "478", "refusal": null });
    assert_eq!(answer["choices"][0]["message"], message);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let usage = &answer["usage"];
    let tokens = |name: &str| usage[name].as_u64().unwrap();
    assert!(tokens("completion_tokens") > 0);
    assert_eq!(tokens("prompt_tokens") + tokens("completion_tokens"), tokens("total_tokens"));
    let parts = json!([{ "role": "user", "content": [{ "type": "text", "text": "What is 845 minus 367?" }] }]);
    let parts = ask(CHAT, &with(user(""), json!({ "messages": parts, "unknown": { "field": 1 }, "stop": null })));
    assert_eq!(parts["choices"][0]["message"], message);
}

#[test]
fn streams_amount_to_whole_answers() {
    let tools = json!({ "tools": weather(), "tool_choice": "required", "max_tokens": 60 });
    for more in [
        json!({}),
        json!({ "n": 3, "temperature": 1.0, "max_tokens": 20 }),
        json!({ "logprobs": true, "top_logprobs": 3, "stop": ["7"] }),
        json!({ "response_format": { "type": "json_object" }, "max_tokens": 30 }),
        json!({ "guided_regex": "(yes|no)!" }),
        tools.clone(),
        with(tools, json!({ "tool_choice": { "type": "function", "function": { "name": "weather" } } })),
    ] {
        let body = with(user("What is 845 minus 367?"), more);
        let whole = whole(&ask(CHAT, &body));
        let chunks = stream(CHAT, &body);
        assert_eq!(messages(&chunks), whole, "{body}");
        let ids: std::collections::HashSet<_> = chunks.iter().map(|chunk| chunk["id"].to_string()).collect();
        assert_eq!(ids.len(), 1);
        assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk.get("usage").is_none()));
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    }
}

#[test]
fn a_stream_tells_the_usage() {
    let body = user("What is 845 minus 367?");
    let usage = ask(CHAT, &body)["usage"].clone();
    let chunks = stream(CHAT, &with(body.clone(), json!({ "stream_options": { "include_usage": true } })));
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&usage, &json!([])));
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    let each = json!({ "stream_options": { "include_usage": true, "continuous_usage_stats": true } });
    let chunks = stream(CHAT, &with(body, each));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_object()));
    assert_eq!(chunks.last().unwrap()["usage"], usage);
}

/// In no time, whatever the text's length.
#[test]
fn texts_that_cannot_fit_are_not_tokenised() {
    let (status, text) = post(CHAT, &user(&"The quick brown fox. ".repeat(50_000)));
    assert!(status == 400 && text.contains("context_length_exceeded") && text.contains("or more"), "{text}");
    for (path, field) in [(COMPLETIONS, "prompt"), ("/v1/responses", "input")] {
        let (status, text) = post(path, &json!({ field: "a".repeat(1 << 20) }));
        assert!(status == 400 && text.contains("or more"), "{path}: {text}");
    }
}

#[test]
fn an_answer_without_tokens_has_empty_logprobs() {
    let body =
        json!({ "prompt": "Once", "max_tokens": 1, "logprobs": 1, "stop_token_ids": [0], "logit_bias": { "0": 100 } });
    let answer = ask(COMPLETIONS, &body);
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!([]), "{answer}");
}

/// Two prompts that begin with the same page: the second finds it, and says so once however many answers it has.
#[test]
fn cached_tokens_are_told() {
    let long = |last: &str| format!("{} {last}", "What is 12 plus 7?".repeat(30));
    for (path, field, details) in [
        (CHAT, "messages", "/prompt_tokens_details/cached_tokens"),
        (COMPLETIONS, "prompt", "/prompt_tokens_details/cached_tokens"),
        ("/v1/responses", "input", "/input_tokens_details/cached_tokens"),
    ] {
        let body = |last: &str| {
            let text = format!("{path}: {}", long(last));
            let prompt = if path == CHAT { user(&text)["messages"].clone() } else { text.into() };
            json!({ "model": "tiny-chat", "max_tokens": 2, "max_output_tokens": 16, field: prompt })
        };
        let cached = |usage: &Value| usage.pointer(details).and_then(Value::as_u64);
        assert_eq!(cached(&ask(path, &body("Why?"))["usage"]), Some(0), "{path}");
        let found = cached(&ask(path, &body("How?"))["usage"]).unwrap();
        assert!(found >= 64 && found % 64 == 0, "{path}: {found}");
        if path != "/v1/responses" {
            let more = json!({ "n": 2, "temperature": 1, "stream_options": { "include_usage": true } });
            let chunks = stream(path, &with(body("Where?"), more));
            assert_eq!(cached(&chunks.last().unwrap()["usage"]), Some(found), "{path}");
        }
    }
}

#[test]
fn answers_follow_schemas_and_tools() {
    let schema = json!({ "type": "object", "properties": { "sum": { "type": "integer", "maximum": 99 } },
        "required": ["sum"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "sum", "strict": true, "schema": schema } });
    let answer = ask(CHAT, &with(user("What is 12 plus 7?"), json!({ "response_format": format })));
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let object: Value = serde_json::from_str(content).unwrap();
    assert!(object["sum"].is_i64(), "{content}");

    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for choice in [named, json!("required")] {
        let more = json!({ "tools": weather(), "tool_choice": choice, "parallel_tool_calls": false });
        let answer = ask(CHAT, &with(user("What is the weather?"), more));
        let choice = &answer["choices"][0];
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &choice["finish_reason"]), (1, &json!("tool_calls")), "{choice}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(["Jena", "Ulm"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    }
    let none = json!({ "tools": weather(), "tool_choice": "none" });
    let answer = ask(CHAT, &with(user("What is 12 plus 7?"), none));
    assert_eq!(answer["choices"][0]["message"]["content"], "19");
    let text = json!({ "prompt": "It is", "structured_outputs": { "choice": ["blue", "green"] }, "temperature": 0 });
    let text = ask(COMPLETIONS, &text)["choices"][0]["text"].clone();
    assert!(text == "blue" || text == "green", "{text}");
}

#[test]
fn completions_of_all_kinds_of_prompts() {
    let tokens = ask("/tokenize", &json!({ "prompt": "Wootz is" }));
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let back = ask("/detokenize", &json!({ "tokens": tokens["tokens"] }));
    assert!(back["prompt"].as_str().unwrap().ends_with("Wootz is"), "{back}");
    let more = json!({ "temperature": 0, "max_tokens": 8 });
    let text = |prompt: Value| -> Vec<Value> {
        let answer = ask(COMPLETIONS, &with(more.clone(), json!({ "prompt": prompt })));
        assert_eq!(answer["object"], "text_completion");
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect()
    };
    let one = text(json!("Wootz is"));
    assert_eq!(text(tokens["tokens"].clone()), one);
    assert_eq!(text(json!([tokens["tokens"]])), one);
    let two = text(json!(["Wootz is", "Spell the word garden"]));
    assert_eq!((two.len(), &two[0]), (2, &one[0]));
    let echo = with(more.clone(), json!({ "prompt": "Wootz is", "echo": true }));
    let echoed = format!("Wootz is{}", one[0].as_str().unwrap());
    assert_eq!(ask(COMPLETIONS, &echo)["choices"][0]["text"], echoed);
    let streamed: String = stream(COMPLETIONS, &echo)
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(streamed, echoed);
    let prompt = ask(COMPLETIONS, &json!({ "prompt": "Wootz is", "echo": true, "max_tokens": 0 }));
    assert_eq!(prompt["choices"][0]["text"], "Wootz is");
    assert_eq!(prompt["usage"]["completion_tokens"], 0);
}

#[test]
fn logprobs_of_completions() {
    let body =
        json!({ "prompt": "Wootz is", "temperature": 0, "max_tokens": 6, "logprobs": 2, "return_token_ids": true });
    let answer = ask(COMPLETIONS, &body);
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"];
    let count = answer["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    for field in ["text_offset", "token_logprobs", "tokens", "top_logprobs"] {
        assert_eq!(logprobs[field].as_array().unwrap().len(), count, "{field}");
    }
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), count);
    let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens, choice["text"].as_str().unwrap());
    for (chosen, top) in
        logprobs["token_logprobs"].as_array().unwrap().iter().zip(logprobs["top_logprobs"].as_array().unwrap())
    {
        let best = top.as_object().unwrap().values().map(|value| value.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(chosen.as_f64(), Some(best), "greedy takes the likeliest");
    }
}

#[test]
fn the_best_of_many() {
    let body = json!({ "prompt": "Wootz is", "max_tokens": 8, "seed": 3, "logprobs": 0 });
    let mean = |choice: &Value| {
        let all: Vec<f64> =
            choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let all = ask(COMPLETIONS, &with(body.clone(), json!({ "n": 5 })));
    let best = all["choices"].as_array().unwrap().iter().map(mean).fold(f64::MIN, f64::max);
    let one = ask(COMPLETIONS, &with(body, json!({ "best_of": 5 })));
    assert_eq!(one["choices"].as_array().unwrap().len(), 1);
    assert!((mean(&one["choices"][0]) - best).abs() < 1e-3);
    assert_eq!(one["usage"]["completion_tokens"], all["usage"]["completion_tokens"]);
    let beams = ask(COMPLETIONS, &json!({ "prompt": "Wootz is", "use_beam_search": true, "n": 2, "max_tokens": 6 }));
    assert_eq!(beams["choices"].as_array().unwrap().len(), 2);
}

#[test]
fn seeds_stops_and_biases() {
    let body = with(user("Tell me something."), json!({ "temperature": 1.0, "max_tokens": 16 }));
    let said = |more: Value| ask(CHAT, &with(body.clone(), more))["choices"][0]["message"]["content"].clone();
    assert_eq!(said(json!({ "seed": 5 })), said(json!({ "seed": 5 })));
    let cut = ask(CHAT, &with(user("What is 845 minus 367?"), json!({ "stop": "7" })));
    assert_eq!(cut["choices"][0]["message"]["content"], "4");
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    let short = ask(CHAT, &with(user("What is 845 minus 367?"), json!({ "max_completion_tokens": 1 })));
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    let first = ask("/tokenize", &json!({ "prompt": "478", "add_special_tokens": false }))["tokens"][0].to_string();
    let other = ask(CHAT, &with(user("What is 845 minus 367?"), json!({ "logit_bias": { first: -100 } })));
    assert_ne!(other["choices"][0]["message"]["content"], "478");
}

#[test]
fn errors_name_the_field() {
    for (more, param) in [
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0].content"),
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "top_p": 0 }), "top_p"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 1_000_000 }), "n"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "stop": 5 }), "stop"),
        (json!({ "stop": ["1", "2", "3", "4", "5"] }), "stop"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "1": 1000 } }), "logit_bias"),
        (json!({ "top_logprobs": 3 }), "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 99 }), "top_logprobs"),
        (json!({ "stream_options": { "include_usage": 1 } }), "stream_options.include_usage"),
        (json!({ "response_format": { "type": "xml" } }), "response_format.type"),
        (json!({ "tools": [{}] }), "tools[0].type"),
        (json!({ "tools": weather(), "tool_choice": "always" }), "tool_choice"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "tools": weather(), "tool_choice": { "function": { "name": "x" } } }), "tool_choice"),
        (json!({ "guided_regex": "(" }), "guided_regex"),
        (json!({ "structured_outputs": { "regx": "a" } }), "structured_outputs"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x" } } }),
            "response_format.json_schema.schema",
        ),
        (json!({ "bad_words": ["a"] }), "bad_words"),
        (json!({ "structured_outputs": { "grammar": "start" } }), "structured_outputs"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (json!({ "min_tokens": 3, "max_tokens": 2 }), "min_tokens"),
    ] {
        assert_eq!(refused(CHAT, &with(user("hi"), more.clone())).as_deref(), Some(param), "{more}");
    }
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({ "prompt": {} }), "prompt"),
        (json!({ "prompt": "a", "suffix": "b" }), "suffix"),
        (json!({ "prompt": "a", "best_of": 1, "n": 2 }), "best_of"),
        (json!({ "prompt": "a", "best_of": 2, "stream": true }), "best_of"),
        (json!({ "prompt": "a", "echo": true, "logprobs": 1 }), "logprobs"),
    ] {
        assert_eq!(refused(COMPLETIONS, &body).as_deref(), Some(param), "{body}");
    }
    refused(COMPLETIONS, &json!({ "prompt": [4_000_000_000u32] }));
    refused(COMPLETIONS, &json!({ "prompt": "a ".repeat(100_000) }));
    refused("/detokenize", &json!({ "tokens": [4_000_000_000u32] }));
    refused("/tokenize", &json!({}));
    let not_json = Request::post(CHAT).header(header::CONTENT_TYPE, "application/json").body(Body::from("{"));
    assert_eq!(send(not_json.unwrap()).0, 400);
    refused(CHAT, &json!([1]));
}

#[test]
fn models_are_listed() {
    let (status, text) = send(Request::get("/v1/models").body(Body::empty()).unwrap());
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &list["data"][0]["id"], &list["data"][0]["object"]),
        (200, &json!("tiny-chat"), &json!("model"))
    );
    let (status, text) = send(Request::get("/v1/models/tiny-chat").body(Body::empty()).unwrap());
    assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()["id"].as_str()), (200, Some("tiny-chat")));
}
