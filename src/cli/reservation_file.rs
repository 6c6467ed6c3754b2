//! Files of reservations. PURE. In: text, as JSON (an array, or an object a line), or as lines of `MAC ADDRESS [HOSTNAME]`
//! with blanks or commas between, as other servers' files can be made to look. Out: reservations, or the line that does
//! not fit.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::Deserialize;

use crate::model::{DhcpOptions, Hostname, Mac, NetworkName};

/// A reservation as a file has it; `reservation list --json` prints such.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    #[serde(default, alias = "network_id")]
    pub(super) network: Option<NetworkName>,
    #[serde(alias = "mac_address")]
    pub(super) mac: Mac,
    #[serde(default)]
    pub(super) ip_address: Option<Ipv4Addr>,
    #[serde(default)]
    pub(super) hostname: Option<Hostname>,
    #[serde(default)]
    pub(super) dhcp_options: Option<DhcpOptions>,
    /// Printed by `list`, of no meaning here.
    #[serde(default, rename = "configured")]
    _configured: bool,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(super) struct BadFile {
    line: usize,
    what: String,
}

pub(super) fn read(text: &str) -> Result<Vec<Entry>, BadFile> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|error| BadFile { line: error.line(), what: error.to_string() });
    }
    let mut entries = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        // A spreadsheet's first line.
        if line.is_empty() || (at == 0 && line.to_ascii_lowercase().starts_with("mac")) {
            continue;
        }
        let entry = if line.starts_with('{') {
            serde_json::from_str(line).map_err(|error| error.to_string())
        } else {
            words(line)
        };
        entries.push(entry.map_err(|what| BadFile { line: at + 1, what })?);
    }
    Ok(entries)
}

fn words(line: &str) -> Result<Entry, String> {
    fn part<T: FromStr<Err: ToString>>(what: &str, word: &str) -> Result<T, String> {
        word.parse().map_err(|error: T::Err| format!("{what}: {}", error.to_string()))
    }
    let line = line.strip_prefix("dhcp-host=").unwrap_or(line);
    let mut words = line.split([',', ' ', '\t', ';']).filter(|word| !word.is_empty());
    let mac = part("MAC address", words.next().unwrap_or_default())?;
    let address = words.next().map(|word| part("IP address", word)).transpose()?;
    let hostname = words.next().map(|word| part("host name", word)).transpose()?;
    match words.next() {
        None => Ok(Entry {
            network: None,
            mac,
            ip_address: address,
            hostname,
            dhcp_options: None,
            _configured: false,
        }),
        Some(word) => Err(format!("{word:?} is more than a MAC address, an IP address and a host name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_says_the_same() {
        let wanted = read("52:54:00:00:00:01 10.9.0.7 build\n52:54:00:00:00:02 10.9.0.8\n").unwrap();
        assert_eq!(wanted.len(), 2);
        assert_eq!(wanted[0].hostname.as_ref().unwrap().as_str(), "build");
        for text in [
            "mac,ip_address,hostname\n52:54:00:00:00:01,10.9.0.7,build\n52:54:00:00:00:02,10.9.0.8\n",
            "# ours\ndhcp-host=52:54:00:00:00:01,10.9.0.7,build\n\n52:54:00:00:00:02\t10.9.0.8 # the other\n",
            r#"[{"mac": "52:54:00:00:00:01", "ip_address": "10.9.0.7", "hostname": "build"},
                {"mac_address": "52:54:00:00:00:02", "ip_address": "10.9.0.8"}]"#,
            "{\"mac\": \"52:54:00:00:00:01\", \"ip_address\": \"10.9.0.7\", \"hostname\": \"build\"}\n\
             {\"mac\": \"52:54:00:00:00:02\", \"ip_address\": \"10.9.0.8\"}",
        ] {
            assert_eq!(read(text).unwrap(), wanted, "{text}");
        }
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_line() {
        for (text, named) in [
            ("52:54:00:00:00:01 10.9.0.7\n52:54:00:00:00 10.9.0.8", "line 2: MAC address"),
            ("52:54:00:00:00:01 10.9.0", "line 1: IP address"),
            ("52:54:00:00:00:01 10.9.0.7 a_b", "line 1: host name"),
            ("52:54:00:00:00:01 10.9.0.7 a b", "line 1: \"b\" is more"),
            ("[{\"mac\": \"52:54:00:00:00:01\", \"ip\": \"10.9.0.7\"}]", "unknown field `ip`"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
