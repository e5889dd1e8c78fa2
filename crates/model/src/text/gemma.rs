//! Gemma 3, text only: token ids to all hidden states.
//!
//! N rows: the tokens of all captions of a pass, one after the other, H width, L layers. State 0 is the scaled
//! embedding, state k the residual stream after layer k − 1, the last one the same with the final norm.
//!
//! Source: `model-text.md` §2; huggingface/transformers `models/gemma3/modeling_gemma3.py`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::{Attention, FrozenLinear, FrozenWeight, Mask, Rope, attention, gelu_tanh_mul, rms_norm};
use serde_json::Value;

use crate::{Checkpoint, Component, Error, Result, Section, Weights};

/// Rows that go through a layer together; whole captions, so a pass may hold up to one caption more.
const ROWS_PER_GROUP: usize = 4096;

/// Whether a layer sees all earlier tokens or a window of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Sliding,
}

/// Sizes of the text model. A missing key has the value of the 12B.
#[derive(Debug, Clone, PartialEq)]
pub struct GemmaConfig {
    /// Width of a hidden state.
    pub hidden: usize,
    /// Layers; there is one state more.
    pub layers: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Width inside the feed-forward.
    pub inner: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Logits are scaled by its −1/2nd power.
    pub query_scalar: f64,
    /// Epsilon of all norms.
    pub eps: f64,
    /// Tokens a sliding layer sees, itself included.
    pub window: usize,
    /// Rotary base of full layers.
    pub theta: f64,
    /// Rotary base of sliding layers.
    pub local_theta: f64,
    /// Rotary frequencies of full layers are divided by it.
    pub rope_factor: f64,
    /// One per layer.
    kinds: Vec<Kind>,
}

impl GemmaConfig {
    /// Reads Gemma's `config.json`: its `text_config`, or the whole object for a text-only model.
    ///
    /// # Errors
    /// `Config` naming a key with a value this program does not implement.
    pub fn new(config: &Value) -> Result<Self> {
        let path = if config.get("text_config").is_some() { "text_config" } else { "" };
        let s = Section::of(config, path)?;
        s.require_or_absent("attention_bias", false)?;
        for key in ["hidden_activation", "hidden_act"] {
            s.require_or_absent(key, "gelu_pytorch_tanh")?;
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if s.get(key).is_some() {
                return Err(s.refuse(key, "soft caps are not supported"));
            }
        }
        s.require_or_absent("use_bidirectional_attention", false)?;
        let number = |key: &str, default: f64| match s.get(key) {
            Some(_) => s.positive(key),
            None => Ok(default),
        };
        let rope = Rotary::new(config, s)?;
        let mut this = Self {
            hidden: s.size_or("hidden_size", 3840)?,
            layers: s.size_or("num_hidden_layers", 48)?,
            heads: s.size_or("num_attention_heads", 16)?,
            kv_heads: s.size_or("num_key_value_heads", 8)?,
            head_dim: s.size_or("head_dim", 256)?,
            inner: s.size_or("intermediate_size", 15360)?,
            vocabulary: s.size_or("vocab_size", 262_208)?,
            query_scalar: number("query_pre_attn_scalar", 256.0)?,
            eps: number("rms_norm_eps", 1e-6)?,
            window: s.size_or("sliding_window", 1024)?,
            theta: rope.theta,
            local_theta: rope.local_theta,
            rope_factor: rope.factor,
            kinds: Vec::new(),
        };
        if this.layers > 1024 {
            return Err(s.refuse("num_hidden_layers", "at most 1024 are supported"));
        }
        if !this.heads.is_multiple_of(this.kv_heads) {
            return Err(s.refuse("num_key_value_heads", format!("must divide the {} heads", this.heads)));
        }
        if !this.head_dim.is_multiple_of(2) {
            return Err(s.refuse("head_dim", "must be even"));
        }
        this.kinds = kinds(s, this.layers)?;
        Ok(this)
    }

    /// Hidden states of a token: one per layer and the embedding.
    pub fn states(&self) -> usize {
        self.layers + 1
    }
}

/// The rotary settings, in the older layout (flat keys) or the newer one (`rope_parameters` per kind of layer).
struct Rotary {
    theta: f64,
    local_theta: f64,
    factor: f64,
}

impl Rotary {
    fn new(config: &Value, s: Section<'_>) -> Result<Self> {
        let number = |s: Section<'_>, key: &str, default: f64| match s.get(key) {
            Some(_) => s.positive(key),
            None => Ok(default),
        };
        let mut this = Self {
            theta: number(s, "rope_theta", 1e6)?,
            local_theta: number(s, "rope_local_base_freq", 1e4)?,
            factor: 8.0,
        };
        let text = config.get("text_config").unwrap_or(config);
        if s.get("rope_parameters").is_some() {
            let full = Section::of(text, "rope_parameters.full_attention")?;
            let sliding = Section::of(text, "rope_parameters.sliding_attention")?;
            sliding.require_or_absent("rope_type", "default")?;
            this.theta = number(full, "rope_theta", this.theta)?;
            this.local_theta = number(sliding, "rope_theta", this.local_theta)?;
            this.factor = Self::factor(full)?;
        } else if text.get("rope_scaling").is_some_and(Value::is_null) {
            this.factor = 1.0;
        } else if s.get("rope_scaling").is_some() {
            this.factor = Self::factor(Section::of(text, "rope_scaling")?)?;
        }
        Ok(this)
    }

    fn factor(s: Section<'_>) -> Result<f64> {
        let kind = if s.get("rope_type").is_some() { "rope_type" } else { "type" };
        match s.get(kind).and_then(Value::as_str) {
            Some("linear") => s.positive("factor"),
            Some("default") => Ok(1.0),
            _ => Err(s.refuse(kind, "expected \"linear\" or \"default\"")),
        }
    }
}

/// From `layer_types` where the file lists them, else every sixth (`sliding_window_pattern`) layer sees all.
fn kinds(s: Section<'_>, layers: usize) -> Result<Vec<Kind>> {
    let Some(list) = s.get("layer_types") else {
        let pattern = s.size_or("sliding_window_pattern", 6)?;
        let kind =
            |layer: usize| if (layer + 1).is_multiple_of(pattern) { Kind::Full } else { Kind::Sliding };
        return Ok((0..layers).map(kind).collect());
    };
    let kind = |word: &Value| match word.as_str() {
        Some("full_attention") => Some(Kind::Full),
        Some("sliding_attention") => Some(Kind::Sliding),
        _ => None,
    };
    let list = list.as_array().and_then(|list| list.iter().map(kind).collect::<Option<Vec<_>>>());
    list.filter(|list| list.len() == layers).ok_or_else(|| {
        s.refuse("layer_types", format!("expected {layers} of \"full_attention\" and \"sliding_attention\""))
    })
}

/// A norm's weight plus one, in f32: Gemma stores offsets from one.
fn norm_weight(width: usize, w: &Weights) -> Result<Tensor> {
    w.with_dtype(DType::F32).tensor_then("weight", width, |weight| weight + 1.0)
}

fn linear(inputs: usize, outputs: usize, w: &Weights) -> Result<FrozenLinear> {
    Ok(FrozenLinear::new(FrozenWeight::new(w.stored("weight", (outputs, inputs))?)?, None)?)
}

struct SelfAttention {
    q_proj: FrozenLinear,
    k_proj: FrozenLinear,
    v_proj: FrozenLinear,
    o_proj: FrozenLinear,
    /// [heads·head_dim]: the stored [head_dim] is shared by all heads.
    q_norm: Tensor,
    k_norm: Tensor,
}

struct Mlp {
    gate_proj: FrozenLinear,
    up_proj: FrozenLinear,
    down_proj: FrozenLinear,
}

/// One layer; [`Layer::forward`] is the whole of `model-text.md` §2.3.
pub struct Layer {
    input_layernorm: Tensor,
    self_attn: SelfAttention,
    post_attention_layernorm: Tensor,
    pre_feedforward_layernorm: Tensor,
    mlp: Mlp,
    post_feedforward_layernorm: Tensor,
}

impl Layer {
    /// Asks for the tensors of `layers.{i}.`.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn new(config: &GemmaConfig, w: &Weights) -> Result<Self> {
        let GemmaConfig { hidden, inner, head_dim, .. } = *config;
        let (queries, keys) = (config.heads * head_dim, config.kv_heads * head_dim);
        let attn = w.pp("self_attn");
        let mlp = w.pp("mlp");
        Ok(Self {
            input_layernorm: norm_weight(hidden, &w.pp("input_layernorm"))?,
            self_attn: SelfAttention {
                q_proj: linear(hidden, queries, &attn.pp("q_proj"))?,
                k_proj: linear(hidden, keys, &attn.pp("k_proj"))?,
                v_proj: linear(hidden, keys, &attn.pp("v_proj"))?,
                o_proj: linear(queries, hidden, &attn.pp("o_proj"))?,
                q_norm: norm_weight(head_dim, &attn.pp("q_norm"))?,
                k_norm: norm_weight(head_dim, &attn.pp("k_norm"))?,
            },
            post_attention_layernorm: norm_weight(hidden, &w.pp("post_attention_layernorm"))?,
            pre_feedforward_layernorm: norm_weight(hidden, &w.pp("pre_feedforward_layernorm"))?,
            mlp: Mlp {
                gate_proj: linear(hidden, inner, &mlp.pp("gate_proj"))?,
                up_proj: linear(hidden, inner, &mlp.pp("up_proj"))?,
                down_proj: linear(inner, hidden, &mlp.pp("down_proj"))?,
            },
            post_feedforward_layernorm: norm_weight(hidden, &w.pp("post_feedforward_layernorm"))?,
        })
    }

    /// `x` [1, N, H] → [1, N, H]; `layout` says where each caption lies, `index` which layer this is.
    ///
    /// # Errors
    /// Only what the ops report.
    pub fn forward(&self, config: &GemmaConfig, index: usize, x: &Tensor, layout: &Layout) -> Result<Tensor> {
        let norm = |x: &Tensor, weight: &Tensor| rms_norm(x, Some(weight), config.eps);
        let h = norm(x, &self.input_layernorm)?;
        let h = self.self_attn.forward(config, config.kinds[index], &h, layout)?;
        let x = (x + norm(&h, &self.post_attention_layernorm)?)?;
        let h = norm(&x, &self.pre_feedforward_layernorm)?;
        let h = gelu_tanh_mul(&self.mlp.gate_proj.forward(&h, None)?, &self.mlp.up_proj.forward(&h, None)?)?;
        let h = self.mlp.down_proj.forward(&h, None)?;
        Ok((&x + norm(&h, &self.post_feedforward_layernorm)?)?)
    }
}

impl SelfAttention {
    fn forward(&self, config: &GemmaConfig, kind: Kind, x: &Tensor, layout: &Layout) -> Result<Tensor> {
        let (rope, window) = match kind {
            Kind::Full => (&layout.full, None),
            Kind::Sliding => (&layout.sliding, Some(config.window)),
        };
        let q = self.turned(config, self.q_proj.forward(x, None)?, &self.q_norm, rope)?;
        let k = self.turned(config, self.k_proj.forward(x, None)?, &self.k_norm, rope)?;
        let v = self.v_proj.forward(x, None)?;
        let settings = Attention {
            heads: config.heads,
            kv_heads: config.kv_heads,
            scale: config.query_scalar.powf(-0.5),
            mask: Mask::Causal { window, keys: None },
        };
        let mut out = Vec::with_capacity(layout.lengths.len());
        let mut start = 0;
        for length in &layout.lengths {
            let part = |t: &Tensor| t.narrow(1, start, *length);
            out.push(attention(&part(&q)?, &part(&k)?, &part(&v)?, &settings)?);
            start += length;
        }
        Ok(self.o_proj.forward(&Tensor::cat(&out, 1)?, None)?)
    }

    /// Norm of each head, then rotary.
    fn turned(&self, config: &GemmaConfig, x: Tensor, weight: &Tensor, rope: &Rope) -> Result<Tensor> {
        let (batch, rows, width) = x.dims3()?;
        let heads = x.reshape((batch, rows, width / config.head_dim, config.head_dim))?;
        let normed = rms_norm(&heads, Some(weight), config.eps)?.reshape((batch, rows, width))?;
        Ok(kernels::rope(&normed, rope)?)
    }
}

/// Where the captions of one group lie in its rows, and their rotary tables.
pub struct Layout {
    lengths: Vec<usize>,
    full: Rope,
    sliding: Rope,
}

impl Layout {
    /// Captions of these lengths, one after the other. Their last tokens are at position `padded_tokens − 1`, as in the
    /// padded batches the transformer was trained with: states hardly depend on it, rounding does.
    ///
    /// # Errors
    /// `Input` when a caption is empty or longer than `padded_tokens`.
    pub fn new(
        config: &GemmaConfig,
        lengths: &[usize],
        padded_tokens: usize,
        device: &Device,
    ) -> Result<Self> {
        if let Some(length) = lengths.iter().find(|length| !(1..=padded_tokens).contains(*length)) {
            let problem = format!("{length} tokens; 1 to {padded_tokens} are possible");
            return Err(Error::input("caption", problem));
        }
        let positions: Vec<f32> = lengths
            .iter()
            .flat_map(|length| (padded_tokens - length..padded_tokens).map(|position| position as f32))
            .collect();
        let rope = |theta: f64, factor: f64| -> Result<Rope> {
            let half = config.head_dim / 2;
            let frequencies: Vec<f32> = (0..half)
                .map(|j| {
                    let power = theta as f32;
                    let inverse = 1.0 / power.powf((2 * j) as f32 / config.head_dim as f32);
                    (f64::from(inverse) / factor) as f32
                })
                .collect();
            let angles: Vec<f32> =
                positions.iter().flat_map(|p| frequencies.iter().map(move |f| p * f)).collect();
            let table = |function: fn(f32) -> f32| {
                let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
                Tensor::from_vec(values, (1, positions.len(), half), device)
            };
            Ok(Rope::new(&table(f32::cos)?, &table(f32::sin)?, config.head_dim)?)
        };
        Ok(Self {
            lengths: lengths.to_vec(),
            full: rope(config.theta, config.rope_factor)?,
            sliding: rope(config.local_theta, 1.0)?,
        })
    }

    /// The same with tables rounded to `dtype`, when that is 16-bit: what a model running in it uses.
    fn rounded_to(self, dtype: DType) -> Result<Self> {
        match dtype {
            DType::BF16 | DType::F16 => Ok(Self {
                full: self.full.rounded_to(dtype)?,
                sliding: self.sliding.rounded_to(dtype)?,
                ..self
            }),
            _ => Ok(self),
        }
    }

    fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Where the layers live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// All in memory: for many passes.
    Resident,
    /// Read from the file one at a time, in every pass: the 12B then takes one layer's memory instead of 24 GB.
    Streamed,
}

/// The parts outside the layers.
struct Outside {
    embed_tokens: FrozenWeight,
    norm: Tensor,
}

impl Outside {
    fn new(config: &GemmaConfig, w: &Weights) -> Result<Self> {
        Ok(Self {
            embed_tokens: Self::embedding(config, w)?,
            norm: norm_weight(config.hidden, &w.pp("norm"))?,
        })
    }

    fn embedding(config: &GemmaConfig, w: &Weights) -> Result<FrozenWeight> {
        let shape = (config.vocabulary, config.hidden);
        Ok(FrozenWeight::new(w.pp("embed_tokens").stored("weight", shape)?)?)
    }
}

/// The text model.
pub struct Gemma {
    config: GemmaConfig,
    checkpoint: Arc<Checkpoint>,
    device: Device,
    dtype: DType,
    /// `None`: read when needed.
    resident: Option<(Outside, Vec<Layer>)>,
}

impl Gemma {
    /// Opens the model in `checkpoint` (Gemma's folder) after checking all of its tensors. Activations are `dtype`.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Io`.
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        device: &Device,
        dtype: DType,
        residency: Residency,
    ) -> Result<Self> {
        let config = GemmaConfig::new(checkpoint.config()?)?;
        let build = |w: &Weights| -> Result<_> {
            let layer = |index| Layer::new(&config, &w.pp("layers").pp(index));
            Ok((Outside::new(&config, w)?, (0..config.layers).map(layer).collect::<Result<Vec<_>>>()?))
        };
        let resident = match residency {
            Residency::Resident => Some(checkpoint.load(Component::Gemma, device, dtype, build)?),
            Residency::Streamed => {
                let asked = Weights::record(Component::Gemma, |w| build(w).map(drop))?;
                checkpoint.verify(Component::Gemma, &asked, &asked)?;
                None
            }
        };
        Ok(Self { config, checkpoint: checkpoint.clone(), device: device.clone(), dtype, resident })
    }

    /// Asks `w` for every tensor of the text model: for the walk over names.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk(config: &GemmaConfig, w: &Weights) -> Result<()> {
        Outside::new(config, w)?;
        (0..config.layers).try_for_each(|index| Layer::new(config, &w.pp("layers").pp(index)).map(drop))
    }

    /// The sizes.
    pub fn config(&self) -> &GemmaConfig {
        &self.config
    }

    /// Runs `captions` (token ids, none empty) and hands every hidden state to `visit` as it appears: the group of
    /// captions it belongs to, the state's index 0…L, and [rows of the group, H].
    ///
    /// Only the newest state is kept here, so memory does not grow with the number of layers.
    ///
    /// # Errors
    /// `Input` for an id the embedding does not have or a caption longer than `padded_tokens`; what `visit` gives.
    pub fn hidden_states(
        &self,
        captions: &[Vec<u32>],
        padded_tokens: usize,
        mut visit: impl FnMut(&Group, usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        if captions.is_empty() {
            return Ok(());
        }
        let weights = self.checkpoint.weights(Component::Gemma, &self.device, self.dtype);
        let groups = Group::split(captions);
        let layouts = groups.iter().map(|group| {
            let lengths: Vec<usize> = captions[group.captions.clone()].iter().map(Vec::len).collect();
            Layout::new(&self.config, &lengths, padded_tokens, &self.device)?.rounded_to(self.dtype)
        });
        let layouts = layouts.collect::<Result<Vec<_>>>()?;
        let mut states = self.embed(captions, &groups, &weights)?;
        for (group, state) in groups.iter().zip(&states) {
            visit(group, 0, &state.squeeze(0)?)?;
        }
        for index in 0..self.config.layers {
            let read;
            let layer = match &self.resident {
                Some((_, layers)) => &layers[index],
                None => {
                    read = Layer::new(&self.config, &weights.pp("layers").pp(index))?;
                    &read
                }
            };
            let last = index + 1 == self.config.layers;
            for ((group, layout), state) in groups.iter().zip(&layouts).zip(&mut states) {
                assert_eq!(layout.rows(), group.rows, "invariant: made from the same captions");
                *state = layer.forward(&self.config, index, state, layout)?;
                if last {
                    let norm = self.final_norm(&weights)?;
                    *state = rms_norm(state, Some(&norm), self.config.eps)?;
                }
                visit(group, index + 1, &state.squeeze(0)?)?;
            }
        }
        Ok(())
    }

    fn final_norm(&self, weights: &Weights) -> Result<Tensor> {
        match &self.resident {
            Some((outside, _)) => Ok(outside.norm.clone()),
            None => norm_weight(self.config.hidden, &weights.pp("norm")),
        }
    }

    /// Scaled embeddings of every group, [1, rows, H].
    fn embed(&self, captions: &[Vec<u32>], groups: &[Group], weights: &Weights) -> Result<Vec<Tensor>> {
        let read;
        let embedding = match &self.resident {
            Some((outside, _)) => &outside.embed_tokens,
            None => {
                read = Outside::embedding(&self.config, weights)?;
                &read
            }
        };
        // The reference rounds the factor to the type it runs in: 62 instead of 61.97 in bf16.
        let scale = Tensor::new((self.config.hidden as f64).sqrt(), &Device::Cpu)?;
        let scale = scale.to_dtype(self.dtype)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let one = |group: &Group| -> Result<Tensor> {
            let ids: Vec<u32> = captions[group.captions.clone()].iter().flatten().copied().collect();
            if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocabulary) {
                let rows = self.config.vocabulary;
                let problem = format!(
                    "token {id} is beyond the embedding's {rows} rows: the tokenizer belongs \
                                       to another model"
                );
                return Err(Error::input("caption", problem));
            }
            Ok((embedding.rows(&ids, self.dtype)? * scale)?.unsqueeze(0)?)
        };
        groups.iter().map(one).collect()
    }
}

/// Captions that go through a layer together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Position among the groups.
    pub index: usize,
    /// Which captions.
    pub captions: std::ops::Range<usize>,
    /// Their tokens together.
    pub rows: usize,
}

impl Group {
    /// Cuts a list of captions into groups of about `ROWS_PER_GROUP` rows, in order.
    pub fn split(captions: &[Vec<u32>]) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for (at, caption) in captions.iter().enumerate() {
            match groups.last_mut().filter(|group| group.rows < ROWS_PER_GROUP) {
                Some(group) => {
                    group.captions.end = at + 1;
                    group.rows += caption.len();
                }
                None => groups.push(Self { index: groups.len(), captions: at..at + 1, rows: caption.len() }),
            }
        }
        groups
    }
}
