//! One Postgres server on one folder: creating, starting, looking, stopping.
//!
//! Callers of the methods that start or stop hold `start.lock`.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{Error, Identity, Options, Programs, find_programs, lock_exclusive};

/// The superuser and the database that kiln uses.
const USER: &str = "kiln";
const DATABASE: &str = "kiln";
/// Part of the socket's file name only: nothing listens on a network port.
const PORT: u16 = 5432;
/// Longest path of a unix socket that every system takes, terminating zero not counted.
const SOCKET_PATH_BYTES: usize = 103;
/// Crash recovery of a busy cluster takes its time.
const START_WAIT: Duration = Duration::from_secs(120);
/// How long processes of a killed server may take to notice before they are ended.
const ORPHAN_WAIT: Duration = Duration::from_secs(5);
/// The server's log is put aside at this size when the server starts.
const LOG_BYTES: u64 = 16 << 20;

/// A server on a folder, running or not.
#[derive(Debug)]
pub(super) struct Server {
    folder: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    identity: Identity,
    programs: OnceLock<Programs>,
    durable: bool,
    settings: Vec<String>,
    url: String,
}

impl Server {
    /// Creates the folders around the cluster and checks that the cluster's user can work in them.
    pub(super) fn prepare(options: &Options, identity: Identity) -> Result<Self, Error> {
        let folder = options.data.join("postgres");
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let folder = folder.canonicalize().map_err(Error::io(&folder))?;
        if let Some((uid, gid)) = identity.drop_to {
            chown(&folder, Some(uid), Some(gid)).map_err(Error::io(&folder))?;
            let mut probe = Command::new("sh");
            probe
                .args(["-c", "cd \"$0\" && test -w ."])
                .arg(&folder)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            identity.apply(&mut probe);
            probe.current_dir("/");
            if !probe.status().is_ok_and(|status| status.success()) {
                return Err(Error::Unreachable { folder, user: identity.name });
            }
        }
        let sockets = socket_folder(&folder);
        let mut server = Self {
            data: folder.join("cluster"),
            folder,
            sockets,
            identity,
            programs: OnceLock::new(),
            durable: options.durable,
            settings: options.settings.clone(),
            url: String::new(),
        };
        server.url = server.url_of(DATABASE);
        Ok(server)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn url_of(&self, database: &str) -> String {
        let sockets = self.sockets.to_string_lossy();
        let host: String = sockets
            .bytes()
            .map(|b| match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => {
                    char::from(b).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect();
        format!("postgres:///{database}?host={host}&port={PORT}&user={USER}")
    }

    pub(super) fn lock_start(&self) -> Result<fs::File, Error> {
        lock_exclusive(&self.folder.join("start.lock"))
    }

    /// A command for one of Postgres' programs, as the cluster's user.
    pub(super) fn command(&self, program: &str) -> Command {
        let bin = self.programs.get().map(|programs| programs.bin.join(program));
        let mut command = Command::new(bin.unwrap_or_else(|| program.into()));
        self.identity.apply(&mut command);
        // The caller's folder may be closed to the cluster's user.
        command.current_dir(&self.folder);
        command
    }

    /// Makes the cluster unless it exists. It appears under its name only when it is complete.
    pub(super) fn create_if_missing(&self) -> Result<(), Error> {
        let version_file = self.data.join("PG_VERSION");
        if version_file.exists() {
            let text = fs::read_to_string(&version_file).map_err(Error::io(&version_file))?;
            let programs = find_programs(text.trim().parse().ok())?;
            self.programs.get_or_init(|| programs);
            return Ok(());
        }
        let programs = find_programs(None)?;
        self.programs.get_or_init(|| programs);
        let fresh = self.folder.join("cluster.new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(Error::io(&fresh))?;
        }
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(&fresh).args(["-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C"]);
        initdb.arg(if self.durable { "--data-checksums" } else { "--no-sync" });
        run("initdb", &mut initdb)?;
        let mut single = self.command("postgres");
        single.args(["--single", "-D"]).arg(&fresh);
        if !self.durable {
            single.args(["-c", "fsync=off"]);
        }
        single.arg("postgres").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        feed("postgres --single", single, &format!("create database {DATABASE};\n"))?;
        fs::rename(&fresh, &self.data).map_err(Error::io(&self.data))?;
        if self.durable {
            fs::File::open(&self.folder).and_then(|f| f.sync_all()).map_err(Error::io(&self.folder))?;
        }
        Ok(())
    }

    /// The process id of the server if it runs (starting up counts).
    pub(super) fn running(&self) -> Option<u32> {
        let pid = self.pid_file()?.0;
        works_in(pid, &self.data).then_some(pid)
    }

    /// Takes the start lock and brings the server back if it is gone.
    pub(super) fn revive(&self) -> Result<(), Error> {
        let _start = self.lock_start()?;
        self.ensure_running()
    }

    /// Starts the server unless it runs, and waits until it takes connections.
    pub(super) fn ensure_running(&self) -> Result<(), Error> {
        let deadline = Instant::now() + START_WAIT;
        let log = self.folder.join("postgres.log");
        while Instant::now() < deadline {
            if self.running().is_some() {
                if self.pid_file().is_some_and(|(_, ready)| ready) && self.answers() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            self.clear_remains()?;
            make_private(&self.sockets, &self.identity)?;
            if fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES) {
                fs::rename(&log, log.with_extension("log.old")).map_err(Error::io(&log))?;
            }
            let before = fs::metadata(&log).map_or(0, |meta| meta.len());
            let mut start = self.command("pg_ctl");
            start.arg("start").arg("-D").arg(&self.data).arg("-l").arg(&log);
            start.args(["-s", "-w", "-t", &START_WAIT.as_secs().to_string(), "-o", &self.server_options()]);
            if let Err(Error::Program { program, output }) = run("pg_ctl start", &mut start) {
                let said = tail(&log, before);
                // Processes of a killed server that have not noticed yet: they are cleared in the next round.
                if said.contains("pre-existing shared memory block") || said.contains("already exists") {
                    std::thread::sleep(Duration::from_millis(200));
                    continue;
                }
                return Err(Error::Program { program, output: format!("{output}\n{said}") });
            }
        }
        Err(Error::Program {
            program: "pg_ctl start".to_owned(),
            output: format!("the server was not ready after {} s\n{}", START_WAIT.as_secs(), tail(&log, 0)),
        })
    }

    /// Stops the server in good order and waits until it is down.
    pub(super) fn stop(&self) -> Result<(), Error> {
        if self.running().is_none() {
            return Ok(());
        }
        let mut stop = self.command("pg_ctl");
        stop.arg("stop").arg("-D").arg(&self.data).args(["-s", "-m", "fast", "-w", "-t", "60"]);
        run("pg_ctl stop", &mut stop)?;
        if !self.sockets.starts_with(&self.folder) {
            // Made again at the next start. Anything strange in it may stay.
            fs::remove_dir(&self.sockets).ok();
        }
        Ok(())
    }

    fn server_options(&self) -> String {
        let mut settings = vec![
            "listen_addresses=".to_owned(),
            format!("port={PORT}"),
            format!("unix_socket_directories={}", self.sockets.display()),
            "unix_socket_permissions=0700".to_owned(),
            // Several kiln processes, each with its own pool.
            "max_connections=300".to_owned(),
        ];
        if !self.durable {
            settings
                .extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned));
        }
        settings.extend(self.settings.iter().cloned());
        settings.iter().map(|s| format!("-c {} ", shell_quote(s))).collect()
    }

    /// Process id and readiness, from the server's own pid file.
    fn pid_file(&self) -> Option<(u32, bool)> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        let ready = text.lines().nth(7).is_some_and(|status| status.trim() == "ready");
        Some((pid, ready))
    }

    fn answers(&self) -> bool {
        UnixStream::connect(socket_path(&self.sockets)).is_ok()
    }

    /// Clears what a killed server left: its other processes, and a pid file whose number now belongs to a
    /// stranger or to nobody that the system would admit is dead. Postgres' own check cannot tell these apart.
    fn clear_remains(&self) -> Result<(), Error> {
        let begun = Instant::now();
        while let Some(orphan) = processes_in(&self.data).first().copied() {
            if begun.elapsed() > ORPHAN_WAIT
                && let Some(pid) = i32::try_from(orphan).ok().and_then(rustix::process::Pid::from_raw)
            {
                tracing::warn!(pid = orphan, "ending a process that outlived its database server");
                // It may have gone in the meantime; the next look tells.
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid_file = self.data.join("postmaster.pid");
        if !self.answers() && pid_file.exists() {
            fs::remove_file(&pid_file).map_err(Error::io(&pid_file))?;
        }
        Ok(())
    }
}

/// The socket's folder: with the cluster, unless that path is too long for a socket.
fn socket_folder(folder: &Path) -> PathBuf {
    let near = folder.join("run");
    if socket_path(&near).as_os_str().len() <= SOCKET_PATH_BYTES {
        return near;
    }
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    PathBuf::from(format!("/tmp/kiln-pg-{}", hex::encode(&digest[..8])))
}

fn socket_path(sockets: &Path) -> PathBuf {
    sockets.join(format!(".s.PGSQL.{PORT}"))
}

/// Makes a folder that only the cluster's user (and root) can enter, or checks that it is one.
fn make_private(folder: &Path, identity: &Identity) -> Result<(), Error> {
    let made = match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => true,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(Error::io(folder)(e)),
    };
    if made && let Some((uid, gid)) = identity.drop_to {
        chown(folder, Some(uid), Some(gid)).map_err(Error::io(folder))?;
    }
    let meta = fs::symlink_metadata(folder).map_err(Error::io(folder))?;
    if meta.is_dir() && meta.uid() == identity.uid() && meta.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::SocketFolder { folder: folder.to_owned() })
}

/// Whether the process exists and has its working folder here, as every Postgres process has.
///
/// A number that was given to another program, and a dead process that nobody has collected, are told apart by
/// this; where there is no `/proc`, existence has to do.
fn works_in(pid: u32, folder: &Path) -> bool {
    if Path::new("/proc/self/cwd").exists() {
        return fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder);
    }
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

fn processes_in(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| works_in(pid, folder))
        .collect()
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn run(program: &str, command: &mut Command) -> Result<(), Error> {
    let output = command.output().map_err(Error::io(command.get_program()))?;
    finished(program, &output)
}

fn feed(program: &str, mut command: Command, input: &str) -> Result<(), Error> {
    let at = PathBuf::from(command.get_program());
    let mut child = command.spawn().map_err(Error::io(&at))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(Error::io(&at))?;
    }
    let output = child.wait_with_output().map_err(Error::io(&at))?;
    finished(program, &output)
}

fn finished(program: &str, output: &std::process::Output) -> Result<(), Error> {
    if output.status.success() {
        return Ok(());
    }
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    let output = format!("{}; {}", output.status, said.join("\n").trim());
    Err(Error::Program { program: program.to_owned(), output })
}

/// The end of the log, from `from` on at most.
fn tail(log: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(len.saturating_sub(4096)).min(len)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_data_folder_gets_a_short_socket_folder() {
        let deep = PathBuf::from(format!("/srv/{}/postgres", "x".repeat(120)));
        assert!(socket_path(&socket_folder(&deep)).as_os_str().len() <= SOCKET_PATH_BYTES);
        let near = PathBuf::from("/srv/kiln/postgres");
        assert_eq!(socket_folder(&near), near.join("run"));
    }

    #[test]
    fn settings_survive_the_shell() {
        assert_eq!(shell_quote("a=b c'd"), r"'a=b c'\''d'");
    }
}
