use std::net::IpAddr;
use std::path::PathBuf;

use super::{Invalid, Upstream, VmId, WorkspaceId};

/// A checked `[network.resolver]`: how a network's resolver answers beyond forwarding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverSettings {
    /// Bytes of answers the network's guests share.
    pub cache_bytes: usize,
    /// Seconds; a shorter TTL is held this long, and told as this, except 0.
    pub min_ttl: u32,
    /// Seconds; no answer is held longer, or told to.
    pub max_ttl: u32,
    /// Whether answers that name private addresses are withheld.
    pub rebind_protection: bool,
    /// Names, and all below them, that may have private addresses.
    pub rebind_exempt: Vec<DnsName>,
    /// Whether answers are validated by DNSSEC.
    pub dnssec: bool,
    /// Trust anchors for it, in zone-file format; none: the root's own.
    pub trust_anchor: Option<PathBuf>,
    /// Certificates of authorities that upstreams' certificates may come from, besides the host's own.
    pub upstream_ca: Option<PathBuf>,
    /// Of so many queries one is logged; 0 is none.
    pub query_log: u32,
    /// Queries a second that one guest may ask; 0 is no limit of its own.
    pub queries_per_second: u32,
    /// Names in the form of hosts(5).
    pub hosts_file: Option<PathBuf>,
    /// Zones that are answered here and never forwarded.
    pub zones: Vec<DnsName>,
    pub records: Vec<DnsRecord>,
    /// Suffixes with upstreams of their own.
    pub forward: Vec<ForwardZone>,
    /// First match first.
    pub rules: Vec<DnsRule>,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            min_ttl: 0,
            max_ttl: 86_400,
            rebind_protection: true,
            rebind_exempt: Vec::new(),
            dnssec: false,
            trust_anchor: None,
            upstream_ca: None,
            query_log: 0,
            queries_per_second: 0,
            hosts_file: None,
            zones: Vec::new(),
            records: Vec::new(),
            forward: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// Questions below `domain` go to `servers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardZone {
    pub domain: DnsName,
    pub servers: Vec<Upstream>,
}

/// A record of our own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DnsRecord {
    /// Absolute, or below the network's domain if it was given without a final dot; may begin with `*.`.
    pub name: DnsName,
    /// `A`, `AAAA`, `CNAME`, `MX`, `TXT`, `SRV`, `PTR`, `CAA`, …
    pub rtype: String,
    /// As in a zone file.
    pub value: String,
    /// Seconds.
    pub ttl: u32,
}

impl DnsRecord {
    /// The owner that `text` means in `domain`: `@` is the domain, a final dot makes a name absolute, any other is below.
    pub fn owner(text: &str, domain: &str) -> Result<DnsName, Invalid> {
        let absolute = match text {
            "@" => domain.to_owned(),
            _ if text.ends_with('.') => text.to_owned(),
            _ => format!("{text}.{domain}"),
        };
        absolute.parse().map_err(|_| {
            Invalid::new(
                text,
                "a name below the network's domain, \"@\" for the domain, or a name with a final dot",
            )
        })
    }
}

/// What guests may look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsRule {
    /// For people, counters and the log.
    pub name: String,
    pub names: Vec<DnsName>,
    /// More names: one a line, or in the form of hosts(5).
    pub file: Option<PathBuf>,
    pub action: DnsAction,
    /// Whom it is for; none named: every guest.
    pub vms: Vec<VmId>,
    pub workspaces: Vec<WorkspaceId>,
    /// Only counted and logged, not carried out.
    pub dry_run: bool,
}

/// What becomes of a question that a rule matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsAction {
    /// Answered as if there were no rules.
    Allow,
    NxDomain,
    NoData,
    Refused,
    Address(Vec<IpAddr>),
}

impl DnsAction {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::NxDomain => "nxdomain",
            Self::NoData => "nodata",
            Self::Refused => "refused",
            Self::Address(_) => "address",
        }
    }
}

/// A domain name as text: labels of 1 to 63 graphic ASCII characters without backslash, at most 253 in all; lowercase,
/// without final dot; empty for the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(String);

impl DnsName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for DnsName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "a domain name: labels of 1 to 63 characters, at most 253 in all";
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let fits = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
        };
        let whole = text == "." || (!name.is_empty() && name.len() <= 253 && name.split('.').all(fits));
        if whole { Ok(Self(name)) } else { Err(Invalid::new(text, expected)) }
    }
}

impl std::fmt::Display for DnsName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "." } else { &self.0 })
    }
}
super::serde_as_text!(DnsName);
