//! Programmatic dependent launches: what the launches before this one touched while they may still run.
//!
//! A dependent launch may begin while its predecessor runs. `griddepcontrol.wait` waits for the predecessor; for
//! the launch before that only if the predecessor itself has waited. So two sets of bytes are kept: those of launches
//! that a wait finishes, and those of launches that it does not.

use std::collections::HashMap;

use super::shadow::{PAGE, Page, SECTOR};
use crate::Access;

/// Bytes that launches read and wrote, by page address and then sector.
#[derive(Debug, Default)]
pub(super) struct Footprint {
    pages: HashMap<u64, Box<Touched>>,
}

#[derive(Clone, Debug)]
struct Touched {
    read: [u32; PAGE / SECTOR],
    written: [u32; PAGE / SECTOR],
    /// The launch that touched the page last.
    launch: u32,
}

impl Footprint {
    /// Adds the records of the page at `address`.
    pub fn add(&mut self, address: u64, page: &Page, launch: u32) {
        let empty = || Box::new(Touched { read: [0; PAGE / SECTOR], written: [0; PAGE / SECTOR], launch });
        let touched = self.pages.entry(address).or_insert_with(empty);
        for (sector, read, written) in page.touched() {
            touched.read[sector] |= read;
            touched.written[sector] |= written;
        }
    }

    fn join(&mut self, other: Self) {
        for (address, theirs) in other.pages {
            match self.pages.get_mut(&address) {
                None => {
                    self.pages.insert(address, theirs);
                }
                Some(ours) => {
                    for sector in 0..PAGE / SECTOR {
                        ours.read[sector] |= theirs.read[sector];
                        ours.written[sector] |= theirs.written[sector];
                    }
                    ours.launch = ours.launch.max(theirs.launch);
                }
            }
        }
    }

    /// How a launch used some of the bytes `mask` of a sector in a way that rules `access` out until it is finished.
    fn used(&self, page: u64, sector: usize, mask: u32, access: Access) -> Option<Use> {
        let touched = self.pages.get(&page)?;
        let found = |access| Some(Use { access, launch: touched.launch });
        if touched.written[sector] & mask != 0 {
            return found(Access::Write);
        }
        if access != Access::Read && touched.read[sector] & mask != 0 {
            return found(Access::Read);
        }
        None
    }
}

/// How an earlier launch used a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub access: Access,
    /// Its number on the device.
    pub launch: u32,
}

/// Launches that may not be finished.
#[derive(Debug, Default)]
pub(super) struct Predecessors {
    /// Those that `griddepcontrol.wait` waits for.
    waitable: Footprint,
    /// Those of which nothing says that they are finished.
    beyond: Footprint,
    /// The running launch is a dependent one.
    dependent: bool,
    /// Some thread of the running launch has executed `griddepcontrol.wait`.
    pub waited: bool,
}

impl Predecessors {
    /// The next launch begins; `last` is what the one before it touched.
    pub fn advance(&mut self, last: Footprint, dependent: bool) {
        let before = std::mem::take(self);
        self.dependent = dependent;
        if dependent {
            self.waitable = last;
            self.beyond = before.beyond;
            if !before.waited {
                self.beyond.join(before.waitable);
            }
        }
    }

    pub fn dependent(&self) -> bool {
        self.dependent
    }

    /// The use by an unfinished launch that an access conflicts with, if there is one.
    pub fn conflict(&self, page: u64, sector: usize, mask: u32, access: Access, waited: bool) -> Option<Use> {
        let beyond = self.beyond.used(page, sector, mask, access);
        if waited { beyond } else { beyond.or_else(|| self.waitable.used(page, sector, mask, access)) }
    }

    /// Whether an earlier launch of the chain wrote some of the bytes, finished or not.
    pub fn written(&self, page: u64, sector: usize, mask: u32) -> Option<Use> {
        self.conflict(page, sector, mask, Access::Read, false)
    }
}
