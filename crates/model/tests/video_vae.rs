//! The video VAE beyond the reference tensors: real sizes without weights, unusual sizes with random ones, refusals.

use std::{ops::ControlFlow, sync::LazyLock};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use kiln_model::{
    Component, Error, Weights,
    video_vae::{AxisTiling, Block, Scale, Statistics, Tiling, VideoDecoder, VideoEncoder, VideoVaeConfig},
};
use serde_json::{Value, json};

/// The `vae` object of the 22B checkpoint (`model.md` §2.2).
static REAL: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../benches/video_vae_22b.json")).expect("the file holds JSON")
});

/// Two colours, patches of 2, a factor of 3, reflection, a causal decoder: nothing as in 2.3.
fn unusual() -> Value {
    json!({"vae": {
        "dims": 3, "in_channels": 2, "out_channels": 2, "latent_channels": 6, "patch_size": 2,
        "norm_layer": "pixel_norm", "latent_log_var": "uniform", "timestep_conditioning": false,
        "spatial_padding_mode": "reflect", "causal_decoder": true, "decoder_base_channels": 5,
        "encoder_blocks": [["compress_time_res", {"multiplier": 1}], ["res_x", 2], ["compress_space_res", {}],
                           ["compress_time_res", {"multiplier": 2}]],
        "decoder_blocks": [["compress_space", {"multiplier": 3}], ["compress_time", {"multiplier": 2}],
                           ["compress_time", {}], ["res_x", {"num_layers": 1, "inject_noise": false}]],
    }})
}

fn statistics(config: &VideoVaeConfig) -> Result<Statistics> {
    let w = Weights::random(Component::VideoStatistics, 1, &Device::Cpu, DType::F32);
    Ok(Statistics::new(config.latent_channels, &w)?)
}

fn encoder(config: &VideoVaeConfig) -> Result<VideoEncoder> {
    let w = Weights::random(Component::VideoEncoder, 1, &Device::Cpu, DType::F32);
    Ok(VideoEncoder::new(config, &w, statistics(config)?)?)
}

fn decoder(config: &VideoVaeConfig) -> Result<VideoDecoder> {
    let w = Weights::random(Component::VideoDecoder, 1, &Device::Cpu, DType::F32);
    Ok(VideoDecoder::new(config, &w, statistics(config)?)?)
}

fn noise(shape: [usize; 5], seed: u64) -> Result<Tensor> {
    let values = kiln_model::random_values(seed, "noise.weight", &shape);
    Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?.clamp(-1.0, 1.0)?)
}

fn apart(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)
}

#[test]
fn the_real_config_asks_for_the_real_tensors_without_any_weights() -> Result<()> {
    let config = VideoVaeConfig::read(&REAL)?;
    assert_eq!(config.scale, Scale { time: 8, space: 32 });
    assert_eq!(config.decoder_blocks[1], Block::Compress { stride: [2, 2, 2], multiplier: 2 });
    let encoder = Weights::record(Component::VideoEncoder, |w| {
        VideoEncoder::new(&config, w, statistics(&config).expect("random statistics")).map(drop)
    })?;
    let decoder = Weights::record(Component::VideoDecoder, |w| {
        VideoDecoder::new(&config, w, statistics(&config).expect("random statistics")).map(drop)
    })?;
    // Counts and sums: `model.md` §3. Names and shapes: `model-video-vae.md` §5.
    for (specs, values) in [(&encoder, 318_936_897), (&decoder, 407_169_072)] {
        assert_eq!(specs.len(), 84);
        assert_eq!(specs.iter().map(|s| s.shape.iter().product::<usize>()).sum::<usize>(), values);
    }
    for (specs, name, shape) in [
        (&encoder, "conv_in.conv.weight", vec![128, 48, 3, 3, 3]),
        (&encoder, "down_blocks.1.conv.conv.weight", vec![64, 128, 3, 3, 3]),
        (&encoder, "down_blocks.7.conv.conv.weight", vec![128, 1024, 3, 3, 3]),
        (&encoder, "down_blocks.8.res_blocks.1.conv2.conv.bias", vec![1024]),
        (&encoder, "conv_out.conv.weight", vec![129, 1024, 3, 3, 3]),
        (&decoder, "conv_in.conv.weight", vec![1024, 128, 3, 3, 3]),
        (&decoder, "up_blocks.3.conv.conv.weight", vec![4096, 512, 3, 3, 3]),
        (&decoder, "up_blocks.7.conv.conv.weight", vec![512, 256, 3, 3, 3]),
        (&decoder, "up_blocks.8.res_blocks.3.conv1.conv.weight", vec![128, 128, 3, 3, 3]),
        (&decoder, "conv_out.conv.bias", vec![48]),
    ] {
        let found = specs.iter().find(|spec| spec.name == name).map(|spec| &spec.shape);
        assert_eq!(found, Some(&shape), "{name}");
    }
    Ok(())
}

#[test]
fn unusual_sizes_encode_and_decode() -> Result<()> {
    let config = VideoVaeConfig::read(&unusual())?;
    assert_eq!(config.scale, Scale { time: 4, space: 4 });
    let (encoder, decoder) = (encoder(&config)?, decoder(&config)?);
    for frames in [1, 5, 9] {
        let latents = encoder.encode(&noise([2, 2, frames, 8, 12], 3)?)?;
        assert_eq!(latents.dims(), [2, 6, (frames - 1) / 4 + 1, 2, 3]);
        let decoded = decoder.decode(&latents)?;
        assert_eq!(decoded.dims(), [2, 2, frames, 8, 12]);
        assert!(decoded.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?.is_finite());
    }
    Ok(())
}

#[test]
fn what_comes_later_does_not_change_the_beginning() -> Result<()> {
    let config = VideoVaeConfig::read(&unusual())?;
    let pixels = noise([1, 2, 9, 8, 8], 4)?;
    let begin = pixels.narrow(2, 0, 5)?;
    let (encoder, decoder) = (encoder(&config)?, decoder(&config)?);
    let (all, first) = (encoder.encode(&pixels)?, encoder.encode(&begin)?);
    assert!(apart(&all.narrow(2, 0, 2)?, &first)? < 1e-5);
    let (all, first) = (decoder.decode(&all)?, decoder.decode(&all.narrow(2, 0, 2)?)?);
    assert!(apart(&all.narrow(2, 0, 5)?, &first)? < 1e-5);
    // The non-causal decoder looks one latent ahead.
    let mut symmetric = unusual();
    symmetric["vae"]["causal_decoder"] = json!(false);
    let decoder = self::decoder(&VideoVaeConfig::read(&symmetric)?)?;
    let latents = encoder.encode(&pixels)?;
    let (all, first) = (decoder.decode(&latents)?, decoder.decode(&latents.narrow(2, 0, 2)?)?);
    assert!(apart(&all.narrow(2, 0, 5)?, &first)? > 1e-3);
    Ok(())
}

#[test]
fn samples_of_a_batch_do_not_touch() -> Result<()> {
    let config = VideoVaeConfig::read(&unusual())?;
    let encoder = encoder(&config)?;
    let (a, b) = (noise([1, 2, 5, 8, 12], 5)?, noise([1, 2, 5, 8, 12], 6)?);
    let both = encoder.encode(&Tensor::cat(&[&a, &b], 0)?)?;
    assert_eq!(apart(&both.narrow(0, 0, 1)?, &encoder.encode(&a)?)?, 0.0);
    assert_eq!(apart(&both.narrow(0, 1, 1)?, &encoder.encode(&b)?)?, 0.0);
    Ok(())
}

#[test]
fn tiles_cover_every_frame_in_order_and_a_break_stops_them() -> Result<()> {
    let config = VideoVaeConfig::read(&unusual())?;
    let decoder = decoder(&config)?;
    let latents = noise([2, 6, 7, 5, 4], 7)?;
    let tiling = Tiling {
        frames: Some(AxisTiling::new(12, 4)),
        height: Some(AxisTiling::new(12, 4)),
        width: Some(AxisTiling::new(8, 4)),
    };
    let mut chunks = Vec::new();
    decoder.decode_tiled(&latents, &tiling, &mut |_, _| ControlFlow::Continue(()), &mut |chunk| {
        chunks.push(chunk);
        Ok(())
    })?;
    assert!(chunks.len() > 2);
    assert_eq!(Tensor::cat(&chunks, 2)?.dims(), [2, 2, 25, 20, 16]);

    let mut seen = 0;
    let stopped = decoder.decode_tiled(
        &latents,
        &tiling,
        &mut |done, _| if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) },
        &mut |_| {
            seen += 1;
            Ok(())
        },
    );
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(seen, 0);
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() -> Result<()> {
    let config = VideoVaeConfig::read(&unusual())?;
    let (encoder, decoder) = (encoder(&config)?, decoder(&config)?);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    for shape in [&[1, 3, 1, 8, 8][..], &[1, 2, 1, 8, 10], &[1, 2, 0, 8, 8], &[2, 1, 8, 8]] {
        let error = encoder.encode(&zeros(shape)?).expect_err("a shape that does not fit");
        assert!(matches!(&error, Error::Input { name, .. } if name == "pixels"), "{error}");
    }
    for shape in [&[1, 5, 1, 2, 2][..], &[1, 6, 1, 0, 2], &[6, 1, 2, 2]] {
        let error = decoder.decode(&zeros(shape)?).expect_err("a shape that does not fit");
        assert!(matches!(&error, Error::Input { name, .. } if name == "latents"), "{error}");
    }
    let narrow = Tiling { height: Some(AxisTiling::new(8, 4)), ..Tiling::default() };
    let error =
        encoder.encode_tiled(&zeros(&[1, 2, 1, 16, 8])?, &narrow, &mut |_, _| ControlFlow::Continue(()));
    assert!(error.expect_err("an overlap below 64 pixels").to_string().contains("height"));
    Ok(())
}

#[test]
fn a_config_that_is_not_supported_is_refused_by_its_key() {
    let cases = [
        ("dims", json!(2)),
        ("norm_layer", json!("group_norm")),
        ("latent_log_var", json!("per_channel")),
        ("timestep_conditioning", json!(true)),
        ("spatial_padding_mode", json!("circular")),
        ("encoder_spatial_padding_mode", json!("reflect")),
        ("_class_name", json!("CausalDiffusionVAE")),
        ("use_quant_conv", json!(true)),
        ("normalize_latent_channels", json!(true)),
        ("scaling_factor", json!(0.5)),
        ("out_channels", json!(4)),
        ("latent_channels", json!(0)),
        ("latent_channels", json!("many")),
        ("patch_size", Value::Null),
        ("decoder_base_channels", json!(1u64 << 40)),
        ("causal_decoder", json!("no")),
        ("encoder_blocks", json!([])),
        ("encoder_blocks", json!([["attn", {}]])),
        ("encoder_blocks", json!([["compress_all", {"multiplier": 2}]])),
        ("encoder_blocks", json!([["res_x", {"num_layers": 4, "attention_head_dim": 8}]])),
        ("encoder_blocks", json!([["res_x", {"num_layers": 100_000}]])),
        ("encoder_blocks", json!([["res_x"]])),
        ("encoder_blocks", json!([["compress_all_res", {"multiplier": 1_000_000}]])),
        ("encoder_blocks", json!([["compress_space_res", {"multiplier": 3}]])),
        ("decoder_blocks", json!([["res_x_y", {"multiplier": 2}]])),
        ("decoder_blocks", json!([["compress_all", {"residual": true}]])),
        ("decoder_blocks", json!([["res_x", {"num_layers": 1, "inject_noise": true}]])),
        ("decoder_blocks", json!([["res_x", {"num_layers": 1}]])),
        ("decoder_blocks", json!("all")),
    ];
    for (key, value) in cases {
        let mut config = REAL.clone();
        config["vae"][key] = value.clone();
        match VideoVaeConfig::read(&config) {
            Err(Error::Config { key: refused, .. }) => assert_eq!(refused, format!("vae.{key}"), "{value}"),
            other => panic!("{key} = {value}: {other:?}"),
        }
    }
}
