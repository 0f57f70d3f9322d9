//! Where a step's time goes.
use crate::error::Result;
use crate::runner::SubmitTimes;
use kernels_host::Event;
use std::time::Duration;

/// How long loading took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// Reading or making the weights.
    pub weights: Duration,
    /// Buffers, kernels, KV cache and graphs.
    pub ready: Duration,
    /// Bytes by which the GPU's free memory fell, as the driver says; `None` on the CPU.
    pub used: Option<usize>,
}

/// Times of one step. All but `wait` is work of the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Rows.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Of these, those that decode; the others are chunks of prompts.
    pub decodes: usize,
    /// Sequences of the graph that ran; `None`: kernel by kernel.
    pub graph: Option<usize>,
    /// The scheduler's plan.
    pub plan: Duration,
    /// Packing the inputs and queueing their copies.
    pub upload: Duration,
    /// Queueing the kernels.
    pub launch: Duration,
    /// Waiting for the device, and reading what came.
    pub wait: Duration,
    /// The scheduler's commit.
    pub commit: Duration,
    /// What the device did; `None` on the CPU.
    pub device: Option<DeviceTimes>,
    /// Milliseconds of every kernel up to the logits, where [`Engine::profile_next_step`](crate::engine::Engine) asked.
    pub kernels: Option<Vec<(&'static str, f32)>>,
}

/// Milliseconds since the first traced step began on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceTimes {
    /// The copies of the inputs begin.
    pub start: f32,
    /// The kernels begin.
    pub kernels: f32,
    /// The last kernel has ended.
    pub end: f32,
}

impl StepTimes {
    /// What is known when a step was queued.
    pub(crate) fn of(times: SubmitTimes) -> Self {
        let SubmitTimes { plan, upload, launch, graph, kernels, .. } = times;
        StepTimes { plan, upload, launch, graph, kernels, ..StepTimes::default() }
    }

    /// The host's work.
    pub fn host(&self) -> Duration {
        self.plan + self.upload + self.launch + self.commit
    }
}

/// Times of the steps so far, with the events that say the device's.
#[derive(Default)]
pub(crate) struct Trace(Vec<(StepTimes, Option<[Event; 3]>)>);

impl Trace {
    pub fn push(&mut self, times: StepTimes, events: Option<[Event; 3]>) {
        self.0.push((times, events));
    }

    /// Reads the events.
    pub fn finish(self) -> Result<Vec<StepTimes>> {
        let mut first: Option<Event> = None;
        let mut steps = Vec::with_capacity(self.0.len());
        for (mut times, events) in self.0 {
            if let Some([start, kernels, end]) = events {
                let since = first.as_ref().unwrap_or(&start);
                let at = |event: &Event| event.elapsed_ms(since);
                let begin = if first.is_some() { at(&start)? } else { 0.0 };
                times.device = Some(DeviceTimes { start: begin, kernels: at(&kernels)?, end: at(&end)? });
                first.get_or_insert(start);
            }
            steps.push(times);
        }
        Ok(steps)
    }
}
