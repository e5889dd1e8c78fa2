//! What `inspect` says about whole, broken and foreign files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::Path,
    time::Instant,
};

use kiln_model::inspect::inspect;
use serde_json::{Map, Value, json};

fn manifest(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/reference").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn shapes(manifest: &Value) -> BTreeMap<String, Vec<u64>> {
    serde_json::from_value(manifest["tensors"].clone()).unwrap()
}

/// A file of the right length that is all header and hole.
fn sparse(path: &Path, metadata: &Value, tensors: &BTreeMap<String, Vec<u64>>) -> u64 {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), metadata.clone());
    let mut at = 0;
    for (name, shape) in tensors {
        let (dtype, size) = if name.contains("scale_shift_table") { ("F32", 4) } else { ("BF16", 2) };
        let end = at + size * shape.iter().product::<u64>();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let len = 8 + header.len() as u64 + at;
    file.set_len(len).unwrap();
    len
}

#[test]
fn a_46_gb_file_is_inspected_within_a_second_and_fits() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("real-size.safetensors");
    let manifest = manifest("ltx-2.3-22b-manifest.json");
    let metadata = json!({"config": manifest["config"].to_string(), "model_version": "2.3.0"});
    let len = sparse(&path, &metadata, &shapes(&manifest));
    assert!(len > 46_000_000_000, "{len} bytes long");
    let start = Instant::now();
    let found = inspect(&path).unwrap();
    let text = found.to_string();
    let took = start.elapsed();
    println!("{text}\nin {took:?}");
    assert!(took.as_secs_f64() < 1.0, "{took:?}");
    assert!(found.problems.is_empty() && found.absent.is_empty() && found.other.is_empty(), "{text}");
    assert_eq!(found.parts.iter().map(|part| part.tensors).sum::<usize>(), 5947);
    assert_eq!(found.parts.iter().map(|part| part.values).sum::<u64>(), 23_069_505_387);
    assert_eq!(found.parts[0].types["F32"], 290);
    assert!(text.contains("23069505387") && text.contains("46.1 GB"), "{text}");
}

#[test]
fn gemmas_folder_is_inspected_by_its_own_configuration() {
    let folder = tempfile::TempDir::new().unwrap();
    let manifest = manifest("gemma-3-12b-manifest.json");
    sparse(&folder.path().join("model.safetensors"), &json!({"format": "pt"}), &shapes(&manifest));
    fs::write(folder.path().join("config.json"), manifest["config"].to_string()).unwrap();
    let found = inspect(folder.path()).unwrap();
    assert_eq!(found.model, "Gemma 3 text");
    assert_eq!(found.parts.iter().map(|part| part.tensors).sum::<usize>(), 626);
    assert_eq!(found.parts[0].values, 11_766_034_176);
    // weights fit; the tokenizer is missing, which is worth a line
    assert_eq!(found.problems.len(), 1, "{found}");
    assert!(found.problems[0].contains("tokenizer.json"), "{found}");
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("broken.safetensors");
    let manifest = manifest("ltx-2.3-22b-manifest.json");
    let mut tensors = shapes(&manifest);
    tensors.remove("vae.encoder.conv_in.conv.bias").unwrap();
    *tensors.get_mut("audio_vae.decoder.conv_out.conv.weight").unwrap() = vec![2, 128, 5, 5];
    tensors.insert("vocoder.vocoder.surplus".to_owned(), vec![1]);
    tensors.insert("tokenizer_bytes".to_owned(), vec![3]);
    let metadata = json!({"config": manifest["config"].to_string()});
    sparse(&path, &metadata, &tensors);
    let found = inspect(&path).unwrap();
    let text = found.to_string();
    for line in [
        "missing vae.encoder.conv_in.conv.bias",
        "misshaped audio_vae.decoder.conv_out.conv.weight: expected [2, 128, 3, 3], found [2, 128, 5, 5]",
        "surplus vocoder.vocoder.surplus",
        "1 tensors belong to no part of the model:\n  tokenizer_bytes",
        "version  not stated",
    ] {
        assert!(text.contains(line), "no line `{line}` in\n{text}");
    }
    assert_eq!(found.problems.len(), 3, "{text}");
}

#[test]
fn other_generations_and_files_without_a_configuration_are_said_to_be_so() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("other.safetensors");
    let manifest = manifest("ltx-2.3-22b-manifest.json");
    let tensors = shapes(&manifest);
    let mut config = manifest["config"].clone();
    config["transformer"]["cross_attention_adaln"] = false.into();
    sparse(&path, &json!({"config": config.to_string()}), &tensors);
    let found = inspect(&path).unwrap();
    assert_eq!(found.model, "not LTX-2.3");
    assert!(found.problems[0].contains("`transformer.cross_attention_adaln`"), "{found}");

    sparse(&path, &json!({"format": "pt"}), &tensors);
    let found = inspect(&path).unwrap();
    assert!(found.problems[0].contains("carries no configuration"), "{found}");
    assert_eq!(found.parts.len(), 13);

    // a repacked file with one part only
    let vae: BTreeMap<_, _> = tensors.into_iter().filter(|(name, _)| name.starts_with("vae.")).collect();
    sparse(&path, &json!({"config": manifest["config"].to_string()}), &vae);
    let found = inspect(&path).unwrap();
    assert!(found.problems.is_empty() && found.parts.len() == 3 && found.absent.len() == 10, "{found}");

    fs::write(&path, b"not a weight file").unwrap();
    assert!(inspect(&path).is_err());
}
