//! A product of rows that are normalised first: in one kernel where there is one.
use super::{Gemm, Path, Shape, gemv_ring, pick};
use crate::norm::RmsNorm;
use crate::{Check, Error, Stream, View, ViewMut};

/// As [`Gemm`], of the RMSNorm of its `a`, to the bit as [`RmsNorm`] and then [`Gemm`] up to a width of 4096.
pub struct NormGemm<'a> {
    /// The product; its `a` are the rows before the norm.
    pub gemm: Gemm<'a>,
    /// [1, k], as `a`. Like `gemm.w` read before the launches before have ended.
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// [m, k], as `a`: for the rows after the norm. Written or not.
    pub normed: ViewMut<'a>,
}

impl NormGemm<'_> {
    /// Queues one kernel or two.
    pub fn launch(self, stream: &Stream) -> Result<(), Error> {
        self.launch_with(stream, None)
    }

    /// As [`NormGemm::launch`]; on a GPU by `path` if it is given.
    pub(crate) fn launch_with(self, stream: &Stream, path: Option<Path>) -> Result<(), Error> {
        let shape = self.gemm.check()?;
        let mut check = Check::new("norm_gemm");
        check.half("a", &self.gemm.a, ["m", "k"])?;
        check.half("weight", &self.weight, ["1", "k"])?;
        check.half("normed", &self.normed.as_view(), ["m", "k"])?;
        if let Some(fetch) = self.fused(&shape, stream, path) {
            return gemv_ring::launch(&self.gemm, &shape, fetch, Some((self.weight, self.eps)), stream);
        }
        let NormGemm { gemm, weight, eps, mut normed } = self;
        RmsNorm { x: gemm.a, weight, eps, out: normed.reborrow() }.launch(stream)?;
        let Gemm { w, bias, activation, accumulate, out, .. } = gemm;
        Gemm { a: normed.as_view(), w, bias, activation, accumulate, out }.launch_with(stream, path)
    }

    /// How the kernel that does both fetches the weights, if it is the one for the product.
    fn fused(&self, shape: &Shape, stream: &Stream, path: Option<Path>) -> Option<Option<gemv_ring::Fetch>> {
        let target = stream.device().target()?;
        let path = path.or_else(|| pick(&self.gemm, shape, target, stream.device()))?;
        let Path::GemvRing(fetch) = path else { return None };
        let fits = shape.n > 0 && gemv_ring::normalises(shape) && gemv_ring::supports(shape, fetch, target);
        (fits && stream.fuses()).then_some(fetch)
    }
}
