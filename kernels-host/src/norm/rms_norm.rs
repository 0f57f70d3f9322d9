//! Launchers, reference and cases of `kernels-gpu/src/norm/rms_norm.rs`.
use super::row::{self, Norm};
use crate::case::Kernel;
use crate::host::row_f32;
use crate::{DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::norm::{rms_norm as gpu, row::threads};

/// `out = rms_norm(x) · weight`, per row.
pub struct RmsNorm<'a> {
    /// [tokens, width], bf16 or f16; width a multiple of 8 up to 16384.
    pub x: View<'a>,
    /// [1, width].
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

/// `residual += x; out = rms_norm(residual) · weight`, per row.
pub struct AddRmsNorm<'a> {
    /// [tokens, width], as [`RmsNorm`].
    pub x: View<'a>,
    /// [tokens, width], read and written.
    pub residual: ViewMut<'a>,
    /// [1, width].
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

impl RmsNorm<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        launch(stream, self.x, None, self.weight, self.eps, self.out)
    }
}

impl AddRmsNorm<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        launch(stream, self.x, Some(self.residual), self.weight, self.eps, self.out)
    }
}

fn launch(
    stream: &Stream,
    x: View<'_>,
    residual: Option<ViewMut<'_>>,
    weight: View<'_>,
    eps: f32,
    out: ViewMut<'_>,
) -> Result<(), Error> {
    let (tokens, width) = row::check("rms_norm", &x, residual.as_ref(), &[("weight", weight)], &out)?;
    if stream.is_cpu() {
        reference(x, residual, weight, eps, out);
        return Ok(());
    }
    let entry = match (x.dtype(), &residual) {
        (DType::F16, None) => gpu::rms_norm_f16,
        (DType::F16, Some(_)) => gpu::add_rms_norm_f16,
        (_, None) => gpu::rms_norm_bf16,
        (_, Some(_)) => gpu::add_rms_norm_bf16,
    };
    let args = gpu::RmsNorm {
        x: x.ptr(),
        residual: residual.as_ref().map_or(out.ptr(), |residual| residual.ptr()),
        weight: weight.ptr(),
        out: out.ptr(),
        width: width as u32,
        x_stride: x.stride() as u32,
        residual_stride: residual.as_ref().map_or(0, |residual| residual.stride() as u32),
        out_stride: out.stride() as u32,
        eps,
    };
    let launch = Launch::grid(tokens).threads(threads(width as u32)).shared(gpu::SHARED_BYTES).dependent();
    // SAFETY: one block per token; every access is below `width` of a row that the views were checked to have.
    unsafe { stream.launch(entry, launch, &args) }
}

/// The naive reference, and the CPU device's kernel.
fn reference(x: View<'_>, residual: Option<ViewMut<'_>>, weight: View<'_>, eps: f32, out: ViewMut<'_>) {
    let mut gain = Vec::new();
    row_f32(&weight, 0, &mut gain);
    row::reference(x, residual, out, |h| {
        let scale = 1.0 / (row::sum(h, |v| v * v) / h.len() as f32 + eps).sqrt();
        h.iter_mut().zip(&gain).for_each(|(v, w)| *v = *v * scale * w);
    });
}

/// Tests and benches of both entries.
pub(crate) fn kernel() -> Kernel {
    row::kernel("norm/rms_norm", gpu::ENTRIES, Norm::Rms)
}
