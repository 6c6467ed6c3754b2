use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use super::Invalid;

/// How an upstream DNS server is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UpstreamTransport {
    /// UDP, and TCP for what does not fit (RFC 1035, RFC 7766).
    Plain,
    /// DNS over TLS (RFC 7858); the name its certificate must have.
    Tls { name: String },
    /// DNS over HTTPS (RFC 8484); the name its certificate must have, and the path.
    Https { name: String, path: String },
}

/// A DNS server that questions are forwarded to: `8.8.8.8`, `10.0.0.53:5353`, `tls://1.1.1.1#one.one.one.one`,
/// `https://9.9.9.9/dns-query#dns.quad9.net`. Always by address: a name would need a resolver to find the resolver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub address: SocketAddr,
    pub transport: UpstreamTransport,
}

const EXPECTED: &str = "the address of a DNS server: 8.8.8.8, 10.0.0.53:5353, tls://1.1.1.1#one.one.one.one or \
                        https://9.9.9.9/dns-query#dns.quad9.net";

impl Upstream {
    pub fn plain(address: IpAddr) -> Self {
        Self { address: SocketAddr::new(address, 53), transport: UpstreamTransport::Plain }
    }

    /// Whether a guest can ask it itself, as its resolv.conf has it.
    pub fn is_plain_on_53(&self) -> bool {
        self.transport == UpstreamTransport::Plain && self.address.port() == 53
    }
}

impl FromStr for Upstream {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        read(text).filter(|upstream| is_unicast(upstream.address)).ok_or_else(|| Invalid::new(text, EXPECTED))
    }
}

fn read(text: &str) -> Option<Upstream> {
    if let Some(rest) = text.strip_prefix("tls://") {
        let (address, name) = rest.split_once('#').unwrap_or((rest, ""));
        let address = socket_address(address, 853)?;
        return Some(Upstream {
            address,
            transport: UpstreamTransport::Tls { name: server_name(name, address)? },
        });
    }
    if let Some(rest) = text.strip_prefix("https://") {
        let (rest, name) = rest.split_once('#').unwrap_or((rest, ""));
        let (address, path) = rest.split_once('/').unwrap_or((rest, "dns-query"));
        let address = socket_address(address, 443)?;
        let path = format!("/{path}");
        let fits = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        let transport = UpstreamTransport::Https { name: server_name(name, address)?, path };
        return fits.then_some(Upstream { address, transport });
    }
    Some(Upstream { address: socket_address(text, 53)?, transport: UpstreamTransport::Plain })
}

fn socket_address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, port));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some(Ok(address)) = bare.map(str::parse::<IpAddr>) {
        return Some(SocketAddr::new(address, port));
    }
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

/// The name a certificate must have; the address itself when none is given.
fn server_name(name: &str, address: SocketAddr) -> Option<String> {
    if name.is_empty() {
        return Some(address.ip().to_string());
    }
    let fits =
        name.len() <= 253 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
    fits.then(|| name.to_ascii_lowercase())
}

fn is_unicast(address: SocketAddr) -> bool {
    let address = address.ip();
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    // A link-local IPv6 address says nothing without an interface (RFC 4007 section 6).
    let scoped = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !(address.is_unspecified() || address.is_multicast() || broadcast || scoped)
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |default: u16| {
            if self.address.port() != default {
                self.address.to_string()
            } else if self.address.is_ipv6() && self.transport != UpstreamTransport::Plain {
                format!("[{}]", self.address.ip())
            } else {
                self.address.ip().to_string()
            }
        };
        match &self.transport {
            UpstreamTransport::Plain => f.write_str(&at(53)),
            UpstreamTransport::Tls { name } => write!(f, "tls://{}#{name}", at(853)),
            UpstreamTransport::Https { name, path } => write!(f, "https://{}{path}#{name}", at(443)),
        }
    }
}
super::serde_as_text!(Upstream);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read_and_written_alike() {
        for text in [
            "8.8.8.8",
            "10.0.0.53:5353",
            "2001:4860:4860::8888",
            "[2001:db8::1]:5353",
            "tls://1.1.1.1#one.one.one.one",
            "tls://[2606:4700::1111]#one.one.one.one",
            "tls://10.0.0.1:8853#dns.example",
            "https://9.9.9.9/dns-query#dns.quad9.net",
            "https://10.0.0.1:8443/q#dns.example",
        ] {
            assert_eq!(text.parse::<Upstream>().unwrap().to_string(), text);
        }
        assert_eq!("tls://1.1.1.1".parse::<Upstream>().unwrap().to_string(), "tls://1.1.1.1#1.1.1.1");
        let https: Upstream = "https://9.9.9.9".parse().unwrap();
        assert_eq!(https.to_string(), "https://9.9.9.9/dns-query#9.9.9.9");
    }

    #[test]
    fn what_is_no_upstream_is_refused() {
        for text in [
            "",
            "dns.example",
            "8.8.8",
            "8.8.8.8:0",
            "8.8.8.8:x",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "tls://dns.example",
            "tls://1.1.1.1#bad name",
            "http://1.1.1.1/",
            "https://1.1.1.1/a b",
        ] {
            assert!(text.parse::<Upstream>().is_err(), "{text}");
        }
    }
}
