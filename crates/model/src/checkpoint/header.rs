//! The header of a safetensors file, parsed without trusting it.
//!
//! Layout: 8 bytes little-endian length N, N bytes of JSON, then the data. The JSON maps names to
//! `{dtype, shape, data_offsets}` with offsets relative to the data, plus `__metadata__`, string to string.
//! Source: the format's description in huggingface/safetensors, README.md.

use std::{collections::BTreeMap, fmt, fs::File, io::Read, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{Error, Result};

/// Longest header accepted. The real 22B file has 0.8 MB; the format's own library stops at 100 MB.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// More axes than any tensor here has (5), fewer than could be used to hide something.
const MAX_RANK: usize = 8;

/// How a tensor's values are stored. Names as in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the variants are the format's own words")]
pub enum Stored {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F8E4M3,
    F8E5M2,
    F16,
    BF16,
    F32,
    F64,
}

/// Word in the file, type, bytes per value.
const STORED: &[(&str, Stored, u64)] = &[
    ("BOOL", Stored::Bool, 1),
    ("U8", Stored::U8, 1),
    ("I8", Stored::I8, 1),
    ("I16", Stored::I16, 2),
    ("U16", Stored::U16, 2),
    ("I32", Stored::I32, 4),
    ("U32", Stored::U32, 4),
    ("I64", Stored::I64, 8),
    ("U64", Stored::U64, 8),
    ("F8_E4M3", Stored::F8E4M3, 1),
    ("F8_E5M2", Stored::F8E5M2, 1),
    ("F16", Stored::F16, 2),
    ("BF16", Stored::BF16, 2),
    ("F32", Stored::F32, 4),
    ("F64", Stored::F64, 8),
];

impl Stored {
    fn row(self) -> &'static (&'static str, Stored, u64) {
        STORED.iter().find(|row| row.1 == self).expect("invariant: every type has a row")
    }

    /// Bytes per value.
    pub fn bytes(self) -> u64 {
        self.row().2
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().0)
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How its values are stored.
    pub stored: Stored,
    /// Its shape, outermost axis first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Where its data begins in the file, in bytes from the file's start.
    pub offset: u64,
    /// Length of its data in bytes.
    pub bytes: u64,
    /// Index of the file (Gemma comes in several).
    pub(crate) file: usize,
}

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) entries: BTreeMap<String, Entry>,
}

/// Reads and checks the header of `file`.
///
/// # Errors
/// `Format` when anything about it does not hold: sizes, offsets, overlaps, gaps, unknown types, names given twice.
pub(crate) fn read(file: &mut File, path: &Path, file_index: usize) -> Result<Header> {
    let len = file.metadata().map_err(Error::io(path))?.len();
    let bad = |reason: String| Error::format(path, reason);
    if len < 8 {
        return Err(bad(format!("{len} bytes are too few for a safetensors file")));
    }
    let mut word = [0u8; 8];
    file.read_exact(&mut word).map_err(Error::io(path))?;
    let n = u64::from_le_bytes(word);
    if n > MAX_HEADER_BYTES || n > len - 8 {
        return Err(bad(format!(
            "not a safetensors file: it claims a header of {n} bytes and is {len} bytes long"
        )));
    }
    // `n` is within the file's length, so this cannot ask for more memory than there is file.
    let mut json = vec![0u8; usize::try_from(n).expect("invariant: at most 100 MB")];
    file.read_exact(&mut json).map_err(Error::io(path))?;
    let raw: Raw = serde_json::from_slice(&json).map_err(|e| bad(format!("unreadable header: {e}")))?;
    let data_start = 8 + n;
    let data_len = len - data_start;

    let mut entries = BTreeMap::new();
    for (name, info) in raw.tensors {
        let entry = check(&info, data_start, data_len, file_index)
            .map_err(|reason| bad(format!("tensor `{name}`: {reason}")))?;
        entries.insert(name, entry);
    }
    no_overlap(&entries, data_start, len).map_err(bad)?;
    Ok(Header { metadata: raw.metadata, entries })
}

fn check(info: &Info, data_start: u64, data_len: u64, file: usize) -> Result<Entry, String> {
    let Some(&(_, stored, size)) = STORED.iter().find(|row| row.0 == info.dtype) else {
        let shown: String = info.dtype.chars().take(32).collect();
        return Err(format!("unknown dtype {shown:?}"));
    };
    if info.shape.len() > MAX_RANK {
        return Err(format!("{} axes, at most {MAX_RANK} are supported", info.shape.len()));
    }
    let (begin, end) = info.data_offsets;
    if begin > end || end > data_len {
        return Err(format!("data_offsets [{begin}, {end}] lie outside the {data_len} bytes of data"));
    }
    let values = info.shape.iter().try_fold(1u64, |product, &axis| product.checked_mul(axis));
    if values.and_then(|v| v.checked_mul(size)) != Some(end - begin) {
        return Err(format!(
            "shape {:?} of {} does not take the {} bytes its data_offsets name",
            info.shape,
            info.dtype,
            end - begin
        ));
    }
    let shape = info
        .shape
        .iter()
        .map(|&axis| usize::try_from(axis).map_err(|_| format!("an axis of {axis} is too long")))
        .collect::<Result<_, _>>()?;
    Ok(Entry { stored, shape, offset: data_start + begin, bytes: end - begin, file })
}

/// The data must be covered completely and once, as the format demands.
fn no_overlap(entries: &BTreeMap<String, Entry>, data_start: u64, len: u64) -> Result<(), String> {
    let mut order: Vec<_> = entries.iter().map(|(name, e)| (e.offset, e.bytes, name)).collect();
    order.sort_unstable();
    let mut at = data_start;
    for (offset, bytes, name) in order {
        if offset < at {
            return Err(format!("tensor `{name}` overlaps the one before it"));
        }
        if offset > at {
            return Err(format!("{} bytes before tensor `{name}` belong to no tensor", offset - at));
        }
        at = offset + bytes;
    }
    match len - at {
        0 => Ok(()),
        rest => Err(format!("{rest} bytes at the end belong to no tensor")),
    }
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct Raw {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Info>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

/// Reads the header's object entry by entry, so that a name given twice is seen.
struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw { metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        let mut metadata_seen = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(A::Error::custom("__metadata__ is given twice"));
                }
                raw.metadata = map.next_value::<Option<BTreeMap<String, String>>>()?.unwrap_or_default();
            } else {
                let info = map.next_value()?;
                if let Some(_before) = raw.tensors.insert(name.clone(), info) {
                    return Err(A::Error::custom(format!("tensor `{name}` is given twice")));
                }
            }
        }
        Ok(raw)
    }
}
