//! The rotation of a pair of dimensions.
use crate::prim::math::fma;

/// (x cos − y sin, y cos + x sin).
#[inline(always)]
pub fn rotate_pair(x: f32, y: f32, sin: f32, cos: f32) -> (f32, f32) {
    (fma(x, cos, -(y * sin)), fma(y, cos, x * sin))
}
