//! Tensor maps: what the tensor memory accelerator knows of a tensor in global memory.
//!
//! The driver's `cuTensorMapEncodeTiled` makes 128 opaque bytes. [`TensorMap::new`] takes the same parameters,
//! refuses what the driver refuses, and [`TensorMap::encode`] makes 128 bytes of our own, which a kernel hands to
//! `cp.async.bulk.tensor` by address without looking inside.
//!
//! Not here: interleaved layouts, im2col maps, the sub-byte types, and the types that convert while
//! copying (`…_FTZ`, `TFLOAT32`): they are refused as unsupported.
use super::swizzle::Swizzle;

/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 5;
/// Bytes of an encoded map. The hardware wants them aligned to 64.
pub const MAP_BYTES: usize = 128;
/// Most elements of a box along a dimension.
const MAX_BOX: u32 = 256;
/// Greatest step between elements along a dimension.
const MAX_STEP: u32 = 8;
/// Most elements of a tensor along a dimension.
const MAX_DIM: u64 = 1 << 32;
/// Strides are less than this.
const STRIDE_LIMIT: u64 = 1 << 40;

/// `CUtensorMapDataType`, with the driver's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DataType {
    U8 = 0,
    U16 = 1,
    U32 = 2,
    S32 = 3,
    U64 = 4,
    S64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
}

impl DataType {
    const ALL: [DataType; 10] = [
        DataType::U8,
        DataType::U16,
        DataType::U32,
        DataType::S32,
        DataType::U64,
        DataType::S64,
        DataType::F16,
        DataType::F32,
        DataType::F64,
        DataType::Bf16,
    ];
    /// The type of the driver's number `code`.
    pub fn from_driver(code: u32) -> Result<DataType, TensorMapError> {
        DataType::ALL.into_iter().find(|&t| t as u32 == code).ok_or(TensorMapError::DataType(code))
    }
    /// Bytes of an element: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u32 {
        match self {
            DataType::U8 => 1,
            DataType::U16 | DataType::F16 | DataType::Bf16 => 2,
            DataType::U32 | DataType::S32 | DataType::F32 => 4,
            DataType::U64 | DataType::S64 | DataType::F64 => 8,
        }
    }
    /// Whether it has NaNs.
    pub const fn is_float(self) -> bool {
        matches!(self, DataType::F16 | DataType::Bf16 | DataType::F32 | DataType::F64)
    }
}

/// What loads put where a box reaches outside of the tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fill {
    /// `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`: zeros.
    #[default]
    Zero = 0,
    /// `CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA`: NaN, of floating-point types only. Which one is not
    /// documented: an H200 writes 0x7ff7 to every 16 bits.
    Nan = 1,
}

/// A map that the driver would refuse, or bytes that are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TensorMapError {
    #[error("tensor map: data type {0} is not supported (the driver's 0 to 9 are)")]
    DataType(u32),
    #[error("tensor map: rank {0} is outside of 1 to 5")]
    Rank(usize),
    #[error("tensor map: {what} has {found} entries where rank {rank} takes {expected}")]
    Entries { what: &'static str, found: usize, rank: usize, expected: usize },
    #[error("tensor map: global address {0:#x} is not a multiple of 16")]
    Address(u64),
    #[error("tensor map: dimension {axis} of {elements} elements is outside of 1 to 2^32")]
    Dimension { axis: usize, elements: u64 },
    #[error("tensor map: the stride of dimension {axis}, {bytes} bytes, is not a multiple of 16 below 2^40")]
    Stride { axis: usize, bytes: u64 },
    #[error("tensor map: box dimension {axis} of {elements} elements is outside of 1 to 256")]
    Box { axis: usize, elements: u32 },
    #[error("tensor map: rows of the box, {bytes} bytes, are not a multiple of 16")]
    BoxRow { bytes: u32 },
    #[error(
        "tensor map: rows of the box, {bytes} bytes, are wider than the {width}-byte swizzle: make the box narrower"
    )]
    SwizzleWidth { bytes: u32, width: u32 },
    #[error("tensor map: element stride {step} of dimension {axis} is outside of 1 to 8")]
    ElementStride { axis: usize, step: u32 },
    #[error("tensor map: {0:?} has no NaN to fill with: ask for zeros")]
    NanFill(DataType),
    #[error("tensor map: {what} {code} of the driver is not supported")]
    Code { what: &'static str, code: u32 },
    #[error("the 128 bytes are no tensor map: pass the address of one that this emulator's encoder made")]
    NotAMap,
}

/// The parameters of `cuTensorMapEncodeTiled`, without those that change no result (L2 promotion) or have one
/// supported value (interleave: none). Dimension 0 is the one whose elements are next to each other.
#[derive(Clone, Copy, Debug)]
pub struct Tiled<'a> {
    /// Type of the elements.
    pub data_type: DataType,
    /// Global address of the first element, 16-byte aligned.
    pub address: u64,
    /// Elements along each dimension; their number is the rank.
    pub dims: &'a [u64],
    /// Bytes between elements of dimensions 1 on: one less than the rank, multiples of 16.
    pub strides: &'a [u64],
    /// Elements that a box covers along each dimension, at most 256.
    pub box_dims: &'a [u32],
    /// Steps between the elements copied, 1 to 8: a box of 8 with step 2 copies 4. Ignored in dimension 0, as by the
    /// hardware.
    pub element_strides: &'a [u32],
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
    /// What elements outside of the tensor become.
    pub fill: Fill,
}

/// The enumerations among the parameters of `cuTensorMapEncodeTiled`, as the driver numbers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCodes {
    /// `CUtensorMapDataType`.
    pub data_type: u32,
    /// `CUtensorMapInterleave`; only none (0).
    pub interleave: u32,
    /// `CUtensorMapSwizzle`, 0 to 3.
    pub swizzle: u32,
    /// `CUtensorMapL2promotion`, which changes no result.
    pub l2_promotion: u32,
    /// `CUtensorMapFloatOOBfill`.
    pub oob_fill: u32,
}

/// `cuTensorMapEncodeTiled` for an emulated device: the same parameters, of which `dims` gives the rank, make the 128
/// bytes that a kernel takes by value ([`crate::Param::Bytes`]) or by a 64-byte aligned address in global memory.
///
/// ```
/// use ptx_emulator::tensor::tensor_map::{DriverCodes, MAP_BYTES, encode_tiled};
///
/// // Boxes of 64 by 64 of a bf16 matrix of 1000 rows and 4096 columns, 128-byte-swizzled.
/// let codes = DriverCodes { data_type: 9, swizzle: 3, ..DriverCodes::default() };
/// let map = encode_tiled(codes, 0x7f00_0000_0000, &[4096, 1000], &[8192], &[64, 64], &[1, 1])?;
/// assert_eq!(map.len(), MAP_BYTES);
/// # Ok::<(), ptx_emulator::tensor::tensor_map::TensorMapError>(())
/// ```
///
/// # Errors
/// What the driver refuses, and what is not supported here, by name.
pub fn encode_tiled(
    codes: DriverCodes,
    address: u64,
    dims: &[u64],
    strides: &[u64],
    box_dims: &[u32],
    element_strides: &[u32],
) -> Result<[u8; MAP_BYTES], TensorMapError> {
    let unknown = |what, code| Err(TensorMapError::Code { what, code });
    if codes.interleave != 0 {
        return unknown("interleave", codes.interleave);
    }
    let swizzle = match codes.swizzle {
        0 => Swizzle::None,
        1 => Swizzle::B32,
        2 => Swizzle::B64,
        3 => Swizzle::B128,
        code => return unknown("swizzle", code),
    };
    let fill = match codes.oob_fill {
        0 => Fill::Zero,
        1 => Fill::Nan,
        code => return unknown("out-of-bounds fill", code),
    };
    let data_type = DataType::from_driver(codes.data_type)?;
    let map = TensorMap::new(&Tiled { data_type, address, dims, strides, box_dims, element_strides, swizzle, fill })?;
    Ok(map.encode())
}

/// A tensor in global memory, and the boxes in which it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub(super) data_type: DataType,
    pub(super) rank: usize,
    pub(super) address: u64,
    pub(super) dims: [u64; MAX_RANK],
    /// Bytes; of dimension 0 an element's.
    pub(super) strides: [u64; MAX_RANK],
    pub(super) box_dims: [u32; MAX_RANK],
    pub(super) steps: [u32; MAX_RANK],
    pub(super) swizzle: Swizzle,
    pub(super) fill: Fill,
}

impl TensorMap {
    /// Checks the parameters as the driver does.
    pub fn new(tiled: &Tiled<'_>) -> Result<TensorMap, TensorMapError> {
        let rank = tiled.dims.len();
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(TensorMapError::Rank(rank));
        }
        for (what, found, expected) in [
            ("globalStrides", tiled.strides.len(), rank - 1),
            ("boxDim", tiled.box_dims.len(), rank),
            ("elementStrides", tiled.element_strides.len(), rank),
        ] {
            if found != expected {
                return Err(TensorMapError::Entries { what, found, rank, expected });
            }
        }
        let mut map = TensorMap {
            data_type: tiled.data_type,
            rank,
            address: tiled.address,
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            box_dims: [1; MAX_RANK],
            steps: [1; MAX_RANK],
            swizzle: tiled.swizzle,
            fill: tiled.fill,
        };
        map.dims[..rank].copy_from_slice(tiled.dims);
        map.strides[0] = tiled.data_type.bytes() as u64;
        map.strides[1..rank].copy_from_slice(tiled.strides);
        map.box_dims[..rank].copy_from_slice(tiled.box_dims);
        map.steps[1..rank].copy_from_slice(&tiled.element_strides[1..]);
        map.check()?;
        Ok(map)
    }

    fn check(&self) -> Result<(), TensorMapError> {
        if !self.address.is_multiple_of(16) {
            return Err(TensorMapError::Address(self.address));
        }
        for axis in 0..self.rank {
            let (elements, bytes) = (self.dims[axis], self.strides[axis]);
            if !(1..=MAX_DIM).contains(&elements) {
                return Err(TensorMapError::Dimension { axis, elements });
            }
            if axis > 0 && (!bytes.is_multiple_of(16) || bytes >= STRIDE_LIMIT) {
                return Err(TensorMapError::Stride { axis, bytes });
            }
            if !(1..=MAX_BOX).contains(&self.box_dims[axis]) {
                return Err(TensorMapError::Box { axis, elements: self.box_dims[axis] });
            }
            if !(1..=MAX_STEP).contains(&self.steps[axis]) {
                return Err(TensorMapError::ElementStride { axis, step: self.steps[axis] });
            }
        }
        let bytes = self.row_bytes();
        if !bytes.is_multiple_of(16) {
            return Err(TensorMapError::BoxRow { bytes });
        }
        if self.swizzle != Swizzle::None && bytes > self.swizzle.width() {
            return Err(TensorMapError::SwizzleWidth { bytes, width: self.swizzle.width() });
        }
        if self.fill == Fill::Nan && !self.data_type.is_float() {
            return Err(TensorMapError::NanFill(self.data_type));
        }
        Ok(())
    }

    /// Number of dimensions, and of a copy's coordinates.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// Type of the elements.
    pub fn data_type(&self) -> DataType {
        self.data_type
    }
    /// Bytes of a row of the box, along dimension 0.
    pub fn row_bytes(&self) -> u32 {
        self.box_dims[0] * self.data_type.bytes()
    }
    /// Elements that a copy moves along dimension `axis`: what the box covers, by steps.
    pub fn box_elements(&self, axis: usize) -> u32 {
        self.box_dims[axis].div_ceil(self.steps[axis])
    }
    /// Bytes that a copy moves and that its barrier counts: the whole box's, also of what lies outside of the tensor.
    pub fn box_bytes(&self) -> u32 {
        // At most 256^5 · 8 in theory, more than shared memory holds: the copy itself is refused then.
        (0..self.rank).fold(self.data_type.bytes(), |bytes, axis| bytes.saturating_mul(self.box_elements(axis)))
    }

    /// The map as 128 bytes. All of them matter: [`TensorMap::decode`] finds a map that was written over.
    pub fn encode(&self) -> [u8; MAP_BYTES] {
        let mut out = Vec::with_capacity(MAP_BYTES);
        out.extend(MAGIC);
        out.extend(self.address.to_le_bytes());
        self.dims.iter().for_each(|dim| out.extend(((dim - 1) as u32).to_le_bytes()));
        self.strides[1..].iter().for_each(|stride| out.extend(stride.to_le_bytes()));
        self.box_dims.iter().for_each(|dim| out.extend((*dim as u16).to_le_bytes()));
        out.extend(self.steps.map(|step| step as u8));
        out.extend([self.data_type as u8, self.rank as u8, self.swizzle as u8, self.fill as u8]);
        let check = fnv(&out);
        let mut bytes = [0; MAP_BYTES];
        bytes[..out.len()].copy_from_slice(&out);
        bytes[MAP_BYTES - 8..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The map that [`TensorMap::encode`] made `bytes` of.
    pub fn decode(bytes: &[u8; MAP_BYTES]) -> Result<TensorMap, TensorMapError> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take::<8>() != MAGIC {
            return Err(TensorMapError::NotAMap);
        }
        let address = u64::from_le_bytes(reader.take());
        let dims = std::array::from_fn(|_| u32::from_le_bytes(reader.take()) as u64 + 1);
        let mut strides = [0; MAX_RANK];
        strides[1..].iter_mut().for_each(|stride| *stride = u64::from_le_bytes(reader.take()));
        let box_dims = std::array::from_fn(|_| u16::from_le_bytes(reader.take()) as u32);
        let steps = reader.take::<MAX_RANK>().map(u32::from);
        let [data_type, rank, swizzle, fill] = reader.take();
        let end = reader.at;
        if bytes[MAP_BYTES - 8..] != fnv(&bytes[..end]).to_le_bytes()
            || bytes[end..MAP_BYTES - 8].iter().any(|&b| b != 0)
        {
            return Err(TensorMapError::NotAMap);
        }
        let data_type = DataType::from_driver(data_type as u32)?;
        strides[0] = data_type.bytes() as u64;
        let swizzle = match swizzle {
            0 => Swizzle::None,
            1 => Swizzle::B32,
            2 => Swizzle::B64,
            _ => Swizzle::B128,
        };
        let fill = if fill == 0 { Fill::Zero } else { Fill::Nan };
        let rank = rank as usize;
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(TensorMapError::Rank(rank));
        }
        let map = TensorMap { data_type, rank, address, dims, strides, box_dims, steps, swizzle, fill };
        map.check()?;
        Ok(map)
    }
}

/// How the 128 bytes start.
const MAGIC: [u8; 8] = *b"TiledMap";

struct Reader<'a> {
    bytes: &'a [u8; MAP_BYTES],
    at: usize,
}

impl Reader<'_> {
    /// The next `N` bytes; the fields' lengths add up to less than a map's.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let from = self.at;
        self.at += N;
        std::array::from_fn(|i| self.bytes[from + i])
    }
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ b as u64).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATRIX: Tiled<'static> = Tiled {
        data_type: DataType::Bf16,
        address: 0x7f00_0000_1000,
        dims: &[1 << 32, 37],
        strides: &[8192],
        box_dims: &[64, 256],
        element_strides: &[1, 1],
        swizzle: Swizzle::B128,
        fill: Fill::Zero,
    };

    #[test]
    fn maps_survive_encoding() {
        let map = TensorMap::new(&MATRIX).unwrap();
        assert_eq!(TensorMap::decode(&map.encode()), Ok(map));
        assert_eq!(map.box_bytes(), 64 * 256 * 2);
        let five = Tiled {
            data_type: DataType::F32,
            dims: &[10, 2, 3, 4, 5],
            strides: &[48, 96, 288, (1 << 40) - 16],
            box_dims: &[4, 8, 3, 1, 256],
            element_strides: &[8, 3, 1, 1, 8],
            swizzle: Swizzle::B32,
            fill: Fill::Nan,
            ..MATRIX
        };
        let map = TensorMap::new(&five).unwrap();
        assert_eq!(TensorMap::decode(&map.encode()), Ok(map));
        assert_eq!(map.box_bytes(), 4 * (4 * 3 * 3 * 32), "dimension 0's element stride is ignored");
    }

    #[test]
    fn the_driver_s_numbers_mean_the_same() {
        let codes = DriverCodes { data_type: 9, swizzle: 3, l2_promotion: 2, ..DriverCodes::default() };
        let encode = |codes| encode_tiled(codes, MATRIX.address, MATRIX.dims, MATRIX.strides, &[64, 256], &[1, 1]);
        assert_eq!(encode(codes).unwrap(), TensorMap::new(&MATRIX).unwrap().encode());
        let interleaved = encode(DriverCodes { interleave: 1, ..codes });
        assert_eq!(interleaved, Err(TensorMapError::Code { what: "interleave", code: 1 }));
        assert_eq!(encode(DriverCodes { swizzle: 4, ..codes }), Err(TensorMapError::Code { what: "swizzle", code: 4 }));
    }

    #[test]
    fn bytes_written_over_are_no_map() {
        let bytes = TensorMap::new(&MATRIX).unwrap().encode();
        for i in 0..MAP_BYTES {
            let mut wrong = bytes;
            wrong[i] ^= 0x10;
            assert_eq!(TensorMap::decode(&wrong), Err(TensorMapError::NotAMap), "byte {i}");
        }
        assert_eq!(TensorMap::decode(&[0; MAP_BYTES]), Err(TensorMapError::NotAMap));
    }

    #[test]
    fn what_the_driver_refuses_is_refused() {
        use TensorMapError as E;
        let cases: [(Tiled<'_>, E); 14] = [
            (Tiled { dims: &[], ..MATRIX }, E::Rank(0)),
            (Tiled { dims: &[1; 6], ..MATRIX }, E::Rank(6)),
            (Tiled { strides: &[], ..MATRIX }, E::Entries { what: "globalStrides", found: 0, rank: 2, expected: 1 }),
            (Tiled { box_dims: &[8], ..MATRIX }, E::Entries { what: "boxDim", found: 1, rank: 2, expected: 2 }),
            (Tiled { address: 8, ..MATRIX }, E::Address(8)),
            (Tiled { dims: &[0, 1], ..MATRIX }, E::Dimension { axis: 0, elements: 0 }),
            (Tiled { dims: &[1, MAX_DIM + 1], ..MATRIX }, E::Dimension { axis: 1, elements: MAX_DIM + 1 }),
            (Tiled { strides: &[40], ..MATRIX }, E::Stride { axis: 1, bytes: 40 }),
            (Tiled { strides: &[STRIDE_LIMIT], ..MATRIX }, E::Stride { axis: 1, bytes: STRIDE_LIMIT }),
            (Tiled { box_dims: &[64, 257], ..MATRIX }, E::Box { axis: 1, elements: 257 }),
            (Tiled { box_dims: &[60, 1], ..MATRIX }, E::BoxRow { bytes: 120 }),
            (Tiled { box_dims: &[72, 1], ..MATRIX }, E::SwizzleWidth { bytes: 144, width: 128 }),
            (Tiled { element_strides: &[1, 9], ..MATRIX }, E::ElementStride { axis: 1, step: 9 }),
            (Tiled { data_type: DataType::U16, fill: Fill::Nan, ..MATRIX }, E::NanFill(DataType::U16)),
        ];
        for (tiled, error) in cases {
            assert_eq!(TensorMap::new(&tiled), Err(error));
        }
        assert_eq!(DataType::from_driver(11), Err(E::DataType(11)));
    }
}
