//! Block tables on the device, and a copy of them here that says what is new.
use crate::error::Result;
use crate::scheduler::StepPlan;
use kernels_host::{Buffer, DType, Device, Pinned, Stream, View};

/// One row of page numbers for every sequence of a step. In steady decode a row changes once in 64 steps.
pub(super) struct BlockTables {
    device: Buffer,
    /// What the device has once everything queued has run.
    mirror: Vec<u32>,
    rows: usize,
    /// Pages of the longest sequence, in whole 16 bytes.
    stride: usize,
}

/// Rows and columns that a step changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changed {
    rows: (usize, usize),
    columns: (usize, usize),
}

impl BlockTables {
    /// For `rows` sequences of up to `pages` pages.
    pub fn new(stream: &Stream, rows: usize, pages: usize) -> Result<Self> {
        let stride = Self::stride(pages);
        let device = Buffer::new(stream.device(), DType::U32, rows * stride)?;
        let mut tables = BlockTables { device, mirror: vec![0; rows * stride], rows, stride };
        tables.clear(stream, 0)?;
        Ok(tables)
    }

    /// Every entry names the null page, so that padding has something to read.
    pub fn clear(&mut self, stream: &Stream, null_page: u32) -> Result<()> {
        self.mirror.fill(null_page);
        Ok(stream.upload(&self.mirror, self.device.view_mut())?)
    }

    /// Entries of a row for sequences of up to `pages` pages.
    fn stride(pages: usize) -> usize {
        pages.next_multiple_of(4)
    }

    /// Bytes of the tables, on the device and of each staging buffer.
    pub fn bytes(rows: usize, pages: usize) -> usize {
        rows * Self::stride(pages) * size_of::<u32>()
    }

    /// Pinned memory for the changes of one step.
    pub fn staging(&self, device: &Device) -> Result<Pinned> {
        Ok(Pinned::new(device, self.mirror.len() * size_of::<u32>())?)
    }

    /// u32 [rows, stride].
    pub fn view(&self) -> View<'_> {
        self.device.matrix(self.rows, self.stride)
    }

    /// Makes row i the pages of the plan's sequence i: queues one copy, or none if nothing has changed.
    pub fn update(&mut self, stream: &Stream, plan: &StepPlan, staging: &mut Pinned) -> Result<()> {
        let Some(Changed { rows: (first, last), columns: (start, end) }) = self.mirror(plan) else { return Ok(()) };
        let width = end - start;
        let words = staging.host::<u32>()?;
        for (row, into) in (first..last).zip(words.chunks_exact_mut(width)) {
            into.copy_from_slice(&self.mirror[row * self.stride..][start..end]);
        }
        let into = self.device.matrix_mut(self.rows, self.stride).row_range(first, last - first).columns(start, width);
        Ok(stream.upload_pinned(staging, 0, into)?)
    }

    /// Takes the plan's pages over and returns the smallest rectangle that holds what is new.
    fn mirror(&mut self, plan: &StepPlan) -> Option<Changed> {
        let mut changed: Option<Changed> = None;
        for (row, sequence) in plan.sequences.iter().enumerate() {
            let pages = &plan.pages[sequence.pages.clone()];
            let known = &mut self.mirror[row * self.stride..][..pages.len()];
            if known == pages {
                continue;
            }
            let start = known.iter().zip(pages).position(|(known, page)| known != page).unwrap_or(0);
            known[start..].copy_from_slice(&pages[start..]);
            let (rows, columns) = changed.map_or(((row, row), (start, pages.len())), |c| (c.rows, c.columns));
            changed =
                Some(Changed { rows: (rows.0, row + 1), columns: (columns.0.min(start), columns.1.max(pages.len())) });
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Limits, PlannedSequence, Scheduler, SchedulerConfig, SequenceId, SequenceRequest};
    use kernels_host::Target;
    use proptest::prelude::*;

    /// Only a scheduler makes ids.
    fn id() -> SequenceId {
        let limits = Limits { max_tokens: 10, max_sequences: 1, max_model_len: 10 };
        let mut scheduler = Scheduler::new(SchedulerConfig::new(limits), 1);
        scheduler.add(SequenceRequest { prompt: vec![1], ..SequenceRequest::default() }).unwrap();
        scheduler.plan().unwrap().sequences[0].id
    }

    fn plan(tables: &[Vec<u32>]) -> StepPlan {
        let mut plan = StepPlan::default();
        for pages in tables {
            let start = plan.pages.len();
            plan.pages.extend(pages);
            plan.sequences.push(PlannedSequence {
                id: id(),
                seq_slot: 0,
                queries: 1,
                kv_len: 1,
                pages: start..plan.pages.len(),
                unseen: None,
            });
        }
        plan
    }

    #[test]
    fn only_what_changed_is_copied() {
        let stream = Device::cpu().stream().unwrap();
        let mut tables = BlockTables::new(&stream, 4, 6).unwrap();
        let changed = |rows, columns| Some(Changed { rows, columns });
        assert_eq!(tables.mirror(&plan(&[vec![1, 2], vec![3]])), changed((0, 2), (0, 2)));
        assert_eq!(tables.mirror(&plan(&[vec![1, 2], vec![3]])), None);
        assert_eq!(tables.mirror(&plan(&[vec![1, 2], vec![3, 4]])), changed((1, 2), (1, 2)));
        // A sequence left: the rows behind it move up.
        assert_eq!(tables.mirror(&plan(&[vec![3, 4]])), changed((0, 1), (0, 2)));
    }

    proptest! {
        #[test]
        fn the_device_has_what_plans_say(
            steps in prop::collection::vec(prop::collection::vec(prop::collection::vec(0u32..50, 1..7), 1..5), 1..12)
        ) {
            for device in [Device::cpu(), Device::emulated(Target::Sm80, 0)] {
                let stream = device.stream().unwrap();
                let mut tables = BlockTables::new(&stream, 4, 6).unwrap();
                let mut staging = tables.staging(&device).unwrap();
                for step in &steps {
                    tables.update(&stream, &plan(step), &mut staging).unwrap();
                    let mut all = vec![0u32; 4 * 8];
                    stream.download(tables.view(), &mut all).unwrap();
                    for (row, pages) in step.iter().enumerate() {
                        prop_assert_eq!(&all[row * 8..][..pages.len()], pages.as_slice());
                    }
                }
            }
        }
    }
}
