//! `tools` and `tool_choice`.
use super::ChatFields;
use crate::serve::error::ApiError;
use crate::serve::openai::body::refused;
use engine::chat_output::{ToolChoice, ToolFormat, force_tools};
use engine::grammar::Grammar;
use serde_json::Value;
use utoipa::ToSchema;

/// The forms of `tool_choice`, for the OpenAPI document.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "a schema only: requests are read by hand, for errors that say where")]
pub enum ToolChoiceField {
    /// `none`, `auto` or `required`.
    Mode(ToolMode),
    /// A function.
    Named(NamedTool),
}

/// Whether tools are called.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "a schema only")]
pub enum ToolMode {
    /// Never.
    None,
    /// If the model wants to.
    Auto,
    /// At least one.
    Required,
}

/// The function that must be called.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "a schema only")]
pub struct NamedTool {
    /// `function`.
    pub r#type: String,
    /// The function.
    pub function: ToolName,
}

/// A function's name.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "a schema only")]
pub struct ToolName {
    /// The name.
    pub name: String,
}

/// What a request's tools amount to.
#[derive(Debug, Default)]
pub struct Tools {
    /// Tools that the chat template tells of.
    pub told: Vec<Value>,
    /// How calls are written, if there can be any.
    pub format: Option<ToolFormat>,
    /// What leaves nothing but calls.
    pub grammar: Option<Grammar>,
}

/// Reads tools and the choice of them; `marks` are the sources of the chat templates.
///
/// # Errors
/// One is not understood, they do not go together, or the model knows no tools and is free to call some.
pub fn read(own: &ChatFields, marks: &[String], has_grammar: bool) -> Result<Tools, ApiError> {
    let wrong = |field: &str, problem: &str| Err(ApiError::invalid(format!("{field} {problem}"), Some(field)));
    let given = match &own.tools {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(tools)) => tools,
        Some(_) => return wrong("tools", "must be an array of tools"),
    };
    for (i, tool) in given.iter().enumerate() {
        check(tool, &format!("tools[{i}]"))?;
    }
    let named = |choice: &Value| choice["function"]["name"].as_str().map(str::to_owned);
    let forced = match &own.tool_choice {
        None | Some(Value::Null) => None,
        Some(Value::String(mode)) => match mode.as_str() {
            "auto" => None,
            "none" => return Ok(Tools::default()),
            "required" => Some(None),
            _ => return wrong("tool_choice", "must be none, auto, required, or an object that names a function"),
        },
        Some(choice) => match named(choice) {
            Some(name) => Some(Some(name)),
            None => {
                return wrong(
                    "tool_choice",
                    "must name a function: {\"type\": \"function\", \"function\": {\"name\": …}}",
                );
            }
        },
    };
    let known = ToolFormat::of_templates(marks);
    let parallel = own.parallel_tool_calls.unwrap_or(true);
    let told = given.to_vec();
    let Some(forced) = forced else {
        if given.is_empty() {
            return Ok(Tools::default());
        }
        if known.is_none() {
            let problem = "are not known to this model's chat template, and it will not call any by itself; \
                           set tool_choice to required or to a function";
            return wrong("tools", problem);
        }
        // What must be something else is no call.
        return Ok(Tools { told, format: known.filter(|_| !has_grammar), grammar: None });
    };
    if has_grammar {
        return wrong("tool_choice", "leaves nothing but calls: leave out response_format or structured_outputs");
    }
    let (choice, parallel) = match &forced {
        Some(name) => (ToolChoice::Named(name), false),
        None => (ToolChoice::Required, parallel),
    };
    let (grammar, format) = force_tools(given, choice, known, parallel).map_err(|error| match error {
        engine::Error::Request { problem } => ApiError::invalid(problem, Some("tool_choice")),
        error => refused(error),
    })?;
    Ok(Tools { told, format: Some(format), grammar: Some(grammar) })
}

fn check(tool: &Value, at: &str) -> Result<(), ApiError> {
    let wrong = |field: String, problem: &str| Err(ApiError::invalid(format!("{field} {problem}"), Some(&field)));
    if tool["type"].as_str() != Some("function") {
        return wrong(format!("{at}.type"), "must be function");
    }
    let name = tool["function"]["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        return wrong(format!("{at}.function.name"), "must be a string that is not empty");
    }
    match tool["function"].get("parameters") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => wrong(format!("{at}.function.parameters"), "must be a JSON schema"),
    }
}
