//! `/v1/models`.
use crate::serve::error::ApiError;
use crate::serve::state::{AppState, Served};
use axum::extract::{Path, State};
use axum::{Json, Router, routing::get};
use serde::Serialize;
use utoipa::ToSchema;

/// The models that are served.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelObject>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelObject {
    /// What requests call it.
    pub id: String,
    /// Always `model`.
    #[schema(example = "model")]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// Always `wootz`.
    #[schema(example = "wootz")]
    pub owned_by: &'static str,
    /// Most tokens of prompt and answer.
    pub max_model_len: usize,
}

impl ModelObject {
    /// `served` under one of its names.
    fn new(id: String, served: &Served) -> Self {
        ModelObject {
            id,
            object: "model",
            created: served.created,
            owned_by: "wootz",
            max_model_len: served.llm.handle().admission().scheduler.max_len(),
        }
    }
}

/// `GET /v1/models` and `/v1/models/{model}`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/v1/models", get(list)).route("/v1/models/{*model}", get(one))
}

/// The models that are served.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses(
    (status = 200, description = "The models", body = ModelList),
    (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
))]
pub async fn list(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    state.serving()?;
    let names = state.registry().names();
    let data = names.into_iter().map(|(name, served)| ModelObject::new(name, &served)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// One of the models that are served.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "OpenAI",
    params(("model" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The model", body = ModelObject),
        (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
    ))]
pub async fn one(State(state): State<AppState>, Path(model): Path<String>) -> Result<Json<ModelObject>, ApiError> {
    let served = state.model(Some(&model))?;
    Ok(Json(ModelObject::new(model, &served)))
}
