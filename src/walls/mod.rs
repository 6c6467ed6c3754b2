//! The walls around guests: no guest can spoof, reach, starve or listen to another, whatever it sends. In: guests as they
//! are bound, policies and port forwards. Out: they stand in the kernel when a call returns, in the store before.

pub mod book;
pub mod compile;
mod error;
mod flows;
pub mod foreign;
mod forwards;
mod matching;
pub mod nft;
mod policies;
pub mod ruleset;
mod watch;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

pub use book::Guest;
pub use error::WallsError;
pub use policies::{Applied, RuleCount, Tested};
pub use watch::Drops;

use crate::kernel::nft::{Batch, Nft, Ownership};
use crate::kernel::{Kernel, KernelError};
use crate::model::{IfName, Network, NetworkName, VmId};
use crate::policy::Policy;
use crate::store::Store;
use book::{Book, Change, carry_out};
use nft::{Element, Key};
use ruleset::inet::CONNECTED;

/// The walls of this host. Clones share one state.
#[derive(Clone)]
pub struct Walls(Arc<Inner>);

struct Inner {
    nft: Nft,
    kernel: Kernel,
    store: Arc<Store>,
    standing: Mutex<Standing>,
    /// One change of policies or forwards at a time, from its checks to its end.
    changing: tokio::sync::Mutex<()>,
}

/// What the kernel holds now.
#[derive(Debug, Default)]
struct Standing {
    book: Book,
    bridges: Vec<(NetworkName, IfName)>,
}

impl Walls {
    /// In the network namespace of the calling thread; changes nothing yet.
    pub fn open(networks: &[Arc<Network>], kernel: Kernel, store: Arc<Store>) -> Result<Self, KernelError> {
        let standing = Standing { book: Book::new(networks), ..Standing::default() };
        Ok(Self(Arc::new(Inner {
            nft: Nft::open()?,
            kernel,
            store,
            standing: Mutex::new(standing),
            changing: tokio::sync::Mutex::default(),
        })))
    }

    /// Puts the walls in place, at once: around the guests that there are, with the policies and port forwards of the store.
    /// Whatever stood is replaced, and no packet meets a gap.
    pub fn raise(&self, bridges: &[(NetworkName, IfName)], guests: Vec<Guest>) -> Result<(), WallsError> {
        self.put_up(&mut self.standing(), bridges, guests)
    }

    /// Puts them in place once more, around all that they are around: where the kernel cannot keep others from changing them.
    pub fn mend(&self) -> Result<(), WallsError> {
        let mut standing = self.standing();
        let (bridges, guests) = (standing.bridges.clone(), standing.book.guests().cloned().collect());
        standing.book = standing.book.emptied();
        self.put_up(&mut standing, &bridges, guests)
    }

    /// After a change of policies or forwards that was refused: it may have been carried out all the same, and the answer lost.
    fn put_back(&self) {
        if let Err(error) = self.mend() {
            warn!(%error, "the walls may not be what the last refused change found");
        }
    }

    /// Sets what port forwards need on bridges that have been made anew.
    pub fn bridges_are_new(&self) -> Result<(), KernelError> {
        self.let_loopback_through(&self.standing())
    }

    /// The port of the socket by which they are changed.
    pub fn port(&self) -> u32 {
        self.0.nft.port()
    }

    fn put_up(
        &self,
        standing: &mut Standing,
        bridges: &[(NetworkName, IfName)],
        guests: Vec<Guest>,
    ) -> Result<(), WallsError> {
        let inner = &self.0;
        let (policies, forwards) = (inner.store.policies()?, inner.store.forwards()?);
        let (vms, rules) = (guests.len(), policies.len());
        let mut tables = standing.book.empty_tables();
        let mut changes = Vec::new();
        for (network, bridge) in bridges {
            changes.extend(standing.book.open_bridge(network, bridge));
        }
        standing.bridges = bridges.to_vec();
        for spec in policies {
            // It fitted when it was written down; one of a version that was laxer must not leave the others without walls.
            match Policy::try_from(spec) {
                Ok(policy) => {
                    let scope = policy.scope.clone();
                    changes.extend(standing.book.set_policy(&scope, Some(Arc::new(policy))));
                }
                Err(error) => warn!(%error, "a stored policy does not fit: apply it again"),
            }
        }
        for guest in guests {
            changes.extend(standing.book.bind(guest));
        }
        let any_forward = !forwards.is_empty();
        for forward in forwards {
            changes.extend(standing.book.add_forward(forward));
        }
        carry_out(&mut tables, changes);
        let ownership = inner.nft.replace(&tables)?;
        self.remember_the_connected(standing)?;
        if any_forward {
            self.let_loopback_through(standing)?;
        }
        if ownership == Ownership::Shared {
            warn!("this kernel (before Linux 6.9) cannot keep others from flushing our tables of nf_tables");
        }
        info!(vms, policies = rules, "the walls stand");
        Ok(())
    }

    /// The connections that were there before the tables. A service that was ended between a policy and the end of the flows
    /// that it denies, or that comes back with another configuration, ends these now.
    fn remember_the_connected(&self, standing: &Standing) -> Result<(), KernelError> {
        let mut connections = self.0.nft.all_connections()?;
        let ends = connections.iter().flat_map(|connection| [connection.source, connection.destination]);
        let guests: BTreeSet<Ipv4Addr> = ends.filter(|end| standing.book.guest_at(*end).is_some()).collect();
        let elements = guests.into_iter().map(|guest| Element::of(Key::new().address(guest))).collect();
        self.0.nft.commit("connected", batch(&[Change::Add(ruleset::INET, CONNECTED, elements)]))?;
        flows::leave_out_own(&mut connections);
        connections.retain(|connection| flows::is_denied(&standing.book, None, connection));
        self.0.nft.end(&connections)
    }

    /// Whether a guest may have a connection.
    fn is_connected(&self, address: Ipv4Addr) -> Result<bool, KernelError> {
        self.0.nft.has_element(ruleset::INET, CONNECTED, &Key::new().address(address))
    }

    /// Whether an earlier start has put them in place.
    pub fn stand(&self) -> Result<bool, KernelError> {
        self.0.nft.has(ruleset::BRIDGE)
    }

    /// Takes the walls away, for good.
    pub fn remove(&self) -> Result<(), KernelError> {
        let mut batch = Batch::default();
        batch.remove(ruleset::BRIDGE);
        batch.remove(ruleset::INET);
        self.0.nft.commit("undo-all-walls", batch)
    }

    /// A bridge more of a network: its guests are walled off from the moment it is there.
    pub fn open_bridge(&self, network: &NetworkName, bridge: &IfName) -> Result<(), KernelError> {
        let mut standing = self.standing();
        let changes = standing.book.open_bridge(network, bridge);
        self.0.nft.commit("bridge-walls", batch(&changes)).inspect_err(|_| {
            // As for a guest.
            let _ = self.0.nft.commit("bridge-walls", batch(&standing.book.close_bridge(network, bridge)));
        })?;
        standing.bridges.push((network.clone(), bridge.clone()));
        Ok(())
    }

    /// The same back, of a bridge that goes.
    pub fn close_bridge(&self, network: &NetworkName, bridge: &IfName) -> Result<(), KernelError> {
        let mut standing = self.standing();
        standing.bridges.retain(|(_, open)| open != bridge);
        self.0.nft.commit("bridge-walls", batch(&standing.book.close_bridge(network, bridge)))
    }

    /// Lets the guest of a port speak, under its own MAC and address alone. Before its port lets anything in.
    pub fn bind(&self, guest: Guest) -> Result<(), KernelError> {
        let mut standing = self.standing();
        let vm_id = guest.vm_id.clone();
        let changes = standing.book.bind(guest);
        self.0.nft.commit("walls", batch(&changes)).inspect_err(|_| {
            // It may have been carried out, and the answer lost. What is not there cannot be removed: that is fine.
            let undo = standing.book.unbind(&vm_id);
            let _ = self.0.nft.commit("undo-walls", batch(&undo));
        })
    }

    /// Forgets a guest with its policy and its forwards; fine for one that is not there. After its port lets nothing in. What
    /// the kernel refuses to let go of must not be the next guest's of that port: all is put in place anew, without it.
    /// Whether the guest may have left connections behind.
    pub fn forget(&self, vm_id: &VmId) -> Result<bool, WallsError> {
        let (connected, refused) = {
            let mut standing = self.standing();
            let address = standing.book.guest(vm_id).map(|guest| guest.address);
            let connected = address.filter(|address| self.is_connected(*address).unwrap_or(true));
            let mut changes = standing.book.forget(vm_id);
            if let Some(address) = connected {
                let element = Element::of(Key::new().address(address));
                changes.push(Change::Remove(ruleset::INET, CONNECTED, vec![element]));
            }
            (connected.is_some(), self.0.nft.commit("undo-walls", batch(&changes)).err())
        };
        if let Some(error) = refused {
            warn!(%error, "a guest could not be taken out of the walls: they are put in place anew");
            self.mend()?;
        }
        Ok(connected)
    }

    /// The same without its policy and forwards, for a call that is undone.
    pub fn unbind(&self, vm_id: &VmId) -> Result<(), KernelError> {
        let mut standing = self.standing();
        let changes = standing.book.unbind(vm_id);
        self.0.nft.commit("undo-walls", batch(&changes))
    }

    // A panic while it was held can leave book and kernel apart: the next start replaces all.
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn batch(changes: &[Change]) -> Batch {
    let mut batch = Batch::default();
    for change in changes {
        match change {
            Change::Add(table, set, elements) => batch.add(*table, set, elements),
            Change::Remove(table, set, elements) => batch.delete(*table, set, elements),
            Change::NewChain(table, chain) => batch.new_chain(*table, chain),
            Change::RemoveChain(table, chain) => batch.remove_chain(*table, chain),
        }
    }
    batch
}
