//! A whole kiln of real processes on a database of the test's own: servers, scripted workers, a client.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use testkit::process::Process;

/// How long a process may take to start on a busy machine.
pub const START: Duration = Duration::from_secs(60);

/// The programs under test. Only an integration test knows their paths: see [`programs!`](crate::programs).
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    /// The kiln program as it is shipped.
    pub kiln: &'static str,
    /// The same with the scripted trainer.
    pub scripted_worker: &'static str,
}

/// The [`Programs`] of this build.
#[macro_export]
macro_rules! programs {
    () => {
        $crate::house::Programs {
            kiln: env!("CARGO_BIN_EXE_kiln-plain"),
            scripted_worker: env!("CARGO_BIN_EXE_scripted-worker"),
        }
    };
}

/// What all processes of one kiln share.
pub struct House {
    programs: Programs,
    folder: TempDir,
    settings: Vec<(&'static str, String)>,
    started: std::cell::Cell<u32>,
}

impl House {
    /// A kiln on the database at `url`, with short times: a lease of two seconds.
    ///
    /// # Errors
    /// When there is no room for its files.
    pub fn new(programs: Programs, url: &str) -> Result<House> {
        let settings = vec![
            ("KILN_DATABASE_URL", url.to_owned()),
            ("KILN_QUEUE_LEASE_SECONDS", "2".to_owned()),
            // The receivers and the data of tests are on this machine.
            ("KILN_OUTBOUND_ALLOW", "loopback".to_owned()),
            ("KILN_LOG_FILTER", "debug,sqlx=warn,hyper=info".to_owned()),
        ];
        let folder = tempfile::Builder::new().prefix("kiln-house-").tempdir()?;
        Ok(House { programs, folder, settings, started: 0.into() })
    }

    /// Changes a setting for the processes that start from now on.
    #[must_use]
    pub fn with(mut self, variable: &'static str, value: impl ToString) -> House {
        self.settings.push((variable, value.to_string()));
        self
    }

    /// A folder for the test's files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        let number = self.started.get();
        self.started.set(number + 1);
        let mut command = Command::new(program);
        // Nothing of the machine's own configuration reaches a test.
        command.env_remove("DATABASE_URL").env("KILN_DATA_DIR", self.folder.path().join("data"));
        command.envs(self.settings.iter().map(|(name, value)| (name, value.as_str()))).args(arguments);
        Process::start(&mut command, self.folder.path().join(format!("{}-{number}.log", arguments[0])))
    }

    /// Starts `kiln serve` on a free port and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; with the end of its log.
    pub async fn serve(&self) -> Result<Server> {
        self.serve_at("127.0.0.1:0").await
    }

    /// The same on a given address, for a server that comes back where an earlier one was.
    ///
    /// # Errors
    /// When it does not become ready; with the end of its log.
    pub async fn serve_at(&self, address: &str) -> Result<Server> {
        let process = self.start(self.programs.kiln, &["serve", "--listen", address])?;
        let mut key = None;
        let base = loop {
            let line = process.line("", START)?;
            if let Some(text) = line.strip_prefix("FAL_KEY=") {
                key = Some(text.to_owned());
            }
            if let Some(text) = line.strip_prefix("kiln listens on ") {
                break text.to_owned();
            }
        };
        let server = Server { process, base, key };
        let until = Instant::now() + START;
        while !server.ready().await {
            ensure!(Instant::now() < until, "not ready in {START:?}\n{}", server.process.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Starts a worker with the scripted trainer.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn work(&self) -> Result<Process> {
        self.start(self.programs.scripted_worker, &["work"])
    }
}

/// A running `kiln serve`.
pub struct Server {
    /// The process.
    pub process: Process,
    /// `http://127.0.0.1:PORT`
    pub base: String,
    /// The key it printed: the first server on a database does.
    pub key: Option<String>,
}

impl Server {
    async fn ready(&self) -> bool {
        let answer = http().get(format!("{}/ready", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// A client with the key that this server printed.
    ///
    /// # Errors
    /// When it printed none.
    pub fn client(&self) -> Result<Client> {
        let key = self.key.clone().context("only the first server on a database prints a key")?;
        Ok(Client { base: self.base.clone(), key, http: http() })
    }
}

/// A plain client of the queue, for suites that are not about the official ones.
#[derive(Debug, Clone)]
pub struct Client {
    /// `http://127.0.0.1:PORT`
    pub base: String,
    /// The key sent with every request.
    pub key: String,
    http: reqwest::Client,
}

impl Client {
    /// The same client at another server of the same database.
    #[must_use]
    pub fn at(&self, server: &Server) -> Client {
        Client { base: server.base.clone(), ..self.clone() }
    }

    /// Sends a request; the id when it was accepted.
    ///
    /// # Errors
    /// When there is no answer, or another one than 200.
    pub async fn submit(&self, path: &str, input: &Value) -> Result<String> {
        let url = format!("{}/queue/{}/{}/{path}", self.base, spec::OWNER, spec::ALIAS);
        let answer = self.http.post(url).header("authorization", format!("Key {}", self.key)).json(input);
        let answer = answer.send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        ensure!(status == 200, "submit answered {status}: {body}");
        Ok(body["request_id"].as_str().context("request_id")?.to_owned())
    }

    /// The status, with all log lines.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn status(&self, id: &str) -> Result<Value> {
        Ok(self.get(&format!("{id}/status?logs=1")).await?.1)
    }

    /// Status code and body of the result.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn result(&self, id: &str) -> Result<(u16, Value)> {
        self.get(id).await
    }

    /// Asks for the end of a request.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn cancel(&self, id: &str) -> Result<u16> {
        let request = self.http.put(self.url(&format!("{id}/cancel")));
        Ok(request.header("authorization", format!("Key {}", self.key)).send().await?.status().as_u16())
    }

    /// Waits until a request is in a state, and returns its status.
    ///
    /// # Errors
    /// When the time is up first; with the last status.
    pub async fn wait_for(&self, id: &str, state: &str, within: Duration) -> Result<Value> {
        let until = Instant::now() + within;
        loop {
            let status = self.status(id).await?;
            if status["status"] == state {
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("{id} is not {state} in {within:?}: {status}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn get(&self, what: &str) -> Result<(u16, Value)> {
        let request = self.http.get(self.url(what)).header("authorization", format!("Key {}", self.key));
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    fn url(&self, what: &str) -> String {
        format!("{}/queue/{}/{}/requests/{what}", self.base, spec::OWNER, spec::ALIAS)
    }
}

/// A request for the scripted trainer.
#[must_use]
pub fn request(script: &Value) -> Value {
    json!({
        "training_data_url": "https://data.invalid/clips.zip",
        "trigger_phrase": script.to_string(),
    })
}

/// The messages of a status' log lines.
#[must_use]
pub fn messages(status: &Value) -> Vec<&str> {
    let lines = status["logs"].as_array().map_or(&[][..], Vec::as_slice);
    lines.iter().filter_map(|line| line["message"].as_str()).collect()
}

/// An HTTP client that gives up in time.
fn http() -> reqwest::Client {
    // Only the first call of the process installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .build()
        .expect("invariant: a client without files or proxies can be built")
}
