//! stub
use super::error::ApiError;
use engine::AsyncLlm;
use std::sync::Arc;
/// stub
#[derive(Clone)]
pub struct AppState {
    pub served: Arc<Served>,
}
/// stub
pub struct Served {
    pub id: String,
    pub llm: AsyncLlm,
}
impl AppState {
    pub fn model(&self, _name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        Ok(self.served.clone())
    }
}
