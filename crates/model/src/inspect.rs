//! What a weight file holds and what in it does not fit LTX-2.3. Reads headers only, never values.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::Serialize;
use serde_json::Value;

use crate::{
    Checkpoint, Component, Error, Result, Section, TensorSpec,
    survey::{self, TextWidth},
    text::GemmaConfig,
};

/// Lines of one problem that are shown; a file that misses everything has thousands.
const LINES_PER_PROBLEM: usize = 24;

/// A part of the model in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its name in words.
    pub component: String,
    /// What its tensors' names begin with in this file.
    pub prefix: String,
    /// Tensors.
    pub tensors: usize,
    /// Values in them.
    pub values: u64,
    /// Their length in the file.
    pub bytes: u64,
    /// Tensors per stored type.
    pub types: BTreeMap<String, usize>,
}

/// One tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Full name.
    pub name: String,
    /// Shape, outermost axis first.
    pub shape: Vec<usize>,
    /// Stored type.
    #[serde(rename = "type")]
    pub stored: String,
    /// Length in the file.
    pub bytes: u64,
}

/// Everything about a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Length of the file, or of all files of a folder.
    pub bytes: u64,
    /// Generation, as the configuration shows it: `LTX-2.3`, `Gemma 3 text`, or what it is not.
    pub model: String,
    /// The metadata's `model_version`, if there is one.
    pub model_version: Option<String>,
    /// The parts found, in the order of the file.
    pub parts: Vec<Part>,
    /// Parts of the unified checkpoint that are not here at all. Files for other programs hold some only.
    pub absent: Vec<String>,
    /// Tensors that belong to no part.
    pub other: Vec<String>,
    /// What does not fit, one text per part or key. Empty: everything here can be used.
    pub problems: Vec<String>,
    /// Every tensor, sorted by name.
    pub rows: Vec<Row>,
}

/// Looks at a checkpoint, or at Gemma's folder.
///
/// # Errors
/// `Io` and `Format` for a file that cannot be read as safetensors at all; everything else is a problem inside the
/// [`Inspection`].
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
    let file = Checkpoint::open(path)?;
    let parts: Vec<(Component, Part)> =
        Component::ALL.iter().filter_map(|component| Some((*component, part(&file, *component)?))).collect();
    let has = |component: Component| parts.iter().any(|(found, _)| *found == component);
    let gemma_alone = has(Component::Gemma) && !has(Component::Transformer);
    let mut problems = Vec::new();
    let model = if gemma_alone { gemma(&file, &mut problems) } else { unified(&file, &parts, &mut problems) };
    let absent = Component::ALL
        .iter()
        .filter(|component| **component != Component::Gemma && !gemma_alone && !has(**component))
        .map(Component::to_string)
        .collect();
    let rows = file.entries().map(|(name, entry)| Row {
        name: name.to_owned(),
        shape: entry.shape.clone(),
        stored: entry.stored.to_string(),
        bytes: entry.bytes,
    });
    let other = file.entries().filter(|(name, _)| file.component_of(name).is_none());
    Ok(Inspection {
        bytes: file.bytes(),
        model,
        model_version: file.metadata().get("model_version").cloned(),
        absent,
        other: other.map(|(name, _)| name.to_owned()).collect(),
        rows: rows.collect(),
        problems,
        parts: parts.into_iter().map(|(_, part)| part).collect(),
    })
}

fn part(file: &Checkpoint, component: Component) -> Option<Part> {
    let mut part = Part {
        component: component.to_string(),
        prefix: component.prefix(file).to_owned(),
        tensors: 0,
        values: 0,
        bytes: 0,
        types: BTreeMap::new(),
    };
    for (relative, entry) in file.tensors_of(component) {
        // With an empty prefix (repacked files) every name could be the transformer's.
        let name = format!("{}{relative}", part.prefix);
        if file.component_of(&name) != Some(component) {
            continue;
        }
        part.tensors += 1;
        part.values += entry.shape.iter().map(|n| *n as u64).product::<u64>();
        part.bytes += entry.bytes;
        *part.types.entry(entry.stored.to_string()).or_default() += 1;
    }
    (part.tensors > 0).then_some(part)
}

/// Checks every part of a unified file that is there; says what the file is.
fn unified(file: &Checkpoint, parts: &[(Component, Part)], problems: &mut Vec<String>) -> String {
    let config = match file.config() {
        Ok(config) => config,
        Err(error) => {
            problems.push(error.to_string());
            return "unknown: no configuration".to_owned();
        }
    };
    if let Err(error) = crate::transformer::TransformerConfig::new(config) {
        problems.push(error.to_string());
        return "not LTX-2.3".to_owned();
    }
    let text = text_width(file, config);
    for (component, _) in parts {
        let checked = survey::specs(*component, config, text)
            .and_then(|specs: Vec<TensorSpec>| file.verify(*component, &specs, &specs));
        if let Err(error) = checked {
            problems.push(error.to_string());
        }
    }
    // One unsupported key is found by every part that reads it.
    problems.sort();
    problems.dedup();
    "LTX-2.3".to_owned()
}

/// The language model's sizes are not in the file, only their product: the columns of the projections. They are taken
/// from the file itself unless the configuration knows the width.
fn text_width(file: &Checkpoint, config: &Value) -> TextWidth {
    let prefix = Component::TextProjection.prefix(file);
    let columns = file
        .entry(&format!("{prefix}video_aggregate_embed.weight"))
        .and_then(|entry| entry.shape.get(1).copied())
        .unwrap_or(1);
    let hidden = Section::of(config, "transformer").and_then(|s| s.size("caption_channels"));
    match hidden {
        Ok(hidden) if columns.is_multiple_of(hidden) => TextWidth { hidden, states: columns / hidden },
        _ => TextWidth { hidden: columns, states: 1 },
    }
}

fn gemma(file: &Checkpoint, problems: &mut Vec<String>) -> String {
    let config = file.config().and_then(GemmaConfig::new);
    let checked = config.and_then(|config| survey::gemma_specs(&config)).and_then(|specs| {
        file.verify(Component::Gemma, &specs, &specs)?;
        Ok(())
    });
    if let Err(error) = checked {
        problems.push(error.to_string());
    }
    if file.path().is_dir() {
        let tokenizer = crate::text::Tokenizer::open(file.path(), crate::text::PADDED_TOKENS);
        if let Err(error) = tokenizer {
            problems.push(Error::to_string(&error));
        }
    }
    "Gemma 3 text".to_owned()
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model    {}", self.model)?;
        writeln!(f, "version  {}", self.model_version.as_deref().unwrap_or("not stated"))?;
        writeln!(f, "size     {}\n", size(self.bytes))?;
        let width = self.parts.iter().map(|part| part.component.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "{:width$}  {:>7}  {:>15}  {:>9}  types", "part", "tensors", "values", "size")?;
        let total = |pick: fn(&Part) -> u64| self.parts.iter().map(pick).sum::<u64>();
        for part in &self.parts {
            let types: Vec<String> =
                part.types.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(
                f,
                "{:width$}  {:>7}  {:>15}  {:>9}  {}",
                part.component,
                part.tensors,
                part.values,
                size(part.bytes),
                types.join(", ")
            )?;
        }
        writeln!(
            f,
            "{:width$}  {:>7}  {:>15}  {:>9}",
            "total",
            total(|part| part.tensors as u64),
            total(|part| part.values),
            size(total(|part| part.bytes))
        )?;
        if !self.absent.is_empty() {
            writeln!(f, "\nnot in this file: {}", self.absent.join(", "))?;
        }
        if !self.other.is_empty() {
            writeln!(f, "\n{} tensors belong to no part of the model:", self.other.len())?;
            for name in self.other.iter().take(LINES_PER_PROBLEM) {
                writeln!(f, "  {name}")?;
            }
        }
        if self.problems.is_empty() {
            return writeln!(f, "\neverything here fits");
        }
        writeln!(f, "\n{} that cannot be used as it is:", counted(self.problems.len(), "part"))?;
        for problem in &self.problems {
            let lines: Vec<&str> = problem.lines().collect();
            for line in lines.iter().take(LINES_PER_PROBLEM) {
                writeln!(f, "  {line}")?;
            }
            if let Some(rest) = lines.len().checked_sub(LINES_PER_PROBLEM).filter(|rest| *rest > 0) {
                writeln!(f, "    … and {rest} more lines")?;
            }
        }
        Ok(())
    }
}

fn counted(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Bytes for people: powers of 1000, as disks are sold.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
