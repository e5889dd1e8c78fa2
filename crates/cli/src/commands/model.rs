//! `kiln model`: look at weight files, make tiny ones.

use super::{print, table};
use crate::arguments::{Format, InitTiny, Inspect, Model};
use anyhow::Context as _;
use model::{
    init_tiny::{TinyShape, init_tiny},
    inspect::{self, Inspection},
};
use std::process::ExitCode;

pub(super) fn run(command: &Model) -> anyhow::Result<ExitCode> {
    match command {
        Model::InitTiny(wanted) => make(wanted),
        Model::Inspect(wanted) => look(wanted),
    }
}

fn make(wanted: &InitTiny) -> anyhow::Result<ExitCode> {
    let mut shape = TinyShape::default();
    for size in &wanted.sizes {
        let (name, n) = size.split_once('=').with_context(|| format!("--size {size}: expected NAME=N"))?;
        let n = n.parse().with_context(|| format!("--size {size}: expected a whole number after `=`"))?;
        shape = shape.with(name, n)?;
    }
    if wanted.sizes_only {
        let rows: Vec<Vec<String>> =
            shape.sizes().into_iter().map(|(name, n)| vec![name, n.to_string()]).collect();
        print(&table(&rows))?;
        return Ok(ExitCode::SUCCESS);
    }
    let out = wanted.out.as_deref().context("--out DIR is missing: where the model is written")?;
    let made = init_tiny(out, &shape, wanted.seed)?;
    print(&format!(
        "checkpoint  {}\ngemma       {}\nsize        {:.1} MB\n",
        made.checkpoint.display(),
        made.gemma.display(),
        made.bytes as f64 / 1e6
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Status 1 when something does not fit, for scripts.
fn look(wanted: &Inspect) -> anyhow::Result<ExitCode> {
    let found = inspect::inspect(&wanted.file)?;
    print(&match wanted.format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&found)?),
        Format::Text if wanted.tensors => format!("{found}\n{}", tensors(&found)),
        Format::Text => found.to_string(),
    })?;
    Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tensors(found: &Inspection) -> String {
    let mut rows = vec![["type", "shape", "bytes", "tensor"].map(str::to_owned).to_vec()];
    rows.extend(found.rows.iter().map(|row| {
        vec![row.stored.clone(), format!("{:?}", row.shape), row.bytes.to_string(), row.name.clone()]
    }));
    table(&rows)
}
