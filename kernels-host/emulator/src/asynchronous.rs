//! What the decoder makes of mbarriers, bulk copies, TMA and proxy fences.

use crate::instruction::{Address, Operand, Reg, Type};
use crate::tensor::reduce::Reduction;
use crate::tensor::tensor_map::DataType;

/// An operation on an mbarrier or of the async proxy.
#[derive(Clone, Debug)]
pub(crate) enum Async {
    /// `mbarrier.init`.
    Init {
        barrier: Address,
        count: Operand,
    },
    /// `mbarrier.inval`.
    Invalidate {
        barrier: Address,
    },
    /// `mbarrier.arrive`, `mbarrier.arrive_drop`.
    Arrive(Arrive),
    /// `mbarrier.expect_tx`, or `mbarrier.complete_tx`.
    Count {
        barrier: Address,
        bytes: Operand,
        complete: bool,
    },
    /// `mbarrier.test_wait`, `mbarrier.try_wait`.
    Wait(Wait),
    /// `mbarrier.pending_count`.
    PendingCount {
        dst: Reg,
        token: Operand,
    },
    /// `cp.async.mbarrier.arrive`; with `.noinc` the arrival is among those that the barrier expects.
    ArriveAfterCopies {
        barrier: Address,
        expected: bool,
    },
    /// `st.async`: each lane's value goes to shared memory of the cluster and is counted there.
    Store {
        to: Address,
        ty: Type,
        src: Vec<Operand>,
        barrier: Address,
    },
    Transfer(Transfer),
    /// `cp.async.bulk.commit_group`.
    Commit,
    /// `cp.async.bulk.wait_group`; `read` waits for the sources only.
    WaitGroups {
        pending: u32,
        read: bool,
    },
    /// `fence.proxy.async` of shared or global memory, or of both.
    FenceProxy {
        shared: bool,
        global: bool,
    },
    /// `fence.mbarrier_init`.
    FenceInit,
    /// `prefetch.tensormap`.
    PrefetchMap {
        map: Address,
    },
}

/// `mbarrier.arrive` and its variants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrive {
    pub barrier: Address,
    pub dst: Option<Reg>,
    /// Arrivals; one if it is not given.
    pub count: Option<Operand>,
    /// `.expect_tx`.
    pub bytes: Option<Operand>,
    pub no_complete: bool,
    pub drop: bool,
    pub release: bool,
}

/// `mbarrier.test_wait`, `mbarrier.try_wait`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub barrier: Address,
    pub dst: Reg,
    /// A token, or a parity.
    pub phase: Operand,
    pub parity: bool,
    /// `try_wait`: the thread may sleep until the phase is over.
    pub suspends: bool,
    pub acquire: bool,
}

/// A bulk copy.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub route: Route,
    pub far: Far,
}

/// Which way the bytes go.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    /// From global memory to shared memory of the cluster; `blocks` is the mask of a multicast.
    Load { to: Address, barrier: Address, blocks: Option<Operand> },
    /// From shared to global memory.
    Store { from: Address, reduction: Option<Reduce> },
    /// From shared memory of the block to that of another.
    Peer { to: Address, from: Address, barrier: Address, reduction: Option<Reduce> },
    /// From global memory to the L2 cache.
    Prefetch,
}

/// `cp.reduce.async.bulk`: the type is the tensor map's if it is not given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduce {
    pub op: Reduction,
    pub data_type: Option<DataType>,
}

/// What the bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Far {
    /// Consecutive bytes of global memory.
    Bytes { address: Address, bytes: Operand },
    /// As many bytes of shared memory, between blocks.
    Length { bytes: Operand },
    /// A box of a tensor in global memory.
    Box { map: Address, coordinates: Vec<Operand> },
}
