//! Models of unusual sizes written to files and loaded from them: whole, by halves, repacked, in fp8.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use half::bf16;
use kiln_model::{
    Checkpoint, Component, Error,
    nn::Adapters,
    random_values,
    transformer::{Halves, Inputs, Perturbations, Stream, Streams, Transformer},
};
use safetensors::{Dtype, tensor::TensorView};

use crate::common::{GEOMETRIES, Geometry, SEED, apart, both};

/// Name, type, shape and bytes of what a file holds.
type Contents = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors the random weights of the tests stand for.
fn contents(g: &Geometry) -> Contents {
    let specs = Transformer::specs(&g.config(), Halves::Both).unwrap();
    let prefix = Component::Transformer.original_prefix();
    let tensor = |name: &str, shape: &[usize]| {
        let values = random_values(SEED, name, shape);
        // Tables are stored wider than the rest; their values are bf16's all the same.
        if name.contains("scale_shift_table") {
            (Dtype::F32, values.iter().flat_map(|v| bf16::from_f32(*v).to_f32().to_le_bytes()).collect())
        } else {
            (Dtype::BF16, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>())
        }
    };
    let named = specs.into_iter().map(|spec| {
        let name = format!("{prefix}{}", spec.name);
        let (dtype, bytes) = tensor(&name, &spec.shape);
        (name, (dtype, spec.shape, bytes))
    });
    named.collect()
}

fn write(path: &Path, contents: &Contents, g: &Geometry) -> Arc<Checkpoint> {
    let views = contents.iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let metadata = [("config".to_owned(), g.config_json().to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
    Checkpoint::open(path).unwrap()
}

fn forward(model: &Transformer, g: &Geometry) -> Streams {
    let [video, audio] = both(g, 1, DType::F32);
    let inputs = match model.halves() {
        Halves::Both => Inputs::both(&video, &audio),
        Halves::Only(Stream::Video) => Inputs::only(Stream::Video, &video),
        Halves::Only(Stream::Audio) => Inputs::only(Stream::Audio, &audio),
    };
    model.forward(&inputs, &Perturbations::none(), Adapters::none()).unwrap()
}

/// Both models predict the same bits.
fn assert_equal(a: &Streams, b: &Streams) {
    for stream in Stream::BOTH {
        match (a.get(stream), b.get(stream)) {
            (Some(a), Some(b)) => assert_eq!(apart(a, b), 0.0, "{}", stream.name()),
            (None, None) => {}
            _ => panic!("{} is in one of them only", stream.name()),
        }
    }
}

#[test]
fn a_file_gives_the_model_its_weights_whole_by_halves_and_repacked() {
    let folder = tempfile::TempDir::new().unwrap();
    for g in &GEOMETRIES {
        let original = contents(g);
        let repacked: Contents = original
            .iter()
            .map(|(name, tensor)| {
                (name.trim_start_matches("model.diffusion_model.").to_owned(), tensor.clone())
            })
            .collect();
        for contents in [original, repacked] {
            let file = write(&folder.path().join("x.safetensors"), &contents, g);
            for halves in [Halves::Both, Halves::Only(Stream::Video), Halves::Only(Stream::Audio)] {
                let loaded = Transformer::load(&file, halves, &Device::Cpu, DType::F32).unwrap();
                assert_equal(&forward(&loaded, g), &forward(&g.model(halves, DType::F32), g));
            }
        }
    }
}

#[test]
fn fp8_blocks_compute_as_their_dequantised_twins() {
    let folder = tempfile::TempDir::new().unwrap();
    let g = &GEOMETRIES[0];
    let (mut quantised, mut twin) = (contents(g), contents(g));
    let first: Vec<String> = quantised
        .iter()
        .filter(|(name, (_, shape, _))| {
            name.contains("transformer_blocks.0.") && name.ends_with(".weight") && shape.len() == 2
        })
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(first.len(), 34, "the linear layers of a block");
    for (i, name) in first.into_iter().enumerate() {
        let shape = quantised[&name].1.clone();
        let count: usize = shape.iter().product();
        // Any codes but the two that are no numbers.
        let codes: Vec<u8> = (0..count).map(|n| ((n * 37 + i * 11) % 256) as u8 & 0xf7).collect();
        let scale = 0.001 + 0.0001 * i as f32;
        let values = Tensor::from_raw_buffer(&codes, DType::F8E4M3, &[count], &Device::Cpu).unwrap();
        let values = values.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let values = values.iter().flat_map(|v| bf16::from_f32(v * scale).to_le_bytes()).collect();
        twin.insert(name.clone(), (Dtype::BF16, shape.clone(), values));
        for sibling in ["_scale", ""] {
            let scalar = (Dtype::F32, Vec::new(), scale.to_le_bytes().to_vec());
            let input = name.replace(".weight", ".input_scale");
            quantised.insert(if sibling.is_empty() { input } else { format!("{name}{sibling}") }, scalar);
        }
        quantised.insert(name, (Dtype::F8_E4M3, shape, codes));
    }
    let load = |name: &str, contents: &Contents| {
        let file = write(&folder.path().join(name), contents, g);
        Transformer::load(&file, Halves::Both, &Device::Cpu, DType::F32).unwrap()
    };
    let (a, b) = (forward(&load("fp8", &quantised), g), forward(&load("bf16", &twin), g));
    assert!(
        apart(a.video.as_ref().unwrap(), &forward(&g.model(Halves::Both, DType::F32), g).video.unwrap())
            > 1e-3
    );
    assert_equal(&a, &b);
}

#[test]
fn a_half_needs_its_own_tensors_and_refuses_strangers() {
    let folder = tempfile::TempDir::new().unwrap();
    let g = &GEOMETRIES[1];
    let audio_half = Transformer::specs(&g.config(), Halves::Only(Stream::Audio)).unwrap();
    let prefix = Component::Transformer.original_prefix();
    let mut only: Contents = contents(g);
    only.retain(|name, _| audio_half.iter().any(|spec| format!("{prefix}{}", spec.name) == *name));

    let file = write(&folder.path().join("half"), &only, g);
    let load = |file: &Arc<Checkpoint>, halves| Transformer::load(file, halves, &Device::Cpu, DType::F32);
    assert!(load(&file, Halves::Only(Stream::Audio)).is_ok());
    let Err(Error::Tensors(problems)) = load(&file, Halves::Both) else { panic!("half a file is not whole") };
    let all = Transformer::specs(&g.config(), Halves::Both).unwrap().len();
    assert_eq!((problems.missing.len(), problems.surplus.len()), (all - audio_half.len(), 0));

    let stranger = (Dtype::BF16, vec![1], vec![0, 0]);
    only.insert(format!("{prefix}caption_projection.weight"), stranger);
    let file = write(&folder.path().join("stranger"), &only, g);
    let message = load(&file, Halves::Only(Stream::Audio)).unwrap_err().to_string();
    assert!(message.contains("surplus model.diffusion_model.caption_projection.weight"), "{message}");
}
