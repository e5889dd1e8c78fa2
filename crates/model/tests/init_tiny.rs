//! Tiny models made on the spot: they fit what the loaders ask for, in usual and unusual sizes, and run.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;

use candle_core::{DType, Device, Tensor};
use kiln_model::{
    Checkpoint,
    audio_vae::{
        AudioDecoder, AudioEncoder, Vocoder,
        mel::{MelFrontEnd, resample, to_stereo},
    },
    init_tiny::{TinyModel, TinyShape, init_tiny},
    inspect::inspect,
    text::{Residency, TextEncoder, TextOptions},
};

/// Heads, widths, layer counts and channels that nothing else in the project has.
fn unusual() -> [TinyShape; 2] {
    [
        TinyShape {
            layers: 1,
            heads: 3,
            head_dim: 20,
            audio_head_dim: 6,
            latent_channels: 12,
            decoder_channels: 8,
            video_res_blocks: 2,
            audio_latent_channels: 3,
            audio_channels: 6,
            audio_res_blocks: 2,
            vocoder_channels: 128,
            connector_layers: 3,
            connector_heads: 1,
            registers: 8,
            gemma_width: 48,
            gemma_layers: 3,
            gemma_heads: 6,
            gemma_kv_heads: 1,
            gemma_head_dim: 10,
            gemma_inner: 40,
            gemma_window: 5,
            gemma_pattern: 2,
        },
        TinyShape {
            layers: 5,
            heads: 2,
            head_dim: 26,
            audio_head_dim: 22,
            latent_channels: 20,
            audio_latent_channels: 1,
            audio_channels: 10,
            connector_layers: 1,
            connector_heads: 2,
            registers: 16,
            gemma_width: 20,
            gemma_layers: 9,
            gemma_heads: 3,
            gemma_kv_heads: 3,
            gemma_head_dim: 14,
            gemma_inner: 100,
            gemma_window: 64,
            gemma_pattern: 3,
            ..TinyShape::default()
        },
    ]
}

fn finite(tensor: &Tensor) -> Vec<f32> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values.iter().all(|x| x.is_finite()));
    values
}

/// Every caption has its own context, of unit rows; one alone has the same as in a batch.
fn run_text(model: &TinyModel, shape: &TinyShape) {
    let checkpoint = Checkpoint::open(&model.checkpoint).unwrap();
    let gemma = Checkpoint::open(&model.gemma).unwrap();
    let padded_tokens = 4 * shape.registers;
    let captions = ["a cat, Ünï 猫", "", &"the sea and the wind ".repeat(40)];
    let options = TextOptions { padded_tokens, dtype: DType::F32, residency: Residency::Streamed };
    let encoder = TextEncoder::load(&checkpoint, &gemma, &Device::Cpu, options).unwrap();
    let contexts = encoder.encode(&captions).unwrap();
    assert_eq!(contexts[1].tokens, 1, "the empty caption is <bos> alone");
    assert_eq!(contexts[2].tokens, padded_tokens, "a long caption is cut");
    for context in &contexts {
        let widths = [(&context.video, shape.head_dim), (&context.audio, shape.audio_head_dim)];
        for (context, head_dim) in widths {
            let width = shape.heads * head_dim;
            assert_eq!(context.dims(), [padded_tokens, width]);
            for row in finite(context).chunks(width) {
                let mean_square = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
                assert!((mean_square - 1.0).abs() < 1e-3, "{mean_square}");
            }
        }
    }
    let alone = encoder.encode(&captions[..1]).unwrap();
    let apart = finite(&(&alone[0].video - &contexts[0].video).unwrap());
    assert!(apart.iter().all(|x| x.abs() < 1e-4));
    assert!(encoder.encode::<&str>(&[]).unwrap().is_empty());
    let options = TextOptions { dtype: DType::BF16, residency: Residency::Resident, ..options };
    let rounded = TextEncoder::load(&checkpoint, &gemma, &Device::Cpu, options).unwrap();
    let rounded = rounded.encode(&captions[..1]).unwrap()[0].video.to_dtype(DType::F32).unwrap();
    let apart = finite(&(&rounded - &contexts[0].video).unwrap());
    let mean = apart.iter().map(|x| x.abs()).sum::<f32>() / apart.len() as f32;
    // bf16 keeps 8 bits: each of some 50 roundings in a row moves a value of order 1 by up to 0.004.
    assert!(mean < 0.05, "bf16 is {mean} away from f32 on average");
    let other = finite(&(&contexts[1].video - &contexts[0].video).unwrap());
    assert!(other.iter().any(|x| x.abs() > 1e-2), "different captions, the same context");
}

/// From 44.1 kHz mono to latents and back to 48 kHz stereo.
fn run_sound(model: &TinyModel, shape: &TinyShape) {
    let checkpoint = Checkpoint::open(&model.checkpoint).unwrap();
    let encoder = AudioEncoder::load(&checkpoint, &Device::Cpu).unwrap();
    let decoder = AudioDecoder::load(&checkpoint, &Device::Cpu).unwrap();
    let vocoder = Vocoder::load(&checkpoint, &Device::Cpu).unwrap();
    let tone: Vec<f32> = (0..22_050).map(|n| 0.5 * (n as f32 * 0.05).sin()).collect();
    let mono = Tensor::from_vec(tone, (1, 22_050), &Device::Cpu).unwrap();
    let wave = resample(&to_stereo(&mono).unwrap(), 44_100, 16_000).unwrap();
    let mel = MelFrontEnd::new(encoder.config()).unwrap().log_mel(&wave).unwrap().unsqueeze(0).unwrap();
    assert_eq!(mel.dims(), [1, 2, 51, 64]);
    let latents = encoder.encode(&mel).unwrap();
    assert_eq!(latents.dims(), [1, shape.audio_latent_channels, 13, 16]);
    let decoded = decoder.decode(&latents).unwrap();
    assert_eq!(decoded.dims(), [1, 2, 49, 64]);
    let spoken = vocoder.vocode(&decoded).unwrap();
    assert_eq!(spoken.dims(), [1, 2, 480 * 49]);
    finite(&latents);
    assert!(finite(&spoken).iter().all(|x| x.abs() <= 1.0));

    let error = encoder.encode(&mel.narrow(3, 0, 32).unwrap()).unwrap_err().to_string();
    assert!(error.contains("expected [B, 2, T, 64]"), "{error}");
    let error = decoder.decode(&decoded).unwrap_err().to_string();
    assert!(error.contains("`latents`"), "{error}");
}

#[test]
fn unusual_geometries_run_text_and_sound() {
    for shape in unusual() {
        let folder = tempfile::TempDir::new().unwrap();
        let model = init_tiny(folder.path(), &shape, 7).unwrap();
        for path in [&model.checkpoint, &model.gemma] {
            let found = inspect(path).unwrap();
            assert!(found.problems.is_empty() && found.other.is_empty(), "{found}");
        }
        run_text(&model, &shape);
        run_sound(&model, &shape);
    }
}

#[test]
fn the_default_model_is_a_few_megabytes_and_depends_on_its_seed_alone() {
    let folder = tempfile::TempDir::new().unwrap();
    let make = |name: &str, seed| init_tiny(folder.path().join(name), &TinyShape::default(), seed).unwrap();
    let (first, again, other) = (make("a", 1), make("b", 1), make("c", 2));
    assert!((1_000_000..8_000_000).contains(&first.bytes), "{} bytes", first.bytes);
    let bytes = |model: &TinyModel| {
        (fs::read(&model.checkpoint).unwrap(), fs::read(model.gemma.join("model.safetensors")).unwrap())
    };
    assert!(bytes(&first) == bytes(&again), "one seed, two models");
    assert!(bytes(&first) != bytes(&other), "two seeds, one model");
    let found = inspect(&first.checkpoint).unwrap();
    assert_eq!((found.model.as_str(), found.model_version.as_deref()), ("LTX-2.3", Some("2.3.0")));
    assert!(found.problems.is_empty() && found.absent.is_empty() && found.other.is_empty(), "{found}");
    assert_eq!(inspect(&first.gemma).unwrap().model, "Gemma 3 text");
}

#[test]
fn nothing_is_overwritten_and_impossible_sizes_are_refused_by_their_key() {
    let folder = tempfile::TempDir::new().unwrap();
    init_tiny(folder.path(), &TinyShape::default(), 1).unwrap();
    let error = init_tiny(folder.path(), &TinyShape::default(), 1).unwrap_err().to_string();
    assert!(error.contains("already exists"), "{error}");

    let default = TinyShape::default();
    assert_eq!(default.with("layers", 9).unwrap(), TinyShape { layers: 9, ..default });
    let error = default.with("wings", 2).unwrap_err().to_string();
    assert!(error.contains("`wings`: no such size; there are layers, heads, head_dim"), "{error}");
    for (shape, key) in [
        (TinyShape { head_dim: 15, ..default }, "attention_head_dim"),
        (TinyShape { layers: 0, ..default }, "num_layers"),
        (TinyShape { connector_heads: 3, ..default }, "connector_attention_head_dim"),
        (TinyShape { connector_heads: 0, ..default }, "connector_num_attention_heads"),
        (TinyShape { vocoder_channels: 32, ..default }, "upsample_initial_channel"),
        (TinyShape { gemma_kv_heads: 3, ..default }, "num_key_value_heads"),
        (TinyShape { gemma_head_dim: 9, ..default }, "head_dim"),
        (default.with("heads", 4096).unwrap().with("head_dim", 128).unwrap(), "these make a model of"),
        (TinyShape { audio_channels: 0, ..default }, "ddconfig.ch"),
    ] {
        let folder = tempfile::TempDir::new().unwrap();
        let error = init_tiny(folder.path().join("model"), &shape, 1).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
        assert!(!folder.path().join("model").exists(), "{key}: something was written");
    }
}
