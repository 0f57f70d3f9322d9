//! The loop of the engine's thread.
use super::latency::Latencies;
use super::mailbox::Writer;
use super::snapshot::EngineSnapshot;
use super::{EngineCore, Message, Shared};
use crate::error::Result;
use crate::scheduler::{Progress, RequestId};
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// Runs an engine until nobody can ask it any more, it is told to end, or it fails.
pub(super) fn run(core: impl EngineCore, inbox: Receiver<Message>, shared: &Shared) {
    let mut worker = Worker {
        core,
        inbox,
        shared,
        open: HashMap::new(),
        ids: HashMap::new(),
        latencies: Latencies::default(),
        closing: false,
    };
    // After a panic nothing of the engine is used but its destructor.
    let fault = match catch_unwind(AssertUnwindSafe(|| worker.serve())) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(format!("panic: {}", panic_message(panic.as_ref()))),
    };
    let mut state = shared.state();
    (state.closing, state.busy) = (true, false);
    state.fault = fault;
    drop(state);
    // Every writer that is dropped now tells its reader, those of requests that were still in the inbox too.
    let Worker { core, inbox, open, .. } = worker;
    drop((open, inbox));
    shared.changed.notify_all();
    let _ = catch_unwind(AssertUnwindSafe(|| drop(core)));
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

struct Worker<'a, E> {
    core: E,
    inbox: Receiver<Message>,
    shared: &'a Shared,
    /// Requests by ticket.
    open: HashMap<u64, (RequestId, Writer)>,
    ids: HashMap<RequestId, u64>,
    latencies: Latencies,
    closing: bool,
}

impl<E: EngineCore> Worker<'_, E> {
    fn serve(&mut self) -> Result<()> {
        while self.drain_inbox() {
            self.beat(true);
            let progress = self.core.step()?;
            // Before the readers hear of it: who has its last token finds its pages given back.
            self.beat(true);
            let now = Instant::now();
            for (id, started) in self.core.take_started() {
                let ticket = self.ids.get(&id);
                if let Some((_, writer)) = ticket.and_then(|ticket| self.open.get_mut(ticket)) {
                    writer.started(started);
                }
            }
            progress.into_iter().for_each(|progress| self.deliver(progress, now));
        }
        self.beat(false);
        Ok(())
    }

    /// Takes in all messages, and waits for one where there is nothing to do. False at the end.
    fn drain_inbox(&mut self) -> bool {
        loop {
            let message = if self.core.has_work() {
                match self.inbox.try_recv() {
                    Ok(message) => message,
                    Err(_) => return true,
                }
            } else {
                if self.closing && self.open.is_empty() {
                    return false;
                }
                self.beat(false);
                match self.inbox.recv() {
                    Ok(message) => message,
                    Err(_) => return false,
                }
            };
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Add { ticket, request, mut writer } => match self.core.add(*request) {
                Ok(id) => {
                    self.open.insert(ticket, (id, writer));
                    self.ids.insert(id, ticket);
                }
                Err(error) => writer.fail(error),
            },
            Message::Cancel { ticket } => {
                if let Some((id, writer)) = self.remove(ticket) {
                    self.core.cancel(id);
                    writer.abort(id, Instant::now());
                }
            }
            Message::CancelAnswer { ticket, index } => {
                if let Some((id, writer)) = self.open.get_mut(&ticket) {
                    self.core.cancel_answer(*id, index);
                    if writer.close(index) {
                        // Also what has no sequence of its own.
                        self.core.cancel(*id);
                        self.remove(ticket);
                    }
                }
            }
            Message::Snapshot(asker) => {
                asker.answer(EngineSnapshot { scheduler: self.core.snapshot(), latencies: self.latencies.clone() })
            }
            Message::Close => self.closing = true,
            Message::Abort => {
                self.closing = true;
                for (_, (id, writer)) in self.open.drain() {
                    self.core.cancel(id);
                    writer.abort(id, Instant::now());
                }
                self.ids.clear();
            }
        }
    }

    fn remove(&mut self, ticket: u64) -> Option<(RequestId, Writer)> {
        let (id, writer) = self.open.remove(&ticket)?;
        self.ids.remove(&id);
        Some((id, writer))
    }

    fn deliver(&mut self, progress: Progress, now: Instant) {
        // Whoever was cancelled during the step has nobody to tell.
        let Some(&ticket) = self.ids.get(&progress.id) else { return };
        let Some((_, writer)) = self.open.get_mut(&ticket) else { return };
        writer.time(&progress, now, &mut self.latencies);
        if writer.push(progress, now) {
            self.remove(ticket);
        }
    }

    /// Says that the thread lives, and what it does.
    fn beat(&self, busy: bool) {
        let metrics = self.core.metrics();
        let mut state = self.shared.state();
        (state.busy, state.beat, state.metrics) = (busy, Instant::now(), metrics);
    }
}
