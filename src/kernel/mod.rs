//! The only code that touches the kernel's network: netlink, TAP ioctls, namespaces, sysctls, iptables. In: steps and
//! undos of `plan`. Out: done, or what was tried on what and the kernel's answer. It decides nothing.

mod counters;
mod dns;
mod error;
mod fault;
pub mod features;
mod firewall;
mod inside;
mod lane;
mod legacy;
mod links;
mod metadata;
mod netns;
pub mod nft;
mod observe;
mod raw;
mod routes;
mod rtnl;
pub mod sockets;
mod steps;
mod sysctl;
mod tap;
mod tc;
mod watch;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::KernelError;
pub use fault::STEPS;
pub use steps::Failed;
pub use tap::HeldTap;
pub use watch::Watch;

use crate::model::{IfName, IndexRange, Place, RateLimit, Reading, Shard, Slot, Subnet};
use crate::plan::garbage::Marked;
use crate::plan::{HostRules, Observed, Step, Undo};
use counters::Questions;
use error::Doing;
use lane::Lane;
use nft::Nft;
use observe::Look;
use rtnl::Rtnl;

/// The end of a slot's veth inside its netns.
const GUEST_SIDE: &str = "in0";
/// Of the devices in every slot's netns; above what the kernel may give devices of its own there.
const TAP_INDEX: u32 = 100;
const GUEST_SIDE_INDEX: u32 = 101;

/// How long a VMM that is just ending may take to let go of its TAP.
const LETTING_GO: Duration = Duration::from_millis(500);

/// The kernel network of the namespace the daemon runs in.
#[derive(Clone)]
pub struct Kernel {
    /// What a caller waits for.
    calls: Lane,
    /// What takes long and nobody waits for: slots are built and taken away.
    background: Lane,
    /// What needs no turn.
    questions: Questions,
}

/// The rate limit that a wiped slot is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// It is the one that the slot's last guest had.
    Stands(Option<RateLimit>),
    Set(Option<RateLimit>),
}

/// Wipes a slot, see `Kernel::wiping`.
pub type Wipe<'a> = dyn FnMut(&Place, Limit, Option<HeldTap>) -> Result<bool, KernelError> + 'a;

/// What was not done of a first thing and steps after it.
#[derive(Debug)]
pub enum NotApplied {
    /// The first, and so no step.
    First(KernelError),
    Steps(Failed),
}

/// Whether what comes in at `tap` of the calling thread's namespace is sent out at the slot's veth, and the other way round.
pub fn redirects(tap: &str) -> io::Result<[bool; 2]> {
    let mut rtnl = Rtnl::open()?;
    let mut index = |name: &str| links::index(&mut rtnl, name).map_err(io::Error::other);
    let (tap, inner) = (index(tap)?, index(GUEST_SIDE)?);
    let mut socket = raw::open(netlink_sys::protocols::NETLINK_ROUTE)?;
    match (tap, inner) {
        (Some(tap), Some(inner)) => tc::are_redirected(&mut socket, [(tap, inner), (inner, tap)]),
        _ => Ok([false; 2]),
    }
}

/// Which slots to look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookInto {
    /// And those whose namespaces have these numbers.
    These(BTreeSet<Slot>, BTreeSet<i32>),
    Every,
}

/// Whether a caller waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    Caller,
    Background,
}

impl Kernel {
    /// In the current namespace.
    pub fn open() -> Result<Self, KernelError> {
        let doing = || "opening a netlink socket".to_owned();
        let questions = Questions::open().doing(doing)?;
        let lane = |name| Lane::start(name, questions.clone()).doing(doing);
        Ok(Self { calls: lane("kernel")?, background: lane("kernel-slots")?, questions })
    }

    fn lane(&self, whom: For) -> &Lane {
        match whom {
            For::Caller => &self.calls,
            For::Background => &self.background,
        }
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
        self.calls.run(move |hands| routes::overlapping(&mut hands.rtnl, subnet)).await?
    }

    /// Index of a device; `None` when there is none of that name.
    pub async fn device_index(&self, name: &str) -> Result<Option<u32>, KernelError> {
        let name = name.to_owned();
        self.calls.run(move |hands| links::index(&mut hands.rtnl, &name)).await?
    }

    /// What a device carries, in bytes; `None` when there is none of that name.
    pub async fn device_mtu(&self, name: &str) -> Result<Option<u32>, KernelError> {
        let name = name.to_owned();
        self.calls.run(move |hands| links::mtu(&mut hands.rtnl, &name)).await?
    }

    /// The device of the default route, with what it carries; `None` when there is no such route.
    pub async fn uplink(&self) -> Result<Option<(String, u32)>, KernelError> {
        let find = |hands: &mut lane::Hands| {
            let Some(name) = routes::uplink(&mut hands.rtnl)? else { return Ok(None) };
            Ok(links::mtu(&mut hands.rtnl, &name)?.map(|mtu| (name, mtu)))
        };
        self.calls.run(find).await?
    }

    /// The value of a setting, a path below /proc/sys/net.
    pub fn sysctl(&self, key: &str) -> Result<String, KernelError> {
        sysctl::read(key).doing(|| format!("reading net/{key}"))
    }

    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), KernelError> {
        let doing = || format!("setting net/{key} to {value}");
        fault::step("sysctl", doing, || sysctl::write(key, value).map(drop).doing(doing))
    }

    /// Whether an earlier start has set the host-wide rules.
    pub fn has_host_rules(&self) -> Result<bool, KernelError> {
        firewall::present()
    }

    /// How many changes that took.
    pub fn apply_host_rules(&self, rules: &HostRules) -> Result<usize, KernelError> {
        fault::step("rules", || "setting the host's rules".into(), || firewall::apply(rules))
    }

    pub fn remove_host_rules(&self, rules: &HostRules) -> Result<(), KernelError> {
        fault::step("undo-rules", || "removing the host's rules".into(), || firewall::remove(rules))
    }

    /// Whether guests of `bridge` reach the metadata service. How many changes that took.
    pub fn redirect_metadata(&self, bridge: &IfName, wanted: bool) -> Result<usize, KernelError> {
        let doing = || format!("leading guests of {bridge} to the metadata service");
        fault::step("metadata-rule", doing, || metadata::redirect(bridge, wanted))
    }

    /// Whether guests of `bridge` are answered by our resolver whichever they ask. How many changes that took.
    pub fn redirect_dns(&self, bridge: &IfName, wanted: bool) -> Result<usize, KernelError> {
        let doing = || format!("leading guests of {bridge} to the resolver");
        fault::step("dns-rules", doing, || dns::redirect(bridge, wanted))
    }

    /// Takes away the NAT rule of a subnet that no network has any more.
    pub fn remove_nat_rule(&self, rule: &str) -> Result<(), KernelError> {
        fault::step("undo-nat-rule", || format!("removing {rule}"), || firewall::remove_nat(rule))
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
        let counted = self.questions.counters(index).doing(|| format!("reading the counters of {device}"))?;
        Ok(counted.map(|reading| (index, reading)))
    }

    /// What of the devices of these indexes, and of what goes with them, there is.
    pub async fn observe(&self, indexes: IndexRange) -> Result<Observed, KernelError> {
        self.calls.run(move |hands| observe::observe(hands, indexes, Look::Everywhere)).await?
    }

    /// The same while calls go on: with a look into slots that have lost their ports, and into these, or into every slot.
    pub async fn observe_beside_calls(
        &self,
        indexes: IndexRange,
        into: LookInto,
    ) -> Result<Observed, KernelError> {
        let look = move |hands: &mut lane::Hands| {
            let look = match &into {
                LookInto::These(slots, namespaces) => Look::WherePortsAreGoneAnd(slots, namespaces),
                LookInto::Every => Look::Everywhere,
            };
            observe::observe(hands, indexes, look)
        };
        self.background.run(look).await?
    }

    /// All that bears a mark of ours, while calls go on: with a look into every slot, or into these.
    pub async fn observe_all(
        &self,
        indexes: IndexRange,
        slots: Option<BTreeSet<Slot>>,
    ) -> Result<(Observed, Marked), KernelError> {
        let look = move |hands: &mut lane::Hands| {
            let look = slots.as_ref().map_or(Look::Everywhere, Look::Into);
            let observed = observe::observe(hands, indexes, look)?;
            Ok((observed, observe::marked(hands, indexes)?))
        };
        self.background.run(look).await?
    }

    /// What others change from now on. `firewall` is the port of the socket by which we change nf_tables.
    pub fn watch(&self, firewall: u32) -> Result<Watch, KernelError> {
        Watch::open(&[self.calls.port(), self.background.port(), self.questions.port()], firewall)
    }

    /// Whether a network's bridge is up and has its gateway's address.
    pub async fn bridge_stands(
        &self,
        shard: Shard,
        gateway: Ipv4Addr,
        subnet: Subnet,
    ) -> Result<bool, KernelError> {
        self.background
            .run(move |hands| links::bridge_stands(&mut hands.rtnl, &shard, gateway, subnet))
            .await?
    }

    /// Whether the rest of `subnet` is unreachable.
    pub async fn has_unreachable(&self, subnet: Subnet) -> Result<bool, KernelError> {
        self.background.run(move |hands| routes::has_unreachable(&mut hands.rtnl, subnet)).await?
    }

    /// Carries the steps out in order, up to the first that fails.
    pub async fn apply(&self, whom: For, steps: Vec<Step>) -> Result<(), Failed> {
        let steps: Arc<[Step]> = steps.into();
        let work = steps.clone();
        let done = self.lane(whom).run(move |hands| steps::apply(hands, &work)).await;
        match done {
            Ok(done) => done,
            // It panicked, so all of them may have been carried out.
            Err(error) => Err(Failed { applied: steps.to_vec(), error }),
        }
    }

    /// Does `first`, which may block, and then carries the steps out as `apply` does, in one go. What `first` gave, unless it or a step
    /// failed.
    pub async fn apply_after<T: Send + 'static>(
        &self,
        first: impl FnOnce() -> Result<T, KernelError> + Send + 'static,
        steps: Vec<Step>,
    ) -> Result<T, NotApplied> {
        let steps: Arc<[Step]> = steps.into();
        let work = steps.clone();
        let work = move |hands: &mut lane::Hands| {
            let found = first().map_err(NotApplied::First)?;
            steps::apply(hands, &work).map_err(NotApplied::Steps)?;
            Ok(found)
        };
        let done = self.calls.run(work).await;
        done.unwrap_or_else(|error| Err(NotApplied::Steps(Failed { applied: steps.to_vec(), error })))
    }

    /// Does what may block, where callers' changes to the kernel are made.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, KernelError> {
        self.calls.run(move |_| work()).await
    }

    /// Takes every one of the undos back, past errors; all of them.
    pub async fn undo(&self, whom: For, undos: Vec<Undo>) -> Vec<KernelError> {
        let done = self.lane(whom).run(move |hands| steps::undo(hands, &undos)).await;
        done.unwrap_or_else(|error| vec![error])
    }

    /// Holds the slot's TAP; it `is_busy` while a VMM has it open. `None` when it is gone.
    /// One that is just ending is waited for.
    pub async fn hold_tap(&self, slot: Slot) -> Result<Option<HeldTap>, KernelError> {
        let deadline = Instant::now() + LETTING_GO;
        loop {
            match self.calls.run(move |hands| steps::hold_tap(hands, slot)).await? {
                Err(error) if error.is_busy() && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                done => return done,
            }
        }
    }

    /// Does `work` where slots are wiped, with what wipes one: takes from an unbound slot whatever its last guest may have left in it,
    /// so that it can be another's. False when it is not whole any more, or not to be had. The TAP is its own, if it is held already.
    pub async fn wiping<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Wipe<'_>) -> T + Send + 'static,
    ) -> Result<T, KernelError> {
        let work = move |hands: &mut lane::Hands| {
            work(&mut |place, limit, tap| hands.surviving(|hands| steps::wipe(hands, place, limit, tap))?)
        };
        let doing = || "wiping slots".to_owned();
        self.background.run(move |hands| fault::step("wipe-some", doing, || Ok(work(hands)))).await?
    }

    /// Forgets the connections of guests that are gone.
    pub async fn forget_connections(&self, guests: HashSet<Ipv4Addr>) -> Result<usize, KernelError> {
        self.background.run(move |_| Nft::open()?.forget(&guests)).await?
    }

    /// Takes slots away, all at once.
    pub async fn clear(&self, slots: Vec<(Slot, u32)>) -> Result<(), KernelError> {
        self.background.run(move |hands| steps::clear(hands, &slots)).await?
    }
}
