//! What can be typed after `kiln`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Trains LoRA adapters for LTX-2.3 behind fal-compatible queue endpoints, on your own machine.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    max_term_width = 110,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        kiln serve                          start the server; the first start prints a key\n  \
        kiln work                           start a worker beside it\n  \
        kiln keys create laptop             one more key\n  \
        kiln doctor                         look for what is wrong with this machine\n  \
        kiln config                         every setting, its value and where it comes from\n\n\
        Settings come from a file (--config), the environment (KILN_SERVE_LISTEN is serve.listen) and flags, the later \
        ones winning. Without a database address kiln runs a private Postgres in its data folder."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub(crate) struct Shared {
    /// File of settings, as configs/default.toml
    #[arg(long, global = true, value_name = "FILE", env = "KILN_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Folder for everything kiln keeps on this machine
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(crate) data_dir: Option<String>,
    /// Address of a Postgres database, in place of the private one
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Form of the log lines on standard error
    #[arg(long, global = true, value_name = "text|json")]
    pub(crate) log_format: Option<String>,
    /// Level of the log lines, or levels per module: debug, "info,kiln_server=debug"
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the HTTP endpoints
    #[command(after_help = "Examples:\n  \
        kiln serve\n  \
        kiln serve --listen 0.0.0.0:8080 --public-url https://kiln.example.com\n  \
        kiln serve --insecure-no-auth       without keys, on a loopback address only\n\n\
        How to point the official clients here: docs/API.md.")]
    Serve(Serve),
    /// Claim jobs and train them
    #[command(after_help = "Examples:\n  \
        kiln work\n  \
        kiln work --name gpu-box-1 --database-url postgres://kiln@db.internal/kiln\n\n\
        SIGTERM or Ctrl-C stops the running job and hands it back to the queue; another worker takes it over.")]
    Work(Work),
    /// Bring the database's tables up to date (serve and work do so by themselves)
    Migrate,
    /// Make, list and revoke the keys that clients send
    #[command(subcommand)]
    Keys(Keys),
    /// Print the endpoints that can be trained
    #[command(after_help = "Examples:\n  kiln modes\n  kiln modes --format json")]
    Modes(Listing),
    /// Look at weight files, make tiny ones
    #[command(subcommand)]
    Model(Model),
    /// Check database, storage and disk; says what to do about what is wrong
    Doctor,
    /// Print every setting with its value and where it comes from
    #[command(after_help = "Examples:\n  \
        kiln config --config kiln.toml\n  \
        kiln config --defaults > kiln.toml      a file to start from")]
    Config(Config),
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address and port; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<String>,
    /// How clients reach this server; addresses in answers start with it
    #[arg(long, value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Accept requests without a key; refused unless the address is a loopback one
    #[arg(long)]
    pub(crate) insecure_no_auth: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Work {
    /// Name of this worker in the job table and in logs
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a key and print it once
    Create {
        /// What or whom it is for
        name: String,
    },
    /// List the keys, without their secrets
    List(Listing),
    /// Make a key useless, at once and for good
    Revoke {
        /// The part of the key before the colon
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// Say what a weight file holds and what in it does not fit LTX-2.3 (reads headers only)
    #[command(after_help = "Examples:\n  \
        kiln model inspect ltx-2.3-22b-dev.safetensors\n  \
        kiln model inspect gemma-3-12b-it-qat-q4_0-unquantized\n\n\
        The exit status is 1 when something does not fit.")]
    Inspect(Inspect),
    /// Write a tiny LTX-2.3 and a tiny Gemma with random weights, in the layouts of the originals
    #[command(after_help = "Examples:\n  \
        kiln model init-tiny --out tiny\n  \
        kiln model init-tiny --out odd --seed 7 --size heads=3 --size head_dim=20 --size gemma_width=48\n  \
        kiln model init-tiny --sizes-only       every size and its value")]
    InitTiny(InitTiny),
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A checkpoint, or Gemma's folder
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// List every tensor too
    #[arg(long)]
    pub(crate) tensors: bool,
    /// A table for people, or JSON for programs
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct InitTiny {
    /// Folder the model is written to; nothing in it is overwritten
    #[arg(long, value_name = "DIR", required_unless_present = "sizes_only")]
    pub(crate) out: Option<PathBuf>,
    /// The same seed and sizes give the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Change a size; may be given several times
    #[arg(long = "size", value_name = "NAME=N")]
    pub(crate) sizes: Vec<String>,
    /// Print the sizes and write nothing
    #[arg(long)]
    pub(crate) sizes_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// A table for people, or JSON for programs
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Config {
    /// Print a file with every key, its meaning and its default
    #[arg(long)]
    pub(crate) defaults: bool,
}

/// Form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table
    Text,
    /// JSON
    Json,
}

#[cfg(test)]
mod tests {
    use super::Arguments;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }
}
