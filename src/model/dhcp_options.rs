//! DHCP options beside the address facts, typed: what a network or a VM adds to what its guests are told. One shape for
//! the configuration, the store and files of reservations.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::{Domain, Invalid, serde_as_text};

/// What is unset is not sent. A VM's or a reservation's own value goes before its network's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DhcpOptions {
    /// Option 42.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ntp_servers: Vec<Ipv4Addr>,
    /// Option 66, and the sname field where it fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tftp_server_name: Option<OptionText>,
    /// Option 67, and the file field where it fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootfile_name: Option<OptionText>,
    /// The siaddr field: where the boot file is fetched (RFC 2131 section 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_server: Option<Ipv4Addr>,
    /// Option 114, RFC 8910: a captive portal's API, or a seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captive_portal: Option<OptionText>,
    /// Option 119, after the network's own domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domain_search: Vec<Domain>,
    /// Option 121, beside the default route.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub static_routes: Vec<StaticRoute>,
    /// Option 108, RFC 8925: seconds without IPv4, to a client that asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_only_seconds: Option<u32>,
    /// Option 43.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor_specific: Option<OptionBytes>,
    /// Option 125, RFC 3925.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor_identifying: Option<OptionBytes>,
    /// Any other code, as it goes on the wire.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<RawCode, OptionBytes>,
}

impl DhcpOptions {
    /// What these say, and where they say nothing what `network` says.
    pub fn over(&self, network: &Self) -> Self {
        fn list<T: Clone>(own: &[T], network: &[T]) -> Vec<T> {
            if own.is_empty() { network } else { own }.to_vec()
        }
        fn one<T: Clone>(own: &Option<T>, network: &Option<T>) -> Option<T> {
            own.as_ref().or(network.as_ref()).cloned()
        }
        let mut raw = network.raw.clone();
        raw.extend(self.raw.clone());
        Self {
            ntp_servers: list(&self.ntp_servers, &network.ntp_servers),
            tftp_server_name: one(&self.tftp_server_name, &network.tftp_server_name),
            bootfile_name: one(&self.bootfile_name, &network.bootfile_name),
            next_server: one(&self.next_server, &network.next_server),
            captive_portal: one(&self.captive_portal, &network.captive_portal),
            domain_search: list(&self.domain_search, &network.domain_search),
            static_routes: list(&self.static_routes, &network.static_routes),
            ipv6_only_seconds: one(&self.ipv6_only_seconds, &network.ipv6_only_seconds),
            vendor_specific: one(&self.vendor_specific, &network.vendor_specific),
            vendor_identifying: one(&self.vendor_identifying, &network.vendor_identifying),
            raw,
        }
    }
}

/// Text of an option: 1 to 255 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionText(String);

impl OptionText {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OptionText {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if (1..=255).contains(&text.len()) && text.bytes().all(|b| matches!(b, b' '..=b'~')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(text, "1 to 255 printable ASCII characters"))
        }
    }
}

impl fmt::Display for OptionText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(OptionText);

/// Bytes of an option, written in hex: at most 1,020, which are four options on the wire (RFC 3396).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionBytes(Vec<u8>);

impl OptionBytes {
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for OptionBytes {
    type Error = Invalid;
    fn try_from(bytes: Vec<u8>) -> Result<Self, Invalid> {
        if bytes.len() <= 1020 {
            Ok(Self(bytes))
        } else {
            Err(Invalid::new(format!("{} bytes", bytes.len()), "at most 1020 bytes"))
        }
    }
}

impl FromStr for OptionBytes {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new(text, "at most 1020 bytes in hex, like c0a80001 or c0:a8:00:01");
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
        let (pairs, rest) = digits.as_chunks::<2>();
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
        let byte = |[high, low]: &[u8; 2]| Some(nibble(*high)? << 4 | nibble(*low)?);
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        bytes.filter(|_| rest.is_empty()).and_then(|bytes| Self::try_from(bytes).ok()).ok_or_else(invalid)
    }
}

impl fmt::Display for OptionBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
serde_as_text!(OptionBytes);

/// Code of an option that is set as raw bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawCode(u8);

impl RawCode {
    pub fn code(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for RawCode {
    type Error = Invalid;
    fn try_from(code: u8) -> Result<Self, Invalid> {
        // The address facts, the protocol's own, and those with a key of their own.
        let taken = matches!(
            code,
            0 | 1 | 3 | 6 | 12 | 15 | 26 | 28 | 42 | 43 | 50..=61 | 66 | 67 | 80..=82 | 108 | 114 | 119 | 121 | 125 | 255
        );
        if taken {
            let expected = "the code of an option that guestnet does not set itself: 1, 3, 6, 12, 15, 26, 28 come from \
                            the network and the VM, 42, 43, 66, 67, 108, 114, 119, 121, 125 have keys of their own, 50 \
                            to 61 and 80 to 82 are the protocol's";
            Err(Invalid::new(code, expected))
        } else {
            Ok(Self(code))
        }
    }
}

impl FromStr for RawCode {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let code: u8 = text.parse().map_err(|_| Invalid::new(text, "an option code of 1 to 254"))?;
        Self::try_from(code)
    }
}

impl fmt::Display for RawCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
serde_as_text!(RawCode);

/// A route that a guest is given: `10.1.0.0/16 via 10.100.0.9`; via 0.0.0.0 means on its own link (RFC 3442).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticRoute {
    pub destination: Ipv4Network,
    pub via: Ipv4Addr,
}

impl StaticRoute {
    pub fn is_on_link(&self) -> bool {
        self.via.is_unspecified()
    }
}

impl FromStr for StaticRoute {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parsed = text.split_once(" via ").and_then(|(destination, via)| {
            let destination: Ipv4Network = destination.trim().parse().ok()?;
            let via = via.trim().parse().ok()?;
            (destination.ip() == destination.network()).then_some(Self { destination, via })
        });
        parsed.ok_or_else(|| Invalid::new(text, "a route like 10.1.0.0/16 via 10.100.0.9"))
    }
}

impl fmt::Display for StaticRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {}", self.destination, self.via)
    }
}
serde_as_text!(StaticRoute);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_the_same_in_toml_and_in_json() {
        let text = r#"
            ntp_servers = ["10.100.0.1"]
            bootfile_name = "vmlinuz"
            domain_search = ["corp.example"]
            static_routes = ["10.1.0.0/16 via 10.100.0.9"]
            ipv6_only_seconds = 300
            vendor_specific = "01:02:ff"
            raw = { 252 = "68747470" }
        "#;
        let options: DhcpOptions = toml::from_str(text).unwrap();
        assert_eq!(options.vendor_specific.as_ref().unwrap().as_slice(), [1, 2, 0xff]);
        assert_eq!(options.raw[&RawCode(252)].as_slice(), b"http");
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<DhcpOptions>(&json).unwrap(), options);
        assert_eq!(serde_json::to_string(&DhcpOptions::default()).unwrap(), "{}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        for (text, named) in [
            ("ntp = []", "ntp_servers"),
            ("ntp_servers = [\"ntp.example\"]", "ntp.example"),
            ("raw = { 3 = \"0a640001\" }", "come from the network"),
            ("raw = { 300 = \"00\" }", "1 to 254"),
            ("raw = { 252 = \"0\" }", "hex"),
            ("static_routes = [\"10.1.0.1/16 via 10.100.0.9\"]", "a route like"),
            ("bootfile_name = \"a\\nb\"", "printable"),
        ] {
            let error = toml::from_str::<DhcpOptions>(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
