//! stub
mod error;
mod openai;
mod state;
use crate::device::DeviceArgs;
use crate::model::{self, LimitArgs, ModelArgs};
use crate::terminal::Terminal;
use anyhow::Result;
use axum::{Router, routing::get};
use clap::Args;
use std::process::ExitCode;
use std::sync::Arc;
/// stub
#[derive(Args, Debug)]
#[command(after_help = "Example: stub")]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[arg(long, default_value_t = 8000)]
    port: u16,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
}
/// stub
pub fn run(args: &ServeArgs, terminal: &Terminal) -> Result<ExitCode> {
    let source = args.model.source()?;
    let llm = model::load(&source, &args.device, &args.limits, terminal)?;
    let id = llm.name().to_owned();
    let llm = engine::AsyncLlm::new(llm)?;
    let state = state::AppState { served: Arc::new(state::Served { id, llm }) };
    let app: Router = Router::new()
        .merge(openai::chat::routes())
        .merge(openai::completions::routes())
        .merge(openai::embeddings::routes())
        .merge(openai::models::routes())
        .merge(openai::responses::routes())
        .merge(openai::tokenize::routes())
        .route("/health", get(|| async { "ok" }))
        .with_state(state);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", args.port)).await?;
        eprintln!("Listening on http://{}", listener.local_addr()?);
        axum::serve(listener, app).await?;
        Ok(ExitCode::SUCCESS)
    })
}
