use std::fmt;
use std::str::FromStr;

use super::{Invalid, serde_as_text};

/// Whether `text` is 1 to 64 of `A-Z a-z 0-9 _ -`: safe as a path component, a label and a log field.
fn is_plain_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The caller's name for a VM, `^[A-Za-z0-9_-]{1,64}$`; its netns is `vm-<vm_id>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(String);

impl VmId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the VM's network namespace under /run/netns.
    pub fn namespace(&self) -> String {
        format!("vm-{}", self.0)
    }
}

impl FromStr for VmId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if is_plain_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(text, "a vm_id: 1 to 64 of A-Z a-z 0-9 _ -"))
        }
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(VmId);

/// The tenant a VM belongs to, `^[A-Za-z0-9_-]{1,64}$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkspaceId(String);

impl WorkspaceId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkspaceId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if is_plain_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(text, "a workspace_id: 1 to 64 of A-Z a-z 0-9 _ -"))
        }
    }
}

impl fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(WorkspaceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_id_is_a_safe_path_component() {
        assert!("i-0123_abcDEF".parse::<VmId>().is_ok());
        assert!("a".repeat(64).parse::<VmId>().is_ok());
        for bad in ["", "../etc", "a/b", "a b", "a.b", "ü", "a\n", &"a".repeat(65)] {
            let error = bad.parse::<VmId>().unwrap_err().to_string();
            assert!(error.contains("1 to 64"), "{error}");
        }
    }
}
