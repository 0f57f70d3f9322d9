//! An engine that fails when it is told to: what a server does then is tested, not hoped.
use engine::engine::Admission;
use engine::scheduler::{Progress, RequestId, SchedulerMetrics, SequenceRequest};
use engine::worker::EngineCore;
use engine::{Error, Result};

/// Works for so many steps, then never again.
pub struct Faulty<E> {
    core: E,
    left: u64,
}

impl<E> Faulty<E> {
    /// Around an engine.
    pub fn new(core: E, steps: u64) -> Self {
        Faulty { core, left: steps }
    }
}

impl<E: EngineCore> EngineCore for Faulty<E> {
    fn admission(&self) -> Admission {
        self.core.admission()
    }
    fn add(&mut self, request: SequenceRequest) -> Result<RequestId> {
        self.core.add(request)
    }
    fn cancel(&mut self, id: RequestId) {
        self.core.cancel(id);
    }
    fn cancel_answer(&mut self, id: RequestId, index: u32) {
        self.core.cancel_answer(id, index);
    }
    fn has_work(&self) -> bool {
        self.core.has_work()
    }
    fn step(&mut self) -> Result<Vec<Progress>> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return Err(Error::Request { problem: "a planted fault (--fault-after-steps)".into() }),
        }
        self.core.step()
    }
    fn metrics(&self) -> SchedulerMetrics {
        self.core.metrics()
    }
}
