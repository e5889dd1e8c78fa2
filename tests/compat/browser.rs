//! `make browser`: the official JavaScript client in a page of a real Chromium, on another origin than the server's.
//!
//! No part of `make test`, because Chromium is large: `make browser` installs it. The cases are in `browser/page.mjs`,
//! which reports to the server that the page came from.

use anyhow::{Context as _, Result, ensure};
use axum::{
    Json, Router,
    response::Html,
    routing::{get, post},
};
use kiln_tests::{
    clients,
    clients::{checked, npm_ci},
    house::House,
    programs,
};
use serde::Deserialize;
use serde_json::json;
use std::{process::Command, time::Duration};
use testkit::process::Process;
use tokio::{net::TcpListener, sync::mpsc};

/// For all cases together, on a slow machine.
const CASES: Duration = Duration::from_secs(180);
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>kiln</title><script type="module" src="/page.js"></script>"#;

/// How one case of the page went.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    ok: bool,
    #[serde(default)]
    ms: u64,
    #[serde(default)]
    reason: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_on_another_origin_uploads_subscribes_and_downloads() -> Result<()> {
    let database = testkit::pg::database().await?;
    let house = House::new(programs!(), &database.url())?;
    let server = house.serve().await?;
    let _worker = house.work()?;
    let key = server.key.clone().context("the first server prints a key")?;
    let (reported, mut reports) = mpsc::channel(1);
    let address = serve_page(json!({ "base": server.base, "key": key }), reported).await?;

    let mut chromium = Command::new("chromium");
    chromium
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        // The page's two origins are all that it can reach.
        .args(["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", house.folder().join("chromium").display()))
        .arg(&address);
    let chromium = Process::start(&mut chromium, house.folder().join("chromium.log"))?;
    let report = tokio::time::timeout(CASES, reports.recv()).await.ok().flatten();
    let report = report.with_context(|| format!("the page does not report\n{}", chromium.log_tail()))?;
    for case in &report {
        println!("{} {} ({} ms)", if case.ok { "ok  " } else { "FAIL" }, case.name, case.ms);
    }
    let failed: Vec<String> =
        report.iter().filter(|case| !case.ok).map(|case| format!("{}: {}", case.name, case.reason)).collect();
    ensure!(
        failed.is_empty(),
        "{}\n{}\n{}",
        failed.join("\n"),
        chromium.log_tail(),
        server.process.log_tail()
    );
    ensure!(!report.is_empty(), "the page ran no case");
    Ok(())
}

/// The page, its settings and the place that it reports to, on a port of their own; gives the address.
async fn serve_page(settings: serde_json::Value, reported: mpsc::Sender<Vec<Case>>) -> Result<String> {
    let folder =
        clients!().installed("browser", &["package.json", "package-lock.json", "page.mjs"], |folder| {
            npm_ci(folder)?;
            let mut esbuild = Command::new(folder.join("node_modules/.bin/esbuild"));
            esbuild.args(["page.mjs", "--bundle", "--format=esm", "--target=es2022", "--outfile=page.js"]);
            checked(esbuild.current_dir(folder))
        })?;
    let script = std::fs::read_to_string(folder.join("page.js"))?;
    let report = move |body: String| async move {
        let cases = serde_json::from_str(&body).unwrap_or_default();
        // Nobody waits any more once the time is up.
        let _ = reported.send(cases).await;
    };
    let app = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/page.js", get(|| async { ([("content-type", "text/javascript; charset=utf-8")], script) }))
        .route("/settings.json", get(|| async { Json(settings) }))
        .route("/report", post(report));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}
