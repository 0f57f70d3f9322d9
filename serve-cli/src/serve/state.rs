//! What all handlers share.
use super::error::ApiError;
use super::limits::Limits;
use super::metrics::Metrics;
use super::registry::Registry;
use engine::AsyncLlm;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// What all handlers share. Clones are the same.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Arc<Registry>,
    metrics: Metrics,
    limits: Limits,
    /// Models that the command line named are not all loaded yet.
    loading: AtomicBool,
    /// SIGTERM came.
    draining: AtomicBool,
    fault: Mutex<Option<String>>,
    /// Requests whose answers have not all been written.
    in_flight: AtomicUsize,
    /// Told when `in_flight` falls to 0 and when a fault is seen.
    changed: Notify,
}

/// A model that answers.
#[derive(Clone)]
pub struct Served {
    /// What answers call it: its name, with `@VERSION` where it has versions.
    pub id: String,
    /// The model.
    pub llm: AsyncLlm,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the server does, as `/health` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything is there.
    Ready,
    /// Models are being loaded.
    Loading,
    /// The server ends when what runs has ended.
    Draining,
    /// A step takes longer than any should.
    Hung(String),
    /// An engine has failed: the process ends.
    Fault(String),
}

impl AppState {
    /// Without any model yet.
    pub fn new(limits: Limits) -> Self {
        let registry = Arc::new(Registry::default());
        let metrics = Metrics::new(&registry);
        let inner = Inner {
            registry,
            metrics,
            limits,
            loading: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            fault: Mutex::new(None),
            in_flight: AtomicUsize::new(0),
            changed: Notify::new(),
        };
        AppState { inner: Arc::new(inner) }
    }

    /// The model of a request: by its name, `NAME@VERSION`, or the first one if the request names none. Where a model has
    /// several versions, one of them by its weight.
    ///
    /// # Errors
    /// There is no such model (404), or it is not ready (503).
    pub fn model(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        self.serving()?;
        self.inner.registry.pick(name)
    }

    /// Refuses where nothing is answered now.
    ///
    /// # Errors
    /// 503.
    pub fn serving(&self) -> Result<(), ApiError> {
        match self.phase() {
            Phase::Ready | Phase::Hung(_) => Ok(()),
            Phase::Loading => Err(ApiError::unavailable("the model is being loaded".into(), "loading", 2)),
            Phase::Draining => Err(ApiError::unavailable("the server is shutting down".into(), "shutting_down", 5)),
            Phase::Fault(problem) => {
                let problem = format!("the engine has failed and the server ends: {problem}");
                Err(ApiError::unavailable(problem, "engine_fault", 30))
            }
        }
    }

    /// All models.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.inner.registry
    }

    /// Where requests report: `let mut m = state.metrics().request(&served.id, prompt_tokens)`, `m.answer_token(0, at)`,
    /// `m.finish("stop")`.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Keys, sizes and times.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// All models of the command line are loaded.
    pub fn loaded(&self) {
        self.inner.loading.store(false, Ordering::Release);
    }

    /// Takes no more requests. Engines stay open: a request that runs may have more prompts to come.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
    }

    /// Whether the server takes no more requests.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }

    /// What the server does. Looks at every engine's heartbeat.
    pub fn phase(&self) -> Phase {
        let mut hung = None;
        for served in self.inner.registry.served() {
            let health = served.llm.handle().health();
            if let Some(problem) = health.fault {
                let fault = format!("{}: {problem}", served.id);
                self.inner.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
                self.inner.changed.notify_waiters();
            } else if health.busy && health.since_last_step > self.inner.limits.step_timeout {
                let seconds = health.since_last_step.as_secs();
                hung = Some(format!("{}: a step has taken {seconds} s and has not ended", served.id));
            }
        }
        let fault = self.inner.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (fault, hung) {
            (Some(problem), _) => Phase::Fault(problem),
            _ if self.is_draining() => Phase::Draining,
            _ if self.inner.loading.load(Ordering::Acquire) => Phase::Loading,
            (None, Some(problem)) => Phase::Hung(problem),
            (None, None) => Phase::Ready,
        }
    }

    /// A request that is being answered, for as long as the guard lives.
    pub fn begin(&self) -> InFlight {
        self.inner.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }

    /// Returns when no request is being answered, or `patience` is over: then false.
    pub async fn idle(&self, patience: Duration) -> bool {
        let wait = async {
            loop {
                let changed = self.inner.changed.notified();
                if self.inner.in_flight.load(Ordering::Acquire) == 0 {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }
}

/// A request that is being answered.
pub struct InFlight(AppState);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.inner.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.inner.changed.notify_waiters();
        }
    }
}
