//! Writes a tiny LTX-2.3 and a tiny Gemma with random weights, in the layouts of the originals.
//!
//! For tests, for trying the service out without 46 GB of weights, and for checking that no size is fixed in the code.
//! Names and shapes come from the same walk that loads the files. What a real file stores as constants (filters and
//! bases of the vocoder) is computed; everything else is drawn from the seed, per tensor by its name.

mod bases;
mod file;
mod shape;
mod tokenizer;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

pub use shape::TinyShape;

use crate::{
    Checkpoint, Component, Error, Result, TensorSpec, random_values,
    survey::{self, TextWidth},
    text::GemmaConfig,
};
use file::{NewTensor, Values};

/// Name of the checkpoint in the folder.
pub const CHECKPOINT: &str = "ltx-2.3-tiny.safetensors";
/// Most values of both files together: 1 GB.
const MAX_VALUES: u64 = 500_000_000;
/// Name of the language model's folder in the folder.
pub const GEMMA: &str = "gemma";

/// Where the model was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TinyModel {
    /// The unified checkpoint.
    pub checkpoint: PathBuf,
    /// The language model's folder.
    pub gemma: PathBuf,
    /// Both together, in bytes.
    pub bytes: u64,
}

/// Writes the model into `folder`, which is made when missing. The same shape and seed give the same bytes.
///
/// # Errors
/// `Config` naming the key that a size in `shape` makes impossible; `Io`; `Format` when one of the files already
/// exists (nothing is overwritten).
pub fn init_tiny(folder: impl AsRef<Path>, shape: &TinyShape, seed: u64) -> Result<TinyModel> {
    let folder = folder.as_ref();
    let model = TinyModel { checkpoint: folder.join(CHECKPOINT), gemma: folder.join(GEMMA), bytes: 0 };
    for path in [&model.checkpoint, &model.gemma] {
        if path.exists() {
            return Err(Error::format(path, "already exists; name another folder or remove it first"));
        }
    }
    let tokenizer = tokenizer::byte_fallback_bpe();
    let gemma_config = shape.gemma_config(tokenizer.vocabulary);
    let gemma = GemmaConfig::new(&gemma_config)?;
    let config = shape.config();
    let unified = unified_specs(&config, (&gemma).into())?;
    let language = named(Component::Gemma, survey::gemma_specs(&gemma)?);
    check_total(unified.iter().chain(&language))?;

    fs::create_dir_all(&model.gemma).map_err(Error::io(&model.gemma))?;
    let metadata = [("config", config.to_string()), ("model_version", "2.3.0".to_owned())];
    file::write(&model.checkpoint, &metadata, &unified_values(unified, &config, seed)?)?;
    let weights = model.gemma.join("model.safetensors");
    file::write(&weights, &[("format", "pt".to_owned())], &language_values(language, seed))?;
    let texts: [(&str, &Value); 3] = [
        ("config.json", &gemma_config),
        ("tokenizer.json", &tokenizer.json),
        ("tokenizer_config.json", &json!({"tokenizer_class": "GemmaTokenizerFast", "padding_side": "left"})),
    ];
    for (name, value) in texts {
        let path = model.gemma.join(name);
        fs::write(&path, format!("{value:#}\n")).map_err(Error::io(&path))?;
    }
    let bytes = Checkpoint::open(&model.checkpoint)?.bytes() + Checkpoint::open(&model.gemma)?.bytes();
    Ok(TinyModel { bytes, ..model })
}

/// Specs under their full names.
fn named(component: Component, specs: Vec<TensorSpec>) -> Vec<TensorSpec> {
    let prefix = component.original_prefix();
    specs.into_iter().map(|spec| TensorSpec { name: format!("{prefix}{}", spec.name), ..spec }).collect()
}

fn unified_specs(config: &Value, text: TextWidth) -> Result<Vec<TensorSpec>> {
    let mut all = Vec::new();
    for component in Component::ALL.iter().filter(|component| **component != Component::Gemma) {
        all.extend(named(*component, survey::specs(*component, config, text)?));
    }
    Ok(all)
}

/// Refuses sizes that would fill the disk.
fn check_total<'a>(specs: impl Iterator<Item = &'a TensorSpec>) -> Result<()> {
    let values = |spec: &TensorSpec| spec.shape.iter().fold(1u64, |n, size| n.saturating_mul(*size as u64));
    let total = specs.map(values).fold(0, u64::saturating_add);
    if total > MAX_VALUES {
        let problem = format!("these make a model of {total} values; a tiny one has at most {MAX_VALUES}");
        return Err(Error::input("sizes", problem));
    }
    Ok(())
}

/// BF16, the tables of the transformer F32 as in the real file.
fn unified_values(specs: Vec<TensorSpec>, config: &Value, seed: u64) -> Result<Vec<NewTensor>> {
    let tensor = |TensorSpec { name, shape }: TensorSpec| {
        let values = match bases::stored(config, &name, &shape)? {
            Some(values) => values,
            None => random_values(seed, &name, &shape),
        };
        let table = name.contains("scale_shift_table");
        Ok(NewTensor { name, shape, values: if table { Values::F32(values) } else { Values::Bf16(values) } })
    };
    specs.into_iter().map(tensor).collect()
}

fn language_values(specs: Vec<TensorSpec>, seed: u64) -> Vec<NewTensor> {
    let tensor = |TensorSpec { name, shape }: TensorSpec| {
        let mut values = random_values(seed, &name, &shape);
        if shape.len() == 1 {
            // Norm weights are offsets from one.
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        NewTensor { name, shape, values: Values::Bf16(values) }
    };
    specs.into_iter().map(tensor).collect()
}
