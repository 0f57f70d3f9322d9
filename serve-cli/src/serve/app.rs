//! All routes, with what stands before them.
use super::admin::{self, Admin};
use super::state::AppState;
use super::{health, limits, live, metrics, openai, openapi, page};
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::{Router, routing::any};
use tower::util::option_layer;
use tower_http::timeout::RequestBodyTimeoutLayer;

/// The server's routes.
pub fn app(state: &AppState, admin: Admin) -> Router {
    let admin = if state.limits().admin {
        admin::routes(admin)
    } else {
        Router::new().route("/admin/models", any(admin::off)).route("/admin/models/{what}", any(admin::off))
    };
    let origins = &state.limits().allowed_origins;
    let cors = (!origins.is_empty()).then(|| limits::cors(origins));
    Router::new()
        .merge(openai::chat::routes())
        .merge(openai::completions::routes())
        .merge(openai::embeddings::routes())
        .merge(openai::models::routes())
        .merge(openai::responses::routes())
        .merge(openai::tokenize::routes())
        .merge(health::routes())
        .merge(metrics::routes())
        .merge(live::routes())
        .merge(page::routes())
        .merge(openapi::routes())
        .merge(admin)
        .layer(DefaultBodyLimit::max(state.limits().max_body))
        .layer(RequestBodyTimeoutLayer::new(state.limits().client_timeout))
        .layer(from_fn_with_state(state.clone(), limits::front))
        .layer(option_layer(cors))
        .with_state(state.clone())
}
