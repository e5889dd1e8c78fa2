//! A job's folder on this machine.
//!
//! `<scratch>/<job>` is locked while an attempt works in it, and left behind when the job goes on elsewhere or later,
//! so that a second attempt here finds the first one's files. A worker that is stuck with a lost lease still holds its
//! lock: the new attempt then gets a folder of its own.

use crate::Error;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use uuid::Uuid;

/// Folders that nobody touched for so long belong to jobs that ended on another machine.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// One attempt's hold on the job's folder.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
    lock_path: PathBuf,
    /// Held open: closing it lets go of the lock.
    _lock: File,
}

impl Scratch {
    /// Makes or finds the job's folder below `root`.
    pub(crate) fn open(root: &Path, job: Uuid, attempt: i32) -> Result<Scratch, Error> {
        let shared = Scratch::lock(root, &job.to_string())?;
        match shared {
            Some(scratch) => Ok(scratch),
            None => Scratch::lock(root, &format!("{job}-{attempt}"))?.ok_or_else(|| Error::Scratch {
                path: root.join(format!("{job}-{attempt}")),
                source: io::Error::other("another process works in it"),
            }),
        }
    }

    /// `None` when another process holds it.
    fn lock(root: &Path, name: &str) -> Result<Option<Scratch>, Error> {
        let folder = root.join(name);
        let lock_path = root.join(format!("{name}.lock"));
        let failed = |source| Error::Scratch { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(failed)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                lock.set_modified(SystemTime::now()).map_err(failed)?;
                Ok(Some(Scratch { folder, lock_path, _lock: lock }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes the folder: the job is final.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)?;
        fs::remove_file(&self.lock_path)
    }
}

/// Makes the root and removes folders of jobs that were forgotten; returns how many.
pub(crate) fn prepare(root: &Path) -> Result<usize, Error> {
    let failed = |source| Error::Scratch { path: root.to_owned(), source };
    fs::create_dir_all(root).map_err(failed)?;
    let mut removed = 0;
    for entry in fs::read_dir(root).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // The lock file's time is when the last attempt here began; only our own names are touched.
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".lock")) else {
            continue;
        };
        if name.get(..36).is_none_or(|id| Uuid::try_parse(id).is_err()) || !forgotten(&path) {
            continue;
        }
        if let Some(scratch) = Scratch::lock(root, name)? {
            scratch.remove().map_err(failed)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn forgotten(path: &Path) -> bool {
    let touched = fs::metadata(path).and_then(|facts| facts.modified());
    touched.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > FORGOTTEN))
}

#[cfg(test)]
mod tests {
    use super::{FORGOTTEN, Scratch, prepare};
    use std::{
        fs::{self, File},
        time::{Duration, SystemTime},
    };
    use uuid::Uuid;

    #[test]
    fn a_second_attempt_finds_the_files_of_the_first() {
        let root = tempfile::tempdir().expect("a folder");
        let job = Uuid::from_u128(7);
        let first = Scratch::open(root.path(), job, 1).expect("opens");
        fs::write(first.folder().join("state"), "42").expect("writes");
        drop(first);
        let second = Scratch::open(root.path(), job, 2).expect("opens");
        assert_eq!(fs::read_to_string(second.folder().join("state")).expect("reads"), "42");
        second.remove().expect("removes");
        assert_eq!(fs::read_dir(root.path()).expect("lists").count(), 0);
    }

    #[test]
    fn a_folder_that_a_stuck_attempt_holds_is_not_shared() {
        let root = tempfile::tempdir().expect("a folder");
        let job = Uuid::from_u128(7);
        let stuck = Scratch::open(root.path(), job, 1).expect("opens");
        let next = Scratch::open(root.path(), job, 2).expect("opens");
        assert_ne!(stuck.folder(), next.folder());
    }

    #[test]
    fn forgotten_folders_go_and_nothing_else() {
        let root = tempfile::tempdir().expect("a folder");
        let (old, held, fresh) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        for job in [old, fresh] {
            drop(Scratch::open(root.path(), job, 1).expect("opens"));
        }
        let held = Scratch::open(root.path(), held, 1).expect("opens");
        fs::write(root.path().join("notes.lock"), "not ours").expect("writes");
        let long_ago = SystemTime::now() - FORGOTTEN - Duration::from_secs(60);
        for name in [format!("{old}.lock"), format!("{}.lock", Uuid::from_u128(2)), "notes.lock".into()] {
            File::options()
                .write(true)
                .open(root.path().join(name))
                .expect("opens")
                .set_modified(long_ago)
                .expect("sets the time");
        }
        assert_eq!(prepare(root.path()).expect("prepares"), 1);
        assert!(!root.path().join(old.to_string()).exists());
        assert!(held.folder().exists());
        assert!(root.path().join(fresh.to_string()).exists());
        assert!(root.path().join("notes.lock").exists());
    }
}
