//! What a killed process leaves behind, and that it goes.

use std::time::Duration;

use anyhow::Result;
use files::{Files, NewFile};
use objects::{Key, Location, Objects};
use store::{Completed, Recorded, Store};
use testkit::pg;
use uuid::Uuid;

const HOUR: Duration = Duration::from_secs(3600);

struct House {
    _db: pg::Database,
    folder: tempfile::TempDir,
    files: Files,
}

async fn house() -> Result<House> {
    let db = pg::database().await?;
    let folder = tempfile::tempdir()?;
    let options = store::Options { max_connections: 3, ..store::Options::default() };
    let store = Store::connect(&db.url(), options).await?;
    let objects = Objects::open(&objects::Options { location: Location::Folder(folder.path().to_owned()) })?;
    Ok(House { _db: db, folder, files: Files::new(store, objects) })
}

impl House {
    async fn begin(&self) -> Result<Uuid> {
        let file =
            NewFile { name: "a.zip".into(), content_type: "application/zip".into(), ..NewFile::default() };
        match self.files.begin(file, HOUR).await?.0 {
            files::Address::Upload { id, .. } => Ok(id),
            other => anyhow::bail!("{other}"),
        }
    }

    async fn put(&self, upload: Uuid, bytes: &'static [u8]) -> Result<files::Taken> {
        let mut intake = self.files.intake(upload, 1 << 20);
        intake.write(bytes.into()).await?;
        Ok(intake.finish().await?)
    }

    fn objects(&self) -> usize {
        fn count(folder: &std::path::Path) -> usize {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
        }
        count(self.folder.path())
    }
}

#[tokio::test]
async fn an_object_whose_row_was_never_written_goes_and_all_others_stay() -> Result<()> {
    let house = house().await?;
    let (whole, parts, nothing) = (house.begin().await?, house.begin().await?, house.begin().await?);
    let taken = house.put(whole, b"whole").await?;
    assert!(matches!(house.files.complete(whole, taken).await?, Completed::Done(_)));
    let taken = house.put(parts, b"part").await?;
    assert_eq!(house.files.record(parts, 1, taken, 100, HOUR).await?, Recorded::Done);
    // Killed between object and row, with an upload that is still there and one that is not.
    house.put(parts, b"orphan").await?;
    house.put(nothing, b"orphan").await?;
    house.put(Uuid::new_v4(), b"orphan").await?;
    // Killed in the middle of an object.
    let key = Key::part(parts, Uuid::new_v4());
    let half = house.files.objects().local_path(&key).expect("a folder");
    std::fs::write(half.with_file_name("x#1"), "half")?;
    assert_eq!(house.objects(), 6);
    assert_eq!(house.files.sweep_orphans(HOUR).await?, 0, "they may still be on their way");
    assert_eq!(house.files.sweep_orphans(Duration::ZERO).await?, 4);
    assert_eq!(house.objects(), 2);
    Ok(())
}

#[tokio::test]
async fn an_object_that_is_not_recorded_is_removed_at_once() -> Result<()> {
    let house = house().await?;
    let upload = house.begin().await?;
    let taken = house.put(upload, b"too large").await?;
    assert_eq!(house.files.record(upload, 1, taken, 3, HOUR).await?, Recorded::TooLarge);
    assert_eq!(house.objects(), 0);
    house.files.forget(upload).await?;
    let taken = house.put(upload, b"too late").await?;
    assert_eq!(house.files.record(upload, 1, taken, 100, HOUR).await?, Recorded::NotOpen);
    let taken = house.put(upload, b"too late").await?;
    assert_eq!(house.files.complete(upload, taken).await?, Completed::NotOpen);
    assert_eq!(house.objects(), 0);
    Ok(())
}
