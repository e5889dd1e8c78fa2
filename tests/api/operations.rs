//! Health, readiness, metrics.

use crate::support::{Api, SUBMIT, at, id};
use serde_json::json;
use spec::Failure;

#[tokio::test]
async fn a_living_process_says_so() {
    let api = Api::new().await;
    api.get("/health").await.is(200, json!({"status": "ok"}));
}

#[tokio::test]
async fn a_server_with_its_database_is_ready() {
    let api = Api::new().await;
    api.get("/ready").await.is(200, json!({"status": "ready"}));
}

#[tokio::test]
async fn a_server_without_migrations_is_not_ready_but_alive() {
    let api = Api::new().await;
    let mut connection = api.db.connect().await.unwrap();
    sqlx::query("alter function kiln_now() rename to gone").execute(&mut connection).await.unwrap();
    let reply = api.get("/ready").await;
    reply.is(503, json!({"status": "unavailable", "detail": "the database cannot be used"}));
    assert_eq!(api.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_stopping_server_is_not_ready() {
    let api = Api::new().await;
    api.app.shutdown().cancel();
    api.get("/ready")
        .await
        .is(503, json!({"status": "unavailable", "detail": "the server is shutting down"}));
}

#[tokio::test]
async fn metrics_answer_how_long_the_queue_is() {
    let api = Api::new().await;
    for _ in 0..3 {
        api.submit().await;
    }
    api.claim().await;
    let reply = api.get("/metrics").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        r#"kiln_queue_jobs{path="t2v",state="queued"} 2"#,
        r#"kiln_queue_jobs{path="t2v",state="running"} 1"#,
        r#"kiln_queue_oldest_seconds{path="t2v"} 0"#,
        r#"kiln_http_requests_total{route="submit",code="200"} 3"#,
        r#"kiln_http_request_seconds_count{route="submit"} 3"#,
    ] {
        assert!(reply.text().lines().any(|l| l == line), "{line} not in\n{}", reply.text());
    }
}

#[tokio::test]
async fn metrics_count_answers_by_route_and_code() {
    let api = Api::new().await;
    api.get(&at(id(99), "/status")).await;
    api.get("/nothing").await;
    api.get(SUBMIT).await;
    let text = api.get("/metrics").await;
    for line in [
        r#"kiln_http_requests_total{route="status",code="404"} 1"#,
        r#"kiln_http_requests_total{route="none",code="404"} 1"#,
        r#"kiln_http_requests_total{route="none",code="405"} 1"#,
    ] {
        assert!(text.text().lines().any(|l| l == line), "{line} not in\n{}", text.text());
    }
}

#[tokio::test]
async fn metrics_answer_how_jobs_fail_and_how_soon_they_start() {
    let api = Api::new().await;
    api.failed(Failure::workers_lost(1)).await;
    api.post(SUBMIT, &json!({})).await;
    api.finished().await;
    let text = api.get("/metrics").await;
    for line in [
        r#"kiln_recent_failures{kind="runner_disconnected"} 1"#,
        r#"kiln_recent_failures{kind="http_422"} 1"#,
        "kiln_recent_completed 1",
        "kiln_recent_started 2",
        r#"kiln_recent_start_seconds{quantile="0.95"} 0"#,
    ] {
        assert!(text.text().lines().any(|l| l == line), "{line} not in\n{}", text.text());
    }
}

#[tokio::test]
async fn every_metric_line_is_well_formed() {
    let api = Api::new().await;
    api.finished().await;
    let text = api.get("/metrics").await;
    for line in text.text().lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            assert!(comment.starts_with("HELP kiln_") || comment.starts_with("TYPE kiln_"), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("kiln_") && value.parse::<f64>().is_ok(), "{line}");
    }
}
