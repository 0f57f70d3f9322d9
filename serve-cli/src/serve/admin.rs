//! `/admin/models`: load, unload and weigh models while the server runs (`--admin`).
use super::config::{LoadSpec, ModelFlags};
use super::error::{ApiError, ErrorBody};
use super::registry::{Listed, Slot};
use super::startup::Loader;
use super::state::AppState;
use crate::model::ModelArgs;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json, Router, routing::get, routing::post};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// What loading takes from the command line.
#[derive(Clone, Debug)]
pub struct Admin {
    /// How models are loaded.
    pub loader: Loader,
    /// Flags that a request's `engine` changes.
    pub flags: ModelFlags,
}

/// A model to load.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// A directory of the server, or a name on Hugging Face's hub.
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// What requests call it; by default its own name.
    pub name: Option<String>,
    /// More names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Of several versions each has a name.
    pub version: Option<String>,
    /// Its share of the requests that name no version, over the sum of all weights; 1 if not given.
    pub weight: Option<u32>,
    /// Flags of `wootz serve` without their dashes, such as `{"max-model-len": "8K"}`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub engine: Map<String, Value>,
}

/// A model to unload.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnloadRequest {
    /// `NAME` or `NAME@VERSION`.
    pub model: String,
    /// Seconds that its running answers have to end; 30 if not given.
    pub timeout: Option<f64>,
}

/// Shares of a model's versions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightsRequest {
    /// The model's name.
    pub model: String,
    /// Weights by version.
    pub weights: BTreeMap<String, u32>,
}

/// A version of a model.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminModel {
    /// `NAME` or `NAME@VERSION`.
    pub id: String,
    /// The model's name.
    pub name: String,
    /// Its version.
    #[schema(required)]
    pub version: Option<String>,
    /// More names.
    pub aliases: Vec<String>,
    /// Its share.
    pub weight: u32,
    /// `loading`, `ready` or `fault`.
    #[schema(example = "ready")]
    pub status: &'static str,
    /// Requests that wait or run.
    pub open_requests: usize,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminModels {
    /// In the order in which they were loaded.
    pub models: Vec<AdminModel>,
}

/// What was unloaded.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unloaded {
    /// `NAME` or `NAME@VERSION`.
    pub unloaded: String,
}

/// The admin routes.
pub fn routes(admin: Admin) -> Router<AppState> {
    Router::new()
        .route("/admin/models", get(list))
        .route("/admin/models/load", post(load))
        .route("/admin/models/unload", post(unload))
        .route("/admin/models/weights", post(weights))
        .layer(Extension(Arc::new(admin)))
}

fn shown(listed: &Listed) -> AdminModel {
    let health = listed.served.as_ref().map(|served| served.llm.handle().health());
    AdminModel {
        id: listed.slot.to_string(),
        name: listed.slot.name.clone(),
        version: listed.slot.version.clone(),
        aliases: listed.aliases.clone(),
        weight: listed.weight,
        status: match &health {
            None => "loading",
            Some(health) if health.fault.is_some() => "fault",
            Some(_) => "ready",
        },
        open_requests: health.map_or(0, |health| health.open_requests),
    }
}

fn all(state: &AppState) -> AdminModels {
    AdminModels { models: state.registry().list().iter().map(shown).collect() }
}

/// Models that are served or being loaded.
#[utoipa::path(get, path = "/admin/models", tag = "Admin", responses(
    (status = 200, description = "All of them", body = AdminModels),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub async fn list(State(state): State<AppState>) -> Json<AdminModels> {
    Json(all(&state))
}

/// Loads a model, and answers when it is ready.
#[utoipa::path(post, path = "/admin/models/load", tag = "Admin", request_body = LoadRequest, responses(
    (status = 200, description = "It is ready", body = AdminModel),
    (status = "default", description = "Why it is not", body = ErrorBody),
))]
pub async fn load(
    State(state): State<AppState>,
    Extension(admin): Extension<Arc<Admin>>,
    Json(request): Json<LoadRequest>,
) -> Result<Json<AdminModel>, ApiError> {
    state.serving()?;
    let wrong = |error: anyhow::Error| ApiError::invalid(crate::terminal::one_line(&format!("{error:#}")), None);
    let spec = LoadSpec {
        name: request.name,
        aliases: request.aliases,
        version: request.version,
        weight: request.weight.unwrap_or(1),
        source: ModelArgs { model: request.path },
        flags: admin.flags.with(&request.engine).map_err(wrong)?,
    };
    // A client that has gone does not end this: the model is there then all the same.
    let loading = state.clone();
    let task = tokio::task::spawn_blocking(move || admin.loader.load(&loading, &spec));
    let served = task.await.map_err(|error| ApiError::internal(error.to_string()))?.map_err(wrong)?;
    let listed = state.registry().list().into_iter().find(|it| it.slot.to_string() == served.id);
    listed
        .map(|it| Json(shown(&it)))
        .ok_or_else(|| ApiError::invalid(format!("{} was unloaded again", served.id), None))
}

/// Unloads a model: no request finds it any more; answers when its running requests have ended and its memory is free.
#[utoipa::path(post, path = "/admin/models/unload", tag = "Admin", request_body = UnloadRequest, responses(
    (status = 200, description = "It is gone", body = Unloaded),
    (status = "default", description = "Why it is not", body = ErrorBody),
))]
pub async fn unload(
    State(state): State<AppState>,
    Json(request): Json<UnloadRequest>,
) -> Result<Json<Unloaded>, ApiError> {
    let seconds = request.timeout.unwrap_or(30.0);
    let patience = Duration::try_from_secs_f64(seconds).ok().filter(|it| it.as_secs() <= 1_000_000);
    let patience = patience
        .ok_or_else(|| ApiError::invalid("timeout must be from 0 to 1000000 seconds".into(), Some("timeout")))?;
    let removed = state.registry().remove(&slot(&request.model));
    let served = removed.ok_or_else(|| {
        let known: Vec<_> = all(&state).models.into_iter().map(|it| it.id).collect();
        let message = format!("there is no {} to unload; there are {}", request.model, known.join(", "));
        ApiError::model_not_found(message)
    })?;
    if let Some(served) = served {
        let end = move || served.llm.handle().shutdown(patience);
        let ended = tokio::task::spawn_blocking(end).await;
        ended.map_err(|error| ApiError::internal(error.to_string()))??;
    }
    Ok(Json(Unloaded { unloaded: request.model }))
}

/// Changes how requests are split between a model's versions.
#[utoipa::path(post, path = "/admin/models/weights", tag = "Admin", request_body = WeightsRequest, responses(
    (status = 200, description = "All models", body = AdminModels),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub async fn weights(
    State(state): State<AppState>,
    Json(request): Json<WeightsRequest>,
) -> Result<Json<AdminModels>, ApiError> {
    let slots = |version: &String| Slot { name: request.model.clone(), version: Some(version.clone()) };
    let known: Vec<_> = state.registry().list().into_iter().map(|it| it.slot).collect();
    // All of them or none.
    if let Some(missing) = request.weights.keys().map(slots).find(|slot| !known.contains(slot)) {
        return Err(ApiError::model_not_found(format!("there is no {missing}")));
    }
    for (version, weight) in &request.weights {
        state.registry().set_weight(&slots(version), *weight);
    }
    Ok(Json(all(&state)))
}

/// What to answer where there is no `--admin`.
pub async fn off() -> ApiError {
    ApiError::status(StatusCode::FORBIDDEN, "the server was started without --admin".into())
}

fn slot(id: &str) -> Slot {
    match id.split_once('@') {
        Some((name, version)) => Slot { name: name.into(), version: Some(version.into()) },
        None => Slot { name: id.into(), version: None },
    }
}
