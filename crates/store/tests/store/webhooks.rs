//! The outbox.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use spec::Failure;
use store::{Answer, Error, NewJob, Store, Work};

use crate::common::*;

const HOLD: Duration = Duration::from_secs(30);

async fn cancelled_with_webhook(store: &Store, n: u128) -> Result<()> {
    submit(store, NewJob { webhook_url: Some(format!("https://hook.example/{n}")), ..job(n) }).await?;
    store.request_cancel(id(n), Failure::cancelled()).await?;
    Ok(())
}

#[tokio::test]
async fn a_due_delivery_is_held_by_one_sender_and_comes_back_when_it_dies() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    cancelled_with_webhook(&store, 1).await?;
    let first = store.due_webhooks(9, 9, &[], HOLD).await?.remove(0);
    assert_eq!((first.job, first.url.as_str(), first.tries), (id(1), "https://hook.example/1", 1));
    assert_eq!((first.created_at, &first.answer), (noon(), &Answer::Failed(Failure::cancelled())));
    assert_eq!(store.due_webhooks(9, 9, &[], HOLD).await?, []);
    let later = at(&db, noon() + seconds(31)).await?;
    let second = later.due_webhooks(9, 9, &[], HOLD).await?.remove(0);
    assert_eq!((second.id, second.tries), (first.id, 2));
    assert!(
        matches!(later.webhook_delivered(&first, 200).await, Err(Error::LeaseLost)),
        "the late report is refused"
    );
    later.webhook_delivered(&second, 204).await?;
    later.webhook_delivered(&second, 204).await?;
    let much_later = at(&db, noon() + seconds(90_000)).await?;
    assert_eq!(much_later.due_webhooks(9, 9, &[], HOLD).await?, [], "delivered is delivered");
    Ok(())
}

#[tokio::test]
async fn a_failed_try_is_due_again_after_its_pause_until_given_up() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    cancelled_with_webhook(&store, 1).await?;
    let first = store.due_webhooks(9, 9, &[], HOLD).await?.remove(0);
    store.webhook_retry(&first, Duration::from_secs(15), Some(503), "busy\0").await?;
    assert_eq!(at(&db, noon() + seconds(14)).await?.due_webhooks(9, 9, &[], HOLD).await?, []);
    let later = at(&db, noon() + seconds(15)).await?;
    let second = later.due_webhooks(9, 9, &[], HOLD).await?.remove(0);
    assert_eq!(second.tries, 2);
    later.webhook_gave_up(&second, None, "no route").await?;
    let row: (String, i32, Option<i16>, Option<String>) =
        sqlx::query_as("select state, tries, http_status, error from webhook_deliveries")
            .fetch_one(&mut db.connect().await?)
            .await?;
    assert_eq!(row, ("gave_up".to_owned(), 2, None, Some("no route".to_owned())));
    assert_eq!(at(&db, noon() + seconds(90_000)).await?.due_webhooks(9, 9, &[], HOLD).await?, []);
    Ok(())
}

#[tokio::test]
async fn senders_that_ask_at_once_share_the_deliveries() -> Result<()> {
    let (_db, store) = fresh().await?;
    for n in 0..30 {
        cancelled_with_webhook(&store, n).await?;
    }
    let taken =
        futures_util::future::try_join_all((0..6).map(|_| store.due_webhooks(10, 10, &[], HOLD))).await?;
    let ids: Vec<i64> = taken.iter().flatten().map(|delivery| delivery.id).collect();
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (30, 30));
    Ok(())
}

#[tokio::test]
async fn a_request_without_a_webhook_has_no_delivery() -> Result<()> {
    let (_db, store) = fresh().await?;
    submit(&store, job(1)).await?;
    store.request_cancel(id(1), Failure::cancelled()).await?;
    assert_eq!(store.due_webhooks(9, 9, &[], HOLD).await?, []);
    Ok(())
}

#[tokio::test]
async fn a_receivers_backlog_holds_up_nobody_else() -> Result<()> {
    let (_db, store) = fresh_at(noon()).await?;
    for n in 1..=20 {
        let url = format!("https://user:pw@slow.example:8443/hook?n={n}");
        submit(&store, NewJob { webhook_url: Some(url), work: Work::BornFailed(user_failure()), ..job(n) })
            .await?;
    }
    let url = Some("http://quick.example/hook".to_owned());
    submit(
        &store,
        NewJob {
            webhook_url: url,
            key_id: Some("k".into()),
            files_url: Some("http://f/cdn".into()),
            work: Work::BornFailed(user_failure()),
            ..job(21)
        },
    )
    .await?;
    let receivers = |due: &[store::Delivery]| due.iter().map(|d| d.receiver.clone()).collect::<Vec<_>>();
    let due = store.due_webhooks(3, 2, &[], HOLD).await?;
    let mut both = receivers(&due);
    both.sort();
    assert_eq!(both, ["quick.example", "slow.example:8443", "slow.example:8443"]);
    let quick = due.iter().find(|d| d.receiver == "quick.example").expect("it is there");
    assert_eq!((quick.key_id.as_deref(), quick.files_url.as_deref()), (Some("k"), Some("http://f/cdn")));
    assert_eq!(store.due_webhooks(9, 9, &["slow.example:8443".into()], HOLD).await?, []);
    assert_eq!(store.due_webhooks(50, 50, &[], HOLD).await?.len(), 18, "the rest");
    Ok(())
}
