//! `ldmatrix`, `stmatrix` and `mma`.

use super::Decoder;
use crate::ParseError;
use crate::instruction::{MatrixRows, MmaOp, Op, Operand, Reg, Space, Type};
use crate::tensor::accumulate::Accumulate;
use crate::tensor::element::Element;
use crate::tensor::fragment::Mma;

pub(super) const ELEMENTS: &[(&str, Element)] = &[
    ("f16", Element::F16),
    ("bf16", Element::Bf16),
    ("tf32", Element::Tf32),
    ("e4m3", Element::E4m3),
    ("e5m2", Element::E5m2),
    ("s8", Element::S8),
    ("u8", Element::U8),
];

const DEPTHS: &[(&str, usize)] = &[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32)];

const WORD: Type = Type::B(32);

impl Decoder<'_, '_> {
    pub(super) fn matrix(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        match name {
            "ldmatrix" => self.load_matrix().map(Some),
            "stmatrix" => self.store_matrix().map(Some),
            "mma" => self.mma().map(Some),
            _ => Ok(None),
        }
    }

    /// `.sync.aligned`, which all of these carry.
    pub(super) fn aligned(&mut self) -> Result<(), ParseError> {
        if self.has("sync") && self.has("aligned") {
            return Ok(());
        }
        self.wrong("`.sync.aligned` is missing".into())
    }

    /// The number of matrices, and whether they are transposed.
    fn matrices(&mut self) -> Result<(usize, bool), ParseError> {
        self.aligned()?;
        if !(self.has("m8n8") && self.has("b16")) {
            return self.wrong("only .m8n8 and .b16 are supported".into());
        }
        if !(self.has("shared") || self.has("shared::cta")) {
            return self.wrong("only addresses in .shared are supported".into());
        }
        let count = self.required(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
        Ok((count, self.has("trans")))
    }

    fn load_matrix(&mut self) -> Result<Op, ParseError> {
        let (count, transpose) = self.matrices()?;
        let dst = self.registers(count)?;
        let address = self.address(Space::Shared)?;
        Ok(Op::LoadMatrix { dst, rows: MatrixRows { address, transpose } })
    }

    fn store_matrix(&mut self) -> Result<Op, ParseError> {
        let (count, transpose) = self.matrices()?;
        let address = self.address(Space::Shared)?;
        let src = self.sources(count)?;
        Ok(Op::StoreMatrix { src, rows: MatrixRows { address, transpose } })
    }

    fn registers(&mut self, count: usize) -> Result<Vec<Reg>, ParseError> {
        let found = self.elements()?;
        let mut registers = Vec::with_capacity(count);
        for raw in found {
            match self.optional_dst(raw, WORD)? {
                Some(reg) => registers.push(reg),
                None => return self.wrong("`_` cannot stand here".into()),
            }
        }
        self.counted(registers, count)
    }

    fn sources(&mut self, count: usize) -> Result<Vec<Operand>, ParseError> {
        let found = self.elements()?;
        let sources = found.iter().map(|raw| self.source(raw, WORD, false));
        self.counted(sources.collect::<Result<_, _>>()?, count)
    }

    fn counted<T>(&self, found: Vec<T>, count: usize) -> Result<Vec<T>, ParseError> {
        if found.len() == count {
            return Ok(found);
        }
        self.wrong(format!("operand {} has {} registers, not {count}", self.read, found.len()))
    }

    fn mma(&mut self) -> Result<Op, ParseError> {
        self.aligned()?;
        let k = self.required(DEPTHS)?;
        if !(self.has("row") && self.has("col")) {
            return self.wrong("only .row.col is supported".into());
        }
        let saturate = self.has("satfinite");
        let sums: &[(&str, bool)] = &[("f32", false), ("s32", true)];
        let integer = self.required(sums)?;
        let (a, b) = (self.required(ELEMENTS)?, self.required(ELEMENTS)?);
        if self.required(sums)? != integer || a.is_integer() != integer {
            return self.wrong("these types do not go together".into());
        }
        let form = match Mma::new(k, a, b) {
            Ok(form) if saturate => form.saturate(),
            // As on the H200 that the emulator is held against.
            Ok(form) => form.accumulate(Accumulate::of_mma(90, a)),
            Err(error) => return self.wrong(error.to_string()),
        };
        let d = self.registers(4)?;
        let (a, b) = (self.sources(form.a_registers())?, self.sources(form.b_registers())?);
        let c = self.sources(4)?;
        Ok(Op::Mma(Box::new(MmaOp { form, d, a, b, c })))
    }
}
