//! A job table with a past, made by SQL in bulk: a million rows one by one would take an hour.

use anyhow::Result;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use testkit::pg::DurableCluster;

/// Rows in one statement.
const AT_ONCE: u32 = 100_000;

/// Empties the job table and fills it with finished and waiting rows, over all queues.
pub(crate) async fn fill(cluster: &DurableCluster, finished: u32, waiting: u32, body: &str) -> Result<()> {
    let mut connection = PgConnection::connect(cluster.url()).await?;
    // Neither triggers nor flushes for rows that nobody waits for.
    connection.execute("set session_replication_role = replica; set synchronous_commit = off").await?;
    connection.execute("truncate jobs, job_events, webhook_deliveries").await?;
    let paths: Vec<&str> = spec::modes().iter().map(|mode| mode.path).collect();
    let path = format!("('{{{}}}'::text[])[1 + n % {}]", paths.join(","), paths.len());
    let outcome = r#"{"lora_file":{},"config_file":{}}"#;
    for from in (0..finished).step_by(AT_ONCE as usize) {
        let to = (from + AT_ONCE).min(finished);
        insert(
            &mut connection,
            &format!(
                "insert into jobs (id, path, priority, state, input, spec, max_attempts, attempt, worker, http_status,
                    outcome, created_at, started_at, finished_at)
                 select gen_random_uuid(), {path}, 0, 'completed', '{body}', '{body}', 5, 1, 'w', 200, '{outcome}',
                    t, t + interval '1 minute', t + interval '20 minutes'
                 from (select n, now() - make_interval(secs => {finished} - n + 1500) as t
                       from generate_series({from}, {to} - 1) as n) as rows"
            ),
        )
        .await?;
    }
    // Each waiting row holds the request of its own mode, so that a claim reads it back as a worker does.
    for (number, mode) in spec::modes().iter().enumerate() {
        let request: serde_json::Value = serde_json::from_str(body)?;
        let spec =
            spec::parse(mode, &least(mode, request)).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        let spec = serde_json::to_string(&spec)?.replace('\'', "''");
        let modes = spec::modes().len();
        insert(
            &mut connection,
            &format!(
                "insert into jobs (id, path, priority, state, input, spec, max_attempts, created_at)
                 select gen_random_uuid(), '{}', n / {modes} % 2, 'queued', '{body}', '{spec}', 5, now()
                 from generate_series(0, {waiting} - 1) as n where n % {modes} = {number}",
                mode.path
            ),
        )
        .await?;
    }
    connection.execute("vacuum analyze jobs").await?;
    connection.execute("checkpoint").await?;
    connection.close().await?;
    Ok(())
}

/// The request with what the mode asks for besides.
fn least(mode: &spec::Mode, mut request: serde_json::Value) -> serde_json::Value {
    for (name, value) in [("crop_top_left", [0, 0]), ("crop_bottom_right", [256, 256])] {
        if mode.field(name).is_some() {
            request[name] = value.into();
        }
    }
    request
}

async fn insert(connection: &mut PgConnection, sql: &str) -> Result<()> {
    connection.execute(AssertSqlSafe(sql.to_owned())).await?;
    Ok(())
}
