//! One suite's comparisons.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use model::Checkpoint;

/// How far a tensor may be from the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Every value equal.
    Exact,
    /// Largest absolute difference.
    Absolute(f64),
    /// Largest absolute difference divided by the reference tensor's largest magnitude.
    Relative(f64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.pad("equal"),
            Self::Absolute(limit) => f.pad(&format!("{limit:.0e} abs")),
            Self::Relative(limit) => f.pad(&format!("{limit:.0e} rel")),
        }
    }
}

/// One line: a comparison, an input, or something that went wrong.
struct Row {
    file: String,
    tensor: String,
    outcome: Outcome,
}

enum Outcome {
    Compared { shape: Vec<usize>, absolute: f64, relative: f64, limit: Limit, passed: bool },
    Input { shape: Vec<usize> },
    Failed(String),
}

/// A reference file and the tensors in it that nothing has used yet.
struct Ledger {
    file: Arc<Checkpoint>,
    open: BTreeSet<String>,
}

/// The comparisons of one suite and the reference files it opened.
pub struct Table {
    folder: PathBuf,
    ledgers: BTreeMap<String, Ledger>,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), ledgers: BTreeMap::new(), rows: Vec::new() }
    }

    /// The path of `name` in the reference folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Opens a reference file: from now on each of its tensors has to be compared or taken as an input.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&mut self, file: &str) -> Result<Arc<Checkpoint>> {
        if let Some(ledger) = self.ledgers.get(file) {
            return Ok(ledger.file.clone());
        }
        let opened = Checkpoint::open(self.path(file)).with_context(|| format!("reference file {file}"))?;
        let open = opened.entries().map(|(name, _)| name.to_owned()).collect();
        self.ledgers.insert(file.to_owned(), Ledger { file: opened.clone(), open });
        Ok(opened)
    }

    /// Names of the file's tensors, sorted.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn names(&mut self, file: &str) -> Result<Vec<String>> {
        Ok(self.open(file)?.entries().map(|(name, _)| name.to_owned()).collect())
    }

    /// A tensor that is an input of the comparison: read as stored and noted as used.
    ///
    /// # Errors
    /// When the file has no such tensor.
    pub fn input(&mut self, file: &str, tensor: &str) -> Result<Tensor> {
        let value = self.read(file, tensor)?;
        self.note(file, tensor, Outcome::Input { shape: value.dims().to_vec() });
        Ok(value)
    }

    /// Reads a tensor without noting it: for one that is compared elsewhere in the suite and needed as well.
    ///
    /// # Errors
    /// When the file has no such tensor.
    pub fn read(&mut self, file: &str, tensor: &str) -> Result<Tensor> {
        let value = self.open(file)?.tensor(tensor, &Device::Cpu)?;
        Ok(value)
    }

    /// Compares `got` with the reference tensor.
    ///
    /// # Errors
    /// When the file has no such tensor. A difference is no error but a failed line.
    pub fn compare(&mut self, file: &str, tensor: &str, got: &Tensor, limit: Limit) -> Result<()> {
        self.compare_part(file, tensor, got, limit, |whole| Ok(whole.clone()))
    }

    /// Compares what `part` makes of `got` with what it makes of the reference tensor (rows of valid tokens).
    /// Shapes are compared before that.
    ///
    /// # Errors
    /// When the file has no such tensor, and what `part` reports.
    pub fn compare_part(
        &mut self,
        file: &str,
        tensor: &str,
        got: &Tensor,
        limit: Limit,
        part: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let want = self.read(file, tensor)?;
        let outcome = if got.dims() == want.dims() {
            difference(&part(got)?, &part(&want)?, limit)?
        } else {
            Outcome::Failed(format!("shape {:?}, the reference has {:?}", got.dims(), want.dims()))
        };
        self.note(file, tensor, outcome);
        Ok(())
    }

    /// Compares two tensors of which neither is stored, under a name of its own.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn compare_tensors(&mut self, name: &str, got: &Tensor, want: &Tensor, limit: Limit) -> Result<()> {
        ensure!(got.dims() == want.dims(), "{name}: shape {:?} against {:?}", got.dims(), want.dims());
        let outcome = difference(got, want, limit)?;
        self.rows.push(Row { file: String::new(), tensor: name.to_owned(), outcome });
        Ok(())
    }

    /// Notes whether something that is no tensor holds (token texts, a count).
    pub fn check(&mut self, name: &str, holds: bool, problem: impl Into<String>) {
        let outcome = if holds {
            Outcome::Compared {
                shape: Vec::new(),
                absolute: 0.0,
                relative: 0.0,
                limit: Limit::Exact,
                passed: true,
            }
        } else {
            Outcome::Failed(problem.into())
        };
        self.rows.push(Row { file: String::new(), tensor: name.to_owned(), outcome });
    }

    pub(crate) fn fail(&mut self, problem: impl Into<String>) {
        self.rows.push(Row {
            file: String::new(),
            tensor: "(suite)".to_owned(),
            outcome: Outcome::Failed(problem.into()),
        });
    }

    fn note(&mut self, file: &str, tensor: &str, outcome: Outcome) {
        if let Some(ledger) = self.ledgers.get_mut(file) {
            ledger.open.remove(tensor);
        }
        self.rows.push(Row { file: file.to_owned(), tensor: tensor.to_owned(), outcome });
    }

    /// Turns what the ledgers still hold into failed lines.
    pub(crate) fn close(&mut self) {
        for (file, ledger) in &self.ledgers {
            for tensor in &ledger.open {
                self.rows.push(Row {
                    file: file.clone(),
                    tensor: tensor.clone(),
                    outcome: Outcome::Failed("compared by no check".to_owned()),
                });
            }
        }
    }

    /// Comparisons that passed and lines that failed. Inputs count as neither.
    pub(crate) fn counts(&self) -> (usize, usize) {
        self.rows.iter().fold((0, 0), |(passed, failed), row| match row.outcome {
            Outcome::Compared { passed: true, .. } => (passed + 1, failed),
            Outcome::Input { .. } => (passed, failed),
            _ => (passed, failed + 1),
        })
    }
}

/// The largest difference between two tensors of one shape, computed in f64.
fn difference(got: &Tensor, want: &Tensor, limit: Limit) -> Result<Outcome> {
    let got_values = got.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let want_values = want.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let (mut absolute, mut largest) = (0f64, 0f64);
    for (got, want) in got_values.iter().zip(&want_values) {
        let apart = (got - want).abs();
        // A value that is no number anywhere is infinitely far away.
        absolute = if apart.is_nan() { f64::INFINITY } else { absolute.max(apart) };
        largest = largest.max(want.abs());
    }
    let relative = if absolute == 0.0 { 0.0 } else { absolute / largest };
    let passed = !want_values.is_empty()
        && match limit {
            Limit::Exact => absolute == 0.0,
            Limit::Absolute(limit) => absolute <= limit,
            Limit::Relative(limit) => relative <= limit,
        };
    Ok(Outcome::Compared { shape: want.dims().to_vec(), absolute, relative, limit, passed })
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |row: &Row| match row.file.strip_suffix(".safetensors").unwrap_or(&row.file) {
            "" => row.tensor.clone(),
            file => format!("{file}: {}", row.tensor),
        };
        let width = self.rows.iter().map(|row| name(row).chars().count()).max().unwrap_or(0);
        writeln!(
            f,
            "  {:width$}  {:>18}  {:>9}  {:>9}  {:>9}",
            "tensor", "shape", "max abs", "max rel", "limit"
        )?;
        for row in &self.rows {
            write!(f, "  {:width$}  ", name(row))?;
            match &row.outcome {
                Outcome::Compared { shape, absolute, relative, limit, passed } => writeln!(
                    f,
                    "{:>18}  {absolute:>9.1e}  {relative:>9.1e}  {limit:>9}  {}",
                    format!("{shape:?}"),
                    if *passed { "ok" } else { "FAILED" }
                )?,
                Outcome::Input { shape } => writeln!(f, "{:>18}  input", format!("{shape:?}"))?,
                Outcome::Failed(problem) => writeln!(f, "FAILED: {problem}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/reference")
    }

    const FILE: &str = "transformer.safetensors";

    #[test]
    fn a_tensor_nothing_compares_counts_as_failed() -> Result<()> {
        let mut table = Table::new(&reference());
        let names = table.names(FILE)?;
        let first = table.read(FILE, &names[0])?;
        table.compare(FILE, &names[0], &first, Limit::Exact)?;
        table.input(FILE, &names[1])?;
        table.close();
        assert_eq!(table.counts(), (1, names.len() - 2));
        assert!(table.to_string().contains("compared by no check"));
        Ok(())
    }

    #[test]
    fn differences_above_the_limit_other_shapes_and_non_numbers_fail() -> Result<()> {
        let mut table = Table::new(&reference());
        let name = table.names(FILE)?.remove(0);
        let want = table.read(FILE, &name)?;
        table.compare(FILE, &name, &(&want + 1e-3)?, Limit::Absolute(2e-3))?;
        table.compare(FILE, &name, &(&want + 1e-3)?, Limit::Absolute(5e-4))?;
        table.compare(FILE, &name, &(&want * f64::NAN)?, Limit::Absolute(1.0))?;
        table.compare(FILE, &name, &want.flatten_all()?, Limit::Absolute(1.0))?;
        assert_eq!(table.counts(), (1, 3));
        Ok(())
    }
}
