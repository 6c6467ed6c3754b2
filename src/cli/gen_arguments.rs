//! The arguments of `guestnet gen`: a command for each target, each with what the target has a place for. In: text. Out:
//! `Asked`, one value for all targets.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::guestcfg::{DeviceName, DhcpClient, Dialect, Form, NetworkConfigVersion, Prefix, Target};
use crate::model::{Domain, Hostname, Mac, StaticRoute, VmId};

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, parsed once")]
pub(super) enum GenCommand {
    /// What an image needs to ask by DHCP: an init script, settings of its clients.
    Dhcp(Dhcp),
    #[command(flatten)]
    Target(TargetCommand),
}

/// Installed into a root file system, or as a tar archive on standard output.
#[derive(Debug, Args)]
pub(super) struct Dhcp {
    /// The root of the image to install into.
    #[arg(long, value_name = "DIRECTORY")]
    pub root: Option<PathBuf>,
    /// udhcpc, dhclient, dhcpcd or networkd; may be repeated [default: those that the root has; all in an archive].
    #[arg(long = "client", value_name = "CLIENT")]
    pub clients: Vec<DhcpClient>,
    /// Overwrite settings that stand there.
    #[arg(long, requires = "root")]
    pub replace: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum TargetCommand {
    /// Arguments for the guest's kernel command line: ip=.
    Cmdline {
        #[command(flatten)]
        line: OnLine,
        /// Who reads it: kernel (CONFIG_IP_PNP), dracut, klibc (initramfs-tools) or systemd.
        #[arg(long, default_value_t)]
        dialect: Dialect,
    },
    /// cloud-init's NoCloud files, or what takes their place.
    CloudInit {
        #[command(flatten)]
        line: OnLine,
        /// The version of network-config: v1 or v2.
        #[arg(long, default_value_t, value_name = "VERSION")]
        network_config: NetworkConfigVersion,
        /// nocloud-dir, seed-image or iso (a drive), boot-args (no drive), cloud.cfg.d or netplan (in the image), mime
        /// (user-data alone).
        #[arg(long, default_value_t)]
        form: Form,
        /// user-data for the seed, passed on as it is.
        #[arg(long, value_name = "FILE")]
        user_data: Option<PathBuf>,
    },
    /// A .network unit for systemd-networkd.
    Networkd(ByMac),
    /// The same as systemd credentials on the kernel command line.
    NetworkdCredential {
        #[command(flatten)]
        card: ByMac,
        #[command(flatten)]
        merge: Merge,
    },
    /// /etc/network/interfaces as Debian's ifupdown reads it.
    Ifupdown(ByName),
    /// /etc/network/interfaces as Alpine's busybox reads it.
    IfupdownAlpine(ByName),
    /// A keyfile for NetworkManager.
    NetworkManager(ByMac),
    /// /etc/resolv.conf alone.
    ResolvConf(ByMac),
    /// The dracut dialect of ip= built into an initramfs.
    DracutConf(ByName),
    /// An Ignition document with NetworkManager's keyfile.
    Ignition(ByMac),
    /// A NixOS module.
    #[command(name = "nixos")]
    NixOs(ByName),
    /// Firecracker's documents: boot-source, network-interfaces, MMDS.
    Firecracker(OnLine),
    /// QEMU's arguments.
    Qemu(OnLine),
    /// QEMU's arguments for its microvm machine.
    QemuMicrovm(OnLine),
    /// cloud-hypervisor's arguments.
    CloudHypervisor(OnLine),
    /// The facts as JSON.
    Json(ByMac),
    /// The facts as lines of NAME=value.
    Env(ByMac),
    /// A script that configures the card with ip.
    Shell(ByName),
}

/// For a target that knows the card by its MAC, or does not speak of it.
#[derive(Debug, Args)]
pub(super) struct ByMac {
    #[command(flatten)]
    guest: Guest,
    /// A folder to be made, for the files; without it they are printed.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

/// For a target that knows the card by its name.
#[derive(Debug, Args)]
pub(super) struct ByName {
    #[command(flatten)]
    card: ByMac,
    /// The guest's name for its network card.
    #[arg(long, default_value_t, value_name = "NAME")]
    device: DeviceName,
}

/// For a target that is, or has, a kernel command line.
#[derive(Debug, Args)]
pub(super) struct OnLine {
    #[command(flatten)]
    card: ByName,
    #[command(flatten)]
    merge: Merge,
}

#[derive(Debug, Args)]
pub(super) struct Merge {
    /// The kernel command line so far; the new arguments are added to it.
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    merge: Option<String>,
}

/// Whose configuration: a VM's of the service, every VM's, or with --offline one described by arguments.
#[derive(Debug, Args)]
pub(super) struct Guest {
    /// The VM, known to the service.
    #[arg(required_unless_present_any = ["offline", "all"], conflicts_with_all = ["offline", "all"])]
    pub vm_id: Option<VmId>,
    /// Every VM of the service: a folder for each, by its id, in the folder of --out.
    #[arg(long, requires = "out", conflicts_with = "offline")]
    pub all: bool,
    /// Ask no service: the arguments below say all.
    #[arg(long, requires_all = ["ip", "prefix", "gateway"])]
    offline: bool,
    #[arg(long, requires = "offline", value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,
    /// The subnet, like 10.100.0.0/16, or its length.
    #[arg(long, requires = "offline")]
    pub prefix: Option<Prefix>,
    #[arg(long, requires = "offline", value_name = "ADDRESS")]
    pub gateway: Option<Ipv4Addr>,
    /// A DNS server; may be repeated [default: the gateway].
    #[arg(long, requires = "offline", value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,
    /// [default: ip- and the address].
    #[arg(long, requires = "offline", value_name = "NAME")]
    pub hostname: Option<Hostname>,
    /// [default: 06:00 and the address in hex].
    #[arg(long, requires = "offline")]
    pub mac: Option<Mac>,
    /// [default: vm.internal].
    #[arg(long, requires = "offline", value_name = "NAME")]
    pub domain: Option<Domain>,
    /// Bytes [default: 1500].
    #[arg(long, requires = "offline", value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// A search domain beside --domain; may be repeated.
    #[arg(long, requires = "offline", value_name = "NAME")]
    pub search: Vec<Domain>,
    /// A time server; may be repeated.
    #[arg(long, requires = "offline", value_name = "ADDRESS")]
    pub ntp: Vec<Ipv4Addr>,
    /// A route beside the default one, like '10.1.0.0/16 via 10.100.0.9'; may be repeated.
    #[arg(long, requires = "offline", value_name = "ROUTE")]
    pub route: Vec<StaticRoute>,
    /// What the host calls the VM, for VM managers' arguments [default: the host name].
    #[arg(long = "vm-id", requires = "offline", value_name = "ID")]
    pub offline_id: Option<VmId>,
    /// The TAP in the VM's netns, for VM managers' arguments [default: tap0].
    #[arg(long, requires = "offline", value_name = "NAME")]
    pub tap_device: Option<DeviceName>,
}

/// What is to be generated, whichever command said it.
#[derive(Debug)]
pub(super) struct Asked {
    pub target: Target,
    pub guest: Guest,
    pub device: DeviceName,
    pub merge: Option<String>,
    pub user_data: Option<PathBuf>,
    pub out: Option<PathBuf>,
}

impl Asked {
    fn by_mac(target: Target, ByMac { guest, out }: ByMac) -> Self {
        Self { target, guest, device: DeviceName::default(), merge: None, user_data: None, out }
    }

    fn by_name(target: Target, ByName { card, device }: ByName) -> Self {
        Self { device, ..Self::by_mac(target, card) }
    }

    fn on_line(target: Target, OnLine { card, merge: Merge { merge } }: OnLine) -> Self {
        Self { merge, ..Self::by_name(target, card) }
    }
}

impl From<TargetCommand> for Asked {
    fn from(command: TargetCommand) -> Self {
        match command {
            TargetCommand::Cmdline { line, dialect } => Self::on_line(Target::Cmdline(dialect), line),
            TargetCommand::CloudInit { line, network_config, form, user_data } => {
                Self { user_data, ..Self::on_line(Target::CloudInit(form, network_config), line) }
            }
            TargetCommand::Networkd(card) => Self::by_mac(Target::Networkd, card),
            TargetCommand::NetworkdCredential { card, merge: Merge { merge } } => {
                Self { merge, ..Self::by_mac(Target::NetworkdCredential, card) }
            }
            TargetCommand::Ifupdown(card) => Self::by_name(Target::Ifupdown, card),
            TargetCommand::IfupdownAlpine(card) => Self::by_name(Target::IfupdownAlpine, card),
            TargetCommand::NetworkManager(card) => Self::by_mac(Target::NetworkManager, card),
            TargetCommand::ResolvConf(card) => Self::by_mac(Target::ResolvConf, card),
            TargetCommand::DracutConf(card) => Self::by_name(Target::DracutConf, card),
            TargetCommand::Ignition(card) => Self::by_mac(Target::Ignition, card),
            TargetCommand::NixOs(card) => Self::by_name(Target::NixOs, card),
            TargetCommand::Firecracker(line) => Self::on_line(Target::Firecracker, line),
            TargetCommand::Qemu(line) => Self::on_line(Target::Qemu, line),
            TargetCommand::QemuMicrovm(line) => Self::on_line(Target::QemuMicrovm, line),
            TargetCommand::CloudHypervisor(line) => Self::on_line(Target::CloudHypervisor, line),
            TargetCommand::Json(card) => Self::by_mac(Target::Json, card),
            TargetCommand::Env(card) => Self::by_mac(Target::Env, card),
            TargetCommand::Shell(card) => Self::by_name(Target::Shell, card),
        }
    }
}
