//! Safetensors checkpoints: a single file, shards with an index, or bytes in memory.
//!
//! Files are memory-mapped, so opening a 140 GB checkpoint reads its headers only; every size in
//! them is checked against the file before a tensor is handed out.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::config::Dtype;
use crate::error::{Error, Result, read_file};

/// File name of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// File name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// safetensors' own limit on the header; a real one is below 1 MB.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Elements that one rayon task converts: 128 KiB of bf16, small enough to stay in L2.
const CONVERT_CHUNK: usize = 1 << 16;

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    origin: String,
    shards: Vec<Shard>,
    tensors: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    file: String,
    /// Bytes of the length field and the header.
    header_len: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Mapped(memmap2::Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map,
            Data::Memory(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    info: TensorInfo,
}

impl Checkpoint {
    /// Opens `DIR/model.safetensors`, or the shards that `DIR/model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// Missing, truncated or damaged files, duplicate tensors, an index that names what is not there.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::MissingFile {
                path: dir.to_owned(),
                hint: "MODEL must be a directory in Hugging Face's layout".to_owned(),
            });
        }
        let origin = dir.display().to_string();
        if dir.join(SINGLE_FILE).exists() {
            let shard = map_file(dir, SINGLE_FILE, "download it again")?;
            return Self::from_shards(origin, vec![shard]);
        }
        if !dir.join(INDEX_FILE).exists() {
            return Err(Error::MissingFile { path: dir.join(SINGLE_FILE), hint: missing_weights_hint(dir) });
        }
        let weight_map = read_index(dir)?;
        let mut files: Vec<&String> = weight_map.values().collect();
        files.sort();
        files.dedup();
        let hint = format!("{INDEX_FILE} lists it; download it");
        let shards = files.into_iter().map(|file| map_file(dir, file, &hint)).collect::<Result<Vec<_>>>()?;
        let checkpoint = Self::from_shards(origin, shards)?;
        checkpoint.check_index(&weight_map)?;
        Ok(checkpoint)
    }

    /// A checkpoint that is one safetensors file in memory; `origin` names it in errors.
    pub fn from_memory(origin: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let shard = (origin.to_owned(), Data::Memory(bytes.into()));
        Self::from_shards(origin.to_owned(), vec![shard])
    }

    fn from_shards(origin: String, files: Vec<(String, Data)>) -> Result<Self> {
        let mut checkpoint = Checkpoint { origin, shards: Vec::new(), tensors: HashMap::new() };
        for (file, data) in files {
            let (header_len, metadata) = parse_header(&file, data.bytes())?;
            let shard = checkpoint.shards.len();
            for (name, info) in metadata.tensors() {
                let info = info.clone();
                if let Some(other) = checkpoint.tensors.get(&name) {
                    return Err(Error::DuplicateTensor {
                        name,
                        first: checkpoint.shards[other.shard].file.clone(),
                        second: file,
                    });
                }
                checkpoint.tensors.insert(name, Entry { shard, info });
            }
            checkpoint.shards.push(Shard { file, header_len, data });
        }
        Ok(checkpoint)
    }

    fn check_index(&self, weight_map: &BTreeMap<String, String>) -> Result<()> {
        for (name, file) in weight_map {
            let found = self.tensors.get(name).map(|e| &self.shards[e.shard].file);
            if found != Some(file) {
                return Err(Error::Index {
                    file: INDEX_FILE.to_owned(),
                    problem: format!("says that {name} is in {file}, where it is not"),
                });
            }
        }
        Ok(())
    }

    /// Directory or description that the checkpoint was opened from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// True where a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub fn data_bytes(&self) -> u64 {
        let of = |s: &Shard| (s.data.bytes().len() - s.header_len) as u64;
        self.shards.iter().map(of).sum()
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// It does not exist, or its elements are not F32, F16 or BF16.
    pub fn tensor(&self, name: &str) -> Result<TensorRef<'_>> {
        let Some((name, entry)) = self.tensors.get_key_value(name) else {
            return Err(Error::MissingTensor {
                name: name.to_owned(),
                origin: self.origin.clone(),
                hint: self.similar(name),
            });
        };
        let shard = &self.shards[entry.shard];
        let dtype = match entry.info.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            other => {
                return Err(Error::WrongDtype {
                    file: shard.file.clone(),
                    name: name.clone(),
                    found: format!("{other:?}"),
                });
            }
        };
        let (start, end) = entry.info.data_offsets;
        Ok(TensorRef {
            name,
            file: &shard.file,
            dtype,
            shape: &entry.info.shape,
            // In range: parse_header compared the last offset with the file's length.
            bytes: &shard.data.bytes()[shard.header_len + start..shard.header_len + end],
        })
    }

    /// The tensor called `name`, which must have this shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorRef<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            return Err(Error::WrongShape {
                file: tensor.file.to_owned(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// A name that ends alike, to show what prefix the checkpoint uses.
    fn similar(&self, name: &str) -> String {
        let tail = name.split_once('.').map_or(name, |(_, tail)| tail);
        let mut alike: Vec<_> = self.names().filter(|n| n.ends_with(tail)).collect();
        alike.sort_unstable();
        match alike.first() {
            Some(found) => format!(" (it has {found})"),
            None => String::new(),
        }
    }
}

/// A tensor's bytes in the mapped file: little-endian, row-major, not necessarily aligned.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// Name in the checkpoint.
    pub name: &'a str,
    /// File that holds it.
    pub file: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: &'a [usize],
    /// `elements() * dtype.size()` bytes.
    pub bytes: &'a [u8],
}

impl TensorRef<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Writes the elements as bf16 bit patterns, rounded to nearest even, in parallel.
    pub fn to_bf16(&self, out: &mut [u16]) -> Result<()> {
        self.check_buffer(out.len())?;
        match self.dtype {
            Dtype::Bf16 => self.convert(out, u16::from_le_bytes),
            Dtype::F16 => self.convert(out, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32()).to_bits()),
            Dtype::F32 => self.convert(out, |b| bf16::from_f32(f32::from_le_bytes(b)).to_bits()),
        }
        Ok(())
    }

    /// Writes the elements as f16 bit patterns, rounded to nearest even, in parallel. Beyond 65504 they become infinite.
    pub fn to_f16(&self, out: &mut [u16]) -> Result<()> {
        self.check_buffer(out.len())?;
        match self.dtype {
            Dtype::F16 => self.convert(out, u16::from_le_bytes),
            Dtype::Bf16 => self.convert(out, |b| f16::from_f32(bf16::from_le_bytes(b).to_f32()).to_bits()),
            Dtype::F32 => self.convert(out, |b| f16::from_f32(f32::from_le_bytes(b)).to_bits()),
        }
        Ok(())
    }

    /// Writes the elements as f32, in parallel.
    pub fn to_f32(&self, out: &mut [f32]) -> Result<()> {
        self.check_buffer(out.len())?;
        match self.dtype {
            Dtype::F32 => self.convert(out, f32::from_le_bytes),
            Dtype::F16 => self.convert(out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::Bf16 => self.convert(out, |b| bf16::from_le_bytes(b).to_f32()),
        }
        Ok(())
    }

    fn check_buffer(&self, buffer: usize) -> Result<()> {
        if buffer == self.elements() {
            return Ok(());
        }
        Err(Error::WrongBuffer { name: self.name.to_owned(), elements: self.elements(), buffer })
    }

    fn convert<T: Send, const N: usize>(&self, out: &mut [T], f: impl Fn([u8; N]) -> T + Sync) {
        out.par_chunks_mut(CONVERT_CHUNK).zip(self.bytes.par_chunks(CONVERT_CHUNK * N)).for_each(|(out, bytes)| {
            let (elements, _) = bytes.as_chunks::<N>();
            for (o, b) in out.iter_mut().zip(elements) {
                *o = f(*b);
            }
        });
    }
}

fn missing_weights_hint(dir: &Path) -> String {
    for old in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        if dir.join(old).exists() {
            return format!("{old} is not supported; convert the checkpoint to safetensors");
        }
    }
    format!("nor does {INDEX_FILE}; download the *.safetensors files of the model")
}

/// Tensor name to shard file name.
fn read_index(dir: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = read_file(&dir.join(INDEX_FILE), "download it again")?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { origin: INDEX_FILE.to_owned(), source })?;
    let outside = |file: &&String| {
        let path = Path::new(file.as_str());
        path.file_name() != Some(path.as_os_str()) || path.extension().is_none_or(|e| e != "safetensors")
    };
    if let Some(file) = index.weight_map.values().find(outside) {
        return Err(Error::Index {
            file: INDEX_FILE.to_owned(),
            problem: format!("names {file:?}, which is not a safetensors file beside it"),
        });
    }
    Ok(index.weight_map)
}

fn map_file(dir: &Path, file: &str, hint: &str) -> Result<(String, Data)> {
    let path = dir.join(file);
    let handle = match std::fs::File::open(&path) {
        Ok(handle) => handle,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::MissingFile { path, hint: hint.to_owned() });
        }
        Err(e) => return Err(Error::io("open", &path)(e)),
    };
    let length = handle.metadata().map_err(Error::io("read", &path))?.len();
    if length == 0 {
        return Ok((file.to_owned(), Data::Memory(Cow::Borrowed(&[]))));
    }
    // SAFETY: the map is read-only and private to this process; the bytes change only if another process
    // rewrites the checkpoint while it is loaded, which no loader that maps files can exclude. No reference
    // outlives `Data`, and the elements are read as plain integers, valid for every bit pattern.
    let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(Error::io("map", &path))?;
    Ok((file.to_owned(), Data::Mapped(map)))
}

/// Length of header with its length field, and the checked metadata: all offsets lie in `bytes`.
fn parse_header(file: &str, bytes: &[u8]) -> Result<(usize, Metadata)> {
    let truncated = |promised: u64| Error::Truncated { file: file.to_owned(), promised, actual: bytes.len() as u64 };
    let damaged = |problem: String| Error::Header { file: file.to_owned(), problem };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(truncated(8));
    };
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(damaged("it is a Git LFS pointer, not the weights".to_owned()));
    }
    let header_len = u64::from_le_bytes(*length);
    if header_len > MAX_HEADER_BYTES {
        return Err(damaged(format!("a header of {header_len} bytes is impossible")));
    }
    // Fits: at most 100 MB.
    let Some(header) = rest.get(..header_len as usize) else {
        return Err(truncated(8 + header_len));
    };
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| damaged(e.to_string().replace('\n', " ")))?;
    let present = (rest.len() - header.len()) as u64;
    let promised = metadata.data_len() as u64;
    if promised > present {
        return Err(truncated((8 + header_len).saturating_add(promised)));
    }
    if promised < present {
        let extra = present - promised;
        return Err(damaged(format!("{extra} bytes follow the last tensor")));
    }
    Ok((8 + header.len(), metadata))
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
