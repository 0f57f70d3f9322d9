//! Errors in OpenAI's shape.
use axum::Json;
use axum::http::StatusCode;
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
#[derive(Debug, Serialize, ToSchema)]
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
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorObject,
}

impl ApiError {
    /// 400.
    pub fn invalid(message: String, param: Option<&str>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message, param)
    }

    /// 500.
    pub fn internal(message: String) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message, None)
    }

    fn new(status: StatusCode, r#type: &'static str, message: String, param: Option<&str>) -> Self {
        ApiError { status, body: ErrorObject { message, r#type, param: param.map(str::to_owned), code: None } }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.body.message)
    }
}

impl From<engine::Error> for ApiError {
    fn from(error: engine::Error) -> Self {
        let message = error.to_string();
        match error {
            engine::Error::Request { .. } | engine::Error::PromptTooLong { .. } => ApiError::invalid(message, None),
            _ => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message, None),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.body })).into_response()
    }
}
