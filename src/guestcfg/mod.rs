//! Guest configuration: what an image that does not use DHCP needs, as text. In: one `GuestNet` (the value that DHCP
//! answers from, law 1), a `Target` and small `Options`. Out: files and a list of what the target cannot say, or a
//! refusal that names the value. Pure: nothing is read, written or asked.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod beyond;
mod check;
mod cloud_init;
mod cmdline;
mod dhcp;
mod generate;
mod ifupdown;
mod iso_image;
mod kernel_line;
mod mime;
mod network_manager;
mod networkd;
mod nixos;
mod offline;
mod options;
mod output;
mod plain;
mod resolv_conf;
mod seed_image;
mod vmm;
mod yaml;

pub use cloud_init::{Form, NetworkConfigVersion, check_user_data, cloud_init, instance_id};
pub use cmdline::{Dialect, cmdline};
pub use dhcp::{DhcpClient, dhcp};
pub use generate::{Target, generate};
pub use offline::{OfflineArgs, Prefix, offline};
pub use options::{DeviceName, HostSide, Options};
pub use output::{Fact, Generated, GuestFile, Refusal, Warning};

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod goldens;
#[cfg(test)]
mod hostile_input;
#[cfg(test)]
mod round_trip;
