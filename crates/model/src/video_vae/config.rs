//! The `vae` object of the checkpoint's configuration.

use kernels::Padding;
use serde_json::{Map, Value};

use crate::{Error, Result, Section};

/// Most channels, and most blocks or layers, that are taken for a configuration rather than damage.
const MAX_CHANNELS: usize = 1 << 20;
const MAX_BLOCKS: usize = 64;

/// One entry of `encoder_blocks` or `decoder_blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Residual blocks of one width.
    Residual {
        /// How many.
        layers: usize,
    },
    /// Halves (encoder) or doubles (decoder) frames, space or both.
    Compress {
        /// Factors in frames, rows and columns, each 1 or 2.
        stride: [usize; 3],
        /// The encoder multiplies, the decoder divides the channels by it.
        multiplier: usize,
    },
}

/// Pixels per latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Frames per latent frame after the first.
    pub time: usize,
    /// Pixels per latent, rows and columns alike.
    pub space: usize,
}

/// What the video VAE's code needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoVaeConfig {
    /// Colours.
    pub pixel_channels: usize,
    /// Side of the square patches that pixels are first folded into.
    pub patch_size: usize,
    /// C.
    pub latent_channels: usize,
    /// From pixels to latents.
    pub encoder_blocks: Vec<Block>,
    /// From latents to pixels: the configuration's list reversed.
    pub decoder_blocks: Vec<Block>,
    /// Width at the decoder's pixel end.
    pub decoder_base_channels: usize,
    /// Whether the decoder sees past frames only.
    pub causal_decoder: bool,
    /// What stands around a frame.
    pub spatial_padding: Padding,
    /// Pixels per latent.
    pub scale: Scale,
}

impl VideoVaeConfig {
    /// Reads the `vae` object in `config`.
    ///
    /// # Errors
    /// `Config` with the key of the first value that is missing or not supported.
    pub fn read(config: &Value) -> Result<Self> {
        let vae = Section::of(config, "vae")?;
        vae.require("dims", 3)?;
        vae.require("norm_layer", "pixel_norm")?;
        vae.require("latent_log_var", "uniform")?;
        vae.require("timestep_conditioning", false)?;
        vae.require_or_absent("_class_name", "CausalVideoAutoencoder")?;
        vae.require_or_absent("use_quant_conv", false)?;
        vae.require_or_absent("normalize_latent_channels", false)?;
        vae.require_or_absent("scaling_factor", 1.0)?;
        let padding = vae.text("spatial_padding_mode")?;
        let spatial_padding = match padding {
            "zeros" => Padding::Zeros,
            "reflect" => Padding::Reflect,
            "replicate" => Padding::Replicate,
            other => {
                let problem = format!("found \"{other}\"; zeros, reflect and replicate are supported");
                return Err(vae.refuse("spatial_padding_mode", problem));
            }
        };
        // The reference's versions disagree on which of the two keys the encoder follows.
        vae.require_or_absent("encoder_spatial_padding_mode", padding)?;
        let pixel_channels = vae.size("in_channels")?;
        vae.require("out_channels", pixel_channels)?;
        let patch_size = vae.size("patch_size")?;
        let latent_channels = vae.size("latent_channels")?;
        let decoder_base_channels = vae.size("decoder_base_channels")?;
        let causal_decoder = vae.flag("causal_decoder")?;
        let encoder_blocks = blocks(&vae, "encoder_blocks", "_res", 2)?;
        let mut decoder_blocks = blocks(&vae, "decoder_blocks", "", 1)?;
        decoder_blocks.reverse();
        let scale =
            scale(patch_size, &encoder_blocks).ok_or_else(|| vae.refuse("patch_size", "too large"))?;
        let config = Self {
            pixel_channels,
            patch_size,
            latent_channels,
            encoder_blocks,
            decoder_blocks,
            decoder_base_channels,
            causal_decoder,
            spatial_padding,
            scale,
        };
        config.encoder_widths().map_err(|problem| vae.refuse("encoder_blocks", problem))?;
        config.decoder_widths().map_err(|problem| vae.refuse("decoder_blocks", problem))?;
        if Some(scale) != self::scale(patch_size, &config.decoder_blocks) {
            return Err(vae.refuse("decoder_blocks", "does not undo the scaling of encoder_blocks"));
        }
        Ok(config)
    }

    /// Channels of one folded patch.
    pub fn patch_channels(&self) -> usize {
        self.pixel_channels * self.patch_size * self.patch_size
    }

    /// Channels before each encoder block and after the last one.
    pub(super) fn encoder_widths(&self) -> Result<Vec<usize>, String> {
        let mut widths = vec![self.latent_channels];
        for block in &self.encoder_blocks {
            let before = *widths.last().expect("invariant: starts with one");
            widths.push(match *block {
                Block::Residual { .. } => before,
                Block::Compress { stride, multiplier } => {
                    let after = bounded(before.checked_mul(multiplier))?;
                    let cells = stride.iter().product::<usize>();
                    if after % cells != 0 || (before * cells) % after != 0 {
                        return Err(format!("{before} channels cannot be folded {cells} to 1 into {after}"));
                    }
                    after
                }
            });
        }
        Ok(widths)
    }

    /// Channels before each decoder block and after the last one.
    pub(super) fn decoder_widths(&self) -> Result<Vec<usize>, String> {
        let mut width = self.decoder_base_channels;
        for block in &self.decoder_blocks {
            if let Block::Compress { multiplier, .. } = block {
                width = bounded(width.checked_mul(*multiplier))?;
            }
        }
        let mut widths = vec![width];
        for block in &self.decoder_blocks {
            if let Block::Compress { multiplier, .. } = block {
                width /= multiplier;
            }
            widths.push(width);
        }
        Ok(widths)
    }
}

fn bounded(channels: Option<usize>) -> Result<usize, String> {
    channels
        .filter(|c| *c <= MAX_CHANNELS)
        .ok_or_else(|| format!("leads to more than {MAX_CHANNELS} channels"))
}

fn scale(patch_size: usize, blocks: &[Block]) -> Option<Scale> {
    let (mut time, mut space) = (1usize, patch_size);
    for block in blocks {
        if let Block::Compress { stride, .. } = block {
            time = time.checked_mul(stride[0]).filter(|t| *t <= MAX_CHANNELS)?;
            space = space.checked_mul(stride[1]).filter(|s| *s <= MAX_CHANNELS)?;
        }
    }
    Some(Scale { time, space })
}

/// Reads a list of `[name, parameters]`; compressing blocks are called `compress_…` + `suffix`.
fn blocks(vae: &Section<'_>, key: &str, suffix: &str, multiplier: usize) -> Result<Vec<Block>> {
    let list = vae.get(key).and_then(Value::as_array).filter(|list| (1..=MAX_BLOCKS).contains(&list.len()));
    let list = list.ok_or_else(|| vae.refuse(key, format!("expected a list of 1 to {MAX_BLOCKS} blocks")))?;
    list.iter()
        .enumerate()
        .map(|(i, entry)| {
            block(entry, suffix, multiplier)
                .map_err(|problem| vae.refuse(key, format!("entry {i}: {problem}")))
        })
        .collect()
}

fn block(entry: &Value, suffix: &str, multiplier: usize) -> Result<Block, String> {
    let pair = entry.as_array().map(Vec::as_slice);
    let Some([Value::String(name), parameters]) = pair else {
        return Err("expected [name, parameters]".to_owned());
    };
    if name == "res_x" {
        // Older writers give the number of layers in place of the parameters.
        let layers = match parameters {
            Value::Object(object) => parameter(object, "num_layers", None, &["inject_noise"])?,
            number => size("num_layers", number)?,
        };
        if layers > MAX_BLOCKS {
            return Err(format!("num_layers {layers} is more than {MAX_BLOCKS}"));
        }
        return Ok(Block::Residual { layers });
    }
    let stride = match name.strip_prefix("compress_").and_then(|rest| rest.strip_suffix(suffix)) {
        Some("space") => [1, 2, 2],
        Some("time") => [2, 1, 1],
        Some("all") => [2, 2, 2],
        _ => {
            let kinds = ["space", "time", "all"].map(|kind| format!("compress_{kind}{suffix}"));
            return Err(format!("block \"{name}\" is not supported; res_x, {} are", kinds.join(", ")));
        }
    };
    let Value::Object(object) = parameters else {
        return Err(format!("the parameters of {name} must be an object"));
    };
    Ok(Block::Compress {
        stride,
        multiplier: parameter(object, "multiplier", Some(multiplier), &["residual"])?,
    })
}

/// The size `key`, with nothing beside it but switches that are off.
fn parameter(
    object: &Map<String, Value>,
    key: &str,
    default: Option<usize>,
    switches: &[&str],
) -> Result<usize, String> {
    for (other, value) in object {
        let off = switches.contains(&other.as_str()) && value == &Value::Bool(false);
        if other != key && !off {
            return Err(format!("`{other}` = {value} is not supported"));
        }
    }
    match object.get(key) {
        Some(value) => size(key, value),
        None => default.ok_or_else(|| format!("`{key}` is missing")),
    }
}

fn size(key: &str, value: &Value) -> Result<usize, String> {
    let n = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_CHANNELS).contains(n));
    n.ok_or_else(|| format!("`{key}` must be a positive integer, found {value}"))
}

impl Scale {
    /// Latent sizes of a clip of `frames` frames of `height` × `width` pixels; surplus frames at the end are left out.
    ///
    /// # Errors
    /// `Input` when there is no frame or a side that does not divide.
    pub fn latent(&self, frames: usize, height: usize, width: usize) -> Result<[usize; 3]> {
        if frames == 0
            || height == 0
            || width == 0
            || !height.is_multiple_of(self.space)
            || !width.is_multiple_of(self.space)
        {
            let space = self.space;
            let problem = format!(
                "expected at least one frame with sides that {space} divides, found {frames} of {height}×{width}"
            );
            return Err(Error::input("pixels", problem));
        }
        Ok([(frames - 1) / self.time + 1, height / self.space, width / self.space])
    }

    /// Frames, height and width that latent frames, rows and columns stand for.
    pub fn pixels(&self, [frames, height, width]: [usize; 3]) -> [usize; 3] {
        [(frames - 1) * self.time + 1, height * self.space, width * self.space]
    }
}
