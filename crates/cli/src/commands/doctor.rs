//! `kiln doctor`: what is wrong with this machine, and what to do about it.
//!
//! Each check is one line: what was found, and for a finding that stops kiln, what to do. Later crates add theirs
//! (libav, model files, GPU) to the list in [`run`].

use super::print;
use crate::{
    config::Config,
    database::{Place, leave, options, shown},
    storage,
};
use std::{path::Path, process::ExitCode};
use store::Store;

/// Below this a training's scratch files may not fit: a data set, its latents and a few checkpoints.
const LITTLE_SPACE_BYTES: u64 = 20 << 30;

/// A bucket that has not answered by then is not one to work with.
const STORAGE_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

/// What one check found.
struct Finding {
    name: &'static str,
    /// Whether kiln can work with it.
    good: bool,
    found: String,
    /// What to do; empty when nothing.
    todo: String,
}

impl Finding {
    fn good(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, good: true, found: found.into(), todo: String::new() }
    }

    fn bad(name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { name, good: false, found: found.into(), todo: todo.into() }
    }
}

pub(super) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut findings = vec![postgres_programs(config)];
    findings.push(database(config).await);
    findings.push(storage(config).await);
    findings.push(disk(&config.data_dir));
    let text: String = findings.iter().map(line).collect();
    print(&text)?;
    let good = findings.iter().all(|finding| finding.good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(finding: &Finding) -> String {
    let mark = if finding.good { "ok " } else { "BAD" };
    let todo =
        if finding.todo.is_empty() { String::new() } else { format!("\n     {:<9} {}", "", finding.todo) };
    format!("{mark}  {:<9} {}{todo}\n", finding.name, finding.found)
}

fn postgres_programs(config: &Config) -> Finding {
    let name = "postgres";
    if config.database.url.is_some() {
        return Finding::good(name, "not needed here: a database address is set");
    }
    match store::cluster::find_programs(None) {
        Ok(programs) => {
            Finding::good(name, format!("PostgreSQL {} in {}", programs.version, programs.bin.display()))
        }
        Err(error) => Finding::bad(name, error.to_string(), "install it, or set database.url"),
    }
}

async fn database(config: &Config) -> Finding {
    let name = "database";
    let todo = match &config.database.url {
        Some(url) => {
            format!("check database.url ({}) and that this machine may reach it", shown(url.reveal()))
        }
        None => format!("look into {}", config.data_dir.join("postgres").display()),
    };
    let place = match Place::of(config).await {
        Ok(place) => place,
        Err(error) => return Finding::bad(name, format!("{error:#}"), todo),
    };
    let options = store::Options { patience: std::time::Duration::from_secs(3), ..options(config) };
    let finding = match Store::connect(&place.url, options).await {
        Ok(store) => {
            let finding = match store.database_version().await {
                Ok(version) => {
                    Finding::good(name, format!("{}: PostgreSQL {version}, tables up to date", place.words))
                }
                Err(error) => Finding::bad(name, format!("{}: {error}", place.words), todo),
            };
            store.close().await;
            finding
        }
        Err(error) => Finding::bad(name, format!("{}: {error}", place.words), todo),
    };
    leave(place.cluster).await;
    finding
}

/// Writes, reads and removes an object where kiln keeps files.
async fn storage(config: &Config) -> Finding {
    let name = "storage";
    let place = storage::place(config);
    let todo = match &config.objects.url {
        Some(_) => "check objects.url and objects.options, and that this machine may reach the bucket",
        None => "make the folder writable for this user, or set data_dir to another one",
    };
    let objects = match storage::objects(config) {
        Ok(objects) => objects,
        Err(error) => return Finding::bad(name, format!("{error:#}"), todo),
    };
    match tokio::time::timeout(STORAGE_WITHIN, objects.check()).await {
        Ok(Ok(())) => Finding::good(name, format!("{place} can be written and read")),
        Ok(Err(error)) => Finding::bad(name, format!("{place}: {error}"), todo),
        Err(_) => Finding::bad(name, format!("{place} does not answer"), todo),
    }
}

fn disk(folder: &Path) -> Finding {
    let name = "disk";
    match free_bytes(folder) {
        Some(bytes) if bytes < LITTLE_SPACE_BYTES => Finding::bad(
            name,
            format!("{:.1} GiB free in {}", gib(bytes), folder.display()),
            format!(
                "free some: a training may need {:.0} GiB, or set data_dir to a larger disk",
                gib(LITTLE_SPACE_BYTES)
            ),
        ),
        Some(bytes) => Finding::good(name, format!("{:.1} GiB free in {}", gib(bytes), folder.display())),
        None => Finding::bad(
            name,
            format!("the free space of {} is unknown", folder.display()),
            "check the folder",
        ),
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Free space for an ordinary user, where the folder is or would be made.
fn free_bytes(folder: &Path) -> Option<u64> {
    let facts = rustix::fs::statvfs(folder.ancestors().find(|path| path.exists())?).ok()?;
    Some(facts.f_bavail * facts.f_frsize)
}
