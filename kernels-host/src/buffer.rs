//! Device memory and views of it.
use crate::device::{DeviceMemory, graph, host_words};
use crate::{DType, Device, Error};
use bytemuck::Pod;
use kernels_gpu::prim::DevicePtr;
use std::sync::Arc;

/// Owned memory on a device: `len` elements of one type, 256-byte aligned on GPUs.
pub struct Buffer {
    dtype: DType,
    len: usize,
    storage: Storage,
}

enum Storage {
    Host(Vec<u128>),
    /// Shared with the graphs that run on it.
    Device(Arc<DeviceMemory>),
}

/// A read-only matrix in device memory: `rows` of `cols` elements, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(crate) mem: Mem<'a>,
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
}

#[derive(Clone, Copy)]
pub(crate) enum Mem<'a> {
    Host(&'a [u8]),
    Device(DevicePtr, &'a Arc<DeviceMemory>),
}

/// A writable matrix in device memory, as [`View`].
pub struct ViewMut<'a> {
    pub(crate) mem: MemMut<'a>,
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
}

pub(crate) enum MemMut<'a> {
    Host(&'a mut [u8]),
    Device(DevicePtr, &'a Arc<DeviceMemory>),
}

impl Buffer {
    /// Allocates `len` elements. On the CPU they are zero, on a GPU undefined.
    pub fn new(device: &Device, dtype: DType, len: usize) -> Result<Self, Error> {
        let bytes = len * dtype.size();
        let storage = match device.alloc(dtype, len)? {
            None => Storage::Host(host_words(bytes)),
            Some(memory) => Storage::Device(Arc::new(memory)),
        };
        Ok(Buffer { dtype, len, storage })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// All of it, as one row.
    pub fn view(&self) -> View<'_> {
        let bytes = self.len * self.dtype.size();
        let mem = match &self.storage {
            Storage::Host(words) => Mem::Host(&bytemuck::cast_slice(words)[..bytes]),
            Storage::Device(memory) => Mem::Device(memory.ptr(), memory),
        };
        View { mem, dtype: self.dtype, rows: 1, cols: self.len, stride: self.len }
    }

    /// All of it, as one row.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let bytes = self.len * self.dtype.size();
        let mem = match &mut self.storage {
            Storage::Host(words) => MemMut::Host(&mut bytemuck::cast_slice_mut(words)[..bytes]),
            Storage::Device(memory) => MemMut::Device(memory.ptr(), memory),
        };
        ViewMut { mem, dtype: self.dtype, rows: 1, cols: self.len, stride: self.len }
    }

    /// The first `rows * cols` elements as a matrix.
    ///
    /// # Panics
    /// If the buffer is smaller: a mistake of the caller's, not of its input.
    pub fn matrix(&self, rows: usize, cols: usize) -> View<'_> {
        self.view().matrix(rows, cols)
    }

    /// The first `rows * cols` elements as a matrix; panics as [`Buffer::matrix`].
    pub fn matrix_mut(&mut self, rows: usize, cols: usize) -> ViewMut<'_> {
        self.view_mut().matrix(rows, cols)
    }
}

macro_rules! shape_methods {
    () => {
        /// Element type.
        pub fn dtype(&self) -> DType {
            self.dtype
        }
        /// Rows.
        pub fn rows(&self) -> usize {
            self.rows
        }
        /// Elements per row.
        pub fn cols(&self) -> usize {
            self.cols
        }
        /// Elements from one row's start to the next one's.
        pub fn stride(&self) -> usize {
            self.stride
        }
        /// Whether rows follow each other without a gap.
        pub fn is_contiguous(&self) -> bool {
            self.stride == self.cols || self.rows <= 1
        }
        /// Elements from the first to the end of the last, gaps included.
        fn span(&self) -> usize {
            if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols }
        }
        /// A contiguous view's first `rows * cols` elements, reshaped.
        ///
        /// # Panics
        /// If it has gaps or is smaller.
        pub fn matrix(self, rows: usize, cols: usize) -> Self {
            assert!(self.is_contiguous(), "only a contiguous view can be reshaped");
            assert!(rows * cols <= self.rows * self.cols, "{rows} x {cols} elements of {}", self.rows * self.cols);
            Self { rows, cols, stride: cols, ..self }
        }
        /// Columns `start..start + count` of every row.
        ///
        /// # Panics
        /// If there are fewer.
        pub fn columns(self, start: usize, count: usize) -> Self {
            assert!(start + count <= self.cols, "columns {start}..{} of {}", start + count, self.cols);
            let (rows, stride) = (self.rows, self.stride);
            Self { cols: count, rows, stride, ..self.skip(start) }
        }
        /// Rows `start..start + count`.
        ///
        /// # Panics
        /// If there are fewer.
        pub fn row_range(self, start: usize, count: usize) -> Self {
            assert!(start + count <= self.rows, "rows {start}..{} of {}", start + count, self.rows);
            let (cols, stride) = (self.cols, self.stride);
            Self { rows: count, cols, stride, ..self.skip(start * stride) }
        }
    };
}

impl<'a> View<'a> {
    shape_methods!();

    fn skip(self, elements: usize) -> Self {
        let bytes = elements * self.dtype.size();
        let mem = match self.mem {
            Mem::Host(slice) => Mem::Host(&slice[bytes..]),
            Mem::Device(ptr, memory) => Mem::Device(DevicePtr(ptr.0 + bytes as u64), memory),
        };
        Self { mem, ..self }
    }

    /// A contiguous view's memory as one row of u32 words; a rest of less than a word is left out.
    ///
    /// # Panics
    /// If it has gaps.
    pub fn words(self) -> Self {
        assert!(self.is_contiguous(), "only a contiguous view is a row of words");
        let words = self.rows * self.cols * self.dtype.size() / size_of::<u32>();
        let mem = match self.mem {
            Mem::Host(bytes) => Mem::Host(&bytes[..words * size_of::<u32>()]),
            device => device,
        };
        View { mem, dtype: DType::U32, rows: 1, cols: words, stride: words }
    }

    /// The GPU address for a launch. A graph that is being captured keeps the memory from now on.
    ///
    /// # Panics
    /// On the CPU.
    pub fn ptr(&self) -> DevicePtr {
        match self.mem {
            Mem::Device(ptr, memory) => {
                graph::keep(memory);
                ptr
            }
            Mem::Host(_) => panic!("a host view has no device address"),
        }
    }

    /// Row `row` on the CPU device.
    ///
    /// # Panics
    /// On a GPU, or if `T` has another size than the elements.
    pub fn row<T: Pod>(&self, row: usize) -> &'a [T] {
        &self.host::<T>()[row * self.stride..][..self.cols]
    }

    /// All elements (with the gaps between rows) on the CPU device; panics as [`View::row`].
    pub fn host<T: Pod>(&self) -> &'a [T] {
        assert_eq!(size_of::<T>(), self.dtype.size());
        match self.mem {
            Mem::Host(bytes) => &bytemuck::cast_slice(bytes)[..self.span()],
            Mem::Device(..) => panic!("a device view was read as host memory"),
        }
    }

    /// The elements of a half-precision or f32 view on the CPU device as f32, row by row without gaps.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows * self.cols);
        for row in 0..self.rows {
            match self.dtype {
                DType::F32 => out.extend_from_slice(self.row::<f32>(row)),
                _ => out.extend(self.row::<u16>(row).iter().map(|&bits| self.dtype.decode(bits))),
            }
        }
        out
    }
}

impl<'a> ViewMut<'a> {
    shape_methods!();

    fn skip(self, elements: usize) -> Self {
        let bytes = elements * self.dtype.size();
        let mem = match self.mem {
            MemMut::Host(slice) => MemMut::Host(&mut slice[bytes..]),
            MemMut::Device(ptr, memory) => MemMut::Device(DevicePtr(ptr.0 + bytes as u64), memory),
        };
        Self { mem, ..self }
    }

    /// The GPU address for a launch; panics as [`View::ptr`].
    pub fn ptr(&self) -> DevicePtr {
        match self.mem {
            MemMut::Device(ptr, memory) => {
                graph::keep(memory);
                ptr
            }
            MemMut::Host(_) => panic!("a host view has no device address"),
        }
    }

    /// A shorter-lived copy of this view.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        let mem = match &mut self.mem {
            MemMut::Host(slice) => MemMut::Host(slice),
            MemMut::Device(ptr, memory) => MemMut::Device(*ptr, memory),
        };
        ViewMut { mem, dtype: self.dtype, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The same memory, read-only.
    pub fn as_view(&self) -> View<'_> {
        let mem = match &self.mem {
            MemMut::Host(slice) => Mem::Host(slice),
            MemMut::Device(ptr, memory) => Mem::Device(*ptr, memory),
        };
        View { mem, dtype: self.dtype, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// Row `row` on the CPU device; panics as [`View::row`].
    pub fn row_mut<T: Pod>(&mut self, row: usize) -> &mut [T] {
        let (stride, cols) = (self.stride, self.cols);
        &mut self.host_mut::<T>()[row * stride..][..cols]
    }

    /// All elements (with the gaps between rows) on the CPU device; panics as [`View::row`].
    pub fn host_mut<T: Pod>(&mut self) -> &mut [T] {
        assert_eq!(size_of::<T>(), self.dtype.size());
        let span = self.span();
        match &mut self.mem {
            MemMut::Host(bytes) => &mut bytemuck::cast_slice_mut(bytes)[..span],
            MemMut::Device(..) => panic!("a device view was written as host memory"),
        }
    }

    /// Stores f32 values, row by row without gaps, rounded to the element type, on the CPU device.
    pub fn store_f32(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.rows * self.cols);
        let dtype = self.dtype;
        for (row, values) in values.chunks(self.cols.max(1)).enumerate() {
            match dtype {
                DType::F32 => self.row_mut::<f32>(row).copy_from_slice(values),
                _ => self.row_mut::<u16>(row).iter_mut().zip(values).for_each(|(bits, &x)| *bits = dtype.encode(x)),
            }
        }
    }
}
