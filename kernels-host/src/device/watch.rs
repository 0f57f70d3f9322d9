//! Launches that are looked at: to load kernels ahead of their first use, and to time each by itself.
use super::stream::Stream;
use super::{Event, Launch, MIXED};
use crate::Error;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard};

/// What a stream does with launches.
#[derive(Default)]
pub(super) struct Watch {
    mode: AtomicU8,
    /// Entries that [`Stream::prepare`] has met, and the most dynamic shared memory that they are launched with.
    met: Mutex<BTreeMap<&'static str, u32>>,
    /// Launches that [`Stream::profile`] has timed, each with an event behind it.
    timed: Mutex<Vec<(&'static str, Event)>>,
}

const RUN: u8 = 0;
const PREPARE: u8 = 1;
const PROFILE: u8 = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Watch {
    #[inline]
    pub fn is_preparing(&self) -> bool {
        self.mode.load(Ordering::Relaxed) == PREPARE
    }

    #[inline]
    pub fn is_profiling(&self) -> bool {
        self.mode.load(Ordering::Relaxed) == PROFILE
    }

    /// Notes a launch that does not happen.
    pub fn meet(&self, entry: &'static str, launch: Launch) {
        let mut met = lock(&self.met);
        let shared = met.entry(entry).or_default();
        *shared = launch.shared.max(*shared);
    }

    /// Notes a launch that was queued just now.
    pub fn time(&self, entry: &'static str, stream: &Stream) -> Result<(), Error> {
        let event = Event::record(stream)?;
        lock(&self.timed).push((entry, event));
        Ok(())
    }

    fn within<T>(&self, mode: u8, work: impl FnOnce() -> T) -> T {
        self.mode.store(mode, Ordering::Relaxed);
        let done = work();
        self.mode.store(RUN, Ordering::Relaxed);
        done
    }
}

impl Stream {
    /// Loads every kernel that `work` launches, in parallel, and runs none of them: launches, fills and copies between
    /// views do nothing meanwhile. Returns how many kernels it launches. Nothing else may use the stream.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn prepare<E: From<Error>>(&self, work: impl FnOnce(&Stream) -> Result<(), E>) -> Result<usize, E> {
        assert!(!self.is_cpu(), "{MIXED}");
        let done = self.watch().within(PREPARE, || work(self));
        let met = std::mem::take(&mut *lock(&self.watch().met));
        done?;
        let entries: Vec<_> = met.into_iter().collect();
        self.device().load(&entries)?;
        Ok(entries.len())
    }

    /// Runs `work` with an event behind every launch, and returns the entries in their order, each with the milliseconds
    /// since the end of the launch before. The events keep launches from overlapping: the sum is a few percent above what
    /// `work` takes by itself. Nothing else may use the stream.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn profile<E: From<Error>>(
        &self,
        work: impl FnOnce(&Stream) -> Result<(), E>,
    ) -> Result<Vec<(&'static str, f32)>, E> {
        let mut last = Event::record(self)?;
        let done = self.watch().within(PROFILE, || work(self));
        let timed = std::mem::take(&mut *lock(&self.watch().timed));
        done?;
        let mut times = Vec::with_capacity(timed.len());
        for (entry, event) in timed {
            times.push((entry, event.elapsed_ms(&last)?));
            last = event;
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use crate::act::SiluMul;
    use crate::{Buffer, DType, Device, Error, Target};

    #[test]
    fn prepared_launches_do_not_run_and_profiled_ones_are_listed() {
        let device = Device::emulated(Target::Sm80, 1);
        let stream = device.stream().unwrap();
        let mut x = Buffer::new(&device, DType::Bf16, 64).unwrap();
        stream.fill(x.view_mut(), 0).unwrap();
        let mut out = Buffer::new(&device, DType::Bf16, 32).unwrap();
        let mut launch = |stream: &crate::Stream| -> Result<(), Error> {
            SiluMul {
                gate: x.matrix(2, 32).row_range(0, 1),
                up: x.matrix(2, 32).row_range(1, 1),
                out: out.matrix_mut(1, 32),
            }
            .launch(stream)
        };
        assert_eq!(stream.prepare(&mut launch).unwrap(), 1);
        assert!(device.emulation().unwrap().launches.is_empty());
        let times = stream.profile(&mut launch).unwrap();
        assert_eq!(times.len(), 1);
        assert_eq!(device.emulation().unwrap().launches.len(), 1);
        assert!(device.emulation().unwrap().launches.contains_key(times[0].0));
    }
}
