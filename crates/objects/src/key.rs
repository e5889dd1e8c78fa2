//! Paths of objects. Every object kiln owns has its path formed here, so that a whole job or upload can be found and
//! removed by its prefix, and a late worker can never overwrite what a newer attempt wrote.
//!
//! ```text
//! uploads/<upload>/data             a file sent in one piece, a data URI
//! uploads/<upload>/parts/<write>    one written part of a file sent in pieces
//! jobs/<job>/<attempt>/<name>       outputs and training state of one attempt
//! ```

use std::fmt;

use object_store::path::Path;
use uuid::Uuid;

use crate::names;

/// The path of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Path);

impl Key {
    /// A file that arrives in one piece.
    #[must_use]
    pub fn upload(upload: Uuid) -> Key {
        Key(Path::from(format!("uploads/{upload}/data")))
    }

    /// One write of a part. `write` is fresh for every try, so two tries of one part never share a file.
    #[must_use]
    pub fn part(upload: Uuid, write: Uuid) -> Key {
        Key(Path::from(format!("uploads/{upload}/parts/{write}")))
    }

    /// An output or state file of one attempt; the name is made safe by [`names::sanitise`].
    #[must_use]
    pub fn job(job: Uuid, attempt: i32, name: &str) -> Key {
        let name = names::sanitise(name);
        Key(Path::from(format!("jobs/{job}/{attempt}")).join(name))
    }

    /// Everything of one upload, as a prefix for [`crate::Objects::delete_all`].
    #[must_use]
    pub fn of_upload(upload: Uuid) -> Key {
        Key(Path::from(format!("uploads/{upload}")))
    }

    /// Everything of one job.
    #[must_use]
    pub fn of_job(job: Uuid) -> Key {
        Key(Path::from(format!("jobs/{job}")))
    }

    /// Every upload there is: the place where a sweep looks for files that no row names.
    #[must_use]
    pub fn all_uploads() -> Key {
        Key(Path::from("uploads"))
    }

    /// Reads back a key that a row keeps (the text of its `Display`).
    #[must_use]
    pub fn from_row(text: &str) -> Option<Key> {
        let known = text.starts_with("uploads/") || text.starts_with("jobs/");
        Path::parse(text).ok().filter(|_| known).map(Key)
    }

    pub(crate) fn probe(id: Uuid) -> Key {
        Key(Path::from(format!("probe/{id}")))
    }

    pub(crate) fn listed(path: Path) -> Key {
        Key(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The upload that this object belongs to, when it is one of an upload's.
    #[must_use]
    pub fn upload_id(&self) -> Option<Uuid> {
        let mut parts = self.0.as_ref().split('/');
        (parts.next() == Some("uploads")).then(|| parts.next()).flatten()?.parse().ok()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_row() {
        let id = Uuid::from_u128(7);
        for key in [Key::upload(id), Key::part(id, id), Key::job(id, 3, "Mein Lauf ä.safetensors")] {
            assert_eq!(Key::from_row(&key.to_string()), Some(key.clone()), "{key}");
        }
        assert_eq!(Key::from_row("../etc/passwd"), None);
        assert_eq!(Key::from_row("uploads/../../x"), None);
    }

    #[test]
    fn a_job_name_cannot_leave_its_folder() {
        let key = Key::job(Uuid::nil(), 1, "../../evil");
        assert!(key.to_string().starts_with("jobs/00000000-0000-0000-0000-000000000000/1/"), "{key}");
        assert!(!key.to_string().contains(".."), "{key}");
    }

    #[test]
    fn an_object_of_an_upload_names_it() {
        let id = Uuid::from_u128(9);
        assert_eq!(Key::part(id, Uuid::nil()).upload_id(), Some(id));
        assert_eq!(Key::job(id, 1, "x").upload_id(), None);
    }
}
