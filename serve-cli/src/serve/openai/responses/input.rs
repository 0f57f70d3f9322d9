//! What `/v1/responses` is asked: items of a conversation, as chat messages.
use serde_json::{Value, json};

/// What is wrong with a request, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// One sentence.
    pub message: String,
    /// The field.
    pub param: String,
}

impl Problem {
    /// `message` about a field.
    pub fn new(param: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { message: message.into(), param: param.into() }
    }
}

/// The chat messages that instructions and input amount to.
///
/// # Errors
/// An item that is not understood.
pub fn messages(instructions: Option<&str>, input: &Value) -> Result<Vec<Value>, Problem> {
    let mut messages = Vec::new();
    messages.extend(instructions.map(|text| json!({ "role": "system", "content": text })));
    match input {
        Value::String(text) => messages.push(json!({ "role": "user", "content": text })),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                push(item, &format!("input[{i}]"), &mut messages)?;
            }
        }
        _ => return Err(Problem::new("input", "input must be a string or an array of items")),
    }
    if messages.iter().all(|message| message["role"] == "system") {
        return Err(Problem::new("input", "input is empty: give a string or at least one message"));
    }
    Ok(messages)
}

/// A field that must be a string.
fn string<'a>(item: &'a Value, field: &str, at: &str) -> Result<&'a str, Problem> {
    let problem = || Problem::new(format!("{at}.{field}"), format!("{at}.{field} must be a string"));
    item[field].as_str().ok_or_else(problem)
}

fn push(item: &Value, at: &str, messages: &mut Vec<Value>) -> Result<(), Problem> {
    if !item.is_object() {
        return Err(Problem::new(at, format!("{at} must be an object")));
    }
    let kind = match item.get("type") {
        None => "message",
        Some(_) => string(item, "type", at)?,
    };
    match kind {
        "message" => {
            let role = match string(item, "role", at)? {
                "developer" => "system",
                role @ ("user" | "assistant" | "system") => role,
                role => {
                    let known = "user, assistant, system and developer";
                    return Err(Problem::new(
                        format!("{at}.role"),
                        format!("{at}.role is {role:?}; there are {known}"),
                    ));
                }
            };
            let content = content(&item["content"], &format!("{at}.content"))?;
            messages.push(json!({ "role": role, "content": content }));
        }
        "function_call" => {
            let (id, name) = (string(item, "call_id", at)?, string(item, "name", at)?);
            let arguments = string(item, "arguments", at)?;
            // Templates write the arguments as JSON themselves: a string would be quoted once more.
            let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| Value::from(arguments));
            let call = json!({ "type": "function", "id": id, "function": { "name": name, "arguments": arguments } });
            // Calls of one turn are one message.
            match messages.last_mut() {
                Some(last) if last["tool_calls"].is_array() => {
                    if let Some(calls) = last["tool_calls"].as_array_mut() {
                        calls.push(call);
                    }
                }
                _ => messages.push(json!({ "role": "assistant", "content": "", "tool_calls": [call] })),
            }
        }
        "function_call_output" => {
            let id = string(item, "call_id", at)?;
            let content = content(&item["output"], &format!("{at}.output"))?;
            messages.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
        }
        // What was thought is not read again.
        "reasoning" => {}
        "item_reference" => {
            return Err(Problem::new(at, format!("{at} refers to a stored item, and nothing is stored here: send it")));
        }
        kind => {
            let known = "message, function_call, function_call_output and reasoning";
            return Err(Problem::new(format!("{at}.type"), format!("{at}.type is {kind:?}; there are {known}")));
        }
    }
    Ok(())
}

/// A string, or an array of texts, as one string.
fn content(content: &Value, at: &str) -> Result<String, Problem> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(Problem::new(at, format!("{at} must be a string or an array of text parts"))),
    };
    let mut all = String::new();
    for (i, part) in parts.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if !part.is_object() {
            return Err(Problem::new(&at, format!("{at} must be an object")));
        }
        match string(part, "type", &at)? {
            "input_text" | "output_text" | "text" => all.push_str(string(part, "text", &at)?),
            "refusal" => all.push_str(string(part, "refusal", &at)?),
            kind => {
                let problem = format!("{at}.type is {kind:?}: this model takes text alone (input_text, output_text)");
                return Err(Problem::new(format!("{at}.type"), problem));
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_items_become_messages() {
        let system = json!({"role": "system", "content": "Be brief."});
        assert_eq!(
            messages(Some("Be brief."), &json!("Hi")).unwrap(),
            [system.clone(), json!({"role": "user", "content": "Hi"})]
        );
        let items = json!([
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "input_text", "text": "1+"}, {"type": "input_text", "text": "1?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "2"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "2", "annotations": []}]},
        ]);
        let found = messages(None, &items).unwrap();
        assert_eq!(found.len(), 5);
        assert_eq!(found[0], json!({"role": "system", "content": "Be kind."}));
        assert_eq!(found[1]["content"], "1+1?");
        assert_eq!(found[2]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(found[3], json!({"role": "tool", "tool_call_id": "c1", "content": "2"}));
        assert_eq!(found[4], json!({"role": "assistant", "content": "2"}));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (input, param) in [
            (json!(3), "input"),
            (json!([]), "input"),
            (json!([{"role": "system", "content": "x"}]), "input"),
            (json!([3]), "input[0]"),
            (json!([{"role": "user", "content": "a"}, {"role": "bard", "content": "b"}]), "input[1].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"type": 3}]), "input[0].type"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0]"),
            (json!([{"type": "function_call", "call_id": "x", "name": "y"}]), "input[0].arguments"),
            (
                json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
                "input[0].content[0].type",
            ),
        ] {
            assert_eq!(messages(None, &input).unwrap_err().param, param, "{input}");
        }
    }
}
