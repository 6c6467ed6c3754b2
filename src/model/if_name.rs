use std::fmt;
use std::str::FromStr;

use super::{Invalid, serde_as_text};

fn is_interface_name(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%' && b != b'"' && b != b'\'')
}

/// Name of a network device: 1 to 15 printable bytes without `/`, `:` or `%` (dev_valid_name in net/core/dev.c).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if is_interface_name(text, 15) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(text, "a device name: 1 to 15 printable characters without / : % or quotes"))
        }
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(IfName);

/// Name of a bridge: 1 to 12 characters, so that a further shard's `-<n>` still fits a device name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgeName(IfName);

impl BridgeName {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub fn as_if_name(&self) -> &IfName {
        &self.0
    }

    /// Of an interface that somebody else made and that has no shards.
    pub fn of_interface(interface: IfName) -> Self {
        Self(interface)
    }

    /// The name of a network's n-th bridge: its own for the first, then `<name>-<n>`.
    pub fn shard(&self, n: usize) -> Option<IfName> {
        if n == 0 { Some(self.0.clone()) } else { format!("{self}-{n}").parse().ok() }
    }
}

impl FromStr for BridgeName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if is_interface_name(text, 12) {
            Ok(Self(IfName(text.to_owned())))
        } else {
            Err(Invalid::new(text, "a bridge name: 1 to 12 printable characters without / : % or quotes"))
        }
    }
}

impl fmt::Display for BridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
serde_as_text!(BridgeName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_name_leaves_room_for_its_shards() {
        assert!("br-vms".parse::<BridgeName>().is_ok());
        assert!("br-twelve-ch".parse::<BridgeName>().is_ok());
        for bad in ["br-thirteen-c", "", "a/b", "br vms", "..", "br\n", "é"] {
            assert!(bad.parse::<BridgeName>().unwrap_err().to_string().contains("1 to 12"), "{bad}");
        }
    }
}
