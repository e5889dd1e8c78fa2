//! The table of settings: one row per key. The file, the environment, `kiln config` and `configs/default.toml` are
//! all read from or written from it, so a key exists in all of them or in none.

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its key in the file, with its section: `serve.listen`. The environment spells it `KILN_SERVE_LISTEN`.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    /// What it is, in plain words; printed above the key in `configs/default.toml`.
    pub(crate) help: &'static str,
}

/// What a setting may hold, with its value when nothing names one.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Text with a default.
    Text(&'static str),
    /// Text that may be absent; the example is what `configs/default.toml` shows.
    OptionalText {
        example: &'static str,
    },
    /// Like `OptionalText`, and never shown.
    Secret {
        example: &'static str,
    },
    /// One of a few words; the first is the default.
    Choice(&'static [&'static str]),
    Bool(bool),
    /// A whole number within bounds, both included.
    Integer {
        default: i64,
        min: i64,
        max: i64,
    },
}

const fn row(key: &'static str, kind: Kind, help: &'static str) -> Setting {
    Setting { key, kind, help }
}

/// Every setting, in the order of `configs/default.toml`: keys without a section first, then by section.
pub(crate) const SETTINGS: &[Setting] = &[
    row(
        "data_dir",
        Kind::OptionalText { example: "/var/lib/kiln" },
        "Folder for everything kiln keeps on this machine: the private Postgres and the workers' scratch files. \
         When absent: /var/lib/kiln for root, else kiln under $XDG_DATA_HOME or ~/.local/share.",
    ),
    row(
        "database.url",
        Kind::Secret { example: "postgres://kiln:password@db.internal/kiln" },
        "Address of a Postgres database. When absent, DATABASE_URL of the environment is taken; without that, kiln \
         starts a private Postgres of its own under data_dir, shared by all kiln processes on that folder.",
    ),
    row(
        "database.max_connections",
        Kind::Integer { default: 16, min: 2, max: 1000 },
        "Connections that one kiln process opens at most.",
    ),
    row(
        "log.format",
        Kind::Choice(&["text", "json"]),
        "How log lines are written to standard error: text for people, json for machines.",
    ),
    row(
        "log.filter",
        Kind::Text("info,sqlx=warn"),
        "Which log lines are written: a level (error, warn, info, debug, trace), or levels per module as in \
         \"info,kiln_server=debug\".",
    ),
    row(
        "serve.listen",
        Kind::Text("127.0.0.1:8080"),
        "Address and port of the server. Port 0 takes a free one; the first log line names it.",
    ),
    row(
        "serve.public_url",
        Kind::OptionalText { example: "https://kiln.example.com" },
        "How clients reach this server. The addresses in answers start with it; when absent they start with the \
         Host header of the request.",
    ),
    row(
        "serve.body_limit_bytes",
        Kind::Integer { default: 256 * 1024 * 1024, min: 1024, max: 1 << 40 },
        "Largest JSON body of a request, in bytes. Bodies may hold whole archives as data URIs.",
    ),
    row(
        "serve.insecure_no_auth",
        Kind::Bool(false),
        "Accept requests without a key. Refused unless the server listens on a loopback address.",
    ),
    row(
        "serve.upload_limit_bytes",
        Kind::Integer { default: 64 << 30, min: 1024, max: 1 << 50 },
        "Largest file that a client may upload, in bytes.",
    ),
    row(
        "serve.tls_listen",
        Kind::OptionalText { example: "0.0.0.0:8443" },
        "A second address and port, served over TLS with the two files below. The plain one stays.",
    ),
    row(
        "serve.tls_certificate",
        Kind::OptionalText { example: "/etc/kiln/chain.pem" },
        "File with the certificate chain in PEM form, the server's own certificate first. Read at the start.",
    ),
    row(
        "serve.tls_key",
        Kind::OptionalText { example: "/etc/kiln/key.pem" },
        "File with the certificate's private key in PEM form.",
    ),
    row(
        "objects.url",
        Kind::OptionalText { example: "s3://bucket/kiln" },
        "Bucket for uploads and results: s3://, gs:// or az://, with a prefix if wanted. When absent they are kept in \
         the folder objects under data_dir.",
    ),
    row(
        "objects.options",
        Kind::Secret { example: "aws_endpoint=https://s3.example.com, aws_region=eu-1" },
        "Settings and credentials of the bucket, as name=value with commas between. Variables of the environment that \
         begin with AWS_, GOOGLE_ or AZURE_ count too; what is written here wins.",
    ),
    row(
        "outbound.allow",
        Kind::OptionalText { example: "loopback, 10.1.0.0/16" },
        "Networks that data addresses and webhooks may lead to beside public ones, with commas between: loopback, \
         private, link-local, or a network such as 10.1.0.0/16. Leave it out when strangers hold keys.",
    ),
    row(
        "webhooks.retry_seconds",
        Kind::Integer { default: 14, min: 1, max: 3600 },
        "Pause before a webhook's second try; it doubles from try to try.",
    ),
    row(
        "webhooks.tries",
        Kind::Integer { default: 10, min: 1, max: 30 },
        "How often a webhook is tried before it is given up. The defaults are two hours in all.",
    ),
    row(
        "queue.lease_seconds",
        Kind::Integer { default: 45, min: 1, max: 3600 },
        "How long a job belongs to a worker that no longer reports. Workers renew at a third of it; after it another \
         worker takes the job over.",
    ),
    row(
        "queue.max_attempts",
        Kind::Integer { default: 5, min: 1, max: 100 },
        "How often a job is started at most when workers die under it; after that it has failed.",
    ),
    row(
        "queue.retention_days",
        Kind::Integer { default: 0, min: 0, max: 36500 },
        "How many days finished requests are kept. 0 keeps them until they are deleted by hand.",
    ),
    row(
        "work.name",
        Kind::OptionalText { example: "gpu-box-1" },
        "Name of this worker in the job table and in logs. When absent: host name and process id.",
    ),
    row(
        "work.poll_seconds",
        Kind::Integer { default: 5, min: 1, max: 3600 },
        "How often a waiting worker looks for jobs by itself. New jobs wake it at once; this is for a lost wake-up.",
    ),
    row(
        "work.log_lines",
        Kind::Integer { default: 400, min: 10, max: 100_000 },
        "How many log lines one job may write. Clients poll all of them, so keep it to a few hundred.",
    ),
    row(
        "work.stop_seconds",
        Kind::Integer { default: 30, min: 1, max: 3600 },
        "How long a worker that was told to stop waits for the trainer to reach a stopping point before it gives the \
         job back and exits.",
    ),
];

/// The row of a key.
pub(crate) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// How the environment spells a key.
pub(crate) fn variable(key: &str) -> String {
    format!("KILN_{}", key.replace('.', "_").to_uppercase())
}

/// The text of `configs/default.toml`: every key with its meaning and its default.
pub(crate) fn default_toml() -> String {
    let mut text = String::from(
        "# Every setting of kiln with its default, as `kiln config --defaults` prints it.\n\
         # Precedence, lowest first: this file (kiln --config FILE), the environment, flags.\n\
         # The environment spells serve.listen as KILN_SERVE_LISTEN.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        let (of, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if of != section {
            text.push_str(&format!("\n[{of}]\n"));
            section = of;
        } else {
            text.push('\n');
        }
        for line in wrap(setting.help, 110) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&match &setting.kind {
            Kind::Text(default) => format!("{name} = {default:?}\n"),
            Kind::OptionalText { example } | Kind::Secret { example } => format!("# {name} = {example:?}\n"),
            Kind::Choice(words) => format!("{name} = {:?} # or {}\n", words[0], words[1..].join(", ")),
            Kind::Bool(default) => format!("{name} = {default}\n"),
            Kind::Integer { default, .. } => format!("{name} = {default}\n"),
        });
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
