//! What one request hears: a queue without a lock-step between the engine and its reader.
use super::latency::Latencies;
use super::{Message, Shared};
use crate::engine::Started;
use crate::error::{Error, Result};
use crate::scheduler::{FinishReason, Progress, RequestId};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// A step's progress of a request, and when the engine had it.
#[derive(Clone, Debug)]
pub struct TokenEvent {
    /// The token, and whether its answer ends.
    pub progress: Progress,
    /// The end of the step: later reading does not change it.
    pub at: Instant,
    /// How the request began.
    pub started: Option<Started>,
}

/// Grows with what was not read yet; at most the request's longest answers, so that nobody ever waits for room.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<TokenEvent>,
    /// Nothing comes any more, but for the error.
    ended: bool,
    error: Option<Error>,
    reader: Option<Waker>,
}

type Mailbox = Arc<Mutex<Queue>>;

fn locked<T>(mailbox: &Mutex<Queue>, act: impl FnOnce(&mut Queue) -> T) -> T {
    act(&mut mailbox.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The engine's end. Dropped before all answers have ended, it tells the reader why the engine is gone.
pub(super) struct Writer {
    mailbox: Mailbox,
    shared: Arc<Shared>,
    /// Answers that have not ended.
    open: Vec<u32>,
    capacity: usize,
    submitted: Instant,
    started: Option<Started>,
    /// When each answer's last token came.
    last: Vec<Option<Instant>>,
}

impl Writer {
    /// For a request of so many answers of at most so many tokens each.
    pub fn new(shared: Arc<Shared>, answers: u32, tokens: usize) -> Self {
        let capacity = (answers as usize).saturating_mul(tokens.saturating_add(1));
        let last = vec![None; answers as usize];
        Writer {
            mailbox: Mailbox::default(),
            shared,
            open: (0..answers).collect(),
            capacity,
            submitted: Instant::now(),
            started: None,
            last,
        }
    }

    /// The reader's end.
    pub fn reader(&self, inbox: Sender<Message>, ticket: u64) -> TokenStream {
        TokenStream { mailbox: self.mailbox.clone(), inbox, ticket, ended: false }
    }

    /// Queues an event; true if all answers have ended.
    pub fn push(&mut self, progress: Progress, at: Instant) -> bool {
        if progress.finished.is_some() {
            self.open.retain(|index| *index != progress.index);
        }
        let (ended, started) = (self.open.is_empty(), self.started);
        self.act(|queue| {
            queue.events.push_back(TokenEvent { progress, at, started });
            queue.ended = ended;
        });
        ended
    }

    /// The request's first step was planned.
    pub fn started(&mut self, started: Started) {
        self.started = Some(started);
    }

    /// Counts the wait for a token. Of several answers only the first one's first token is the request's first.
    pub fn time(&mut self, progress: &Progress, at: Instant, latencies: &mut Latencies) {
        if progress.token.is_none() {
            return;
        }
        let first = self.last.iter().all(Option::is_none);
        let Some(last) = self.last.get_mut(progress.index as usize) else { return };
        match last.replace(at) {
            Some(last) => latencies.inter_token.add(at.saturating_duration_since(last)),
            None if first => latencies.first_token.add(at.saturating_duration_since(self.submitted)),
            None => {}
        }
    }

    /// Ends the answers that are open.
    pub fn abort(mut self, id: RequestId, at: Instant) {
        for index in self.open.clone() {
            let finished = Some(FinishReason::Abort);
            let _ = self
                .push(Progress { id, index, token: None, logprobs: None, finished, score: None, embedding: None }, at);
        }
    }

    /// Ends one answer without a word: its reader has asked for that. True if all have ended.
    pub fn close(&mut self, index: u32) -> bool {
        self.open.retain(|open| *open != index);
        let ended = self.open.is_empty();
        self.act(|queue| queue.ended = ended);
        ended
    }

    /// Ends the request with an error.
    pub fn fail(&mut self, error: Error) {
        self.open.clear();
        self.act(|queue| {
            queue.ended = true;
            queue.error = Some(error);
        });
    }

    /// Changes the queue and wakes the reader, in this order and not under the lock.
    fn act(&self, change: impl FnOnce(&mut Queue)) {
        let (waker, len) = locked(&self.mailbox, |queue| {
            change(queue);
            (queue.reader.take(), queue.events.len())
        });
        debug_assert!(len <= self.capacity, "{len} events for a request of at most {}", self.capacity);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.open.is_empty() {
            self.fail(self.shared.gone());
        }
        self.shared.closed_one();
    }
}

/// A request's tokens as they come. Dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping the stream cancels the request"]
pub struct TokenStream {
    mailbox: Mailbox,
    inbox: Sender<Message>,
    ticket: u64,
    ended: bool,
}

impl TokenStream {
    /// The next event; `None` after the last.
    ///
    /// # Errors
    /// The request could not be queued, or the engine has failed; nothing comes after that.
    pub async fn next(&mut self) -> Option<Result<TokenEvent>> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// As [`TokenStream::next`], for threads.
    ///
    /// # Errors
    /// As [`TokenStream::next`].
    pub fn recv(&mut self) -> Option<Result<TokenEvent>> {
        super::block_on(self.next())
    }

    /// Ends one of the request's `n` answers: nothing more comes of it once the engine has heard of it.
    pub fn cancel_answer(&self, index: u32) {
        let _ = self.inbox.send(Message::CancelAnswer { ticket: self.ticket, index });
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<TokenEvent>>> {
        let next = locked(&self.mailbox, |queue| {
            if let Some(event) = queue.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if queue.ended {
                return Poll::Ready(queue.error.take().map(Err));
            }
            // The waker of the task that asked last counts.
            match &mut queue.reader {
                Some(reader) => reader.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        });
        self.ended = matches!(next, Poll::Ready(None | Some(Err(_))));
        next
    }
}

impl futures_core::Stream for TokenStream {
    type Item = Result<TokenEvent>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(cx)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        // The engine ignores those that it has closed itself.
        if !self.ended {
            let _ = self.inbox.send(Message::Cancel { ticket: self.ticket });
        }
    }
}
