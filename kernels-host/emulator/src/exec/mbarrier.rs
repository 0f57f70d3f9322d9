//! `mbarrier` instructions, lane by lane.

use super::cluster::{Cluster, OWN_BYTES};
use super::flight::Job;
use super::step::{Executor, LaneFault};
use super::warp::{Warp, Watch};
use super::{Lanes, lanes};
use crate::asynchronous::{Arrive, Async, Wait};
use crate::instruction::{Address, Operand, Space};
use crate::memory::mbarriers::{Arrival, Phase};
use crate::memory::{Shared, Who, proxy};
use crate::tensor::mbarrier::{BYTES, Token};
use crate::{Access, FaultKind};

impl Executor<'_> {
    /// Executes `op` for the lanes in `mask`. Those that must wait sleep; the others go on.
    pub(super) fn asynchronous(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        op: &Async,
        mask: u32,
    ) -> Result<(), LaneFault> {
        match op {
            Async::Init { barrier, count } => {
                let count = warp.get32(*count, &self.env);
                self.each(warp, cluster, *barrier, mask, |shared, lane, at, who| {
                    shared.init_mbarrier(at, count[lane], who)
                })?;
            }
            Async::Invalidate { barrier } => {
                self.each(warp, cluster, *barrier, mask, |shared, _, at, who| shared.invalidate_mbarrier(at, who))?;
            }
            Async::Arrive(arrive) => self.arrive(warp, cluster, arrive, mask)?,
            Async::Count { barrier, bytes, complete } => {
                let bytes = warp.get32(*bytes, &self.env);
                self.each(warp, cluster, *barrier, mask, |shared, lane, at, who| match complete {
                    true => shared.mbarriers.complete_tx(at, bytes[lane], None),
                    false => shared.mbarriers.expect_tx(at, bytes[lane], who),
                })?;
            }
            Async::Wait(wait) => return self.wait(warp, cluster, wait, mask),
            Async::PendingCount { dst, token } => {
                let tokens = warp.get64(*token, &self.env);
                warp.set32(*dst, mask, &super::map(&tokens, |bits| Token::from_bits(bits).pending_count()));
            }
            Async::ArriveAfterCopies { barrier, expected } => {
                self.arrive_after_copies(warp, cluster, *barrier, *expected, mask)?;
            }
            Async::FenceProxy { shared, global } => {
                let warps = warp.identity.cluster_warps();
                if *shared {
                    proxy::fence_clock(&mut warp.clock, warps);
                    cluster.own(warp).shared.fence_proxy(warp.slot, warp.meetings, mask, warp.live);
                }
                if *global {
                    let (history, number) = (&mut self.memory.history, warp.identity.cluster_number);
                    let instants = history.len();
                    history.fences.add((number, warp.slot), &warp.clock[..warps as usize], instants);
                }
                warp.advance();
            }
            Async::FenceInit => cluster.own(warp).shared.mbarriers.fence_init(warp.slot),
            Async::Store { to, ty, src, barrier } => {
                self.store_async(warp, cluster, [*to, *barrier], (*ty, src), mask)?;
            }
            Async::Transfer(transfer) => self.transfer(warp, cluster, transfer, mask)?,
            Async::Commit => cluster.flight.commit(warp.slot, mask),
            Async::WaitGroups { pending, read } => self.wait_groups(warp, cluster, *pending, *read, mask)?,
            Async::PrefetchMap { map } => {
                let maps = self.addresses(warp, *map);
                for lane in lanes(mask) {
                    self.tensor_map(map.space, maps[lane]).map_err(|kind| LaneFault::at(lane, kind))?;
                }
            }
        }
        warp.pc += 1;
        Ok(())
    }

    /// Addresses in `shared::cluster`; a fault for a lane of `mask` whose address is elsewhere.
    pub(super) fn shared_addresses(&self, warp: &Warp, address: Address, mask: u32) -> Result<Lanes<u64>, LaneFault> {
        let mut found = self.addresses(warp, address);
        for lane in lanes(mask) {
            let (space, at) = super::access::resolve(address.space, found[lane]);
            if !matches!(space, Space::Shared | Space::Cluster) {
                let what = format!("{:#x} is not an address of shared memory", found[lane]);
                return Err(LaneFault::at(lane, FaultKind::Mbarrier { what }));
            }
            found[lane] = at;
        }
        Ok(found)
    }

    fn each(
        &mut self,
        warp: &Warp,
        cluster: &mut Cluster,
        barrier: Address,
        mask: u32,
        mut action: impl FnMut(&mut Shared, usize, u64, Who<'_>) -> Result<(), FaultKind>,
    ) -> Result<(), LaneFault> {
        let addresses = self.shared_addresses(warp, barrier, mask)?;
        for lane in lanes(mask) {
            let who = self.who(warp, lane);
            let fault = |kind| LaneFault::at(lane, kind);
            let (crew, at) = cluster.reach(Access::Atomic, addresses[lane], BYTES as usize, who).map_err(fault)?;
            action(&mut crew.shared, lane, at, who).map_err(fault)?;
        }
        Ok(())
    }

    /// Addresses of barriers that must be the block's own.
    fn own_addresses(&self, warp: &Warp, barrier: Address, mask: u32) -> Result<Lanes<u64>, LaneFault> {
        let mut found = self.shared_addresses(warp, barrier, mask)?;
        for lane in lanes(mask) {
            let window = found[lane] / OWN_BYTES;
            if window != 0 && window != u64::from(warp.identity.rank) + 1 {
                let what = format!("{:#x} is in another block: a thread waits on barriers of its own", found[lane]);
                return Err(LaneFault::at(lane, FaultKind::Mbarrier { what }));
            }
            found[lane] %= OWN_BYTES;
        }
        Ok(found)
    }

    fn arrive(&mut self, warp: &mut Warp, cluster: &mut Cluster, arrive: &Arrive, mask: u32) -> Result<(), LaneFault> {
        let operand = |warp: &Warp, operand: Option<Operand>| operand.map(|operand| warp.get32(operand, &self.env));
        let (counts, bytes) = (operand(warp, arrive.count), operand(warp, arrive.bytes));
        let mut tokens = [0; 32];
        self.each(warp, cluster, arrive.barrier, mask, |shared, lane, at, who| {
            let count = counts.map_or(1, |counts| counts[lane]);
            let arrival = match bytes {
                Some(bytes) => Arrival::ExpectTx(bytes[lane], arrive.drop),
                None if arrive.no_complete => Arrival::NoComplete(count),
                None if arrive.drop => Arrival::Drop(count),
                None => Arrival::Plain(count),
            };
            tokens[lane] = shared.mbarriers.arrive(at, arrival, arrive.release, who)?.bits();
            Ok(())
        })?;
        if let Some(dst) = arrive.dst {
            warp.set64(dst, mask, &tokens);
        }
        warp.advance();
        Ok(())
    }

    fn wait(&mut self, warp: &mut Warp, cluster: &mut Cluster, wait: &Wait, mask: u32) -> Result<(), LaneFault> {
        let phases = warp.get64(wait.phase, &self.env);
        let addresses = self.own_addresses(warp, wait.barrier, mask)?;
        let mbarriers = &mut cluster.own(warp).shared.mbarriers;
        let (mut over, mut watch) = (0, None);
        for lane in lanes(mask) {
            let phase = match wait.parity {
                true => Phase::Parity(phases[lane] as u32),
                false => Phase::Token(Token::from_bits(phases[lane])),
            };
            let at = addresses[lane];
            let found = mbarriers.test(at, phase, self.who(warp, lane));
            match found.map_err(|kind| LaneFault::at(lane, kind))? {
                true => over |= 1 << lane,
                false => {
                    watch.get_or_insert(Watch { barrier: at as u32, phase });
                }
            }
        }
        if wait.acquire {
            for lane in lanes(over) {
                mbarriers.acquire(addresses[lane], &mut warp.clock);
            }
        }
        warp.set_pred(wait.dst, mask, over);
        match watch {
            Some(watch) if wait.suspends && !warp.expired => {
                warp.sleep(mask & !over, watch);
                // Where it goes on, it is counted.
                self.uncount(warp.pc);
            }
            Some(_) => {
                warp.expired = false;
                warp.look(1);
            }
            None => warp.expired = false,
        }
        warp.pc += 1;
        Ok(())
    }

    fn arrive_after_copies(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        barrier: Address,
        expected: bool,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let addresses = self.own_addresses(warp, barrier, mask)?;
        for lane in lanes(mask) {
            let who = self.who(warp, lane);
            let at = addresses[lane];
            let fault = |kind| LaneFault::at(lane, kind);
            if !expected {
                cluster.own(warp).shared.mbarriers.expect_arrival(at, who).map_err(fault)?;
            }
            let mine = |copy: &super::copy::Copy| copy.lane == lane as u32;
            let copies = warp.copies.pending.iter().copied().filter(mine).collect();
            warp.copies.pending.retain(|copy| !mine(copy));
            let job = Job::Arrive { copies, barrier: at };
            cluster.flight.push(warp, lane, self.line(warp.pc), (warp.identity.rank, job), 1);
        }
        Ok(())
    }
}
