use std::fmt;
use std::str::FromStr;

use crate::model::{Invalid, VmId};

/// A network device's name that no configuration format needs to quote: 1 to 15 of `A-Z a-z 0-9 . _ -`, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for DeviceName {
    /// The first network card of a guest whose image leaves the kernel's names alone.
    fn default() -> Self {
        Self("eth0".to_owned())
    }
}

impl FromStr for DeviceName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=15).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
            // lo is taken; all and default are the kernel's names for every device (Documentation/networking/ip-sysctl.rst).
            && !["lo", "all", "default"].contains(&text);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(
                text,
                "the name of a network card: 1 to 15 letters, digits and . _ -, a letter first, not lo, all or default",
            ))
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where the guest's card ends on the host: what a VMM is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSide {
    /// Names the netns.
    pub vm_id: VmId,
    pub tap_device: DeviceName,
}

/// What a target needs besides the guest's facts. A target that has no place for what is set here refuses it.
#[derive(Debug, Clone, Default)]
pub struct Options<'a> {
    /// The guest's name for its card.
    pub device: DeviceName,
    /// The kernel command line so far; ours is added to it.
    pub merge: Option<&'a str>,
    /// For cloud-init, as it is.
    pub user_data: Option<&'a [u8]>,
    /// Known for a VM of this host; where absent only the guest's side can be said.
    pub host: Option<HostSide>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_needs_no_quotes_anywhere() {
        for good in ["eth0", "ens3", "enp0s3.7", "e"] {
            assert_eq!(good.parse::<DeviceName>().unwrap().as_str(), good);
        }
        for bad in
            ["", "0", "eth0:1", "a b", "a;b", "a=b", "a,b", "a$b", "a\nb", "lo", "all", "sixteen-letters-"]
        {
            assert!(bad.parse::<DeviceName>().unwrap_err().to_string().contains("network card"), "{bad:?}");
        }
    }
}
