//! Adapters: targets, start values, and the file others read.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use kiln_model::{
    Checkpoint, Error, LoraSet, TensorSpec,
    lora::{ReferenceFactors, Target, header_bytes},
    transformer::{Halves, Transformer, TransformerConfig},
};
use serde_json::Value;

use crate::common::{GEOMETRIES, apart, random};

fn real_specs() -> Vec<TensorSpec> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/reference/ltx-2.3-22b-manifest.json");
    let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    Transformer::specs(&TransformerConfig::new(&manifest["config"]).unwrap(), Halves::Both).unwrap()
}

/// `modules` × the four projections of an attention.
fn projections(modules: &[&str]) -> Vec<String> {
    let projections = ["to_k", "to_q", "to_v", "to_out.0"];
    modules.iter().flat_map(|m| projections.map(|p| format!("{m}.{p}"))).collect()
}

#[test]
fn target_sets_and_file_sizes_of_the_real_model_are_as_tabulated() {
    let specs = real_specs();
    let short = ["to_k", "to_q", "to_v", "to_out.0"].map(str::to_owned).to_vec();
    let video = projections(&["attn1", "attn2"]);
    let ff = ["ff.net.0.proj", "ff.net.2"].map(str::to_owned).to_vec();
    let audio = [
        projections(&["audio_attn1", "audio_attn2"]),
        ["audio_ff.net.0.proj", "audio_ff.net.2"].map(str::to_owned).to_vec(),
    ]
    .concat();
    let v2a = [audio.clone(), projections(&["video_to_audio_attn"])].concat();
    // `training.md` §3.1: layers, values per unit of rank, file bytes for each rank.
    let ranks = [8, 16, 32, 64, 128];
    for (patterns, layers, per_rank, bytes) in [
        (short, 1152, 6_684_672, [107_280_552, 214_240_000, 428_150_680, 855_970_296, 1_711_612_824u64]),
        (video.clone(), 384, 3_145_728, [50_434_856, 100_767_456, 201_431_592, 402_758_608, 805_412_776]),
        (
            [video, ff].concat(),
            480,
            5_111_808,
            [81_918_080, 163_708_856, 327_287_352, 654_443_392, 1_308_756_384],
        ),
        (audio, 480, 2_555_904, [41_029_024, 81_924_704, 163_714_520, 327_293_016, 654_450_016]),
        (v2a, 672, 3_538_944, [56_814_792, 113_439_816, 226_687_352, 453_180_424, 906_166_928]),
    ] {
        let targets = Target::matching(&specs, &patterns).unwrap();
        assert_eq!(targets.len(), layers, "{patterns:?}");
        let values: usize = targets.iter().map(|t| t.inputs + t.outputs).sum();
        assert_eq!(values, per_rank, "{patterns:?}");
        for (rank, want) in ranks.into_iter().zip(bytes) {
            let shapes: BTreeMap<String, [usize; 2]> = targets
                .iter()
                .flat_map(|t| {
                    let key = |factor| format!("diffusion_model.{}.lora_{factor}.weight", t.path);
                    [(key('A'), [rank, t.inputs]), (key('B'), [t.outputs, rank])]
                })
                .collect();
            let shapes = shapes.iter().map(|(key, shape)| (key.as_str(), shape.as_slice()));
            let header = header_bytes(shapes, ReferenceFactors::default());
            assert_eq!(header.len() as u64 + (2 * rank * per_rank) as u64, want, "{patterns:?}, rank {rank}");
        }
    }
}

#[test]
fn a_pattern_ends_at_a_dot_and_must_hit_something() {
    let specs = real_specs();
    let paths = |pattern: &str| -> Vec<String> {
        let targets = Target::matching(&specs, &[pattern]).unwrap();
        targets.into_iter().map(|t| t.path).filter(|p| p.starts_with("transformer_blocks.0.")).collect()
    };
    assert_eq!(paths("attn1.to_k"), ["transformer_blocks.0.attn1.to_k"]);
    assert_eq!(paths("ff.net.2"), ["transformer_blocks.0.ff.net.2"]);
    assert_eq!(paths("to_q").len(), 6);
    assert_eq!(paths("transformer_blocks.0.attn1.to_k").len(), 1);
    for nothing in ["o_q", "adaln_single.linear", "patchify_proj", "q_norm", "scale_shift_table", ""] {
        let error = Target::matching(&specs, &[nothing]).unwrap_err();
        assert!(error.to_string().contains(&format!("`{nothing}`")), "{error}");
    }
}

/// Adapters of the first small model, away from their start.
fn set() -> (Vec<TensorSpec>, LoraSet) {
    let specs = Transformer::specs(&GEOMETRIES[0].config(), Halves::Both).unwrap();
    let targets = Target::matching(&specs, &["to_q", "to_out.0"]).unwrap();
    let set = LoraSet::init(&targets, 3, 1.0, &Device::Cpu, || 0.25).unwrap();
    for (i, (_, var)) in set.vars().enumerate() {
        var.set(&random(i as u64, var.shape().clone(), DType::F32)).unwrap();
    }
    (specs, set)
}

#[test]
fn fresh_adapters_are_bounded_in_a_and_zero_in_b() {
    let (specs, _) = set();
    let targets = Target::matching(&specs, &["to_q"]).unwrap();
    let mut draws = 0u32;
    let fresh = LoraSet::init(&targets, 2, 1.0, &Device::Cpu, || {
        draws += 1;
        [0.0, 0.999_999, 0.5][draws as usize % 3]
    })
    .unwrap();
    for (key, var) in fresh.vars() {
        let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        if key.ends_with("lora_B.weight") {
            assert!(values.iter().all(|v| *v == 0.0), "{key}");
        } else {
            let bound = 1.0 / (var.dim(1).unwrap() as f32).sqrt();
            assert!(
                values.iter().all(|v| v.abs() <= bound) && values.iter().any(|v| v.abs() > 0.99 * bound),
                "{key}"
            );
        }
    }
    let a_values: usize = targets.iter().map(|t| 2 * t.inputs).sum();
    assert_eq!(draws as usize, a_values);
    assert!(LoraSet::init(&targets, 0, 1.0, &Device::Cpu, || 0.0).is_err());
}

#[test]
fn a_saved_file_reads_back_as_bf16_in_key_order_with_empty_metadata() {
    let (specs, set) = set();
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("lora.safetensors");
    set.save(&path, ReferenceFactors::default()).unwrap();

    let bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + header_len]).unwrap();
    assert!(header.starts_with("{\"__metadata__\":{},\"diffusion_model.transformer_blocks.0."), "{header}");
    assert_eq!(header_len % 8, 0);
    assert!(!header.contains("alpha"));
    let keys: Vec<&str> = header.split('"').filter(|part| part.starts_with("diffusion_model.")).collect();
    assert!(keys.is_sorted() && keys.len() == 2 * set.paths().len());

    let back = LoraSet::load(&path, &specs, &Device::Cpu).unwrap();
    assert_eq!((back.rank(), back.scale(), back.parameters()), (3, 1.0, set.parameters()));
    for ((key, a), (other, b)) in set.vars().zip(back.vars()) {
        assert_eq!(key, other);
        let rounded = a.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(apart(&rounded, b), 0.0, "{key}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no half-written file is left");
}

#[test]
fn reference_factors_are_in_the_metadata_only_when_they_are_not_one() {
    let (_, set) = set();
    let folder = tempfile::TempDir::new().unwrap();
    for (spatial, temporal, want) in [
        (2, 1, vec![("reference_downscale_factor", "2"), ("reference_spatial_scale_factor", "2")]),
        (1, 4, vec![("reference_temporal_scale_factor", "4")]),
    ] {
        let path = folder.path().join("lora.safetensors");
        set.save(&path, ReferenceFactors { spatial, temporal }).unwrap();
        let file = Checkpoint::open(&path).unwrap();
        let found: Vec<(&str, &str)> =
            file.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, want);
    }
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let (specs, set) = set();
    let tensors = || set.vars().map(|(key, var)| (key, var.as_tensor().clone())).collect::<Vec<_>>();
    let first = tensors()[0].0.clone();
    let refused = |tensors: Vec<(String, Tensor)>, name: &str| {
        let error = LoraSet::from_tensors(tensors, 1.0, &Device::Cpu).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. }) && error.to_string().contains(name), "{error}");
    };
    refused(tensors().split_off(1), &first);
    let mut more = tensors();
    more.push(("diffusion_model.x.alpha".to_owned(), random(1, 1, DType::F32)));
    refused(more, "diffusion_model.x.alpha");
    let mut other_rank = tensors();
    other_rank[0].1 = random(1, (4, other_rank[0].1.dim(1).unwrap()), DType::F32);
    refused(other_rank, &first);

    // A file of another model: its layers have other widths, or there are fewer of them.
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("lora.safetensors");
    set.save(&path, ReferenceFactors::default()).unwrap();
    let error = LoraSet::load(&path, &real_specs(), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("the layer has (4096, 4096)"), "{error}");
    let fewer: Vec<TensorSpec> = specs.into_iter().filter(|s| !s.name.contains("blocks.2.")).collect();
    let error = LoraSet::load(&path, &fewer, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("no such layer"), "{error}");
}
