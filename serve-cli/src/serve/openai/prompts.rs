//! The forms that prompts of completions and inputs of embeddings may have.
use crate::serve::error::ApiError;
use crate::serve::state::Served;
use engine::llm::Prompt;
use serde_json::Value;
use utoipa::ToSchema;

/// Most prompts or inputs of a request, as at OpenAI.
pub const MAX_PROMPTS: usize = 2048;

/// The forms, for the OpenAPI document: requests are read by hand, for errors that say where.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "a schema only")]
pub enum PromptInput {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Several inputs of tokens.
    Many(Vec<Vec<u32>>),
}

/// The tokens of a prompt.
///
/// # Errors
/// It cannot fit.
pub fn prompt_tokens(served: &Served, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Text(text) => {
            check_length(served, &text)?;
            Ok(served.llm.text_model().text_prompt(&text)?)
        }
        Prompt::Tokens(tokens) => Ok(tokens),
    }
}

/// The tokens of a conversation's text.
///
/// # Errors
/// It cannot fit.
pub fn chat_tokens(served: &Served, text: &str) -> Result<Vec<u32>, ApiError> {
    check_length(served, text)?;
    Ok(served.llm.text_model().chat_tokens(text)?)
}

/// Refuses a text that is too long for the model in any case, before seconds and gigabytes are spent on its tokens.
fn check_length(served: &Served, text: &str) -> Result<(), ApiError> {
    let (max, tokens) = (served.llm.handle().max_len(), served.llm.text_model().tokenizer().fewest_tokens(text.len()));
    if tokens < max {
        return Ok(());
    }
    let (bytes, most) = (text.len(), max - 1);
    let problem = format!("the prompt has {bytes} bytes, {tokens} tokens or more, at most {most} fit: shorten it");
    Err(ApiError::invalid(problem, None).code("context_length_exceeded"))
}

/// Reads all forms of `field`. Whether an entry may be empty is for the caller to say.
///
/// # Errors
/// It has none of the forms; the message says at which entry.
pub fn read_prompts(value: &Value, field: &str) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |problem: String| ApiError::invalid(format!("{field}{problem}"), Some(field));
    let list = match value {
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(list) if list.is_empty() => return Err(wrong(" is empty: give at least one text".into())),
        Value::Array(list) if list[0].is_number() => std::slice::from_ref(value),
        Value::Array(list) => list,
        _ => return Err(wrong(" must be a string, an array of tokens, or an array of one of them".into())),
    };
    if list.len() > MAX_PROMPTS {
        return Err(wrong(format!(" has {} entries, at most {MAX_PROMPTS} are allowed", list.len())));
    }
    let one = |(i, one): (usize, &Value)| match one {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(tokens) => {
            let tokens = tokens.iter().map(|token| token.as_u64().and_then(|token| u32::try_from(token).ok()));
            let tokens = tokens.collect::<Option<Vec<u32>>>().map(Prompt::Tokens);
            tokens.ok_or_else(|| wrong(format!("[{i}] holds something that is no token: tokens are numbers from 0")))
        }
        _ => Err(wrong(format!("[{i}] must be a string or an array of tokens"))),
    };
    list.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_forms() {
        let read = |value| read_prompts(&value, "input");
        assert_eq!(read(json!("a")).unwrap(), [Prompt::Text("a".into())]);
        assert_eq!(read(json!(["a", "b"])).unwrap().len(), 2);
        assert_eq!(read(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(read(json!([[1], [2, 3]])).unwrap(), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
        for wrong in [json!(null), json!([]), json!([1, "a"]), json!([-1]), json!([1.5]), json!({}), json!([null])] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(read(json!(["a", 3])).unwrap_err().to_string().starts_with("input[1] "));
        assert!(read(json!(vec!["a"; MAX_PROMPTS + 1])).is_err());
    }
}
