//! Integer, floating-point and logic instructions, comparisons and moves.

use super::Decoder;
use crate::ParseError;
use crate::instruction::{Binary, BoolOp, Cmp, FloatFlags, Guard, Op, PredSource, Setp, Ternary, Type, Unary};
use crate::syntax::raw::RawOperand;

const COMPARISONS: &[(&str, Cmp)] = &[
    ("eq", Cmp::Eq),
    ("ne", Cmp::Ne),
    ("lt", Cmp::Lt),
    ("le", Cmp::Le),
    ("gt", Cmp::Gt),
    ("ge", Cmp::Ge),
    ("lo", Cmp::Lt),
    ("ls", Cmp::Le),
    ("hi", Cmp::Gt),
    ("hs", Cmp::Ge),
    ("equ", Cmp::EqU),
    ("neu", Cmp::NeU),
    ("ltu", Cmp::LtU),
    ("leu", Cmp::LeU),
    ("gtu", Cmp::GtU),
    ("geu", Cmp::GeU),
    ("num", Cmp::Num),
    ("nan", Cmp::Nan),
];

const BOOLEANS: &[(&str, BoolOp)] = &[("and", BoolOp::And), ("or", BoolOp::Or), ("xor", BoolOp::Xor)];

/// Which half of a product an integer multiplication keeps.
#[derive(Clone, Copy, PartialEq)]
enum Half {
    Low,
    High,
    Wide,
}

const HALVES: &[(&str, Half)] = &[("lo", Half::Low), ("hi", Half::High), ("wide", Half::Wide)];

impl Decoder<'_, '_> {
    /// Decodes the instructions of this module; `None` if `name` is not one of them.
    pub(super) fn arithmetic(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        Ok(Some(match name {
            "add" => self.binary(Binary::Add)?,
            "sub" => self.binary(Binary::Sub)?,
            "mul" => self.multiply()?,
            "mad" | "fma" => self.multiply_add(name)?,
            "div" => self.binary(Binary::Div)?,
            "rem" => self.binary(Binary::Rem)?,
            "min" if self.has("NaN") => self.binary(Binary::MinNan)?,
            "max" if self.has("NaN") => self.binary(Binary::MaxNan)?,
            "min" => self.binary(Binary::Min)?,
            "max" => self.binary(Binary::Max)?,
            "and" | "or" | "xor" | "not" => self.logic(name)?,
            "shl" => self.shift(Binary::Shl)?,
            "shr" => self.shift(Binary::Shr)?,
            "copysign" => self.binary(Binary::CopySign)?,
            "abs" => self.unary(Unary::Abs)?,
            "neg" => self.unary(Unary::Neg)?,
            "popc" => self.bit_count(Unary::Popc)?,
            "clz" => self.bit_count(Unary::Clz)?,
            "brev" => self.unary(Unary::Brev)?,
            "sqrt" => self.unary(Unary::Sqrt)?,
            "rcp" => self.unary(Unary::Rcp)?,
            "rsqrt" => self.unary(Unary::Rsqrt)?,
            "ex2" => self.unary(Unary::Ex2)?,
            "lg2" => self.unary(Unary::Lg2)?,
            "sin" => self.unary(Unary::Sin)?,
            "cos" => self.unary(Unary::Cos)?,
            "tanh" => self.unary(Unary::Tanh)?,
            "bfe" => {
                let ty = self.ty()?;
                let dst = self.dst(ty)?;
                let word = Type::U(32);
                let args = [self.src(ty)?, self.src(word)?, self.src(word)?];
                Op::Ternary { op: Ternary::Bfe, ty, flags: FloatFlags::default(), dst, args }
            }
            "bfi" => {
                let ty = self.ty()?;
                let word = Type::U(32);
                let dst = self.dst(ty)?;
                let (a, b) = (self.src(ty)?, self.src(ty)?);
                Op::Bfi { ty, dst, a, b, start: self.src(word)?, length: self.src(word)? }
            }
            "prmt" => self.ternary(Ternary::Prmt)?,
            "lop3" => self.lop3()?,
            "shf" => {
                let left = self.required(&[("l", true), ("r", false)])?;
                let wrap = self.required(&[("wrap", true), ("clamp", false)])?;
                let op = if left { Ternary::ShfLeft(wrap) } else { Ternary::ShfRight(wrap) };
                self.ternary(op)?
            }
            "setp" => self.setp()?,
            "selp" => {
                let ty = self.ty()?;
                let dst = self.dst(ty)?;
                Op::Selp { ty, dst, a: self.src(ty)?, b: self.src(ty)?, pred: self.guard()? }
            }
            "mov" => self.mov()?,
            _ => return Ok(None),
        }))
    }

    /// `.ftz`, `.sat`, and the roundings and precisions that change nothing here: every operation
    /// is computed to the nearest value, which the approximate forms allow.
    fn float_flags(&mut self, ty: Type) -> Result<FloatFlags, ParseError> {
        let flags = FloatFlags { ftz: self.has("ftz"), sat: self.has("sat") };
        if matches!(ty, Type::F32 | Type::F64) {
            let _ = self.has("rn") || self.has("approx") || self.has("full");
        } else if flags != FloatFlags::default() || !(ty.is_integer() || matches!(ty, Type::B(_))) {
            return self.wrong("this instruction is not supported for this type".into());
        }
        Ok(flags)
    }

    fn unary(&mut self, op: Unary) -> Result<Op, ParseError> {
        let ty = self.ty()?;
        let flags = self.float_flags(ty)?;
        let float_only = !matches!(op, Unary::Abs | Unary::Neg | Unary::Not | Unary::Brev);
        if float_only && !matches!(ty, Type::F32 | Type::F64) {
            return self.wrong("this instruction takes .f32 or .f64".into());
        }
        Ok(Op::Unary { op, ty, flags, dst: self.dst(ty)?, a: self.src(ty)? })
    }

    /// `popc` and `clz`: the result has 32 bits whatever the source has.
    fn bit_count(&mut self, op: Unary) -> Result<Op, ParseError> {
        let ty = self.ty()?;
        let dst = self.dst(Type::U(32))?;
        Ok(Op::Unary { op, ty, flags: FloatFlags::default(), dst, a: self.src(ty)? })
    }

    fn binary(&mut self, op: Binary) -> Result<Op, ParseError> {
        let ty = self.ty()?;
        let flags = self.float_flags(ty)?;
        Ok(Op::Binary { op, ty, flags, dst: self.dst(ty)?, a: self.src(ty)?, b: self.src(ty)? })
    }

    fn shift(&mut self, op: Binary) -> Result<Op, ParseError> {
        let ty = self.ty()?;
        let (dst, a) = (self.dst(ty)?, self.src(ty)?);
        let b = self.src(Type::U(32))?;
        Ok(Op::Binary { op, ty, flags: FloatFlags::default(), dst, a, b })
    }

    fn ternary(&mut self, op: Ternary) -> Result<Op, ParseError> {
        let ty = self.ty()?;
        let flags = FloatFlags::default();
        let dst = self.dst(ty)?;
        let args = [self.src(ty)?, self.src(ty)?, self.src(ty)?];
        Ok(Op::Ternary { op, ty, flags, dst, args })
    }

    fn multiply(&mut self) -> Result<Op, ParseError> {
        let half = self.choice(HALVES);
        match half {
            None => self.binary(Binary::Mul),
            Some(Half::Low) => self.binary(Binary::Mul),
            Some(Half::High) => self.binary(Binary::MulHi),
            Some(Half::Wide) => {
                let ty = self.ty()?;
                let dst = self.dst(doubled(ty))?;
                let (a, b) = (self.src(ty)?, self.src(ty)?);
                let flags = FloatFlags::default();
                Ok(Op::Binary { op: Binary::MulWide, ty, flags, dst, a, b })
            }
        }
    }

    fn multiply_add(&mut self, name: &str) -> Result<Op, ParseError> {
        let half = self.choice(HALVES);
        let ty = self.ty()?;
        let flags = self.float_flags(ty)?;
        let (op, wide) = match half {
            None if matches!(ty, Type::F32 | Type::F64) => (Ternary::Fma, ty),
            Some(Half::Low) if name == "mad" => (Ternary::Mad, ty),
            Some(Half::High) if name == "mad" => (Ternary::MadHi, ty),
            Some(Half::Wide) if name == "mad" => (Ternary::MadWide, doubled(ty)),
            _ => return self.wrong("this form is not supported for this type".into()),
        };
        let dst = self.dst(wide)?;
        let args = [self.src(ty)?, self.src(ty)?, self.src(wide)?];
        Ok(Op::Ternary { op, ty, flags, dst, args })
    }

    fn logic(&mut self, name: &str) -> Result<Op, ParseError> {
        if self.has("pred") {
            let dst = self.dst(Type::Pred)?;
            let op = match name {
                "not" => {
                    let Guard { pred, negated } = self.guard()?;
                    let a = PredSource::Reg(Guard { pred, negated: !negated });
                    return Ok(Op::PredMov { dst, a });
                }
                "and" => BoolOp::And,
                "or" => BoolOp::Or,
                _ => BoolOp::Xor,
            };
            return Ok(Op::PredBinary { op, dst, a: self.guard()?, b: self.guard()? });
        }
        match name {
            "not" => self.unary(Unary::Not),
            "and" => self.binary(Binary::And),
            "or" => self.binary(Binary::Or),
            _ => self.binary(Binary::Xor),
        }
    }

    fn lop3(&mut self) -> Result<Op, ParseError> {
        let ty = self.ty()?;
        let dst = self.dst(ty)?;
        let args = [self.src(ty)?, self.src(ty)?, self.src(ty)?];
        let RawOperand::Integer(table) = *self.next()? else {
            return self.wrong("the truth table must be a number".into());
        };
        let op = Ternary::Lop3(table as u8);
        Ok(Op::Ternary { op, ty, flags: FloatFlags::default(), dst, args })
    }

    fn setp(&mut self) -> Result<Op, ParseError> {
        let cmp = self.required(COMPARISONS)?;
        let join = self.choice(BOOLEANS);
        let ftz = self.has("ftz");
        let ty = self.ty()?;
        if matches!(ty, Type::F16 | Type::BF16 | Type::F16x2 | Type::BF16x2 | Type::Pred) {
            return self.wrong("this type is not supported".into());
        }
        let (dst, inverse) = match self.next()? {
            RawOperand::Word(name) => (*name, "_"),
            RawOperand::Pair(name, inverse) => (*name, *inverse),
            _ => return self.wrong("the destination must be a predicate".into()),
        };
        let dst = self.optional_dst(&RawOperand::Word(dst), Type::Pred)?;
        let inverse = self.optional_dst(&RawOperand::Word(inverse), Type::Pred)?;
        let (a, b) = (self.src(ty)?, self.src(ty)?);
        let join = match join {
            Some(op) => Some((op, self.guard()?)),
            None => None,
        };
        Ok(Op::Setp(Setp { cmp, ty, ftz, join, dst, inverse, a, b }))
    }

    fn mov(&mut self) -> Result<Op, ParseError> {
        let ty = self.ty()?;
        if ty == Type::Pred {
            let dst = self.dst(ty)?;
            if let Some(RawOperand::Integer(value)) = self.statement.operands.get(self.read) {
                self.read += 1;
                return Ok(Op::PredMov { dst, a: PredSource::Const(*value != 0) });
            }
            return Ok(Op::PredMov { dst, a: PredSource::Reg(self.guard()?) });
        }
        if let Some(RawOperand::Vector(parts)) = self.statement.operands.first() {
            self.read += 1;
            let part = self.part(ty, parts.len())?;
            let parts = parts.iter().map(|raw| self.optional_dst(raw, part)).collect::<Result<_, _>>()?;
            return Ok(Op::Unpack { ty, parts, a: self.src(ty)? });
        }
        let dst = self.dst(ty)?;
        if let Some(RawOperand::Vector(parts)) = self.statement.operands.get(1) {
            self.read += 1;
            let part = self.part(ty, parts.len())?;
            let parts = parts.iter().map(|raw| self.source(raw, part, false)).collect::<Result<_, _>>()?;
            return Ok(Op::Pack { ty, dst, parts });
        }
        Ok(Op::Mov { ty, dst, a: self.src(ty)? })
    }

    /// The type of one of `count` parts that a register of type `ty` splits into.
    fn part(&self, ty: Type, count: usize) -> Result<Type, ParseError> {
        match (ty.bits(), count) {
            (64, 2) => Ok(Type::B(32)),
            (64, 4) | (32, 2) => Ok(Type::B(16)),
            (32, 4) | (16, 2) => Ok(Type::B(8)),
            _ => self.wrong(format!("{} bits do not split into {count} registers", ty.bits())),
        }
    }
}

/// The type of a wide product.
fn doubled(ty: Type) -> Type {
    match ty {
        Type::U(bits) => Type::U(bits * 2),
        Type::S(bits) => Type::S(bits * 2),
        other => other,
    }
}
