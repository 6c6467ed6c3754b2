//! `[api]` and `[metrics]`: where the service answers, and to whom. Pure.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::{Table, Value};

use super::section::{Problem, Section};
use super::{absolute_path, socket_path};

/// Who may call, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// Absolute, and short enough for a socket's address.
    pub socket: PathBuf,
    /// The group that may open it, beside its owner.
    pub socket_group: Option<String>,
    /// A second socket, for callers that may only read.
    pub read_only_socket: Option<PathBuf>,
    pub read_only_group: Option<String>,
    /// The API over TCP, with mutual TLS.
    pub tls: Option<TlsConfig>,
}

/// The listener over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    pub listen: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs callers' certificates.
    pub client_ca: PathBuf,
    pub allowed: SpiffeIds,
}

/// Callers by the SPIFFE id of their certificate; one that ends in `/*` stands for all below it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpiffeIds {
    pub full: Vec<String>,
    pub read_only: Vec<String>,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    pub socket: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    /// Whether there are series for each VM.
    pub vm_labels: bool,
}

pub(super) fn api(file: &mut Table, problems: &mut Vec<Problem>) -> Option<ApiConfig> {
    let mut section = Section::of(file, "api", problems);
    let socket = section.take("socket", "/run/guestnet/guestnet.sock", socket_path);
    let socket_group = section.take("socket_group", "", group);
    let read_only_socket = section.take("read_only_socket", "", unless_empty(socket_path));
    let read_only_group = section.take("read_only_group", "", group);
    let listen = section.take("listen", "", unless_empty(address));
    let certificate = section.take("tls_certificate", "", unless_empty(absolute_path));
    let key = section.take("tls_key", "", unless_empty(absolute_path));
    let client_ca = section.take("tls_client_ca", "", unless_empty(absolute_path));
    let full = section.take("spiffe_ids", Value::Array(vec![]), spiffe_ids);
    let read_only = section.take("read_only_spiffe_ids", Value::Array(vec![]), spiffe_ids);
    let allowed = SpiffeIds { full: full.unwrap_or_default(), read_only: read_only.unwrap_or_default() };

    if socket.is_some() && read_only_socket.as_ref() == Some(&socket) {
        section
            .problem("read_only_socket", "it is the socket of callers that may do all; choose another path");
    }
    let tls = match (listen?, certificate?, key?, client_ca?) {
        (None, ..) => None,
        (Some(listen), Some(certificate), Some(key), Some(client_ca)) => {
            Some(TlsConfig { listen, certificate, key, client_ca, allowed })
        }
        (Some(listen), ..) => {
            let message = format!(
                "{listen} needs tls_certificate, tls_key and tls_client_ca: the API is served over TCP with mutual TLS \
                 only"
            );
            section.problem("listen", message);
            None
        }
    };
    section.finish();
    Some(ApiConfig {
        socket: socket?,
        socket_group: socket_group?,
        read_only_socket: read_only_socket?,
        read_only_group: read_only_group?,
        tls,
    })
}

pub(super) fn metrics(file: &mut Table, problems: &mut Vec<Problem>) -> Option<MetricsConfig> {
    let mut section = Section::of(file, "metrics", problems);
    let socket = section.take("socket", "/run/guestnet/metrics.sock", unless_empty(socket_path));
    let listen = section.take("listen", "", unless_empty(loopback));
    let vm_labels = section.take("vm_labels", false, |value| value.as_bool().ok_or("true or false".into()));
    section.finish();
    Some(MetricsConfig { socket: socket?, listen: listen?, vm_labels: vm_labels? })
}

/// An empty string is nothing; anything else is for `parse`.
pub(super) fn unless_empty<T>(
    parse: impl FnOnce(&Value) -> Result<T, String>,
) -> impl FnOnce(&Value) -> Result<Option<T>, String> {
    move |value| match value.as_str() {
        Some("") => Ok(None),
        _ => parse(value).map(Some),
    }
}

fn group(value: &Value) -> Result<Option<String>, String> {
    let name = value.as_str().filter(|name| !name.contains(['\0', ':', '\n']));
    name.map(|name| Some(name.to_owned()).filter(|name| !name.is_empty())).ok_or("the name of a group".into())
}

fn address(value: &Value) -> Result<SocketAddr, String> {
    let address = value.as_str().and_then(|text| text.parse::<SocketAddr>().ok());
    address.ok_or("an address and port, like 192.0.2.7:8443".into())
}

fn loopback(value: &Value) -> Result<SocketAddr, String> {
    let address = address(value).ok().filter(|address| address.ip().is_loopback());
    address.ok_or(
        "a loopback address and port, like 127.0.0.1:9477: metrics are served to this machine only".into(),
    )
}

fn spiffe_ids(value: &Value) -> Result<Vec<String>, String> {
    let id = |item: &Value| {
        let text = item.as_str()?.strip_prefix("spiffe://")?;
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/*".contains(&b));
        let star = !text.contains('*') || (text.ends_with("/*") && text.matches('*').count() == 1);
        (plain && star && !text.is_empty()).then(|| format!("spiffe://{text}"))
    };
    let ids: Option<Vec<String>> = value.as_array().and_then(|items| items.iter().map(id).collect());
    ids.ok_or(
        "a list of SPIFFE ids, like [\"spiffe://example.org/metald\", \"spiffe://example.org/host/*\"]"
            .into(),
    )
}

impl SpiffeIds {
    /// Whether `id` is one of `list`.
    pub fn lists(list: &[String], id: &str) -> bool {
        list.iter().any(|listed| match listed.strip_suffix('*') {
            Some(prefix) => id.len() > prefix.len() && id.starts_with(prefix),
            None => id == listed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_all_below_and_nothing_beside() {
        let list = ["spiffe://a/metald".to_owned(), "spiffe://a/host/*".to_owned()];
        for (id, listed) in [
            ("spiffe://a/metald", true),
            ("spiffe://a/metald/x", false),
            ("spiffe://a/host/1", true),
            ("spiffe://a/host/", false),
            ("spiffe://a/hosts/1", false),
        ] {
            assert_eq!(SpiffeIds::lists(&list, id), listed, "{id}");
        }
    }
}
