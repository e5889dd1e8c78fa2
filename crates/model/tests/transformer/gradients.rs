//! Backward against finite differences in f64, block by block against one graph.

use candle_core::{DType, Device, Tensor, Var};
use kiln_model::{
    nn::Adapters,
    transformer::{Args, Block, Halves, Inputs, Modality, Perturbations, Stream, Streams},
};

use crate::common::{GEOMETRIES, apart, both, dot, lora, random, weights_like};

/// Step of the central differences: their error is about step² · third derivative plus 1e-16 / step.
const STEP: f64 = 1e-5;

/// Largest difference accepted, relative to the directional derivative's own size plus 1.
const BOUND: f64 = 1e-6;

/// A fixed linear function of both streams, so that all outputs count.
fn score(out: &Streams, weights: &Streams) -> f64 {
    Stream::BOTH.iter().filter_map(|&s| Some(dot(out.get(s)?, weights.get(s)?))).sum()
}

/// Compares `gradient` with central differences of `f` around `at`, along random directions and the axes of a few
/// elements.
fn check_gradient(name: &str, at: &Tensor, gradient: &Tensor, f: impl Fn(&Tensor) -> f64) {
    let count = at.elem_count();
    let mut directions: Vec<Tensor> =
        (0..3).map(|i| random(50 + i, at.shape().clone(), DType::F64)).collect();
    for i in 0..3 {
        let mut one = vec![0f64; count];
        one[i * 37 % count] = 1.0;
        directions.push(Tensor::from_vec(one, at.shape().clone(), &Device::Cpu).unwrap());
    }
    for (i, direction) in directions.iter().enumerate() {
        let moved = |by: f64| f(&(at + (direction * by).unwrap()).unwrap());
        let numeric = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let exact = dot(gradient, direction);
        let difference = (numeric - exact).abs() / (1.0 + numeric.abs());
        assert!(difference < BOUND, "{name}, direction {i}: {exact} against {numeric} ({difference:.1e})");
    }
}

#[test]
fn gradients_of_every_block_equal_finite_differences() {
    for g in &GEOMETRIES {
        let model = g.model(Halves::Both, DType::F64);
        let [video, audio] = both(g, 2, DType::F64);
        let inputs = Inputs::both(&video, &audio);
        let args = model.prepare(&inputs, &Perturbations::none(), Adapters::none()).unwrap();
        let mut x = model.enter(&inputs, Adapters::none()).unwrap();
        for block in model.blocks() {
            check_block(block, &x, &args);
            x = block.forward(&x, &args, Adapters::none()).unwrap();
        }
    }
}

fn check_block(block: &Block, x: &Streams, args: &Args) {
    let vars = Streams {
        video: x.video.as_ref().map(|t| Var::from_tensor(t).unwrap().into_inner()),
        audio: x.audio.as_ref().map(|t| Var::from_tensor(t).unwrap().into_inner()),
    };
    let out = block.forward(&vars, args, Adapters::none()).unwrap();
    let weights = weights_like(&out);
    let sum = |s| (out.get(s).unwrap() * weights.get(s).unwrap()).unwrap().sum_all().unwrap();
    let store = (sum(Stream::Video) + sum(Stream::Audio)).unwrap().backward().unwrap();
    for stream in Stream::BOTH {
        let gradient = store.get(vars.get(stream).unwrap()).expect("both streams are reached");
        let name = format!("block {}, {}", block.index(), stream.name());
        check_gradient(&name, x.get(stream).unwrap(), gradient, |moved| {
            let mut x = x.clone();
            x.set(stream, Some(moved.clone()));
            score(&block.forward(&x, args, Adapters::none()).unwrap(), &weights)
        });
    }
}

#[test]
fn gradients_of_the_whole_model_equal_finite_differences() {
    for g in &GEOMETRIES {
        let model = g.model(Halves::Both, DType::F64);
        let modalities = both(g, 2, DType::F64);
        let none = Perturbations::none();
        let forward = |video: &Modality, audio: &Modality| {
            model.forward(&Inputs::both(video, audio), &none, Adapters::none()).unwrap()
        };
        let inputs = Inputs::both(&modalities[0], &modalities[1]);
        let (velocities, kept) = model.forward_keeping(&inputs, &none, None).unwrap();
        let weights = weights_like(&velocities);
        let gradients = model.backward(kept, &weights, None).unwrap();
        for (i, stream) in Stream::BOTH.into_iter().enumerate() {
            let gradient = gradients.latents.get(stream).unwrap();
            check_gradient(stream.name(), &modalities[i].latent, gradient, |moved| {
                let mut changed = modalities.clone();
                changed[i].latent = moved.clone();
                score(&forward(&changed[0], &changed[1]), &weights)
            });
        }
    }
}

#[test]
fn adapter_gradients_equal_finite_differences_and_none_is_zero() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Both, DType::F64);
    let [video, audio] = both(g, 1, DType::F64);
    let inputs = Inputs::both(&video, &audio);
    let none = Perturbations::none();
    let set = lora(&model, Halves::Both);
    let (velocities, kept) = model.forward_keeping(&inputs, &none, Some(&set)).unwrap();
    let weights = weights_like(&velocities);
    let gradients = model.backward(kept, &weights, Some(&set)).unwrap();
    for (key, var) in set.vars() {
        let gradient = gradients.adapters.get(&key).unwrap_or_else(|| panic!("{key}: no gradient"));
        assert!(dot(gradient, gradient) > 0.0, "{key}: the gradient is zero");
        // The factor is f32: move one value by a power of two and use the step that was really made.
        let before = var.copy().unwrap();
        let mut values = before.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let place = key.len() * 13 % values.len();
        let start = values[place];
        let mut at = |value: f32| {
            values[place] = value;
            var.set(&Tensor::from_vec(values.clone(), var.shape().clone(), &Device::Cpu).unwrap()).unwrap();
            score(&model.forward(&inputs, &none, Adapters::constant(&set)).unwrap(), &weights)
        };
        let (up, down) = (start + 2f32.powi(-13), start - 2f32.powi(-13));
        let numeric = (at(up) - at(down)) / (f64::from(up) - f64::from(down));
        var.set(&before).unwrap();
        let exact = f64::from(
            gradient.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap()[place],
        );
        // The step is larger than in f64 (an f32 value moves in steps), so its square shows.
        let difference = (numeric - exact).abs() / (1.0 + numeric.abs());
        assert!(difference < 1e-5, "{key}: {exact} against {numeric}");
    }
}

#[test]
fn recomputing_block_by_block_equals_one_graph() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Both, DType::F32);
    let [mut video, mut audio] = both(g, 2, DType::F32);
    let set = lora(&model, Halves::Both);
    let none = Perturbations::none();
    let (velocities, kept) = model.forward_keeping(&Inputs::both(&video, &audio), &none, Some(&set)).unwrap();
    let weights = weights_like(&velocities);
    let by_block = model.backward(kept, &weights, Some(&set)).unwrap();

    video.latent = Var::from_tensor(&video.latent).unwrap().into_inner();
    audio.latent = Var::from_tensor(&audio.latent).unwrap().into_inner();
    let out = model.forward(&Inputs::both(&video, &audio), &none, Adapters::tracked(&set)).unwrap();
    for stream in Stream::BOTH {
        assert_eq!(apart(out.get(stream).unwrap(), velocities.get(stream).unwrap()), 0.0);
    }
    let sum = |s| (out.get(s).unwrap() * weights.get(s).unwrap()).unwrap().sum_all().unwrap();
    let store = (sum(Stream::Video) + sum(Stream::Audio)).unwrap().backward().unwrap();
    // The same operations in the same order: only where two contributions meet may the last bit differ.
    for (stream, latent) in [(Stream::Video, &video.latent), (Stream::Audio, &audio.latent)] {
        let whole = store.get(latent).unwrap();
        assert!(apart(by_block.latents.get(stream).unwrap(), whole) < 1e-5, "{}", stream.name());
    }
    for (key, var) in set.vars() {
        let whole = store.get(var.as_tensor()).unwrap();
        let scale = dot(whole, whole).sqrt();
        assert!(apart(&by_block.adapters[&key], whole) < 1e-5 * (1.0 + scale), "{key}");
    }
}

#[test]
fn a_stream_outside_the_loss_still_passes_gradients_on() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Both, DType::F32);
    let [video, audio] = both(g, 1, DType::F32);
    let set = lora(&model, Halves::Both);
    let inputs = Inputs::both(&video, &audio);
    let (velocities, kept) = model.forward_keeping(&inputs, &Perturbations::none(), Some(&set)).unwrap();
    let weights = Streams { audio: None, ..weights_like(&velocities) };
    let gradients = model.backward(kept, &weights, Some(&set)).unwrap();
    assert!(
        gradients.latents.audio.is_some_and(|g| dot(&g, &g) > 0.0),
        "audio reaches the loss through video"
    );
    let last = format!("transformer_blocks.{}.", g.layers - 1);
    for (key, _) in set.vars() {
        // In the last block nothing of audio is read after the attention into video.
        let unreached =
            key.contains(&last) && (key.contains("video_to_audio_attn") || key.contains("audio_ff"));
        assert_eq!(gradients.adapters.contains_key(&key), !unreached, "{key}");
    }
}
