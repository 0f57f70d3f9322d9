//! `wgmma` and `setmaxnreg`, and which registers the former work on.

use std::collections::HashMap;

use super::Decoder;
use super::matrix::ELEMENTS;
use crate::ParseError;
use crate::instruction::{
    Class, Op, OperandA, PredSource, Product, Reg, TensorRegister, TensorRegisters, TensorUse, Type, WarpgroupOp,
};
use crate::syntax::raw::{RawEntry, RawOperand};
use crate::tensor::accumulate::Accumulate;
use crate::tensor::wgmma::{K_BYTES, Major, Wgmma};

/// What `setmaxnreg` takes, in steps of eight.
const REGISTERS: std::ops::RangeInclusive<i64> = 24..=256;

impl Decoder<'_, '_> {
    pub(super) fn warpgroup(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        let op = match name {
            "setmaxnreg" => self.set_registers()?,
            "wgmma" => match self.words.first() {
                Some(&"mma_async") => WarpgroupOp::Multiply(Box::new(self.product()?)),
                _ => self.group_order()?,
            },
            _ => return Ok(None),
        };
        Ok(Some(Op::Warpgroup(op)))
    }

    fn set_registers(&mut self) -> Result<WarpgroupOp, ParseError> {
        let increase = self.required(&[("inc", true), ("dec", false)])?;
        self.aligned()?;
        self.ty()?;
        let count = self.constant()?;
        if !REGISTERS.contains(&count) || count % 8 != 0 {
            return self.wrong(format!("{count} registers are no multiple of 8 from 24 to 256"));
        }
        Ok(WarpgroupOp::SetRegisters { count: count as u32, increase })
    }

    fn group_order(&mut self) -> Result<WarpgroupOp, ParseError> {
        self.aligned()?;
        if self.has("fence") {
            return Ok(WarpgroupOp::Fence);
        }
        if self.has("commit_group") {
            return Ok(WarpgroupOp::Commit);
        }
        if !self.has("wait_group") {
            return self.wrong("only .mma_async, .fence, .commit_group and .wait_group are supported".into());
        }
        match u32::try_from(self.constant()?) {
            Ok(pending) => Ok(WarpgroupOp::Wait { pending }),
            Err(_) => self.wrong("the number of groups cannot be negative".into()),
        }
    }

    fn constant(&mut self) -> Result<i64, ParseError> {
        match *self.next()? {
            RawOperand::Integer(value) => Ok(value),
            _ => self.wrong(format!("operand {} must be a constant", self.read)),
        }
    }

    /// A constant that can be `no` or `yes`; which.
    fn flag(&mut self, no: i64, yes: i64) -> Result<bool, ParseError> {
        let value = self.constant()?;
        if value == no || value == yes {
            return Ok(value == yes);
        }
        self.wrong(format!("operand {} must be {no} or {yes}", self.read))
    }

    fn product(&mut self) -> Result<Product, ParseError> {
        let _ = self.has("mma_async");
        self.aligned()?;
        let saturate = self.has("satfinite");
        let [m, n, k] = self.shape()?;
        let sums: &[(&str, bool)] = &[("f32", false), ("s32", true)];
        let integer = self.required(sums)?;
        let (a, b) = (self.required(ELEMENTS)?, self.required(ELEMENTS)?);
        if m != 64 || k * a.bytes() != K_BYTES || a.is_integer() != integer {
            return self.wrong(format!("there is no shape m{m}n{n}k{k} for these types"));
        }
        let mut form = match Wgmma::new(n, a, b) {
            Ok(form) => form.accumulate(Accumulate::of_wgmma(a)),
            Err(error) => return self.wrong(error.to_string()),
        };
        if saturate {
            form = form.saturate();
        }
        let d = self.tensor_registers()?;
        if d.len() != form.d_registers() {
            return self.wrong(format!("d has {} registers, not {}", d.len(), form.d_registers()));
        }
        let operand = match self.statement.operands.get(self.read) {
            Some(RawOperand::Vector(_)) => match <[TensorRegister; 4]>::try_from(self.tensor_registers()?) {
                Ok(registers) => OperandA::Registers(registers),
                Err(found) => return self.wrong(format!("a has {} registers, not 4", found.len())),
            },
            _ => OperandA::Shared(self.src(Type::B(64))?),
        };
        let descriptor = self.src(Type::B(64))?;
        let keep = match self.statement.operands.get(self.read) {
            Some(RawOperand::Integer(value)) => {
                self.read += 1;
                PredSource::Const(*value != 0)
            }
            _ => PredSource::Reg(self.guard()?),
        };
        if !integer {
            let (negate_a, negate_b) = (self.flag(1, -1)?, self.flag(1, -1)?);
            form = form.negate(negate_a, negate_b);
        }
        let major = |transposed| if transposed { Major::Mn } else { Major::K };
        let mut majors = (Major::K, Major::K);
        if a.bytes() == 2 {
            if matches!(operand, OperandA::Shared(_)) {
                majors.0 = major(self.flag(0, 1)?);
            }
            majors.1 = major(self.flag(0, 1)?);
        }
        match form.majors(majors.0, majors.1) {
            Ok(form) => Ok(Product { form, d, a: operand, b: descriptor, keep }),
            Err(error) => self.wrong(error.to_string()),
        }
    }

    /// The numbers of `mMnNkK`.
    fn shape(&mut self) -> Result<[usize; 3], ParseError> {
        let is_shape = |word: &&&str| word.starts_with('m') && word.len() > 1 && word.as_bytes()[1].is_ascii_digit();
        let Some(word) = self.words.iter().find(is_shape).copied() else {
            return self.wrong("a shape is missing".into());
        };
        let numbers: Vec<usize> = word[1..].split(['n', 'k']).filter_map(|number| number.parse().ok()).collect();
        let _ = self.has(word);
        match <[usize; 3]>::try_from(numbers) {
            Ok(shape) => Ok(shape),
            Err(_) => self.wrong(format!("`{word}` is not a shape")),
        }
    }

    fn tensor_registers(&mut self) -> Result<Vec<TensorRegister>, ParseError> {
        let registers = self.elements()?.iter().map(|raw| match raw {
            RawOperand::Word(name) => {
                let reg = self.fits(self.register(name)?, Type::B(32), false, name)?;
                Ok(TensorRegister { index: reg.index, id: 0 })
            }
            _ => self.wrong(format!("operand {} must be made of registers", self.read)),
        });
        registers.collect()
    }
}

/// Numbers the registers that matrix instructions work on, and notes who else uses them.
pub(super) struct Collector<'e, 'a> {
    entry: &'e RawEntry<'a>,
    /// The entry has matrix instructions.
    any: bool,
    ids: HashMap<u32, u16>,
    names: Vec<String>,
    touched: Vec<Vec<(Reg, bool)>>,
}

impl<'e, 'a> Collector<'e, 'a> {
    pub fn new(entry: &'e RawEntry<'a>) -> Self {
        let any = entry.statements.iter().any(|statement| statement.opcode.starts_with("wgmma.mma_async"));
        Self { entry, any, ids: HashMap::new(), names: Vec::new(), touched: Vec::new() }
    }

    /// Takes the next instruction, which names the registers in `touched`, some as destinations.
    pub fn collect(&mut self, mut op: Op, touched: Vec<(Reg, bool)>) -> Op {
        if !self.any {
            return op;
        }
        if let Op::Warpgroup(WarpgroupOp::Multiply(product)) = &mut op {
            self.number(&mut product.d);
            if let OperandA::Registers(registers) = &mut product.a {
                self.number(registers);
            }
            self.touched.push(Vec::new());
        } else {
            self.touched.push(touched);
        }
        op
    }

    fn number(&mut self, registers: &mut [TensorRegister]) {
        for register in registers {
            register.id = *self.ids.entry(register.index).or_insert_with(|| {
                self.names.push(self.entry.name_of(Reg { class: Class::B32, index: register.index }));
                self.names.len() as u16 - 1
            });
        }
    }

    pub fn finish(self) -> TensorRegisters {
        let uses = |touched: &Vec<(Reg, bool)>| {
            let narrow = touched.iter().filter(|(reg, _)| reg.class == Class::B32);
            let found =
                narrow.filter_map(|(reg, writes)| Some(TensorUse { id: *self.ids.get(&reg.index)?, writes: *writes }));
            let mut uses: Vec<_> = found.collect();
            // A read sorts before a write of the same register, and stays.
            uses.sort_unstable();
            uses.dedup_by_key(|found| found.id);
            uses.into_boxed_slice()
        };
        TensorRegisters { uses: self.touched.iter().map(uses).collect(), names: self.names }
    }
}
