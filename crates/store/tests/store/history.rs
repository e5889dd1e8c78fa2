//! Lists and deletions.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use spec::Failure;
use store::{Answer, Deletion, Error, ListFilter, ListKind, Logs, NewJob, State, Store, Work};
use uuid::Uuid;

use crate::common::*;

async fn ids(store: &Store, filter: ListFilter) -> Result<Vec<Uuid>> {
    Ok(store.list(filter).await?.items.into_iter().map(|item| item.id).collect())
}

/// 1 completed, 2 born failed, 3 failed with 500, 4 runs, 5 waits on another path; accepted one second apart.
async fn history() -> Result<(testkit::pg::Database, Store)> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { input: Some(json!({ "rank": 8 })), ..job(1) }).await?;
    let claim_1 = claim(&store).await?;
    store.finish(&claim_1.lease, &outcome()).await?;
    let second = at(&db, noon() + seconds(1)).await?;
    submit(&second, NewJob::new(id(2), PATH, Work::BornFailed(user_failure()))).await?;
    let third = at(&db, noon() + seconds(2)).await?;
    let claim_3 = running(&third, 3).await?;
    third.fail(&claim_3.lease, &Failure::internal("x")).await?;
    running(&at(&db, noon() + seconds(3)).await?, 4).await?;
    submit(&at(&db, noon() + seconds(4)).await?, job_on(OTHER, 5)).await?;
    Ok((db, store))
}

#[tokio::test]
async fn lists_are_newest_first_and_filtered() -> Result<()> {
    let (_db, store) = history().await?;
    let all = ListFilter { unfinished: true, ..ListFilter::default() };
    assert_eq!(ids(&store, ListFilter::default()).await?, [id(3), id(2), id(1)]);
    assert_eq!(ids(&store, all.clone()).await?, [id(5), id(4), id(3), id(2), id(1)]);
    let kind = |kind| ListFilter { kind: Some(kind), ..all.clone() };
    assert_eq!(ids(&store, kind(ListKind::Success)).await?, [id(1)]);
    assert_eq!(ids(&store, kind(ListKind::UserError)).await?, [id(2)]);
    assert_eq!(ids(&store, kind(ListKind::Error)).await?, [id(3)]);
    let other = ListFilter { paths: Some(vec![OTHER.to_owned()]), ..all.clone() };
    assert_eq!(ids(&store, other).await?, [id(5)]);
    let window =
        ListFilter { from: Some(noon() + seconds(1)), until: Some(noon() + seconds(3)), ..all.clone() };
    assert_eq!(ids(&store, window).await?, [id(3), id(2)]);
    let one = |n| ListFilter { request_id: Some(id(n)), ..all.clone() };
    assert_eq!(ids(&store, one(4)).await?, [id(4)]);
    assert!(ids(&store, one(99)).await?.is_empty());
    assert!(ids(&store, ListFilter { until: Some(noon()), ..one(4) }).await?.is_empty());
    assert!(ids(&store, ListFilter { from: Some(noon() + seconds(60)), ..one(4) }).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn payloads_come_only_when_asked_for() -> Result<()> {
    let (_db, store) = history().await?;
    let one = ListFilter { request_id: Some(id(1)), ..ListFilter::default() };
    let bare = store.list(one.clone()).await?.items.remove(0);
    assert_eq!((bare.input, bare.answer, bare.http_status), (None, None, Some(200)));
    assert_eq!(
        (bare.state, bare.started_at, bare.inference_seconds),
        (State::Completed, Some(noon()), Some(0.0))
    );
    let full = store.list(ListFilter { payloads: true, ..one }).await?.items.remove(0);
    assert_eq!((full.input, full.answer), (Some(json!({ "rank": 8 })), Some(Answer::Completed(outcome()))));
    Ok(())
}

#[tokio::test]
async fn pages_follow_each_other_without_gaps_even_at_one_moment() -> Result<()> {
    let (_db, store) = fresh_at(noon()).await?;
    for n in 0..7 {
        submit(&store, job(n)).await?;
    }
    let mut filter = ListFilter { unfinished: true, limit: 3, ..ListFilter::default() };
    let mut pages = Vec::new();
    loop {
        let page = store.list(filter.clone()).await?;
        pages.push(page.items.into_iter().map(|item| item.id).collect::<Vec<_>>());
        let Some(next) = page.next_cursor else { break };
        filter.cursor = Some(next);
    }
    assert_eq!(pages, [vec![id(6), id(5), id(4)], vec![id(3), id(2), id(1)], vec![id(0)]]);
    filter.cursor = Some("nonsense".to_owned());
    assert!(matches!(store.list(filter).await, Err(Error::BadCursor)));
    Ok(())
}

#[tokio::test]
async fn a_deleted_request_answers_as_unknown_and_gives_its_files_back() -> Result<()> {
    let (db, store) = fresh().await?;
    assert_eq!(store.delete_payloads(id(1)).await?, Deletion::NotFound);
    submit(&store, NewJob { webhook_url: Some("https://hook.example/".to_owned()), ..job(1) }).await?;
    assert_eq!(store.delete_payloads(id(1)).await?, Deletion::NotFinished);
    let claim = claim(&store).await?;
    store.append(&claim.lease, &[line("x")]).await?;
    store.finish(&claim.lease, &outcome()).await?;
    assert_eq!(store.delete_payloads(id(1)).await?, Deletion::Deleted { outcome: Some(outcome()) });
    assert_eq!((store.status(id(1), Logs::All).await?, store.result(id(1)).await?), (None, None));
    assert_eq!(store.wait_final(id(1)).await?, None);
    assert_eq!(store.delete_payloads(id(1)).await?, Deletion::NotFound);
    assert_eq!(store.due_webhooks(9, 9, &[], Duration::from_secs(1)).await?, []);
    let left: (i64, bool) = sqlx::query_as(
        "select (select count(*) from job_events), bool_and(coalesce(input, spec, plan, outcome, failure) is null) from jobs",
    )
    .fetch_one(&mut db.connect().await?)
    .await?;
    assert_eq!(left, (0, true));
    let listed = store.list(ListFilter { payloads: true, ..ListFilter::default() }).await?.items.remove(0);
    assert_eq!((listed.deleted, listed.answer, listed.http_status), (true, None, Some(200)));
    Ok(())
}

#[tokio::test]
async fn deleting_a_failed_request_works_too() -> Result<()> {
    let (_db, store) = fresh().await?;
    submit(&store, NewJob::new(id(1), PATH, Work::BornFailed(user_failure()))).await?;
    assert_eq!(store.delete_payloads(id(1)).await?, Deletion::Deleted { outcome: None });
    Ok(())
}
