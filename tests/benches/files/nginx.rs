//! An nginx of the benchmark's own: serves a folder, and takes files in by `PUT`.

use anyhow::{Context as _, Result, ensure};
use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use testkit::process::Process;

const START: Duration = Duration::from_secs(10);

/// A running nginx; it is killed when the value is dropped.
pub(crate) struct Nginx {
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
    /// What it serves and takes.
    pub(crate) root: PathBuf,
    /// As it says itself.
    pub(crate) version: String,
    _process: Process,
}

impl Nginx {
    /// Starts one in a folder, with a worker process per core.
    pub(crate) fn start(folder: &Path) -> Result<Nginx> {
        let root = folder.join("root");
        std::fs::create_dir_all(&root)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = folder.display();
        // It moves a body from the temporary folder to its place: both are on the same disk. As root it would give
        // its worker processes to another user, who may not enter the folder.
        let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
        let config = format!(
            "{user}
            worker_processes auto; daemon off; pid {at}/nginx.pid; error_log stderr warn;
            events {{ worker_connections 256; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
                client_max_body_size 0; client_body_buffer_size 256k;
                client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
                uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
                server {{ listen 127.0.0.1:{port}; root {at}/root; location / {{ dav_methods PUT; }} }}
            }}"
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, config)?;
        let said =
            Command::new("nginx").arg("-v").output().context("nginx cannot be started: is it installed?")?;
        let version = String::from_utf8_lossy(&said.stderr).trim().replace("nginx version: ", "");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder).arg("-c").arg(&file);
        let process = Process::start(&mut command, folder.join("nginx.log"))?;
        let address = format!("127.0.0.1:{port}");
        let until = Instant::now() + START;
        while TcpStream::connect(&address).is_err() {
            ensure!(Instant::now() < until, "nginx does not listen\n{}", process.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Nginx { address, root, version, _process: process })
    }
}
