//! The official clients, unchanged, against a real server process and the scripted worker: each in every way of
//! pointing it at kiln by configuration alone.
//!
//! The cases are in `js/suite.mjs` and `python/suite.py`. The clients are installed once, at pinned versions, into
//! cargo's folder for test files.

mod certificate;

use anyhow::{Context as _, Result, ensure};
use kiln_tests::{
    clients,
    clients::SUITE,
    house::{House, START, Server},
    programs,
};
use std::{path::Path, process::Command};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/clients");

/// Runs one client's suite in one way, on a kiln of its own.
async fn run(command: &mut Command, way: &str) -> Result<()> {
    let database = testkit::pg::database().await?;
    let house = House::new(programs!(), &database.url())?;
    let server = house.serve().await?;
    let base = server.base.clone();
    suite(command, way, &house, &server, &base)
}

/// Runs one client's suite on a kiln that is there.
fn suite(command: &mut Command, way: &str, house: &House, server: &Server, base: &str) -> Result<()> {
    let _worker = house.work()?;
    let key = server.key.clone().context("the first server prints a key")?;
    command.arg(way).env("KILN_URL", base).env("FAL_KEY", key);
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("cases"),
        "{way}: {}\n{text}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        server.process.log_tail()
    );
    Ok(())
}

fn node() -> Result<Command> {
    clients!().node()
}

fn python() -> Result<Command> {
    clients!().python()
}

fn js_suite(command: &mut Command) -> &mut Command {
    command.arg(Path::new(SUITE).join("js/suite.mjs"))
}

fn python_suite(command: &mut Command) -> &mut Command {
    command.arg(Path::new(SUITE).join("python/suite.py"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_works_by_a_proxy_url() -> Result<()> {
    run(js_suite(&mut node()?), "proxy").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_works_by_request_middleware() -> Result<()> {
    run(js_suite(&mut node()?), "middleware").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_works_by_a_preload() -> Result<()> {
    let mut node = node()?;
    node.arg("--import").arg(Path::new(CLIENTS).join("preload.mjs"));
    run(js_suite(&mut node), "preload").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_by_its_module_constants() -> Result<()> {
    run(python_suite(&mut python()?), "constants").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_by_sitecustomize() -> Result<()> {
    let mut python = python()?;
    python.env("PYTHONPATH", CLIENTS);
    run(python_suite(&mut python), "sitecustomize").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_by_its_environment_over_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificate = certificate::make(folder.path())?;
    let database = testkit::pg::database().await?;
    let house = House::new(programs!(), &database.url())?
        .with("KILN_SERVE_TLS_LISTEN", "127.0.0.1:0")
        .with("KILN_SERVE_TLS_CERTIFICATE", certificate.chain.display())
        .with("KILN_SERVE_TLS_KEY", certificate.key.display());
    let server = house.serve().await?;
    let address = server.process.line("kiln listens on https://", START)?;
    let mut python = python()?;
    python
        .env("FAL_RUN_HOST", format!("{address}/run"))
        .env("FAL_QUEUE_RUN_HOST", format!("{address}/queue"))
        .env("SSL_CERT_FILE", &certificate.authority);
    suite(python_suite(&mut python), "environment", &house, &server, &format!("https://{address}"))
}
