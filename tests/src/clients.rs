//! The official clients, unchanged, at the pinned versions of `tests/compat`.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the suites and the manifests of the clients are.
pub const SUITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compat");

/// The clients' folder. Only a test or a benchmark knows cargo's place for such files: see [`clients!`](macro@crate::clients).
#[derive(Debug, Clone, Copy)]
pub struct Clients {
    /// `CARGO_TARGET_TMPDIR`
    pub folder: &'static str,
}

/// The [`Clients`] of this build.
#[macro_export]
macro_rules! clients {
    () => {
        $crate::clients::Clients { folder: env!("CARGO_TARGET_TMPDIR") }
    };
}

impl Clients {
    /// Node, with the JavaScript client in `CLIENT_FOLDER`.
    ///
    /// # Errors
    /// When it cannot be installed.
    pub fn node(self) -> Result<Command> {
        let folder = self.installed("js", &["package.json", "package-lock.json"], npm_ci)?;
        let mut node = Command::new("node");
        node.env("CLIENT_FOLDER", folder);
        Ok(node)
    }

    /// A Python that finds the Python client.
    ///
    /// # Errors
    /// When it cannot be installed.
    pub fn python(self) -> Result<Command> {
        let folder = self.installed("python", &["requirements.txt"], |folder| {
            checked(Command::new("python3").args(["-m", "venv", "venv"]).current_dir(folder))?;
            let mut pip = Command::new(folder.join("venv/bin/pip"));
            pip.args(["install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"]);
            checked(pip.current_dir(folder))
        })?;
        Ok(Command::new(folder.join("venv/bin/python")))
    }

    /// Installs a client once for all tests and later runs: the folder's name holds the manifests' content. Gives the
    /// folder.
    ///
    /// # Errors
    /// When it cannot be installed.
    pub fn installed(
        self,
        language: &str,
        manifests: &[&str],
        install: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let source = Path::new(SUITE).join(language);
        let mut content = 0xcbf2_9ce4_8422_2325_u64;
        for manifest in manifests {
            for byte in std::fs::read(source.join(manifest))? {
                content = (content ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        let folder = Path::new(self.folder).join(format!("client-{language}-{content:016x}"));
        let done = folder.join("installed");
        std::fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join("lock"))?;
        lock.lock()?;
        if !done.exists() {
            for manifest in manifests {
                std::fs::copy(source.join(manifest), folder.join(manifest))?;
            }
            install(&folder)?;
            File::create(done)?;
        }
        Ok(folder)
    }
}

/// Installs what a folder's lock file says.
///
/// # Errors
/// When npm fails; with what it printed.
pub fn npm_ci(folder: &Path) -> Result<()> {
    let mut npm = Command::new("npm");
    checked(npm.args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(folder))
}

/// Runs a command to its end.
///
/// # Errors
/// When it fails; with what it printed.
pub fn checked(command: &mut Command) -> Result<()> {
    let output =
        command.output().with_context(|| format!("{command:?} cannot be started; run scripts/setup.sh"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
