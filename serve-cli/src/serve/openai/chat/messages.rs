//! The messages of a conversation, as chat templates want them.
use crate::serve::error::ApiError;
use serde_json::{Map, Value, json};

fn wrong<T>(field: &str, problem: &str) -> Result<T, ApiError> {
    Err(ApiError::invalid(format!("{field} {problem}"), Some(field)))
}

/// Reads OpenAI's messages: texts instead of parts, arguments as objects.
///
/// # Errors
/// There are none, or one is not understood.
pub fn read(messages: &Value) -> Result<Vec<Value>, ApiError> {
    match messages.as_array() {
        Some(messages) if messages.is_empty() => wrong("messages", "is empty: give at least one message"),
        Some(messages) => {
            let one = |(i, message): (usize, &Value)| read_one(message, &format!("messages[{i}]"));
            messages.iter().enumerate().map(one).collect()
        }
        None => wrong("messages", "must be an array of messages"),
    }
}

fn read_one(message: &Value, at: &str) -> Result<Value, ApiError> {
    let Some(message) = message.as_object() else { return wrong(at, "must be an object with role and content") };
    let field = |name: &str| message.get(name).filter(|value| !value.is_null());
    let role = match field("role").and_then(Value::as_str) {
        // Models know the older name.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => return wrong(&format!("{at}.role"), "must be system, developer, user, assistant or tool"),
    };
    let mut read = Map::new();
    read.insert("role".into(), role.into());
    let calls = match field("tool_calls") {
        Some(_) if role != "assistant" => {
            return wrong(&format!("{at}.tool_calls"), "may be in assistant messages only");
        }
        Some(calls) => read_calls(calls, &format!("{at}.tool_calls"))?,
        None => Vec::new(),
    };
    let content = match field("content") {
        Some(content) => content_text(content, &format!("{at}.content"))?,
        None if role == "assistant" => field("refusal").and_then(Value::as_str).unwrap_or_default().to_owned(),
        None => return wrong(&format!("{at}.content"), "is missing"),
    };
    read.insert("content".into(), content.into());
    if !calls.is_empty() {
        read.insert("tool_calls".into(), calls.into());
    }
    for name in ["name", "tool_call_id", "reasoning_content"] {
        match field(name) {
            Some(Value::String(text)) => drop(read.insert(name.into(), text.as_str().into())),
            Some(_) => return wrong(&format!("{at}.{name}"), "must be a string"),
            None => {}
        }
    }
    Ok(Value::Object(read))
}

/// A string, or the texts of its parts, each on a line of its own as at vLLM.
fn content_text(content: &Value, at: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return wrong(at, "must be a string or an array of text parts"),
    };
    let one = |(i, part): (usize, &Value)| {
        let at = format!("{at}[{i}]");
        let text = match part["type"].as_str() {
            Some("text") => "text",
            Some("refusal") => "refusal",
            _ => return wrong(&format!("{at}.type"), "must be text: this model takes text alone"),
        };
        match part[text].as_str() {
            Some(text) => Ok(text.to_owned()),
            None => wrong(&format!("{at}.{text}"), "must be a string"),
        }
    };
    Ok(parts.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn read_calls(calls: &Value, at: &str) -> Result<Vec<Value>, ApiError> {
    let Some(calls) = calls.as_array() else { return wrong(at, "must be an array of calls") };
    let one = |(i, call): (usize, &Value)| {
        let at = format!("{at}[{i}].function");
        let Some(name) = call["function"]["name"].as_str() else {
            return wrong(&format!("{at}.name"), "must be a string");
        };
        let arguments = match &call["function"]["arguments"] {
            // Templates write them as JSON themselves. What is no JSON, a model has said: as it is.
            Value::String(text) => {
                serde_json::from_str(text).ok().filter(Value::is_object).unwrap_or_else(|| text.as_str().into())
            }
            object @ Value::Object(_) => object.clone(),
            Value::Null => json!({}),
            _ => return wrong(&format!("{at}.arguments"), "must be a string of JSON"),
        };
        let mut read = json!({ "type": "function", "function": { "name": name, "arguments": arguments } });
        if let Some(id) = call["id"].as_str() {
            read["id"] = id.into();
        }
        Ok(read)
    };
    calls.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_templates_get() {
        let read = read(&json!([
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }], "name": "Ann" },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"x\": 1}" } },
            ] },
            { "role": "tool", "content": "2", "tool_call_id": "call_1" },
        ]));
        assert_eq!(
            Value::from(read.unwrap()),
            json!([
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "a\nb", "name": "Ann" },
                { "role": "assistant", "content": "", "tool_calls": [
                    { "id": "call_1", "type": "function", "function": { "name": "f", "arguments": { "x": 1 } } },
                ] },
                { "role": "tool", "content": "2", "tool_call_id": "call_1" },
            ])
        );
    }

    #[test]
    fn errors_say_where() {
        for (messages, param) in [
            (json!("hello"), "messages"),
            (json!([]), "messages"),
            (json!(["hello"]), "messages[0]"),
            (json!([{ "content": "a" }]), "messages[0].role"),
            (json!([{ "role": "king", "content": "a" }]), "messages[0].role"),
            (json!([{ "role": "user" }]), "messages[0].content"),
            (json!([{ "role": "user", "content": 7 }]), "messages[0].content"),
            (json!([{ "role": "user", "content": [{ "type": "image_url" }] }]), "messages[0].content[0].type"),
            (json!([{ "role": "user", "content": [{ "type": "text" }] }]), "messages[0].content[0].text"),
            (json!([{ "role": "user", "content": "a", "tool_calls": [] }]), "messages[0].tool_calls"),
            (json!([{ "role": "assistant", "tool_calls": [{}] }]), "messages[0].tool_calls[0].function.name"),
        ] {
            let error = read(&messages).unwrap_err();
            assert_eq!(error.into_body().error.param.as_deref(), Some(param), "{messages}");
        }
    }
}
