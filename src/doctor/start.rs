//! What the service is started with, whatever doctor itself was: the unit's file and variables where systemd has one. In: what
//! `systemctl show` says. Out: the configuration that the next start reads.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::host::Configuration;
use crate::config::{Config, ConfigError};

/// What the next start reads, and whether systemd says that the service runs already.
pub struct Started {
    /// If it fits.
    pub config: Option<Config>,
    pub configuration: Configuration,
    pub runs: bool,
}

pub fn started() -> Started {
    let shown = unit();
    let runs = shown.as_ref().is_some_and(|shown| shown.lines().any(|line| line == "ActiveState=active"));
    let (config, configuration) = configuration(shown.as_deref());
    Started { config, configuration, runs }
}

fn configuration(shown: Option<&str>) -> (Option<Config>, Configuration) {
    let start = shown.map(|shown| Start::of_unit(shown, |file| fs::read_to_string(file)));
    let loaded = match &start {
        Some(start) => {
            Config::load_for(start.config.as_deref(), |variable| start.variables.get(variable).cloned())
        }
        None => Config::load(None),
    };
    // Without variables that it may have, nothing is known of what it makes of the file.
    if let Some(why) = start.and_then(|start| start.unread) {
        return (loaded.ok(), Configuration::Hidden(why));
    }
    match loaded {
        Ok(config) => (Some(config), Configuration::Fits),
        Err(error @ ConfigError::Unreadable { .. }) if is_forbidden(&error) => {
            (None, Configuration::Hidden(error.to_string()))
        }
        Err(error) => (None, Configuration::Refused(error.to_string())),
    }
}

fn is_forbidden(error: &ConfigError) -> bool {
    matches!(error, ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
}

/// The unit with all that changes it; none where nothing is started by systemd.
fn unit() -> Option<String> {
    let properties = "--property=LoadState,ActiveState,ExecStart,Environment,EnvironmentFiles";
    let shown = Command::new("systemctl").args(["show", "guestnet.service", properties]).output().ok()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    shown.lines().any(|line| line == "LoadState=loaded").then_some(shown)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Start {
    config: Option<PathBuf>,
    variables: HashMap<String, String>,
    /// Why one of its files with variables cannot be read by who asks; what starts it may.
    unread: Option<String>,
}

impl Start {
    fn of_unit(shown: &str, read: impl Fn(&str) -> io::Result<String>) -> Self {
        let property = |name: &'static str| shown.lines().filter_map(move |line| line.strip_prefix(name));
        let assigned =
            |word: &str| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut start = Self::default();
        for line in property("ExecStart=") {
            let argv = line.split_once("argv[]=").and_then(|(_, rest)| rest.split(" ; ").next());
            let argv = words(argv.unwrap_or_default());
            let mut argv = argv.iter().skip_while(|word| !word.starts_with("--config"));
            let config = argv
                .next()
                .and_then(|word| word.strip_prefix("--config=").or(argv.next().map(String::as_str)));
            start.config = config.map(PathBuf::from);
        }
        start.variables.extend(property("Environment=").flat_map(words).filter_map(|word| assigned(&word)));
        // Files go before what is said in the unit (systemd.exec(5), EnvironmentFile=).
        for line in property("EnvironmentFiles=") {
            let file = line.rsplit_once(" (").map_or(line, |(file, _)| file);
            let text = read(file).unwrap_or_else(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    start.unread =
                        Some(format!("cannot read {file}, which the unit has variables from: {error}"));
                }
                String::new()
            });
            let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
            let read = lines.filter_map(|line| {
                let (name, value) = line.split_once('=')?;
                Some((name.trim_end().to_owned(), words(value).join(" ")))
            });
            start.variables.extend(read);
        }
        start
    }
}

/// As systemd writes and reads them: in quotes where they hold a blank (systemd.syntax(7), Quoting).
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (_, '\\') => word.get_or_insert_default().extend(characters.next()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_unit_and_its_files_say_is_what_the_service_starts_with() {
        let shown = "ExecStart={ path=/usr/bin/guestnet ; argv[]=/usr/bin/guestnet serve --config /etc/other.toml ; ignore_errors=no }\n\
                     Environment=A=1 \"B=x y\" C=3\n\
                     EnvironmentFiles=/etc/default/guestnet (ignore_errors=yes)\n\
                     EnvironmentFiles=/etc/none (ignore_errors=yes)\n\
                     LoadState=loaded\n";
        let none = |_: &str| Err(io::ErrorKind::NotFound.into());
        let read = |file: &str| match file {
            "/etc/default/guestnet" => Ok("# C=9\nC = \"4 5\"\n\nD='6'\nno\n".to_owned()),
            _ => none(file),
        };
        let start = Start::of_unit(shown, read);
        assert_eq!(start.config.as_deref(), Some("/etc/other.toml".as_ref()));
        assert_eq!(start.unread, None, "a file that is not there has nothing to read");
        let forbidden = Start::of_unit(shown, |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(forbidden.unread.as_ref().is_some_and(|why| why.contains("/etc/none")), "{forbidden:?}");
        let mut variables: Vec<_> = start.variables.into_iter().collect();
        variables.sort();
        let expected = [("A", "1"), ("B", "x y"), ("C", "4 5"), ("D", "6")];
        assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

        let plain = "ExecStart={ path=/usr/bin/guestnet ; argv[]=/usr/bin/guestnet serve ; ignore_errors=no }\nEnvironment=\n";
        assert_eq!(Start::of_unit(plain, none), Start::default());
        let joined = "ExecStart={ path=/x ; argv[]=/x serve --config=/a.toml ; }";
        assert_eq!(Start::of_unit(joined, none).config, Some("/a.toml".into()));
    }
}
