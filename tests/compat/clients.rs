//! The official clients, installed into cargo's folder for test files.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the suites are.
pub(crate) const SUITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compat");

/// Installs a client once for all tests and later runs: the folder's name holds the manifests' content. Gives the folder.
pub(crate) fn installed(
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
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("client-{language}-{content:016x}"));
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

/// Runs a command to its end.
pub(crate) fn checked(command: &mut Command) -> Result<()> {
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
