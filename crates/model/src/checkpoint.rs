//! Weight files: opened by their header, read one tensor at a time.
//!
//! Opening reads headers and configuration only. A tensor's bytes are mapped when it is read and unmapped right
//! after, so a 46 GB file never needs more memory than the tensors a caller keeps plus one.
//! Knows the file format and which prefix belongs to which component; knows nothing of layers.

mod component;
mod decode;
mod header;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use memmap2::{Mmap, MmapOptions};
use serde_json::Value;

pub use component::Component;
pub use header::{Entry, Stored};

use crate::{
    Error, Result,
    error::TensorProblems,
    weights::{TensorSpec, Weights},
};

/// Largest configuration file accepted. Gemma's has 2 kB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest shard index accepted. Gemma's has 0.1 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// An opened weight file, or a folder of shards with a `config.json` (Gemma's layout).
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    config: Option<Value>,
}

impl Checkpoint {
    /// Opens the safetensors file at `path`, or the folder of shards at `path`.
    ///
    /// In a folder the files are those of `model.safetensors.index.json` where it exists, else every
    /// `*.safetensors`; the configuration is `config.json`. In a single file it is the `config` metadata.
    ///
    /// # Errors
    /// `Io` when something cannot be read, `Format` when a header or configuration is not what it should be.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let found = fs::metadata(path).map_err(Error::io(path))?;
        let folder = found.is_dir();
        if !folder && !found.is_file() {
            // Opening a pipe would wait for a writer.
            return Err(Error::format(path, "is neither a file nor a folder"));
        }
        let (paths, index) = if folder { shards(path)? } else { (vec![path.to_owned()], None) };
        let mut opened = Self {
            path: path.to_owned(),
            files: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
            config: None,
        };
        for file in paths {
            opened.add(file)?;
        }
        if let Some(index) = index {
            opened.check_index(&index)?;
        }
        opened.config = if folder { folder_config(path)? } else { opened.embedded_config()? };
        Ok(Arc::new(opened))
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let mut file = File::open(&path).map_err(Error::io(&path))?;
        let header = header::read(&mut file, &path, self.files.len())?;
        for (name, entry) in header.entries {
            if let Some(other) = self.entries.get(&name) {
                let other = self.files[other.file].0.display();
                return Err(Error::format(&path, format!("tensor `{name}` is also in {other}")));
            }
            self.entries.insert(name, entry);
        }
        if self.files.is_empty() {
            self.metadata = header.metadata;
        }
        self.files.push((path, file));
        Ok(())
    }

    /// Every tensor the index promises must be where it says.
    fn check_index(&self, index: &Index) -> Result<()> {
        for (name, file) in index {
            match self.entries.get(name) {
                Some(entry) if self.files[entry.file].0 == *file => {}
                _ => {
                    let reason =
                        format!("tensor `{name}` is not here, though the folder's index names this file");
                    return Err(Error::format(file, reason));
                }
            }
        }
        Ok(())
    }

    fn embedded_config(&self) -> Result<Option<Value>> {
        let Some(text) = self.metadata.get("config") else { return Ok(None) };
        serde_json::from_str(text)
            .map(Some)
            .map_err(|e| Error::format(&self.path, format!("the metadata's `config` is not JSON: {e}")))
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor with its full name, sorted by name.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The tensor called `name` in the file.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The file's metadata (the first shard's in a folder).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The model's configuration: embedded in the file, or the folder's `config.json`.
    ///
    /// # Errors
    /// `Config` when there is none.
    pub fn config(&self) -> Result<&Value> {
        self.config.as_ref().ok_or_else(|| {
            Error::config("config", format!("{} carries no configuration", self.path.display()))
        })
    }

    /// Lengths of all files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|(_, file)| file.metadata().ok()).map(|m| m.len()).sum()
    }

    /// Which component the tensor called `name` belongs to; `None` for one that is no part of the model.
    pub fn component_of(&self, name: &str) -> Option<Component> {
        Component::ALL.iter().copied().find(|c| c.owns(self, name))
    }

    /// The tensors of `component`, names relative to it, sorted by name.
    pub fn tensors_of(&self, component: Component) -> impl Iterator<Item = (&str, &Entry)> {
        let prefix = component.prefix(self);
        self.entries().filter_map(move |(name, entry)| {
            component.relative(prefix, name).map(|relative| (relative, entry))
        })
    }

    /// Reads one tensor by its full name, in the type it is stored in (16-bit floats of the IEEE kind widen to
    /// f32, `BOOL` and `I8` become u8 and i64, fp8 is dequantised to bf16 as `model.md` §4 says).
    ///
    /// # Errors
    /// `Tensor` when there is none of that name or its type cannot be used, `Io` when it cannot be mapped.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.read(name, None, device)
    }

    /// Reads one tensor by its full name and converts it to `dtype` (`None`: as stored, see [`Self::tensor`]).
    pub(crate) fn read(&self, name: &str, dtype: Option<DType>, device: &Device) -> Result<Tensor> {
        let entry =
            self.entry(name).ok_or_else(|| Error::tensor(name, format!("not in {}", self.path.display())))?;
        let scale = match entry.stored {
            Stored::F8E4M3 => Some(self.weight_scale(name)?),
            _ => None,
        };
        let bytes = self.map(entry)?;
        decode::tensor(&bytes, entry, scale, dtype, device).map_err(|e| Error::tensor(name, e.to_string()))
    }

    /// The scalar `weight_scale` beside an fp8 weight.
    fn weight_scale(&self, name: &str) -> Result<f32> {
        let scale_name = format!("{name}_scale");
        let entry = self
            .entry(&scale_name)
            .ok_or_else(|| Error::tensor(&scale_name, format!("missing beside the fp8 tensor `{name}`")))?;
        if entry.shape.iter().product::<usize>() != 1 || entry.stored != Stored::F32 {
            return Err(Error::tensor(&scale_name, "must be a single F32 value".to_owned()));
        }
        let bytes = self.map(entry)?;
        let word: [u8; 4] = bytes.as_ref().try_into().expect("invariant: one F32 has four bytes");
        Ok(f32::from_le_bytes(word))
    }

    fn map(&self, entry: &Entry) -> Result<Bytes> {
        let (path, file) = &self.files[entry.file];
        let Ok(len) = usize::try_from(entry.bytes) else {
            return Err(Error::format(path, format!("a tensor of {} bytes is too long", entry.bytes)));
        };
        if len == 0 {
            return Ok(Bytes::Empty);
        }
        let now = file.metadata().map_err(Error::io(path))?.len();
        if now < entry.offset + entry.bytes {
            return Err(Error::format(path, format!("has shrunk to {now} bytes since it was opened")));
        }
        map_range(file, entry.offset, len).map(Bytes::Mapped).map_err(Error::io(path))
    }

    /// The weights of `component`, read as the builders ask. Use [`Self::load`], which also checks the whole
    /// component, unless a part is wanted (one block).
    pub fn weights(self: &Arc<Self>, component: Component, device: &Device, dtype: DType) -> Weights {
        Weights::from_checkpoint(self.clone(), component, device, dtype)
    }

    /// Builds a component after checking that the file holds exactly what `build` asks for.
    ///
    /// `build` runs twice: first on placeholders that take no memory, to learn names and shapes, then on the file.
    ///
    /// # Errors
    /// `Tensors` with every missing, surplus, misshaped or unusable tensor; what `build` and reading report.
    pub fn load<T>(
        self: &Arc<Self>,
        component: Component,
        device: &Device,
        dtype: DType,
        build: impl Fn(&Weights) -> Result<T>,
    ) -> Result<T> {
        let asked = Weights::record(component, |w| build(w).map(drop))?;
        self.verify(component, &asked, &asked)?;
        build(&self.weights(component, device, dtype))
    }

    /// Compares the component's tensors with what is `needed` and what may be there (`known`, a superset: a
    /// model that loads one half of the file needs less than it knows).
    ///
    /// # Errors
    /// `Tensors` with all differences.
    pub fn verify(&self, component: Component, needed: &[TensorSpec], known: &[TensorSpec]) -> Result<()> {
        let prefix = component.prefix(self);
        let mut problems = TensorProblems {
            path: self.path.clone(),
            component: component.to_string(),
            ..TensorProblems::default()
        };
        let known: BTreeMap<&str, &[usize]> =
            known.iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())).collect();
        for spec in needed {
            let full = format!("{prefix}{}", spec.name);
            if self.entry(&full).is_none() {
                problems.missing.push(full);
            }
        }
        for (relative, entry) in self.tensors_of(component) {
            let full = format!("{prefix}{relative}");
            match known.get(relative) {
                Some(shape) if **shape == *entry.shape => {}
                Some(shape) => problems.misshaped.push((full.clone(), shape.to_vec(), entry.shape.clone())),
                None if self.is_fp8_scale(&full) => continue,
                None => {
                    problems.surplus.push(full);
                    continue;
                }
            }
            if !decode::is_weight_type(entry.stored) {
                problems.unusable.push((full, entry.stored.to_string()));
            } else if entry.stored == Stored::F8E4M3 && self.entry(&format!("{full}_scale")).is_none() {
                problems.missing.push(format!("{full}_scale"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors(Box::new(problems))) }
    }

    /// Whether `name` is one of the two scalars beside an fp8 weight (`input_scale` is for fp8 products; unused).
    fn is_fp8_scale(&self, name: &str) -> bool {
        ["weight_scale", "input_scale"].iter().any(|suffix| {
            name.strip_suffix(suffix)
                .and_then(|stem| self.entry(&format!("{stem}weight")))
                .is_some_and(|weight| weight.stored == Stored::F8E4M3)
        })
    }
}

/// A tensor's bytes.
enum Bytes {
    Empty,
    Mapped(Mmap),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Mapped(map) => map,
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

#[expect(unsafe_code, reason = "the one memory map of the crate: weight files are larger than memory")]
fn map_range(file: &File, offset: u64, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and lives only while one tensor is copied out of it. The range was within the
    // file a moment ago. Weight files are not written to while a model is loaded from them; if one is replaced in
    // place all the same, values change or the process gets SIGBUS, and no Rust reference outlives the copy.
    unsafe { MmapOptions::new().offset(offset).len(len).map(file) }
}

/// Tensor name to the file that should hold it.
type Index = BTreeMap<String, PathBuf>;

/// The shard files of a folder, and where its index says each tensor is.
fn shards(folder: &Path) -> Result<(Vec<PathBuf>, Option<Index>)> {
    let index_path = folder.join("model.safetensors.index.json");
    if let Some(index) = read_json(&index_path, MAX_INDEX_BYTES)? {
        let bad = |reason: &str| Error::format(&index_path, reason);
        let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("no `weight_map`"))?;
        let mut places = Index::new();
        for (tensor, file) in map {
            let file = file.as_str().ok_or_else(|| bad("`weight_map` must map names to file names"))?;
            if Path::new(file).file_name().is_none_or(|name| name != file) {
                return Err(bad(&format!("`{file}` is not a plain file name")));
            }
            places.insert(tensor.clone(), folder.join(file));
        }
        let mut files: Vec<PathBuf> = places.values().cloned().collect();
        files.sort();
        files.dedup();
        return Ok((files, Some(places)));
    }
    let mut files = Vec::new();
    for item in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = item.map_err(Error::io(folder))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::format(folder, "the folder holds no *.safetensors file"));
    }
    Ok((files, None))
}

fn folder_config(folder: &Path) -> Result<Option<Value>> {
    read_json(&folder.join("config.json"), MAX_CONFIG_BYTES)
}

/// The JSON file at `path`; `None` when there is no such file.
fn read_json(path: &Path, limit: u64) -> Result<Option<Value>> {
    let len = match fs::metadata(path) {
        Ok(found) => found.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path)(e)),
    };
    if len > limit {
        return Err(Error::format(path, format!("{len} bytes; at most {limit} are accepted")));
    }
    let text = fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| Error::format(path, format!("not JSON: {e}")))
}
