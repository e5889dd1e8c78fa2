//! Outputs of jobs, and removals.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use store::{Doomed, NewJob, OWN_SCHEME};

use crate::common::*;

const HOLD: Duration = Duration::from_secs(60);

fn address(name: &str) -> String {
    format!("{OWN_SCHEME}/files/jobs/x/1/{name}")
}

/// An outcome whose adapter is kiln's own file.
fn own_outcome() -> spec::Outcome {
    let mut made = outcome();
    made.lora_file.url = address("lora.safetensors");
    made.lora_file.content_type = Some("application/octet-stream".into());
    made
}

#[tokio::test]
async fn own_files_of_an_outcome_are_outputs_from_the_end_of_the_job_on() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let lifecycle = json!({ "expiration_duration_seconds": 60, "initial_acl": { "default": "hide" } });
    submit(&store, NewJob { lifecycle: Some(lifecycle), key_id: Some("owner".into()), ..job(1) }).await?;
    let claim = claim(&store).await?;
    assert_eq!(store.output(&address("lora.safetensors")).await?, None);
    store.finish(&claim.lease, &own_outcome()).await?;
    store.finish(&claim.lease, &own_outcome()).await?;
    let output = store.output(&address("lora.safetensors")).await?.expect("it exists");
    assert_eq!((output.job, output.key_id.as_deref(), output.bytes), (id(1), Some("owner"), Some(7)));
    assert_eq!(output.content_type.as_deref(), Some("application/octet-stream"));
    assert_eq!((output.created_at, output.expires_at), (noon(), Some(noon() + seconds(60))));
    assert_eq!(output.acl, Some(json!({ "default": "hide" })));
    assert_eq!(store.output("https://files.example/config.json").await?, None, "not kiln's own");

    let later = at(&db, noon() + seconds(61)).await?;
    assert_eq!(later.output(&address("lora.safetensors")).await?, None);
    assert_eq!(later.expire_files(9).await?, 1);
    let due = later.due_removals(9, HOLD).await?;
    assert_eq!(due[0].what, Doomed::Output(address("lora.safetensors")));
    Ok(())
}

#[tokio::test]
async fn a_lost_lease_makes_no_outputs() -> Result<()> {
    let (_db, store) = fresh().await?;
    let claim = running(&store, 1).await?;
    store.release(&claim.lease).await?;
    assert!(store.finish(&claim.lease, &own_outcome()).await.is_err());
    assert_eq!(store.output(&address("lora.safetensors")).await?, None);
    Ok(())
}

#[tokio::test]
async fn outputs_go_with_their_request() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    for n in [1, 2] {
        let claim = running(&store, n).await?;
        let mut made = own_outcome();
        made.lora_file.url = address(&format!("{n}"));
        store.finish(&claim.lease, &made).await?;
    }
    submit(&store, job(3)).await?;
    store.request_cancel(id(3), spec::Failure::cancelled()).await?;
    store.delete_payloads(id(1)).await?;
    assert_eq!(store.output(&address("1")).await?, None);
    let due = store.due_removals(9, HOLD).await?;
    assert_eq!(due.iter().map(|removal| removal.what.clone()).collect::<Vec<_>>(), [Doomed::Job(id(1))]);
    store.removed(&[due[0].id]).await?;
    let later = at(&db, noon() + seconds(1000)).await?;
    assert_eq!(later.purge(Duration::from_secs(500), 9).await?.len(), 3);
    assert_eq!(later.output(&address("2")).await?, None);
    let mut due: Vec<Doomed> = later.due_removals(9, HOLD).await?.into_iter().map(|r| r.what).collect();
    due.sort_by_key(|what| format!("{what:?}"));
    assert_eq!(due, [Doomed::Job(id(1)), Doomed::Job(id(2))], "job 3 never ran, so it has no files");
    Ok(())
}

#[tokio::test]
async fn forgetting_a_request_keeps_its_outputs() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { store_io: false, ..job(1) }).await?;
    let claim = claim(&store).await?;
    store.finish(&claim.lease, &own_outcome()).await?;
    let later = at(&db, noon() + seconds(2 * 3600)).await?;
    assert_eq!(later.sweep().await?.forgotten, 1);
    assert!(later.output(&address("lora.safetensors")).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_removal_is_held_by_one_until_it_is_done_or_the_hold_runs_out() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let claim = running(&store, 1).await?;
    store.finish(&claim.lease, &own_outcome()).await?;
    store.delete_payloads(id(1)).await?;
    let due = store.due_removals(9, HOLD).await?;
    assert_eq!(due.len(), 1);
    assert_eq!(store.due_removals(9, HOLD).await?, []);
    let later = at(&db, noon() + seconds(61)).await?;
    assert_eq!(later.due_removals(9, HOLD).await?, due);
    later.removed(&[due[0].id]).await?;
    assert_eq!(at(&db, noon() + seconds(1000)).await?.due_removals(9, HOLD).await?, []);
    Ok(())
}
