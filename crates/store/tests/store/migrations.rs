//! Bringing a database up to date.

use anyhow::Result;
use sqlx::Executor;
use store::{Error, Options, Store};
use testkit::pg;

#[tokio::test]
async fn several_processes_may_migrate_an_empty_database_at_once() -> Result<()> {
    let db = pg::empty_database().await?;
    let url = db.url();
    let results = futures_util::future::join_all((0..4).map(|_| Store::migrate(&url))).await;
    let mut applied = Vec::new();
    for migrated in results {
        let migrated = migrated?;
        assert_eq!(migrated.version, 3);
        applied.extend(migrated.applied);
    }
    assert!(Store::migrate(&url).await?.applied.is_empty());
    let stored: i64 = sqlx::query_scalar("select count(*) from _sqlx_migrations")
        .fetch_one(&mut db.connect().await?)
        .await?;
    assert_eq!(stored, 3);
    assert!((1..=3).all(|version| applied.contains(&version)));
    Ok(())
}

#[tokio::test]
async fn connecting_migrates() -> Result<()> {
    let db = pg::empty_database().await?;
    let store = Store::connect(&db.url(), Options { max_connections: 2, ..Options::default() }).await?;
    assert_eq!(store.counts().await?, []);
    Ok(())
}

#[tokio::test]
async fn a_database_of_a_newer_kiln_is_refused() -> Result<()> {
    let db = pg::database().await?;
    db.connect()
        .await?
        .execute(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
            values (9999, 'of the future', true, '', 0)",
        )
        .await?;
    let error = Store::migrate(&db.url()).await.expect_err("it is newer");
    assert!(matches!(error, Error::Migrate(_)) && error.to_string().contains("9999"), "{error}");
    Ok(())
}

#[tokio::test]
async fn an_unusable_address_is_said_to_be_one() {
    let error = Store::migrate("mysql://x").await.expect_err("not ours");
    assert!(matches!(error, Error::Config(_)), "{error}");
}

#[test]
fn every_column_says_what_it_means() {
    let types =
        [" uuid", " text", " bigint", " integer", " smallint", " json", " timestamptz", " boolean", " bytea"];
    for (name, text) in [
        ("0001", include_str!("../../../../migrations/0001_queue.sql")),
        ("0002", include_str!("../../../../migrations/0002_keys_and_uploads.sql")),
    ] {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let mut columns = 0;
        for pair in lines.windows(2) {
            let word = pair[1].split(' ').next().unwrap_or_default();
            if types.iter().any(|kind| pair[1].strip_prefix(word).is_some_and(|rest| rest.starts_with(kind)))
            {
                assert!(pair[0].starts_with("--"), "{name}: {} lacks its comment", pair[1]);
                columns += 1;
            }
        }
        assert!(columns > 20, "{name}: {columns} columns were found");
    }
}
