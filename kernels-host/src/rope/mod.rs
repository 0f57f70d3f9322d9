//! Rotary position embedding.
pub mod rope_kv;

pub use rope_kv::RopeKv;

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![rope_kv::kernel()]
}
