//! Loads models, while the server answers 503 already.
use super::config::LoadSpec;
use super::registry::Slot;
use super::state::{AppState, Served};
use crate::device::describe;
use crate::model;
use crate::terminal::Terminal;
use crate::units;
use anyhow::{Result, bail};
use engine::engine::{Admission, Engine};
use engine::scheduler::{Progress, RequestId, SchedulerMetrics, SequenceRequest, Snapshot};
use engine::worker::{EngineCore, EngineHandle};
use engine::{AsyncLlm, Llm};
use std::io::Write;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What loading needs to know beside the model.
#[derive(Clone, Copy, Debug)]
pub struct Loader {
    /// Requests that may wait.
    pub max_queued: usize,
    /// Steps after which engines fail.
    pub fault_after_steps: Option<u64>,
    /// For progress bars.
    pub terminal: Terminal,
}

impl Loader {
    /// Loads a model and lets requests have it. Takes as long as it takes: not to be called from a task.
    ///
    /// # Errors
    /// The name is taken, or the model cannot be loaded; then nothing is left of it.
    pub fn load(&self, state: &AppState, spec: &LoadSpec) -> Result<Arc<Served>> {
        let start = Instant::now();
        // The name is reserved before the weights are read, and before a download where it is known.
        let mut reserved = match &spec.name {
            Some(_) => Some(reserve(state, spec, "")?),
            None => None,
        };
        let loaded = self.load_into(state, spec, &mut reserved, start);
        if let (Err(_), Some(slot)) = (&loaded, &reserved) {
            state.registry().remove(slot);
        }
        loaded
    }

    fn load_into(
        &self,
        state: &AppState,
        spec: &LoadSpec,
        reserved: &mut Option<Slot>,
        start: Instant,
    ) -> Result<Arc<Served>> {
        let source = spec.source.source_for(spec.flags.load_format)?;
        let slot = match reserved {
            Some(slot) => slot.clone(),
            None => reserved.insert(reserve(state, spec, &source.name())?).clone(),
        };
        let llm = model::load_format(
            &source,
            spec.flags.load_format,
            &spec.flags.device,
            &spec.flags.limits,
            &self.terminal,
        )?;
        let ready = ready_line(&slot, &llm, start);
        let llm = self.spawn(llm, &spec.flags.limits)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let served = Arc::new(Served { id: slot.to_string(), llm, created });
        if !state.registry().ready(&slot, served.clone()) || state.is_draining() {
            served.llm.handle().close();
            bail!("{slot} was unloaded while it was being loaded");
        }
        let _ = std::io::stderr().write_all(ready.as_bytes());
        Ok(served)
    }

    /// As many requests as run and wait.
    fn spawn(&self, llm: Llm, limits: &model::LimitArgs) -> Result<AsyncLlm> {
        let running = limits.max_num_seqs.unwrap_or(engine::engine::EngineConfig::default().max_num_seqs);
        let most = running.saturating_add(self.max_queued);
        let (engine, text) = llm.into_parts();
        let handle = match self.fault_after_steps {
            None => EngineHandle::spawn(engine, most)?,
            Some(steps) => EngineHandle::spawn(Faulty { engine, steps }, most)?,
        };
        Ok(AsyncLlm::over(handle, text))
    }
}

fn reserve(state: &AppState, spec: &LoadSpec, own: &str) -> Result<Slot> {
    let slot = spec.slot(own);
    if let Err(problem) = state.registry().reserve(&slot, &spec.aliases, spec.weight) {
        bail!("{problem}");
    }
    Ok(slot)
}

fn ready_line(slot: &Slot, llm: &Llm, start: Instant) -> String {
    let engine = llm.engine();
    let (device, took) = (describe(engine.runner().device()), units::duration(start.elapsed()));
    let (cache, longest) = (engine.kv_tokens() as u64, engine.admission().scheduler.max_len() as u64);
    let (cache, longest) = (units::grouped(cache), units::grouped(longest));
    format!("Ready: {slot} on {device} after {took}, sequences of {longest} tokens, KV cache of {cache}\n")
}

/// An engine that fails after some steps, for tests of what then happens.
struct Faulty {
    engine: Engine,
    steps: u64,
}

impl EngineCore for Faulty {
    fn admission(&self) -> Admission {
        self.engine.admission()
    }
    fn add(&mut self, request: SequenceRequest) -> engine::Result<RequestId> {
        self.engine.add(request)
    }
    fn cancel(&mut self, id: RequestId) {
        self.engine.cancel(id);
    }
    fn cancel_answer(&mut self, id: RequestId, index: u32) {
        self.engine.cancel_answer(id, index);
    }
    fn has_work(&self) -> bool {
        self.engine.has_work()
    }
    fn step(&mut self) -> engine::Result<Vec<Progress>> {
        let Some(left) = self.steps.checked_sub(1) else {
            return Err(engine::Error::Request { problem: "a fault was planted (--fault-after-steps)".into() });
        };
        self.steps = left;
        self.engine.step()
    }
    fn metrics(&self) -> SchedulerMetrics {
        self.engine.metrics()
    }
    fn snapshot(&self) -> Snapshot {
        self.engine.snapshot()
    }
}
