//! Pages and the prefix tree together: a page is free, held by sequences, or idle in the tree until it is evicted.
use super::pool::BlockPool;
use super::prefix::{Node, Place, PrefixTree};
use crate::kv::PAGE_TOKENS;
use std::sync::Arc;

/// All blocks of the cache, on the device and on the host.
#[derive(Debug)]
pub struct Blocks {
    pool: BlockPool,
    tree: PrefixTree,
    sharing: bool,
    host_free: Vec<u32>,
    host_pages: usize,
    /// Host pages that the present step reads, and nodes that it writes: free, or evictable, from the next step on.
    host_read: Vec<u32>,
    host_written: Vec<Node>,
    /// Moves for the next plan: (device, host).
    pub swap_out: Vec<(u32, u32)>,
    /// Moves for the next plan: (host, device).
    pub swap_in: Vec<(u32, u32)>,
    /// Blocks moved out and in, in all.
    pub swapped: (u64, u64),
}

/// A run of known blocks at the start of a sequence.
#[derive(Debug, Default)]
pub struct Match {
    nodes: Vec<Node>,
    /// Of them, on device pages that somebody holds: they cost nothing.
    pub held: usize,
}

impl Match {
    /// Blocks.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}

impl Blocks {
    /// All pages free. `sharing`: keep computed blocks for other sequences.
    pub fn new(pages: usize, host_pages: usize, sharing: bool) -> Self {
        let host_pages = if sharing { host_pages } else { 0 };
        Blocks {
            pool: BlockPool::new(pages),
            tree: PrefixTree::new(pages),
            sharing,
            host_free: (0..host_pages as u32).rev().collect(),
            host_pages,
            host_read: Vec::new(),
            host_written: Vec::new(),
            swap_out: Vec::new(),
            swap_in: Vec::new(),
            swapped: (0, 0),
        }
    }

    /// Whether computed blocks are kept.
    pub fn sharing(&self) -> bool {
        self.sharing
    }

    /// Device pages in all.
    pub fn pages(&self) -> usize {
        self.pool.pages()
    }

    /// Device pages that can be had: free, or idle in the tree.
    pub fn available(&self) -> usize {
        self.pool.free() + self.tree.idle()
    }

    /// Device pages that hold blocks which nobody uses at present.
    pub fn idle(&self) -> usize {
        self.tree.idle()
    }

    /// Host pages in use.
    pub fn host_used(&self) -> usize {
        self.host_pages - self.host_free.len() - self.host_read.len()
    }

    /// Sequences that hold a page.
    pub fn holders(&self, page: u32) -> u32 {
        self.pool.holders(page)
    }

    /// Tells each device page of the tree with the page of its prefix's first block.
    pub fn cached(&self, tell: impl FnMut(u32, u32)) {
        self.tree.pages_by_prefix(tell);
    }

    /// A page for one holder; evicts the least recently used idle block if none is free.
    pub fn take(&mut self) -> Option<u32> {
        if self.pool.free() == 0 {
            let (node, page) = self.tree.oldest()?;
            self.evict(node, page);
            self.pool.put_back(page);
        }
        self.pool.take()
    }

    fn evict(&mut self, node: Node, page: u32) {
        match self.host_page() {
            Some(host) => {
                self.tree.move_out(node, host);
                self.swap_out.push((page, host));
                self.swapped.0 += 1;
                self.host_written.push(node);
            }
            None => self.remove(node),
        }
    }

    fn host_page(&mut self) -> Option<u32> {
        if self.host_free.is_empty()
            && let Some(node) = self.tree.oldest_on_host()
        {
            self.remove(node);
        }
        self.host_free.pop()
    }

    fn remove(&mut self, node: Node) {
        for host in self.tree.remove(node) {
            // A page that the present step writes may not be written twice in it.
            let fresh = self.swap_out.iter().any(|(_, to)| *to == host);
            if fresh { self.host_read.push(host) } else { self.host_free.push(host) }
        }
    }

    /// Adds a holder to a page.
    pub fn hold(&mut self, page: u32) {
        if self.pool.hold(page)
            && let Some(node) = self.tree.on_page(page)
        {
            self.tree.hold(node);
        }
    }

    /// Removes a holder from each page. A block in the tree stays there.
    pub fn release(&mut self, pages: &[u32]) {
        self.tree.tick();
        for &page in pages.iter().rev() {
            if self.pool.release(page) {
                match self.tree.on_page(page) {
                    Some(node) => self.tree.let_go(node),
                    None => self.pool.put_back(page),
                }
            }
        }
    }

    /// The longest known prefix that leaves at least one token to compute.
    pub fn longest(&self, salt: &Option<Arc<str>>, tokens: &[u32]) -> Match {
        if !self.sharing {
            return Match::default();
        }
        let nodes = self.tree.longest(salt, tokens, PAGE_TOKENS, (tokens.len() - 1) / PAGE_TOKENS);
        let held = |node: &&Node| matches!(self.tree.place(**node), Place::Device(page) if self.pool.holders(page) > 0);
        let held = nodes.iter().filter(held).count();
        Match { nodes, held }
    }

    /// Holds a match's blocks, brings those on the host back, and returns their pages: fewer if pages run out.
    pub fn adopt(&mut self, found: &Match) -> Vec<u32> {
        for &node in &found.nodes {
            match self.tree.place(node) {
                Place::Device(page) => self.hold(page),
                _ => self.tree.hold(node),
            }
        }
        let mut pages = Vec::with_capacity(found.nodes.len() + 1);
        for &node in &found.nodes {
            match self.tree.place(node) {
                Place::Device(page) => pages.push(page),
                _ => {
                    let Some(page) = self.take() else { break };
                    if let Some(host) = self.tree.move_in(node, page) {
                        self.swap_in.push((host, page));
                        self.swapped.1 += 1;
                        self.host_read.push(host);
                    }
                    pages.push(page);
                }
            }
        }
        assert_eq!(pages.len(), found.nodes.len(), "the caller counted the pages");
        pages
    }

    /// Puts a computed block into the tree and returns the page to use from now on: the same, or that of an equal block
    /// which was there before; then `page` is given back. `previous`: page of the block before it.
    pub fn publish(&mut self, salt: &Option<Arc<str>>, previous: Option<u32>, tokens: &[u32], page: u32) -> u32 {
        let parent = match previous {
            Some(before) => {
                self.tree.on_page(before).unwrap_or_else(|| panic!("block before page {page} is not there"))
            }
            None => self.tree.root(salt),
        };
        let Some(node) = self.tree.child(parent, tokens) else {
            self.tree.add(parent, tokens, page);
            return page;
        };
        match self.tree.place(node) {
            Place::Device(same) if same == page => page,
            Place::Device(other) => {
                self.hold(other);
                self.release(&[page]);
                other
            }
            _ => {
                self.host_read.extend(self.tree.move_in(node, page));
                page
            }
        }
    }

    /// The moves so far go with a plan: what they touched may be used again.
    pub fn next_step(&mut self) {
        self.swap_out.clear();
        self.swap_in.clear();
        self.host_free.append(&mut self.host_read);
        for node in self.host_written.drain(..) {
            self.tree.settle(node);
        }
    }
}

#[cfg(test)]
impl Blocks {
    /// Panics unless every page is exactly one of: free, idle in the tree, held as often as `held` says.
    pub fn check(&self, held: &[u32]) {
        let mut free = vec![false; held.len()];
        for page in self.pool.free_list() {
            assert!(!std::mem::replace(&mut free[*page as usize], true), "page {page} is free twice");
        }
        let mut idle = 0;
        for (page, (&held, &free)) in (0u32..).zip(held.iter().zip(&free)) {
            assert_eq!(self.pool.holders(page), held, "holders of page {page}");
            let cached = self.tree.on_page(page).is_some();
            assert!(!free || (held == 0 && !cached), "page {page} is free and used");
            assert!(free || held > 0 || cached, "page {page} is lost");
            idle += usize::from(!free && held == 0);
        }
        assert_eq!(self.tree.idle(), idle, "idle pages");
        let hosts = self.tree.check(|page| self.pool.holders(page) > 0);
        let mut host: Vec<u32> =
            hosts.into_iter().chain(self.host_free.iter().chain(&self.host_read).copied()).collect();
        host.sort_unstable();
        assert!(host.iter().copied().eq(0..self.host_pages as u32), "host pages {host:?} of {}", self.host_pages);
    }
}
