//! Configuration for guests that do not use DHCP: one `GuestNet` in, text for the guest's own tools out, with a warning
//! for each fact that the target cannot express. Pure. Every value is typed, so none can add an argument or a key.

mod cloud_init;
mod cmdline;

use crate::model::{GuestNet, Invalid};

pub use cloud_init::{boot_args as cloud_init_boot_args, nocloud};
pub use cmdline::cmdline;

/// The longest boot arguments that Firecracker takes, in bytes.
const BOOT_ARGS_LIMIT: usize = 2048;

/// What was generated, and what of the guest's network it cannot say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated<T> {
    pub content: T,
    pub warnings: Vec<String>,
}

/// A file for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    pub name: &'static str,
    pub content: String,
}

/// A network that cannot be written for this target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{what}: {invalid}")]
    Value { what: &'static str, invalid: Invalid },
    #[error("the boot arguments are {length} bytes; Firecracker takes at most {BOOT_ARGS_LIMIT}")]
    TooLong { length: usize },
}

/// Whether a network that did not come from the service is one at all.
pub fn check(net: &GuestNet) -> Result<(), Refusal> {
    let refuse = |what, value: &dyn ToString, expected| {
        Err(Refusal::Value { what, invalid: Invalid { value: value.to_string(), expected } })
    };
    if !net.subnet.has_host(net.address) {
        return refuse("address", &net.address, "a host's address of the subnet");
    }
    if !net.subnet.has_host(net.gateway) || net.gateway == net.address {
        return refuse("gateway", &net.gateway, "another host's address of the subnet");
    }
    if !(576..=9000).contains(&net.mtu) {
        return refuse("mtu", &net.mtu, "an MTU of 576 to 9000 bytes");
    }
    Ok(())
}

fn within_limit(text: String) -> Result<String, Refusal> {
    if text.len() <= BOOT_ARGS_LIMIT { Ok(text) } else { Err(Refusal::TooLong { length: text.len() }) }
}

#[cfg(test)]
mod tests;
