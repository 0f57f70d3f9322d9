//! Where the emulator is known not to be an H200.

/// Probes whose results are not the GPU's, and why: none is an instruction form that our kernels use on such values.
/// A probe that agrees must leave the list.
pub(super) const DIFFERENT: &[(&str, &str)] = &[
    ("atomics/global.add.f32", "subnormal numbers and payloads of NaNs"),
    ("atomics/shared.add.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("cvt/f64.f16", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("cvt/f64.f32", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("cvt/rn.f32.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("cvt/rn.ftz.f32.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("cvt/rni.u32.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("cvt/rz.f32.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("cvt/rzi.s32.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("f64/add.rn.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("f64/div.rn.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("f64/fma.rn.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("f64/max.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("f64/min.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("f64/mul.rn.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("f64/sqrt.rn.f64", "NaNs and signed zeros in f64, which no kernel of ours computes in"),
    ("mma/m16n8k4.row.col.f32.tf32.tf32.f32.Any", "three sums of tf32 that nearly cancel"),
];
