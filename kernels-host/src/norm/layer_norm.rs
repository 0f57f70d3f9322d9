//! Launchers, reference and cases of `kernels-gpu/src/norm/layer_norm.rs`.
use super::row::{self, Norm};
use crate::case::Kernel;
use crate::host::row_f32;
use crate::{DType, Error, Launch, Stream, View, ViewMut};
use kernels_gpu::norm::{layer_norm as gpu, row::threads};

/// `out = (x − mean(x)) / √(var(x) + eps) · weight + bias`, per row.
pub struct LayerNorm<'a> {
    /// [tokens, width], bf16 or f16; width a multiple of 8 up to 16384.
    pub x: View<'a>,
    /// [1, width].
    pub weight: View<'a>,
    /// [1, width].
    pub bias: View<'a>,
    /// Added to the variance.
    pub eps: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

/// `residual += x; out = layer_norm(residual)`, per row.
pub struct AddLayerNorm<'a> {
    /// [tokens, width], as [`LayerNorm`].
    pub x: View<'a>,
    /// [tokens, width], read and written.
    pub residual: ViewMut<'a>,
    /// [1, width].
    pub weight: View<'a>,
    /// [1, width].
    pub bias: View<'a>,
    /// Added to the variance.
    pub eps: f32,
    /// [tokens, width].
    pub out: ViewMut<'a>,
}

impl LayerNorm<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        launch(stream, self.x, None, self.weight, self.bias, self.eps, self.out)
    }
}

impl AddLayerNorm<'_> {
    /// Queues the kernel.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        launch(stream, self.x, Some(self.residual), self.weight, self.bias, self.eps, self.out)
    }
}

fn launch(
    stream: &Stream,
    x: View<'_>,
    residual: Option<ViewMut<'_>>,
    weight: View<'_>,
    bias: View<'_>,
    eps: f32,
    out: ViewMut<'_>,
) -> Result<(), Error> {
    let parameters = [("weight", weight), ("bias", bias)];
    let (tokens, width) = row::check("layer_norm", &x, residual.as_ref(), &parameters, &out)?;
    if stream.is_cpu() {
        reference(x, residual, weight, bias, eps, out);
        return Ok(());
    }
    let entry = match (x.dtype(), &residual) {
        (DType::F16, None) => gpu::layer_norm_f16,
        (DType::F16, Some(_)) => gpu::add_layer_norm_f16,
        (_, None) => gpu::layer_norm_bf16,
        (_, Some(_)) => gpu::add_layer_norm_bf16,
    };
    let args = gpu::LayerNorm {
        x: x.ptr(),
        residual: residual.as_ref().map_or(out.ptr(), |residual| residual.ptr()),
        weight: weight.ptr(),
        bias: bias.ptr(),
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
fn reference(x: View<'_>, residual: Option<ViewMut<'_>>, weight: View<'_>, bias: View<'_>, eps: f32, out: ViewMut<'_>) {
    let (mut gain, mut shift) = (Vec::new(), Vec::new());
    row_f32(&weight, 0, &mut gain);
    row_f32(&bias, 0, &mut shift);
    row::reference(x, residual, out, |h| {
        let len = h.len() as f32;
        let mean = row::sum(h, |v| v) / len;
        let variance = row::sum(h, |v| (v - mean) * (v - mean)) / len;
        let scale = 1.0 / (variance + eps).sqrt();
        h.iter_mut().zip(&gain).zip(&shift).for_each(|((v, w), b)| *v = (*v - mean) * scale * w + b);
    });
}

/// Tests and benches of both entries.
pub(crate) fn kernel() -> Kernel {
    row::kernel("norm/layer_norm", gpu::ENTRIES, Norm::Layer)
}
