//! What the guests made of their reservations: written by the DHCP servers, read by the API. One entry per MAC that has a
//! reservation, so it is bounded by the API and not by what guests send. What changes is handed on in groups (`journal`),
//! never on the way of an answer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

use super::journal::{Journal, JournalError};
use super::share::Share;
use super::{Outcome, Record, Relay, Request, Silence, Told, decide};
use crate::events::Events;
use crate::model::{GuestNet, LeaseView, Mac, NetworkName, Relays};
use crate::registry::{Registry, Reserved};

/// Groups that a watcher may be behind before it loses some.
const BACKLOG: usize = 256;

/// The leases of every network. Clones share one state.
#[derive(Debug, Clone)]
pub struct Leases {
    books: Arc<Mutex<HashMap<NetworkName, Arc<Book>>>>,
    changes: broadcast::Sender<LeaseChanges>,
    pub(super) wake: Arc<Wake>,
}

/// A lease that stands otherwise than before.
#[derive(Debug, Clone)]
pub enum LeaseChange {
    Stands(NetworkName, Mac),
    /// Its reservation has been deleted.
    Gone(Arc<Reserved>),
}

/// Those of one moment.
pub type LeaseChanges = Arc<[LeaseChange]>;

/// Wakes the journal, once until it has looked.
#[derive(Debug, Default)]
pub(super) struct Wake {
    woken: AtomicBool,
    thread: Mutex<Option<std::thread::Thread>>,
}

impl Wake {
    fn wake(&self) {
        if !self.woken.swap(true, AcqRel)
            && let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner)
        {
            thread.unpark();
        }
    }

    /// For the thread that waits: whether there is something to do.
    pub(super) fn taken(&self) -> bool {
        self.woken.swap(false, AcqRel)
    }

    pub(super) fn set_thread(&self, thread: std::thread::Thread) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }
}

impl Default for Leases {
    /// Leases that nobody keeps: they are gone with the process.
    fn default() -> Self {
        Self { books: Arc::default(), changes: broadcast::Sender::new(BACKLOG), wake: Arc::default() }
    }
}

impl Leases {
    /// The leases kept in `directory`, and who keeps them from now on.
    pub fn open(directory: &Path, events: Events) -> Result<(Self, Journal), JournalError> {
        let leases = Self::default();
        let journal = Journal::start(directory, leases.clone(), events)?;
        Ok((leases, journal))
    }

    pub fn view(&self, network: &NetworkName, guest: &GuestNet, now: SystemTime) -> LeaseView {
        let book = self.book(network);
        let page = book.open();
        let entry = page.entries.get(&guest.mac);
        entry.map_or_else(LeaseView::default, |entry| entry.record.view(guest.address, now))
    }

    /// Forgets a guest. Call it after its reservation is gone: an exchange that runs at the same time then cannot bring
    /// the entry back.
    pub fn forget(&self, reserved: Arc<Reserved>) {
        let book = self.book(&reserved.network.name);
        let mut page = book.open();
        if page.entries.remove(&reserved.guest.mac).is_some() {
            page.gone.push((reserved.guest.mac, Some(reserved)));
            drop(page);
            self.wake.wake();
        }
    }

    /// Forgets whoever has no reservation any more: a crash may come between a deletion and its line in the log.
    pub fn forget_unreserved(&self, registry: &Registry) {
        for (network, book) in self.books() {
            let mut page = book.open();
            let Page { entries, gone, .. } = &mut *page;
            entries.retain(|mac, _| {
                let stays = registry.by_mac(&network, *mac).is_some();
                if !stays {
                    gone.push((*mac, None));
                }
                stays
            });
        }
        self.wake.wake();
    }

    /// The groups of changes from now on.
    pub fn watch(&self) -> broadcast::Receiver<LeaseChanges> {
        self.changes.subscribe()
    }

    pub(super) fn tell(&self, changes: LeaseChanges) {
        // An error means that nobody watches.
        let _ = self.changes.send(changes);
    }

    /// The book of one network.
    pub(super) fn book(&self, network: &NetworkName) -> Arc<Book> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(book) = books.get(network) {
            return book.clone();
        }
        let book = Arc::new(Book { page: Mutex::default(), wake: self.wake.clone() });
        books.insert(network.clone(), book.clone());
        book
    }

    pub(super) fn books(&self) -> Vec<(NetworkName, Arc<Book>)> {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.iter().map(|(network, book)| (network.clone(), book.clone())).collect()
    }
}

/// The leases of one network: its servers share it.
#[derive(Debug)]
pub(super) struct Book {
    page: Mutex<Page>,
    wake: Arc<Wake>,
}

#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) entries: HashMap<Mac, Entry>,
    /// Those that stand otherwise since the journal looked, each once.
    pub(super) changed: Vec<Mac>,
    /// Those forgotten since, with what was reserved if anybody knows.
    pub(super) gone: Vec<(Mac, Option<Arc<Reserved>>)>,
}

/// A guest that has been heard of.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) in_changed: bool,
    /// Whether the event of this lease has been sent, or need not be.
    pub(super) announced: bool,
    /// When the last one was.
    pub(super) told: Option<SystemTime>,
    share: Share,
    /// Of what comes through relay agents.
    relayed: Share,
    /// What it is answered from, encoded; made again when the reservation is another one. None of an entry that was read
    /// back and has not been heard of since.
    known: Option<(Arc<Reserved>, Told)>,
}

impl Entry {
    pub(super) fn restored(record: Record) -> Self {
        Self { record, announced: true, ..Self::default() }
    }

    /// Its reservation, as last heard.
    pub(super) fn reserved(&self) -> Option<&Arc<Reserved>> {
        self.known.as_ref().map(|(reserved, _)| reserved)
    }
}

impl Book {
    // A panic while the lock was held cannot leave an entry half written: each holder only inserts, changes and removes.
    pub(super) fn open(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a batch of exchanges: has what changed kept.
    pub(super) fn close(&self, page: MutexGuard<'_, Page>) {
        let changed = !page.changed.is_empty();
        drop(page);
        if changed {
            self.wake.wake();
        }
    }
}

impl Page {
    /// Runs one exchange; the outcome, and what to answer from, if the MAC has a reservation. It is looked up in here, while
    /// nobody can `forget` it: an answer that leaves before the page is closed leaves before `forget` returns.
    pub(super) fn exchange(
        &mut self,
        registry: &Registry,
        network: &NetworkName,
        request: &Request<'_>,
        now: SystemTime,
    ) -> Option<(Outcome, Arc<Reserved>, Option<&Told>)> {
        let reserved = registry.by_mac(network, request.mac)?;
        // A guest of this network plays relay agent only where it has been named as one.
        let of_a_guest = |relay: &&Relay<'_>| {
            reserved.network.relays == Relays::Subnet && registry.by_mac(network, relay.link).is_some()
        };
        let relay = request.unserved_relay(&reserved.network);
        if let Some(relay) = relay.or_else(|| request.relay.as_ref().filter(of_a_guest)) {
            // Whoever sent it, its client has not been heard of.
            self.bad_frame(registry, network, relay.link, Silence::Relayed, now);
            return Some((Outcome::Silent(Silence::Relayed), reserved, None));
        }
        let entry = self.entries.entry(request.mac).or_default();
        if !entry.known.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, &reserved)) {
            entry.known = Some((reserved.clone(), Told::new(&reserved)));
        }
        // What others say in its name takes nothing of what it is answered itself.
        let share = if request.relay.is_none() { &mut entry.share } else { &mut entry.relayed };
        let outcome = if share.takes(now) {
            decide(request, &reserved, &entry.record, now)
        } else {
            Outcome::Silent(Silence::TooMany)
        };
        let seconds = reserved.network.lease_seconds;
        let changed = entry.record.note(request, outcome, reserved.guest.address, seconds, now);
        if changed && !std::mem::replace(&mut entry.in_changed, true) {
            self.changed.push(request.mac);
        }
        let told = entry.known.as_ref().map(|(_, told)| told);
        Some((outcome, reserved, told))
    }

    /// A frame that was no request, of a MAC that may have a reservation.
    pub(super) fn bad_frame(
        &mut self,
        registry: &Registry,
        network: &NetworkName,
        from: Mac,
        silence: Silence,
        now: SystemTime,
    ) {
        if registry.by_mac(network, from).is_some() {
            self.entries.entry(from).or_default().record.note_bad(silence, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::fixture::{ADDRESS, GATEWAY, Lab, broadcast, discover, guest_mac, network, selecting};
    use super::super::{Answer, L4Checksum};
    use super::*;
    use crate::model::{LeaseState, Network};

    fn hears(
        leases: &Leases,
        registry: &Registry,
        message: &dhcproto::v4::Message,
        lab: &Lab,
    ) -> Option<Outcome> {
        let frame = broadcast(message);
        let request = Request::parse(&frame, L4Checksum::Complete).unwrap();
        let network = network().name;
        let book = leases.book(&network);
        let mut page = book.open();
        page.exchange(registry, &network, &request, lab.now).map(|(outcome, ..)| outcome)
    }

    #[test]
    fn clones_see_the_same_leases() {
        let (leases, lab, registry) = (Leases::default(), Lab::new(), Registry::default());
        let reserved = Arc::new(lab.reserved.clone().unwrap());
        registry.reserve([reserved.clone()]);
        let reader = leases.clone();
        assert_eq!(reader.view(&reserved.network.name, &reserved.guest, lab.now), LeaseView::default());
        assert_eq!(hears(&leases, &registry, &discover(&[]), &lab), Some(Outcome::Reply(Answer::Offer)));
        let view = reader.view(&reserved.network.name, &reserved.guest, lab.now);
        assert_eq!(view.state, LeaseState::Offered);
        assert_eq!(view.last_exchange.unwrap().to_string(), "discover: offer");
    }

    #[test]
    fn a_deleted_vm_is_forgotten_and_stays_so() {
        let (leases, lab, registry) = (Leases::default(), Lab::new(), Registry::default());
        let reserved = Arc::new(lab.reserved.clone().unwrap());
        registry.reserve([reserved.clone()]);
        hears(&leases, &registry, &selecting(ADDRESS, GATEWAY), &lab);
        let name = &reserved.network.name;
        registry.unreserve(name, guest_mac());
        leases.forget(reserved.clone());
        assert_eq!(hears(&leases, &registry, &discover(&[]), &lab), None);
        assert_eq!(leases.view(&reserved.network.name, &reserved.guest, lab.now), LeaseView::default());
    }

    #[test]
    fn who_names_a_neighbour_through_a_relay_agent_that_is_not_served_takes_nothing_of_it() {
        let (leases, lab, registry) = (Leases::default(), Lab::new(), Registry::default());
        let reserved = Arc::new(lab.reserved.clone().unwrap());
        registry.reserve([reserved.clone()]);
        let class = dhcproto::v4::DhcpOption::ClassIdentifier(b"somebody else".to_vec());
        let mut relayed = discover(&[class]);
        relayed.set_giaddr([203, 0, 113, 9]).set_hops(1);
        let mut frame = broadcast(&relayed);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        let request = Request::parse(&frame, L4Checksum::Complete).unwrap();
        let (network, book) = (network().name, leases.book(&network().name));
        for _ in 0..5_000 {
            let exchanged =
                book.open().exchange(&registry, &network, &request, lab.now).map(|(outcome, ..)| outcome);
            assert_eq!(exchanged, Some(Outcome::Silent(Silence::Relayed)));
        }
        let unheard = leases.view(&network, &reserved.guest, lab.now);
        assert_eq!(unheard, LeaseView::default());
        assert_eq!(hears(&leases, &registry, &discover(&[]), &lab), Some(Outcome::Reply(Answer::Offer)));
    }

    #[test]
    fn a_guest_that_plays_relay_agent_is_served_only_where_it_is_named_and_floods_nobody_out() {
        let (leases, lab, registry) = (Leases::default(), Lab::new(), Registry::default());
        let victim = lab.reserved.clone().unwrap();
        let agent = Ipv4Addr::new(10, 100, 0, 9);
        let mut relayed = discover(&[]);
        relayed.set_giaddr(agent).set_hops(1);
        let mut frame = broadcast(&relayed);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        let request = Request::parse(&frame, L4Checksum::Complete).unwrap();
        let (name, book) = (network().name, leases.book(&network().name));
        for (relays, served) in [(Relays::Subnet, false), (Relays::These(vec![agent]), true)] {
            let on = Arc::new(Network { relays, ..network() });
            let mut guest = victim.clone();
            guest.network = on.clone();
            let mut other = guest.clone();
            (other.guest.mac, other.guest.address) = ("02:00:00:00:00:09".parse().unwrap(), agent);
            registry.reserve([Arc::new(guest), Arc::new(other)]);
            let mut last = None;
            for _ in 0..5_000 {
                last = book.open().exchange(&registry, &name, &request, lab.now).map(|(outcome, ..)| outcome);
            }
            let silence = if served { Silence::TooMany } else { Silence::Relayed };
            assert_eq!(last, Some(Outcome::Silent(silence)));
            assert_eq!(hears(&leases, &registry, &discover(&[]), &lab), Some(Outcome::Reply(Answer::Offer)));
        }
    }

    #[test]
    fn a_guest_that_floods_gets_its_share_and_a_neighbour_all_it_asks_for() {
        let (leases, mut lab, registry) = (Leases::default(), Lab::new(), Registry::default());
        registry.reserve([Arc::new(lab.reserved.clone().unwrap())]);
        let answered = (0..40_000)
            .filter(|n| {
                if n % 40 == 0 {
                    lab.now += std::time::Duration::from_millis(1);
                }
                hears(&leases, &registry, &discover(&[]), &lab) == Some(Outcome::Reply(Answer::Offer))
            })
            .count();
        assert!((1_000..10_000).contains(&answered), "{answered} of 40,000 in a second");
        lab.now += std::time::Duration::from_secs(1);
        assert_eq!(hears(&leases, &registry, &discover(&[]), &lab), Some(Outcome::Reply(Answer::Offer)));
    }
}
