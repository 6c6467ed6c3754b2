//! Keeps slots ready: builds them, wipes those that VMs leave and takes surplus ones away, in the background. In: who needs a
//! slot, and slots that VMs have left. Out: slots with nothing of any tenant in them.

mod work;

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tracing::{debug, warn};

use self::work::WIPED_AT_ONCE;
use super::ManagerError;
use super::stock::Stock;
use crate::bridges::Bridges;
use crate::kernel::{HeldTap, Kernel, KernelError};
use crate::model::{IndexRange, Network, NetworkName, Place, Shard, Slot, Vm};
use crate::plan::{self, Observed};

/// Background work that nobody waits for begins when calls have been over for so long: a caller whose next one follows at
/// once does not share the kernel's locks with it.
const QUIET: Duration = Duration::from_millis(5);
/// How long a start waits until slots are ready. It goes on without.
const FIRST_FILL: Duration = Duration::from_secs(5);

type Waiter = oneshot::Sender<Result<Place, String>>;

/// Clones share one state.
#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    kernel: Kernel,
    bridges: Bridges,
    indexes: IndexRange,
    networks: Vec<Arc<Network>>,
    state: Mutex<State>,
    /// Told when there is something to do.
    work: Notify,
    /// Told when something has been done.
    done: Notify,
}

struct State {
    stock: Stock<Waiter>,
    left: Vec<Left>,
    /// Addresses that something of the kernel's may still know their last guest by.
    unclean: HashSet<(NetworkName, Ipv4Addr)>,
    /// Those of them whose last guests' connections the kernel would not forget: nobody waits for them.
    remembered: HashSet<(NetworkName, Ipv4Addr)>,
    /// When it is asked again, and how long after that if it will not then.
    forget_at: Instant,
    forget_after: Duration,
    /// Calls that wait until an address is clean.
    awaiting_clean: usize,
    /// Calls under way, and when the last one ended.
    calls: usize,
    last_call: Instant,
    stopping: bool,
}

impl State {
    /// The kernel would not forget the connections of these addresses' last guests: it is asked again, later and later.
    fn remember(&mut self, addresses: impl IntoIterator<Item = (NetworkName, Ipv4Addr)>) {
        self.remembered.extend(addresses);
        self.forget_at = Instant::now() + self.forget_after;
        self.forget_after = LONGEST_FORGET.min(self.forget_after * 2);
    }

    /// A guest may have the address from here on, unless the kernel still remembers its last one.
    fn is_wiped(&mut self, network: &NetworkName, address: Ipv4Addr) {
        let key = (network.clone(), address);
        if !self.remembered.contains(&key) {
            self.unclean.remove(&key);
        }
    }

    /// When what is to be done next may begin.
    fn may_begin(&mut self) -> Begin {
        let urgent = self.stopping
            || self.awaiting_clean > 0
            || self.left.len() >= WIPED_AT_ONCE
            || self.stock.is_urgent();
        let quiet = self.last_call + QUIET;
        if urgent {
            Begin::Now
        } else if self.calls > 0 {
            Begin::AfterCalls
        } else if quiet > Instant::now() {
            Begin::At(quiet)
        } else {
            Begin::Now
        }
    }
}

enum Begin {
    Now,
    At(Instant),
    /// When the last call that is under way has ended.
    AfterCalls,
}

/// A call is under way until this is dropped.
pub(super) struct Call<'a>(&'a Pool);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls -= 1;
        state.last_call = Instant::now();
        let over = state.calls == 0;
        drop(state);
        if over {
            self.0.0.work.notify_one();
        }
    }
}

/// Until connections that could not be forgotten are tried again, doubled each time.
const FORGET_AGAIN: Duration = Duration::from_millis(100);
const LONGEST_FORGET: Duration = Duration::from_secs(10);

/// A slot that a VM has left.
struct Left {
    slot: Slot,
    network: Arc<Network>,
    address: Option<Ipv4Addr>,
    /// Whether the kernel may still track a connection of its.
    connected: bool,
    /// Whether the slot may have another rate limit than its network's.
    own_limit: bool,
    /// `None` when it could not be held: it is not whole, or not known yet.
    tap: Option<HeldTap>,
}

impl Pool {
    pub(super) fn new(
        networks: Vec<Arc<Network>>,
        kernel: Kernel,
        bridges: Bridges,
        indexes: IndexRange,
    ) -> Self {
        let state = State {
            stock: Stock::new(&networks),
            left: Vec::new(),
            unclean: HashSet::new(),
            remembered: HashSet::new(),
            forget_at: Instant::now(),
            forget_after: FORGET_AGAIN,
            awaiting_clean: 0,
            calls: 0,
            last_call: Instant::now(),
            stopping: false,
        };
        Self(Arc::new(Inner {
            kernel,
            bridges,
            indexes,
            networks,
            state: Mutex::new(state),
            work: Notify::new(),
            done: Notify::new(),
        }))
    }

    /// Keeps what nobody waits for from getting into the way of a call.
    pub(super) fn call(&self) -> Call<'_> {
        self.state().calls += 1;
        Call(self)
    }

    /// Where a slot is plugged in.
    pub(super) fn place(&self, slot: Slot) -> Option<Place> {
        self.state().stock.place(slot).cloned()
    }

    /// The slot whose host device has this index, with the index of its bridge, if it is whole and to stay.
    pub(super) fn kept(&self, port: u32) -> Option<(Slot, u32)> {
        let slot = self.0.indexes.slot_at(port)?;
        Some((slot, self.state().stock.kept(slot)?.shard.index))
    }

    /// Whether a slot of that number is somebody's, is being built or is being taken away.
    pub(super) fn is_seen_to(&self, slot: Slot) -> bool {
        self.state().stock.is_seen_to(slot)
    }

    /// Takes the number of a slot that nobody sees to; whether it was such a one.
    pub(super) fn claim(&self, slot: Slot) -> bool {
        self.state().stock.claim(slot)
    }

    /// Gives a number back, if nothing is left of the slot.
    pub(super) fn unclaim(&self, slot: Slot, is_gone: bool) {
        let mut state = self.state();
        if is_gone {
            state.stock.remove(slot);
        } else {
            state.stock.lose(slot);
        }
    }

    /// The network that a slot is ready for.
    pub(super) fn free_of(&self, slot: Slot) -> Option<Arc<Network>> {
        self.state().stock.free_of(slot)
    }

    /// More or fewer slots are kept ready from now on.
    pub(super) fn keep_ready(&self, configured: &[Arc<Network>]) {
        self.state().stock.keep_ready(configured);
        self.0.work.notify_one();
    }

    /// The slots that are ready.
    pub(super) fn free(&self) -> BTreeSet<Slot> {
        self.state().stock.free()
    }

    /// Takes those of `ready` away that are whole no more, to be built again; how many. `observed` is younger than `ready`.
    pub(super) async fn take_out_broken(&self, ready: &BTreeSet<Slot>, observed: &Observed) -> usize {
        let is_whole = |place: &Place, network: &Network| plan::is_whole(place, network, observed);
        let broken = self.state().stock.take_out(ready, is_whole);
        self.0.clear(&broken).await;
        self.0.work.notify_one();
        broken.len()
    }

    /// A slot with nothing in it: a ready one, else the next that is built. One whose TAP takes several queues is built on the
    /// spot: no TAP can be made one.
    pub(super) async fn take(&self, network: &Arc<Network>, multi_queue: bool) -> Result<Place, String> {
        if multi_queue {
            let slot = self.0.try_build(network, true).await?;
            return self.place(slot).ok_or_else(|| "its slot is gone".into());
        }
        let network = &network.name;
        let stopping = || "guestnet is stopping".to_owned();
        let built = {
            let mut state = self.state();
            if let Some(place) = state.stock.take(network) {
                drop(state);
                self.0.work.notify_one();
                return Ok(place);
            }
            if state.stopping {
                return Err(stopping());
            }
            let (waiter, built) = oneshot::channel();
            state.stock.wait(network, waiter);
            built
        };
        self.0.work.notify_one();
        built.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Puts back a slot that no guest has had. It is looked at like any other: its bridge may have gone meanwhile.
    pub(super) fn put_back(&self, network: Arc<Network>, slot: Slot) {
        let (address, connected, own_limit, tap) = (None, false, false, None);
        self.state().left.push(Left { slot, network, address, connected, own_limit, tap });
        self.0.work.notify_one();
    }

    /// Takes back the slot of a VM that is unbound. Its address is not clean until what the kernel remembers is gone.
    pub(super) fn leave(&self, vm: &Vm, network: Arc<Network>, tap: Option<HeldTap>, connected: bool) {
        let mut state = self.state();
        state.unclean.insert((vm.network.clone(), vm.address));
        let own_limit = vm.rate_limit != network.rate_limit;
        state.left.push(Left {
            slot: vm.slot,
            network,
            address: Some(vm.address),
            connected,
            own_limit,
            tap,
        });
        drop(state);
        self.0.work.notify_one();
    }

    /// Addresses whose last guests' connections could not be forgotten at a start: nobody gets one before they are.
    pub(super) fn forget_later(&self, addresses: Vec<(NetworkName, Ipv4Addr)>) {
        let mut state = self.state();
        state.unclean.extend(addresses.iter().cloned());
        state.remember(addresses);
        drop(state);
        self.0.work.notify_one();
    }

    /// Whether a guest can have the address now, or once the slot of its last one is wiped.
    pub(super) fn may_be_clean(&self, network: &NetworkName, address: Ipv4Addr) -> bool {
        let state = self.state();
        // The common case without a copy of the name.
        state.remembered.is_empty() || !state.remembered.contains(&(network.clone(), address))
    }

    /// Waits until the slot of the address's last guest is wiped. What the kernel did not forget of that guest, it is asked for once more:
    /// an error when it refuses again, for nobody waits until it does not.
    pub(super) async fn cleaned(&self, vm: &Vm) -> Result<(), ManagerError> {
        let key = (vm.network.clone(), vm.address);
        if !self.state().unclean.contains(&key) {
            return Ok(());
        }
        self.state().awaiting_clean += 1;
        self.0.work.notify_one();
        let remembered = loop {
            let done = self.0.done.notified();
            {
                let state = self.state();
                if state.stopping {
                    break Err(ManagerError::Stopping);
                }
                if !state.unclean.contains(&key) || state.remembered.contains(&key) {
                    break Ok(state.remembered.contains(&key));
                }
            }
            done.await;
        };
        self.state().awaiting_clean -= 1;
        if remembered? {
            let refused = |why: KernelError| ManagerError::AddressRemembered {
                address: vm.address,
                why: why.to_string(),
            };
            self.0.forget().await.map_err(refused)?;
        }
        Ok(())
    }

    /// Takes over what an earlier run left: a place for each of `vms`, its slot whole or to be built; slots of no VM are to be
    /// wiped, or taken away when they are not whole or not as this configuration has them.
    pub(super) async fn adopt(
        &self,
        observed: &Observed,
        vms: impl Iterator<Item = (Slot, Arc<Network>)>,
    ) -> Result<(), ManagerError> {
        let mut surplus = observed.slots();
        let mut homeless = Vec::new();
        let shards = self.shards().await;
        {
            let mut state = self.state();
            for slot in observed.slots().iter().chain(&observed.foreign) {
                state.stock.number_is_taken(*slot);
            }
            for (slot, network) in vms {
                surplus.remove(&slot);
                state.stock.number_is_taken(slot);
                let bridge = observed.standing(slot);
                match shards.iter().find(|(of, shard)| *of == network.name && Some(shard.index) == bridge) {
                    Some((_, shard)) => {
                        state.stock.plug(shard.index);
                        state.stock.add(self.0.place_on(slot, shard));
                    }
                    None => homeless.push((slot, network)),
                }
            }
        }
        let mut broken = Vec::new();
        for slot in surplus {
            let bridge = observed.standing(slot);
            let shard = shards.iter().find(|(_, shard)| Some(shard.index) == bridge);
            let network = shard.and_then(|(of, _)| self.0.networks.iter().find(|n| n.name == *of));
            let mtu = observed.ports.get(&slot).map(|port| port.mtu);
            match (shard, network) {
                (Some((_, shard)), Some(network)) if mtu == Some(network.mtu.into()) => {
                    let mut state = self.state();
                    state.stock.plug(shard.index);
                    state.stock.add(self.0.place_on(slot, shard));
                    state.left.push(Left {
                        slot,
                        network: network.clone(),
                        address: None,
                        connected: false,
                        own_limit: true,
                        tap: None,
                    });
                }
                _ => broken.push(slot),
            }
        }
        // When every port that stands is counted.
        for (slot, network) in homeless {
            let shard = self.0.room(&network).await.map_err(ManagerError::Bridges)?;
            self.state().stock.add(self.0.place_on(slot, &shard));
        }
        debug!(slots = ?broken, "taking away what is left of slots");
        self.0.clear(&broken).await;
        Ok(())
    }

    pub(super) fn networks(&self) -> &[Arc<Network>] {
        &self.0.networks
    }

    /// Every bridge with its network's name.
    pub(super) async fn shards(&self) -> Vec<(NetworkName, Shard)> {
        let mut all = Vec::new();
        for network in &self.0.networks {
            let shards = self.0.bridges.of(&network.name).await;
            all.extend(shards.into_iter().map(|shard| (network.name.clone(), shard)));
        }
        all
    }

    /// Does what is needed, until `stop`.
    pub(super) async fn keep(self) {
        loop {
            let work = self.0.work.notified();
            if self.state().stopping {
                return;
            }
            // Told too when something becomes urgent.
            let begin = self.state().may_begin();
            match begin {
                Begin::Now => {}
                Begin::At(quiet) => {
                    let _ = tokio::time::timeout_at(quiet.into(), work).await;
                    continue;
                }
                Begin::AfterCalls => {
                    work.await;
                    continue;
                }
            }
            if !self.0.do_next().await {
                self.0.done.notify_waiters();
                let again = Some(self.state()).filter(|state| !state.remembered.is_empty());
                match again.map(|state| state.forget_at) {
                    Some(at) => _ = tokio::time::timeout_at(at.into(), work).await,
                    None => work.await,
                }
            }
            self.0.done.notify_waiters();
        }
    }

    /// Waits until the first slots are ready, but not for long.
    pub(super) async fn filled(&self) {
        let filled = async {
            loop {
                let done = self.0.done.notified();
                let ready = {
                    let state = self.state();
                    state.left.is_empty() && !state.stock.is_filling()
                };
                if ready {
                    return;
                }
                done.await;
            }
        };
        if tokio::time::timeout(FIRST_FILL, filled).await.is_err() {
            warn!("guest networks are still being made ready: a create may have to wait for one");
        }
    }

    /// Nothing is begun any more, and who waits is told so; `keep` ends when what it does is done.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        state.stock.turn_away();
        drop(state);
        self.0.work.notify_one();
        self.0.done.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }
}

/// `Err` when who waited has gone away.
fn hand_over(waiter: Waiter, place: Place) -> Result<(), ()> {
    waiter.send(Ok(place)).map_err(drop)
}

impl Inner {
    // A panic while it was held cannot leave it half changed: what can fail is done without it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
