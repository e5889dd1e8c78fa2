//! Runs the suites: all in a row for people, one by one for `cargo nextest`.

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Result, anyhow};

use crate::Table;

/// Graphs are walked recursively when they are dropped; see `stack.md` §5 no. 6.
const STACK_BYTES: usize = 64 << 20;

/// One component's comparison.
pub struct Suite {
    /// The name it is chosen by.
    pub name: &'static str,
    /// Fills the table.
    pub run: fn(&mut Table) -> Result<()>,
}

/// Runs the suites the arguments choose (all without arguments; `--exact` as test runners give it) and ends with
/// `N passed, N failed`. Fails when anything failed or nothing was compared.
pub fn main(suites: &[Suite]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let mut out = std::io::stdout().lock();
    if has("--list") {
        // Test runners ask for the ignored ones apart: there are none.
        if !has("--ignored") {
            for suite in suites {
                let _ = writeln!(out, "{}: test", suite.name);
            }
        }
        return ExitCode::SUCCESS;
    }
    let wanted = names(&arguments);
    let chosen = suites.iter().filter(|suite| {
        wanted.is_empty()
            || wanted.iter().any(|w| if has("--exact") { suite.name == *w } else { suite.name.contains(w) })
    });

    let folder = reference_folder();
    let _ = writeln!(out, "reference: {}", folder.display());
    let (mut passed, mut failed) = (0, 0);
    for suite in chosen {
        let table = run(suite, &folder);
        let (p, f) = table.counts();
        let _ = writeln!(out, "\n{}\n{table}", suite.name);
        passed += p;
        failed += f;
    }
    let _ = writeln!(out, "{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The arguments that are no flags and no flag's value.
fn names(arguments: &[String]) -> Vec<&str> {
    const WITH_VALUE: [&str; 4] = ["--format", "--test-threads", "--color", "--skip"];
    let mut names = Vec::new();
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        if WITH_VALUE.contains(&argument) {
            arguments.next();
        } else if !argument.starts_with('-') {
            names.push(argument);
        }
    }
    names
}

fn run(suite: &Suite, folder: &Path) -> Table {
    let body = || {
        let mut table = Table::new(folder);
        let outcome = catch_unwind(AssertUnwindSafe(|| (suite.run)(&mut table))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(anyhow!("panicked: {}", text.unwrap_or("no message")))
        });
        if let Err(problem) = outcome {
            table.fail(format!("{problem:#}"));
        }
        table.close();
        table
    };
    thread::scope(|scope| {
        let worker = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, body);
        worker.expect("a thread can be started").join().expect("invariant: panics are caught inside")
    })
}

/// The folder `KILN_REFERENCE` names, else the project's own reference tensors.
#[expect(
    clippy::disallowed_methods,
    reason = "a test program: the folder is chosen by the caller's environment"
)]
fn reference_folder() -> PathBuf {
    match std::env::var("KILN_REFERENCE") {
        Ok(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/reference"),
    }
}
