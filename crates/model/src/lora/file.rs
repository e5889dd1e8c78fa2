//! The bytes of a LoRA file: header JSON in the order of the keys, padded with spaces to a multiple of 8, then the
//! values, contiguous. Equal byte for byte to what the reference trainer's export writes for the same values.
//! Source: `training.md` §5.2 and the file sizes of §3.1.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use candle_core::{DType, Tensor};
use half::bf16;

use crate::{Error, Result};

/// How much smaller than the target a reference is given, in space and time. 1 is as large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReferenceFactors {
    /// Width and height of the target over those of the reference.
    pub spatial: u32,
    /// Frames of the target per frame of the reference.
    pub temporal: u32,
}

impl Default for ReferenceFactors {
    fn default() -> Self {
        Self { spatial: 1, temporal: 1 }
    }
}

impl ReferenceFactors {
    /// The metadata of the file, sorted by key; empty for factors of 1.
    fn metadata(self) -> Vec<(&'static str, String)> {
        let mut metadata = Vec::new();
        if self.spatial != 1 {
            // Two names for one number: older and newer pipelines read different ones.
            metadata.push(("reference_downscale_factor", self.spatial.to_string()));
            metadata.push(("reference_spatial_scale_factor", self.spatial.to_string()));
        }
        if self.temporal != 1 {
            metadata.push(("reference_temporal_scale_factor", self.temporal.to_string()));
        }
        metadata
    }
}

/// Everything before the values: length word and padded JSON. `tensors` are keys and shapes, sorted by key.
pub fn header_bytes<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    factors: ReferenceFactors,
) -> Vec<u8> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let metadata: Vec<String> =
        factors.metadata().iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
    let mut json = format!("{{\"__metadata__\":{{{}}}", metadata.join(","));
    let mut at = 0;
    for (key, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        write!(
            json,
            ",{}:{{\"dtype\":\"BF16\",\"shape\":[{}],\"data_offsets\":[{at},{end}]}}",
            quoted(key),
            shape.join(",")
        )
        .expect("invariant: writing to a String succeeds");
        at = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

/// Writes the file beside its name and moves it there when it is complete.
pub(super) fn write(path: &Path, tensors: &[(String, &Tensor)], factors: ReferenceFactors) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::format(path, "is not a file name"))?;
    let mut part = name.to_owned();
    part.push(".part");
    let part = path.with_file_name(part);
    let written =
        write_part(&part, tensors, factors).and_then(|()| fs::rename(&part, path).map_err(Error::io(path)));
    if written.is_err() {
        // The half-written file is of no use; that it cannot be removed is less of a problem than why it failed.
        let _ = fs::remove_file(&part);
    }
    written
}

fn write_part(part: &Path, tensors: &[(String, &Tensor)], factors: ReferenceFactors) -> Result<()> {
    let mut out = BufWriter::new(File::create(part).map_err(Error::io(part))?);
    let header = header_bytes(tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.dims())), factors);
    out.write_all(&header).map_err(Error::io(part))?;
    for (_, tensor) in tensors {
        let values = tensor.to_dtype(DType::BF16)?.flatten_all()?.to_vec1::<bf16>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        out.write_all(&bytes).map_err(Error::io(part))?;
    }
    let file = out.into_inner().map_err(|e| Error::io(part)(e.into_error()))?;
    file.sync_all().map_err(Error::io(part))
}
