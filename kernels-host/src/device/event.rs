//! Points in a stream.
use super::stream::{Queue, Stream};
use super::{MIXED, cuda, emulated};
use crate::Error;

/// A point in a stream, for timing.
pub struct Event(Moment);

enum Moment {
    Cuda(cuda::Event),
    Emulated(emulated::Event),
}

impl Event {
    /// Records a new event. On an emulated device time is the host's.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn record(stream: &Stream) -> Result<Self, Error> {
        match stream.queue() {
            Queue::Cpu => panic!("{MIXED}"),
            Queue::Cuda(queue) => Ok(Event(Moment::Cuda(queue.record()?))),
            Queue::Emulated(_) => Ok(Event(Moment::Emulated(emulated::Event::now()))),
        }
    }

    /// Records it again, at the stream's end now: making one takes the driver longer.
    ///
    /// # Panics
    /// If the stream is of another kind of device.
    pub fn record_again(&mut self, stream: &Stream) -> Result<(), Error> {
        match (&mut self.0, stream.queue()) {
            (Moment::Cuda(event), Queue::Cuda(queue)) => queue.record_into(event),
            (Moment::Emulated(event), Queue::Emulated(_)) => {
                *event = emulated::Event::now();
                Ok(())
            }
            _ => panic!("events of different kinds of device"),
        }
    }

    /// Whether everything queued before it has run.
    pub fn is_done(&self) -> Result<bool, Error> {
        match &self.0 {
            Moment::Cuda(event) => event.is_done(),
            Moment::Emulated(_) => Ok(true),
        }
    }

    /// Waits until everything queued before it has run.
    pub fn wait(&self) -> Result<(), Error> {
        match &self.0 {
            Moment::Cuda(event) => event.wait(),
            Moment::Emulated(_) => Ok(()),
        }
    }

    /// Milliseconds from `earlier` to this event, once both have happened (waits for it).
    ///
    /// # Panics
    /// If the two are of different kinds of device.
    pub fn elapsed_ms(&self, earlier: &Event) -> Result<f32, Error> {
        match (&self.0, &earlier.0) {
            (Moment::Cuda(event), Moment::Cuda(earlier)) => event.elapsed_ms(earlier),
            (Moment::Emulated(event), Moment::Emulated(earlier)) => Ok(event.elapsed_ms(earlier)),
            _ => panic!("events of different kinds of device"),
        }
    }
}
