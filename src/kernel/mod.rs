//! The only code that touches the kernel's network: netlink, TAP ioctls, namespaces, sysctls, iptables. In: steps and
//! undos of `plan`. Out: done, or what was tried on what and the kernel's answer. It decides nothing.

mod counters;
mod error;
mod firewall;
mod links;
mod metadata;
mod netns;
mod observe;
mod routes;
mod sysctl;
mod tap;
mod tc;

use std::collections::HashMap;
use std::fs::File;
use std::io;

use netlink_sys::{AsyncSocket, TokioSocket};
use rtnetlink::Handle;

pub use error::KernelError;

use crate::model::{BridgeName, IfName, Mac, RateMbps, Reading, Slot, Subnet, TapOwner, Vm, VmId};
use crate::plan::{HostRules, Observed, Step, Undo};
use error::Doing;

/// The end of a VM's veth inside its netns.
const GUEST_SIDE: &str = "in0";

/// The kernel network of the namespace the daemon runs in.
#[derive(Clone)]
pub struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// A netlink connection in the current namespace. Needs a tokio runtime.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().doing(|| "opening a netlink socket".into())?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Whether this host can do what the steps need; changes nothing.
    pub fn check_host(&self) -> Result<(), KernelError> {
        let privileged = nix::unistd::geteuid().is_root();
        if !privileged {
            let denied = io::Error::from_raw_os_error(libc::EPERM);
            return Err(KernelError::new("starting without root (run as root, or by systemd)", denied));
        }
        File::open("/dev/net/tun").doing(|| "opening /dev/net/tun (modprobe tun)".into())?;
        firewall::check()
    }

    /// A route of the host's own that overlaps `subnet`, as text.
    pub async fn overlapping_route(&self, subnet: Subnet) -> Result<Option<String>, KernelError> {
        routes::overlapping(&self.handle, subnet).await
    }

    /// Index of a device; `None` when there is none of that name.
    pub async fn device_index(&self, name: &str) -> Result<Option<u32>, KernelError> {
        links::index(&self.handle, name).await
    }

    /// The value of a setting, a path below /proc/sys/net.
    pub fn sysctl(&self, key: &str) -> Result<String, KernelError> {
        sysctl::read(key).doing(|| format!("reading net/{key}"))
    }

    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), KernelError> {
        sysctl::write(key, value).map(|_| ()).doing(|| format!("setting net/{key} to {value}"))
    }

    /// Whether an earlier start has set the host-wide rules.
    pub fn has_host_rules(&self) -> Result<bool, KernelError> {
        firewall::present()
    }

    pub fn apply_host_rules(&self, rules: &HostRules) -> Result<(), KernelError> {
        firewall::apply(rules)
    }

    pub fn remove_host_rules(&self, rules: &HostRules) -> Result<(), KernelError> {
        firewall::remove(rules)
    }

    /// Whether guests of `bridge` reach the metadata service.
    pub fn redirect_metadata(&self, bridge: &BridgeName, wanted: bool) -> Result<(), KernelError> {
        metadata::redirect(bridge, wanted)
    }

    /// What every device has counted, by ifindex, in the view of a guest behind it.
    pub async fn counters(&self) -> Result<HashMap<u32, Reading>, KernelError> {
        let read = tokio::task::spawn_blocking(counters::all).await;
        read.unwrap_or_else(|error| Err(io::Error::other(error)))
            .doing(|| "reading all devices' counters".into())
    }

    /// What one device has counted, with its ifindex; `None` when there is none of that name.
    pub fn counters_of(&self, device: &IfName) -> Result<Option<(u32, Reading)>, KernelError> {
        let Ok(index) = nix::net::if_::if_nametoindex(device.as_str()) else { return Ok(None) };
        let counted = counters::of(index).doing(|| format!("reading the counters of {device}"))?;
        Ok(counted.map(|reading| (index, reading)))
    }

    pub async fn observe(&self) -> Result<Observed, KernelError> {
        observe::observe(&self.handle).await
    }

    /// Carries out one step, or leaves nothing of it.
    pub async fn apply(&self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::Bridge { bridge, gateway, subnet, mtu } => {
                links::bridge(&self.handle, bridge.as_str(), *gateway, *subnet, *mtu).await
            }
            Step::UnreachableSubnet { subnet } => routes::add_unreachable(&self.handle, *subnet).await,
            Step::Namespace { vm_id } => netns::create(&vm_id.namespace()),
            Step::Tap { vm_id, mtu } => make_tap(vm_id, *mtu),
            Step::Veth { vm_id, slot, mtu, replace } => {
                if *replace {
                    links::remove(&self.handle, slot.host_device().as_str()).await?;
                }
                self.make_veth(vm_id, *slot, *mtu).await
            }
            Step::Port { slot, bridge } => {
                links::port(&self.handle, slot.host_device().as_str(), bridge.as_str()).await
            }
            Step::RateLimit { vm_id, slot, rate } => self.limit(vm_id, *slot, *rate).await,
            Step::ForwardingEntry { slot, mac } => self.enter_mac(*slot, *mac).await,
            Step::Neighbour { bridge, address, mac } => {
                let bridge = links::existing(&self.handle, bridge.as_str()).await?;
                routes::add_neighbour(&self.handle, bridge, *address, *mac).await
            }
            Step::GuestRoute { bridge, address, gateway } => {
                let bridge = links::existing(&self.handle, bridge.as_str()).await?;
                routes::add_guest(&self.handle, bridge, *address, *gateway).await
            }
            Step::PortUp { slot } => links::set_up(&self.handle, slot.host_device().as_str(), true).await,
        }
    }

    /// Takes one step back; success if there is nothing to take back.
    pub async fn undo(&self, undo: &Undo) -> Result<(), KernelError> {
        match undo {
            Undo::Bridge { bridge } => links::remove(&self.handle, bridge.as_str()).await,
            Undo::UnreachableSubnet { subnet } => routes::remove_unreachable(&self.handle, *subnet).await,
            Undo::Namespace { vm_id } => netns::remove(&vm_id.namespace()),
            Undo::Tap { vm_id } => self.remove_tap(vm_id).await,
            Undo::Veth { slot } => links::remove(&self.handle, slot.host_device().as_str()).await,
            Undo::Neighbour { bridge, address } => match self.device_index(bridge.as_str()).await? {
                Some(bridge) => routes::remove_neighbour(&self.handle, bridge, *address).await,
                None => Ok(()),
            },
            Undo::GuestRoute { bridge, address } => match self.device_index(bridge.as_str()).await? {
                Some(bridge) => routes::remove_guest(&self.handle, bridge, *address).await,
                None => Ok(()),
            },
            Undo::PortDown { slot } => links::set_up(&self.handle, slot.host_device().as_str(), false).await,
        }
    }

    async fn make_veth(&self, vm_id: &VmId, slot: Slot, mtu: u16) -> Result<(), KernelError> {
        let namespace = namespace_of(vm_id)?;
        let host = slot.host_device();
        links::veth(&self.handle, host.as_str(), GUEST_SIDE, &namespace, mtu).await?;
        let joined = self.join_tap(vm_id, &namespace).await;
        if joined.is_err() {
            // Half a step is not left behind; the first error is the one that tells.
            let _ = links::remove(&self.handle, host.as_str()).await;
        }
        joined
    }

    /// Redirects both ways between the VM's end of the veth and its TAP.
    async fn join_tap(&self, vm_id: &VmId, namespace: &File) -> Result<(), KernelError> {
        let doing = || format!("joining {} and {GUEST_SIDE} in {}", Vm::TAP, vm_id.namespace());
        let inner = self.inside(namespace).doing(doing)?;
        links::set_up(&inner, GUEST_SIDE, true).await?;
        let veth = links::existing(&inner, GUEST_SIDE).await?;
        let tap = links::existing(&inner, Vm::TAP).await?;
        tc::redirect(&inner, tap, veth).await.doing(doing)?;
        tc::redirect(&inner, veth, tap).await.doing(doing)
    }

    async fn remove_tap(&self, vm_id: &VmId) -> Result<(), KernelError> {
        let Some(namespace) = netns::open(&vm_id.namespace())? else { return Ok(()) };
        let inner =
            self.inside(&namespace).doing(|| format!("opening a netlink socket in {}", vm_id.namespace()))?;
        links::remove(&inner, Vm::TAP).await
    }

    async fn limit(&self, vm_id: &VmId, slot: Slot, rate: RateMbps) -> Result<(), KernelError> {
        let doing = |device: &str| format!("limiting {device} to {} Mbit/s", rate.mbps());
        let namespace = namespace_of(vm_id)?;
        let inner =
            self.inside(&namespace).doing(|| format!("opening a netlink socket in {}", vm_id.namespace()))?;
        let upload = links::existing(&inner, GUEST_SIDE).await?;
        tc::limit(&inner, upload, rate).await.doing(|| doing(GUEST_SIDE))?;
        let host = slot.host_device();
        let download = links::existing(&self.handle, host.as_str()).await?;
        tc::limit(&self.handle, download, rate).await.doing(|| doing(host.as_str()))
    }

    async fn enter_mac(&self, slot: Slot, mac: Mac) -> Result<(), KernelError> {
        let port = links::existing(&self.handle, slot.host_device().as_str()).await?;
        routes::add_forwarding(&self.handle, port, mac).await
    }

    /// A netlink connection in `namespace`; a socket stays in the namespace it was made in.
    fn inside(&self, namespace: &File) -> io::Result<Handle> {
        let runtime = tokio::runtime::Handle::current();
        let socket = netns::inside(namespace, || {
            let _entered = runtime.enter();
            TokioSocket::new(netlink_sys::protocols::NETLINK_ROUTE)
        })?;
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        tokio::spawn(connection);
        Ok(handle)
    }
}

fn namespace_of(vm_id: &VmId) -> Result<File, KernelError> {
    let name = vm_id.namespace();
    netns::open(&name)?.ok_or_else(|| {
        KernelError::new(
            format!("opening network namespace {name}"),
            io::Error::from(io::ErrorKind::NotFound),
        )
    })
}

fn make_tap(vm_id: &VmId, mtu: u16) -> Result<(), KernelError> {
    let namespace = namespace_of(vm_id)?;
    netns::inside(&namespace, || {
        if !tap::exists(Vm::TAP) {
            tap::create(Vm::TAP, mtu, TapOwner::default())?;
        }
        tap::set_up("lo")
    })
    .doing(|| format!("making {} in {}", Vm::TAP, vm_id.namespace()))
}
