//! An engine on a thread of its own, for requests from any thread or task.
//!
//! The thread drains its inbox at the top of each step. Every request has a mailbox that holds its longest answer, so the
//! engine never waits for a reader; dropping the [`TokenStream`] cancels the request. A failed step or a panic ends every
//! request with [`Error::EngineFault`] and refuses all later ones. No async runtime is needed or preferred.
mod latency;
mod mailbox;
mod snapshot;
#[cfg(test)]
mod tests;
mod thread;

pub use latency::{Latencies, LatencyHistogram};
pub use mailbox::{TokenEvent, TokenStream};
pub use snapshot::{EngineSnapshot, PendingSnapshot};

use crate::engine::{Admission, Engine, Started};
use crate::error::{Error, Result};
use crate::scheduler::{Progress, RequestId, SchedulerMetrics, SequenceRequest, Snapshot};
use mailbox::Writer;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the thread runs: [`Engine`], or in tests something around or instead of it.
pub trait EngineCore: Send + 'static {
    /// Bounds that never change.
    fn admission(&self) -> Admission;
    /// Queues a request.
    ///
    /// # Errors
    /// The request is refused; others are not concerned.
    fn add(&mut self, request: SequenceRequest) -> Result<RequestId>;
    /// Drops a request.
    fn cancel(&mut self, id: RequestId);
    /// Drops one of a request's answers.
    fn cancel_answer(&mut self, id: RequestId, index: u32);
    /// Whether a step would do anything.
    fn has_work(&self) -> bool;
    /// Runs a step.
    ///
    /// # Errors
    /// The engine cannot go on.
    fn step(&mut self) -> Result<Vec<Progress>>;
    /// Requests whose first step was planned during the last step.
    fn take_started(&mut self) -> Vec<(RequestId, Started)> {
        Vec::new()
    }
    /// Counts and state.
    fn metrics(&self) -> SchedulerMetrics;
    /// What sequences and pages do now.
    fn snapshot(&self) -> Snapshot {
        Snapshot { metrics: self.metrics(), ..Snapshot::default() }
    }
}

impl EngineCore for Engine {
    fn admission(&self) -> Admission {
        self.admission()
    }
    fn add(&mut self, request: SequenceRequest) -> Result<RequestId> {
        self.add(request)
    }
    fn cancel(&mut self, id: RequestId) {
        self.cancel(id);
    }
    fn cancel_answer(&mut self, id: RequestId, index: u32) {
        self.cancel_answer(id, index);
    }
    fn has_work(&self) -> bool {
        self.has_work()
    }
    fn step(&mut self) -> Result<Vec<Progress>> {
        self.step()
    }
    fn take_started(&mut self) -> Vec<(RequestId, Started)> {
        self.take_started()
    }
    fn metrics(&self) -> SchedulerMetrics {
        self.metrics()
    }
    fn snapshot(&self) -> Snapshot {
        self.snapshot()
    }
}

/// Requests that may be open at once where nobody says.
pub const MAX_OPEN_REQUESTS: usize = 4096;

/// To an engine's thread. Clones share it; it ends when all handles and streams are gone, or by
/// [`EngineHandle::shutdown`].
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    inbox: Sender<Message>,
}

/// What the thread is told.
enum Message {
    Add {
        ticket: u64,
        request: Box<SequenceRequest>,
        writer: Writer,
    },
    Cancel {
        ticket: u64,
    },
    CancelAnswer {
        ticket: u64,
        index: u32,
    },
    Snapshot(snapshot::Asker),
    /// Ends once nothing is open.
    Close,
    /// Ends all requests, then as `Close`.
    Abort,
}

/// What handles, writers and the thread know in common.
struct Shared {
    admission: Admission,
    max_open: usize,
    /// Requests that were accepted and have not ended.
    open: AtomicUsize,
    state: Mutex<State>,
    /// Told when `open` falls and when the thread ends.
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    tickets: u64,
    closing: bool,
    fault: Option<String>,
    busy: bool,
    beat: Instant,
    metrics: SchedulerMetrics,
}

/// How an engine's thread fares.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Whether it has work.
    pub busy: bool,
    /// Since the last step began or ended, or since the last work if it is idle.
    pub since_last_step: Duration,
    /// Requests that were accepted and have not ended.
    pub open_requests: usize,
    /// Whether it was told to end.
    pub closing: bool,
    /// Why nothing works any more.
    pub fault: Option<String>,
}

impl Health {
    /// Whether the thread works, or could: no fault, and no step that takes longer than `longest_step`.
    pub fn is_live(&self, longest_step: Duration) -> bool {
        self.fault.is_none() && (!self.busy || self.since_last_step <= longest_step)
    }
}

impl EngineHandle {
    /// Starts a thread for an engine. At most `max_open` requests are open at once.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(core: impl EngineCore, max_open: usize) -> Result<Self> {
        let (inbox, messages) = channel();
        let shared = Arc::new(Shared {
            admission: core.admission(),
            max_open,
            open: AtomicUsize::new(0),
            state: Mutex::new(State {
                tickets: 0,
                closing: false,
                fault: None,
                busy: false,
                beat: Instant::now(),
                metrics: core.metrics(),
            }),
            changed: Condvar::new(),
            thread: Mutex::new(None),
        });
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || thread::run(core, messages, &own))
            .map_err(Error::io("start", "the engine's thread".as_ref()))?;
        *shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(EngineHandle { shared, inbox })
    }

    /// Queues a request; its first step is the next one that has room.
    ///
    /// # Errors
    /// The request can never run ([`Error::Request`], [`Error::PromptTooLong`]), or no request is taken now
    /// ([`Error::Overloaded`], [`Error::ShuttingDown`], [`Error::EngineFault`]).
    pub fn submit(&self, request: SequenceRequest) -> Result<TokenStream> {
        self.shared.admission.check(&request)?;
        let ticket = self.shared.ticket()?;
        let most = self.max_len() - request.prompt.len();
        let writer = Writer::new(self.shared.clone(), request.n as u32, request.max_tokens.clamp(1, most));
        let stream = writer.reader(self.inbox.clone(), ticket);
        // If the thread is gone the message comes back and is dropped here: the stream tells why.
        let _ = self.inbox.send(Message::Add { ticket, request: Box::new(request), writer });
        Ok(stream)
    }

    /// Which requests the engine takes.
    pub fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    /// Requests that may be open at once.
    pub fn max_open(&self) -> usize {
        self.shared.max_open
    }

    /// Longest sequence, prompt and answer together.
    pub fn max_len(&self) -> usize {
        self.shared.admission.scheduler.max_len()
    }

    /// How the thread fares.
    pub fn health(&self) -> Health {
        let state = self.shared.state();
        Health {
            busy: state.busy,
            since_last_step: state.beat.elapsed(),
            open_requests: self.shared.open.load(Ordering::Acquire),
            closing: state.closing,
            fault: state.fault.clone(),
        }
    }

    /// The scheduler's counts after the last step.
    pub fn metrics(&self) -> SchedulerMetrics {
        self.shared.state().metrics
    }

    /// What sequences and pages do, as the engine's thread sees it before its next step. It costs the engine nothing but
    /// when somebody asks.
    pub fn snapshot(&self) -> PendingSnapshot {
        let (asker, pending) = snapshot::ask(self.shared.clone());
        // If the thread is gone the message comes back and is dropped here: the future tells why.
        let _ = self.inbox.send(Message::Snapshot(asker));
        pending
    }

    /// Takes no more requests; those that are open go on. The thread ends after the last of them.
    pub fn close(&self) {
        self.shared.state().closing = true;
        let _ = self.inbox.send(Message::Close);
    }

    /// Takes no more requests, gives the open ones `patience` to end, ends the others as they are
    /// ([`FinishReason::Abort`](crate::scheduler::FinishReason::Abort)) and returns when the thread has ended and the engine
    /// is dropped. Not to be called from a task.
    ///
    /// # Errors
    /// [`Error::EngineFault`] if the engine had failed.
    pub fn shutdown(&self, patience: Duration) -> Result<()> {
        self.close();
        let until = Instant::now() + patience;
        let mut state = self.shared.state();
        while self.shared.open.load(Ordering::Acquire) > 0 && state.fault.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let _ = self.inbox.send(Message::Abort);
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Its panics are caught inside and are faults.
            let _ = thread.join();
        }
        match self.shared.state().fault.clone() {
            Some(problem) => Err(Error::EngineFault { problem }),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more request.
    fn ticket(&self) -> Result<u64> {
        let mut state = self.state();
        if let Some(problem) = &state.fault {
            return Err(Error::EngineFault { problem: problem.clone() });
        }
        if state.closing {
            return Err(Error::ShuttingDown);
        }
        let open = self.open.load(Ordering::Acquire);
        if open >= self.max_open {
            return Err(Error::Overloaded { open });
        }
        self.open.fetch_add(1, Ordering::AcqRel);
        state.tickets += 1;
        Ok(state.tickets)
    }

    /// Why the engine is gone.
    fn gone(&self) -> Error {
        match self.state().fault.clone() {
            Some(problem) => Error::EngineFault { problem },
            None => Error::ShuttingDown,
        }
    }

    /// A request has ended.
    fn closed_one(&self) {
        // Under the lock, so that whoever waits for it does not miss it.
        let _state = self.state();
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_all();
    }
}

/// Wakes a thread that waits in [`block_on`].
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let (mut context, mut future) = (Context::from_waker(&waker), pin!(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
