//! `/openapi.json`: all routes with what they take and give.
use super::openai;
use super::state::AppState;
use super::{admin, health, live, metrics};
use axum::{Json, Router, routing::get};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

/// The document. Each route is in the list.
#[derive(OpenApi)]
#[openapi(
    info(title = "Wootz", description = "A server of language models with OpenAI's API."),
    paths(
        openai::chat::create,
        openai::completions::create,
        openai::embeddings::create,
        openai::models::list,
        openai::models::one,
        openai::responses::create,
        openai::tokenize::tokenize,
        openai::tokenize::detokenize,
        health::health,
        health::version,
        metrics::metrics,
        live::live,
        admin::list,
        admin::load,
        admin::unload,
        admin::weights,
        document,
    ),
    modifiers(&Keys),
    security((), ("key" = [])),
)]
struct Document;

/// `--api-key`.
struct Keys;

impl utoipa::Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// `GET /openapi.json`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/openapi.json", get(document))
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "Operation", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
