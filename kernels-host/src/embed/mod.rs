//! Token embeddings.
pub mod gather;

pub use gather::{EmbeddingGather, FROM_DRAFT, FROM_SLOT};

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![gather::kernel()]
}
