//! The prefix tree: which blocks of computed tokens are in the cache, whoever computed them.
//!
//! A node is one full block of 64 tokens behind its parent's, under a root for each salt. Children are found by their
//! tokens themselves, so a hash collision cannot mix two prompts up. A node lives on a device page or, after eviction,
//! on a host page; a device node's parent is on the device, too.
//!
//! Whoever holds a block holds all blocks before it (publishing a block that is already there hands out the tree's
//! page), so a node without a holder has no held descendants. Eviction takes leaves, least recently used first: O(log n).
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Index of a node; reused after its end.
pub type Node = u32;

const NONE: u32 = u32::MAX;

/// Where a node's keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A root: it has none.
    Root,
    /// A page on the device.
    Device(u32),
    /// A page in host memory.
    Host(u32),
}

#[derive(Debug)]
struct Block {
    tokens: Arc<[u32]>,
    parent: Node,
    place: Place,
    children: HashMap<Arc<[u32]>, Node>,
    device_children: u32,
    /// Of a root.
    salt: Option<Arc<str>>,
    /// Held by a sequence, or about to be brought back for one.
    held: bool,
    last_use: u64,
}

/// Blocks by their tokens.
#[derive(Debug)]
pub struct PrefixTree {
    blocks: Vec<Block>,
    unused: Vec<Node>,
    roots: HashMap<Option<Arc<str>>, Node>,
    /// The node on each device page.
    on_page: Vec<Node>,
    /// Device nodes that nobody holds and that have no children on the device, by last use.
    device_leaves: BTreeSet<(u64, Node)>,
    /// The same for host nodes without children.
    host_leaves: BTreeSet<(u64, Node)>,
    clock: u64,
    idle: usize,
}

impl PrefixTree {
    /// An empty tree over `pages` device pages.
    pub fn new(pages: usize) -> Self {
        PrefixTree {
            blocks: Vec::new(),
            unused: Vec::new(),
            roots: HashMap::new(),
            on_page: vec![NONE; pages],
            device_leaves: BTreeSet::new(),
            host_leaves: BTreeSet::new(),
            clock: 0,
            idle: 0,
        }
    }

    /// Device pages in the tree that nobody holds: all of them can be evicted, one after another.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// The node on a device page.
    pub fn on_page(&self, page: u32) -> Option<Node> {
        Some(self.on_page[page as usize]).filter(|node| *node != NONE)
    }

    /// Where a node is.
    pub fn place(&self, node: Node) -> Place {
        self.blocks[node as usize].place
    }

    /// Tells each device page with the page of its prefix's first block, from the roots down: O(nodes), where climbing up
    /// from each page would be O(nodes · depth).
    pub fn pages_by_prefix(&self, mut tell: impl FnMut(u32, u32)) {
        let mut open: Vec<(Node, Option<u32>)> = self.roots.values().map(|root| (*root, None)).collect();
        while let Some((node, first)) = open.pop() {
            let first = match self.place(node) {
                Place::Root => None,
                Place::Device(page) => {
                    let first = first.unwrap_or(page);
                    tell(page, first);
                    Some(first)
                }
                // What follows is on the host, too.
                Place::Host(_) => continue,
            };
            open.extend(self.blocks[node as usize].children.values().map(|child| (*child, first)));
        }
    }

    /// The root of a salt, made if it is not there.
    pub fn root(&mut self, salt: &Option<Arc<str>>) -> Node {
        if let Some(root) = self.roots.get(salt) {
            return *root;
        }
        let root = self.make(Arc::new([]), NONE, Place::Root);
        self.blocks[root as usize].salt.clone_from(salt);
        self.roots.insert(salt.clone(), root);
        root
    }

    /// The child of a node with these tokens.
    pub fn child(&self, parent: Node, tokens: &[u32]) -> Option<Node> {
        self.blocks[parent as usize].children.get(tokens).copied()
    }

    /// The longest known run of full blocks at the start of `tokens`, `limit` at most. Host nodes follow device nodes.
    pub fn longest(&self, salt: &Option<Arc<str>>, tokens: &[u32], block: usize, limit: usize) -> Vec<Node> {
        let mut path = Vec::new();
        let Some(mut node) = self.roots.get(salt).copied() else { return path };
        for tokens in tokens.chunks_exact(block).take(limit) {
            let Some(child) = self.child(node, tokens) else { break };
            path.push(child);
            node = child;
        }
        path
    }

    /// Adds a block on a device page that somebody holds.
    pub fn add(&mut self, parent: Node, tokens: &[u32], page: u32) -> Node {
        let tokens: Arc<[u32]> = tokens.into();
        let node = self.make(tokens.clone(), parent, Place::Device(page));
        self.blocks[node as usize].held = true;
        self.blocks[parent as usize].children.insert(tokens, node);
        self.blocks[parent as usize].device_children += 1;
        self.host_leaves.remove(&(self.blocks[parent as usize].last_use, parent));
        self.on_page[page as usize] = node;
        node
    }

    /// A device node gets its first holder, or a host node is about to be brought back: it cannot be evicted.
    pub fn hold(&mut self, node: Node) {
        let block = &mut self.blocks[node as usize];
        if std::mem::replace(&mut block.held, true) {
            return;
        }
        let entry = (block.last_use, node);
        match block.place {
            Place::Device(_) => {
                self.idle -= 1;
                self.device_leaves.remove(&entry);
            }
            _ => {
                self.host_leaves.remove(&entry);
            }
        }
    }

    /// A device node lost its last holder.
    pub fn let_go(&mut self, node: Node) {
        let block = &mut self.blocks[node as usize];
        block.held = false;
        block.last_use = self.clock;
        self.idle += 1;
        if block.device_children == 0 {
            self.device_leaves.insert((block.last_use, node));
        }
    }

    /// Time goes on: what is let go from now on is more recent.
    pub fn tick(&mut self) {
        self.clock += 1;
    }

    /// The device node to evict next, and its page.
    pub fn oldest(&self) -> Option<(Node, u32)> {
        let (_, node) = *self.device_leaves.first()?;
        match self.place(node) {
            Place::Device(page) => Some((node, page)),
            _ => None,
        }
    }

    /// The host node to drop next.
    pub fn oldest_on_host(&self) -> Option<Node> {
        self.host_leaves.first().map(|(_, node)| *node)
    }

    /// Moves an idle device leaf to a host page. It may be dropped only after [`PrefixTree::settle`].
    pub fn move_out(&mut self, node: Node, host: u32) {
        self.leave_device(node);
        self.blocks[node as usize].place = Place::Host(host);
    }

    /// A host node that was moved out in an earlier step may be dropped.
    pub fn settle(&mut self, node: Node) {
        let Some(block) = self.blocks.get(node as usize) else { return };
        if matches!(block.place, Place::Host(_)) && !block.held && block.children.is_empty() {
            self.host_leaves.insert((block.last_use, node));
        }
    }

    /// Puts a host node onto a device page that somebody holds; its parent is on the device. Returns the host page.
    pub fn move_in(&mut self, node: Node, page: u32) -> Option<u32> {
        let block = &mut self.blocks[node as usize];
        let Place::Host(host) = block.place else { return None };
        self.host_leaves.remove(&(block.last_use, node));
        block.place = Place::Device(page);
        block.held = true;
        let parent = block.parent;
        self.blocks[parent as usize].device_children += 1;
        self.on_page[page as usize] = node;
        Some(host)
    }

    /// Drops an idle leaf and everything behind it (which is on the host); returns the host pages that this frees.
    pub fn remove(&mut self, node: Node) -> Vec<u32> {
        let (parent, tokens) = (self.blocks[node as usize].parent, self.blocks[node as usize].tokens.clone());
        if matches!(self.place(node), Place::Device(_)) {
            self.leave_device(node);
        }
        let mut freed = Vec::new();
        let mut doomed = vec![node];
        while let Some(node) = doomed.pop() {
            let block = &mut self.blocks[node as usize];
            doomed.extend(block.children.drain().map(|(_, child)| child));
            self.host_leaves.remove(&(block.last_use, node));
            if let Place::Host(host) = block.place {
                freed.push(host);
            }
            block.place = Place::Root;
            self.unused.push(node);
        }
        self.blocks[parent as usize].children.remove(&tokens);
        self.after_child(parent);
        freed
    }

    fn after_child(&mut self, parent: Node) {
        let block = &self.blocks[parent as usize];
        if !block.children.is_empty() {
            return;
        }
        if block.parent == NONE {
            self.roots.remove(&block.salt);
            self.unused.push(parent);
        } else {
            self.settle(parent);
        }
    }

    fn leave_device(&mut self, node: Node) {
        let block = &self.blocks[node as usize];
        let (parent, entry) = (block.parent, (block.last_use, node));
        if let Place::Device(page) = block.place {
            self.on_page[page as usize] = NONE;
        }
        self.device_leaves.remove(&entry);
        self.idle -= 1;
        let parent_block = &mut self.blocks[parent as usize];
        parent_block.device_children -= 1;
        let leaf = parent_block.device_children == 0 && !parent_block.held;
        if leaf && matches!(parent_block.place, Place::Device(_)) {
            self.device_leaves.insert((parent_block.last_use, parent));
        }
    }

    fn make(&mut self, tokens: Arc<[u32]>, parent: Node, place: Place) -> Node {
        let block = Block {
            tokens,
            parent,
            place,
            children: HashMap::new(),
            device_children: 0,
            salt: None,
            held: false,
            last_use: 0,
        };
        match self.unused.pop() {
            Some(node) => {
                self.blocks[node as usize] = block;
                node
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        }
    }
}

#[cfg(test)]
impl PrefixTree {
    /// Panics unless the tree is sound and exactly the evictable leaves are on the lists; returns the host pages in use.
    pub fn check(&self, is_held: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut hosts = Vec::new();
        let mut open: Vec<Node> = self.roots.values().copied().collect();
        let (mut device_leaves, mut host_leaves) = (0, 0);
        while let Some(node) = open.pop() {
            let block = &self.blocks[node as usize];
            let on_device = |child: &&Node| matches!(self.place(**child), Place::Device(_));
            assert_eq!(block.device_children as usize, block.children.values().filter(on_device).count());
            match block.place {
                Place::Root => assert!(!block.children.is_empty(), "an empty root"),
                Place::Device(page) => {
                    assert_eq!(self.on_page(page), Some(node));
                    assert_eq!(block.held, is_held(page), "node {node} on page {page}");
                    assert!(!matches!(self.place(block.parent), Place::Host(_)), "a parent on the host");
                    if block.held && self.place(block.parent) != Place::Root {
                        assert!(self.blocks[block.parent as usize].held, "node {node} is held, its parent is not");
                    }
                    let leaf = !block.held && block.device_children == 0;
                    assert_eq!(self.device_leaves.contains(&(block.last_use, node)), leaf, "node {node}");
                    device_leaves += usize::from(leaf);
                }
                Place::Host(host) => {
                    assert!(!block.held);
                    hosts.push(host);
                    let leaf = block.children.is_empty();
                    assert_eq!(self.host_leaves.contains(&(block.last_use, node)), leaf, "host node {node}");
                    host_leaves += usize::from(leaf);
                }
            }
            open.extend(block.children.values());
        }
        assert_eq!((self.device_leaves.len(), self.host_leaves.len()), (device_leaves, host_leaves));
        hosts
    }
}
