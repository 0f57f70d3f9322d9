//! Bodies of requests: errors name the field.
use crate::serve::error::ApiError;
use crate::serve::state::AppState;
use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::error::Error;
use tower_http::timeout::TimeoutError;

/// What a body is read to.
pub trait Read: Sized {
    /// Reads a body, which is an object.
    ///
    /// # Errors
    /// A field has a wrong type.
    fn read(body: &Value) -> Result<Self, ApiError>;
}

/// A JSON body. Unknown fields are ignored.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: Read> FromRequest<AppState> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let body = Json::<Value>::from_request(request, state).await;
        let Json(body) = body.map_err(|refusal| {
            if is_timeout(&refusal) {
                let problem = "the body did not come in time; the operator can raise --client-timeout";
                return ApiError::status(StatusCode::REQUEST_TIMEOUT, problem.into());
            }
            ApiError::status(refusal.status(), refusal.body_text())
        })?;
        if !body.is_object() {
            return Err(ApiError::invalid("the body must be a JSON object".into(), None));
        }
        T::read(&body).map(Body)
    }
}

/// Whether a client has fallen silent within a body.
fn is_timeout(refusal: &(dyn Error + 'static)) -> bool {
    refusal.is::<TimeoutError>() || refusal.source().is_some_and(is_timeout)
}

/// What vLLM knows and this server does not: without an effect the answer would not be what was asked for.
const UNKNOWN: [&str; 6] = [
    "allowed_token_ids",
    "bad_words",
    "chat_template",
    "include_stop_str_in_output",
    "prompt_logprobs",
    "truncate_prompt_tokens",
];

/// Refuses fields whose silent loss would change the answer's meaning.
///
/// # Errors
/// One of them is there.
pub fn refuse_unknown(body: &Value) -> Result<(), ApiError> {
    let says = |value: &Value| !matches!(value, Value::Null | Value::Bool(false)) && *value != Value::Array(Vec::new());
    match UNKNOWN.into_iter().find(|field| body.get(field).is_some_and(says)) {
        Some(field) => Err(ApiError::invalid(format!("{field} is not supported: leave it out"), Some(field))),
        None => Ok(()),
    }
}

const WHOLE: &str = "expected an integer of 0 or more";

/// Reads fields of an object.
///
/// # Errors
/// A field is missing or has a wrong type.
pub fn fields<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(body).map_err(|error| {
        let path = error.path().to_string();
        // Rust's names of types are not the client's.
        let problem = error.inner().to_string().replace("expected u64", WHOLE).replace("expected u32", WHOLE);
        let problem = problem.replace("expected usize", WHOLE).replace("expected i64", "expected an integer");
        // The path of a missing field is its object's.
        let missing = problem.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let field = match (path.as_str(), missing) {
            (".", Some(field)) => field.to_owned(),
            (path, Some(field)) => format!("{path}.{field}"),
            (path, None) => path.to_owned(),
        };
        match missing {
            Some(_) => ApiError::invalid(format!("{field} is missing"), Some(&field)),
            None => ApiError::invalid(format!("{field}: {problem}"), Some(&field)),
        }
    })
}

/// What the engine refuses: its messages begin with the name of the field, if it is about one.
pub fn refused(error: engine::Error) -> ApiError {
    if let engine::Error::Request { problem } = &error {
        let field = problem.split_whitespace().next().unwrap_or_default();
        const KNOWN: [&str; 8] =
            ["temperature", "top_p", "min_p", "logit_bias", "logprobs", "n", "max_tokens", "min_tokens"];
        if KNOWN.contains(&field) || field.ends_with("_penalty") {
            return ApiError::invalid(problem.clone(), Some(field));
        }
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "only errors are looked at")]
    struct Outer {
        n: Option<u32>,
        inner: Option<Inner>,
        must: String,
    }
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "only errors are looked at")]
    struct Inner {
        deep: Vec<u32>,
    }

    fn param(body: Value) -> String {
        let error = fields::<Outer>(&body).unwrap_err();
        error.into_body().error.param.unwrap()
    }

    #[test]
    fn errors_name_the_field() {
        assert!(fields::<Outer>(&json!({ "n": null, "must": "x", "unknown": 1 })).is_ok());
        assert_eq!(param(json!({ "n": "1", "must": "x" })), "n");
        assert_eq!(param(json!({ "n": 1 })), "must");
        assert_eq!(param(json!({ "inner": {}, "must": "x" })), "inner.deep");
        assert_eq!(param(json!({ "inner": { "deep": [1, "a"] }, "must": "x" })), "inner.deep[1]");
        let error = refused(engine::Error::Request { problem: "top_p is 2, it must be …".into() });
        assert_eq!(error.into_body().error.param.as_deref(), Some("top_p"));
    }
}
