//! Uploads.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use store::{NewUpload, UploadState};

use crate::common::*;

fn upload(n: u128) -> NewUpload {
    NewUpload {
        id: id(n),
        object_key: format!("uploads/{n}/clips.zip"),
        file_name: "clips.zip".to_owned(),
        content_type: "application/zip".to_owned(),
        secret_hash: [7; 32],
        key_id: None,
        acl: Some(json!({ "default": "allow" })),
        open_for: Duration::from_secs(3600),
    }
}

#[tokio::test]
async fn an_upload_is_open_until_its_last_byte_is_stored() -> Result<()> {
    let (_db, store) = fresh_at(noon()).await?;
    store.create_upload(&upload(1)).await?;
    store.create_upload(&upload(1)).await?;
    let open = store.upload(id(1)).await?.expect("it exists");
    assert_eq!(
        (open.state, open.secret_hash, open.acl),
        (UploadState::Open, [7; 32], Some(json!({ "default": "allow" })))
    );
    assert_eq!((open.created_at, open.expires_at), (noon(), Some(noon() + seconds(3600))));
    assert!(store.set_upload_multipart(id(1), "mp-1").await?);
    assert_eq!(store.upload(id(1)).await?.and_then(|u| u.multipart_id).as_deref(), Some("mp-1"));
    assert!(store.complete_upload(id(1), 42, None).await?);
    let done = store.upload(id(1)).await?.expect("it exists");
    assert_eq!(
        (done.state, done.expires_at, done.multipart_id),
        (UploadState::Complete { bytes: 42 }, None, None)
    );
    assert!(store.complete_upload(id(1), 42, None).await?, "a repetition");
    assert!(!store.complete_upload(id(1), 43, None).await?, "a second object");
    assert!(!store.set_upload_multipart(id(1), "mp-2").await?);
    assert_eq!(store.upload(id(2)).await?, None);
    assert!(!store.complete_upload(id(2), 1, None).await?);
    Ok(())
}

#[tokio::test]
async fn uploads_cut_off_and_files_past_their_time_are_found_and_forgotten() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    for n in 1..=3 {
        store.create_upload(&upload(n)).await?;
    }
    store.complete_upload(id(1), 1, None).await?;
    store.complete_upload(id(2), 1, Some(Duration::from_secs(60))).await?;
    let due = async |after| -> Result<Vec<uuid::Uuid>> {
        let expired = at(&db, noon() + seconds(after)).await?.expired_uploads(9).await?;
        Ok(expired.into_iter().map(|u| u.id).collect())
    };
    assert!(due(59).await?.is_empty());
    assert_eq!(due(60).await?, [id(2)]);
    assert_eq!(due(3600).await?, [id(2), id(3)]);
    assert!(store.delete_upload(id(2)).await? && !store.delete_upload(id(2)).await?);
    assert_eq!(due(3600).await?, [id(3)]);
    Ok(())
}
