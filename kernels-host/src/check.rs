//! Shape checks by name, once per launch.
use crate::{DType, Error, View};

/// Dimensions that a launch has named so far. The first use of a name binds it, later ones must agree.
///
/// ```
/// use kernels_host::{Buffer, Check, DType, Device};
/// let device = Device::cpu();
/// let x = Buffer::new(&device, DType::Bf16, 32).unwrap();
/// let weight = Buffer::new(&device, DType::Bf16, 16).unwrap();
/// let mut check = Check::new("rms_norm");
/// check.half("x", &x.matrix(2, 16), ["tokens", "width"]).unwrap();
/// check.half("weight", &weight.view(), ["1", "width"]).unwrap();
/// assert_eq!(check.dim("width"), 16);
/// ```
pub struct Check {
    kernel: &'static str,
    dims: [(&'static str, usize); 16],
    count: usize,
    half: Option<DType>,
}

impl Check {
    /// For messages, the kernel's name.
    pub fn new(kernel: &'static str) -> Self {
        Check { kernel, dims: [("", 0); 16], count: 0, half: None }
    }

    /// The size bound to `name`.
    ///
    /// # Panics
    /// If nothing bound it.
    pub fn dim(&self, name: &str) -> usize {
        self.dims[..self.count]
            .iter()
            .find(|(bound, _)| *bound == name)
            .map(|(_, size)| *size)
            .expect("a dimension that was bound")
    }

    /// Binds `name` to `size`, or compares. A name that is a number stands for itself, "_" for anything.
    pub fn bind(&mut self, argument: &'static str, name: &'static str, size: usize) -> Result<(), Error> {
        if name == "_" {
            return Ok(());
        }
        // Names of numbers are rare, and parsing every name would take as long as the comparisons.
        let literal = if name.starts_with(|c: char| c.is_ascii_digit()) { name.parse().ok() } else { None };
        let expected =
            literal.or_else(|| self.dims[..self.count].iter().find(|(bound, _)| *bound == name).map(|(_, size)| *size));
        match expected {
            Some(expected) if expected != size => {
                Err(Error::Shape { kernel: self.kernel, argument, dim: name, found: size, expected })
            }
            Some(_) => Ok(()),
            None => {
                self.dims[self.count] = (name, size);
                self.count += 1;
                Ok(())
            }
        }
    }

    /// A view of `dtype` with the named rows and columns.
    pub fn typed(
        &mut self,
        argument: &'static str,
        view: &View<'_>,
        dtype: DType,
        [rows, cols]: [&'static str; 2],
    ) -> Result<(), Error> {
        if view.dtype() != dtype {
            let expected = match dtype {
                DType::Bf16 => "bf16",
                DType::F16 => "f16",
                DType::F32 => "f32",
                DType::U32 => "u32",
                DType::U8 => "u8",
            };
            return Err(Error::Type { kernel: self.kernel, argument, found: view.dtype(), expected });
        }
        self.bind(argument, rows, view.rows())?;
        self.bind(argument, cols, view.cols())
    }

    /// A view of bf16 or f16, the same for all of the launch, whose rows the kernel reads in 16-byte
    /// vectors: 16-byte aligned, stride a multiple of 8.
    pub fn half(&mut self, argument: &'static str, view: &View<'_>, dims: [&'static str; 2]) -> Result<(), Error> {
        let dtype = view.dtype();
        if !dtype.is_half() {
            return Err(Error::Type { kernel: self.kernel, argument, found: dtype, expected: "bf16 or f16" });
        }
        let expected = *self.half.get_or_insert(dtype);
        self.typed(argument, view, expected, dims)?;
        let aligned = match view.mem {
            crate::buffer::Mem::Device(ptr, _) => ptr.0.is_multiple_of(16),
            crate::buffer::Mem::Host(_) => true,
        };
        self.require(aligned, || format!("{argument} must start at a multiple of 16 bytes"))?;
        self.require(view.rows() <= 1 || view.stride().is_multiple_of(8), || {
            format!("{argument}'s row stride of {} must be a multiple of 8 elements", view.stride())
        })
    }

    /// Any other condition; `what` says what is wrong and what would be right.
    pub fn require(&self, condition: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
        if condition { Ok(()) } else { Err(Error::Unsupported { kernel: self.kernel, what: what() }) }
    }
}
