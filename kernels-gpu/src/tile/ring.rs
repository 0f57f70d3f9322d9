//! A ring of buffers in shared memory between a producer and consumers that run apart (sm_90).
use crate::prim::{
    mbarrier,
    warp::{LANES, lane_id, sync_warp},
};

/// One side's place in a ring of `STAGES` buffers. Each buffer has two barriers: *full*, which the producer
/// arrives at and copies count into, and *empty*, which every consumer arrives at when it has read the
/// buffer. Both sides visit the stages in the same order.
#[derive(Clone)]
pub struct Ring<const STAGES: u32> {
    barriers: u32,
    stage: u32,
    /// Parity of the number of times around.
    lap: u32,
}

impl<const STAGES: u32> Ring<STAGES> {
    /// Shared memory that the barriers take.
    pub const BYTES: u32 = 2 * STAGES * mbarrier::BYTES;

    /// At the first stage, with the barriers at `barriers` (8-byte aligned).
    #[inline(always)]
    pub fn new(barriers: u32) -> Self {
        Ring { barriers, stage: 0, lap: 0 }
    }
    /// Initialises the barriers for one producer and `consumers` arrivals a stage. One thread, before a block
    /// barrier.
    #[inline(always)]
    pub unsafe fn init(&self, consumers: u32) {
        for stage in 0..STAGES {
            mbarrier::init(self.barriers + stage * mbarrier::BYTES, 1);
            mbarrier::init(self.barriers + (STAGES + stage) * mbarrier::BYTES, consumers);
        }
        mbarrier::fence_init();
    }
    /// The stage's number.
    #[inline(always)]
    pub fn stage(&self) -> u32 {
        self.stage
    }
    /// The stage's full barrier.
    #[inline(always)]
    pub fn full(&self) -> u32 {
        self.barriers + self.stage * mbarrier::BYTES
    }
    /// The stage's empty barrier.
    #[inline(always)]
    pub fn empty(&self) -> u32 {
        self.barriers + (STAGES + self.stage) * mbarrier::BYTES
    }
    /// A consumer waits for the stage's data.
    #[inline(always)]
    pub unsafe fn wait_full(&self) {
        mbarrier::wait(self.full(), self.lap)
    }
    /// The producer waits until all consumers have read what it put there a lap ago. (On the first lap
    /// that is the phase before the first, which is over.)
    #[inline(always)]
    pub unsafe fn wait_empty(&self) {
        mbarrier::wait(self.empty(), self.lap ^ 1)
    }
    /// On to the next stage.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.stage += 1;
        if self.stage == STAGES {
            self.stage = 0;
            self.lap ^= 1;
        }
    }
    /// On by `stages`, which another consumer reads.
    #[inline(always)]
    pub fn skip(&mut self, stages: u32) {
        let stage = self.stage + stages;
        self.stage = stage % STAGES;
        self.lap ^= (stage / STAGES) & 1;
    }
}

/// As [`Ring`], with as many stages as the launcher found room for.
#[derive(Clone)]
pub struct DeepRing {
    barriers: u32,
    stages: u32,
    stage: u32,
    /// Parity of the number of times around.
    lap: u32,
}

impl DeepRing {
    /// At the first of `stages` stages, with the barriers at `barriers` (8-byte aligned, 16 bytes a stage).
    #[inline(always)]
    pub fn new(barriers: u32, stages: u32) -> Self {
        DeepRing { barriers, stages, stage: 0, lap: 0 }
    }
    /// Initialises the barriers for `producers` and `consumers` arrivals a stage. All lanes of a warp, which may use them
    /// from then on; the others after a block barrier. (By one lane 13 stages took 0.3 µs.)
    #[inline(always)]
    pub unsafe fn init(&self, producers: u32, consumers: u32) {
        let mut stage = lane_id();
        while stage < self.stages {
            let full = self.barriers + 2 * stage * mbarrier::BYTES;
            mbarrier::init(full, producers);
            mbarrier::init(full + mbarrier::BYTES, consumers);
            stage += LANES;
        }
        mbarrier::fence_init();
        sync_warp();
    }
    /// The stage's number.
    #[inline(always)]
    pub fn stage(&self) -> u32 {
        self.stage
    }
    /// The stage's full barrier.
    #[inline(always)]
    pub fn full(&self) -> u32 {
        self.barriers + 2 * self.stage * mbarrier::BYTES
    }
    /// The stage's empty barrier.
    #[inline(always)]
    pub fn empty(&self) -> u32 {
        self.full() + mbarrier::BYTES
    }
    /// A consumer waits for the stage's data.
    #[inline(always)]
    pub unsafe fn wait_full(&self) {
        mbarrier::wait(self.full(), self.lap)
    }
    /// The producer waits until all consumers have read what it put there a lap ago, as [`Ring::wait_empty`].
    #[inline(always)]
    pub unsafe fn wait_empty(&self) {
        mbarrier::wait(self.empty(), self.lap ^ 1)
    }
    /// On to the next stage.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.stage += 1;
        if self.stage == self.stages {
            self.stage = 0;
            self.lap ^= 1;
        }
    }
    /// On by `stages`, any number, that this place does not visit itself.
    #[inline(always)]
    pub fn skip(&mut self, stages: u32) {
        self.stage += stages;
        while self.stage >= self.stages {
            self.stage -= self.stages;
            self.lap ^= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DeepRing, Ring};

    #[test]
    fn a_deep_ring_visits_what_a_ring_does() {
        let (mut ring, mut deep) = (Ring::<5>::new(64), DeepRing::new(64, 5));
        for _ in 0..23 {
            assert_eq!((ring.stage(), ring.lap), (deep.stage(), deep.lap));
            assert_eq!((deep.full(), deep.empty()), (64 + 16 * deep.stage(), 72 + 16 * deep.stage()));
            ring.advance();
            deep.advance();
        }
        ring.skip(12);
        deep.skip(12);
        assert_eq!((ring.stage(), ring.lap), (deep.stage(), deep.lap));
    }

    #[test]
    fn parity_flips_once_a_lap() {
        let mut ring = Ring::<3>::new(64);
        let mut seen = [(0, 0); 7];
        for place in &mut seen {
            *place = (ring.stage(), ring.lap);
            assert_eq!(ring.empty() - ring.full(), 24);
            ring.advance();
        }
        assert_eq!(seen, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 0)]);
    }
}
