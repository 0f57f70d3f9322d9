//! `cvt` and `cvta`.

use super::Decoder;
use crate::ParseError;
use crate::instruction::{Cvt, Op, Rounding, Space, Type};

const ROUNDINGS: &[(&str, (Rounding, bool))] = &[
    ("rn", (Rounding::Nearest, false)),
    ("rz", (Rounding::Zero, false)),
    ("rm", (Rounding::Down, false)),
    ("rp", (Rounding::Up, false)),
    ("rni", (Rounding::Nearest, true)),
    ("rzi", (Rounding::Zero, true)),
    ("rmi", (Rounding::Down, true)),
    ("rpi", (Rounding::Up, true)),
];

impl Decoder<'_, '_> {
    pub(super) fn conversion(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        match name {
            "cvt" => self.cvt().map(Some),
            "cvta" => self.cvta().map(Some),
            _ => Ok(None),
        }
    }

    fn cvt(&mut self) -> Result<Op, ParseError> {
        let rounding = self.choice(ROUNDINGS);
        let ftz = self.has("ftz");
        // Saturation is the only thing that conversions to the 8-bit floats do.
        let sat = self.has("sat") | self.has("satfinite");
        let relu = self.has("relu");
        let (to, from) = (self.ty()?, self.ty()?);
        let packed = matches!(to, Type::F16x2 | Type::BF16x2 | Type::E4M3x2 | Type::E5M2x2) && from == Type::F32;
        let dst = self.wide_dst(to)?;
        let a = self.wide_src(from)?;
        let b = if packed { Some(self.wide_src(from)?) } else { None };
        let (rounding, integral) = rounding.unzip();
        let integral = integral.unwrap_or(false);
        Ok(Op::Cvt(Cvt { to, from, rounding, integral, ftz, sat, relu, dst, a, b }))
    }

    fn cvta(&mut self) -> Result<Op, ParseError> {
        let back = self.has("to");
        let space = self.required(&[
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
            ("param", Space::Param),
            ("const", Space::Global),
        ])?;
        let ty = self.ty()?;
        let (dst, a) = (self.dst(ty)?, self.src(ty)?);
        Ok(if back { Op::FromGeneric { space, ty, dst, a } } else { Op::ToGeneric { space, ty, dst, a } })
    }
}
