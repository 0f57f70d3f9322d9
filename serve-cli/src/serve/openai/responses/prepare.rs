//! From a request to what the engine is asked.
use super::input::{self, Problem};
use super::{ResponseRequest, random, refused};
use crate::serve::error::ApiError;
use crate::serve::openai::prompts::chat_tokens;
use crate::serve::state::Served;
use engine::SamplingParams;
use engine::chat_output::{ChatFormat, ReasoningFormat, ToolChoice, ToolFormat, force_tools};
use engine::chat_template::ChatInput;
use engine::grammar::Grammar;
use serde_json::{Value, json};

/// What the engine is asked, and how its answer is read.
pub struct Prepared {
    /// Tokens of the conversation.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// What the answer's text means.
    pub format: ChatFormat,
}

/// Reads a request.
///
/// # Errors
/// It asks for what makes no sense or is not supported.
pub fn prepare(served: &Served, request: &ResponseRequest) -> Result<Prepared, ApiError> {
    check(request).map_err(refused)?;
    let messages = input::messages(request.instructions.as_deref(), &request.input).map_err(refused)?;
    let tools = tools(request.tools.as_deref().unwrap_or_default()).map_err(refused)?;
    let choice = Choice::read(request.tool_choice.as_ref()).map_err(refused)?;
    let grammar = grammar(request.text.as_ref()).map_err(refused)?;
    let shown = !tools.is_empty() && choice != Choice::None;
    if shown && grammar.is_some() {
        let problem = "text.format and tools exclude each other: leave one of them out, or set tool_choice to none";
        return Err(ApiError::invalid(problem.into(), Some("text.format")));
    }
    let model = served.llm.text_model();
    let input = ChatInput {
        messages,
        tools: shown.then(|| tools.clone()),
        add_generation_prompt: true,
        ..ChatInput::default()
    };
    let text = model.chat_text(&input)?;
    let sources: Vec<String> = model.chat_template().into_iter().flat_map(|template| template.sources()).collect();
    let (known, reasoning) = (ToolFormat::of_templates(&sources), ReasoningFormat::of_templates(&sources));
    let mut params = params(served, request);
    params.grammar = grammar;
    let mut format = ChatFormat {
        tools: shown.then(|| known.unwrap_or(ToolFormat::Json)),
        reasoning,
        reasoning_is_open: reasoning.is_some_and(|reasoning| reasoning.is_open_in(&text)),
    };
    if let Some(choice) = choice.forced() {
        let parallel = request.parallel_tool_calls.unwrap_or(true);
        let forced = force_tools(&tools, choice, known, parallel);
        let (grammar, written) = forced.map_err(|error| ApiError::invalid(error.to_string(), Some("tool_choice")))?;
        params.grammar = Some(grammar);
        format.tools = Some(written);
    }
    if params.grammar.is_some() {
        // It leaves no room for thoughts.
        (format.reasoning, format.reasoning_is_open) = (None, false);
    }
    params.skip_special_tokens = !format.tools.is_some_and(ToolFormat::marks_are_special);
    if let Some(grammar) = &params.grammar {
        let field = if format.tools.is_some() { "tools" } else { "text.format.schema" };
        model.check_grammar(grammar).map_err(|error| ApiError::invalid(error.to_string(), Some(field)))?;
    }
    Ok(Prepared { prompt: chat_tokens(served, &text)?, params, format })
}

/// Refuses what this server does not do.
fn check(request: &ResponseRequest) -> Result<(), Problem> {
    let stored = |field: &str| {
        let advice = "this server stores no responses: send the whole conversation as input";
        Err(Problem::new(field, format!("{field} is not supported: {advice}")))
    };
    if request.previous_response_id.is_some() {
        return stored("previous_response_id");
    }
    if request.conversation.is_some() {
        return stored("conversation");
    }
    if request.background == Some(true) {
        return stored("background");
    }
    if request.truncation.as_deref().is_some_and(|truncation| truncation != "disabled") {
        return Err(Problem::new("truncation", "truncation must be disabled: too long an input is an error here"));
    }
    for (field, value) in [("text", &request.text), ("reasoning", &request.reasoning)] {
        if value.as_ref().is_some_and(|value| !value.is_object()) {
            return Err(Problem::new(field, format!("{field} must be an object")));
        }
    }
    if request.max_output_tokens == Some(0) {
        return Err(Problem::new("max_output_tokens", "max_output_tokens is 0, it must be at least 1"));
    }
    Ok(())
}

/// How tokens are chosen, the grammar aside.
fn params(served: &Served, request: &ResponseRequest) -> SamplingParams {
    let makers = served.llm.text_model().generation_config();
    let wants = |what: &str| request.include.as_ref().is_some_and(|include| include.iter().any(|one| one == what));
    let logprobs = wants("message.output_text.logprobs").then(|| request.top_logprobs.unwrap_or(0));
    SamplingParams {
        max_tokens: request.max_output_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
        temperature: request.temperature.or(makers.temperature).unwrap_or(1.0),
        top_p: request.top_p.or(makers.top_p).unwrap_or(1.0),
        top_k: makers.top_k.unwrap_or(0),
        min_p: makers.min_p.unwrap_or(0.0),
        seed: random(),
        logprobs,
        ..SamplingParams::default()
    }
}

/// What the text must be.
fn grammar(text: Option<&Value>) -> Result<Option<Grammar>, Problem> {
    let Some(format) = text.and_then(|text| text.get("format")).filter(|format| !format.is_null()) else {
        return Ok(None);
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonObject)),
        Some("json_schema") => match format.get("schema") {
            Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
                Ok(Some(Grammar::JsonSchema(schema.to_string().into())))
            }
            _ => Err(Problem::new("text.format.schema", "text.format.schema must be a JSON schema")),
        },
        _ => {
            let (kind, known) = (&format["type"], "text, json_object and json_schema");
            Err(Problem::new("text.format.type", format!("text.format.type is {kind}; there are {known}")))
        }
    }
}

/// Tools as chat templates know them.
fn tools(tools: &[Value]) -> Result<Vec<Value>, Problem> {
    let one = |(i, tool): (usize, &Value)| {
        let wrong = |field: &str, what: String| {
            let at = format!("tools[{i}].{field}");
            Err(Problem::new(&at, format!("{at} {what}")))
        };
        if tool["type"] != "function" {
            return wrong("type", format!("is {}; this server has function alone", tool["type"]));
        }
        if !tool["name"].is_string() {
            return wrong("name", "must be a string".into());
        }
        let parameters = match &tool["parameters"] {
            Value::Null => json!({ "type": "object", "properties": {} }),
            schema @ Value::Object(_) => schema.clone(),
            _ => return wrong("parameters", "must be a JSON schema".into()),
        };
        let mut function = json!({ "name": tool["name"], "parameters": parameters });
        if let Some(description) = tool["description"].as_str() {
            function["description"] = description.into();
        }
        Ok(json!({ "type": "function", "function": function }))
    };
    tools.iter().enumerate().map(one).collect()
}

/// Which tools are called.
#[derive(Debug, PartialEq)]
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

impl Choice {
    fn read(choice: Option<&Value>) -> Result<Self, Problem> {
        let choice = choice.unwrap_or(&Value::Null);
        match (choice, choice.as_str(), choice["name"].as_str()) {
            (Value::Null, ..) | (_, Some("auto"), _) => Ok(Choice::Auto),
            (_, Some("none"), _) => Ok(Choice::None),
            (_, Some("required"), _) => Ok(Choice::Required),
            (_, _, Some(name)) if choice["type"] == "function" => Ok(Choice::Named(name.to_owned())),
            _ => {
                let known = "none, auto, required and {\"type\": \"function\", \"name\": …}";
                Err(Problem::new("tool_choice", format!("tool_choice is {choice}; there are {known}")))
            }
        }
    }

    fn forced(&self) -> Option<ToolChoice<'_>> {
        match self {
            Choice::None | Choice::Auto => None,
            Choice::Required => Some(ToolChoice::Required),
            Choice::Named(name) => Some(ToolChoice::Named(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_and_choices_are_read() {
        let found = tools(&[json!({ "type": "function", "name": "add", "strict": true })]).unwrap();
        assert_eq!(found[0]["function"]["name"], "add");
        assert_eq!(found[0]["function"]["parameters"]["type"], "object");
        for (tool, param) in [
            (json!({ "type": "web_search" }), "tools[0].type"),
            (json!({ "type": "function" }), "tools[0].name"),
            (json!({ "type": "function", "name": "f", "parameters": 3 }), "tools[0].parameters"),
            (json!(3), "tools[0].type"),
        ] {
            assert_eq!(tools(&[tool]).unwrap_err().param, param);
        }
        let named = json!({ "type": "function", "name": "add" });
        assert_eq!(Choice::read(Some(&named)).unwrap(), Choice::Named("add".into()));
        assert_eq!(Choice::read(None).unwrap(), Choice::Auto);
        assert_eq!(Choice::read(Some(&json!("none"))).unwrap(), Choice::None);
        assert!(Choice::read(Some(&json!("always"))).is_err());
        assert!(Choice::read(Some(&json!({ "type": "web_search" }))).is_err());
    }

    #[test]
    fn forms_of_text_are_grammars() {
        assert_eq!(grammar(None).unwrap(), None);
        assert_eq!(grammar(Some(&json!({ "format": { "type": "text" } }))).unwrap(), None);
        assert_eq!(grammar(Some(&json!({ "format": { "type": "json_object" } }))).unwrap(), Some(Grammar::JsonObject));
        let schema = json!({ "format": { "type": "json_schema", "name": "x", "schema": { "type": "object" } } });
        assert_eq!(grammar(Some(&schema)).unwrap(), Some(Grammar::JsonSchema(r#"{"type":"object"}"#.into())));
        assert!(grammar(Some(&json!({ "format": { "type": "json_schema" } }))).is_err());
        assert!(grammar(Some(&json!({ "format": { "type": "xml" } }))).is_err());
    }
}
