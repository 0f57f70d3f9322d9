//! What the engine's thread tells whoever watches it.
use super::Shared;
use super::latency::Latencies;
use crate::error::{Error, Result};
use crate::scheduler::Snapshot;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// The engine at one moment.
#[derive(Clone, Debug)]
pub struct EngineSnapshot {
    /// Sequences and pages.
    pub scheduler: Snapshot,
    /// How long readers have waited for tokens, since the start.
    pub latencies: Latencies,
}

#[derive(Debug, Default)]
struct Slot {
    answer: Option<Result<EngineSnapshot>>,
    waker: Option<Waker>,
}

/// The thread's end; dropped without an answer, it tells why there is none.
pub(super) struct Asker {
    slot: Arc<Mutex<Slot>>,
    shared: Arc<Shared>,
    answered: bool,
}

/// A snapshot that the engine's thread was asked for: a future.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct PendingSnapshot(Arc<Mutex<Slot>>);

pub(super) fn ask(shared: Arc<Shared>) -> (Asker, PendingSnapshot) {
    let slot = Arc::new(Mutex::new(Slot::default()));
    (Asker { slot: slot.clone(), shared, answered: false }, PendingSnapshot(slot))
}

impl Asker {
    pub fn answer(mut self, snapshot: EngineSnapshot) {
        self.put(Ok(snapshot));
    }

    fn put(&mut self, answer: Result<EngineSnapshot>) {
        self.answered = true;
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.answer = Some(answer);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if !self.answered {
            let error = self.shared.gone();
            self.put(Err(error));
        }
    }
}

impl PendingSnapshot {
    /// Waits for it on this thread.
    ///
    /// # Errors
    /// As the future: the engine is gone ([`Error::EngineFault`], [`Error::ShuttingDown`]).
    pub fn wait(self) -> Result<EngineSnapshot> {
        super::block_on(self)
    }
}

impl Future for PendingSnapshot {
    /// Fails with [`Error::EngineFault`] or [`Error::ShuttingDown`] if the engine is gone.
    type Output = Result<EngineSnapshot, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
