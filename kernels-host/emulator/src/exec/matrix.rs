//! `ldmatrix`, `stmatrix` and `mma`, by the functions of [`crate::tensor`].

use super::Lanes;
use super::cluster::Crew;
use super::step::{Executor, LaneFault};
use super::warp::Warp;
use crate::instruction::{MatrixRows, MmaOp, Op, Space};
use crate::tensor::fragment::mma_sync;
use crate::tensor::ldmatrix::{RowError, ldmatrix, stmatrix};
use crate::{Access, FaultKind};

impl Executor<'_> {
    /// Executes `op`, for which all lanes are here; false if it is not an operation of this
    /// module.
    pub(super) fn matrix(&mut self, warp: &mut Warp, crew: &mut Crew, op: &Op) -> Result<bool, LaneFault> {
        match op {
            Op::LoadMatrix { dst, rows } => {
                self.count_rows(warp, Access::Read, rows, dst.len());
                let values = match dst.len() {
                    1 => self.load_rows::<1>(warp, crew, rows)?.to_vec(),
                    2 => self.load_rows::<2>(warp, crew, rows)?.to_vec(),
                    _ => self.load_rows::<4>(warp, crew, rows)?.to_vec(),
                };
                for (dst, values) in dst.iter().zip(&values) {
                    warp.set32(*dst, super::ALL, values);
                }
            }
            Op::StoreMatrix { src, rows } => {
                self.count_rows(warp, Access::Write, rows, src.len());
                let values: Vec<_> = src.iter().map(|src| warp.get32(*src, &self.env)).collect();
                match *values.as_slice() {
                    [a] => self.store_rows(warp, crew, rows, &[a])?,
                    [a, b] => self.store_rows(warp, crew, rows, &[a, b])?,
                    [a, b, c, d] => self.store_rows(warp, crew, rows, &[a, b, c, d])?,
                    _ => {}
                }
            }
            Op::Mma(mma) => {
                *self.counters.tensor_operations.entry(mma.form.element().name()).or_default() += mma.form.operations();
                self.multiply(warp, mma)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Each row of a matrix is an access of 16 bytes by the lane that gives its address.
    fn count_rows(&mut self, warp: &Warp, access: Access, rows: &MatrixRows, matrices: usize) {
        let mask = super::ALL >> (32 - 8 * matrices);
        let addresses = self.addresses(warp, rows.address);
        self.count_access(access, Space::Shared, &addresses, mask, 16);
    }

    /// 32-bit addresses of the rows, lane by lane.
    fn rows(&self, warp: &Warp, rows: &MatrixRows) -> Lanes<u32> {
        super::map(&self.addresses(warp, rows.address), |address| address as u32)
    }

    fn load_rows<const N: usize>(
        &self,
        warp: &Warp,
        crew: &mut Crew,
        rows: &MatrixRows,
    ) -> Result<[Lanes<u32>; N], LaneFault> {
        let addresses = self.rows(warp, rows);
        let mut lane = 0;
        let read = |address: u32| {
            let who = self.who(warp, lane);
            let mut row = [0; 16];
            let found = crew.shared.read(u64::from(address), 16, who);
            row.copy_from_slice(found.map_err(|kind| LaneFault::at(lane, kind))?);
            lane += 1;
            Ok(row)
        };
        ldmatrix::<N, LaneFault>(&addresses, rows.transpose, read).map_err(|error| row_fault(error, Access::Read))
    }

    fn store_rows<const N: usize>(
        &self,
        warp: &Warp,
        crew: &mut Crew,
        rows: &MatrixRows,
        values: &[Lanes<u32>; N],
    ) -> Result<(), LaneFault> {
        let addresses = self.rows(warp, rows);
        let mut lane = 0;
        let write = |address: u32, row: [u8; 16]| {
            let who = self.who(warp, lane);
            let done = crew.shared.write(u64::from(address), &row, who);
            done.map_err(|kind| LaneFault::at(lane, kind))?;
            lane += 1;
            Ok(())
        };
        stmatrix::<N, LaneFault>(&addresses, rows.transpose, values, write)
            .map_err(|error| row_fault(error, Access::Write))
    }

    fn multiply(&self, warp: &mut Warp, mma: &MmaOp) -> Result<(), LaneFault> {
        let get = |operands: &[_]| -> Vec<Lanes<u32>> {
            operands.iter().map(|operand| warp.get32(*operand, &self.env)).collect()
        };
        let mut c = [[0; 32]; 4];
        c.copy_from_slice(&get(&mma.c));
        // The decoder has checked the form and counted the registers.
        let d = mma_sync(&mma.form, &get(&mma.a), &get(&mma.b), &c)
            .map_err(|error| FaultKind::Launch { what: error.to_string() })?;
        for (dst, values) in mma.d.iter().zip(&d) {
            warp.set32(*dst, super::ALL, values);
        }
        Ok(())
    }
}

fn row_fault(error: RowError<LaneFault>, access: Access) -> LaneFault {
    match error {
        RowError::Misaligned { lane, address } => {
            let address = u64::from(address);
            LaneFault::at(lane, FaultKind::Misaligned { access, bytes: 16, address })
        }
        RowError::Memory(fault) => fault,
    }
}
