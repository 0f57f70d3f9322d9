//! The paged KV cache: device memory by layer, and the pages' bookkeeping.
use crate::config::ModelConfig;
use crate::error::Result;
use kernels_host::kv::{PAGE, page_elems};
use kernels_host::{Buffer, DType, Device, Pinned, Stream, ViewMut};

/// Tokens per page.
pub const PAGE_TOKENS: usize = PAGE;

/// Keys and values of all layers, in one allocation each. Layout of a layer's pool: `kernels_gpu::tile::kv`. One page
/// more than the scheduler may hand out: the null page, the last, which padding reads.
pub struct KvCache {
    /// [layers, (pages + 1) · page_elems].
    k: Buffer,
    v: Buffer,
    layers: usize,
    page: usize,
    pages: usize,
    /// Pages that were moved out, each with the keys of all layers and then their values.
    host: Option<Pinned>,
}

/// One layer's pools.
pub struct LayerCache<'a> {
    /// Keys: [1, (pages + 1) · page_elems].
    pub k: ViewMut<'a>,
    /// Values, as `k`.
    pub v: ViewMut<'a>,
}

impl KvCache {
    /// Allocates `pages` pages, the null page, and `host_pages` pages of host memory.
    pub fn new(device: &Device, config: &ModelConfig, dtype: DType, pages: usize, host_pages: usize) -> Result<Self> {
        let (layers, page) = (config.num_layers, page_elems(config.num_kv_heads, config.head_dim));
        let len = layers * (pages + 1) * page;
        let host = match host_pages {
            0 => None,
            count => Some(Pinned::new(device, count * Self::page_bytes(config, dtype))?),
        };
        let (k, v) = (Buffer::new(device, dtype, len)?, Buffer::new(device, dtype, len)?);
        Ok(KvCache { k, v, layers, page, pages, host })
    }

    /// Zeroes all pages. Attention copies whole pages and masks what is past a sequence's end, so that is read, too.
    pub fn clear(&mut self, stream: &Stream) -> Result<()> {
        stream.fill(self.k.view_mut(), 0)?;
        Ok(stream.fill(self.v.view_mut(), 0)?)
    }

    /// Bytes that one page takes over all layers, keys and values.
    pub fn page_bytes(config: &ModelConfig, dtype: DType) -> usize {
        2 * config.num_layers * page_elems(config.num_kv_heads, config.head_dim) * dtype.size()
    }

    /// Pages that the scheduler may hand out.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Number of the null page.
    pub fn null_page(&self) -> u32 {
        self.pages as u32
    }

    /// Bytes on the device.
    pub fn device_bytes(&self) -> usize {
        (self.k.len() + self.v.len()) * self.k.dtype().size()
    }

    /// Bytes of host memory.
    pub fn host_bytes(&self) -> usize {
        self.host.as_ref().map_or(0, Pinned::len)
    }

    /// Layer `i`'s pools.
    pub fn layer(&mut self, i: usize) -> LayerCache<'_> {
        let len = (self.pages + 1) * self.page;
        LayerCache { k: self.k.view_mut().columns(i * len, len), v: self.v.view_mut().columns(i * len, len) }
    }

    /// Copies page `from` to page `to` in all layers.
    pub fn copy_page(&mut self, stream: &Stream, from: u32, to: u32) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let (row, page) = ((self.pages + 1) * self.page, self.page);
        for pool in [&mut self.k, &mut self.v] {
            stream.copy_columns(pool.matrix_mut(self.layers, row), from as usize * page, to as usize * page, page)?;
        }
        Ok(())
    }

    /// Moves page `page` to host page `to`.
    ///
    /// # Panics
    /// Without host pages: the scheduler knows how many there are.
    pub fn swap_out(&mut self, stream: &Stream, page: u32, to: u32) -> Result<()> {
        let (row, bytes) = ((self.pages + 1) * self.page, self.layers * self.page * self.k.dtype().size());
        let host = self.host.as_mut().expect("host pages");
        for (i, pool) in [&self.k, &self.v].into_iter().enumerate() {
            let from = pool.matrix(self.layers, row).columns(page as usize * self.page, self.page);
            stream.download_pinned(from, host, (2 * to as usize + i) * bytes)?;
        }
        Ok(())
    }

    /// Moves host page `from` to page `page`; panics as [`KvCache::swap_out`].
    pub fn swap_in(&mut self, stream: &Stream, from: u32, page: u32) -> Result<()> {
        let (row, bytes) = ((self.pages + 1) * self.page, self.layers * self.page * self.k.dtype().size());
        let host = self.host.as_mut().expect("host pages");
        for (i, pool) in [&mut self.k, &mut self.v].into_iter().enumerate() {
            let to = pool.matrix_mut(self.layers, row).columns(page as usize * self.page, self.page);
            stream.upload_pinned(host, (2 * from as usize + i) * bytes, to)?;
        }
        Ok(())
    }
}
