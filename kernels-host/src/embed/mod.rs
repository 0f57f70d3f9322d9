//! Token embeddings.
pub mod gather;

pub use gather::EmbeddingGather;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![gather::kernel()]
}
