//! What stands before every handler: request ids, API keys, sizes, errors in OpenAI's shape, and the access log.
use super::access_log::{Entry, Tracked};
use super::connections::OneTooMany;
use super::error::ApiError;
use super::state::AppState;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Keys, sizes and times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Any of these opens; none are needed if there are none.
    pub api_keys: Vec<String>,
    /// Whose pages may ask from a browser: origins, or `*` for all.
    pub allowed_origins: Vec<HeaderValue>,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// How long a request's body may say nothing.
    pub client_timeout: Duration,
    /// Silence after which a stream of events has a comment: a queue and a long prefill say nothing else.
    pub sse_keep_alive: Duration,
    /// A step that takes longer hangs.
    pub step_timeout: Duration,
    /// A line on stderr for each request.
    pub access_log: bool,
    /// Whether /admin is there.
    pub admin: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            api_keys: Vec::new(),
            allowed_origins: Vec::new(),
            max_body: 32 << 20,
            client_timeout: Duration::from_secs(75),
            sse_keep_alive: Duration::from_secs(10),
            step_timeout: Duration::from_secs(120),
            access_log: false,
            admin: false,
        }
    }
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long a browser may remember that it may ask.
const LEAVE: Duration = Duration::from_secs(3600);
/// Longer ids of clients are replaced.
const LONGEST_ID: usize = 128;
/// Of an error's text that becomes a message.
const LONGEST_MESSAGE: usize = 64 << 10;

/// The client's id, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let fits = |id: &&HeaderValue| (1..=LONGEST_ID).contains(&id.len()) && id.to_str().is_ok();
    if let Some(id) = headers.get(X_REQUEST_ID).filter(fits) {
        return id.clone();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let id = format!("req_{now:016x}{:08x}", COUNT.fetch_add(1, Ordering::Relaxed) as u32);
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("req"))
}

/// What anybody may ask: probes and scrapers have no keys, and the page asks for one.
fn is_open(path: &str) -> bool {
    matches!(
        path,
        "/" | "/page.css" | "/page.js" | "/favicon.ico" | "/health" | "/metrics" | "/version" | "/openapi.json"
    )
}

/// Whether a key opens. Takes as long whatever the key is.
fn authorized(headers: &HeaderMap, keys: &[String]) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = match given.split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key,
        _ => return false,
    };
    let same = |key: &String| {
        let key = key.as_bytes();
        let differ = (0..given.len()).fold(0, |differ, i| differ | (given[i] ^ key.get(i).copied().unwrap_or(0)));
        key.len() == given.len() && differ == 0
    };
    keys.iter().fold(false, |found, key| found | same(key))
}

/// What lets pages of `origins` ask from a browser, which asks for leave first, without a key.
pub fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let all = origins.iter().any(|origin| origin == "*");
    let origins = if all { AllowOrigin::any() } else { AllowOrigin::list(origins.iter().cloned()) };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([X_REQUEST_ID, header::RETRY_AFTER])
        .max_age(LEAVE)
}

/// The middleware around all routes.
pub async fn front(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let entry = Entry::new(&state, peer, &request, &id);
    // What is only looked at does not keep the server from ending.
    let path = request.uri().path();
    let guard = (!is_open(path) && path != "/live").then(|| state.begin());
    let head = request.method() == Method::HEAD;
    let answer = match admit(&state, &request) {
        Ok(()) => match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => in_shape(response).await,
            Err(_) => {
                ApiError::internal("the server has a bug: this request's handler panicked".into()).into_response()
            }
        },
        Err(error) => error.into_response(),
    };
    let (mut parts, body) = answer.into_parts();
    parts.headers.insert(X_REQUEST_ID, id);
    let body = if head {
        // GET's length, not that of nothing.
        if let Some(length) = body.size_hint().exact() {
            parts.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        Body::empty()
    } else {
        body
    };
    let body = Tracked::new(body, entry.answered(parts.status), guard);
    Response::from_parts(parts, Body::new(body))
}

/// Whether a request may be looked at.
fn admit(state: &AppState, request: &Request) -> Result<(), ApiError> {
    let limits = state.limits();
    let path = request.uri().path();
    if is_open(path) {
        return Ok(());
    }
    if let Some(crowd) = request.extensions().get::<OneTooMany>() {
        let most = crowd.most;
        let message =
            format!("{most} connections are open, as many as may be; the operator can raise --max-connections");
        return Err(ApiError::unavailable(message, "too_many_connections", 1));
    }
    if !limits.api_keys.is_empty() && !authorized(request.headers(), &limits.api_keys) {
        return Err(ApiError::unauthorized());
    }
    // Before anything of it is sent.
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limits.max_body as u64) {
        return Err(too_large(limits.max_body));
    }
    if path.starts_with("/admin/") { Ok(()) } else { state.serving() }
}

fn too_large(most: usize) -> ApiError {
    let message = format!("the body is larger than {most} bytes; the operator can raise --max-body-size");
    ApiError::status(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large")
}

/// Refusals that are not JSON come from axum: their text becomes a message.
async fn in_shape(response: Response) -> Response {
    let status = response.status();
    let json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !(status.is_client_error() || status.is_server_error()) || json {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, LONGEST_MESSAGE).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let error = match status {
        StatusCode::NOT_FOUND => ApiError::status(status, or(text, "there is nothing at this path")),
        StatusCode::METHOD_NOT_ALLOWED => {
            // axum adds the Allow header later.
            ApiError::status(status, "this method is not allowed here; the Allow header names those that are".into())
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = "the body is too large; the operator can raise --max-body-size".to_owned();
            ApiError::status(status, message).code("request_too_large")
        }
        // JSON that is well-formed and wrong: OpenAI makes no difference.
        StatusCode::UNPROCESSABLE_ENTITY => ApiError::status(StatusCode::BAD_REQUEST, text),
        _ => ApiError::status(status, or(text, status.canonical_reason().unwrap_or("the request was refused"))),
    };
    let mut response = error.into_response();
    if let Some(allow) = parts.headers.get(header::ALLOW) {
        response.headers_mut().insert(header::ALLOW, allow.clone());
    }
    response
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_open() {
        let keys = ["secret".to_owned(), "other".to_owned()];
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
        assert!(authorized(&with("Bearer secret"), &keys) && authorized(&with("bearer other"), &keys));
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "Bearer", "secret", "Basic secret", ""] {
            assert!(!authorized(&with(wrong), &keys), "{wrong}");
        }
        assert!(!authorized(&HeaderMap::new(), &keys));
    }

    #[test]
    fn ids_are_kept_or_made() {
        let with = |value: &str| HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_str(value).unwrap())]);
        assert_eq!(request_id(&with("abc")), "abc");
        for wrong in ["", &"x".repeat(LONGEST_ID + 1)] {
            assert_ne!(request_id(&with(wrong)), wrong);
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
