//! As whom Postgres' programs run.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use super::Error;

/// The user that owns the cluster and runs its programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name, for messages.
    pub name: String,
    /// User and group to change to; `None` when kiln itself is an ordinary user.
    pub drop_to: Option<(u32, u32)>,
}

impl Identity {
    /// kiln's own user, or under root the unprivileged user to change to: `postgres`, else `nobody`.
    ///
    /// # Errors
    ///
    /// [`Error::NoUser`] when kiln runs as root and neither user exists.
    pub fn for_postgres() -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            let name = id(&["-un"]).unwrap_or_else(|| "the current user".to_owned());
            return Ok(Self { name, drop_to: None });
        }
        ["postgres", "nobody"].into_iter().find_map(Self::named).ok_or(Error::NoUser)
    }

    fn named(name: &str) -> Option<Self> {
        let uid = id(&["-u", name])?.parse().ok()?;
        let gid = id(&["-g", name])?.parse().ok()?;
        (uid != 0).then(|| Self { name: name.to_owned(), drop_to: Some((uid, gid)) })
    }

    /// Makes the command run as this user, with nothing of kiln's environment: it may hold secrets.
    pub(super) fn apply(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        if let Some((uid, gid)) = self.drop_to {
            command.uid(uid).gid(gid);
        }
    }

    /// The user id that owns what Postgres writes.
    pub(super) fn uid(&self) -> u32 {
        self.drop_to.map_or_else(|| rustix::process::geteuid().as_raw(), |(uid, _)| uid)
    }
}

/// Asks `id`, which knows users from every source that the system is configured for.
fn id(args: &[&str]) -> Option<String> {
    let output = Command::new("id").args(args).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
