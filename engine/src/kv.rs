//! The paged KV cache: device memory by layer, and the pages' bookkeeping.
use crate::config::ModelConfig;
use crate::error::Result;
use kernels_host::kv::{PAGE, page_elems};
use kernels_host::{Buffer, DType, Device, Stream};

/// Tokens per page.
pub const PAGE_TOKENS: usize = PAGE;

/// Keys and values of all layers. Layout: `kernels_gpu::tile::kv`.
pub struct KvCache {
    layers: Vec<LayerCache>,
    pages: usize,
}

/// One layer's pools.
pub struct LayerCache {
    /// Keys, `pages` pages.
    pub k: Buffer,
    /// Values, `pages` pages.
    pub v: Buffer,
}

impl KvCache {
    /// Allocates `pages` pages for every layer.
    pub fn new(device: &Device, config: &ModelConfig, dtype: DType, pages: usize) -> Result<Self> {
        let len = pages * page_elems(config.num_kv_heads, config.head_dim);
        let layer = |_| Ok(LayerCache { k: Buffer::new(device, dtype, len)?, v: Buffer::new(device, dtype, len)? });
        Ok(KvCache { layers: (0..config.num_layers).map(layer).collect::<Result<_>>()?, pages })
    }

    /// Zeroes all pages. Attention copies whole pages and masks what is past a sequence's end, so that is read, too.
    pub fn clear(&mut self, stream: &Stream) -> Result<()> {
        for layer in &mut self.layers {
            stream.fill(layer.k.view_mut(), 0)?;
            stream.fill(layer.v.view_mut(), 0)?;
        }
        Ok(())
    }

    /// Bytes that one page takes over all layers, keys and values.
    pub fn page_bytes(config: &ModelConfig, dtype: DType) -> usize {
        2 * config.num_layers * page_elems(config.num_kv_heads, config.head_dim) * dtype.size()
    }

    /// Pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Layer `i`'s pools.
    pub fn layer(&mut self, i: usize) -> &mut LayerCache {
        &mut self.layers[i]
    }
}
