//! The transformer: rotary tables, modulation, the first block, velocities of every kind of pass; and its backward on
//! the training situations.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use kernels::Rope;
use model::{
    Checkpoint, Component, LoraSet,
    nn::Adapters,
    transformer::{
        Halves, Inputs, Modality, Perturbation, Perturbations, Skip, Stream, StreamArgs, Streams,
        Transformer, TransformerConfig,
    },
};
use parity::{Limit, Table};

const FILE: &str = "transformer.safetensors";
const CHECKPOINT: &str = "ltx-2.3-tiny.safetensors";

/// Limits of `reference/README.md`.
const TABLES: Limit = Limit::Absolute(1e-6);
const VELOCITIES: Limit = Limit::Absolute(2e-5);
const GRADIENTS: Limit = Limit::Relative(1e-4);

fn load(t: &Table, halves: Halves) -> Result<Transformer> {
    let file = Checkpoint::open(t.path(CHECKPOINT))?;
    Ok(Transformer::load(&file, halves, &Device::Cpu, DType::F32)?)
}

fn input(t: &mut Table, stream: Stream) -> Result<Modality> {
    let mut get = |field: &str| t.input(FILE, &format!("input.{}.{field}", stream.name()));
    Ok(Modality {
        latent: get("latent")?,
        sigma: get("sigma")?,
        timesteps: get("timesteps")?,
        positions: get("positions")?,
        context: get("context")?,
        context_mask: None,
        attention_mask: None,
        enabled: true,
    })
}

/// Everything in `transformer.safetensors`.
pub(crate) fn run(t: &mut Table) -> Result<()> {
    t.open(FILE)?;
    let model = load(t, Halves::Both)?;
    let (video, audio) = (input(t, Stream::Video)?, input(t, Stream::Audio)?);
    let both = Inputs::both(&video, &audio);
    insides(t, &model, &both)?;

    let batch = video.latent.dim(0)?;
    // The blocks and streams of the reference's own pass: `reference/README.md`.
    let stg = Stream::BOTH.map(|s| Perturbation { skip: Skip::SelfAttention(s), blocks: Some(vec![1, 2]) });
    for (name, perturbations) in [
        ("av", Perturbations::none()),
        ("stg", Perturbations::all(stg.to_vec(), batch)),
        ("isolated", Perturbations::isolated(batch)),
    ] {
        velocities(t, name, &model.forward(&both, &perturbations, Adapters::none())?)?;
    }
    // One stream alone, in the whole model and in the half that holds nothing else.
    for (stream, modality) in [(Stream::Video, &video), (Stream::Audio, &audio)] {
        let inputs = Inputs::only(stream, modality);
        let name = format!("{}_only", stream.name());
        for model in [&model, &load(t, Halves::Only(stream))?] {
            let out = model.forward(&inputs, &Perturbations::none(), Adapters::none())?;
            velocities(t, &name, &out)?;
        }
    }
    Ok(())
}

fn velocities(t: &mut Table, pass: &str, out: &Streams) -> Result<()> {
    for stream in Stream::BOTH {
        if let Some(velocity) = out.get(stream) {
            t.compare(FILE, &format!("{pass}.{}_velocity", stream.name()), velocity, VELOCITIES)?;
        }
    }
    Ok(())
}

/// The tensors called `debug.*`.
fn insides(t: &mut Table, model: &Transformer, both: &Inputs<'_>) -> Result<()> {
    let args = model.prepare(both, &Perturbations::none(), Adapters::none())?;
    let missing = "both streams are in the pass";
    let (video, audio) = (args.video.as_ref().context(missing)?, args.audio.as_ref().context(missing)?);
    let (video_cross, audio_cross) =
        (video.cross.as_ref().context(missing)?, audio.cross.as_ref().context(missing)?);

    let mut tables = |name: &str, rope: &Rope, sine: bool| -> Result<()> {
        let name = format!("debug.{name}");
        // The reference keeps heads before tokens.
        let want = t.read(FILE, &name)?;
        let (batch, heads, tokens, half) = want.dims4()?;
        let table = if sine { rope.sin() } else { rope.cos() };
        let got = table.reshape((batch, tokens, heads, half))?.transpose(1, 2)?.contiguous()?;
        t.compare(FILE, &name, &got, TABLES)
    };
    tables("video_rope_cos", &video.rope, false)?;
    tables("video_rope_sin", &video.rope, true)?;
    tables("audio_rope_cos", &audio.rope, false)?;
    tables("video_cross_rope_cos", &video_cross.rope, false)?;
    tables("audio_cross_rope_cos", &audio_cross.rope, false)?;

    t.compare(FILE, "debug.video_adaln", &per_token(&video.modulation, video)?, TABLES)?;
    t.compare(FILE, "debug.video_cross_scale_shift", &per_token(&video_cross.scale_shift, video)?, TABLES)?;
    t.compare(FILE, "debug.video_prompt_adaln", &per_sample(&video.prompt)?, TABLES)?;
    t.compare(FILE, "debug.video_cross_gate", &per_sample(&video_cross.gate)?, TABLES)?;

    let x = model.enter(both, Adapters::none())?;
    let out = model.blocks()[0].forward(&x, &args, Adapters::none())?;
    for stream in Stream::BOTH {
        for (end, states) in [("in", &x), ("out", &out)] {
            let name = format!("debug.block0_{}_{end}", stream.name());
            t.compare(FILE, &name, states.get(stream).context(missing)?, VELOCITIES)?;
        }
    }
    Ok(())
}

/// Rows per distinct timestep, [K, R, D], as rows per token, [B, T, R·D].
fn per_token(rows: &Tensor, args: &StreamArgs) -> Result<Tensor> {
    let (batch, tokens) = args.index.dims2()?;
    let rows = rows.index_select(&args.index.flatten_all()?, 0)?;
    Ok(rows.reshape((batch, tokens, ()))?)
}

/// Rows per sample, [B, R, D], as [B, 1, R·D].
fn per_sample(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.flatten_from(1)?.unsqueeze(1)?)
}

/// Predictions and adapter gradients of the first step of every training situation.
///
/// The files hold more (losses, updated weights), which belongs to training: their ledger is not opened here.
pub(crate) fn run_backward(t: &mut Table) -> Result<()> {
    let mut names = Vec::new();
    for item in std::fs::read_dir(t.path(""))? {
        let name = item?.file_name().to_string_lossy().into_owned();
        if name.starts_with("train_") && name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    t.check("training situations found", !names.is_empty(), "no train_*.safetensors in the reference folder");
    let model = load(t, Halves::Both)?;
    for name in names {
        situation(t, &model, &name).with_context(|| name.clone())?;
    }
    Ok(())
}

fn situation(t: &mut Table, model: &Transformer, name: &str) -> Result<()> {
    let file = Checkpoint::open(t.path(name))?;
    let get = |tensor: &str| file.tensor(tensor, &Device::Cpu);
    let short = name.trim_start_matches("train_").trim_end_matches(".safetensors");

    let adapters = file.entries().filter_map(|(key, _)| key.strip_prefix("lora."));
    let adapters = adapters.map(|key| Ok((key.to_owned(), get(&format!("lora.{key}"))?)));
    let lora = LoraSet::from_tensors(adapters.collect::<Result<Vec<_>>>()?, 1.0, &Device::Cpu)?;
    let count = file.metadata().get("lora_param_count").context("no lora_param_count")?;
    t.check(
        &format!("{short}: values in the adapters"),
        *count == lora.parameters().to_string(),
        format!("{} against {count}", lora.parameters()),
    );
    patterns_hit_the_same_layers(t, model.config(), &file, &lora, short)?;

    let mut modalities = [None, None];
    for (place, stream) in modalities.iter_mut().zip(Stream::BOTH) {
        let field = |field: &str| format!("model_input.{}.{field}", stream.name());
        if file.entry(&field("latent")).is_some() {
            *place = Some(Modality {
                latent: get(&field("latent"))?,
                sigma: get(&field("sigma"))?,
                timesteps: get(&field("timesteps"))?,
                positions: get(&field("positions"))?,
                context: get(&format!("context.{}", stream.name()))?,
                context_mask: None,
                attention_mask: None,
                enabled: true,
            });
        }
    }
    let inputs = Inputs { video: modalities[0].as_ref(), audio: modalities[1].as_ref() };
    let (predicted, kept) = model.forward_keeping(&inputs, &Perturbations::none(), Some(&lora))?;

    let mut above = Streams::default();
    for stream in Stream::BOTH {
        let Some(velocity) = predicted.get(stream) else { continue };
        let label = |what: &str| format!("{short}: {what}.{}", stream.name());
        t.compare_tensors(&label("pred"), velocity, &get(&format!("pred.{}", stream.name()))?, VELOCITIES)?;
        let target = format!("target.{}", stream.name());
        if file.entry(&target).is_some() {
            let mask = get(&format!("loss_mask.{}", stream.name()))?;
            above.set(stream, Some(loss_gradient(velocity, &get(&target)?, &mask)?));
        }
    }
    let gradients = model.backward(kept, &above, Some(&lora))?;
    for (key, var) in lora.vars() {
        let want = get(&format!("grad.{key}"))?;
        // The reference stores zeros for what the gradient does not reach.
        let got = match gradients.adapters.get(&key) {
            Some(gradient) => gradient.clone(),
            None => var.zeros_like()?,
        };
        let limit = if largest(&want)? == 0.0 { Limit::Exact } else { GRADIENTS };
        t.compare_tensors(&format!("{short}: grad.{key}"), &got, &want, limit)?;
    }
    Ok(())
}

/// The metadata's patterns choose the layers the file has adapters for.
fn patterns_hit_the_same_layers(
    t: &mut Table,
    config: &TransformerConfig,
    file: &Checkpoint,
    lora: &LoraSet,
    short: &str,
) -> Result<()> {
    let patterns = file.metadata().get("target_modules").context("no target_modules")?;
    let patterns: Vec<String> = serde_json::from_str(patterns)?;
    let targets = model::lora::Target::matching(&Transformer::specs(config, Halves::Both)?, &patterns)?;
    let same = targets.iter().map(|target| target.path.as_str()).eq(lora.paths());
    t.check(&format!("{short}: layers hit by the patterns"), same, format!("{patterns:?}"));
    Ok(())
}

/// d loss / d prediction over the full sequence: the target's tokens are the last ones, what stands before them is
/// reference and has no loss.
fn loss_gradient(predicted: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let var = Var::from_tensor(predicted)?;
    let (all, tokens) = (predicted.dim(1)?, target.dim(1)?);
    let own = var.narrow(1, all - tokens, tokens)?;
    let mask = mask.to_dtype(DType::F32)?.narrow(1, all - tokens, tokens)?;
    let loss = kernels::velocity_loss(&own, target, &mask)?;
    let mut gradients = loss.backward()?;
    gradients.remove(var.as_tensor()).context("the loss reaches the prediction")
}

fn largest(t: &Tensor) -> Result<f32> {
    Ok(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)
}

/// The checkpoint's transformer holds exactly what its configuration says.
pub(crate) fn run_names(t: &mut Table) -> Result<()> {
    let file = Checkpoint::open(t.path(CHECKPOINT))?;
    let checked = Transformer::check(&file, Halves::Both);
    let problem = checked.as_ref().err().map(ToString::to_string).unwrap_or_default();
    t.check("transformer: names and shapes of the checkpoint", checked.is_ok(), problem);
    let strays: Vec<&str> =
        file.entries().map(|(name, _)| name).filter(|name| file.component_of(name).is_none()).collect();
    t.check("every tensor belongs to a component", strays.is_empty(), format!("{strays:?}"));
    let owned: usize = Component::ALL.iter().map(|&c| file.tensors_of(c).count()).sum();
    t.check("no tensor belongs to two components", owned == file.entries().len(), format!("{owned}"));
    Ok(())
}
