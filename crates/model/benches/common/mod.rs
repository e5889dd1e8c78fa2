//! kiln's side of the comparison with PyTorch: set up, then run and print one line of JSON per run.
//!
//! `--repeats N` runs N times (5 unless told). `--step` runs once per line read from standard input instead, so that
//! `benches/compare_model.py` can let two programs take turns; it ends with the input.

use std::{fs, io, io::Write, time::Instant};

use anyhow::{Context, Result, ensure};
use kiln_model::TensorSpec;

/// A measuring program that has not made its weights yet.
pub(crate) struct Program {
    name: &'static str,
    /// Resident before the weights were made.
    base_bytes: u64,
}

impl Program {
    /// To be called before any weight is made.
    ///
    /// # Errors
    /// Where there is no /proc.
    pub(crate) fn start(name: &'static str) -> Result<Self> {
        Ok(Self { name, base_bytes: resident("VmRSS")? })
    }

    /// Measures `run`, given the bytes its weights take. `run` includes making its inputs' gradients and the like;
    /// it returns a number that must be finite.
    ///
    /// # Errors
    /// What `run` reports.
    pub(crate) fn measure(self, weight_bytes: u64, mut run: impl FnMut() -> Result<f32>) -> Result<()> {
        // From here on the peak is that of the runs.
        fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")?;
        let name = self.name;
        say(&format!("{{\"ready\": \"{name}\", \"weight_bytes\": {weight_bytes}}}"))?;
        let (step, repeats) = (flag("--step"), argument("--repeats", 5)?);
        let mut number = 0;
        while if step { next_line()? } else { number < repeats } {
            let (start, processor) = (Instant::now(), processor_seconds()?);
            let result = run()?;
            let (wall, processor) = (start.elapsed().as_secs_f64(), processor_seconds()? - processor);
            ensure!(result.is_finite(), "{name}: the result is {result}");
            let peak = resident("VmHWM")?;
            let above = peak.saturating_sub(self.base_bytes + weight_bytes);
            say(&format!(
                "{{\"program\": \"{name}\", \"seconds\": {wall:.4}, \"processor_seconds\": {processor:.2}, \
                 \"above_weights_bytes\": {above}, \"peak_bytes\": {peak}}}"
            ))?;
            number += 1;
        }
        Ok(())
    }
}

/// Bytes of a tensor as the components keep it: matrices and kernels in bf16, the rest widened to f32.
pub(crate) fn stored_bytes(spec: &TensorSpec) -> u64 {
    let matrix = spec.name.ends_with(".weight") && spec.shape.len() > 1;
    spec.shape.iter().product::<usize>() as u64 * if matrix { 2 } else { 4 }
}

fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Whether there was another line.
fn next_line() -> Result<bool> {
    Ok(io::stdin().read_line(&mut String::new())? > 0)
}

/// Whether the program was given `name`.
pub(crate) fn flag(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}

/// What the program was given after `name`.
///
/// # Errors
/// When it is no number.
pub(crate) fn argument(name: &str, default: usize) -> Result<usize> {
    text(name).map_or(Ok(default), |value| value.parse().with_context(|| format!("{name} {value}")))
}

/// What the program was given after `name`.
pub(crate) fn text(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

/// User and system time of all threads, in hundredths of a second as Linux counts them.
fn processor_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').context("/proc/self/stat has no name")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// A line of /proc/self/status, in bytes.
fn resident(line: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("memory is read from /proc")?;
    let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let kilobytes = value.and_then(|v| v.split_whitespace().next()).with_context(|| format!("no {line}"))?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}
