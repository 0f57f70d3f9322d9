//! Errors in OpenAI's shape.
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// An error's body.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// An error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorObject {
    /// One sentence.
    pub message: String,
    /// Its kind.
    pub r#type: &'static str,
    /// The field.
    #[schema(required)]
    pub param: Option<String>,
    /// A name for programs.
    #[schema(required)]
    pub code: Option<&'static str>,
}

/// A refusal.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorObject,
    /// Seconds after which asking again makes sense.
    retry_after: Option<u32>,
}

impl ApiError {
    /// 400.
    pub fn invalid(message: String, param: Option<&str>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message, param)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        let message = "a valid API key is needed: send it as `Authorization: Bearer KEY`".to_owned();
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message, None).code("invalid_api_key")
    }

    /// 404 for a model that is not served.
    pub fn model_not_found(message: String) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message, Some("model")).code("model_not_found")
    }

    /// 429: as many requests wait as may.
    pub fn overloaded(message: String) -> Self {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message, None);
        error.code("rate_limit_exceeded").retry_after(1)
    }

    /// 503: not now, or not any more.
    pub fn unavailable(message: String, code: &'static str, retry_after: u32) -> Self {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message, None);
        error.code(code).retry_after(retry_after)
    }

    /// 500.
    pub fn internal(message: String) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message, None)
    }

    /// Any status; the kind follows from it.
    pub fn status(status: StatusCode, message: String) -> Self {
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        ApiError::new(status, kind, message, None)
    }

    fn new(status: StatusCode, r#type: &'static str, message: String, param: Option<&str>) -> Self {
        let body = ErrorObject { message, r#type, param: param.map(str::to_owned), code: None };
        ApiError { status, body, retry_after: None }
    }

    /// With a name for programs.
    pub fn code(mut self, code: &'static str) -> Self {
        self.body.code = Some(code);
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The body, for errors that end a stream.
    pub fn into_body(self) -> ErrorBody {
        ErrorBody { error: self.body }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.body.message)
    }
}

impl From<engine::Error> for ApiError {
    fn from(error: engine::Error) -> Self {
        use engine::Error as E;
        let message = error.to_string();
        match error {
            E::PromptTooLong { .. } => ApiError::invalid(message, None).code("context_length_exceeded"),
            E::Request { .. } | E::NoChatTemplate { .. } | E::Template { .. } | E::TemplateRefused { .. } => {
                ApiError::invalid(message, None)
            }
            E::Overloaded { .. } => ApiError::overloaded(message),
            E::ShuttingDown => ApiError::unavailable(message, "shutting_down", 5),
            _ => ApiError::unavailable(message, "engine_fault", 30),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: self.body })).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_errors_have_openais_statuses() {
        let of = |error: engine::Error| {
            let response = ApiError::from(error).into_response();
            (response.status().as_u16(), response.headers().contains_key(header::RETRY_AFTER))
        };
        assert_eq!(of(engine::Error::Overloaded { open: 3 }), (429, true));
        assert_eq!(of(engine::Error::ShuttingDown), (503, true));
        assert_eq!(of(engine::Error::EngineFault { problem: "x".into() }), (503, true));
        assert_eq!(of(engine::Error::Request { problem: "x".into() }), (400, false));
        let long = ApiError::from(engine::Error::PromptTooLong { tokens: 9, max: 5 });
        assert!(long.to_string().contains("at most 4"), "{long}");
        assert_eq!(long.into_body().error.code, Some("context_length_exceeded"));
    }
}
