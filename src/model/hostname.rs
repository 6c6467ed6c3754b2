use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{Invalid, VmId, serde_as_text};

/// One LDH label (RFC 1123 section 2.1, RFC 1035 section 2.3.4): 1 to 63 of a-z 0-9 -, no - at either end.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A guest's host name: one DNS label, kept lowercase, not all digits (some parsers take that for a number).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hostname(String);

impl Hostname {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A label made from the VM's id: lowercase, `_` as `-`, no `-` at the ends, at most 63, `vm-` before digits alone.
    pub fn for_vm(vm_id: &VmId) -> Self {
        let mapped: String = vm_id
            .as_str()
            .bytes()
            .map(|b| if b == b'_' { '-' } else { b.to_ascii_lowercase() as char })
            .collect();
        let mut label = mapped.trim_matches('-').to_owned();
        if label.is_empty() || label.bytes().all(|b| b.is_ascii_digit()) {
            label.insert_str(0, if label.is_empty() { "vm" } else { "vm-" });
        }
        label.truncate(63);
        Self(label.trim_end_matches('-').to_owned())
    }

    /// `ip-10-100-0-2`: for a guest of which no more is known.
    pub fn for_address(address: Ipv4Addr) -> Self {
        Self(format!("ip-{}", address.to_string().replace('.', "-")))
    }
}

impl FromStr for Hostname {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if is_label(text) && !text.bytes().all(|b| b.is_ascii_digit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(Invalid::new(
                text,
                "a host name: one label of 1 to 63 letters, digits and inner -, not digits alone",
            ))
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(Hostname);

/// A DNS domain of LDH labels without the final dot, kept lowercase, at most 190 bytes so that a host name fits before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(String);

impl Domain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Domain {
    /// ICANN keeps `internal` out of the public DNS for uses such as this.
    fn default() -> Self {
        Self("vm.internal".into())
    }
}

impl FromStr for Domain {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        if bare.len() <= 190 && bare.split('.').all(is_label) {
            Ok(Self(bare.to_ascii_lowercase()))
        } else {
            Err(Invalid::new(
                text,
                "a domain: labels of letters, digits and inner -, joined by dots, at most 190 bytes",
            ))
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(Domain);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vm_id_makes_a_host_name() {
        let made = |id: &str| Hostname::for_vm(&id.parse().unwrap()).to_string();
        assert_eq!(made("Web_1"), "web-1");
        assert_eq!(made("__"), "vm");
        assert_eq!(made("42"), "vm-42");
        assert_eq!(made(&"a".repeat(64)), "a".repeat(63));
        assert_eq!(made(&format!("{}_b", "a".repeat(62))), "a".repeat(62));
        for id in ["Web_1", "__", "42", "-a-", &"9".repeat(64), &"_x".repeat(32)] {
            let label = made(id);
            assert_eq!(label.parse::<Hostname>().unwrap().as_str(), label, "{id}");
        }
    }

    #[test]
    fn a_host_name_cannot_smuggle_anything() {
        for bad in ["", "a b", "a.b", "a;b", "a\nb", "-a", "a-", "123", "\"a\"", &"a".repeat(64)] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad:?}");
        }
        assert_eq!("Web-1".parse::<Hostname>().unwrap().as_str(), "web-1");
    }

    #[test]
    fn a_domain_is_labels() {
        assert_eq!("VM.internal.".parse::<Domain>().unwrap().as_str(), "vm.internal");
        for bad in ["", ".", "a..b", "a b", "-a.b", &"a.".repeat(100)] {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
    }
}
