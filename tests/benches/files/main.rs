//! `make bench-files`: what files cost. The memory of the server while both official clients upload a large file, and
//! the throughput of uploads and downloads beside an nginx that serves and takes the same file on the same disk.
//!
//! kiln and nginx take turns, so that a busy or slow machine slows both. The file fits into the page cache, so reading
//! it costs no disk; every upload begins after what was written before is on the disk. kiln answers an upload when it
//! is on the disk, nginx when it is in the page cache, so nginx's figure is also given with an fsync after its answer.
//! `-- --mib N --rounds N` change the file's length and how often each thing is measured.

#![expect(clippy::print_stdout, reason = "a benchmark's output is its result")]
#![expect(clippy::print_stderr, reason = "progress, beside the result")]

mod http;
mod nginx;

use anyhow::{Context as _, Result, bail, ensure};
use http::{Body, Connection};
use kiln_tests::{
    clients,
    clients::checked,
    house::{House, Server},
    programs,
};
use nginx::Nginx;
use rand::RngCore as _;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/files");
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/clients");
/// Both clients' part size.
const PART_BYTES: u64 = 10 << 20;
/// How many parts the Python client sends at once.
const AT_ONCE: u64 = 10;

struct Arguments {
    mib: u64,
    rounds: usize,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (_cluster, house, server) = runtime.block_on(async {
        let cluster = testkit::pg::durable_cluster().await?;
        let house = House::new(programs!(), cluster.url())?.with("KILN_LOG_FILTER", "warn");
        let server = house.serve().await?;
        anyhow::Ok((cluster, house, server))
    })?;
    let bench = Bench {
        file: random_file(house.folder(), arguments.mib)?,
        bytes: arguments.mib << 20,
        objects: house.folder().join("data/objects/uploads"),
        key: server.key.clone().context("the first server prints a key")?,
        nginx: Nginx::start(house.folder())?,
        server,
    };
    let memory = bench.memory()?;
    let throughput = bench.throughput(arguments.rounds)?;
    let cores = std::thread::available_parallelism()?;
    println!(
        "{} MiB of random bytes, {cores} cores, clients on the same machine, {}, commit {}\n\n{memory}\n{throughput}",
        arguments.mib,
        bench.nginx.version,
        commit()
    );
    Ok(())
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments { mib: 1024, rounds: 3 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number =
            || -> Result<u64> { Ok(words.next().with_context(|| format!("{word} N"))?.parse()?) };
        match word.as_str() {
            "--mib" => arguments.mib = number()?,
            "--rounds" => arguments.rounds = usize::try_from(number()?)?.max(1),
            // Given by cargo.
            "--bench" => {}
            other => bail!("no such argument: {other}"),
        }
    }
    Ok(arguments)
}

fn random_file(folder: &Path, mib: u64) -> Result<PathBuf> {
    let path = folder.join("file.bin");
    let mut file = File::create(&path)?;
    let mut block = vec![0; 1 << 20];
    for _ in 0..mib {
        rand::rng().fill_bytes(&mut block);
        file.write_all(&block)?;
    }
    Ok(path)
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output
        .map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

struct Bench {
    file: PathBuf,
    bytes: u64,
    objects: PathBuf,
    key: String,
    nginx: Nginx,
    server: Server,
}

impl Bench {
    /// The server's largest memory while each client uploads the file, as a table.
    fn memory(&self) -> Result<String> {
        let mut node = clients!().node()?;
        node.arg(Path::new(SCRIPTS).join("upload.mjs"));
        let mut python = clients!().python()?;
        python.env("PYTHONPATH", DOCS).arg(Path::new(SCRIPTS).join("upload.py"));
        let mut table = format!(
            "| the server's largest resident memory (aim: below 100 MB) | MB |\n|---|---:|\n| before the first upload | {:.1} |\n",
            self.largest_memory()?
        );
        for (name, client) in [("`@fal-ai/client`", &mut node), ("`fal-client`", &mut python)] {
            eprintln!("{name} uploads");
            self.forget_memory()?;
            client.arg(&self.file).env("KILN_URL", &self.server.base).env("FAL_KEY", &self.key);
            let output = client.output().context("the client cannot be started")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let url = String::from_utf8(output.stdout)?;
            table += &format!("| while {name} uploads | {:.1} |\n", self.largest_memory()?);
            self.forget_memory()?;
            let path = url.trim().strip_prefix(&self.server.base).context("kiln's own address")?;
            self.compare(path)?;
            table += &format!("| while that file is read | {:.1} |\n", self.largest_memory()?);
            self.remove_uploads()?;
        }
        Ok(table)
    }

    /// Whether a file of the server is the file, byte for byte.
    fn compare(&self, path: &str) -> Result<()> {
        let url = format!("{}{path}", self.server.base);
        let script = "set -euo pipefail; curl -sSf \"$0\" | cmp - \"$1\"";
        checked(Command::new("bash").args(["-c", script, &url]).arg(&self.file))
    }

    /// Largest resident memory of the server, in millions of bytes.
    fn largest_memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0 / 1e6)
    }

    /// Begins the measurement of memory anew.
    fn forget_memory(&self) -> Result<()> {
        // 5: "the peak resident set size is set to the current one".
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.server.process.id()), "5")?)
    }

    /// Uploads are never deleted by clients; the benchmark would fill the disk.
    fn remove_uploads(&self) -> Result<()> {
        Ok(std::fs::remove_dir_all(&self.objects)?)
    }

    fn throughput(&self, rounds: usize) -> Result<String> {
        std::fs::hard_link(&self.file, self.nginx.root.join("file.bin"))?;
        let (kept, _) = self.put_whole()?;
        let mut down = (Rates::default(), Rates::default());
        let [mut put, mut synced, mut whole, mut serial, mut parallel] = [const { Rates(Vec::new()) }; 5];
        for round in 1..=rounds {
            eprintln!("round {round} of {rounds}");
            down.1.add(self.bytes, get(&self.nginx.address, "/file.bin", self.bytes)?);
            down.0.add(self.bytes, get(self.server.address(), &kept, self.bytes)?);
            let (answered, on_disk) = self.put_to_nginx()?;
            put.add(self.bytes, answered);
            synced.add(self.bytes, on_disk);
            whole.add(self.bytes, self.put_whole()?.1);
            serial.add(self.bytes, self.put_parts_in_turn()?);
            parallel.add(self.bytes, self.put_parts_at_once()?);
            // The file that is read stays.
            for entry in std::fs::read_dir(&self.objects)? {
                let path = entry?.path();
                if !kept.contains(&*path.file_name().unwrap_or_default().to_string_lossy()) {
                    std::fs::remove_dir_all(path)?;
                }
            }
        }
        let mut table =
            "| MiB/s (aim: at least half of nginx) | middle | rounds | ÷ nginx | ÷ nginx with fsync |\n\
             |---|---:|---|---:|---:|\n"
                .to_owned();
        table += &down.1.row("nginx: download", None, None);
        table += &down.0.row("kiln: download", Some(&down.1), None);
        table += &put.row("nginx: upload in one `PUT`, in the page cache", None, None);
        table += &synced.row("nginx: the same, then fsync", None, None);
        table += &whole.row("kiln: upload in one `PUT`, on the disk", Some(&put), Some(&synced));
        table += &serial.row(
            "kiln: in parts of 10 MiB, one after the other (JavaScript)",
            Some(&put),
            Some(&synced),
        );
        table += &parallel.row("kiln: in parts of 10 MiB, ten at once (Python)", Some(&put), Some(&synced));
        Ok(table)
    }

    fn whole_file(&self) -> Body<'_> {
        Body::File(&self.file, 0..self.bytes)
    }

    /// Until the answer, and until the bytes are on the disk.
    fn put_to_nginx(&self) -> Result<(Duration, Duration)> {
        let path = self.nginx.root.join("put.bin");
        let mut connection = Connection::open(&self.nginx.address)?;
        rustix::fs::sync();
        let began = Instant::now();
        connection.send("PUT /put.bin", &[], &self.whole_file())?;
        let answered = began.elapsed();
        File::open(&path)?.sync_all()?;
        let on_disk = began.elapsed();
        std::fs::remove_file(path)?;
        Ok((answered, on_disk))
    }

    /// The path of the file, and the time that it took.
    fn put_whole(&self) -> Result<(String, Duration)> {
        let (file, upload) = self.initiate("initiate")?;
        let mut connection = Connection::open(self.server.address())?;
        rustix::fs::sync();
        let began = Instant::now();
        connection.send(&format!("PUT {upload}"), &[], &self.whole_file())?;
        Ok((file, began.elapsed()))
    }

    fn put_parts_in_turn(&self) -> Result<Duration> {
        let (_, upload) = self.initiate("initiate-multipart")?;
        let (path, query) = upload.split_once('?').context("a secret")?;
        let mut connection = Connection::open(self.server.address())?;
        rustix::fs::sync();
        let began = Instant::now();
        let mut parts = Vec::new();
        for number in 1..=self.bytes.div_ceil(PART_BYTES) {
            let head = format!("PUT {path}/{number}?{query}");
            let answer = connection.send(&head, &[], &part(&self.file, self.bytes, number))?;
            parts.push(json!({ "partNumber": number, "etag": answer.etag.context("an etag")? }));
        }
        let body = json!({ "parts": parts }).to_string();
        connection.send(&format!("POST {path}/complete?{query}"), &[], &Body::Bytes(body.as_bytes()))?;
        Ok(began.elapsed())
    }

    fn put_parts_at_once(&self) -> Result<Duration> {
        let mut connection = Connection::open(self.server.address())?;
        let key = format!("Key {}", self.key);
        let token = "POST /rest/storage/auth/token?storage_type=fal-cdn-v3";
        let token = read(&connection.send(token, &[("authorization", &key)], &Body::Bytes(b"{}"))?.body)?;
        let bearer = format!("Bearer {}", text(&token, "token")?);
        let begun = connection.send(
            "POST /cdn/files/upload/multipart",
            &[("authorization", &bearer), ("x-fal-file-name", "file.bin")],
            &Body::None,
        )?;
        let begun = read(&begun.body)?;
        let access =
            text(&begun, "access_url")?.strip_prefix(&self.server.base).context("kiln's own address")?;
        let at = format!("{access}/multipart/{}", text(&begun, "uploadId")?);
        let count = self.bytes.div_ceil(PART_BYTES);
        rustix::fs::sync();
        let began = Instant::now();
        let parts = std::thread::scope(|scope| {
            let sender = |first: u64| {
                let (at, bearer, address) = (&at, &bearer, self.server.address());
                let (file, bytes) = (self.file.as_path(), self.bytes);
                move || {
                    let mut connection = Connection::open(address)?;
                    let mut parts = Vec::new();
                    for number in (first..=count).step_by(usize::try_from(AT_ONCE)?) {
                        let head = format!("PUT {at}/{number}");
                        let answer = connection.send(
                            &head,
                            &[("authorization", bearer)],
                            &part(file, bytes, number),
                        )?;
                        parts.push(json!({ "partNumber": number, "etag": answer.etag.context("an etag")? }));
                    }
                    anyhow::Ok(parts)
                }
            };
            let senders: Vec<_> = (1..=AT_ONCE).map(|first| scope.spawn(sender(first))).collect();
            let mut all = Vec::new();
            for sender in senders {
                all.extend(sender.join().expect("invariant: a sender returns its errors")?);
            }
            anyhow::Ok(all)
        })?;
        let body = json!({ "parts": parts }).to_string();
        let headers = [("authorization", bearer.as_str())];
        connection.send(&format!("POST {at}/complete"), &headers, &Body::Bytes(body.as_bytes()))?;
        Ok(began.elapsed())
    }

    /// Path of the file, and path and query to write it to.
    fn initiate(&self, how: &str) -> Result<(String, String)> {
        let mut connection = Connection::open(self.server.address())?;
        let key = format!("Key {}", self.key);
        let answer = connection.send(
            &format!("POST /rest/storage/upload/{how}?storage_type=fal-cdn-v3"),
            &[("authorization", &key)],
            &Body::Bytes(br#"{"file_name": "file.bin", "content_type": "application/octet-stream"}"#),
        )?;
        let answer = read(&answer.body)?;
        let path = |name| -> Result<String> {
            let path = text(&answer, name)?.strip_prefix(&self.server.base).context("kiln's own address")?;
            Ok(path.to_owned())
        };
        Ok((path("file_url")?, path("upload_url")?))
    }
}

fn part(file: &Path, bytes: u64, number: u64) -> Body<'_> {
    Body::File(file, (number - 1) * PART_BYTES..(number * PART_BYTES).min(bytes))
}

fn get(address: &str, path: &str, bytes: u64) -> Result<Duration> {
    let mut connection = Connection::open(address)?;
    let began = Instant::now();
    let answer = connection.send(&format!("GET {path}"), &[], &Body::None)?;
    ensure!(answer.bytes == bytes, "{path}: {} bytes", answer.bytes);
    Ok(began.elapsed())
}

fn read(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).with_context(|| String::from_utf8_lossy(body).into_owned())
}

fn text<'a>(answer: &'a Value, name: &str) -> Result<&'a str> {
    answer[name].as_str().with_context(|| format!("no {name} in {answer}"))
}

/// MiB/s of each round.
#[derive(Default)]
struct Rates(Vec<f64>);

impl Rates {
    fn add(&mut self, bytes: u64, time: Duration) {
        self.0.push(bytes as f64 / f64::from(1 << 20) / time.as_secs_f64());
    }

    fn middle(&self) -> f64 {
        let mut rates = self.0.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn row(&self, what: &str, beside: Option<&Rates>, synced: Option<&Rates>) -> String {
        let ratio = |other: Option<&Rates>| {
            other.map(|other| format!("{:.2}", self.middle() / other.middle())).unwrap_or_default()
        };
        let rounds: Vec<String> = self.0.iter().map(|rate| format!("{rate:.0}")).collect();
        format!(
            "| {what} | {:.0} | {} | {} | {} |\n",
            self.middle(),
            rounds.join(", "),
            ratio(beside),
            ratio(synced)
        )
    }
}
