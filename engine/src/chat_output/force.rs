//! Grammars that leave a model nothing but to call tools.
use super::ToolFormat;
use crate::error::{Error, Result};
use crate::grammar::Grammar;
use serde_json::{Map, Value, json};

/// Which calls an answer must consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice<'a> {
    /// Of any of the tools (`tool_choice: "required"`).
    Required,
    /// Of the one with this name.
    Named(&'a str),
}

/// What makes a model answer with calls of `tools` (OpenAI's `tools`, with or without the `function` around them) and nothing
/// else: the grammar, and the format in which the calls come. `parallel`: there may be several.
///
/// # Errors
/// [`Error::Request`]: a tool has no name, or there is none of the chosen name.
pub fn force_tools(
    tools: &[Value],
    choice: ToolChoice<'_>,
    format: Option<ToolFormat>,
    parallel: bool,
) -> Result<(Grammar, ToolFormat)> {
    let refused = |problem: String| Error::Request { problem };
    // Models that mark calls by special tokens may write them without: the text is read as JSON then.
    let format = match format {
        Some(format @ (ToolFormat::Hermes | ToolFormat::Llama3Json)) => format,
        _ => ToolFormat::Json,
    };
    let key = if format == ToolFormat::Llama3Json { "parameters" } else { "arguments" };
    let (mut calls, mut definitions) = (Vec::new(), Map::new());
    for (at, tool) in tools.iter().enumerate() {
        let function = tool.get("function").unwrap_or(tool);
        let name = function["name"].as_str().ok_or_else(|| refused(format!("tools[{at}] has no name")))?;
        if matches!(choice, ToolChoice::Named(wanted) if wanted != name) {
            continue;
        }
        let arguments = match function.get("parameters") {
            Some(schema @ Value::Object(_)) => {
                // Within the whole grammar's schema its references lead elsewhere.
                let home = format!("t{at}");
                let mut schema = object(schema);
                rehome(&mut schema, &home);
                definitions.insert(home.clone(), schema);
                json!({"$ref": format!("#/$defs/{home}")})
            }
            _ => json!({"type": "object"}),
        };
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": name}, key: arguments},
            "required": ["name", key],
            "additionalProperties": false,
        }));
    }
    if calls.is_empty() {
        return Err(refused(match choice {
            ToolChoice::Required => "tool_choice is required, and there are no tools; give some in tools".into(),
            ToolChoice::Named(name) => format!("tool_choice names {name:?}, and there is no such tool in tools"),
        }));
    }
    let call = if calls.len() == 1 { calls.remove(0) } else { json!({"anyOf": calls}) };
    let mut with_definitions = |mut schema: Value| {
        schema["$defs"] = Value::Object(std::mem::take(&mut definitions));
        schema
    };
    let grammar = match (format, parallel) {
        (ToolFormat::Hermes, _) => {
            let repeat = if parallel { "(\"\\n\" call)*" } else { "" };
            let call = Grammar::bounded_json(with_definitions(call));
            let text = format!(
                "start: call {repeat}\ncall: \"<tool_call>\\n\" json \"\\n</tool_call>\"\njson: %json {call}\n"
            );
            Grammar::Lark(text.into())
        }
        (ToolFormat::Json, true) => {
            let calls = json!({"type": "array", "minItems": 1, "items": call});
            Grammar::JsonSchema(with_definitions(calls).to_string().into())
        }
        _ => Grammar::JsonSchema(with_definitions(call).to_string().into()),
    };
    Ok((grammar, format))
}

/// Makes references to the schema's root go to its new place among the definitions.
fn rehome(schema: &mut Value, home: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" => {
                        if let Some(path) =
                            target.strip_prefix('#').filter(|path| path.is_empty() || path.starts_with('/'))
                        {
                            *target = format!("#/$defs/{home}{path}");
                        }
                    }
                    value => rehome(value, home),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rehome(item, home)),
        _ => {}
    }
}

/// A schema of arguments, whose calls are objects whether or not it says so.
fn object(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("type").or_insert_with(|| json!("object"));
    }
    schema
}
