//! Global and shared memory with a state per byte.

mod fences;
mod global;
pub(crate) mod mbarriers;
mod operands;
pub(crate) mod order;
mod predecessor;
pub(crate) mod proxy;
mod race;
pub(crate) mod shadow;
mod shared;

pub(crate) use global::{Geometry, Memory};
pub(crate) use operands::CHUNK;
pub(crate) use proxy::{Actors, HoldId};
pub(crate) use race::Who;
pub(crate) use shared::Shared;

/// Nothing has written the byte.
const UNINITIALISED: u8 = 0;
/// The byte has a value.
const WRITTEN: u8 = 1;
/// The byte is the destination of an asynchronous copy that was not waited for.
const IN_FLIGHT: u8 = 2;
/// The byte is part of an mbarrier.
const BARRIER: u8 = 3;

/// Where the window of shared memory lies in the generic address space.
pub(crate) const SHARED_WINDOW: u64 = 0x0100_0000_0000_0000;
/// Where the window of parameters lies in the generic address space.
pub(crate) const PARAM_WINDOW: u64 = 0x0200_0000_0000_0000;
/// Size of either window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;
