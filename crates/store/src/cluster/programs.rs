//! Where the system keeps PostgreSQL's own programs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::Error;

/// What the cluster needs.
const NEEDED: [&str; 3] = ["initdb", "pg_ctl", "postgres"];
/// Oldest version whose SQL the migrations use.
const OLDEST: u32 = 14;

/// A PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Folder that holds `initdb`, `pg_ctl` and `postgres`.
    pub bin: PathBuf,
    /// Major version.
    pub major: u32,
    /// What `postgres --version` says.
    pub version: String,
}

/// Finds PostgreSQL: the newest installation, or the one with the major version that a data folder was made with.
///
/// # Errors
///
/// [`Error::ProgramsMissing`], naming the folders searched and the package to install.
pub fn find_programs(major: Option<u32>) -> Result<Programs, Error> {
    find_in(&candidates(), major)
}

fn find_in(folders: &[PathBuf], major: Option<u32>) -> Result<Programs, Error> {
    folders
        .iter()
        .filter_map(|folder| inspect(folder))
        .filter(|found| match major {
            Some(wanted) => found.major == wanted,
            None => found.major >= OLDEST,
        })
        .max_by_key(|found| found.major)
        .ok_or_else(|| Error::ProgramsMissing {
            looked: folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
            version: major,
            package: major.map_or_else(|| "postgresql".to_owned(), |v| format!("postgresql-{v}")),
        })
}

/// The folder that `pg_config` names, the places where distributions install, and what the usual path holds.
fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output()
        && output.status.success()
    {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    for parent in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/pgsql"] {
        let versions = std::fs::read_dir(parent).into_iter().flatten().flatten();
        folders.extend(versions.map(|version| version.path().join("bin")).filter(|bin| bin.is_dir()));
    }
    folders.extend(["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from));
    folders.dedup();
    folders
}

fn inspect(bin: &Path) -> Option<Programs> {
    if !NEEDED.iter().all(|program| bin.join(program).is_file()) {
        return None;
    }
    let output = Command::new(bin.join("postgres")).arg("--version").stdin(Stdio::null()).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Some(Programs { bin: bin.to_owned(), major: major_of(&version)?, version })
}

/// "postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)" → 15
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 17beta1"), Some(17));
        assert_eq!(major_of("postgres"), None);
    }

    #[test]
    fn a_missing_installation_names_the_folders_and_the_package() {
        let error = find_in(&[PathBuf::from("/nowhere/bin")], None).expect_err("there is nothing there");
        let text = error.to_string();
        assert!(text.contains("/nowhere/bin") && text.contains("package postgresql "), "{text}");
        let error = find_in(&[PathBuf::from("/nowhere/bin")], Some(13)).expect_err("there is nothing there");
        assert!(error.to_string().contains("postgresql-13"), "{error}");
    }
}
