//! `/health` and `/version`: for probes.
use super::state::{AppState, Phase};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use serde::Serialize;
use utoipa::ToSchema;

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthBody {
    /// `ok`, `loading`, `draining`, `hung` or `fault`.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// Why, if it is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub message: Option<String>,
}

/// Which server this is.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionBody {
    /// Of Wootz.
    #[schema(example = "0.1.0")]
    pub version: &'static str,
}

/// `GET /health`, `GET /version`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/health", get(health)).route("/version", get(version))
}

/// Whether requests are answered: 200, or 503 while models load, when an engine hangs or has failed, and while the server ends.
#[utoipa::path(get, path = "/health", tag = "Operation", responses(
    (status = 200, description = "Requests are answered", body = HealthBody),
    (status = 503, description = "They are not", body = HealthBody),
))]
pub async fn health(State(state): State<AppState>) -> Response {
    let (status, message) = match state.phase() {
        Phase::Ready => return Json(HealthBody { status: "ok", message: None }).into_response(),
        Phase::Loading => ("loading", None),
        Phase::Draining => ("draining", None),
        Phase::Hung(problem) => ("hung", Some(problem)),
        Phase::Fault(problem) => ("fault", Some(problem)),
    };
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "2")], Json(HealthBody { status, message }))
        .into_response()
}

/// The version of the server.
#[utoipa::path(get, path = "/version", tag = "Operation", responses(
    (status = 200, description = "The version", body = VersionBody),
))]
pub async fn version() -> Json<VersionBody> {
    Json(VersionBody { version: env!("CARGO_PKG_VERSION") })
}
