//! `kiln modes`: what can be trained.

use super::{print, table};
use crate::arguments::{Format, Listing};
use serde_json::json;
use spec::Mode;
use std::process::ExitCode;

pub(super) fn run(listing: &Listing) -> anyhow::Result<ExitCode> {
    print(&match listing.format {
        Format::Text => text(),
        Format::Json => format!("{:#}\n", json!(spec::modes().iter().map(as_json).collect::<Vec<_>>())),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn text() -> String {
    let mut rows = vec![["endpoint", "title", "video", "audio", "preview"].map(str::to_owned).to_vec()];
    rows.extend(spec::modes().iter().map(|mode| {
        vec![
            mode.endpoint_id(),
            mode.title.to_owned(),
            mode.video.as_str().to_owned(),
            mode.audio.as_str().to_owned(),
            mode.preview.output.as_str().to_owned(),
        ]
    }));
    table(&rows)
}

fn as_json(mode: &Mode) -> serde_json::Value {
    json!({
        "endpoint_id": mode.endpoint_id(),
        "path": mode.path,
        "title": mode.title,
        "twin_of": mode.twin_of,
        "video": mode.video.as_str(),
        "audio": mode.audio.as_str(),
        "targets": mode.targets.as_str(),
        "preview": mode.preview.output.as_str(),
    })
}
