//! The configuration: one value built once, from the file, the environment and flags, in this order of rising
//! precedence. No other crate reads any of the three.

mod layers;
pub(crate) mod settings;

use anyhow::{Context as _, bail};
use layers::{Layers, Origin};
use objects::addresses::{Allowed, BadEntry};
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use url::Url;

/// What flags say; each overrides its key.
#[derive(Debug, Default)]
pub(crate) struct Flags(Vec<(&'static str, String, &'static str)>);

impl Flags {
    /// Notes a flag that was given: its key, its name on the command line, its value.
    pub(crate) fn set(&mut self, key: &'static str, flag: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.0.push((key, value.to_string(), flag));
        }
    }
}

/// Everything kiln can be told.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) database: Database,
    pub(crate) log: Log,
    pub(crate) serve: Serve,
    pub(crate) objects: Objects,
    /// Networks that users' addresses may lead to, as written.
    pub(crate) outbound_allow: String,
    pub(crate) webhooks: Webhooks,
    pub(crate) queue: Queue,
    pub(crate) work: Work,
    /// What looked wrong and was not refused; logged once logging runs.
    pub(crate) warnings: Vec<String>,
    /// The effective values and where each came from, for `kiln config`.
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Clone)]
pub(crate) struct Database {
    /// Absent: the private Postgres.
    pub(crate) url: Option<Secret>,
    pub(crate) max_connections: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) json: bool,
    pub(crate) filter: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Serve {
    pub(crate) listen: SocketAddr,
    pub(crate) public_url: Option<Url>,
    pub(crate) body_limit_bytes: u64,
    pub(crate) upload_limit_bytes: u64,
    pub(crate) tls: Option<Tls>,
    pub(crate) insecure_no_auth: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) listen: SocketAddr,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Debug, Clone)]
pub(crate) struct Objects {
    /// Absent: a folder under the data folder.
    pub(crate) url: Option<String>,
    /// Settings of the bucket; credentials among them.
    pub(crate) options: Vec<(String, Secret)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Webhooks {
    pub(crate) first_pause: Duration,
    pub(crate) tries: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub(crate) lease: Duration,
    pub(crate) max_attempts: u32,
    pub(crate) retention: Option<Duration>,
}

#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) name: String,
    pub(crate) poll: Duration,
    pub(crate) log_lines: usize,
    pub(crate) stop_patience: Duration,
}

/// One line of `kiln config`.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    /// As TOML; a secret is not shown.
    pub(crate) value: String,
    pub(crate) origin: String,
}

/// Text that never appears in a log or an error.
#[derive(Clone, PartialEq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The text itself, for the one who needs it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Config {
    /// Reads the three sources.
    ///
    /// # Errors
    /// Every problem at once, one line each, with the place that named the value.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: &[(String, String)],
        flags: &Flags,
    ) -> anyhow::Result<Config> {
        let mut layers = Layers::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("the configuration file {} cannot be read", path.display()))?;
            layers.file(path, &text);
        }
        let named = |name: &str| {
            environment
                .iter()
                .find(|(known, value)| known == name && !value.is_empty())
                .map(|(_, value)| value.as_str())
        };
        // DATABASE_URL is what platforms set; kiln's own variable wins over it.
        if let (None, Some(url)) = (layers.get_text("database.url"), named("DATABASE_URL")) {
            layers.text("database.url", url, Origin("DATABASE_URL".into()));
        }
        layers.environment(environment.iter().cloned());
        for (key, value, flag) in &flags.0 {
            layers.text(key, value, Origin((*flag).to_owned()));
        }
        let mut config = Config::build(&mut layers, &named);
        if config.objects.url.is_some() {
            // Where clouds put credentials. Written settings come later, so they win.
            let clouds = environment.iter().filter(|(name, value)| {
                ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix))
                    && !value.is_empty()
            });
            let clouds = clouds.map(|(name, value)| (name.to_lowercase(), Secret(value.clone())));
            config.objects.options = clouds.chain(std::mem::take(&mut config.objects.options)).collect();
        }
        match layers.problems() {
            [] => Ok(config),
            problems => bail!("the configuration is not usable:\n  {}", problems.join("\n  ")),
        }
    }

    fn build<'a>(layers: &mut Layers, named: &impl Fn(&str) -> Option<&'a str>) -> Config {
        let seconds = |layers: &Layers, key| Duration::from_secs(whole(layers, key));
        let retention_days: u64 = whole(layers, "queue.retention_days");
        let data_dir = match layers.get_text("data_dir") {
            Some(folder) => PathBuf::from(folder),
            None => usual_data_dir(named),
        };
        let listen = parsed(layers, "serve.listen", "is no address and port, as in 127.0.0.1:8080")
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let public_url: Option<Url> =
            parsed(layers, "serve.public_url", "is no absolute address, as in https://kiln.example.com");
        if public_url
            .as_ref()
            .is_some_and(|url| !matches!(url.scheme(), "http" | "https") || url.query().is_some())
        {
            layers.problem("serve.public_url", "must be an http or https address without a query");
        }
        let insecure_no_auth = layers.get_bool("serve.insecure_no_auth");
        let tls = tls(layers);
        let objects = Objects { url: layers.get_text("objects.url"), options: bucket_options(layers) };
        let outbound_allow = layers.get_text("outbound.allow").unwrap_or_default();
        if let Err(error) = allowed(&outbound_allow) {
            layers.problem("outbound.allow", &error.to_string());
        }
        let (data_dir, work_name) = (
            std::path::absolute(&data_dir).unwrap_or(data_dir),
            layers.get_text("work.name").unwrap_or_else(usual_name),
        );
        Config {
            database: Database {
                url: layers.get_text("database.url").map(Secret),
                max_connections: whole(layers, "database.max_connections"),
            },
            log: Log {
                json: layers.get_text("log.format").as_deref() == Some("json"),
                filter: layers.get_text("log.filter").unwrap_or_default(),
            },
            serve: Serve {
                listen,
                public_url,
                body_limit_bytes: whole(layers, "serve.body_limit_bytes"),
                upload_limit_bytes: whole(layers, "serve.upload_limit_bytes"),
                tls,
                insecure_no_auth,
            },
            objects,
            outbound_allow,
            webhooks: Webhooks {
                first_pause: seconds(layers, "webhooks.retry_seconds"),
                tries: whole(layers, "webhooks.tries"),
            },
            queue: Queue {
                lease: seconds(layers, "queue.lease_seconds"),
                max_attempts: whole(layers, "queue.max_attempts"),
                retention: (retention_days > 0).then(|| Duration::from_secs(retention_days * 24 * 3600)),
            },
            work: Work {
                name: work_name.clone(),
                poll: seconds(layers, "work.poll_seconds"),
                log_lines: whole(layers, "work.log_lines"),
                stop_patience: seconds(layers, "work.stop_seconds"),
            },
            warnings: layers.warnings().to_vec(),
            rows: layers.rows(&[("data_dir", data_dir.display().to_string()), ("work.name", work_name)]),
            data_dir,
        }
    }
}

/// What `outbound.allow` allows.
///
/// # Errors
/// The first word that is neither a class nor a network.
pub(crate) fn allowed(text: &str) -> Result<Allowed, BadEntry> {
    Allowed::parse(text.split([',', ' ']).filter(|word| !word.is_empty()))
}

/// All three TLS settings, or none.
fn tls(layers: &mut Layers) -> Option<Tls> {
    const KEYS: [&str; 3] = ["serve.tls_listen", "serve.tls_certificate", "serve.tls_key"];
    let listen = parsed(layers, KEYS[0], "is no address and port, as in 0.0.0.0:8443");
    let [_, certificate, key] = KEYS.map(|key| layers.get_text(key));
    let missing: Vec<&str> = KEYS.into_iter().filter(|key| layers.get_text(key).is_none()).collect();
    if (1..3).contains(&missing.len()) {
        layers.problem(
            missing[0],
            "is missing: TLS needs serve.tls_listen, serve.tls_certificate and serve.tls_key",
        );
    }
    Some(Tls { listen: listen?, certificate: certificate?.into(), key: key?.into() })
}

/// `name=value, name=value`.
fn bucket_options(layers: &mut Layers) -> Vec<(String, Secret)> {
    let text = layers.get_text("objects.options").unwrap_or_default();
    let mut options = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((name, value)) => {
                options.push((name.trim().to_lowercase(), Secret(value.trim().to_owned())));
            }
            // Whatever it is may be a secret, so it is not repeated.
            None => layers.problem("objects.options", "must be name=value with commas between"),
        }
    }
    options
}

/// A setting's number in the type that uses it; its bounds in the table keep it in range.
fn whole<T: TryFrom<i64>>(layers: &Layers, key: &'static str) -> T {
    T::try_from(layers.get_integer(key))
        .unwrap_or_else(|_| unreachable!("invariant: the bounds of {key} fit its type"))
}

fn parsed<T: std::str::FromStr>(layers: &mut Layers, key: &'static str, why: &str) -> Option<T> {
    let text = layers.get_text(key)?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => {
            layers.problem(key, &format!("{why}: {text:?}"));
            None
        }
    }
}

fn usual_data_dir<'a>(named: &impl Fn(&str) -> Option<&'a str>) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/kiln");
    }
    match (named("XDG_DATA_HOME"), named("HOME")) {
        (Some(folder), _) => Path::new(folder).join("kiln"),
        (None, Some(home)) => Path::new(home).join(".local/share/kiln"),
        (None, None) => PathBuf::from("kiln-data"),
    }
}

fn usual_name() -> String {
    format!("{}-{}", rustix::system::uname().nodename().to_string_lossy(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::{Config, Flags, settings};
    use std::path::Path;

    fn environment(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_default_file_is_the_table_and_says_what_the_code_does() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/default.toml"));
        let text = std::fs::read_to_string(path).expect("configs/default.toml can be read");
        assert_eq!(
            text,
            settings::default_toml(),
            "configs/default.toml is written by: cargo run -p kiln-cli -- config --defaults > configs/default.toml"
        );
        let from_file = Config::load(Some(path), &[], &Flags::default()).expect("loads");
        let without = Config::load(None, &[], &Flags::default()).expect("loads");
        for (a, b) in from_file.rows.iter().zip(&without.rows) {
            assert_eq!((a.key, &a.value), (b.key, &b.value));
        }
    }

    #[test]
    fn every_shipped_configuration_is_usable() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).expect("configs can be listed") {
            let path = entry.expect("an entry").path();
            Config::load(Some(&path), &[], &Flags::default()).expect("loads");
            seen += 1;
        }
        assert!(seen >= 2);
    }

    #[test]
    fn the_platforms_database_variable_counts_less_than_kilns_own() {
        let both = environment(&[("DATABASE_URL", "postgres:///a"), ("KILN_DATABASE_URL", "postgres:///b")]);
        let config = Config::load(None, &both, &Flags::default()).expect("loads");
        assert_eq!(config.database.url.expect("an address").reveal(), "postgres:///b");
        let config = Config::load(None, &both[..1], &Flags::default()).expect("loads");
        assert_eq!(config.database.url.expect("an address").reveal(), "postgres:///a");
        let config =
            Config::load(None, &environment(&[("DATABASE_URL", "")]), &Flags::default()).expect("loads");
        assert!(config.database.url.is_none());
    }

    #[test]
    fn a_secret_shows_nowhere() {
        let config = Config::load(
            None,
            &environment(&[("DATABASE_URL", "postgres://u:hunter2@h/d")]),
            &Flags::default(),
        )
        .expect("loads");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_buckets_settings_come_from_the_cloud_and_from_kilns_own() {
        let names = environment(&[
            ("AWS_ACCESS_KEY_ID", "id"),
            ("HOME", "/x"),
            ("KILN_OBJECTS_URL", "s3://b/p"),
            ("KILN_OBJECTS_OPTIONS", "aws_endpoint = http://h:1, AWS_REGION=r"),
        ]);
        let config = Config::load(None, &names, &Flags::default()).expect("loads");
        let options: Vec<(&str, &str)> =
            config.objects.options.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect();
        assert_eq!(
            options,
            [("aws_access_key_id", "id"), ("aws_endpoint", "http://h:1"), ("aws_region", "r")]
        );
        let config = Config::load(None, &names[..2], &Flags::default()).expect("loads");
        assert!(config.objects.options.is_empty(), "a folder needs none");
    }

    #[test]
    fn storage_and_network_settings_are_checked() {
        for (name, value, says) in [
            ("KILN_OUTBOUND_ALLOW", "loopback, everything", "`everything` is neither an address class"),
            ("KILN_OBJECTS_OPTIONS", "hunter2", "must be name=value"),
            ("KILN_SERVE_TLS_LISTEN", "0.0.0.0:8443", "serve.tls_certificate"),
            ("KILN_SERVE_TLS_LISTEN", "8443", "is no address and port"),
        ] {
            let error = Config::load(None, &environment(&[(name, value)]), &Flags::default());
            let error = error.expect_err("refused").to_string();
            assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn every_problem_is_said_at_once() {
        let mut flags = Flags::default();
        flags.set("serve.listen", "--listen", Some("localhost"));
        let names = environment(&[("KILN_QUEUE_MAX_ATTEMPTS", "many"), ("KILN_SERVE_PUBLIC_URL", "ftp://x")]);
        let error = Config::load(None, &names, &flags).expect_err("refused").to_string();
        for part in [
            "--listen: serve.listen is no address and port, as in 127.0.0.1:8080: \"localhost\"",
            "KILN_QUEUE_MAX_ATTEMPTS: queue.max_attempts must be a whole number from 1 to 100, not \"many\"",
            "KILN_SERVE_PUBLIC_URL: serve.public_url must be an http or https address without a query",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
