//! The pages' bookkeeping: who is free, and how many sequences hold each.

/// Pages with reference counts. Knows no device.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    /// Block tables that name each page.
    refs: Vec<u32>,
}

impl BlockPool {
    /// All of `pages` free.
    pub fn new(pages: usize) -> Self {
        BlockPool { free: (0..pages as u32).rev().collect(), refs: vec![0; pages] }
    }

    /// Takes a free page for one holder.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.hold(page);
        Some(page)
    }

    /// Adds a holder; true if there was none before.
    pub fn hold(&mut self, page: u32) -> bool {
        let refs = &mut self.refs[page as usize];
        *refs += 1;
        *refs == 1
    }

    /// Removes a holder; true if none is left. The page is not free before [`BlockPool::put_back`].
    ///
    /// # Panics
    /// If nobody holds it: a page was given back twice.
    pub fn release(&mut self, page: u32) -> bool {
        let refs = &mut self.refs[page as usize];
        assert!(*refs > 0, "page {page} was given back twice");
        *refs -= 1;
        *refs == 0
    }

    /// Makes a page free that nobody holds.
    pub fn put_back(&mut self, page: u32) {
        debug_assert_eq!(self.refs[page as usize], 0, "page {page} is still held");
        self.free.push(page);
    }

    /// Holders of a page.
    pub fn holders(&self, page: u32) -> u32 {
        self.refs[page as usize]
    }

    /// Pages that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.refs.len()
    }

    /// The free pages, in no order.
    #[cfg(test)]
    pub fn free_list(&self) -> &[u32] {
        &self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_free_when_the_last_holder_has_let_go() {
        let mut pool = BlockPool::new(2);
        let page = pool.take().unwrap();
        assert!(!pool.hold(page));
        assert!(!pool.release(page));
        assert!(pool.release(page));
        pool.put_back(page);
        assert_eq!(pool.free(), 2);
        assert!(pool.take().is_some() && pool.take().is_some() && pool.take().is_none());
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_page_given_back_twice_is_a_bug() {
        BlockPool::new(1).release(0);
    }
}
