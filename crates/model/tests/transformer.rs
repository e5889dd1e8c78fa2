//! The transformer on small random models of unusual sizes: forward, halves, perturbations, and gradients against
//! finite differences in f64.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use candle_core::{DType, Device, Tensor, Var};
use common::{GEOMETRIES, Geometry, apart, dot, random};
use kiln_model::{
    Error, LoraSet,
    lora::Target,
    nn::Adapters,
    transformer::{
        Args, Block, Halves, Inputs, Modality, Perturbation, Perturbations, Skip, Stream, Streams,
        Transformer,
    },
};

/// Step of the central differences: their error is about step² · third derivative plus 1e-16 / step.
const STEP: f64 = 1e-5;
/// Largest difference accepted, relative to the directional derivative's own size plus 1.
const BOUND: f64 = 1e-6;

fn both(g: &Geometry, batch: usize, dtype: DType) -> [Modality; 2] {
    Stream::BOTH.map(|stream| g.modality(stream, batch, dtype))
}

/// A fixed linear function of both streams, so that all outputs count.
fn score(out: &Streams, weights: &Streams) -> f64 {
    Stream::BOTH.iter().filter_map(|&s| Some(dot(out.get(s)?, weights.get(s)?))).sum()
}

fn weights_like(out: &Streams) -> Streams {
    let like = |t: &Tensor, seed| random(seed, t.shape().clone(), t.dtype());
    Streams { video: out.video.as_ref().map(|t| like(t, 40)), audio: out.audio.as_ref().map(|t| like(t, 41)) }
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

fn lora(model: &Transformer, halves: Halves) -> LoraSet {
    let specs = Transformer::specs(model.config(), halves).unwrap();
    let prefix = if halves == Halves::Only(Stream::Audio) { "audio_" } else { "" };
    let patterns = ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned);
    let patterns = [&patterns[..], &[format!("{prefix}ff.net.0.proj"), format!("{prefix}ff.net.2")]].concat();
    let targets = Target::matching(&specs, &patterns).unwrap();
    let set = LoraSet::init(&targets, 2, 1.0, &Device::Cpu, || 0.5).unwrap();
    for (i, (_, var)) in set.vars().enumerate() {
        let small = (random(60 + i as u64, var.shape().clone(), DType::F32) * 0.2).unwrap();
        var.set(&small).unwrap();
    }
    set
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

#[test]
fn a_half_alone_predicts_what_the_whole_does_without_the_other_stream() {
    for (g, stream) in GEOMETRIES.iter().zip(Stream::BOTH) {
        let modality = g.modality(stream, 2, DType::F32);
        let inputs = Inputs::only(stream, &modality);
        let none = Perturbations::none();
        let whole = g.model(Halves::Both, DType::F32).forward(&inputs, &none, Adapters::none()).unwrap();
        let half = g.model(Halves::Only(stream), DType::F32);
        let set = lora(&half, Halves::Only(stream));
        let alone = half.forward(&inputs, &none, Adapters::none()).unwrap();
        assert_eq!(apart(whole.get(stream).unwrap(), alone.get(stream).unwrap()), 0.0);

        let (velocities, kept) = half.forward_keeping(&inputs, &none, Some(&set)).unwrap();
        let gradients = half.backward(kept, &weights_like(&velocities), Some(&set)).unwrap();
        for (key, _) in set.vars() {
            assert!(gradients.adapters.get(&key).is_some_and(|g| dot(g, g) > 0.0), "{key}: no gradient");
        }

        let [video, audio] = both(g, 2, DType::F32);
        let refused = half.forward(&Inputs::both(&video, &audio), &none, Adapters::none()).unwrap_err();
        assert!(matches!(refused, Error::Input { .. }), "{refused}");
    }
}

#[test]
fn isolated_streams_predict_as_if_alone() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Both, DType::F32);
    let [video, audio] = both(g, 2, DType::F32);
    let isolated =
        model.forward(&Inputs::both(&video, &audio), &Perturbations::isolated(2), Adapters::none()).unwrap();
    for (stream, modality) in [(Stream::Video, &video), (Stream::Audio, &audio)] {
        let alone =
            model.forward(&Inputs::only(stream, modality), &Perturbations::none(), Adapters::none()).unwrap();
        assert_eq!(
            apart(isolated.get(stream).unwrap(), alone.get(stream).unwrap()),
            0.0,
            "{}",
            stream.name()
        );
    }
}

#[test]
fn a_perturbed_sample_does_not_touch_its_neighbour() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Both, DType::F32);
    let [video, audio] = both(g, 2, DType::F32);
    let inputs = Inputs::both(&video, &audio);
    let run = |p: &Perturbations| model.forward(&inputs, p, Adapters::none()).unwrap();
    let plain = run(&Perturbations::none());
    let skips = [Skip::SelfAttention(Stream::Video), Skip::SelfAttention(Stream::Audio)]
        .into_iter()
        .chain(Stream::BOTH.map(Skip::CrossAttentionInto));
    for skip in skips {
        let one = vec![Perturbation { skip, blocks: Some(vec![1]) }];
        let first = run(&Perturbations::per_sample(vec![one.clone()]));
        let all = run(&Perturbations::all(one, 2));
        for stream in Stream::BOTH {
            let sample = |t: &Streams, i| t.get(stream).unwrap().narrow(0, i, 1).unwrap();
            let changed = apart(&sample(&first, 0), &sample(&plain, 0));
            assert!(changed > 1e-4, "{skip:?} changes {} by {changed:.1e}", stream.name());
            assert!(apart(&sample(&first, 0), &sample(&all, 0)) < 1e-5, "{skip:?} alone and in a batch");
            assert!(apart(&sample(&first, 1), &sample(&plain, 1)) < 1e-5, "{skip:?} touches its neighbour");
        }
    }
}

#[test]
fn a_disabled_stream_stays_as_it_is_and_still_serves_the_other() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Both, DType::F32);
    let [video, mut audio] = both(g, 1, DType::F32);
    audio.enabled = false;
    let inputs = Inputs::both(&video, &audio);
    let args = model.prepare(&inputs, &Perturbations::none(), Adapters::none()).unwrap();
    let x = model.enter(&inputs, Adapters::none()).unwrap();
    let out = model.blocks()[0].forward(&x, &args, Adapters::none()).unwrap();
    assert_eq!(apart(out.audio.as_ref().unwrap(), x.audio.as_ref().unwrap()), 0.0);

    let alone = model.forward(&Inputs::only(Stream::Video, &video), &Perturbations::none(), Adapters::none());
    let served = model.forward(&inputs, &Perturbations::none(), Adapters::none()).unwrap();
    assert!(apart(&served.video.unwrap(), &alone.unwrap().video.unwrap()) > 1e-3);
}

#[test]
fn masks_remove_tokens() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Only(Stream::Video), DType::F32);
    let run = |m: &Modality| {
        let inputs = Inputs::only(Stream::Video, m);
        model.forward(&inputs, &Perturbations::none(), Adapters::none()).unwrap().video.unwrap()
    };
    let video = g.modality(Stream::Video, 1, DType::F32);
    let tokens = g.tokens[0];

    // Nobody looks at the last token: the others do not depend on it.
    let mask: Vec<f32> = (0..tokens * tokens).map(|n| f32::from(n % tokens != tokens - 1)).collect();
    let mask = Tensor::from_vec(mask, (1, tokens, tokens), &Device::Cpu).unwrap();
    let masked = Modality { attention_mask: Some(mask), ..video.clone() };
    let first = video.latent.narrow(1, 0, tokens - 1).unwrap();
    let other = random(99, (1, 1, g.in_channels[0]), DType::F32);
    let changed = Modality { latent: Tensor::cat(&[&first, &other], 1).unwrap(), ..masked.clone() };
    let others = |t: Tensor| t.narrow(1, 0, tokens - 1).unwrap();
    assert!(apart(&others(run(&masked)), &others(run(&changed))) < 1e-5);
    assert!(apart(&others(run(&masked)), &others(run(&video))) > 1e-3);

    // A full-strength mask is no mask, and half strength is something else.
    let strength = |v: f32| {
        let mask = Tensor::full(v, (1, tokens, tokens), &Device::Cpu).unwrap();
        run(&Modality { attention_mask: Some(mask), ..video.clone() })
    };
    assert!(apart(&strength(1.0), &run(&video)) < 1e-5);

    // A text token that does not count can be anything.
    let text = Tensor::new(&[[1f32, 1.0, 1.0, 0.0]], &Device::Cpu).unwrap();
    let masked = Modality { context_mask: Some(text), ..video.clone() };
    let head = masked.context.narrow(1, 0, 3).unwrap();
    let tail = random(98, (1, 1, head.dim(2).unwrap()), DType::F32);
    let changed = Modality { context: Tensor::cat(&[&head, &tail], 1).unwrap(), ..masked.clone() };
    assert!(apart(&run(&masked), &run(&changed)) < 1e-5);
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let g = &GEOMETRIES[0];
    let model = g.model(Halves::Both, DType::F32);
    let good = g.modality(Stream::Video, 1, DType::F32);
    let flat = |t: &Tensor| t.flatten_all().unwrap();
    let cases = [
        ("video.sigma", Modality { sigma: random(1, 2, DType::F32), ..good.clone() }),
        ("video.timesteps", Modality { timesteps: random(1, (1, 2), DType::F32), ..good.clone() }),
        ("video.positions", Modality { positions: flat(&good.positions), ..good.clone() }),
        ("video.context", Modality { context: random(1, (1, 4, 3), DType::F32), ..good.clone() }),
        ("timesteps", Modality { timesteps: (&good.timesteps * f64::NAN).unwrap(), ..good.clone() }),
    ];
    for (name, modality) in cases {
        let inputs = Inputs::only(Stream::Video, &modality);
        let error = model.forward(&inputs, &Perturbations::none(), Adapters::none()).unwrap_err();
        assert!(error.to_string().contains(&format!("`{name}`")), "{name}: {error}");
    }
    let nothing = model.forward(&Inputs::default(), &Perturbations::none(), Adapters::none());
    assert!(nothing.unwrap_err().to_string().contains("neither video nor audio"));
}

#[test]
fn bf16_stays_near_f32() {
    let g = &GEOMETRIES[0];
    let inputs = |dtype| both(g, 1, dtype);
    let run = |dtype| {
        let [video, audio] = inputs(dtype);
        let model = g.model(Halves::Both, dtype);
        model.forward(&Inputs::both(&video, &audio), &Perturbations::none(), Adapters::none()).unwrap()
    };
    let (half, full) = (run(DType::BF16), run(DType::F32));
    for stream in Stream::BOTH {
        let (half, full) = (half.get(stream).unwrap(), full.get(stream).unwrap());
        assert_eq!(half.dtype(), DType::BF16);
        // 8 bits of mantissa over a few dozen roundings of values of order 1: 0.02 was measured.
        println!("{}: bf16 against f32 {:.1e}", stream.name(), apart(half, full));
        assert!(apart(half, full) < 0.06, "{}: {}", stream.name(), apart(half, full));
    }
}
