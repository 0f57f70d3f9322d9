//! Helpers of the references: rows in parallel on the CPU device.
use crate::{DType, View, ViewMut};
use rayon::prelude::*;

/// Calls `f(row, values)` for every row in parallel, values in f32, and stores what it leaves there,
/// rounded to the element type.
pub fn for_each_row(mut out: ViewMut<'_>, f: impl Fn(usize, &mut [f32]) + Sync) {
    let (rows, cols, stride, dtype) = (out.rows(), out.cols(), out.stride(), out.dtype());
    if rows == 0 || cols == 0 {
        return;
    }
    let compute = |row: usize, bits: &mut [u16]| {
        let mut values = vec![0.0; cols];
        f(row, &mut values);
        bits[..cols].iter_mut().zip(&values).for_each(|(bits, &x)| *bits = dtype.encode(x));
    };
    let host = out.host_mut::<u16>();
    // Below this much work a thread costs more than it saves.
    if rows * cols < 16 * 1024 {
        host.chunks_mut(stride).enumerate().for_each(|(row, bits)| compute(row, bits));
    } else {
        host.par_chunks_mut(stride).enumerate().for_each(|(row, bits)| compute(row, bits));
    }
}

/// A half-precision row as f32.
pub fn row_f32(view: &View<'_>, row: usize, into: &mut Vec<f32>) {
    let dtype = view.dtype();
    into.clear();
    match dtype {
        DType::F16 => into.extend(view.row::<u16>(row).iter().map(|&bits| dtype.decode(bits))),
        _ => into.extend(view.row::<u16>(row).iter().map(|&bits| f32::from_bits(u32::from(bits) << 16))),
    }
}
