//! Integer, floating-point and logic instructions, comparisons and moves.

use super::Decoder;
use crate::ParseError;
use crate::instruction::{
    Binary, BoolOp, Cmp, FloatFlags, Guard, Half, HalfOp, Op, Operand, PredSource, Setp, Ternary, Type, Unary,
};
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

/// The selectors of `prmt`'s modes, for each count.
const PERMUTATIONS: &[(&str, [u16; 4])] = &[
    ("f4e", [0x3210, 0x4321, 0x5432, 0x6543]),
    ("b4e", [0x5670, 0x6701, 0x7012, 0x0123]),
    ("rc8", [0x0000, 0x1111, 0x2222, 0x3333]),
    ("rc16", [0x1010, 0x3232, 0x1010, 0x3232]),
    ("ecl", [0x3210, 0x3211, 0x3222, 0x3333]),
    ("ecr", [0x0000, 0x1110, 0x2210, 0x3210]),
];

/// Which part of a product an integer multiplication keeps.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Low,
    High,
    Wide,
}

const HALVES: &[(&str, Part)] = &[("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)];

impl Decoder<'_, '_> {
    /// Decodes the instructions of this module; `None` if `name` is not one of them.
    pub(super) fn arithmetic(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        Ok(Some(match name {
            _ if self.is_half() && self.half_operation(name).is_some() => self.half(name)?,
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
            "prmt" => {
                let op = self.choice(PERMUTATIONS).map_or(Ternary::Prmt, Ternary::PrmtMode);
                self.ternary(op)?
            }
            "dp4a" => self.dot_product()?,
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

    /// Whether the instruction's type is f16, bf16 or a pair of them.
    fn is_half(&self) -> bool {
        self.words.iter().any(|word| matches!(*word, "f16" | "bf16" | "f16x2" | "bf16x2"))
    }

    /// What `name` computes on the half types, and of how many operands.
    fn half_operation(&self, name: &str) -> Option<(HalfOp, usize)> {
        let nan = self.words.contains(&"NaN");
        Some(match name {
            "add" => (HalfOp::Add, 2),
            "sub" => (HalfOp::Sub, 2),
            "mul" => (HalfOp::Mul, 2),
            "fma" => (HalfOp::Fma, 3),
            "min" if nan => (HalfOp::MinNan, 2),
            "max" if nan => (HalfOp::MaxNan, 2),
            "min" => (HalfOp::Min, 2),
            "max" => (HalfOp::Max, 2),
            "neg" => (HalfOp::Neg, 1),
            "abs" => (HalfOp::Abs, 1),
            _ => return None,
        })
    }

    fn half(&mut self, name: &str) -> Result<Op, ParseError> {
        let Some((op, arity)) = self.half_operation(name) else { return self.wrong("not of this type".into()) };
        let _ = self.has("NaN") | self.has("rn");
        let (ftz, sat, relu) = (self.has("ftz"), self.has("sat"), self.has("relu"));
        let ty = self.ty()?;
        let dst = self.dst(ty)?;
        let mut args = [Operand::Imm(0); 3];
        for arg in &mut args[..arity] {
            *arg = self.src(ty)?;
        }
        Ok(Op::Half(Half { op, ty, ftz, sat, relu, dst, args }))
    }

    /// `dp4a.atype.btype d, a, b, c`: d and c are signed if either type is, which changes nothing.
    fn dot_product(&mut self) -> Result<Op, ParseError> {
        let (a, b) = (self.ty()?, self.ty()?);
        if ![a, b].iter().all(|ty| matches!(ty, Type::U(32) | Type::S(32))) {
            return self.wrong("the types must be .u32 or .s32".into());
        }
        let dst = self.dst(a)?;
        let args = [self.src(a)?, self.src(b)?, self.src(a)?];
        let op = Ternary::Dp4a(a.is_signed(), b.is_signed());
        Ok(Op::Ternary { op, ty: Type::U(32), flags: FloatFlags::default(), dst, args })
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
            Some(Part::Low) => self.binary(Binary::Mul),
            Some(Part::High) => self.binary(Binary::MulHi),
            Some(Part::Wide) => {
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
            Some(Part::Low) if name == "mad" => (Ternary::Mad, ty),
            Some(Part::High) if name == "mad" => (Ternary::MadHi, ty),
            Some(Part::Wide) if name == "mad" => (Ternary::MadWide, doubled(ty)),
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
