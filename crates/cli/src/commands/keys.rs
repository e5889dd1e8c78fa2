//! `kiln keys`: who may use the server.

use super::{print, table};
use crate::{
    arguments::{Format, Keys},
    config::Config,
    database::Database,
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;
use std::process::ExitCode;
use store::{ApiKey, Store};

pub(super) async fn run(config: &Config, action: Keys) -> anyhow::Result<ExitCode> {
    let database = Database::open(config).await?;
    let done = act(&database.store, action).await;
    database.close().await;
    done
}

async fn act(store: &Store, action: Keys) -> anyhow::Result<ExitCode> {
    match action {
        Keys::Create { name } => {
            let key = store.create_key(&name).await?;
            print(&format!("{}\n", key.text))?;
            tracing::info!(id = key.id, name, "made a key; it is shown this once, kiln keeps only its hash");
        }
        Keys::List(listing) => {
            let keys = store.list_keys().await?;
            print(&match listing.format {
                Format::Text => text(&keys),
                Format::Json => format!("{:#}\n", json!(keys.iter().map(as_json).collect::<Vec<_>>())),
            })?;
        }
        Keys::Revoke { id } => {
            if !store.revoke_key(&id).await? {
                anyhow::bail!("there is no valid key with the id {id:?}; `kiln keys list` shows them");
            }
            tracing::info!(id, "revoked");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(keys: &[ApiKey]) -> String {
    if keys.is_empty() {
        return "There are no keys. Make one: kiln keys create NAME\n".into();
    }
    let mut rows = vec![["id", "name", "created", "last used", "revoked"].map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        vec![
            key.id.clone(),
            key.name.clone(),
            time(key.created_at),
            key.last_used_at.map_or_else(|| "never".into(), time),
            key.revoked_at.map_or_else(|| "-".into(), time),
        ]
    }));
    table(&rows)
}

fn as_json(key: &ApiKey) -> serde_json::Value {
    json!({
        "id": key.id,
        "name": key.name,
        "created_at": time(key.created_at),
        "last_used_at": key.last_used_at.map(time),
        "revoked_at": key.revoked_at.map(time),
    })
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
