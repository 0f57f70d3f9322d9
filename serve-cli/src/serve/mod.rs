//! `wootz serve`: models by HTTP, with OpenAI's API.
//!
//! One process, one thread for each model's engine ([`engine::worker`]), a Tokio runtime for connections. `app` lists the
//! routes, `limits` is what stands before all of them, `registry` knows the models, `shutdown` how the process ends.
mod access_log;
mod admin;
mod app;
#[cfg(test)]
mod app_tests;
mod args;
mod config;
mod connections;
mod error;
mod health;
mod limits;
mod live;
mod metrics;
mod openai;
mod openapi;
mod page;
mod registry;
mod shutdown;
mod startup;
mod state;

pub use args::ServeArgs;

use crate::terminal::Terminal;
use anyhow::{Context, Result, bail};
use config::LoadSpec;
use connections::Connections;
use shutdown::Ending;
use startup::Loader;
use state::AppState;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpListener;

/// What connections have to write their last bytes, once nothing is being answered.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves until a signal comes or an engine fails.
///
/// # Errors
/// A flag, the configuration or a model is wrong, the address is taken, or an engine has failed.
pub fn run(args: &ServeArgs, terminal: &Terminal) -> Result<ExitCode> {
    let (limits, specs) = (args.limits()?, config::specs(args)?);
    let state = AppState::new(limits);
    let loader = Loader { max_queued: args.max_queued, fault_after_steps: args.fault_after_steps, terminal: *terminal };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(args, state, loader, specs));
    // A model that is still being loaded, or an engine that hangs, does not keep the process.
    runtime.shutdown_background();
    ended
}

async fn serve(args: &ServeArgs, state: AppState, loader: Loader, specs: Vec<LoadSpec>) -> Result<ExitCode> {
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let _ = writeln!(std::io::stderr(), "Listening on http://{}", listener.local_addr()?);
    let app = app::app(&state, admin::Admin { loader, flags: args.model.clone() });
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let connections = Connections { most: args.max_connections, patience: args.client_timeout };
    let server = tokio::spawn(connections.serve(listener, app, async {
        let _ = ended.await;
    }));
    let loading = {
        let state = state.clone();
        tokio::task::spawn_blocking(move || load_all(&state, loader, &specs))
    };
    let ending = tokio::select! {
        ending = shutdown::wait(&state, args.shutdown_timeout) => ending.context("cannot hear signals")?,
        error = load_error(loading) => return Err(error),
    };
    let _ = end.send(());
    let _ = tokio::time::timeout(GOODBYE, server).await;
    match ending {
        Ending::Drained => Ok(ExitCode::SUCCESS),
        Ending::Fault(problem) => bail!("the engine has failed: {problem}"),
    }
}

fn load_all(state: &AppState, loader: Loader, specs: &[LoadSpec]) -> Result<()> {
    for spec in specs {
        loader.load(state, spec)?;
    }
    state.loaded();
    Ok(())
}

/// Why models could not be loaded; never returns if they could.
async fn load_error(loading: tokio::task::JoinHandle<Result<()>>) -> anyhow::Error {
    match loading.await {
        Ok(Ok(())) => std::future::pending().await,
        Ok(Err(error)) => error,
        Err(panic) => anyhow::anyhow!("loading has failed: {panic}"),
    }
}
