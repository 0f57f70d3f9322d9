//! The page at `/`: a chat and the engine, live. Three files inside the binary; nothing is loaded from elsewhere.
use super::state::AppState;
use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::IntoResponse;
use axum::routing::get;

/// What a browser may do with the page: load its own two files, ask this server, and nothing else. Inline scripts and
/// styles are not allowed either, so text of a model can never become code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and its files. They hold no secrets: they are served without an API key, and the page asks for it.
pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", include_str!("index.html")) }))
        .route("/page.css", get(|| async { file("text/css; charset=utf-8", include_str!("page.css")) }))
        .route("/page.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("page.js")) }))
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // The next version of the server has another page.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

#[cfg(test)]
mod tests {
    const PAGE: &str = include_str!("index.html");
    const SCRIPT: &str = include_str!("page.js");

    #[test]
    fn the_script_finds_what_it_looks_for() {
        let ids = SCRIPT.split("$(\"").skip(1).filter_map(|rest| rest.split('"').next());
        for id in ids {
            assert!(PAGE.contains(&format!("id=\"{id}\"")), "no element {id}");
        }
    }

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        for forbidden in ["<script>", " style=", " onclick=", "https://", "innerHTML", "eval("] {
            assert!(!PAGE.contains(forbidden) && !SCRIPT.contains(forbidden), "{forbidden}");
        }
    }
}
