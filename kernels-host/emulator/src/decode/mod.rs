//! Statements to instructions. Every modifier and every operand must be understood: one that is
//! left over is an error, so nothing is executed that was only half read.

mod arithmetic;
mod asynchronous;
mod control;
mod convert;
mod matrix;
mod memory;
mod warpgroup;

use std::cell::RefCell;
use std::collections::HashMap;

use crate::ParseError;
use crate::instruction::{Address, Class, Guard, Instruction, Op, Operand, Reg, Space, Special, TensorRegisters, Type};
use crate::syntax::raw::{RawEntry, RawOperand, Statement};

/// What names outside an entry's registers and labels mean.
#[derive(Debug, Default)]
pub(crate) struct Symbols<'a> {
    pub names: HashMap<&'a str, Symbol>,
}

/// A variable or a parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    /// Offset in the block's shared memory.
    Shared(u32),
    /// Index among the module's variables in global memory.
    Global(u32),
    /// Offset in the launch's parameters.
    Param(u32),
}

/// The instructions of an entry.
#[derive(Debug)]
pub(crate) struct Code {
    pub instructions: Vec<Instruction>,
    /// The opcodes that [`Instruction::kind`] indexes.
    pub kinds: Vec<String>,
    pub tensor_registers: TensorRegisters,
}

/// Decodes the statements of `entry`.
///
/// # Errors
/// The first instruction that is unknown or malformed, by name and line.
pub(crate) fn decode(entry: &RawEntry<'_>, symbols: &Symbols<'_>) -> Result<Code, ParseError> {
    let mut kinds: Vec<String> = Vec::new();
    let mut known: HashMap<&str, u32> = HashMap::new();
    let mut instructions = Vec::with_capacity(entry.statements.len());
    let mut tensor = warpgroup::Collector::new(entry);
    for statement in &entry.statements {
        let kind = *known.entry(statement.opcode).or_insert_with(|| {
            kinds.push(statement.opcode.to_owned());
            kinds.len() as u32 - 1
        });
        let mut decoder = Decoder::new(entry, symbols, statement);
        let guard = match statement.guard {
            Some((name, negated)) => Some(Guard { pred: decoder.predicate(name)?, negated }),
            None => None,
        };
        let op = decoder.op()?;
        decoder.finish()?;
        let op = tensor.collect(op, decoder.touched.into_inner());
        instructions.push(Instruction { op, guard, line: statement.line, source: statement.source, kind });
    }
    Ok(Code { instructions, kinds, tensor_registers: tensor.finish() })
}

/// One statement on its way to an [`Op`].
pub(super) struct Decoder<'d, 'a> {
    entry: &'d RawEntry<'a>,
    symbols: &'d Symbols<'a>,
    statement: &'d Statement<'a>,
    /// Modifiers not yet understood.
    words: Vec<&'a str>,
    /// Operands already read.
    read: usize,
    /// Registers that were named, and whether as a destination.
    touched: RefCell<Vec<(Reg, bool)>>,
}

impl<'d, 'a> Decoder<'d, 'a> {
    fn new(entry: &'d RawEntry<'a>, symbols: &'d Symbols<'a>, statement: &'d Statement<'a>) -> Self {
        let words = statement.opcode.split('.').skip(1).collect();
        Self { entry, symbols, statement, words, read: 0, touched: RefCell::default() }
    }

    fn op(&mut self) -> Result<Op, ParseError> {
        let name = self.statement.opcode.split('.').next().unwrap_or_default();
        let families = [
            Self::arithmetic,
            Self::conversion,
            Self::asynchronous,
            Self::memory,
            Self::matrix,
            Self::warpgroup,
            Self::control,
        ];
        for family in families {
            if let Some(op) = family(self, name)? {
                return Ok(op);
            }
        }
        Err(ParseError::Unknown { line: self.statement.line, instruction: self.statement.opcode.into() })
    }

    fn finish(&self) -> Result<(), ParseError> {
        if let Some(word) = self.words.first() {
            return self.wrong(format!("modifier `.{word}` is not supported here"));
        }
        let extra = self.statement.operands.len() - self.read;
        if extra > 0 {
            return self.wrong(format!("{extra} operands too many"));
        }
        Ok(())
    }

    fn wrong<T>(&self, what: String) -> Result<T, ParseError> {
        let instruction = self.statement.opcode.to_owned();
        Err(ParseError::Instruction { line: self.statement.line, instruction, what })
    }

    // Modifiers.

    /// Takes modifier `word` if it is there.
    fn has(&mut self, word: &str) -> bool {
        match self.words.iter().position(|found| *found == word) {
            Some(at) => {
                self.words.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that `table` knows.
    fn choice<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        for (at, word) in self.words.iter().enumerate() {
            if let Some((_, value)) = table.iter().find(|(name, _)| name == word) {
                self.words.remove(at);
                return Some(*value);
            }
        }
        None
    }

    /// As [`Self::choice`], but one must be there.
    fn required<T: Copy>(&mut self, table: &[(&str, T)]) -> Result<T, ParseError> {
        match self.choice(table) {
            Some(value) => Ok(value),
            None => {
                let names: Vec<_> = table.iter().map(|(name, _)| format!(".{name}")).collect();
                self.wrong(format!("one of {} is missing", names.join(", ")))
            }
        }
    }

    /// Takes the first type.
    fn ty(&mut self) -> Result<Type, ParseError> {
        for (at, word) in self.words.iter().enumerate() {
            if let Some(ty) = type_named(word) {
                self.words.remove(at);
                return Ok(ty);
            }
        }
        self.wrong("a type is missing".into())
    }

    // Operands.

    fn left(&self) -> usize {
        self.statement.operands.len() - self.read
    }

    fn next(&mut self) -> Result<&'d RawOperand<'a>, ParseError> {
        match self.statement.operands.get(self.read) {
            Some(operand) => {
                self.read += 1;
                Ok(operand)
            }
            None => self.wrong(format!("operand {} is missing", self.read + 1)),
        }
    }

    fn register(&self, name: &str) -> Result<Reg, ParseError> {
        match self.found(name) {
            Some(found) => Ok(found),
            None => self.wrong(format!("`{name}` is not a register that this scope declares")),
        }
    }

    /// A register that the instruction writes.
    fn destination(&self, name: &str) -> Result<Reg, ParseError> {
        let found = self.register(name)?;
        self.touched.borrow_mut().pop();
        self.touched.borrow_mut().push((found, true));
        Ok(found)
    }

    /// The register that `name` is here, if it is one.
    fn found(&self, name: &str) -> Option<Reg> {
        let found = self.entry.register(self.statement.scope, name)?;
        self.touched.borrow_mut().push((found, false));
        Some(found)
    }

    fn predicate(&self, name: &str) -> Result<u32, ParseError> {
        match self.register(name)? {
            Reg { class: Class::Pred, index } => Ok(index),
            _ => self.wrong(format!("`{name}` is not a predicate")),
        }
    }

    /// Checks that `reg` has the width of `ty`, or at least that width if `wider` is allowed.
    fn fits(&self, reg: Reg, ty: Type, wider: bool, name: &str) -> Result<Reg, ParseError> {
        let bits = match reg.class {
            Class::Pred => 1,
            Class::B16 => 16,
            Class::B32 => 32,
            Class::B64 => 64,
        };
        if bits == ty.bits() || (wider && bits > ty.bits()) {
            return Ok(reg);
        }
        self.wrong(format!("`{name}` has {bits} bits, the type has {}", ty.bits()))
    }

    fn dst(&mut self, ty: Type) -> Result<Reg, ParseError> {
        match self.next()? {
            RawOperand::Word(name) => self.fits(self.destination(name)?, ty, false, name),
            _ => self.wrong("the destination must be a register".into()),
        }
    }

    /// A destination that may be wider than the type (`cvt`, `ld`).
    fn wide_dst(&mut self, ty: Type) -> Result<Reg, ParseError> {
        match self.next()? {
            RawOperand::Word(name) => self.fits(self.destination(name)?, ty, true, name),
            _ => self.wrong("the destination must be a register".into()),
        }
    }

    fn src(&mut self, ty: Type) -> Result<Operand, ParseError> {
        let raw = self.next()?;
        self.source(raw, ty, false)
    }

    fn wide_src(&mut self, ty: Type) -> Result<Operand, ParseError> {
        let raw = self.next()?;
        self.source(raw, ty, true)
    }

    fn source(&self, raw: &RawOperand<'_>, ty: Type, wider: bool) -> Result<Operand, ParseError> {
        match raw {
            RawOperand::Word(name) => {
                if let Some(reg) = self.found(name) {
                    return Ok(Operand::Reg(self.fits(reg, ty, wider, name)?));
                }
                if let Some(special) = special_named(name) {
                    return Ok(Operand::Special(special));
                }
                match self.symbols.names.get(name) {
                    Some(Symbol::Shared(offset) | Symbol::Param(offset)) => Ok(Operand::Imm(u64::from(*offset))),
                    Some(Symbol::Global(index)) => Ok(Operand::Global(*index)),
                    None => self.wrong(format!("`{name}` is neither a register nor a variable")),
                }
            }
            RawOperand::Integer(value) => Ok(Operand::Imm(*value as u64)),
            RawOperand::Float(bits) if ty == Type::F64 => Ok(Operand::Imm(f64::from(f32::from_bits(*bits)).to_bits())),
            RawOperand::Float(bits) => Ok(Operand::Imm(u64::from(*bits))),
            RawOperand::Double(bits) if ty == Type::F32 => {
                Ok(Operand::Imm(u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            RawOperand::Double(bits) => Ok(Operand::Imm(*bits)),
            _ => self.wrong(format!("operand {} must be a register or a number", self.read)),
        }
    }

    fn guard(&mut self) -> Result<Guard, ParseError> {
        match self.next()? {
            RawOperand::Word(name) => Ok(Guard { pred: self.predicate(name)?, negated: false }),
            RawOperand::Not(name) => Ok(Guard { pred: self.predicate(name)?, negated: true }),
            _ => self.wrong(format!("operand {} must be a predicate", self.read)),
        }
    }

    /// The elements of a vector operand, or the operand itself.
    fn elements(&mut self) -> Result<&'d [RawOperand<'a>], ParseError> {
        match self.next()? {
            RawOperand::Vector(elements) => Ok(elements),
            other => Ok(std::slice::from_ref(other)),
        }
    }

    fn optional_dst(&self, raw: &RawOperand<'_>, ty: Type) -> Result<Option<Reg>, ParseError> {
        match raw {
            RawOperand::Word("_") => Ok(None),
            RawOperand::Word(name) => Ok(Some(self.fits(self.destination(name)?, ty, true, name)?)),
            _ => self.wrong("a destination must be a register".into()),
        }
    }

    fn address(&mut self, space: Space) -> Result<Address, ParseError> {
        let (base, offset) = match self.next()? {
            RawOperand::Address(base, offset, coordinates) if coordinates.is_empty() => (base.as_ref(), *offset),
            _ => return self.wrong(format!("operand {} must be an address", self.read)),
        };
        // 32-bit registers address shared memory; elsewhere addresses have 64 bits.
        let base = self.source(base, Type::B(32), true)?;
        Ok(Address { space, base, offset })
    }
}

fn type_named(word: &str) -> Option<Type> {
    Some(match word {
        "pred" => Type::Pred,
        "b8" => Type::B(8),
        "b16" => Type::B(16),
        "b32" => Type::B(32),
        "b64" => Type::B(64),
        "u8" => Type::U(8),
        "u16" => Type::U(16),
        "u32" => Type::U(32),
        "u64" => Type::U(64),
        "s8" => Type::S(8),
        "s16" => Type::S(16),
        "s32" => Type::S(32),
        "s64" => Type::S(64),
        "f16" => Type::F16,
        "bf16" => Type::BF16,
        "f16x2" => Type::F16x2,
        "bf16x2" => Type::BF16x2,
        "f32" => Type::F32,
        "f64" => Type::F64,
        "e4m3x2" => Type::E4M3x2,
        "e5m2x2" => Type::E5M2x2,
        _ => return None,
    })
}

fn special_named(name: &str) -> Option<Special> {
    use crate::instruction::Cmp;
    let name = name.strip_prefix('%')?;
    if let Some((base, axis)) = name.split_once('.') {
        let axis = match axis {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        };
        return Some(match base {
            "tid" => Special::Tid(axis),
            "ntid" => Special::NTid(axis),
            "ctaid" => Special::CtaId(axis),
            "nctaid" => Special::NCtaId(axis),
            "cluster_ctaid" => Special::ClusterCtaId(axis),
            "cluster_nctaid" => Special::ClusterNCtaId(axis),
            "clusterid" => Special::ClusterId(axis),
            "nclusterid" => Special::NClusterId(axis),
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::LaneId,
        "warpid" => Special::WarpId,
        "nwarpid" => Special::NWarpId,
        "clock" | "clock64" | "globaltimer" | "globaltimer_lo" => Special::Clock,
        "clock_hi" | "globaltimer_hi" => Special::ClockHigh,
        "lanemask_eq" => Special::LaneMask(Cmp::Eq),
        "lanemask_lt" => Special::LaneMask(Cmp::Lt),
        "lanemask_le" => Special::LaneMask(Cmp::Le),
        "lanemask_gt" => Special::LaneMask(Cmp::Gt),
        "lanemask_ge" => Special::LaneMask(Cmp::Ge),
        "dynamic_smem_size" => Special::DynamicSharedBytes,
        "total_smem_size" => Special::TotalSharedBytes,
        "cluster_ctarank" => Special::ClusterCtaRank,
        "cluster_nctarank" => Special::ClusterNCtaRank,
        "smid" => Special::Constant(0),
        "nsmid" => Special::Constant(132),
        _ => return None,
    })
}
