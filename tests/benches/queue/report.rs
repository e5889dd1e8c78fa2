//! Figures, and the machine that they belong to.

use crate::Arguments;
use crate::client::Run;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

/// All rounds of one thing.
#[derive(Default)]
pub(crate) struct Measured {
    times: Vec<Duration>,
    rates: Vec<f64>,
}

impl Measured {
    pub(crate) fn add(&mut self, run: Run) {
        self.rates.push(run.times.len() as f64 / run.took.as_secs_f64());
        self.times.extend(run.times);
        self.times.sort_unstable();
    }

    /// Operations of all rounds.
    pub(crate) fn count(&self) -> usize {
        self.times.len()
    }

    /// The middle round's.
    fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn quantile_ms(&self, q: f64) -> f64 {
        let at = (self.times.len() as f64 * q) as usize;
        let time = self.times.get(at.min(self.times.len().saturating_sub(1)));
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// The table of docs/benchmarks.md.
#[derive(Default)]
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn row(&mut self, what: &str, aim: &str, ours: &Measured, beside: Option<&Measured>) {
        let ratio = beside.map(|beside| format!("{:.2}", ours.rate() / beside.rate())).unwrap_or_default();
        let rounds: Vec<String> = ours.rates.iter().map(|rate| format!("{rate:.0}")).collect();
        let line = format!(
            "| {what} | {aim} | {:.0} | {} | {:.2} | {:.2} | {:.2} | {ratio} |",
            ours.rate(),
            rounds.join(", "),
            ours.quantile_ms(0.5),
            ours.quantile_ms(0.99),
            ours.quantile_ms(1.0),
        );
        eprintln!("{line}");
        self.0.push_str(&line);
        self.0.push('\n');
    }

    pub(crate) fn markdown(&self) -> String {
        format!(
            "| what | aim | per second | rounds | p50 ms | p99 ms | max ms | ÷ pgbench |\n\
             |---|---|---:|---|---:|---:|---:|---:|\n{}",
            self.0
        )
    }
}

/// Where and when.
pub(crate) struct Machine {
    load: String,
}

impl Machine {
    /// Looks before the benchmark makes a load of its own.
    pub(crate) fn look() -> Self {
        Self { load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ") }
    }

    pub(crate) fn describe(&self, database: &str, arguments: &Arguments) -> String {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let model = find(&read("/proc/cpuinfo"), "model name").unwrap_or_default();
        let memory = find(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease");
        let mut text = String::new();
        let _ = writeln!(text, "- commit {}", said("git", &["describe", "--always", "--dirty"]));
        let _ = writeln!(text, "- {}", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]));
        let _ = writeln!(text, "- {cpus} cores ({model}), memory {memory}, Linux {}", kernel.trim());
        let _ = writeln!(text, "- load of the machine before the run (1, 5, 15 minutes): {}", self.load);
        let _ = writeln!(text, "- {database}, default fsync and synchronous_commit, unix socket");
        let _ = writeln!(
            text,
            "- {} clients, {} rounds of {} s, {} finished and {} waiting rows",
            arguments.clients, arguments.rounds, arguments.seconds, arguments.history, arguments.waiting
        );
        text
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn find(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output
        .map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
