//! API keys, signing keys, secrets.

use std::time::Duration;

use anyhow::Result;
use store::{Options, Store, Verified};

use crate::common::*;

#[tokio::test]
async fn a_key_opens_and_anything_else_does_not() -> Result<()> {
    let (_db, store) = fresh().await?;
    let key = store.create_key("laptop").await?;
    let other = store.create_key("other").await?;
    let text = key.text.to_string();
    let found = Verified::Key { id: key.id.clone() };
    assert_eq!(store.verify_key(&text).await?, found);
    assert_eq!(store.verify_key(&format!(" {text}\n")).await?, found, "keys are pasted with blanks");
    let (_, other_secret) =
        other.text.to_string().split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a colon");
    for wrong in [
        format!("{text}0"),
        text[..text.len() - 1].to_owned(),
        format!("{}:{other_secret}", key.id),
        format!("{}:x", uuid::Uuid::nil()),
        "a\0b:c".to_owned(),
        format!("{text}{}", "x".repeat(10_000)),
    ] {
        assert_eq!(store.verify_key(&wrong).await?, Verified::Unknown, "{wrong:.60}");
    }
    for malformed in ["", "no colon", ":", "id:", ":secret"] {
        assert_eq!(store.verify_key(malformed).await?, Verified::Malformed, "{malformed}");
    }
    Ok(())
}

#[tokio::test]
async fn the_database_holds_no_secret() -> Result<()> {
    let (db, store) = fresh().await?;
    let key = store.create_key("laptop").await?;
    let (_, secret) =
        key.text.to_string().split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a colon");
    let row: String =
        sqlx::query_scalar("select api_keys::text from api_keys").fetch_one(&mut db.connect().await?).await?;
    assert!(row.contains(&key.id) && !row.contains(&secret));
    assert!(!row.contains(&hex::encode(secret.as_bytes())));
    Ok(())
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_every_process_at_once() -> Result<()> {
    let (db, here) = fresh().await?;
    let there = Store::connect(&db.url(), Options { max_connections: 3, ..Options::default() }).await?;
    let key = here.create_key("laptop").await?;
    let text = key.text.to_string();
    for store in [&here, &there] {
        assert_eq!(store.verify_key(&text).await?, Verified::Key { id: key.id.clone() });
    }
    assert!(here.revoke_key(&key.id).await?);
    assert_eq!(here.verify_key(&text).await?, Verified::Unknown);
    eventually("the other process heard", async || Ok(there.verify_key(&text).await? == Verified::Unknown))
        .await?;
    assert!(!here.revoke_key(&key.id).await? && !here.revoke_key("nobody").await?);
    let listed = here.list_keys().await?;
    assert!(listed[0].revoked_at.is_some() && listed[0].name == "laptop");
    Ok(())
}

#[tokio::test]
async fn the_last_use_is_noted_roughly() -> Result<()> {
    let (_db, store) = fresh_at(noon()).await?;
    let key = store.create_key("laptop").await?;
    assert_eq!(store.list_keys().await?[0].last_used_at, None);
    store.verify_key(&key.text.to_string()).await?;
    eventually("the use is written down", async || {
        Ok(store.list_keys().await?[0].last_used_at == Some(noon()))
    })
    .await
}

#[tokio::test]
async fn the_first_key_is_made_once_whoever_asks() -> Result<()> {
    let (_db, store) = fresh().await?;
    let made = futures_util::future::try_join_all((0..6).map(|_| store.create_first_key("first"))).await?;
    let made: Vec<_> = made.into_iter().flatten().collect();
    assert_eq!((made.len(), store.list_keys().await?.len()), (1, 1));
    assert!(matches!(store.verify_key(&made[0].text.to_string()).await?, Verified::Key { .. }));
    store.revoke_key(&made[0].id).await?;
    assert!(store.create_first_key("again").await?.is_none(), "a revoked key was a key");
    Ok(())
}

#[tokio::test]
async fn the_signing_key_is_made_once_and_stays() -> Result<()> {
    let (db, store) = fresh().await?;
    let all = futures_util::future::try_join_all((0..6).map(|_| store.signing_keys())).await?;
    let again = Store::connect(&db.url(), Options { max_connections: 2, ..Options::default() }).await?;
    let expected = again.signing_keys().await?;
    assert_eq!(expected.len(), 1);
    for keys in all {
        assert_eq!((keys.len(), &keys[0].kid), (1, &expected[0].kid));
        assert_eq!(keys[0].key.to_bytes(), expected[0].key.to_bytes());
    }
    assert!(!format!("{:?}", expected[0]).contains(&hex::encode(expected[0].key.to_bytes())));
    Ok(())
}

#[tokio::test]
async fn secrets_are_the_same_for_everybody_and_differ_by_name() -> Result<()> {
    let (_db, store) = fresh().await?;
    let tokens = futures_util::future::try_join_all((0..6).map(|_| store.secret("tokens"))).await?;
    assert!(tokens.windows(2).all(|pair| pair[0] == pair[1]));
    assert_ne!(store.secret("uploads").await?, tokens[0]);
    Ok(())
}

#[tokio::test]
async fn the_store_answers_for_its_database() -> Result<()> {
    let (_db, store) = fresh_at(noon()).await?;
    store.ping().await?;
    assert_eq!(store.now().await?, noon());
    assert!(store.database_version().await?.starts_with("PostgreSQL 1"));
    assert_eq!(store.options().lease, Duration::from_secs(45));
    Ok(())
}
