//! The forms of PTX's instructions: an opcode with choices of modifiers, and operands to try it with.
//!
//! `<a,b>` is a choice, `<,a>` one that may be empty, `<T:a,b>` one that the operands refer to: `$T` is a register as wide
//! as the type, `$2T` one twice as wide, `$VT` as many as `.v2` says, `$S` the accumulators of a shape of `wgmma`. A
//! name in capitals stands for the choices of [`NAMES`].

/// Instructions that belong together.
pub(super) struct Family {
    pub chapter: &'static str,
    pub title: &'static str,
    /// Where the PTX manual describes them.
    pub section: &'static str,
    /// What the sanitizer checks of them.
    pub checked: &'static str,
    pub forms: &'static [&'static str],
}

/// Choices that several forms share.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("INT", ".u16,.u32,.u64,.s16,.s32,.s64"),
    ("WORDS", ".u32,.u64,.s32,.s64"),
    ("BITS", ".b16,.b32,.b64"),
    ("HALF", ".f16,.f16x2,.bf16,.bf16x2"),
    ("ANY", ".b16,.b32,.b64,.u16,.u32,.u64,.s16,.s32,.s64,.f32,.f64"),
    ("NARROW", ".b8,.b16,.b32,.u8,.u16,.u32,.s8,.s16,.s32,.f32"),
    ("WIDE", ".b64,.u64,.s64,.f64"),
    ("ORDERED", ",.global,.shared,.shared::cta,.shared::cluster"),
    (
        "READ",
        ",.weak,.volatile,.relaxed.cta,.relaxed.cluster,.relaxed.gpu,.relaxed.sys,.acquire.cta,.acquire.cluster,\
         .acquire.gpu,.acquire.sys,.mmio.relaxed.sys",
    ),
    (
        "WRITTEN",
        ",.weak,.volatile,.relaxed.cta,.relaxed.cluster,.relaxed.gpu,.relaxed.sys,.release.cta,.release.cluster,\
         .release.gpu,.release.sys,.mmio.relaxed.sys",
    ),
    ("MODIFIED", ",.relaxed,.acquire,.release,.acq_rel"),
    ("SCOPE", ",.cta,.cluster,.gpu,.sys"),
    ("LANES", ",.v2,.v4"),
    ("L1", ",.L1::evict_normal,.L1::evict_unchanged,.L1::evict_first,.L1::evict_last,.L1::no_allocate"),
    ("L2", ",.L2::64B,.L2::128B,.L2::256B"),
    ("FLOATS", ".eq,.ne,.lt,.le,.gt,.ge,.equ,.neu,.ltu,.leu,.gtu,.geu,.num,.nan"),
    (
        "QUARTERS",
        ".m64n8k8,.m64n16k8,.m64n24k8,.m64n32k8,.m64n40k8,.m64n48k8,.m64n56k8,.m64n64k8,.m64n72k8,.m64n80k8\
         ,.m64n88k8,.m64n96k8,.m64n104k8,.m64n112k8,.m64n120k8,.m64n128k8,.m64n136k8,.m64n144k8,.m64n152k8\
         ,.m64n160k8,.m64n168k8,.m64n176k8,.m64n184k8,.m64n192k8,.m64n200k8,.m64n208k8,.m64n216k8,.m64n224k8\
         ,.m64n232k8,.m64n240k8,.m64n248k8,.m64n256k8",
    ),
    (
        "INTEGERS",
        ".m64n8k32,.m64n16k32,.m64n24k32,.m64n32k32,.m64n48k32,.m64n64k32,.m64n80k32,.m64n96k32,.m64n112k32,.m64n128k32,\
         .m64n144k32,.m64n160k32,.m64n176k32,.m64n192k32,.m64n208k32,.m64n224k32,.m64n240k32,.m64n256k32",
    ),
    ("RANK", ".1d,.2d,.3d,.4d,.5d"),
    (
        "SIXTEENTHS",
        ".m64n8k16,.m64n16k16,.m64n24k16,.m64n32k16,.m64n40k16,.m64n48k16,.m64n56k16,.m64n64k16,.m64n72k16,.m64n80k16,\
         .m64n88k16,.m64n96k16,.m64n104k16,.m64n112k16,.m64n120k16,.m64n128k16,.m64n136k16,.m64n144k16,.m64n152k16,\
         .m64n160k16,.m64n168k16,.m64n176k16,.m64n184k16,.m64n192k16,.m64n200k16,.m64n208k16,.m64n216k16,.m64n224k16,\
         .m64n232k16,.m64n240k16,.m64n248k16,.m64n256k16",
    ),
    (
        "EIGHTHS",
        ".m64n8k32,.m64n16k32,.m64n24k32,.m64n32k32,.m64n40k32,.m64n48k32,.m64n56k32,.m64n64k32,.m64n72k32,.m64n80k32,\
         .m64n88k32,.m64n96k32,.m64n104k32,.m64n112k32,.m64n120k32,.m64n128k32,.m64n136k32,.m64n144k32,.m64n152k32,\
         .m64n160k32,.m64n168k32,.m64n176k32,.m64n184k32,.m64n192k32,.m64n200k32,.m64n208k32,.m64n216k32,.m64n224k32,\
         .m64n232k32,.m64n240k32,.m64n248k32,.m64n256k32",
    ),
];

/// Registers that a modifier asks for.
pub(super) struct Shape {
    bits: u32,
    count: usize,
}

impl Shape {
    pub fn of(option: &str) -> Self {
        let accumulators = option.strip_prefix(".m64n").and_then(|rest| rest.split('k').next()?.parse::<usize>().ok());
        let bits = match option {
            ".f16" | ".bf16" | ".e4m3x2" | ".e5m2x2" => 16,
            ".f16x2" | ".bf16x2" => 32,
            _ if option.ends_with(['6', '8']) && !option.ends_with("128") => 16,
            _ if option.ends_with("64") => 64,
            _ => 32,
        };
        let lanes = match option {
            ".v2" | ".x2" | ".2d" => 2,
            ".3d" => 3,
            ".v4" | ".x4" | ".4d" => 4,
            ".5d" => 5,
            ".v8" => 8,
            _ => 1,
        };
        Self { bits, count: accumulators.map_or(lanes, |n| n / 2) }
    }

    /// The operands with what `letter` refers to filled in.
    pub fn fill(&self, operands: &str, letter: &str) -> String {
        let register = |bits: u32| match bits {
            16 => "%rs1",
            32 => "%r1",
            _ => "%rd1",
        };
        let vector = |one: &str| match self.count {
            1 => one.to_owned(),
            count => format!("{{{}}}", vec![one; count].join(", ")),
        };
        let distinct = || (4..4 + self.count).map(|at| format!("%r{at}")).collect::<Vec<_>>().join(", ");
        match letter {
            "V" => operands.replace("$VT", &vector("$T")),
            "X" => operands.replace("$X", &vector("%r1")),
            "S" => operands.replace("$S", &format!("{{{}}}", distinct())),
            "R" => operands.replace("$R", &vec!["%r1"; self.count].join(", ")),
            _ => operands
                .replace(&format!("$2{letter}"), register(self.bits * 2))
                .replace(&format!("${letter}"), register(self.bits)),
        }
    }
}
