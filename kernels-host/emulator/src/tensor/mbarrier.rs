//! `mbarrier`: a barrier in shared memory that counts arrivals and the bytes of asynchronous copies.
//!
//! A phase is over when as many threads have arrived as expected *and* as many bytes have come in as were
//! announced; the next then begins with the same expected count. Phases are numbered from 0, and waiting
//! names a phase by a token of one of its arrivals or by its parity.
//!
//! The state is kept beside the 8 bytes in shared memory, which the manual calls opaque. Faults that a GPU would leave
//! undefined, and most often answers by hanging, are errors here.
use std::ops::RangeInclusive;

/// Bytes of a barrier in shared memory, and its alignment.
pub const BYTES: u32 = 8;
/// Expected arrivals, and the most that may be pending.
pub const ARRIVALS: RangeInclusive<u32> = 1..=(1 << 20) - 1;
/// Bytes that may be announced and not in, or (negative) in and not announced.
pub const TX_LIMIT: i32 = (1 << 20) - 1;

/// A use of a barrier that PTX does not define.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MbarrierError {
    #[error("the barrier is not initialised: call mbarrier.init, and let a block barrier follow, before it is used")]
    Uninitialised,
    #[error("the barrier is initialised already: mbarrier.inval comes before initialising it anew")]
    Initialised,
    #[error("{0} arrivals are outside of 1 to 2^20 - 1")]
    Count(u32),
    #[error(
        "{arriving} arrive in phase {phase}, which waits for {pending} of {expected}: more arrive than mbarrier.init \
         said"
    )]
    TooManyArrivals { arriving: u32, phase: u64, pending: u32, expected: u32 },
    #[error("arrive.noComplete is the last arrival of phase {phase}: a phase must be completed by another form")]
    NoComplete { phase: u64 },
    #[error("{total} bytes announced and not in, in phase {phase}, are more than 2^20 - 1")]
    TooManyBytes { total: i64, phase: u64 },
    #[error(
        "in phase {phase}, {excess} bytes more came in than expect_tx announced, and nobody is left to arrive who \
         could announce them: expect_tx counts a box's full bytes, also those outside of the tensor"
    )]
    UnannouncedBytes { phase: u64, excess: i64 },
    #[error(
        "the token is of phase {token}, the barrier in phase {phase}: only the current phase and the one before can \
         be waited for"
    )]
    StaleToken { token: u64, phase: u64 },
    #[error("parity {0} is neither 0 nor 1")]
    Parity(u32),
    #[error("phase {phase} has {arrived} of {expected} arrivals and {tx} bytes outstanding: the barrier is in use")]
    InUse { phase: u64, arrived: u32, expected: u32, tx: i32 },
}

/// What an arrival gives back: the phase it was in and how many were pending before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    fn new(phase: u64, pending: u32) -> Token {
        Token(phase << 20 | pending as u64)
    }
    /// The opaque value in a `.b64` register.
    pub fn bits(self) -> u64 {
        self.0
    }
    /// The token of a register's value.
    pub fn from_bits(bits: u64) -> Token {
        Token(bits)
    }
    /// `mbarrier.pending_count`: arrivals that were pending before the one that made the token.
    pub fn pending_count(self) -> u32 {
        self.0 as u32 & *ARRIVALS.end()
    }
    fn phase(self) -> u64 {
        self.0 >> 20
    }
}

/// A barrier's place in shared memory: with a barrier or, at first and after [`Mbarrier::invalidate`], without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mbarrier(Option<State>);

/// The state of an initialised barrier; what a dump of a deadlock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Arrivals per phase.
    pub expected: u32,
    /// Arrivals that this phase still waits for.
    pub pending: u32,
    /// Bytes announced and not in; negative where they came in first.
    pub tx: i32,
    /// Number of this phase, from 0.
    pub phase: u64,
    /// Arrivals of this phase that no later one expects.
    pub dropped: u32,
}

impl State {
    /// Neither arrivals nor bytes in this phase yet.
    pub fn is_idle(&self) -> bool {
        self.pending == self.expected && self.tx == 0
    }
}

impl Mbarrier {
    /// `mbarrier.init`: phases of `expected` arrivals.
    pub fn init(&mut self, expected: u32) -> Result<(), MbarrierError> {
        if self.0.is_some() {
            return Err(MbarrierError::Initialised);
        }
        check_count(expected)?;
        self.0 = Some(State { expected, pending: expected, tx: 0, phase: 0, dropped: 0 });
        Ok(())
    }
    /// `mbarrier.inval`: the memory may be used for other things. An error in mid-phase, which would strand
    /// whoever waits.
    pub fn invalidate(&mut self) -> Result<(), MbarrierError> {
        let state = self.state()?;
        if !state.is_idle() {
            let State { expected, pending, tx, phase, .. } = state;
            return Err(MbarrierError::InUse { phase, arrived: expected - pending, expected, tx });
        }
        self.0 = None;
        Ok(())
    }
    /// The state, if initialised.
    pub fn state(&self) -> Result<State, MbarrierError> {
        self.0.ok_or(MbarrierError::Uninitialised)
    }

    /// `mbarrier.arrive` of `count` at once. Whether that ended the phase shows in [`Mbarrier::state`].
    pub fn arrive(&mut self, count: u32) -> Result<Token, MbarrierError> {
        self.update(|state| state.arrive(count))
    }
    /// `mbarrier.arrive.noComplete`.
    pub fn arrive_no_complete(&mut self, count: u32) -> Result<Token, MbarrierError> {
        self.update(|state| {
            let token = state.arrive(count)?;
            if state.pending == 0 { Err(MbarrierError::NoComplete { phase: state.phase }) } else { Ok(token) }
        })
    }
    /// `mbarrier.arrive_drop`: as arriving, and later phases expect as many fewer.
    pub fn arrive_drop(&mut self, count: u32) -> Result<Token, MbarrierError> {
        self.update(|state| {
            let token = state.arrive(count)?;
            state.dropped += count;
            Ok(token)
        })
    }
    /// `mbarrier.arrive.expect_tx`: announces `bytes`, then arrives once.
    pub fn arrive_expect_tx(&mut self, bytes: u32) -> Result<Token, MbarrierError> {
        self.update(|state| {
            state.add_tx(bytes as i64)?;
            state.arrive(1)
        })
    }
    /// `mbarrier.expect_tx`: announces `bytes` of this phase.
    pub fn expect_tx(&mut self, bytes: u32) -> Result<(), MbarrierError> {
        self.update(|state| state.add_tx(bytes as i64))
    }
    /// One more arrival is pending in this phase, as `cp.async.mbarrier.arrive` has it before it arrives itself.
    pub fn expect_arrival(&mut self) -> Result<(), MbarrierError> {
        self.update(|state| {
            check_count(state.pending + 1)?;
            state.pending += 1;
            Ok(())
        })
    }
    /// `mbarrier.complete_tx`, and what an asynchronous copy does when `bytes` of it are in.
    pub fn complete_tx(&mut self, bytes: u32) -> Result<(), MbarrierError> {
        self.update(|state| state.add_tx(-(bytes as i64)))
    }

    /// `mbarrier.test_wait` and `try_wait` of an arrival's phase: whether it is over.
    pub fn test_wait(&self, token: Token) -> Result<bool, MbarrierError> {
        let phase = self.state()?.phase;
        let named = token.phase();
        if named == phase || named + 1 == phase {
            Ok(named != phase)
        } else {
            Err(MbarrierError::StaleToken { token: named, phase })
        }
    }
    /// `mbarrier.test_wait.parity` and `try_wait.parity`: whether the phase of `parity`, the current one or the one
    /// before, is over. On a fresh barrier the phase of parity 1 is.
    pub fn test_wait_parity(&self, parity: u32) -> Result<bool, MbarrierError> {
        let phase = self.state()?.phase;
        if parity > 1 {
            return Err(MbarrierError::Parity(parity));
        }
        Ok(phase % 2 != parity as u64)
    }

    /// Changes the state, or leaves it as it was where `change` fails, and ends the phase if that completes it.
    fn update<T>(&mut self, change: impl FnOnce(&mut State) -> Result<T, MbarrierError>) -> Result<T, MbarrierError> {
        let mut state = self.state()?;
        let result = change(&mut state)?;
        if state.pending == 0 && state.tx < 0 {
            return Err(MbarrierError::UnannouncedBytes { phase: state.phase, excess: -(state.tx as i64) });
        }
        if state.pending == 0 && state.tx == 0 {
            state.phase += 1;
            state.expected -= std::mem::take(&mut state.dropped);
            state.pending = state.expected;
        }
        self.0 = Some(state);
        Ok(result)
    }
}

impl State {
    fn arrive(&mut self, count: u32) -> Result<Token, MbarrierError> {
        check_count(count)?;
        let State { phase, pending, expected, .. } = *self;
        if count > pending {
            return Err(MbarrierError::TooManyArrivals { arriving: count, phase, pending, expected });
        }
        self.pending -= count;
        Ok(Token::new(phase, pending))
    }
    fn add_tx(&mut self, bytes: i64) -> Result<(), MbarrierError> {
        let total = self.tx as i64 + bytes;
        if total < -TX_LIMIT as i64 {
            return Err(MbarrierError::UnannouncedBytes { phase: self.phase, excess: -total });
        }
        if total > TX_LIMIT as i64 {
            return Err(MbarrierError::TooManyBytes { total, phase: self.phase });
        }
        self.tx = total as i32;
        Ok(())
    }
}

fn check_count(count: u32) -> Result<(), MbarrierError> {
    if ARRIVALS.contains(&count) { Ok(()) } else { Err(MbarrierError::Count(count)) }
}

#[cfg(test)]
mod tests {
    use super::MbarrierError as E;
    use super::*;
    use proptest::prelude::*;

    fn barrier(expected: u32) -> Mbarrier {
        let mut barrier = Mbarrier::default();
        barrier.init(expected).unwrap();
        barrier
    }

    /// The full barrier of a ring: arrives with the bytes, is waited for by parity 0, 1, 0, …
    #[test]
    fn a_producer_s_phases() {
        let mut full = barrier(1);
        assert!(full.test_wait_parity(1).unwrap(), "parity 1 is over at once");
        for phase in 0..5 {
            let parity = phase % 2;
            let token = full.arrive_expect_tx(48 << 10).unwrap();
            full.complete_tx(16 << 10).unwrap();
            assert!(!full.test_wait_parity(parity).unwrap() && !full.test_wait(token).unwrap());
            full.complete_tx(32 << 10).unwrap();
            assert!(full.test_wait_parity(parity).unwrap() && full.test_wait(token).unwrap());
            assert!(!full.test_wait_parity(1 - parity).unwrap());
            assert_eq!(full.state().unwrap().phase, phase as u64 + 1);
        }
    }

    #[test]
    fn bytes_may_come_before_their_announcement() {
        let mut full = barrier(2);
        full.complete_tx(100).unwrap();
        assert_eq!(full.state().unwrap().tx, -100);
        full.arrive(1).unwrap();
        full.arrive_expect_tx(100).unwrap();
        assert_eq!(full.state().unwrap().phase, 1);
    }

    #[test]
    fn arrivals_drop_out() {
        let mut empty = barrier(8);
        let token = empty.arrive_drop(3).unwrap();
        assert_eq!((token.pending_count(), Token::from_bits(token.bits())), (8, token));
        empty.arrive_no_complete(4).unwrap();
        assert_eq!(empty.arrive_no_complete(1), Err(E::NoComplete { phase: 0 }));
        empty.arrive(1).unwrap();
        assert_eq!(empty.state(), Ok(State { expected: 5, pending: 5, tx: 0, phase: 1, dropped: 0 }));
    }

    #[test]
    fn misuse_is_an_error_and_changes_nothing() {
        let mut b = Mbarrier::default();
        assert_eq!(b.arrive(1), Err(E::Uninitialised));
        assert_eq!(b.test_wait_parity(0), Err(E::Uninitialised));
        assert_eq!(b.invalidate(), Err(E::Uninitialised));
        assert_eq!(b.init(0), Err(E::Count(0)));
        assert_eq!(b.init(1 << 20), Err(E::Count(1 << 20)));
        b.init(2).unwrap();
        assert_eq!(b.init(2), Err(E::Initialised));
        let before = b.clone();
        assert_eq!(b.arrive(3), Err(E::TooManyArrivals { arriving: 3, phase: 0, pending: 2, expected: 2 }));
        assert_eq!(b.expect_tx(1 << 20), Err(E::TooManyBytes { total: 1 << 20, phase: 0 }));
        assert_eq!(b.complete_tx(1 << 20), Err(E::UnannouncedBytes { phase: 0, excess: 1 << 20 }));
        assert_eq!(b.test_wait_parity(2), Err(E::Parity(2)));
        assert_eq!(b, before);
        let old = b.arrive(1).unwrap();
        assert_eq!(b.invalidate(), Err(E::InUse { phase: 0, arrived: 1, expected: 2, tx: 0 }));
        b.arrive(1).unwrap();
        b.arrive(2).unwrap();
        assert_eq!(b.test_wait(old), Err(E::StaleToken { token: 0, phase: 2 }));
        b.invalidate().unwrap();
        b.init(1).unwrap();
        b.arrive_expect_tx(64).unwrap();
        assert_eq!(b.complete_tx(128), Err(E::UnannouncedBytes { phase: 0, excess: 64 }));
        assert_eq!(b.arrive(1), Err(E::TooManyArrivals { arriving: 1, phase: 0, pending: 0, expected: 1 }));
    }

    proptest! {
        /// However the copies' completions fall between the arrivals, the phase ends with the last event of all.
        #[test]
        fn any_order_of_a_phase_ends_it_once(
            events in prop::collection::vec((1u32..5, 0u32..3000, any::<bool>()), 1..20),
        ) {
            let arrivals: u32 = events.iter().map(|event| event.0).sum();
            let mut b = barrier(arrivals);
            let mut late = Vec::new();
            for &(count, bytes, at_once) in &events {
                prop_assert_eq!(b.state().unwrap().phase, 0);
                b.expect_tx(bytes).unwrap();
                if at_once {
                    b.complete_tx(bytes).unwrap();
                } else if bytes > 0 {
                    late.push(bytes);
                }
                b.arrive(count).unwrap();
            }
            for bytes in late {
                prop_assert_eq!(b.state().unwrap().phase, 0);
                b.complete_tx(bytes).unwrap();
            }
            let next = State { expected: arrivals, pending: arrivals, tx: 0, phase: 1, dropped: 0 };
            prop_assert_eq!(b.state(), Ok(next));
        }
    }
}
