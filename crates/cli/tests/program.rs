//! The program as a person meets it: what it prints, what it refuses, and with which exit status.

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};
use testkit::{pg, process::Process};

const LONG: Duration = Duration::from_secs(60);

/// The program with nothing of this machine's configuration.
fn kiln(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
    command
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must succeed, and returns what it printed.
fn answer(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}\n{}{}", output.status, out(&output), err(&output));
    Ok(out(&output))
}

/// Runs a command that must fail with exit status 1, and returns both of its outputs.
fn refusal(command: &mut Command) -> Result<(String, String)> {
    let output = command.output()?;
    ensure!(
        output.status.code() == Some(1),
        "{command:?}: {}\n{}{}",
        output.status,
        out(&output),
        err(&output)
    );
    Ok((out(&output), err(&output)))
}

#[test]
fn the_help_names_every_command() -> Result<()> {
    let text = answer(&mut kiln(&["--help"]))?;
    for command in ["serve", "work", "migrate", "keys", "modes", "doctor", "config"] {
        assert!(text.contains(&format!("\n  {command}")), "{command}: {text}");
    }
    Ok(())
}

#[test]
fn modes_are_listed_for_people_and_for_programs() -> Result<()> {
    let text = answer(&mut kiln(&["modes"]))?;
    assert_eq!(text.lines().count(), 24, "{text}");
    assert!(text.contains("fal-ai/ltx23-trainer-v2/ic-lora/av2av"), "{text}");
    let list: Vec<Value> = serde_json::from_str(&answer(&mut kiln(&["modes", "--format", "json"]))?)?;
    assert_eq!(list.len(), 23);
    let path = list[0]["path"].as_str().context("a path")?;
    assert_eq!(list[0]["endpoint_id"], format!("fal-ai/ltx23-trainer-v2/{path}"));
    Ok(())
}

#[test]
fn a_wrong_configuration_is_refused_with_file_line_and_the_nearest_key() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kiln.toml");
    std::fs::write(&file, "[serve]\nlistn = \"127.0.0.1:1\"\n\n[queue]\nlease_seconds = \"long\"\n")?;
    let (_, text) = refusal(kiln(&["serve", "--config"]).arg(&file).env("KILN_LOG_FORMAT", "xml"))?;
    for line in [
        format!("{}:2: there is no setting serve.listn; did you mean serve.listen?", file.display()),
        format!(
            "{}:5: queue.lease_seconds must be a whole number from 1 to 3600, not \"long\"",
            file.display()
        ),
        "KILN_LOG_FORMAT: log.format must be \"text\" or \"json\", not \"xml\"".to_owned(),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    Ok(())
}

#[test]
fn a_missing_configuration_file_is_named() -> Result<()> {
    let (_, text) = refusal(&mut kiln(&["doctor", "--config", "/nowhere/kiln.toml"]))?;
    assert!(text.contains("/nowhere/kiln.toml cannot be read"), "{text}");
    Ok(())
}

#[test]
fn the_effective_configuration_says_where_each_value_is_from() -> Result<()> {
    let text = answer(
        kiln(&["config", "--log", "debug"])
            .env("KILN_QUEUE_LEASE_SECONDS", "9")
            .env("DATABASE_URL", "postgres://kiln:hunter2@db/kiln"),
    )?;
    let row = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("log.filter"), "\"debug\" (--log)");
    assert_eq!(row("queue.lease_seconds"), "9 (KILN_QUEUE_LEASE_SECONDS)");
    assert_eq!(row("serve.listen"), "\"127.0.0.1:8080\" (default)");
    assert_eq!(row("database.url"), "\"(not shown)\" (DATABASE_URL)");
    assert!(!text.contains("hunter2"));
    Ok(())
}

#[test]
fn a_server_without_keys_stays_on_loopback() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_, text) = refusal(
        kiln(&["serve", "--insecure-no-auth", "--listen", "0.0.0.0:0", "--data-dir"]).arg(folder.path()),
    )?;
    assert!(text.contains("accepted for a loopback address only"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0, "nothing was started for it");
    Ok(())
}

#[test]
fn a_taken_port_is_said_before_anything_is_started() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let (_, text) = refusal(kiln(&["serve", "--listen", &address, "--data-dir"]).arg(folder.path()))?;
    assert!(text.contains(&format!("cannot listen on {address}")), "{text}");
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
    Ok(())
}

#[test]
fn a_worker_without_a_trainer_starts_nothing_and_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_, text) = refusal(kiln(&["work", "--data-dir"]).arg(folder.path()))?;
    assert!(text.contains("this build has no trainer, so it claims no jobs"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() -> Result<()> {
    let database = pg::database().await?;
    let keys = |arguments: &[&str]| {
        let mut command = kiln(&[&["keys"], arguments].concat());
        command.env("KILN_DATABASE_URL", database.url());
        command
    };
    assert_eq!(answer(&mut keys(&["list"]))?, "There are no keys. Make one: kiln keys create NAME\n");
    let text = answer(&mut keys(&["create", "laptop"]))?;
    let (id, secret) = text.trim().split_once(':').context("a key has a colon")?;
    let list = answer(&mut keys(&["list"]))?;
    assert!(list.contains(id) && list.contains("laptop") && !list.contains(secret), "{list}");
    answer(&mut keys(&["revoke", id]))?;
    let list: Value = serde_json::from_str(&answer(&mut keys(&["list", "--format", "json"]))?)?;
    assert!(list[0]["revoked_at"].is_string(), "{list}");
    let (_, text) = refusal(&mut keys(&["revoke", "nobody"]))?;
    assert!(text.contains("there is no valid key with the id \"nobody\""), "{text}");
    Ok(())
}

#[tokio::test]
async fn migrating_twice_changes_nothing_the_second_time() -> Result<()> {
    let database = pg::empty_database().await?;
    let migrate = || answer(kiln(&["migrate"]).env("KILN_DATABASE_URL", database.url()));
    let first = migrate()?;
    assert!(first.contains("applied, now at version"), "{first}");
    let second = migrate()?;
    assert!(second.contains("already at version"), "{second}");
    Ok(())
}

#[tokio::test]
async fn the_doctor_says_what_is_good_and_what_to_do_about_the_rest() -> Result<()> {
    let database = pg::database().await?;
    let folder = tempfile::tempdir()?;
    let mut doctor = kiln(&["doctor", "--data-dir"]);
    // The exit status is left open: the machine's disk may be nearly full.
    let good = out(&doctor.arg(folder.path()).env("KILN_DATABASE_URL", database.url()).output()?);
    assert!(good.contains("ok   database") && good.contains("tables up to date"), "{good}");
    assert!(good.contains("ok   storage"), "{good}");
    assert!(good.contains("GiB free in"), "{good}");

    let mut doctor = kiln(&["doctor", "--data-dir"]);
    doctor.arg(Path::new("/proc/kiln")).env("KILN_DATABASE_URL", "postgres://kiln:hunter2@127.0.0.1:1/kiln");
    let (text, errors) = refusal(&mut doctor)?;
    assert!(
        text.contains("BAD  database") && text.contains("check database.url (postgres://kiln:…@"),
        "{text}"
    );
    assert!(text.contains("BAD  storage") && text.contains("set data_dir to another one"), "{text}");
    assert!(!text.contains("hunter2") && !errors.contains("hunter2"), "{text}{errors}");
    Ok(())
}

#[test]
fn the_first_start_makes_a_private_database_and_prints_a_key_once() -> Result<()> {
    // The user that Postgres runs as must be able to enter the folder.
    let folder = tempfile::Builder::new().prefix("kiln-first-").tempdir_in("/tmp")?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let serve = |log: &str| {
        let mut command = kiln(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        Process::start(command.arg(folder.path()), folder.path().join(log))
    };
    let stop = |mut server: Process| -> Result<()> {
        server.signal(Signal::TERM)?;
        let status = server.wait(LONG)?;
        ensure!(status.success(), "{status}\n{}", server.log_tail());
        Ok(())
    };
    let server = serve("first.log")?;
    let key = server.line("FAL_KEY=", LONG)?;
    server.line("kiln listens on http://127.0.0.1:", LONG)?;
    assert!(folder.path().join("postgres").is_dir());

    // A second process on the folder shares the database, and prints no key.
    let beside = serve("second.log")?;
    let line = beside.line("", LONG)?;
    assert!(line.starts_with("kiln listens on "), "{line}");
    let list = answer(kiln(&["keys", "list", "--data-dir"]).arg(folder.path()))?;
    assert_eq!(list.lines().count(), 2, "{list}");
    stop(server)?;
    stop(beside)?;
    let secret = key.split_once(':').context("a key has a colon")?.1;
    for log in ["first.log", "second.log"] {
        let text = std::fs::read_to_string(folder.path().join(log))?;
        assert!(!text.contains(secret), "the key is in {log}");
    }
    Ok(())
}
