//! `/v1/embeddings` and `/v1/responses`.
use super::client::{Connection, Events, Server};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";
const RESPONSES: &str = "/v1/responses";

fn vectors(answer: &Value) -> Result<Vec<Vec<f64>>> {
    let data = answer["data"].as_array().context("data")?;
    let one = |(i, one): (usize, &Value)| {
        ensure!(one["object"] == "embedding" && one["index"] == i, "{one}");
        let numbers = one["embedding"].as_array().context("numbers")?;
        numbers.iter().map(|number| number.as_f64().context("a number")).collect()
    };
    data.iter().enumerate().map(one).collect()
}

/// All forms of input, both formats, both poolings; what is wrong is named.
pub fn embeddings() -> Result<()> {
    let server = Server::start(&[])?;
    let ask = |input: Value, more: Value| {
        let mut body = json!({ "model": "tiny-chat", "input": input });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        server.post(EMBEDDINGS, &body)
    };
    let embed = |input: Value, more: Value| {
        let answer = ask(input, more)?;
        ensure!(answer.status == 200, "{answer:?}");
        answer.json()
    };
    let texts = json!(["Wootz is a steel", "What is 12 plus 7?", "steel"]);
    let all = embed(texts.clone(), json!({}))?;
    ensure!(all["object"] == "list" && all["model"] == "tiny-chat", "{all}");
    ensure!(all["usage"]["prompt_tokens"].as_u64() > Some(2), "{}", all["usage"]);
    let found = vectors(&all)?;
    for vector in &found {
        let length: f64 = vector.iter().map(|x| x * x).sum();
        ensure!(vector.len() == 256 && (length - 1.0).abs() < 1e-5, "{} numbers, {length}", vector.len());
    }
    let cosine = |a: &[f64], b: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for (text, vector) in texts.as_array().context("texts")?.iter().zip(&found) {
        let alone = vectors(&embed(text.clone(), json!({}))?)?.remove(0);
        // Steps of other shapes may round a state differently.
        ensure!(cosine(&alone, vector) > 0.9999, "{text} alone is another vector");
    }
    ensure!(cosine(&found[0], &found[1]) < 0.99, "different texts, one vector");
    let last = vectors(&embed(texts.clone(), json!({ "pooling": "last" }))?)?;
    ensure!(last[0] != found[0], "last is mean");
    let raw = vectors(&embed(texts.clone(), json!({ "normalize": false }))?)?;
    ensure!((cosine(&raw[0], &found[0]) - 1.0).abs() < 1e-5, "another direction");
    let tokens = embed(json!([[5, 6, 7], [8]]), json!({}))?;
    ensure!(tokens["usage"] == json!({ "prompt_tokens": 4, "total_tokens": 4 }), "{}", tokens["usage"]);
    let alone = vectors(&embed(json!([5, 6, 7]), json!({}))?)?;
    ensure!(cosine(&vectors(&tokens)?[0], &alone[0]) > 0.9999, "tokens alone");
    let packed = embed(texts.clone(), json!({ "encoding_format": "base64" }))?;
    let text = packed["data"][0]["embedding"].as_str().context("base64")?;
    ensure!(text.len() == (256usize * 4).div_ceil(3) * 4, "{} characters", text.len());
    ask(texts.clone(), json!({ "dimensions": 256 }))?.json()?;
    for (input, more, part) in [
        (json!("a"), json!({ "dimensions": 100 }), "256"),
        (json!([]), json!({}), "empty"),
        (json!(""), json!({}), "empty"),
        (json!(["a", 3]), json!({}), "input[1]"),
        (json!([1_000_000]), json!({}), "vocabulary"),
        (json!(["a", "steel ".repeat(10_000)]), json!({}), "input[1]: the prompt has"),
    ] {
        let message = ask(input.clone(), more)?.refused(400)?;
        ensure!(message.contains(part), "{message:?} does not say {part:?}");
    }
    // Many at once, and some that nobody waits for.
    let many: Vec<String> = (0..300).map(|i| format!("the number {i}")).collect();
    for _ in 0..4 {
        let body = json!({ "model": "tiny-chat", "input": many });
        Connection::open(server.address())?.request("POST", EMBEDDINGS, body.to_string().as_bytes())?;
    }
    ensure!(vectors(&embed(json!(many), json!({}))?)?.len() == 300, "300");
    server.at_rest()
}

/// Streamed or not, the response is the same, and ends as it should.
pub fn responses() -> Result<()> {
    let server = Server::start(&[])?;
    let body = |stream: bool| {
        let input = json!([{ "role": "user", "content": [{ "type": "input_text", "text": "What is 12 plus 7?" }] }]);
        json!({ "model": "tiny-chat", "input": input, "temperature": 0, "stream": stream, "store": true,
                "metadata": { "a": "b" } })
    };
    let whole = server.post(RESPONSES, &body(false))?;
    ensure!(whole.status == 200, "{whole:?}");
    let whole = whole.json()?;
    ensure!(whole["output"][0]["content"][0]["text"] == "19" && whole["status"] == "completed", "{whole}");
    ensure!(whole["metadata"]["a"] == "b" && whole["store"] == false, "{whole}");
    let mut events = match Events::open(server.address(), RESPONSES, &body(true))? {
        Ok(events) => events,
        Err(answer) => anyhow::bail!("{answer:?}"),
    };
    let (mut text, mut last, mut count) = (String::new(), Value::Null, 0);
    while let Some((name, data)) = events.next()? {
        let event: Value = serde_json::from_str(&data)?;
        ensure!(event["type"] == name.as_str() && event["sequence_number"] == count, "{name}: {event}");
        text.push_str(if name == "response.output_text.delta" {
            event["delta"].as_str().context("delta")?
        } else {
            ""
        });
        (last, count) = (event, count + 1);
    }
    ensure!(last["type"] == "response.completed" && text == "19", "{last}");
    ensure!(last["response"]["usage"] == whole["usage"], "{}", last["response"]["usage"]);
    let cut = json!({ "model": "tiny-chat", "input": "Tell me about Wootz.", "max_output_tokens": 3 });
    let cut = server.post(RESPONSES, &cut)?.json()?;
    ensure!(cut["status"] == "incomplete" && cut["usage"]["output_tokens"] == 3, "{cut}");
    ensure!(cut["incomplete_details"]["reason"] == "max_output_tokens", "{cut}");
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("background", json!(true)),
        ("truncation", json!("auto")),
        ("max_output_tokens", json!(0)),
        ("input", json!([{ "role": "bard", "content": "x" }])),
        ("temperature", json!(-1)),
    ] {
        let mut body = body(false);
        body[field] = value;
        server.post(RESPONSES, &body)?.refused(400).with_context(|| field)?;
    }
    server.at_rest()
}

/// Reads a stream of events to its last, whose response it returns.
fn last_response(server: &Server, body: &Value) -> Result<Value> {
    let mut events = match Events::open(server.address(), RESPONSES, body)? {
        Ok(events) => events,
        Err(answer) => anyhow::bail!("{answer:?}"),
    };
    let mut last = Value::Null;
    while let Some((_, data)) = events.next()? {
        last = serde_json::from_str(&data)?;
    }
    Ok(last["response"].clone())
}

/// Output without ids, which differ from request to request.
fn without_ids(response: &Value) -> Value {
    let mut output = response["output"].clone();
    for item in output.as_array_mut().into_iter().flatten() {
        item["id"].take();
        item["call_id"].take();
    }
    output
}

/// A schema is kept to, functions are called, streamed or not.
pub fn responses_structured() -> Result<()> {
    let server = Server::start(&[])?;
    let schema = json!({ "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": { "name": { "type": "string", "maxLength": 20 }, "age": { "type": "integer", "maximum": 150, "minimum": 0 } } });
    let format = json!({ "format": { "type": "json_schema", "name": "person", "schema": schema, "strict": true } });
    let tool = json!({ "type": "function", "name": "weather", "description": "The weather of a city",
        "parameters": { "type": "object", "required": ["city"], "additionalProperties": false,
            "properties": { "city": { "type": "string", "maxLength": 20 } } } });
    let ask = |more: Value| {
        let mut body = json!({ "model": "tiny-chat", "temperature": 0, "max_output_tokens": 200,
            "input": "Turn this into JSON: Anna is 31 and lives in Oslo." });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let answer = server.post(RESPONSES, &body)?;
        ensure!(answer.status == 200, "{answer:?}");
        let whole = answer.json()?;
        body["stream"] = json!(true);
        let streamed = last_response(&server, &body)?;
        ensure!(without_ids(&whole) == without_ids(&streamed), "{whole} is not {streamed}");
        Ok(whole)
    };
    let person = ask(json!({ "text": format }))?;
    let text = person["output"][0]["content"][0]["text"].as_str().context("a text")?;
    let value: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
    ensure!(value["name"].is_string() && value["age"].is_u64(), "{value}");
    for choice in [json!("required"), json!({ "type": "function", "name": "weather" })] {
        let called = ask(json!({ "tools": [tool], "tool_choice": choice, "parallel_tool_calls": false }))?;
        let call = &called["output"][0];
        ensure!(
            call["type"] == "function_call" && call["name"] == "weather" && call["status"] == "completed",
            "{called}"
        );
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().context("arguments")?)?;
        ensure!(arguments["city"].is_string(), "{arguments}");
    }
    server.at_rest()
}
