//! Host memory that the GPU copies to and from by itself, while the host goes on.
use super::stream::{Queue, Stream};
use super::{Backend, Device, MIXED, cuda, host_words};
use crate::buffer::{Mem, MemMut};
use crate::{Error, View, ViewMut};
use bytemuck::Pod;

/// Page-locked host memory; of the CPU and of an emulated device plain memory. Whoever looks at it waits for the last
/// copy that was queued from or into it, so neither side sees the other at work.
pub struct Pinned {
    memory: Memory,
    bytes: usize,
}

enum Memory {
    Plain(Vec<u128>),
    Locked(cuda::Locked),
}

/// Bytes of device memory that a copy takes part in: rows of some bytes, some bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Pitched {
    pub address: u64,
    pub rows: usize,
    pub width: usize,
    pub pitch: usize,
}

impl Pinned {
    /// Zeroed memory, at least 16-byte aligned.
    pub fn new(device: &Device, bytes: usize) -> Result<Self, Error> {
        let memory = match device.backend() {
            Backend::Cpu | Backend::Emulated(_) => Memory::Plain(host_words(bytes)),
            Backend::Cuda(gpu) => Memory::Locked(cuda::Locked::new(gpu, bytes)?),
        };
        Ok(Pinned { memory, bytes })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether every copy that was queued has happened.
    pub fn is_idle(&self) -> Result<bool, Error> {
        match &self.memory {
            Memory::Plain(_) => Ok(true),
            Memory::Locked(memory) => memory.is_idle(),
        }
    }

    /// The memory as whole elements, once every copy that was queued has happened.
    pub fn host<T: Pod>(&mut self) -> Result<&mut [T], Error> {
        let bytes = match &mut self.memory {
            Memory::Plain(words) => bytemuck::cast_slice_mut(words),
            Memory::Locked(memory) => memory.bytes()?,
        };
        let whole = self.bytes / size_of::<T>() * size_of::<T>();
        Ok(bytemuck::cast_slice_mut(&mut bytes[..whole]))
    }
}

impl Stream {
    /// Queues a copy of pinned bytes from `at` on to the device, whose rows need not follow each other there.
    ///
    /// # Panics
    /// If the view is larger than what follows `at`, or a graph is being captured.
    pub fn upload_pinned(&self, from: &mut Pinned, at: usize, mut into: ViewMut<'_>) -> Result<(), Error> {
        let (rows, width, pitch) = layout(into.rows(), into.cols(), into.stride(), into.dtype().size());
        assert!(at + rows * width <= from.bytes, "{rows} x {width} bytes at {at} of {} pinned ones", from.bytes);
        if rows * width == 0 || self.is_preparing() {
            return Ok(());
        }
        match (&mut into.mem, self.queue(), &mut from.memory) {
            (MemMut::Host(host), _, Memory::Plain(words)) => {
                let bytes: &[u8] = bytemuck::cast_slice(words);
                for (row, from) in bytes[at..][..rows * width].chunks_exact(width).enumerate() {
                    host[row * pitch..][..width].copy_from_slice(from);
                }
                Ok(())
            }
            (MemMut::Device(ptr, _), Queue::Emulated(queue), Memory::Plain(words)) => {
                let bytes: &[u8] = bytemuck::cast_slice(words);
                let mut rows = bytes[at..][..rows * width].chunks_exact(width).enumerate();
                rows.try_for_each(|(row, bytes)| queue.upload(ptr.0 + (row * pitch) as u64, bytes))
            }
            (MemMut::Device(ptr, _), Queue::Cuda(queue), Memory::Locked(memory)) => {
                queue.upload_locked(memory, at, Pitched { address: ptr.0, rows, width, pitch })
            }
            _ => panic!("{MIXED}"),
        }
    }

    /// Queues a copy of a view, without the gaps between its rows, to pinned bytes from `at` on. Of an emulated device,
    /// bytes that nothing has written are an error.
    ///
    /// # Panics
    /// As [`Stream::upload_pinned`].
    pub fn download_pinned(&self, from: View<'_>, into: &mut Pinned, at: usize) -> Result<(), Error> {
        let (rows, width, pitch) = layout(from.rows(), from.cols(), from.stride(), from.dtype().size());
        assert!(at + rows * width <= into.bytes, "{rows} x {width} bytes at {at} of {} pinned ones", into.bytes);
        if rows * width == 0 || self.is_preparing() {
            return Ok(());
        }
        match (from.mem, self.queue(), &mut into.memory) {
            (Mem::Host(host), _, Memory::Plain(words)) => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
                for (row, into) in bytes[at..][..rows * width].chunks_exact_mut(width).enumerate() {
                    into.copy_from_slice(&host[row * pitch..][..width]);
                }
                Ok(())
            }
            (Mem::Device(ptr, _), Queue::Emulated(queue), Memory::Plain(words)) => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
                let mut rows = bytes[at..][..rows * width].chunks_exact_mut(width).enumerate();
                rows.try_for_each(|(row, bytes)| queue.download(ptr.0 + (row * pitch) as u64, bytes))
            }
            (Mem::Device(ptr, _), Queue::Cuda(queue), Memory::Locked(memory)) => {
                queue.download_locked(Pitched { address: ptr.0, rows, width, pitch }, memory, at)
            }
            _ => panic!("{MIXED}"),
        }
    }
}

/// Rows, bytes of a row, and bytes from one to the next; one row where there is no gap.
fn layout(rows: usize, cols: usize, stride: usize, size: usize) -> (usize, usize, usize) {
    if rows <= 1 || stride == cols {
        (rows.min(1), rows * cols * size, rows * cols * size)
    } else {
        (rows, cols * size, stride * size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffer, DType, Target};

    #[test]
    fn rows_go_to_and_come_from_a_wider_table() {
        for device in [Device::cpu(), Device::emulated(Target::Sm80, 1)] {
            let stream = device.stream().unwrap();
            let mut table = Buffer::new(&device, DType::U32, 4 * 10).unwrap();
            stream.fill(table.view_mut(), 0).unwrap();
            let mut pinned = Pinned::new(&device, 100).unwrap();
            let host = pinned.host::<u32>().unwrap();
            assert_eq!(host.len(), 25);
            host.iter_mut().enumerate().for_each(|(i, word)| *word = i as u32);
            // Two rows of three from the second word on.
            let part = table.matrix_mut(4, 10).row_range(1, 2).columns(5, 3);
            stream.upload_pinned(&mut pinned, 4, part).unwrap();
            let mut all = vec![0u32; 40];
            stream.download(table.view(), &mut all).unwrap();
            assert_eq!((&all[15..18], &all[25..28]), (&[1, 2, 3][..], &[4, 5, 6][..]));
            assert_eq!(all.iter().sum::<u32>(), 21);
            stream.download_pinned(table.matrix(4, 10).row_range(1, 2).columns(4, 3), &mut pinned, 40).unwrap();
            assert!(pinned.is_idle().unwrap());
            assert_eq!(pinned.host::<u32>().unwrap()[10..16], [0, 1, 2, 0, 4, 5]);
            stream.copy_columns(table.matrix_mut(4, 10), 5, 0, 3).unwrap();
            stream.download(table.view(), &mut all).unwrap();
            assert_eq!((&all[10..14], &all[20..24], all[0]), (&[1, 2, 3, 0][..], &[4, 5, 6, 0][..], 0));
        }
    }
}
