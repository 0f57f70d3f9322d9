//! How the process ends: after a signal, when running answers have ended; after an engine's fault, with an error.
use super::state::{AppState, Phase};
use std::io::Write;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often engines are looked at.
const WATCH: Duration = Duration::from_millis(100);
/// What requests of a failed engine, or of one that ends, have to be told so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why the server ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// A signal came, and everything is done or cut.
    Drained,
    /// An engine has failed.
    Fault(String),
}

/// Returns when the server is to end: nobody is being answered any more.
///
/// # Errors
/// Signals cannot be heard.
pub async fn wait(state: &AppState, patience: Duration) -> std::io::Result<Ending> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => 15,
            _ = interrupt.recv() => 2,
        }
    };
    tokio::select! {
        _ = next() => {}
        problem = fault(state) => {
            state.idle(LAST_WORDS).await;
            return Ok(Ending::Fault(problem));
        }
    }
    say(&format!("Shutting down: running answers have {} s to end; a second signal ends them", patience.as_secs()));
    state.drain();
    tokio::select! {
        signal = next() => std::process::exit(128 + signal),
        problem = fault(state) => {
            state.idle(LAST_WORDS).await;
            return Ok(Ending::Fault(problem));
        }
        _ = end_answers(state, patience) => {}
    }
    Ok(Ending::Drained)
}

/// Waits for answers to end, and ends those that do not.
async fn end_answers(state: &AppState, patience: Duration) {
    let all_ended = state.idle(patience).await;
    if !all_ended {
        say("Ending answers that have not ended in time");
    }
    let engines = state.registry().served();
    // Joins the engines' threads, which give memory back.
    let stop = tokio::task::spawn_blocking(move || {
        for served in engines {
            let _ = served.llm.handle().shutdown(Duration::ZERO);
        }
    });
    let _ = tokio::time::timeout(LAST_WORDS, stop).await;
    state.idle(LAST_WORDS).await;
}

/// Returns when an engine has failed.
async fn fault(state: &AppState) -> String {
    loop {
        if let Phase::Fault(problem) = state.phase() {
            return problem;
        }
        tokio::time::sleep(WATCH).await;
    }
}

fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}
