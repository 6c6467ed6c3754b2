//! What guestnet was told to do: TOML text and environment variables in, checked networks out, or every problem at once,
//! each with its key, its value and what would fit. Parsed once, here; nobody validates again.

mod env;
mod lines;
mod network;
mod reservation;
mod resolver;
mod section;
mod service;
mod telemetry;
mod walls;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::{Table, Value};
use tracing_subscriber::EnvFilter;

use crate::model::{Network, Reservation};
pub use section::Problem;
use section::Section;
pub use service::{ApiConfig, MetricsConfig, SpiffeIds, TlsConfig};
pub use telemetry::{Collector, TelemetryConfig};

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file as it was read.
    pub file: Table,
    /// The same as text, for the lines of its keys.
    text: String,
    pub api: ApiConfig,
    pub metrics: MetricsConfig,
    pub telemetry: TelemetryConfig,
    /// What is logged: a filter of tracing-subscriber.
    pub log_filter: String,
    /// Absolute.
    pub state_directory: PathBuf,
    /// At least one; the first is the default network.
    pub networks: Vec<Arc<Network>>,
    /// `[[network.reservation]]` of all networks.
    pub reservations: Vec<Reservation>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the configuration {} does not fit:\n{problems}", path.display())]
    Refused { path: PathBuf, problems: Problems },
    #[error(
        "the configuration {} is gone or empty: what it said stays in force; write it again in one go (mv over it), or leave a \
         comment in it and all is as it comes",
        path.display()
    )]
    Lost { path: PathBuf },
    #[error("reading the configuration was broken off")]
    BrokenOff,
}

/// All that is wrong with a configuration, at least one problem; one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

impl Config {
    pub const DEFAULT_PATH: &str = "/etc/guestnet/guestnet.toml";

    /// Reads the file and the environment of this process. No `path` means the default one, which need not exist.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_for(path, environment)
    }

    /// The same for a process whose environment is another.
    pub fn load_for(
        path: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let text = read(path)?;
        Self::from_parts(text.as_deref(), environment).map_err(|problems| refusal(path, problems))
    }

    /// Where the state is, whatever else in the file fits or not; no variable says it.
    pub fn state_directory_of(path: Option<&Path>) -> Result<PathBuf, ConfigError> {
        let mut problems = Vec::new();
        let directory = parse(&read(path)?.unwrap_or_default())
            .map(|mut file| state_directory(&mut file, &mut problems))
            .map_err(|problems| refusal(path, problems))?;
        directory.ok_or_else(|| refusal(path, Problems(problems)))
    }

    /// Whether the file was not there, or has not even a comment.
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// The variable of this process that goes before the file's `key`, like `network[0].dns_servers`.
    pub fn overriding(key: &str) -> Option<&'static str> {
        let variable = env::variable_of(key.strip_prefix("network[0].")?)?;
        environment(variable).map(|_| variable)
    }

    /// The socket that a file names, whatever else is in it.
    pub fn socket_of(path: &Path) -> Option<PathBuf> {
        let file: Table = std::fs::read_to_string(path).ok()?.parse().ok()?;
        let socket = file.get("api")?.get("socket")?.as_str()?;
        Some(socket.into())
    }

    /// The same with a file that was read before, and changed since.
    pub fn of_table(path: Option<&Path>, file: Table) -> Result<Self, ConfigError> {
        Self::from_table(file, environment).map_err(|problems| refusal(path, problems))
    }

    /// That one more thing does not fit, found out by who uses it.
    pub fn refused(&self, path: Option<&Path>, problem: Problem) -> ConfigError {
        let line = lines::of(&self.text, &problem.key);
        refusal(path, Problems(vec![Problem { line, ..problem }]))
    }

    /// The same without file and process: `text` is the file, if there is one, `env` looks a variable up.
    pub fn from_parts(text: Option<&str>, env: impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let text = text.unwrap_or_default();
        match Self::from_table(parse(text)?, env) {
            Ok(config) => Ok(Self { text: text.to_owned(), ..config }),
            Err(Problems(problems)) => {
                let with_line = |problem: Problem| Problem { line: lines::of(text, &problem.key), ..problem };
                Err(Problems(problems.into_iter().map(with_line).collect()))
            }
        }
    }

    fn from_table(mut file: Table, env: impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let whole = file.clone();
        let mut problems = Vec::new();

        let api = service::api(&mut file, &mut problems);
        let metrics = service::metrics(&mut file, &mut problems);
        let telemetry = telemetry::read(&mut file, &mut problems);
        let mut log = Section::of(&mut file, "log", &mut problems);
        let log_filter = log.take("filter", "info", log_filter);
        log.finish();
        let state_directory = state_directory(&mut file, &mut problems);

        let tables = network_tables(&mut file, &mut problems);
        let mut read = Vec::new();
        for (at, table) in tables.into_iter().enumerate() {
            let mut section = Section::new(format!("network[{at}]"), table, &mut problems);
            if at == 0 {
                env::apply(&env, &mut section);
            }
            read.extend(network::read(section));
        }
        let clashes = network::clashes(&read);
        problems.extend(clashes.into_iter().map(|(key, message)| Problem::new(key, message)));
        problems.extend(env::refusal(&env));
        let known = "unknown key; known here: [api], [metrics], [telemetry], [log], [state], [[network]]";
        problems.extend(file.into_iter().map(|(key, _)| Problem::new(key, known)));

        match (api, metrics, telemetry, log_filter, state_directory) {
            (Some(api), Some(metrics), Some(telemetry), Some(log_filter), Some(state_directory))
                if problems.is_empty() =>
            {
                let (mut networks, mut reservations) = (Vec::new(), Vec::new());
                for read in read {
                    networks.push(Arc::new(read.network));
                    reservations.extend(read.reservations);
                }
                let text = String::new();
                Ok(Self {
                    file: whole,
                    text,
                    api,
                    metrics,
                    telemetry,
                    log_filter,
                    state_directory,
                    networks,
                    reservations,
                })
            }
            _ => Err(Problems(problems)),
        }
    }
}

/// The text of the file; none where it is not named and not there.
fn read(path: Option<&Path>) -> Result<Option<String>, ConfigError> {
    let file = path.unwrap_or(Path::new(Config::DEFAULT_PATH));
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(missing) if path.is_none() && missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Unreadable { path: file.to_owned(), source }),
    }
}

/// A syntax error says where it is.
fn parse(text: &str) -> Result<Table, Problems> {
    text.parse().map_err(|syntax: toml::de::Error| Problems(vec![Problem::new("", syntax.to_string())]))
}

fn refusal(path: Option<&Path>, problems: Problems) -> ConfigError {
    let path = path.unwrap_or(Path::new(Config::DEFAULT_PATH)).to_owned();
    ConfigError::Refused { path, problems }
}

fn state_directory(file: &mut Table, problems: &mut Vec<Problem>) -> Option<PathBuf> {
    let mut state = Section::of(file, "state", problems);
    let directory = state.take("directory", "/var/lib/guestnet", absolute_path);
    state.finish();
    directory
}

/// The `[[network]]` tables; one with every default when there is none.
fn network_tables(file: &mut Table, problems: &mut Vec<Problem>) -> Vec<Table> {
    let mut refuse = |key: String, value: &Value| {
        problems.push(Problem::new(key, format!("{value} is not a [[network]] table")));
    };
    let items = match file.remove("network") {
        None => return vec![Table::new()],
        Some(Value::Array(items)) if !items.is_empty() => items,
        // `[network]` for `[[network]]`: no table to read, but nothing to read wrong either.
        Some(other) => {
            refuse("network".into(), &other);
            return Vec::new();
        }
    };
    let mut tables = Vec::new();
    for (at, item) in items.into_iter().enumerate() {
        match item {
            Value::Table(table) => tables.push(table),
            other => refuse(format!("network[{at}]"), &other),
        }
    }
    tables
}

/// A variable of this process. A value that is not UTF-8 cannot fit any key; lossy, it is refused by the key's own check.
fn environment(variable: &str) -> Option<String> {
    std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned())
}

fn log_filter(value: &Value) -> Result<String, String> {
    let expected = "what to log, like \"info\", or \"info,guestnet::dns=debug\"";
    let text = value.as_str().filter(|text| !text.is_empty()).ok_or(expected)?;
    let filter: Result<EnvFilter, _> = text.parse();
    filter.map(|_| text.to_owned()).map_err(|error| format!("{expected}: {error}"))
}

fn absolute_path(value: &Value) -> Result<PathBuf, String> {
    let path = value.as_str().filter(|path| path.starts_with('/') && !path.contains('\0'));
    path.map(PathBuf::from).ok_or("an absolute path".into())
}

/// sun_path holds 108 bytes, the last of them NUL (unix(7)).
fn socket_path(value: &Value) -> Result<PathBuf, String> {
    let path = absolute_path(value).ok().filter(|path| path.as_os_str().len() < 108);
    path.ok_or("an absolute path of at most 107 bytes".into())
}

#[cfg(test)]
mod tests;
