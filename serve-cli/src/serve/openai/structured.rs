//! What answers must be: `response_format`, and vLLM's `structured_outputs` and `guided_…`.
use crate::serve::error::ApiError;
use engine::grammar::Grammar;
use engine::llm::TextModel;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// What answers must be: one of these.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct StructuredOutputs {
    /// JSON that this schema, or its text, describes.
    #[schema(value_type = Option<Value>)]
    pub json: Option<Value>,
    /// A match of this regular expression.
    pub regex: Option<String>,
    /// One of these.
    pub choice: Option<Vec<String>>,
    /// A sentence of this grammar, in llguidance's variant of Lark.
    pub grammar: Option<String>,
    /// Any JSON object.
    pub json_object: Option<bool>,
}

/// The same in vLLM's former spelling.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct StructuredFields {
    /// As `json`.
    #[schema(value_type = Option<Value>)]
    pub guided_json: Option<Value>,
    /// As `regex`.
    pub guided_regex: Option<String>,
    /// As `choice`.
    pub guided_choice: Option<Vec<String>>,
    /// As `grammar`.
    pub guided_grammar: Option<String>,
}

/// OpenAI's way to say what an answer must be.
#[derive(Debug, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(dead_code, reason = "a schema only: requests are read by hand, for errors that say where")]
pub enum ResponseFormat {
    /// Anything.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema.
        json_schema: NamedSchema,
    },
}

/// A schema.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "a schema only")]
pub struct NamedSchema {
    /// For people.
    pub name: Option<String>,
    /// The schema.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// Answers always follow the schema here.
    pub strict: Option<bool>,
}

/// What an answer must be.
///
/// # Errors
/// More than one says it, one cannot be read, or the model cannot follow it. Compiles it: not on the runtime's threads.
pub fn grammar(
    text: &TextModel,
    response_format: Option<&Value>,
    outputs: Option<&StructuredOutputs>,
    guided: &StructuredFields,
) -> Result<Option<Grammar>, ApiError> {
    let Some((field, grammar)) = read(response_format, outputs, guided)? else { return Ok(None) };
    let check = text.check_grammar(&grammar);
    check.map_err(|error| ApiError::invalid(format!("{field}: {error}"), Some(field)))?;
    Ok(Some(grammar))
}

/// The field that says it, and what it says.
fn read(
    response_format: Option<&Value>,
    outputs: Option<&StructuredOutputs>,
    guided: &StructuredFields,
) -> Result<Option<(&'static str, Grammar)>, ApiError> {
    let mut found: Vec<(&'static str, Grammar)> = Vec::new();
    found.extend(of_format(response_format)?.map(|grammar| ("response_format", grammar)));
    if let Some(outputs) = outputs {
        let field = "structured_outputs";
        found.extend(schema(outputs.json.as_ref(), field)?.map(|grammar| (field, grammar)));
        found.extend(outputs.regex.as_deref().map(|regex| (field, Grammar::Regex(regex.into()))));
        found.extend(choice(outputs.choice.as_deref(), field)?.map(|grammar| (field, grammar)));
        found.extend(outputs.grammar.as_deref().map(|lark| (field, Grammar::Lark(lark.into()))));
        found.extend((outputs.json_object == Some(true)).then_some((field, Grammar::JsonObject)));
        if found.iter().all(|(of, _)| *of != field) {
            let problem = "says nothing: give json, regex, choice, grammar or json_object";
            return Err(ApiError::invalid(format!("{field} {problem}"), Some(field)));
        }
    }
    found.extend(schema(guided.guided_json.as_ref(), "guided_json")?.map(|grammar| ("guided_json", grammar)));
    found.extend(guided.guided_regex.as_deref().map(|regex| ("guided_regex", Grammar::Regex(regex.into()))));
    let choices = choice(guided.guided_choice.as_deref(), "guided_choice")?;
    found.extend(choices.map(|grammar| ("guided_choice", grammar)));
    found.extend(guided.guided_grammar.as_deref().map(|lark| ("guided_grammar", Grammar::Lark(lark.into()))));
    if let [(first, _), (second, _), ..] = &found[..] {
        let problem = if first == second {
            format!("{first} says twice what answers must be: give one of its fields")
        } else {
            format!("{first} and {second} both say what answers must be: give one of them")
        };
        return Err(ApiError::invalid(problem, Some(second)));
    }
    Ok(found.pop())
}

fn of_format(format: Option<&Value>) -> Result<Option<Grammar>, ApiError> {
    let wrong = |field: &str, problem: &str| Err(ApiError::invalid(format!("{field} {problem}"), Some(field)));
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonObject)),
        Some("json_schema") => match &format["json_schema"] {
            Value::Object(named) => match named.get("schema") {
                None | Some(Value::Null) => wrong("response_format.json_schema.schema", "is missing"),
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
                    Ok(Some(Grammar::JsonSchema(schema.to_string().into())))
                }
                Some(_) => wrong("response_format.json_schema.schema", "must be an object"),
            },
            _ => wrong("response_format.json_schema", "must be an object with a schema"),
        },
        _ => wrong("response_format.type", "must be text, json_object or json_schema"),
    }
}

/// A schema, or its text.
fn schema(schema: Option<&Value>, field: &str) -> Result<Option<Grammar>, ApiError> {
    match schema {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(Grammar::JsonSchema(text.as_str().into()))),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(Grammar::JsonSchema(schema.to_string().into()))),
        Some(_) => Err(ApiError::invalid(format!("{field}: the schema must be an object or its text"), Some(field))),
    }
}

fn choice(choices: Option<&[String]>, field: &str) -> Result<Option<Grammar>, ApiError> {
    match choices {
        Some([]) => Err(ApiError::invalid(format!("{field}: there is nothing to choose from"), Some(field))),
        choices => Ok(choices.map(Grammar::choice)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_ways_to_say_what_answers_must_be() {
        let none = StructuredFields::default();
        let of = |format: Value| read(Some(&format), None, &none).map(|found| found.map(|(_, grammar)| grammar));
        assert_eq!(of(json!({ "type": "text" })).unwrap(), None);
        assert_eq!(of(json!({ "type": "json_object" })).unwrap(), Some(Grammar::JsonObject));
        let schema = json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": { "type": "integer" } } });
        assert_eq!(of(schema).unwrap(), Some(Grammar::JsonSchema("{\"type\":\"integer\"}".into())));
        for wrong in [json!({}), json!("json"), json!({ "type": "json_schema" }), json!({ "type": "xml" })] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
        let regex = StructuredOutputs { regex: Some("a+".into()), ..StructuredOutputs::default() };
        assert_eq!(read(None, Some(&regex), &none).unwrap(), Some(("structured_outputs", Grammar::Regex("a+".into()))));
        let twice = read(Some(&json!({ "type": "json_object" })), Some(&regex), &none);
        assert_eq!(twice.unwrap_err().into_body().error.param.as_deref(), Some("structured_outputs"));
        let both = StructuredOutputs { grammar: Some("start: \"a\"".into()), ..regex };
        assert!(read(None, Some(&both), &none).is_err());
    }
}
