//! Uploads: rows of files that clients bring.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use store::{Completed, Doomed, Lifecycle, NewUpload, Part, Recorded, Store, StoredObject};
use testkit::pg::Database;

use crate::common::*;

const HOUR: Duration = Duration::from_secs(3600);

fn upload(n: u128) -> NewUpload {
    NewUpload {
        id: id(n),
        file_name: "clips.zip".to_owned(),
        content_type: "application/zip".to_owned(),
        secret_hash: [7; 32],
        key_id: Some("owner".to_owned()),
        lifecycle: Lifecycle { keep: None, acl: Some(json!({ "default": "allow" })) },
        open_for: HOUR,
        job: None,
    }
}

fn object(key: &str, bytes: u64) -> StoredObject {
    StoredObject { key: key.to_owned(), bytes }
}

fn part(number: u32, key: &str, bytes: u64) -> Part {
    Part { number, object: object(key, bytes), etag: format!("etag-{key}") }
}

async fn doomed(store: &Store) -> Result<Vec<Doomed>> {
    Ok(store.due_removals(100, HOUR).await?.into_iter().map(|removal| removal.what).collect())
}

async fn record(store: &Store, n: u128, part: &Part) -> Result<Recorded> {
    Ok(store.record_part(id(n), part, 1000, HOUR).await?)
}

#[tokio::test]
async fn an_upload_is_open_until_its_object_is_recorded() -> Result<()> {
    let (_db, store) = fresh_at(noon()).await?;
    store.create_upload(&upload(1)).await?;
    store.create_upload(&upload(1)).await?;
    let open = store.upload(id(1)).await?.expect("it exists");
    assert_eq!(
        (open.content, open.secret_hash, open.acl),
        (None, [7; 32], Some(json!({ "default": "allow" })))
    );
    assert_eq!((open.created_at, open.expires_at), (noon(), Some(noon() + seconds(3600))));
    let Completed::Done(content) = store.complete_upload(id(1), &object("a", 42), "tag").await? else {
        anyhow::bail!("not complete")
    };
    assert_eq!((content.bytes, content.etag.as_str(), content.completed_at), (42, "tag", noon()));
    let done = store.upload(id(1)).await?.expect("it exists");
    assert_eq!((done.content.as_ref(), done.expires_at), (Some(&content), None));
    // The first object wins; the same bytes again are a repetition.
    assert_eq!(
        store.complete_upload(id(1), &object("a", 42), "tag").await?,
        Completed::Done(content.clone())
    );
    assert_eq!(store.complete_upload(id(1), &object("b", 42), "tag").await?, Completed::Done(content));
    assert_eq!(store.complete_upload(id(1), &object("b", 1), "other").await?, Completed::NotOpen);
    assert_eq!(store.upload(id(2)).await?, None);
    assert_eq!(store.complete_upload(id(2), &object("a", 1), "x").await?, Completed::NotOpen);
    Ok(())
}

#[tokio::test]
async fn the_listed_parts_by_number_are_the_file() -> Result<()> {
    let (_db, store) = fresh().await?;
    store.create_upload(&upload(1)).await?;
    for recorded in [part(3, "c", 3), part(1, "a", 1), part(2, "b", 2), part(9, "unlisted", 9)] {
        assert_eq!(record(&store, 1, &recorded).await?, Recorded::Done);
    }
    let list: Vec<(u32, String)> =
        [(2, "b"), (3, "c"), (1, "a")].map(|(number, key)| (number, format!("etag-{key}"))).to_vec();
    let Completed::Done(content) = store.complete_parts(id(1), &list).await? else {
        anyhow::bail!("not complete")
    };
    assert_eq!(content.objects, [object("a", 1), object("b", 2), object("c", 3)]);
    assert_eq!(content.bytes, 6);
    assert!(content.etag.ends_with("-3"), "{}", content.etag);
    assert_eq!(store.complete_parts(id(1), &list).await?, Completed::Done(content), "a repetition");
    assert_eq!(store.complete_parts(id(1), &list[..2]).await?, Completed::NotOpen, "another file");
    assert_eq!(record(&store, 1, &part(4, "late", 1)).await?, Recorded::NotOpen);
    assert_eq!(doomed(&store).await?, [Doomed::Object("unlisted".into())]);
    Ok(())
}

#[tokio::test]
async fn a_part_sent_again_replaces_the_first_write_and_dooms_its_object() -> Result<()> {
    let (_db, store) = fresh().await?;
    store.create_upload(&upload(1)).await?;
    record(&store, 1, &part(1, "first", 1)).await?;
    record(&store, 1, &part(1, "first", 1)).await?;
    assert_eq!(doomed(&store).await?, [], "a repetition of the same write");
    record(&store, 1, &part(1, "second", 2)).await?;
    assert_eq!(doomed(&store).await?, [Doomed::Object("first".into())]);
    assert_eq!(store.complete_parts(id(1), &[(1, "etag-first".into())]).await?, Completed::OtherEtag(1));
    assert_eq!(store.complete_parts(id(1), &[(2, "x".into())]).await?, Completed::NoPart(2));
    assert!(matches!(store.complete_parts(id(1), &[(1, "etag-second".into())]).await?, Completed::Done(_)));
    Ok(())
}

#[tokio::test]
async fn all_parts_together_stay_within_the_limit_however_they_race() -> Result<()> {
    let (_db, store) = fresh().await?;
    store.create_upload(&upload(1)).await?;
    let parts: Vec<Part> = (1..=10).map(|number| part(number, &format!("k{number}"), 300)).collect();
    let recorded =
        futures_util::future::try_join_all(parts.iter().map(|part| record(&store, 1, part))).await?;
    let fitting = recorded.iter().filter(|recorded| **recorded == Recorded::Done).count();
    assert_eq!(fitting, 3, "3 × 300 of 1000: {recorded:?}");
    assert!(recorded.iter().all(|recorded| matches!(recorded, Recorded::Done | Recorded::TooLarge)));
    Ok(())
}

#[tokio::test]
async fn one_of_two_completions_at_once_wins() -> Result<()> {
    let (_db, store) = fresh().await?;
    store.create_upload(&upload(1)).await?;
    let objects: Vec<StoredObject> = (0..6).map(|n| object(&format!("k{n}"), n)).collect();
    let tags: Vec<String> = (0..6).map(|n| format!("tag{n}")).collect();
    let complete = |n: usize| store.complete_upload(id(1), &objects[n], &tags[n]);
    let done = futures_util::future::try_join_all((0..6).map(complete)).await?;
    assert_eq!(done.iter().filter(|done| matches!(done, Completed::Done(_))).count(), 1, "{done:?}");
    Ok(())
}

/// The same database at another time.
async fn after(db: &Database, time: i64) -> Result<Store> {
    at(db, noon() + seconds(time)).await
}

#[tokio::test]
async fn uploads_and_files_go_when_their_time_is_over() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    for n in 1..=3 {
        let keep = (n == 2).then_some(Duration::from_secs(60));
        store.create_upload(&NewUpload { lifecycle: Lifecycle { keep, acl: None }, ..upload(n) }).await?;
    }
    for n in 1..=2 {
        store.complete_upload(id(n), &object("a", 1), "t").await?;
    }
    assert_eq!(store.expire_files(9).await?, 0);
    assert_eq!(after(&db, 59).await?.upload(id(2)).await?.map(|upload| upload.id), Some(id(2)));
    let later = after(&db, 61).await?;
    assert_eq!(later.upload(id(2)).await?, None, "gone before it is swept");
    assert_eq!(later.expire_files(9).await?, 1);
    let much_later = after(&db, 3601).await?;
    assert_eq!(much_later.complete_upload(id(3), &object("a", 1), "t").await?, Completed::NotOpen);
    assert_eq!(much_later.expire_files(9).await?, 1);
    let mut gone = doomed(&much_later).await?;
    gone.sort_by_key(|what| format!("{what:?}"));
    assert_eq!(gone, [Doomed::Upload(id(2)), Doomed::Upload(id(3))]);
    assert!(after(&db, 1_000_000).await?.upload(id(1)).await?.is_some(), "kept until told otherwise");
    Ok(())
}

#[tokio::test]
async fn each_part_keeps_an_upload_open() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    store.create_upload(&upload(1)).await?;
    let later = after(&db, 3000).await?;
    record(&later, 1, &part(1, "a", 1)).await?;
    let open = after(&db, 6000).await?;
    assert!(open.upload(id(1)).await?.is_some());
    assert_eq!(after(&db, 6601).await?.upload(id(1)).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_file_inside_a_request_goes_with_it_or_a_day_after_it_was_refused() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    for n in [1, 2] {
        store.create_upload(&NewUpload { job: Some(id(n)), ..upload(n) }).await?;
        store.complete_upload(id(n), &object("a", 1), "t").await?;
    }
    let claim = running(&store, 1).await?;
    store.finish(&claim.lease, &outcome()).await?;
    let later = after(&db, 2 * 86_400).await?;
    assert_eq!(later.expire_files(9).await?, 1, "request 2 was never accepted");
    assert!(later.upload(id(1)).await?.is_some());
    later.delete_payloads(id(1)).await?;
    assert_eq!(later.upload(id(1)).await?, None);
    let mut gone = doomed(&later).await?;
    gone.sort_by_key(|what| format!("{what:?}"));
    assert_eq!(gone, [Doomed::Job(id(1)), Doomed::Upload(id(1)), Doomed::Upload(id(2))]);
    Ok(())
}

#[tokio::test]
async fn deleting_an_upload_dooms_its_objects() -> Result<()> {
    let (_db, store) = fresh().await?;
    store.create_upload(&upload(1)).await?;
    record(&store, 1, &part(1, "a", 1)).await?;
    assert!(store.delete_upload(id(1)).await?);
    assert!(!store.delete_upload(id(1)).await?);
    assert_eq!(doomed(&store).await?, [Doomed::Upload(id(1))]);
    Ok(())
}

#[tokio::test]
async fn the_objects_that_rows_name_are_known() -> Result<()> {
    let (_db, store) = fresh().await?;
    for n in 1..=3 {
        store.create_upload(&upload(n)).await?;
    }
    store.complete_upload(id(1), &object("whole", 1), "t").await?;
    record(&store, 2, &part(1, "part", 1)).await?;
    let mut named = store.named_objects(&[id(1), id(2), id(3), id(9)]).await?;
    named.sort();
    assert_eq!(named, ["part", "whole"]);
    assert_eq!(store.named_objects(&[]).await?, Vec::<String>::new());
    Ok(())
}
