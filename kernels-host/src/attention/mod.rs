//! Attention over the paged KV cache: causal, grouped-query and multi-query, sliding window, soft-capped scores.
//!
//! [`PrefillAttention`] takes many queries per sequence (with a cached prefix before them),
//! [`DecodeAttention`] one or a few. Both read keys and values from the pages only, so this step's must
//! have been written there before.
mod decode;
mod prefill;
mod prefill_wgmma;
#[cfg(feature = "proptest")]
mod random;
mod reference;
mod testing;

pub use decode::DecodeAttention;
pub use prefill::PrefillAttention;

use crate::{Check, DType, Error, View};
use kernels_gpu::tile::kv::{PAGE, page_elems};
use std::f32::consts::LOG2_E;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![prefill::kernel(), prefill_wgmma::kernel(), decode::kernel()]
}

/// Keys and values of a batch of sequences: pools of pages (layout: `kernels_gpu::tile::kv`) and who owns
/// which.
#[derive(Clone, Copy)]
pub struct PagedKv<'a> {
    /// Keys: [1, pages · page_elems], bf16 or f16.
    pub k: View<'a>,
    /// Values, as `k`.
    pub v: View<'a>,
    /// Pages of each sequence in order: u32 [sequences, max_pages]. Entries of pages that no query sees (past
    /// the end, or before every window) are never read.
    pub block_tables: View<'a>,
    /// Tokens of each sequence in the cache, this step's included: u32 [1, sequences].
    pub kv_lens: View<'a>,
}

/// Heads and masking, shared by both kernels.
#[derive(Clone, Copy)]
struct Geometry {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
}

/// Head dimensions that the attention kernels exist for. Heads of 96 take the room of 128 in the cache.
pub const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

impl Geometry {
    /// Query heads per KV head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The first key that a query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The window as the device wants it.
    fn device_window(&self) -> u32 {
        self.window.and_then(|window| u32::try_from(window).ok()).unwrap_or(u32::MAX)
    }

    /// The scale as the device wants it: (log2(e) · what multiplies the scores at last, what they are multiplied with
    /// inside the soft-cap's tanh or 0).
    fn device_scale(&self) -> (f32, f32) {
        match self.softcap {
            None => (self.scale * LOG2_E, 0.0),
            Some(cap) => (cap * LOG2_E, self.scale / cap),
        }
    }

    /// Binds "tokens" to the rows of `q` and `out` and "sequences" to those of the tables.
    fn check(&self, check: &mut Check, q: &View<'_>, kv: &PagedKv<'_>, out: &View<'_>) -> Result<(), Error> {
        let Geometry { heads, kv_heads, head_dim, scale, window, softcap } = *self;
        check.half("q", q, ["tokens", "heads * head_dim"])?;
        check.half("out", out, ["tokens", "heads * head_dim"])?;
        check.half("kv.k", &kv.k, ["1", "pool"])?;
        check.half("kv.v", &kv.v, ["1", "pool"])?;
        check.typed("kv.block_tables", &kv.block_tables, DType::U32, ["sequences", "max_pages"])?;
        check.typed("kv.kv_lens", &kv.kv_lens, DType::U32, ["1", "sequences"])?;
        check.require(HEAD_DIMS.contains(&head_dim), || format!("head_dim {head_dim} must be one of {HEAD_DIMS:?}"))?;
        check.require(kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads), || {
            format!("{heads} heads must be a multiple of the {kv_heads} KV heads")
        })?;
        check.require(q.cols() == heads * head_dim, || {
            format!("q has {} columns, {heads} heads of {head_dim} need {}", q.cols(), heads * head_dim)
        })?;
        let page = page_elems(kv_heads, head_dim);
        check.require(kv.k.cols().is_multiple_of(page), || {
            format!("the KV pool of {} elements must be a multiple of a page's {page}", kv.k.cols())
        })?;
        check.require(window != Some(0), || "a window of 0 tokens sees nothing: use at least 1".into())?;
        check.require(scale.is_finite() && scale > 0.0, || format!("scale {scale} must be positive and finite"))?;
        check.require(softcap.is_none_or(|cap| cap.is_finite() && cap > 0.0), || {
            format!("softcap {softcap:?} must be positive and finite")
        })?;
        check.require(kv.block_tables.rows() <= u16::MAX as usize, || {
            format!("{} sequences are more than the {} of one launch", kv.block_tables.rows(), u16::MAX)
        })?;
        let longest = kv.block_tables.cols() * PAGE;
        check.require(u32::try_from(longest).is_ok(), || format!("{longest} tokens per sequence overflow 32 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Cache, Problem, Rows};
    use super::*;
    use crate::{Device, Stream};

    fn launch(stream: &Stream, change: impl FnOnce(&mut PrefillAttention<'_>)) -> String {
        let problem = Problem::new(DType::Bf16, 4, 2, 64).sequences(&[(3, 5), (2, 70)]);
        let mut cache = Cache::new(&problem, stream, 1).unwrap();
        let mut rows = Rows::new(&problem, stream, cache.rng()).unwrap();
        let (q, query_starts, out) = rows.views();
        let (heads, kv_heads, head_dim, scale, window, softcap) = (4, 2, 64, problem.scale(), None, None);
        let kv = cache.paged();
        let mut attention = PrefillAttention {
            q,
            kv,
            query_starts,
            heads,
            kv_heads,
            head_dim,
            scale,
            window,
            softcap,
            max_query: 3,
            out,
        };
        change(&mut attention);
        attention.launch(stream).err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn launchers_name_what_does_not_fit() {
        let stream = Device::cpu().stream().unwrap();
        assert_eq!(launch(&stream, |_| ()), "");
        assert!(launch(&stream, |a| a.head_dim = 80).contains("head_dim 80 must be one of [64, 96, 128, 256]"));
        assert!(launch(&stream, |a| a.softcap = Some(0.0)).contains("softcap"));
        assert!(launch(&stream, |a| a.kv_heads = 3).contains("multiple of the 3 KV heads"));
        assert!(launch(&stream, |a| a.heads = 6).contains("6 heads of 64 need 384"));
        assert!(launch(&stream, |a| a.window = Some(0)).contains("window of 0"));
        assert!(launch(&stream, |a| a.scale = f32::NAN).contains("scale NaN"));
        assert!(launch(&stream, |a| a.query_starts = a.kv.kv_lens).contains("2 sequences need 3"));
        assert!(launch(&stream, |a| a.kv.block_tables = a.kv.block_tables.row_range(0, 1)).contains("sequences = 2"));
        assert!(launch(&stream, |a| a.kv.k = a.kv.k.columns(0, 64)).contains("pool"));
    }
}
