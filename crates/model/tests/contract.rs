//! The full-size contract: walked without weights, the builders ask for the tensors of the real files, neither more
//! nor fewer. The manifests are read here alone; the builders know the configuration.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::{collections::BTreeMap, fs, path::Path};

use kiln_model::{
    Component, TensorSpec,
    survey::{self, TextWidth},
    text::GemmaConfig,
    transformer::{Halves, Stream, Transformer, TransformerConfig},
};
use serde_json::Value;

type Shapes = BTreeMap<String, Vec<usize>>;

fn manifest(name: &str) -> (Value, Shapes) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/reference").join(name);
    let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let tensors = serde_json::from_value(manifest["tensors"].clone()).unwrap();
    (manifest["config"].clone(), tensors)
}

/// Full names of what a component asked for.
fn named(component: Component, specs: Vec<TensorSpec>) -> Shapes {
    let prefix = component.original_prefix();
    specs.into_iter().map(|spec| (format!("{prefix}{}", spec.name), spec.shape)).collect()
}

fn part(tensors: &Shapes, keep: impl Fn(&str) -> bool) -> Shapes {
    tensors.iter().filter(|(name, _)| keep(name)).map(|(name, shape)| (name.clone(), shape.clone())).collect()
}

/// Both directions, with names in the message.
fn assert_same(asked: &Shapes, stored: &Shapes) {
    let missing: Vec<_> = stored.keys().filter(|name| !asked.contains_key(*name)).collect();
    let surplus: Vec<_> = asked.keys().filter(|name| !stored.contains_key(*name)).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "not asked for: {missing:?}\nnot stored: {surplus:?}");
    for (name, shape) in stored {
        assert_eq!(asked[name], *shape, "{name}");
    }
}

#[test]
fn the_transformer_asks_for_its_4186_tensors() {
    let (config, tensors) = manifest("ltx-2.3-22b-manifest.json");
    let config = TransformerConfig::new(&config).unwrap();
    let asked = named(Component::Transformer, Transformer::specs(&config, Halves::Both).unwrap());
    let stored = part(&tensors, |name| {
        name.starts_with("model.diffusion_model.") && !name.contains("_embeddings_connector.")
    });
    assert_eq!(stored.len(), 4186);
    assert_same(&asked, &stored);
    let values: usize = asked.values().map(|shape| shape.iter().product::<usize>()).sum();
    assert_eq!(values, 18_988_838_144);
}

#[test]
fn all_parts_together_ask_for_the_5947_tensors_of_the_file() {
    let (config, tensors) = manifest("ltx-2.3-22b-manifest.json");
    let (gemma, _) = manifest("gemma-3-12b-manifest.json");
    let text = TextWidth::from(&GemmaConfig::new(&gemma).unwrap());
    let mut asked = Shapes::new();
    for component in Component::ALL.iter().filter(|component| **component != Component::Gemma) {
        asked.extend(named(*component, survey::specs(*component, &config, text).unwrap()));
    }
    assert_eq!(tensors.len(), 5947);
    assert_same(&asked, &tensors);
    let values: usize = asked.values().map(|shape| shape.iter().product::<usize>()).sum();
    assert_eq!(values, 23_069_505_387);
}

#[test]
fn gemma_asks_for_its_626_tensors() {
    let (config, tensors) = manifest("gemma-3-12b-manifest.json");
    let config = GemmaConfig::new(&config).unwrap();
    let asked = named(Component::Gemma, survey::gemma_specs(&config).unwrap());
    assert_eq!(tensors.len(), 626);
    assert_same(&asked, &tensors);
    let values: usize = asked.values().map(|shape| shape.iter().product::<usize>()).sum();
    assert_eq!(values, 11_766_034_176);
}

#[test]
fn a_half_asks_for_its_own_modules_only() {
    let (config, _) = manifest("ltx-2.3-22b-manifest.json");
    let config = TransformerConfig::new(&config).unwrap();
    let video = Transformer::specs(&config, Halves::Only(Stream::Video)).unwrap();
    let audio = Transformer::specs(&config, Halves::Only(Stream::Audio)).unwrap();
    let both = Transformer::specs(&config, Halves::Both).unwrap();
    assert!(video.iter().all(|spec| !spec.name.contains("audio") && !spec.name.contains("av_ca")));
    assert!(audio.iter().all(|spec| spec.name.contains("audio_") && !spec.name.contains("to_audio")));
    assert_eq!(video.len(), audio.len());
    assert!(video.len() + audio.len() < both.len());
    assert!(video.iter().chain(&audio).all(|spec| both.contains(spec)));
}

#[test]
fn what_is_not_supported_is_refused_by_its_key() {
    let (config, _) = manifest("ltx-2.3-22b-manifest.json");
    for (key, value) in [
        ("rope_type", Value::from("interleaved")),
        ("cross_attention_adaln", Value::from(false)),
        ("caption_proj_before_connector", Value::Null),
        ("ff_bias", Value::from(false)),
        ("use_keyframes_abs_pos_embedding", Value::from(true)),
        ("use_prompt_adaln_single", Value::from(false)),
        ("apply_gated_attention", Value::from(false)),
        ("qk_norm", Value::from("layer_norm")),
        ("dropout", Value::from(0.1)),
        ("num_layers", Value::from(0)),
        ("num_layers", Value::from(1_000_000)),
        ("num_layers", Value::from(u64::MAX)),
        ("attention_head_dim", Value::from(127)),
        ("audio_num_attention_heads", Value::from(16)),
        ("cross_attention_dim", Value::from(3840)),
        ("audio_cross_attention_dim", Value::from("2048")),
        ("positional_embedding_max_pos", Value::from(vec![20, 2048])),
        ("av_ca_timestep_scale_multiplier", Value::Null),
        ("frequencies_precision", Value::from("float16")),
        ("norm_eps", Value::from(-1.0)),
    ] {
        let mut changed = config.clone();
        changed["transformer"][key] = value.clone();
        let message = TransformerConfig::new(&changed).expect_err(key).to_string();
        assert!(message.contains(&format!("`transformer.{key}`")), "{key} = {value}: {message}");
    }
    let message = TransformerConfig::new(&Value::Null).unwrap_err().to_string();
    assert!(message.contains("`transformer`: missing"), "{message}");
}
