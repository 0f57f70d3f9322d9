//! The sequences of one request, and the pages it is promised.
use super::Scheduler;
use super::beam::BeamSearch;
use super::request::{RequestId, SequenceId};
use super::sequence::State;
use crate::kv::PAGE_TOKENS;
use std::collections::HashMap;
use std::ops::{Index, IndexMut};

/// What beam search keeps of a finished answer: its tokens without the prompt.
pub type Found = Vec<u32>;

/// One request.
#[derive(Debug)]
pub struct Group {
    pub request: RequestId,
    /// Sequences that are not finished; beams in their order.
    pub members: Vec<SequenceId>,
    /// Beams that nobody continues at present.
    pub spare: Vec<SequenceId>,
    /// Whether the prompt's last row is planned, so that each member has tokens of its own.
    pub forked: bool,
    pub beam: Option<BeamSearch<Found>>,
    /// Answers of a beam search.
    pub answers: usize,
    /// Starts only when it fits to the end, and is never preempted.
    pub guaranteed: bool,
    /// Pages that it is promised and does not have.
    pub reserved: usize,
    /// Whether it has been in a step; then its prompt was counted as a query of the prefix tree.
    pub started: bool,
}

impl Group {
    /// All its sequences.
    pub fn bodies(&self) -> impl Iterator<Item = SequenceId> {
        self.members.iter().chain(&self.spare).copied()
    }

    /// Removes a sequence; true if none is left.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        self.members.retain(|member| *member != id);
        self.spare.retain(|member| *member != id);
        self.members.is_empty() && self.spare.is_empty()
    }
}

/// Groups by place and by request.
#[derive(Debug, Default)]
pub struct Groups {
    places: Vec<Option<Group>>,
    free: Vec<u32>,
    by_request: HashMap<RequestId, u32>,
}

impl Groups {
    /// Where the next group goes.
    pub fn next(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.places.len() as u32)
    }

    /// Puts a group at [`Groups::next`].
    pub fn insert(&mut self, group: Group) {
        self.by_request.insert(group.request, self.next());
        match self.free.pop() {
            Some(at) => self.places[at as usize] = Some(group),
            None => self.places.push(Some(group)),
        }
    }

    /// The group of an open request.
    pub fn find(&self, request: RequestId) -> Option<u32> {
        self.by_request.get(&request).copied()
    }

    /// Removes a group.
    pub fn remove(&mut self, at: u32) -> Option<Group> {
        let group = self.places[at as usize].take()?;
        self.by_request.remove(&group.request);
        self.free.push(at);
        Some(group)
    }

    /// All groups.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.places.iter().flatten()
    }
}

impl Index<u32> for Groups {
    type Output = Group;
    fn index(&self, at: u32) -> &Group {
        match &self.places[at as usize] {
            Some(group) => group,
            None => panic!("group {at} is gone"),
        }
    }
}

impl IndexMut<u32> for Groups {
    fn index_mut(&mut self, at: u32) -> &mut Group {
        match &mut self.places[at as usize] {
            Some(group) => group,
            None => panic!("group {at} is gone"),
        }
    }
}

impl Scheduler {
    /// Sets the pages that a group is promised to the most that it may still need.
    pub(super) fn reserve(&mut self, at: u32) {
        let group = &self.groups[at];
        let need = if group.guaranteed { self.need(group) } else { 0 };
        self.reserved = self.reserved + need - group.reserved;
        self.groups[at].reserved = need;
    }

    /// The most pages that a guaranteed group may still take: what its sequences lack to their ends, and copies of partly
    /// filled pages that several of them share.
    pub(super) fn need(&self, group: &Group) -> usize {
        let mut pages = 0;
        let mut partial: Vec<u32> = Vec::new();
        for id in &group.members {
            let sequence = &self.sequences[id.index];
            if sequence.state == State::Running {
                pages += sequence.all_pages().saturating_sub(sequence.pages.len());
                if group.members.len() > 1 && group.forked {
                    partial.extend(sequence.partial_page());
                }
            }
        }
        // Each page is written in place by the last that shares it.
        let copies = partial.len();
        partial.sort_unstable();
        partial.dedup();
        pages += copies - partial.len();
        // Sequences that will fork off share the full blocks of the prompt.
        let dormant = if group.forked { group.spare.len() } else { group.members.len() + group.spare.len() - 1 };
        match group.bodies().next().map(|id| &self.sequences[id.index]) {
            Some(first) if dormant > 0 && group.members.iter().any(|id| self.is_running(*id)) => {
                pages + dormant * (first.all_pages() - first.shared.prompt.len() / PAGE_TOKENS)
            }
            _ => pages,
        }
    }

    fn is_running(&self, id: SequenceId) -> bool {
        self.sequences[id.index].state == State::Running
    }
}
