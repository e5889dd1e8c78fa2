//! What may be in the dependency tree: licences, banned crates, sources.
//!
//! A small reading of `deny.toml` (the format of cargo-deny) over `cargo metadata`, so that `make check` needs
//! no further program. [`violations`] is the whole of it; the test beside it runs it on this workspace.
//! It knows nothing of security advisories: those need a network and a moment in time.

use serde::Deserialize;

mod licence;
pub use licence::permits;

/// `deny.toml`. Unknown keys are refused, so that a misspelt rule cannot be silently ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Which licences may be used.
    pub licenses: Licences,
    /// Which crates may not.
    pub bans: Bans,
    /// Where crates may come from.
    pub sources: Sources,
}

/// The licences that may be used.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licences {
    /// SPDX identifiers, with their exception where there is one.
    pub allow: Vec<String>,
}

/// The crates that may not be used.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bans {
    /// Name and reason.
    pub deny: Vec<Ban>,
}

/// One crate that may not be used.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// The package's name.
    #[serde(rename = "crate")]
    pub name: String,
    /// What to use in its place.
    pub reason: String,
}

/// Where packages may come from: only `deny` is understood, for both keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sources {
    /// Registries other than cargo's default one.
    pub unknown_registry: Deny,
    /// Git repositories.
    pub unknown_git: Deny,
}

/// The one value that [`Sources`] takes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deny {
    /// Refused.
    Deny,
}

/// The part of `cargo metadata --format-version 1` that the checks read.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// Every package that the lock file can bring in, on any platform.
    pub packages: Vec<Package>,
    /// The ids of our own packages.
    pub workspace_members: Vec<String>,
}

/// One package of [`Metadata`].
#[derive(Debug, Deserialize)]
pub struct Package {
    /// The package's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its id, as `workspace_members` names it.
    pub id: String,
    /// Its SPDX expression.
    pub license: Option<String>,
    /// Where it came from; absent for a path.
    pub source: Option<String>,
    /// What it depends on.
    pub dependencies: Vec<Dependency>,
}

/// One dependency of a [`Package`].
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The registry, absent for cargo's default one.
    pub registry: Option<String>,
}

/// Says what in the tree is against the policy, one line each; empty when nothing is.
#[must_use]
pub fn violations(policy: &Policy, tree: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    for package in &tree.packages {
        let name = format!("{} {}", package.name, package.version);
        let ours = tree.workspace_members.contains(&package.id);
        match &package.license {
            Some(expression) => match permits(expression, &policy.licenses.allow) {
                Ok(true) => {}
                Ok(false) => {
                    found.push(format!("{name}: licence {expression:?} is not allowed by deny.toml"));
                }
                Err(why) => found.push(format!("{name}: licence {expression:?} cannot be read: {why}")),
            },
            None => found.push(format!("{name}: names no licence")),
        }
        if let Some(ban) = policy.bans.deny.iter().find(|ban| ban.name == package.name) {
            found.push(format!("{name}: banned by deny.toml: {}", ban.reason));
        }
        match &package.source {
            None if !ours => found.push(format!("{name}: a path outside the workspace")),
            Some(source) if !source.starts_with("registry+") => {
                found.push(format!("{name}: comes from {source}, not from the registry"));
            }
            _ => {}
        }
        for registry in package.dependencies.iter().filter_map(|d| d.registry.as_deref()) {
            found.push(format!("{name}: depends on a package of another registry, {registry}"));
        }
    }
    found
}
