//! Rotary position embedding.
pub mod rope_kv;
