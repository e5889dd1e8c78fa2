//! Resampler, mel, audio encoder and decoder, vocoder.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use model::{
    Checkpoint,
    audio_vae::{
        AudioDecoder, AudioEncoder, Vocoder,
        mel::{MelFrontEnd, resample},
    },
};
use parity::{Limit, Table};

const FILE: &str = "audio_vae.safetensors";

/// Each stage from the reference's own input to it, then the whole chain from the waveform.
pub(crate) fn run(t: &mut Table) -> Result<()> {
    let file = t.open(FILE)?;
    let checkpoint = Checkpoint::open(t.path("ltx-2.3-tiny.safetensors"))?;
    let encoder = AudioEncoder::load(&checkpoint, &Device::Cpu)?;
    let decoder = AudioDecoder::load(&checkpoint, &Device::Cpu)?;
    let vocoder = Vocoder::load(&checkpoint, &Device::Cpu)?;
    let front_end = MelFrontEnd::new(encoder.config())?;
    let rate = encoder.config().sample_rate_hz;
    let metadata = |key: &str| -> Result<usize> {
        let text = file.metadata().get(key).with_context(|| format!("{FILE} has no metadata `{key}`"))?;
        Ok(text.parse()?)
    };
    t.check(
        "vocoder's output rate",
        vocoder.config().output_sample_rate_hz == metadata("vocoder_output_sample_rate")?,
        "another rate than the reference's",
    );
    let log_mel =
        |wave: &Tensor| -> Result<Tensor> { Ok(front_end.log_mel(&wave.squeeze(0)?)?.unsqueeze(0)?) };

    let clips: Vec<String> =
        t.names(FILE)?.iter().filter_map(|name| name.strip_suffix(".waveform").map(str::to_owned)).collect();
    for clip in clips {
        let name = |tensor: &str| format!("{clip}.{tensor}");
        let waveform = t.input(FILE, &name("waveform"))?;
        let resampled = resample(&waveform, metadata(&name("sample_rate"))?, rate)?;
        t.compare(FILE, &name("resampled"), &resampled, Limit::Absolute(1e-5))?;

        let want = t.read(FILE, &name("resampled"))?;
        t.compare(FILE, &name("mel"), &log_mel(&want)?, Limit::Absolute(5e-5))?;
        let mel = log_mel(&resampled)?;
        let want = t.read(FILE, &name("mel"))?;
        t.compare_tensors(&name("mel from the waveform"), &mel, &want, Limit::Absolute(1e-4))?;

        t.compare(FILE, &name("latents"), &encoder.encode(&want)?, Limit::Absolute(5e-5))?;
        let want = t.read(FILE, &name("latents"))?;
        let latents = encoder.encode(&mel)?;
        t.compare_tensors(&name("latents from the waveform"), &latents, &want, Limit::Absolute(5e-5))?;
        let (steps, expected) = (want.dim(2)?, encoder.config().latent_steps(resampled.dim(2)?));
        t.check(&name("length rule"), steps == expected, format!("{expected} instead of {steps}"));

        t.compare(FILE, &name("decoded_mel"), &decoder.decode(&want)?, Limit::Absolute(5e-5))?;
        let want = t.read(FILE, &name("decoded_mel"))?;
        let vocoded = vocoder.vocode(&want)?;
        t.compare(FILE, &name("vocoded"), &vocoded, Limit::Absolute(1e-4))?;
        let (samples, expected) = (vocoded.dim(2)?, vocoder.config().output_samples(want.dim(2)?));
        t.check(&name("samples"), samples == expected, format!("{samples} instead of {expected}"));
    }
    Ok(())
}
