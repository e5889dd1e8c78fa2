//! Tokens, hidden states, features, contexts.

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};
use model::{
    Checkpoint,
    text::{Residency, TextEncoder, TextOptions},
};
use parity::{Limit, Table};

const FILE: &str = "text.safetensors";

/// Every stage on all prompts at once.
pub(crate) fn run(t: &mut Table) -> Result<()> {
    let file = t.open(FILE)?;
    let metadata =
        |key: &str| file.metadata().get(key).with_context(|| format!("{FILE} has no metadata `{key}`"));
    let prompts: Vec<String> = serde_json::from_str(metadata("prompts")?)?;
    let padded_tokens: usize = metadata("max_length")?.parse()?;
    let states: usize = metadata("hidden_states")?.parse()?;

    let checkpoint = Checkpoint::open(t.path("ltx-2.3-tiny.safetensors"))?;
    let gemma = Checkpoint::open(t.path("gemma"))?;
    let load = |residency| {
        let options = TextOptions { padded_tokens, dtype: DType::F32, residency };
        TextEncoder::load(&checkpoint, &gemma, &Device::Cpu, options)
    };
    let encoder = load(Residency::Resident)?;

    let ids: Vec<Vec<u32>> =
        prompts.iter().map(|p| encoder.tokenizer().encode(p)).collect::<model::Result<_>>()?;
    let (mut padded_ids, mut masks) = (Vec::new(), Vec::new());
    for ids in &ids {
        let (padded, mask) = encoder.tokenizer().pad_left(ids);
        padded_ids.extend(padded);
        masks.extend(mask);
    }
    let table = |values: Vec<u32>| -> Result<Tensor> {
        Ok(Tensor::from_vec(values, (ids.len(), padded_tokens), &Device::Cpu)?.to_dtype(DType::I64)?)
    };
    let mask = table(masks)?;
    t.compare(FILE, "input_ids", &table(padded_ids)?, Limit::Exact)?;
    t.compare(FILE, "attention_mask", &mask, Limit::Exact)?;

    // Rows of one long matrix → [prompts, padded, width], the prompts' rows at the right.
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    let pad = |rows: &Tensor| -> Result<Tensor> {
        let mut start = 0;
        let mut padded = Vec::new();
        for length in &lengths {
            let rows = rows.narrow(0, start, *length)?;
            padded.push(rows.pad_with_zeros(0, padded_tokens - length, 0)?);
            start += length;
        }
        Ok(Tensor::stack(&padded, 0)?)
    };
    let flags: Vec<i64> = mask.flatten_all()?.to_vec1()?;
    let valid: Vec<u32> = (0u32..).zip(&flags).filter(|(_, flag)| **flag == 1).map(|(at, _)| at).collect();
    let valid = Tensor::new(valid, &Device::Cpu)?;
    let valid_rows = |whole: &Tensor| -> Result<Tensor> { Ok(whole.flatten(0, 1)?.index_select(&valid, 0)?) };

    let config = encoder.gemma().config();
    t.check("hidden states", config.states() == states, format!("{} instead of {states}", config.states()));
    let named =
        [("hidden_first", 0, 1e-6), ("hidden_mid", states / 2, 1e-4), ("hidden_last", states - 1, 1e-4)];
    let mut seen = Vec::new();
    encoder.gemma().hidden_states(&ids, padded_tokens, |group, index, state| {
        assert_eq!(group.index, 0, "the reference's prompts fit one group");
        seen.push((index, state.clone()));
        Ok(())
    })?;
    for (name, index, limit) in named {
        let (_, state) = seen.iter().find(|(at, _)| *at == index).context("a state was not visited")?;
        t.compare_part(FILE, name, &pad(state)?, Limit::Absolute(limit), valid_rows)?;
    }

    let features = encoder.features(&ids)?;
    let video: Vec<&Tensor> = features.iter().map(|f| &f.video).collect();
    let audio: Vec<&Tensor> = features.iter().map(|f| &f.audio).collect();
    for (name, rows) in [("video_features", video), ("audio_features", audio)] {
        let rows = pad(&Tensor::cat(&rows, 0)?)?;
        t.compare_part(FILE, name, &rows, Limit::Absolute(5e-5), valid_rows)?;
    }

    let contexts = encoder.encode(&prompts)?;
    ensure!(contexts.iter().map(|c| c.tokens).eq(lengths.iter().copied()), "a context counts other tokens");
    let stack = |pick: fn(&model::text::Context) -> &Tensor| {
        Tensor::stack(&contexts.iter().map(pick).collect::<Vec<_>>(), 0)
    };
    let (video, audio) = (stack(|c| &c.video)?, stack(|c| &c.audio)?);
    t.compare(FILE, "video_context", &video, Limit::Absolute(1e-4))?;
    t.compare(FILE, "audio_context", &audio, Limit::Absolute(1e-4))?;
    // Every row counts: registers stand where tokens are missing.
    t.compare(FILE, "context_mask", &mask.ones_like()?, Limit::Exact)?;

    // Layers read one at a time, and each prompt by itself, must change nothing but rounding.
    let streamed = load(Residency::Streamed)?;
    for (at, prompt) in prompts.iter().enumerate() {
        let alone = streamed.encode(&[prompt])?;
        let name = format!("prompt {at} alone, layers streamed");
        t.compare_tensors(&name, &alone[0].video, &video.get(at)?, Limit::Absolute(1e-5))?;
    }
    Ok(())
}
