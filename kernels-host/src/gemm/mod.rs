//! Matrix products with the weights in Hugging Face's layout, fused with what follows them.
pub(crate) mod cases;
mod gemv;
mod gemv_norm;
mod gemv_qkv;
mod mma;
mod narrow;
mod reference;
mod skinny;
mod stream;
mod tuned;
mod wgmma;

pub use gemv_norm::NormGemm;
pub use gemv_qkv::NormQkv;
pub use tuned::Choice;

use crate::{Check, DType, Error, Stream, Target, View, ViewMut};
use kernels_gpu::tile::epilogue::activation as code;

/// `out = activation(a · wᵀ + bias) (+ out)`; accumulated in f32, rounded once.
pub struct Gemm<'a> {
    /// [m, k], bf16 or f16; k a multiple of 8.
    pub a: View<'a>,
    /// [n, k], as `a`. When gated, gate and up rows interleaved as [`interleave_gate_up`] does. Kernels start
    /// reading it before the launches before have ended, so nothing queued since the last copy or synchronisation
    /// may write it.
    pub w: View<'a>,
    /// [1, n], as `a`; when gated interleaved as the rows of `w`.
    pub bias: Option<View<'a>>,
    /// What happens to the product.
    pub activation: Activation,
    /// Whether to add what `out` holds: the residual, in place.
    pub accumulate: bool,
    /// [m, n]; [m, n / 2] when gated. As `a`, or f32 with neither activation nor `accumulate` (logits).
    pub out: ViewMut<'a>,
}

/// What a [`Gemm`] applies to its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU, tanh form.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// `silu(gate) · up` of interleaved columns.
    SwiGlu,
    /// `gelu_tanh(gate) · up` of interleaved columns.
    GeGlu,
}

impl Activation {
    /// Whether it takes interleaved gate and up columns and so halves their number.
    pub fn is_gated(self) -> bool {
        matches!(self, Activation::SwiGlu | Activation::GeGlu)
    }

    /// The kernels' parameter.
    pub(crate) fn code(self) -> u32 {
        match self {
            Activation::None => code::IDENTITY,
            Activation::GeluTanh | Activation::GeGlu => code::GELU_TANH,
            Activation::GeluErf => code::GELU_ERF,
            Activation::SwiGlu => code::SILU,
        }
    }
}

/// What kernels are picked by. A new kernel is a file with `supports`, `launch` and `kernel`, a variant of [`Path`] and
/// its place in [`pick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// Rows of a.
    pub m: usize,
    /// Rows of w.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
}

/// The kernels that compute a [`Gemm`] on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Up to four rows, two weight rows a warp.
    Gemv,
    /// Up to 16 rows, weights from memory to registers to `mma.sync`.
    Narrow,
    /// Up to 128 rows on Hopper, weights streamed past `wgmma`, cut as stated or as fits.
    Stream(Option<stream::Cut>),
    /// Up to 64 rows, weights streamed past `mma.sync`.
    Skinny,
    /// Any shape, 128 × 128 tiles on `mma.sync`.
    Mma,
    /// Any shape on Hopper, by TMA and `wgmma`, in tiles as stated or as fit.
    Wgmma(Option<wgmma::Tile>),
}

impl Path {
    fn supports(self, shape: &Shape, target: Target) -> bool {
        match self {
            Path::Gemv => gemv::supports(shape),
            Path::Narrow => narrow::supports(shape),
            Path::Stream(cut) => stream::supports(shape, cut, target),
            Path::Skinny => skinny::supports(shape),
            Path::Mma => mma::supports(shape),
            Path::Wgmma(_) => wgmma::supports(shape, target),
        }
    }

    fn launch(self, gemm: &Gemm<'_>, shape: &Shape, stream: &Stream) -> Result<(), Error> {
        match self {
            Path::Gemv => gemv::launch(gemm, shape, stream),
            Path::Narrow => narrow::launch(gemm, shape, stream),
            Path::Stream(cut) => stream::launch(gemm, shape, cut, stream),
            Path::Skinny => skinny::launch(gemm, shape, stream),
            Path::Mma => mma::launch(gemm, shape, stream),
            Path::Wgmma(tile) => wgmma::launch(gemm, shape, tile, stream),
        }
    }
}

/// The kernel for a shape: what was measured to be the fastest, else the first of the list, best first, that can do it.
/// On a batch-invariant stream none that splits K: on Hopper both then add up a row's products in the accumulators of `wgmma`,
/// 16 elements of K at a time from the first to the last, whatever their tiles.
fn pick(gemm: &Gemm<'_>, shape: &Shape, target: Target, stream: &Stream) -> Option<Path> {
    if stream.is_batch_invariant() {
        let in_order = [Path::Stream(None), Path::Wgmma(None), Path::Mma];
        return in_order.into_iter().find(|path| path.supports(shape, target));
    }
    let tuned =
        tuned::find(shape, gemm.activation.is_gated(), stream.device()).filter(|path| path.supports(shape, target));
    if tuned.is_some() {
        return tuned;
    }
    // From three rows on the matrix instructions save more than the dot products' better order of reading gains.
    let few = if shape.m <= 2 { [Path::Gemv, Path::Narrow] } else { [Path::Narrow, Path::Gemv] };
    few.into_iter()
        .chain([Path::Stream(None), Path::Skinny, Path::Wgmma(None), Path::Mma])
        .find(|path| path.supports(shape, target))
}

/// Position of a kernel's entry in its table: bf16 and f16, plain, then gated, then with f32 output.
fn entry_index(gemm: &Gemm<'_>) -> usize {
    let kind = match (gemm.out.dtype(), gemm.activation.is_gated()) {
        (DType::F32, _) => 2,
        (_, gated) => usize::from(gated),
    };
    2 * kind + usize::from(gemm.a.dtype() == DType::F16)
}

/// The argument struct that all kernels share, under its name in each kernel's file.
macro_rules! args {
    ($Args:path, $gemm:ident, $shape:ident) => {{
        use $Args as Args;
        Args {
            a: $gemm.a.ptr(),
            w: $gemm.w.ptr(),
            bias: $gemm.bias.map_or(Default::default(), |bias| bias.ptr()),
            out: $gemm.out.ptr(),
            m: $shape.m as u32,
            n: $shape.n as u32,
            k: $shape.k as u32,
            a_stride: $gemm.a.stride() as u32,
            w_stride: $gemm.w.stride() as u32,
            out_stride: $gemm.out.stride() as u32,
            activation: $gemm.activation.code(),
            accumulate: u32::from($gemm.accumulate),
        }
    }};
}
use args;

impl Gemm<'_> {
    /// Queues the kernel that fits the shape and the GPU.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        self.launch_with(stream, None)
    }

    /// As [`Gemm::launch`]; on a GPU by `path` if it is given.
    pub(crate) fn launch_with(self, stream: &Stream, path: Option<Path>) -> Result<(), Error> {
        let shape = self.check()?;
        let Some(target) = stream.device().target() else {
            reference::run(self, &shape);
            return Ok(());
        };
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        match path.or_else(|| pick(&self, &shape, target, stream)).filter(|path| path.supports(&shape, target)) {
            Some(path) => path.launch(&self, &shape, stream),
            None => Err(Error::Unsupported { kernel: "gemm", what: format!("no kernel on {target} for {shape:?}") }),
        }
    }

    fn check(&self) -> Result<Shape, Error> {
        let mut check = Check::new("gemm");
        check.half("a", &self.a, ["m", "k"])?;
        check.half("w", &self.w, ["n", "k"])?;
        if let Some(bias) = &self.bias {
            check.half("bias", bias, ["1", "n"])?;
        }
        let shape = Shape { m: check.dim("m"), n: check.dim("n"), k: check.dim("k") };
        let gated = self.activation.is_gated();
        check.require(shape.k.is_multiple_of(8), || format!("k = {} must be a multiple of 8", shape.k))?;
        check.require(!gated || shape.n.is_multiple_of(16), || {
            format!("n = {} must be a multiple of 16: gate and up rows alternate in groups of 8", shape.n)
        })?;
        check.bind("out", "width", if gated { shape.n / 2 } else { shape.n })?;
        let out = self.out.as_view();
        if out.dtype() == DType::F32 {
            check.typed("out", &out, DType::F32, ["m", "width"])?;
            check.require(self.activation == Activation::None && !self.accumulate, || {
                "an f32 out takes neither an activation nor accumulate".into()
            })?;
            check.require(is_aligned(&out), || "out must start at a multiple of 16 bytes".into())?;
        } else {
            check.half("out", &out, ["m", "width"])?;
        }
        let most = u32::MAX as usize / 2;
        let spans = [shape.m, shape.n, shape.k, self.a.stride(), self.w.stride(), out.stride()];
        check.require(spans.iter().all(|&size| size <= most), || format!("sizes must be at most {most}"))?;
        Ok(shape)
    }
}

/// Whether a view on a GPU starts at a multiple of 16 bytes.
fn is_aligned(view: &View<'_>) -> bool {
    match view.mem {
        crate::buffer::Mem::Device(ptr, _) => ptr.0.is_multiple_of(16),
        crate::buffer::Mem::Host(_) => true,
    }
}

/// Rows of the gate and up projections, `rows` (a multiple of 8) of `cols` each, in alternating groups of 8,
/// as gated products want them: `into` gets gate rows 0..8, up rows 0..8, gate rows 8..16, …
///
/// # Panics
/// If the slices do not have these sizes.
pub fn interleave_gate_up(gate: &[u16], up: &[u16], rows: usize, cols: usize, into: &mut [u16]) {
    assert!(rows.is_multiple_of(8), "{rows} gate rows: not a multiple of 8");
    assert_eq!((gate.len(), up.len(), into.len()), (rows * cols, rows * cols, 2 * rows * cols));
    if cols == 0 {
        return;
    }
    let groups = gate.chunks_exact(8 * cols).zip(up.chunks_exact(8 * cols));
    for ((gate, up), into) in groups.zip(into.chunks_exact_mut(16 * cols)) {
        into[..8 * cols].copy_from_slice(gate);
        into[8 * cols..].copy_from_slice(up);
    }
}

/// Tokens of the pinned cases: edges of every kernel's tiles.
const TOKENS: &[usize] = &[1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 128, 200];

pub(crate) fn kernels() -> Vec<crate::case::Kernel> {
    vec![
        picked(),
        gemv::kernel(),
        gemv_norm::kernel(),
        gemv_qkv::kernel(),
        narrow::kernel(),
        stream::kernel(),
        skinny::kernel(),
        mma::kernel(),
        wgmma::kernel(),
    ]
}

/// The cases through whatever kernel is picked.
fn picked() -> crate::case::Kernel {
    crate::case::Kernel {
        name: "gemm/gemm",
        entries: Vec::new(),
        pinned: || {
            let mut cases = cases::real(None, &[1, 8, 16, 32, 64, 128, 2048]);
            cases.extend(cases::awkward(None, TOKENS));
            cases
        },
        #[cfg(feature = "proptest")]
        random: || cases::random(None, 150),
    }
}

#[cfg(test)]
mod tests {
    use super::interleave_gate_up;

    #[test]
    fn interleaves_groups_of_eight() {
        let gate: Vec<u16> = (0..32).collect();
        let up: Vec<u16> = (100..132).collect();
        let mut both = vec![0; 64];
        interleave_gate_up(&gate, &up, 16, 2, &mut both);
        assert_eq!(both[..16], gate[..16]);
        assert_eq!(both[16..32], up[..16]);
        assert_eq!(both[32..48], gate[16..]);
        assert_eq!(both[48..], up[16..]);
    }
}
