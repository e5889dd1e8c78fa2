//! From the configuration to the object storage and to the client for users' addresses.

use crate::config::{self, Config};
use anyhow::Context as _;
use objects::{
    Location, Objects,
    outbound::{self, Outbound},
};

/// Opens the object storage. A folder is made, a bucket is not contacted.
///
/// # Errors
/// Which setting cannot be used.
pub(crate) fn objects(config: &Config) -> anyhow::Result<Objects> {
    let options = |(name, value): &(String, config::Secret)| (name.clone(), value.reveal().to_owned());
    let (location, setting) = match &config.objects.url {
        Some(url) => {
            let options = config.objects.options.iter().map(options).collect();
            (Location::Url { url: url.clone(), options }, "objects.url and objects.options")
        }
        None => (Location::Folder(config.data_dir.join("objects")), "data_dir"),
    };
    Objects::open(&objects::Options { location }).with_context(|| format!("check {setting}"))
}

/// Where files are kept, for people.
pub(crate) fn place(config: &Config) -> String {
    match &config.objects.url {
        Some(url) => url.clone(),
        None => config.data_dir.join("objects").display().to_string(),
    }
}

/// Makes the client that fetches data and delivers webhooks.
///
/// # Errors
/// When the system's certificates cannot be read.
pub(crate) fn outbound(config: &Config) -> anyhow::Result<Outbound> {
    let allowed = config::allowed(&config.outbound_allow).context("outbound.allow")?;
    Outbound::new(outbound::Options { allowed, ..outbound::Options::default() })
        .context("the client for data addresses and webhooks cannot be made")
}
