//! Video VAE: whole and tiled, both directions, streamed frames included.

use std::{ops::ControlFlow, sync::Arc};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use model::{
    Checkpoint,
    video_vae::{AxisTiling, Tiling, VideoDecoder, VideoEncoder},
};
use parity::{Limit, Table};
use serde_json::Value;

const CHECKPOINT: &str = "ltx-2.3-tiny.safetensors";
const WHOLE: &str = "video_vae.safetensors";
const TILED: &str = "video_vae_tiled.safetensors";
/// `reference/README.md`: latents and decoded pixels. A second implementation reached 0, float64 differs by 4e-6.
const WHOLE_LIMIT: Limit = Limit::Absolute(5e-5);
/// `reference/README.md`: tiled tensors.
const TILED_LIMIT: Limit = Limit::Absolute(1e-4);

pub(crate) fn run(table: &mut Table) -> Result<()> {
    let checkpoint = Checkpoint::open(table.path(CHECKPOINT))?;
    let encoder = VideoEncoder::load(&checkpoint, &Device::Cpu)?;
    let decoder = VideoDecoder::load(&checkpoint, &Device::Cpu)?;
    whole(table, &encoder, &decoder)?;
    tiled(table, &encoder, &decoder)
}

fn whole(table: &mut Table, encoder: &VideoEncoder, decoder: &VideoDecoder) -> Result<()> {
    let names = table.names(WHOLE)?;
    let clips: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".pixels")).collect();
    for clip in clips {
        let pixels = table.input(WHOLE, &format!("{clip}.pixels"))?;
        table.compare(WHOLE, &format!("{clip}.latents"), &encoder.encode(&pixels)?, WHOLE_LIMIT)?;
        let latents = table.read(WHOLE, &format!("{clip}.latents"))?;
        let decoded = decoder.decode(&latents)?;
        table.compare(WHOLE, &format!("{clip}.decoded"), &decoded, WHOLE_LIMIT)?;

        // Frames that fill no latent are left out.
        let last = pixels.narrow(2, pixels.dim(2)? - 1, 1)?;
        let longer = Tensor::cat(&[&pixels, &last, &last], 2)?;
        let surplus = encoder.encode(&longer)?;
        let plain = encoder.encode(&pixels)?;
        table.compare_tensors(&format!("{clip} with two surplus frames"), &surplus, &plain, Limit::Exact)?;

        // Tiles larger than the clip are the whole clip.
        let one = decode(decoder, &latents, &Tiling::standard())?;
        ensure!(one.len() == 1, "{clip}: one tile gave {} chunks", one.len());
        table.compare_tensors(&format!("{clip} in one tile"), &one[0], &decoded, Limit::Exact)?;
    }
    Ok(())
}

fn tiled(table: &mut Table, encoder: &VideoEncoder, decoder: &VideoDecoder) -> Result<()> {
    let file = table.open(TILED)?;

    let pixels = table.input(TILED, "encode.pixels_u8")?;
    let tiling = metadata_tiling(&file, "encode_tile")?;
    let mut told = Vec::new();
    let latents = encoder.encode_tiled(&pixels, &tiling, &mut |done, total| {
        told.push((done, total));
        ControlFlow::Continue(())
    })?;
    table.compare(TILED, "encode.tiled", &latents, TILED_LIMIT)?;
    let tiles = told.len() - 1;
    let expected: Vec<_> = (0..=tiles).map(|done| (done, tiles)).collect();
    table.check("progress counts every tile", tiles > 1 && told == expected, format!("{told:?}"));

    let latents = table.input(TILED, "decode.latents")?;
    let tiling = metadata_tiling(&file, "decode_tile")?;
    let chunks = decode(decoder, &latents, &tiling)?;
    let frames: Vec<_> = chunks.iter().map(|chunk| chunk.dim(2)).collect::<Result<_, _>>()?;
    table.check("decoding streams", frames.len() > 1, format!("chunks of {frames:?} frames"));
    let decoded = Tensor::cat(&chunks, 2)?;
    let thirds = |axis: usize| -> Result<Tensor> {
        let count = decoded.dim(axis)?.div_ceil(3) as u32;
        Ok(Tensor::arange(0, count, &Device::Cpu)?.affine(3.0, 0.0)?)
    };
    let kept = decoded.index_select(&thirds(3)?, 3)?.index_select(&thirds(4)?, 4)?;
    table.compare(TILED, "decode.tiled_every3", &kept, TILED_LIMIT)
}

fn decode(decoder: &VideoDecoder, latents: &Tensor, tiling: &Tiling) -> Result<Vec<Tensor>> {
    let mut chunks = Vec::new();
    decoder.decode_tiled(latents, tiling, &mut |_, _| ControlFlow::Continue(()), &mut |chunk| {
        chunks.push(chunk);
        Ok(())
    })?;
    Ok(chunks)
}

/// Tile lengths and overlaps of the file's metadata: {"frames": [tile, overlap], "height": …, "width": …}.
fn metadata_tiling(file: &Arc<Checkpoint>, key: &str) -> Result<Tiling> {
    let text = file.metadata().get(key).with_context(|| format!("metadata `{key}` is missing"))?;
    let value: Value = serde_json::from_str(text)?;
    let axis = |name: &str| {
        let number = |i: usize| value[name][i].as_u64().and_then(|n| usize::try_from(n).ok());
        let pair = number(0).zip(number(1)).with_context(|| format!("metadata `{key}` has no `{name}`"))?;
        anyhow::Ok(Some(AxisTiling::new(pair.0, pair.1)))
    };
    Ok(Tiling { frames: axis("frames")?, height: axis("height")?, width: axis("width")? })
}
