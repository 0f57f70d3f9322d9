//! `cp.async`: copies that land some time between their issue and the wait for them.

use crate::instruction::Operand;

/// Copies in flight of a warp's lanes.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub pending: Vec<Copy>,
    /// Groups that each lane has committed.
    pub committed: [u32; 32],
}

/// One lane's copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub lane: u32,
    /// The group that the lane's next commit closes.
    pub group: u32,
    pub to: u64,
    pub from: u64,
    pub bytes: u32,
    /// Bytes that come from memory; the rest are zeros.
    pub from_bytes: u32,
    /// The data have arrived; only the lane's wait makes that certain to the program.
    pub landed: bool,
    /// Position of the instruction, for faults.
    pub pc: u32,
}

/// Operands of `cp.async`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyShape {
    pub bytes: u32,
    pub from_bytes: Option<Operand>,
}

impl Copies {
    /// Closes the group of each lane in `mask`.
    pub fn commit(&mut self, mask: u32) {
        for lane in super::lanes(mask) {
            self.committed[lane] += 1;
        }
    }

    /// Takes the copies that the lanes in `mask` wait for: all but those in the newest `pending`
    /// groups, or every one.
    pub fn take(&mut self, mask: u32, pending: Option<u32>) -> Vec<Copy> {
        let committed = self.committed;
        let waited = |copy: &Copy| {
            let closed = committed[copy.lane as usize];
            mask >> copy.lane & 1 != 0 && pending.is_none_or(|pending| copy.group + pending < closed)
        };
        let taken = self.pending.iter().copied().filter(waited).collect();
        self.pending.retain(|copy| !waited(copy));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_takes_all_but_the_newest_groups() {
        let copy = |lane, group| Copy { lane, group, to: 0, from: 0, bytes: 16, from_bytes: 16, landed: false, pc: 0 };
        let mut copies = Copies::default();
        copies.pending.push(copy(0, 0));
        copies.commit(1);
        copies.pending.push(copy(0, 1));
        copies.pending.push(copy(1, 0));
        copies.commit(3);
        copies.pending.push(copy(0, 2));
        assert_eq!(copies.take(1, Some(2)).len(), 0);
        assert_eq!(copies.take(1, Some(1)).len(), 1);
        assert_eq!(copies.take(3, Some(0)).len(), 2);
        assert_eq!(copies.take(3, None).len(), 1);
    }
}
