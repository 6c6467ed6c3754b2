use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::capture::CaptureArguments;
use super::dns::DnsCommand;
use super::doctor::DoctorArguments;
use super::events::EventsArguments;
use super::gc::GcArguments;
use super::gen_arguments::GenCommand;
use super::lease::LeaseCommand;
use super::output::Format;
use super::policy::{ForwardCommand, PolicyCommand};
use super::reservation::{ReservationCommand, dhcp_options};
use super::stats::StatsCommand;
use super::top::TopArguments;
use super::user_data::UserDataCommand;
use crate::api::DEFAULT_SOCKET;
use crate::config::Config;
use crate::model::{BurstKib, DhcpOptions, Hostname, Invalid, Mac, NetworkName, RateMbps, VmId, WorkspaceId};
use crate::proto::guestnet::v1;

/// The guest network of a microVM host.
#[derive(Debug, Parser)]
#[command(name = "guestnet", version, about, propagate_version = true)]
#[command(
    after_help = "With --json a command prints one object or list: what it has made or changed, or after a deletion {\"deleted\": […]}, what \
                        is gone now, there or not before; of DNS records their number. What goes on has one value a line. Tables are cut to the width of a terminal; elsewhere they are whole.\n\n\
                        Exit codes: 0 done, 1 failed, 2 usage or configuration."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// The service's socket [default: the one of /etc/guestnet/guestnet.toml, else /run/guestnet/guestnet.sock].
    #[arg(long, global = true, env = "GUESTNET_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// The same as --output json.
    #[arg(long, global = true, conflicts_with = "output")]
    json: bool,
}

impl Global {
    /// Without one that is named, the socket that a service with that configuration has; `None` is the default file. One that
    /// cannot be read says nothing.
    pub(super) fn socket(&self, config: Option<&Path>) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| {
            Config::socket_of(config.unwrap_or(Path::new(Config::DEFAULT_PATH)))
                .unwrap_or_else(|| DEFAULT_SOCKET.into())
        })
    }

    /// The socket, where whoever calls has given one.
    pub(super) fn named_socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    pub(super) fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, parsed once")]
pub(super) enum Command {
    /// Run the service.
    Serve {
        /// The configuration [default: /etc/guestnet/guestnet.toml, or built-in defaults if there is none].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Networks of VMs.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Reservations, and what guests have made of them.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Addresses for MACs on networks whose plumbing is somebody else's.
    #[command(subcommand)]
    Reservation(ReservationCommand),
    /// The configured networks.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// What VMs may reach and be reached by.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Ports of the host that lead to ports of VMs.
    #[command(subcommand)]
    Forward(ForwardCommand),
    /// What guests have sent and received; rx is what a guest received.
    Stats(StatsCommand),
    /// What happens to guests and host, as it happens.
    Events(EventsArguments),
    /// Guests by traffic, live.
    Top(TopArguments),
    /// The packets of one guest, as pcap.
    Capture(CaptureArguments),
    /// What is guestnet's on this host and belongs to no VM.
    Gc(GcArguments),
    /// Have the service read its configuration again.
    Reload {
        /// The configuration that the service runs with, to find its socket by [default: /etc/guestnet/guestnet.toml].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// What a shell sources to complete commands: guestnet completions bash > /etc/bash_completion.d/guestnet
    Completions { shell: Shell },
    /// Man pages of all commands, into a folder.
    #[command(hide = true)]
    Man {
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// What is wrong with this host, or with one guest's way, and the command that mends it.
    Doctor(DoctorArguments),
    /// How the service, its networks and its guests are doing, on one screen.
    Status,
    /// The resolvers: what they do, why a name resolves as it does, records of one's own.
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Configuration for guests that do not use DHCP.
    #[command(subcommand)]
    Gen(GenCommand),
    /// What a VM's cloud-init is given besides its network.
    #[command(subcommand)]
    UserData(UserDataCommand),
    /// With the service stopped: remove everything that guestnet has made on this host.
    Uninstall {
        /// The configuration that the service ran with.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum VmCommand {
    /// Make VMs' networks, ready to boot on. Repeated with the same arguments it prints the same networks.
    Create(Box<CreateVm>),
    /// Change a VM's limit or host name while it runs.
    Update(UpdateVm),
    /// Print a VM's network.
    Show { vm_id: VmId },
    /// Print every VM's network.
    List(ListVms),
    /// Remove VMs' networks. A VM that has none is fine.
    Delete {
        #[arg(required = true, value_name = "VM_ID")]
        vm_ids: Vec<VmId>,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateVm {
    /// 1 to 64 of A-Z a-z 0-9 _ -.
    #[arg(required = true, value_name = "VM_ID")]
    pub vm_ids: Vec<VmId>,
    /// The network [default: the first of the configuration].
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// The guest's address [default: the next free one].
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// The guest's MAC [default: 06:00 and the address in hex].
    #[arg(long)]
    mac: Option<Mac>,
    /// The guest's host name [default: made from the id].
    #[arg(long, value_name = "NAME")]
    hostname: Option<Hostname>,
    /// The tenant.
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
    #[command(flatten)]
    limit: Limit,
    /// DHCP options of its own, as in the configuration: 'ntp_servers = ["10.0.0.1"], bootfile_name = "a"'.
    #[arg(long, value_name = "TOML", value_parser = dhcp_options)]
    dhcp_options: Option<DhcpOptions>,
    /// The only user who may open the TAP without CAP_NET_ADMIN [default: all inside the netns].
    #[arg(long, value_name = "UID", value_parser = id())]
    tap_uid: Option<u32>,
    /// The only group whose members may open the TAP without CAP_NET_ADMIN [default: all inside the netns].
    #[arg(long, value_name = "GID", value_parser = id())]
    tap_gid: Option<u32>,
    /// For a VMM that opens the TAP once per queue.
    #[arg(long)]
    tap_multi_queue: bool,
    /// For a VMM that reads and writes plain frames: no virtio-net headers, no checksums and segmentation left to the guest.
    #[arg(long)]
    tap_no_offload: bool,
}

#[derive(Debug, Args)]
#[group(id = "limits", multiple = true)]
struct Limit {
    /// Limit in Mbit/s each way, 0 for none [default: the network's, or what it is].
    #[arg(long, value_name = "MBPS", value_parser = rate)]
    rate_mbps: Option<u32>,
    /// What may pass at once after a quiet time, in KiB [default: what goes with the rate].
    #[arg(long, value_name = "KIB", value_parser = burst)]
    burst_kib: Option<u32>,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true).args(["hostname", "rate_mbps", "burst_kib"])))]
pub(super) struct UpdateVm {
    vm_id: VmId,
    /// The guest's host name.
    #[arg(long, value_name = "NAME")]
    hostname: Option<Hostname>,
    #[command(flatten)]
    limit: Limit,
}

impl From<UpdateVm> for v1::UpdateVmNetworkRequest {
    fn from(asked: UpdateVm) -> Self {
        Self {
            vm_id: asked.vm_id.to_string(),
            hostname: asked.hostname.map(|name| name.to_string()),
            rate_limit_mbps: asked.limit.rate_mbps,
            burst_kib: asked.limit.burst_kib,
            ..Self::default()
        }
    }
}

impl CreateVm {
    /// What only one VM can have, asked for several; the option's name.
    pub(super) fn for_one_only(&self) -> Option<&'static str> {
        let given = [("--ip", self.ip.is_some()), ("--mac", self.mac.is_some())];
        let given = given.into_iter().chain([("--hostname", self.hostname.is_some())]);
        given.into_iter().find(|(_, given)| *given && self.vm_ids.len() > 1).map(|(option, _)| option)
    }

    /// A request for each VM.
    pub(super) fn requests(&self) -> Vec<v1::CreateVmNetworkRequest> {
        self.vm_ids.iter().map(|vm_id| self.request(vm_id)).collect()
    }

    fn request(&self, vm_id: &VmId) -> v1::CreateVmNetworkRequest {
        v1::CreateVmNetworkRequest {
            vm_id: vm_id.to_string(),
            network_id: text(&self.network),
            workspace_id: text(&self.workspace),
            ip_address: text(&self.ip),
            mac_address: text(&self.mac),
            hostname: text(&self.hostname),
            rate_limit_mbps: self.limit.rate_mbps,
            burst_kib: self.limit.burst_kib,
            dhcp_options: self.dhcp_options.as_ref().map(crate::api::dhcp_options_to_wire).into(),
            tap_uid: self.tap_uid,
            tap_gid: self.tap_gid,
            tap_multi_queue: self.tap_multi_queue.then_some(true),
            tap_offload: self.tap_no_offload.then_some(false),
            ..Default::default()
        }
    }
}

fn text(value: &Option<impl ToString>) -> Option<String> {
    value.as_ref().map(ToString::to_string)
}

#[derive(Debug, Args)]
pub(super) struct ListVms {
    /// Only VMs of this network.
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// Only VMs of this tenant.
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
    /// Only the VM that has this address.
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Only the VM that has this MAC.
    #[arg(long)]
    mac: Option<Mac>,
}

impl From<ListVms> for v1::ListVmNetworksRequest {
    fn from(asked: ListVms) -> Self {
        Self {
            network_id: text(&asked.network),
            workspace_id: text(&asked.workspace),
            ip_address: text(&asked.ip),
            mac_address: text(&asked.mac),
            ..Self::default()
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Print every network.
    List,
}

fn rate(text: &str) -> Result<u32, Invalid> {
    let refused = || Invalid::new(text, "a rate of 1 to 100000 Mbit/s, or 0 for no limit");
    let mbps: u32 = text.parse().map_err(|_| refused())?;
    if mbps == 0 { Ok(0) } else { RateMbps::try_from(mbps).map(RateMbps::mbps).map_err(|_| refused()) }
}

fn burst(text: &str) -> Result<u32, Invalid> {
    let kib: u32 = text.parse().map_err(|_| Invalid::new(text, BurstKib::EXPECTED))?;
    BurstKib::try_from(kib).map(BurstKib::kib)
}

/// A user's or group's id: the last number means "none" to the kernel.
fn id() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(..i64::from(u32::MAX))
}
