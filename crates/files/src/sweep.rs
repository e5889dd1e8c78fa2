//! Removing what nothing names any more.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt as _;
use objects::Key;
use store::{Doomed, Removal};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Address, Error, Files};

/// Pause between two passes over the rows.
const EVERY: Duration = Duration::from_secs(20);
/// Pause between two passes over all objects.
const ORPHANS_EVERY: Duration = Duration::from_secs(3600);
/// An object that is younger may still be on its way to its row.
const ORPHAN_AFTER: Duration = Duration::from_secs(86_400);
/// Rows per statement.
const BATCH: u32 = 200;
/// Removals taken at a time, and for how long: a storage that is away is asked again after that.
const REMOVALS: u32 = 50;
const REMOVALS_HOLD: Duration = Duration::from_secs(120);
/// Objects whose rows are asked for at once.
const ORPHAN_BATCH: usize = 500;

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Rows whose time was over.
    pub expired: u64,
    /// Things removed from the object store.
    pub removed: u64,
}

impl Files {
    /// Sweeps for ever. Run it beside a server, and drop it on shutdown. Any number of processes may do so at once.
    pub async fn maintain(&self) -> Infallible {
        let mut orphans_due = Instant::now() + ORPHANS_EVERY;
        loop {
            tokio::time::sleep(EVERY).await;
            match self.sweep().await {
                Ok(swept) if swept != Swept::default() => tracing::info!(?swept, "swept files"),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "files could not be swept; next try in a moment"),
            }
            if Instant::now() >= orphans_due {
                orphans_due = Instant::now() + ORPHANS_EVERY;
                match self.sweep_orphans(ORPHAN_AFTER).await {
                    Ok(removed) => tracing::debug!(removed, "looked for objects that no row names"),
                    Err(error) => tracing::warn!(%error, "orphaned objects could not be swept"),
                }
            }
        }
    }

    /// Lets go of what is over, and removes what was let go of.
    ///
    /// # Errors
    /// Rows that cannot be asked. An object that cannot be removed is tried again later.
    pub async fn sweep(&self) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        loop {
            let expired = self.store.expire_files(BATCH).await?;
            swept.expired += expired;
            if expired < u64::from(BATCH) {
                break;
            }
        }
        loop {
            let due = self.store.due_removals(REMOVALS, REMOVALS_HOLD).await?;
            let mut done = Vec::with_capacity(due.len());
            for removal in &due {
                match self.remove(removal).await {
                    Ok(()) => done.push(removal.id),
                    Err(error) => {
                        tracing::warn!(%error, removal = ?removal.what, "cannot remove an object yet");
                    }
                }
            }
            self.store.removed(&done).await?;
            swept.removed += done.len() as u64;
            if due.len() < REMOVALS as usize {
                return Ok(swept);
            }
        }
    }

    async fn remove(&self, removal: &Removal) -> Result<(), objects::Error> {
        let key = match &removal.what {
            Doomed::Upload(id) => return self.objects.delete_all(&Key::of_upload(*id)).await.map(drop),
            Doomed::Job(id) => return self.objects.delete_all(&Key::of_job(*id)).await.map(drop),
            Doomed::Object(key) => Key::from_row(key),
            Doomed::Output(address) => {
                Address::from_reference(address).and_then(|address| address.output_key())
            }
        };
        match key {
            Some(key) => self.objects.delete(&key).await,
            None => {
                // Trying again would not help.
                tracing::error!(removal = ?removal.what, "the row names no object of ours");
                Ok(())
            }
        }
    }

    /// Removes every object of a job. Its rows must be gone.
    ///
    /// # Errors
    /// Objects that cannot be removed; the sweep tries again when the rows left a note.
    pub async fn remove_job(&self, job: Uuid) -> Result<u64, Error> {
        Ok(self.objects.delete_all(&Key::of_job(job)).await?)
    }

    /// Removes objects of uploads that no row names and that are older than this: a process was killed between object
    /// and row. Also what such a process left half written. Returns how many.
    ///
    /// # Errors
    /// Rows or objects that cannot be asked.
    pub async fn sweep_orphans(&self, older_than: Duration) -> Result<u64, Error> {
        let cutoff = SystemTime::now() - older_than;
        let mut removed = self.objects.sweep_unfinished(cutoff).await?;
        let old = self.objects.list_before(&Key::all_uploads(), cutoff);
        let mut batches = std::pin::pin!(old.try_chunks(ORPHAN_BATCH));
        while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
            removed += self.remove_unnamed(batch).await?;
        }
        Ok(removed)
    }

    async fn remove_unnamed(&self, found: Vec<Key>) -> Result<u64, Error> {
        let mut by_upload: HashMap<Uuid, Vec<Key>> = HashMap::new();
        for key in found {
            if let Some(upload) = key.upload_id() {
                by_upload.entry(upload).or_default().push(key);
            }
        }
        let uploads: Vec<Uuid> = by_upload.keys().copied().collect();
        let named: HashSet<String> = self.store.named_objects(&uploads).await?.into_iter().collect();
        let mut removed = 0;
        for key in by_upload.into_values().flatten().filter(|key| !named.contains(&key.to_string())) {
            self.objects.delete(&key).await?;
            removed += 1;
        }
        Ok(removed)
    }
}
