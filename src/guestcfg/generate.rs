//! One call for every target, so that the command line, the API and the tests need not know them.

use std::fmt;
use std::str::FromStr;

use super::beyond::unsaid;
use super::ifupdown::{Flavour, ifupdown};
use super::vmm::Bus;
use super::{
    Dialect, Fact, Form, Generated, NetworkConfigVersion, Options, Refusal, Warning, cloud_init, cmdline,
};
use super::{network_manager, networkd, nixos, plain, resolv_conf, vmm};
use crate::model::{GuestNet, Invalid};

/// What a guest's configuration is generated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Cmdline(Dialect),
    CloudInit(Form, NetworkConfigVersion),
    Networkd,
    NetworkdCredential,
    Ifupdown,
    IfupdownAlpine,
    NetworkManager,
    ResolvConf,
    DracutConf,
    Ignition,
    NixOs,
    Firecracker,
    Qemu,
    QemuMicrovm,
    CloudHypervisor,
    Json,
    Env,
    Shell,
}

impl Target {
    /// Those that are known by their name alone, as `FromStr` reads it; cmdline and cloud-init have a choice of their own.
    pub const NAMED: [Self; 16] = [
        Self::Networkd,
        Self::NetworkdCredential,
        Self::Ifupdown,
        Self::IfupdownAlpine,
        Self::NetworkManager,
        Self::ResolvConf,
        Self::DracutConf,
        Self::Ignition,
        Self::NixOs,
        Self::Firecracker,
        Self::Qemu,
        Self::QemuMicrovm,
        Self::CloudHypervisor,
        Self::Json,
        Self::Env,
        Self::Shell,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cmdline(_) => "cmdline",
            Self::CloudInit(..) => "cloud-init",
            Self::Networkd => "networkd",
            Self::NetworkdCredential => "networkd-credential",
            Self::Ifupdown => "ifupdown",
            Self::IfupdownAlpine => "ifupdown-alpine",
            Self::NetworkManager => "network-manager",
            Self::ResolvConf => "resolv-conf",
            Self::DracutConf => "dracut-conf",
            Self::Ignition => "ignition",
            Self::NixOs => "nixos",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
            Self::QemuMicrovm => "qemu-microvm",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Json => "json",
            Self::Env => "env",
            Self::Shell => "shell",
        }
    }

    /// Whether it goes on a kernel command line, where one can be given to merge with.
    pub fn takes_merge(self) -> bool {
        matches!(
            self,
            Self::Cmdline(_)
                | Self::CloudInit(Form::BootArgs, _)
                | Self::NetworkdCredential
                | Self::Firecracker
                | Self::Qemu
                | Self::QemuMicrovm
                | Self::CloudHypervisor
        )
    }

    /// Whether it carries user-data.
    pub fn takes_user_data(self) -> bool {
        matches!(self, Self::CloudInit(Form::NocloudDir | Form::SeedImage | Form::Iso | Form::Mime, _))
    }

    /// What is to be said where the service keeps `stored` user-data for a VM and a form of cloud-init carries none.
    pub fn leaves_out(self, stored: &[u8]) -> Option<Warning> {
        let carries = self.takes_user_data() || !matches!(self, Self::CloudInit(..));
        (!carries).then(|| {
            let reason = "left out: it is stored with the VM, and this form carries none";
            Warning::new(Fact::UserData, format!("of {} bytes", stored.len()), reason)
        })
    }

    /// Whether it cannot do without the host side.
    pub fn needs_host(self) -> bool {
        matches!(self, Self::Firecracker | Self::Qemu | Self::QemuMicrovm | Self::CloudHypervisor)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cmdline(dialect) => write!(f, "cmdline --dialect {dialect}"),
            Self::CloudInit(form, version) => {
                write!(f, "cloud-init --form {form} --network-config {version}")
            }
            named => f.pad(named.name()),
        }
    }
}

impl FromStr for Target {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = Self::NAMED.into_iter().find(|target| target.name() == text);
        known.ok_or_else(|| {
            Invalid::new(
                text,
                "a target: networkd, networkd-credential, ifupdown, ifupdown-alpine, network-manager, resolv-conf, \
                 dracut-conf, ignition, nixos, firecracker, qemu, qemu-microvm, cloud-hypervisor, json, env or shell",
            )
        })
    }
}

/// The configuration of `guest` for `target`. A merge line or user-data that the target has no place for is refused.
pub fn generate(target: Target, guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    let no_place = |option| Err(Refusal::NoPlace { option, target: target.to_string() });
    if options.merge.is_some() && !target.takes_merge() {
        return no_place("a command line to merge with");
    }
    if options.user_data.is_some() && !target.takes_user_data() {
        return no_place("user-data");
    }
    let mut generated = match target {
        Target::Cmdline(dialect) => cmdline::cmdline(guest, dialect, options),
        Target::CloudInit(form, version) => cloud_init::cloud_init(guest, form, version, options),
        Target::Networkd => networkd::networkd(guest),
        Target::NetworkdCredential => networkd::networkd_credential(guest, options),
        Target::Ifupdown => ifupdown(guest, Flavour::Debian, options),
        Target::IfupdownAlpine => ifupdown(guest, Flavour::Alpine, options),
        Target::NetworkManager => network_manager::network_manager(guest),
        Target::ResolvConf => resolv_conf::resolv_conf(guest),
        Target::DracutConf => cmdline::dracut_conf(guest, options),
        Target::Ignition => network_manager::ignition(guest),
        Target::NixOs => nixos::nixos(guest, options),
        Target::Firecracker => vmm::firecracker(guest, options),
        Target::Qemu => vmm::qemu(guest, Bus::Pci, options),
        Target::QemuMicrovm => vmm::qemu(guest, Bus::Mmio, options),
        Target::CloudHypervisor => vmm::cloud_hypervisor(guest, options),
        Target::Json => plain::json(guest, options),
        Target::Env => plain::env(guest, options),
        Target::Shell => plain::shell(guest, options),
    }?;
    generated.warnings.extend(unsaid(target, guest));
    Ok(generated)
}
