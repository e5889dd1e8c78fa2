//! One module per command, each a list of the parts it builds.

mod config;
mod doctor;
mod keys;
mod migrate;
mod model;
mod modes;
mod serve;
mod work;

use crate::{
    Parts,
    arguments::{Arguments, Command, Shared},
    config::{Config, Flags},
    telemetry,
};
use std::{future::Future, io::Write as _, process::ExitCode};
use tokio_util::sync::CancellationToken;

/// Reads the configuration and runs the command.
pub(crate) fn run(
    arguments: Arguments,
    environment: &[(String, String)],
    parts: Parts,
) -> anyhow::Result<ExitCode> {
    let Arguments { shared, command } = arguments;
    match &command {
        // These need no configuration, so a broken one must not stand in their way.
        Command::Modes(listing) => return modes::run(listing),
        Command::Model(command) => return model::run(command),
        Command::Config(wanted) if wanted.defaults => return config::defaults(),
        _ => {}
    }
    let config = Config::load(shared.config.as_deref(), environment, &flags(&shared, &command))?;
    telemetry::start(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match command {
        Command::Serve(_) => block_on(serve::run(&config)),
        Command::Work(_) => block_on(work::run(&config, parts)),
        Command::Migrate => block_on(migrate::run(&config)),
        Command::Keys(action) => block_on(keys::run(&config, action)),
        Command::Doctor => block_on(doctor::run(&config)),
        Command::Config(_) => config::run(&config),
        Command::Modes(_) | Command::Model(_) => unreachable!("invariant: answered above"),
    }
}

fn flags(shared: &Shared, command: &Command) -> Flags {
    let mut flags = Flags::default();
    flags.set("data_dir", "--data-dir", shared.data_dir.as_deref());
    flags.set("database.url", "--database-url", shared.database_url.as_deref());
    flags.set("log.format", "--log-format", shared.log_format.as_deref());
    flags.set("log.filter", "--log", shared.log.as_deref());
    match command {
        Command::Serve(serve) => {
            flags.set("serve.listen", "--listen", serve.listen.as_deref());
            flags.set("serve.public_url", "--public-url", serve.public_url.as_deref());
            flags.set(
                "serve.insecure_no_auth",
                "--insecure-no-auth",
                serve.insecure_no_auth.then_some("true"),
            );
        }
        Command::Work(work) => flags.set("work.name", "--name", work.name.as_deref()),
        _ => {}
    }
    flags
}

fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // What is still running is a trainer that did not stop: the process ends without it.
    runtime.shutdown_background();
    result
}

/// A token that SIGTERM or SIGINT cancels; the second one ends the process at once.
fn shutdown_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if last {
                tracing::warn!(signal = name, "told twice to stop: leaving at once");
                std::process::exit(130);
            }
            tracing::info!(signal = name, "told to stop");
            cancelled.cancel();
        }
    });
    Ok(token)
}

/// Writes a command's answer to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Lines up columns, two spaces apart; the last one is not padded.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "bb".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), "a    bb\nccc  d\n");
    }
}
