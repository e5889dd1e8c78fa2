//! Writing a safetensors file whose bytes depend on its content alone.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use half::bf16;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// A tensor to write.
pub(super) struct NewTensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

/// Its values and how they are stored.
pub(super) enum Values {
    Bf16(Vec<f32>),
    F32(Vec<f32>),
}

impl Values {
    fn word(&self) -> &'static str {
        match self {
            Self::Bf16(_) => "BF16",
            Self::F32(_) => "F32",
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bf16(values) => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Self::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Bf16(values) => 2 * values.len(),
            Self::F32(values) => 4 * values.len(),
        }
    }
}

/// Writes `tensors` in their order, those with wider values first so that all are aligned.
///
/// The `safetensors` crate keeps metadata in a hash map, so two runs would differ in the order of its keys.
pub(super) fn write(path: &Path, metadata: &[(&str, String)], tensors: &[NewTensor]) -> Result<()> {
    let mut order: Vec<&NewTensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| matches!(tensor.values, Values::Bf16(_)));
    let mut header = Map::new();
    let metadata: Map<String, Value> =
        metadata.iter().map(|(key, text)| ((*key).to_owned(), Value::from(text.as_str()))).collect();
    header.insert("__metadata__".to_owned(), metadata.into());
    let mut at = 0;
    for tensor in &order {
        let end = at + tensor.values.len();
        let entry = json!({
            "dtype": tensor.values.word(), "shape": tensor.shape, "data_offsets": [at, end]
        });
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut header = Value::from(header).to_string();
    // The data begins at a multiple of eight.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create_new(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for tensor in &order {
            file.write_all(&tensor.values.bytes())?;
        }
        file.into_inner()?.sync_all()
    };
    write().map_err(Error::io(path))
}
