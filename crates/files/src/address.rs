//! Addresses of kiln's own files.
//!
//! ```text
//! <files>/files/b/<upload>/<name>               a file that a client brought
//! <files>/files/jobs/<job>/<attempt>/<name>     a file that a job made
//! ```
//!
//! `<files>` is how a client reaches the server; rows hold `kiln:` in its place ([`Address::reference`]), because a
//! server may be reached under many names and these may change.

use std::fmt;

use objects::{Key, names};
use store::OWN_SCHEME;
use url::Url;
use uuid::Uuid;

/// An address of one of kiln's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A file that a client brought.
    Upload {
        /// The upload; random, so that nobody finds the file by guessing.
        id: Uuid,
        /// The file's name.
        name: String,
    },
    /// A file that a job made.
    Output {
        /// The job.
        job: Uuid,
        /// The attempt that wrote it.
        attempt: i32,
        /// The file's name.
        name: String,
    },
}

impl Address {
    /// The address of a file that a job makes. The name is made safe, as [`Key::job`] does.
    #[must_use]
    pub fn output(job: Uuid, attempt: i32, name: &str) -> Address {
        Address::Output { job, attempt, name: names::sanitise(name) }
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Address::Upload { name, .. } | Address::Output { name, .. } => name,
        }
    }

    /// The path below the place where files are served, percent-encoded.
    #[must_use]
    pub fn path(&self) -> String {
        let name = names::encode_segment(self.name());
        match self {
            Address::Upload { id, .. } => format!("/files/b/{id}/{name}"),
            Address::Output { job, attempt, .. } => format!("/files/jobs/{job}/{attempt}/{name}"),
        }
    }

    /// Reads a path as [`Address::path`] writes it, in any percent-encoding.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Address> {
        let mut segments = path.strip_prefix("/files/")?.split('/');
        let address = match segments.next()? {
            "b" => Address::Upload { id: id(segments.next()?)?, name: name(segments.next()?)? },
            "jobs" => Address::Output {
                job: id(segments.next()?)?,
                attempt: segments.next()?.parse().ok().filter(|attempt| *attempt > 0)?,
                name: name(segments.next()?)?,
            },
            _ => return None,
        };
        segments.next().is_none().then_some(address)
    }

    /// The form that rows hold: outcomes, and requests as workers read them.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{OWN_SCHEME}{}", self.path())
    }

    /// Reads [`Address::reference`] back.
    #[must_use]
    pub fn from_reference(text: &str) -> Option<Address> {
        Address::from_path(text.strip_prefix(OWN_SCHEME)?)
    }

    /// What an http(s) address would be if its host were kiln's. Whether it is, the rows know: the ids in it are
    /// random, so an address that names one of them was handed out by kiln, under whatever host name.
    #[must_use]
    pub fn from_url(url: &str) -> Option<Address> {
        let url = Url::parse(url.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
        let path = url.path();
        Address::from_path(&path[path.rfind("/files/b/").or_else(|| path.rfind("/files/jobs/"))?..])
    }

    /// The object of a job's output; an upload's are named by its row.
    pub(crate) fn output_key(&self) -> Option<Key> {
        match self {
            Address::Output { job, attempt, name } => Some(Key::job(*job, *attempt, name)),
            Address::Upload { .. } => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

fn id(segment: &str) -> Option<Uuid> {
    (segment.len() == 36).then(|| Uuid::try_parse(segment).ok()).flatten()
}

/// A name that kiln gave out is the same when made safe again; any other is nobody's.
fn name(segment: &str) -> Option<String> {
    names::decode_segment(segment).filter(|name| names::sanitise(name) == *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_known_under_any_host_and_prefix() {
        let address = Address::Upload { id: Uuid::from_u128(7), name: "Mein Läuf (2).zip".into() };
        let path = address.path();
        assert_eq!(path, format!("/files/b/{}/Mein%20L%C3%A4uf%20%282%29.zip", Uuid::from_u128(7)));
        for base in [
            "http://localhost:8080",
            "https://kiln.example/base/cdn",
            "HTTPS://v3.fal.media",
            "http://[::1]:1/cdn",
        ] {
            assert_eq!(Address::from_url(&format!("{base}{path}")), Some(address.clone()), "{base}");
        }
        // What a browser makes of it.
        let loose = format!("http://h/cdn/files/b/{}/Mein%20Läuf%20(2).zip?x=1#y", Uuid::from_u128(7));
        assert_eq!(Address::from_url(&loose), Some(address));
    }

    #[test]
    fn anything_else_is_no_address_of_ours() {
        let id = Uuid::from_u128(7);
        for path in [
            "/".to_owned(),
            "/files/b".into(),
            format!("/files/b/{id}"),
            format!("/files/b/{id}/"),
            format!("/files/b/{id}/a/b"),
            format!("/files/b/{id}/..%2fx"),
            format!("/files/b/{id}/%ff"),
            format!("/files/b/{}/a", id.simple()),
            "/files/b/0a8bd6b1/a.zip".into(),
            format!("/files/jobs/{id}/0/a"),
            format!("/files/jobs/{id}/-1/a"),
            format!("/files/jobs/{id}/x/a"),
            format!("/files/jobs/{id}/99999999999/a"),
            format!("/files/c/{id}/a"),
        ] {
            assert_eq!(Address::from_path(&path), None, "{path}");
            assert_eq!(Address::from_url(&format!("http://h{path}")), None, "{path}");
        }
        assert_eq!(Address::from_url("ftp://h/files/b/00000000-0000-0000-0000-000000000007/a"), None);
        assert_eq!(Address::from_reference("http://h/files/b/00000000-0000-0000-0000-000000000007/a"), None);
    }

    proptest! {
        #[test]
        fn any_name_comes_back(name in ".*", job in any::<u128>(), attempt in 1i32..) {
            let job = Uuid::from_u128(job);
            let address = Address::output(job, attempt, &name);
            prop_assert_eq!(Address::from_reference(&address.reference()), Some(address.clone()));
            prop_assert_eq!(Address::from_url(&format!("http://h:1/cdn{address}")), Some(address.clone()));
            prop_assert_eq!(address.output_key(), Some(Key::job(job, attempt, &name)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = (Address::from_url(&text), Address::from_path(&text), Address::from_reference(&text));
        }
    }
}
