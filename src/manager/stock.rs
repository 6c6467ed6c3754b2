//! Which slots are ready, taken, to be wiped, built or taken away, over all networks of the host. Pure: what it says is to be
//! done, `pool` does.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::model::{IndexRange, Network, NetworkName, Place, Slot};

/// What waits for a slot of one network; `W` is whom to tell.
#[derive(Debug)]
struct Shelf<W> {
    network: Arc<Network>,
    free: BTreeSet<Slot>,
    waiting: VecDeque<W>,
    /// Being filled up to its size: begun when a quarter is gone, so that one VM that comes and goes changes nothing.
    filling: bool,
    /// It had less than a quarter and is not full yet.
    short: bool,
    /// None could be built: not tried again until somebody takes one.
    given_up: bool,
}

impl<W> Shelf<W> {
    fn wants(&self) -> bool {
        let (free, kept) = (self.free.len(), usize::from(self.network.pool_size));
        let low = free * 4 < kept * 3;
        !self.given_up && free < kept && (self.filling || low)
    }
}

#[derive(Debug)]
pub(super) struct Stock<W> {
    shelves: Vec<Shelf<W>>,
    numbers: Numbers,
    /// Every slot that is whole, free or not.
    places: HashMap<Slot, Place>,
    /// Ports on each bridge, by its index, with those that are about to be.
    ports: HashMap<u32, usize>,
    /// Whole slots that are being taken away.
    leaving: BTreeSet<Slot>,
    /// Those of which something is left that could not be taken away. Their numbers are not used again.
    lost: BTreeSet<Slot>,
}

/// What is to be done for the stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Need {
    /// A slot of this network.
    Build(Arc<Network>),
    /// These are more than are kept; they are not free any more.
    Clear(Vec<Place>),
}

impl<W> Stock<W> {
    pub(super) fn new(networks: &[Arc<Network>]) -> Self {
        let shelf = |network: &Arc<Network>| Shelf {
            network: network.clone(),
            free: BTreeSet::new(),
            waiting: VecDeque::new(),
            filling: false,
            short: false,
            given_up: false,
        };
        Self {
            shelves: networks.iter().map(shelf).collect(),
            numbers: Numbers::default(),
            places: HashMap::new(),
            ports: HashMap::new(),
            leaving: BTreeSet::new(),
            lost: BTreeSet::new(),
        }
    }

    pub(super) fn place(&self, slot: Slot) -> Option<&Place> {
        self.places.get(&slot)
    }

    pub(super) fn ports_on(&self, bridge: u32) -> usize {
        self.ports.get(&bridge).copied().unwrap_or_default()
    }

    /// Where a slot is plugged in that is to stay.
    pub(super) fn kept(&self, slot: Slot) -> Option<&Place> {
        self.places.get(&slot).filter(|_| !self.leaving.contains(&slot))
    }

    /// Whether a slot of that number is somebody's, is being built or is being taken away.
    pub(super) fn is_seen_to(&self, slot: Slot) -> bool {
        self.numbers.is_taken(slot) && !self.lost.contains(&slot)
    }

    /// Takes the number of a slot that nobody sees to; whether it was such a one.
    pub(super) fn claim(&mut self, slot: Slot) -> bool {
        let claimed = !self.is_seen_to(slot);
        if claimed {
            self.lost.remove(&slot);
            self.numbers.take_this(slot);
        }
        claimed
    }

    /// A slot could not be taken away: what is left of it is nobody's.
    pub(super) fn lose(&mut self, slot: Slot) {
        self.forget(slot);
        self.lost.insert(slot);
    }

    /// It is no port any more.
    fn forget(&mut self, slot: Slot) {
        if let Some(place) = self.places.remove(&slot) {
            self.unplug(place.shard.index);
        }
        self.leaving.remove(&slot);
    }

    /// A port is about to be on that bridge. It counts from here on: others are built beside it.
    pub(super) fn plug(&mut self, bridge: u32) {
        *self.ports.entry(bridge).or_default() += 1;
    }

    /// It is none, or no more.
    pub(super) fn unplug(&mut self, bridge: u32) {
        if let Some(ports) = self.ports.get_mut(&bridge) {
            *ports -= 1;
        }
    }

    /// A slot is about to be taken away.
    pub(super) fn leave(&mut self, slot: Slot) {
        self.leaving.insert(slot);
    }

    /// The network that a slot is ready for.
    pub(super) fn free_of(&self, slot: Slot) -> Option<Arc<Network>> {
        self.shelves.iter().find(|shelf| shelf.free.contains(&slot)).map(|shelf| shelf.network.clone())
    }

    /// The slots that are ready, of all networks.
    pub(super) fn free(&self) -> BTreeSet<Slot> {
        self.shelves.iter().flat_map(|shelf| &shelf.free).copied().collect()
    }

    /// Takes those out of `ready` that are ready still and not whole any more; they are nobody's then.
    pub(super) fn take_out(
        &mut self,
        ready: &BTreeSet<Slot>,
        is_whole: impl Fn(&Place, &Network) -> bool,
    ) -> Vec<Slot> {
        let mut taken = Vec::new();
        for shelf in &mut self.shelves {
            let broken = |slot: &Slot| {
                let place = self.places.get(slot).filter(|_| ready.contains(slot));
                place.is_some_and(|place| !is_whole(place, &shelf.network))
            };
            let (out, free) = std::mem::take(&mut shelf.free).into_iter().partition::<BTreeSet<_>, _>(broken);
            shelf.free = free;
            taken.extend(out);
        }
        taken
    }

    /// Nobody is given a slot any more: who waits is told so by the end of the channel.
    pub(super) fn turn_away(&mut self) {
        self.shelves.iter_mut().for_each(|shelf| shelf.waiting.clear());
    }

    /// A number for a slot that is yet to be built; `None` when the host has as many as it can.
    pub(super) fn number(&mut self) -> Option<Slot> {
        self.numbers.take()
    }

    /// A number that is somebody's already.
    pub(super) fn number_is_taken(&mut self, slot: Slot) {
        self.numbers.take_this(slot);
    }

    pub(super) fn put_number_back(&mut self, slot: Slot) {
        self.numbers.give_back(slot);
    }

    /// A slot has come to be, or is to be, whose port is `plug`ged. It is nobody's to take until it is `give`n.
    pub(super) fn add(&mut self, place: Place) {
        self.places.insert(place.slot, place);
    }

    /// A slot is no more; its number can be another's.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.forget(slot);
        self.numbers.give_back(slot);
    }

    /// A ready slot, the lowest.
    pub(super) fn take(&mut self, network: &NetworkName) -> Option<Place> {
        let shelf = self.shelf(network)?;
        let slot = shelf.free.pop_first();
        shelf.given_up = false;
        self.places.get(&slot?).cloned()
    }

    /// The next slot of the network is for `who`.
    pub(super) fn wait(&mut self, network: &NetworkName, who: W) {
        if let Some(shelf) = self.shelf(network) {
            shelf.waiting.push_back(who);
        }
    }

    /// A slot is ready: whose it is, if somebody waits. `Err` when that one has gone away meanwhile.
    pub(super) fn give(
        &mut self,
        network: &NetworkName,
        slot: Slot,
        mut hand_over: impl FnMut(W, Place) -> Result<(), ()>,
    ) {
        let Some(place) = self.places.get(&slot).cloned() else { return };
        let Some(shelf) = self.shelf(network) else { return };
        while let Some(who) = shelf.waiting.pop_front() {
            if hand_over(who, place.clone()).is_ok() {
                return;
            }
        }
        shelf.free.insert(slot);
    }

    /// Whether one more ready slot would be taken away at once: more are ready than are kept, and nobody waits.
    pub(super) fn is_full(&self, network: &NetworkName) -> bool {
        let shelf = self.shelves.iter().find(|shelf| shelf.network.name == *network);
        shelf.is_none_or(|shelf| {
            let kept = usize::from(shelf.network.pool_size);
            shelf.waiting.is_empty() && shelf.free.len() >= kept + kept / 4
        })
    }

    /// So many are kept ready from now on, of the networks that are in `configured`.
    pub(super) fn keep_ready(&mut self, configured: &[Arc<Network>]) {
        for shelf in &mut self.shelves {
            let Some(new) = configured.iter().find(|new| new.name == shelf.network.name) else { continue };
            if new.pool_size != shelf.network.pool_size {
                shelf.network = Arc::new(Network { pool_size: new.pool_size, ..(*shelf.network).clone() });
                shelf.given_up = false;
            }
        }
    }

    /// Building failed: the one who waits longest is told; if nobody does, no more are built until somebody needs one.
    pub(super) fn building_failed(&mut self, network: &NetworkName) -> Option<W> {
        let shelf = self.shelf(network)?;
        let told = shelf.waiting.pop_front();
        shelf.given_up = true;
        told
    }

    /// Whether slots are still to be built for the stock.
    pub(super) fn is_filling(&self) -> bool {
        self.shelves.iter().any(Shelf::wants)
    }

    /// Whether somebody waits for a slot, or soon may have to: from a quarter of what is kept until it is all there again.
    pub(super) fn is_urgent(&mut self) -> bool {
        let mut urgent = false;
        for shelf in &mut self.shelves {
            let kept = usize::from(shelf.network.pool_size);
            let few = shelf.free.len() * 4 < kept;
            shelf.short = !shelf.given_up && (few || (shelf.short && shelf.free.len() < kept));
            urgent |= shelf.short || !shelf.waiting.is_empty();
        }
        urgent
    }

    /// What is to be done next, the most urgent first.
    pub(super) fn need(&mut self) -> Option<Need> {
        if let Some(shelf) = self.shelves.iter().find(|shelf| !shelf.waiting.is_empty()) {
            return Some(Need::Build(shelf.network.clone()));
        }
        for shelf in &mut self.shelves {
            let kept = usize::from(shelf.network.pool_size);
            shelf.filling = shelf.wants();
            if shelf.filling {
                return Some(Need::Build(shelf.network.clone()));
            }
            // As for filling: one more than is kept is no reason to take one away.
            if shelf.free.len() > kept + kept / 4 {
                let (mut surplus, most) = (Vec::new(), 64);
                while shelf.free.len() > kept && surplus.len() < most {
                    surplus.extend(shelf.free.pop_last());
                }
                let places = surplus.iter().filter_map(|slot| self.places.get(slot).cloned()).collect();
                return Some(Need::Clear(places));
            }
        }
        None
    }

    fn shelf(&mut self, network: &NetworkName) -> Option<&mut Shelf<W>> {
        self.shelves.iter_mut().find(|shelf| shelf.network.name == *network)
    }
}

/// Numbers of slots: the lowest free one, so that device names stay short and are used again.
#[derive(Debug, Default)]
struct Numbers {
    next: u32,
    freed: BTreeSet<u32>,
}

impl Numbers {
    fn take(&mut self) -> Option<Slot> {
        if let Some(freed) = self.freed.pop_first() {
            return Some(Slot(freed));
        }
        (self.next < IndexRange::SLOTS).then(|| {
            self.next += 1;
            Slot(self.next - 1)
        })
    }

    fn take_this(&mut self, Slot(slot): Slot) {
        if slot >= self.next && slot < IndexRange::SLOTS {
            self.freed.extend(self.next..slot);
            self.next = slot + 1;
        } else {
            self.freed.remove(&slot);
        }
    }

    fn is_taken(&self, Slot(slot): Slot) -> bool {
        slot < self.next && !self.freed.contains(&slot)
    }

    fn give_back(&mut self, Slot(slot): Slot) {
        self.freed.insert(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;

    fn stock(pool_size: u16) -> (Stock<u32>, NetworkName) {
        let network = Arc::new(Network { pool_size, ..testing::network() });
        let name = network.name.clone();
        (Stock::new(&[network]), name)
    }

    /// As `pool` does when a slot is built.
    fn add(slot: Slot, stock: &mut Stock<u32>) {
        let place = Place { slot, ..testing::place(0) };
        stock.plug(place.shard.index);
        stock.add(place);
    }

    /// Builds what is needed, as `pool` does.
    fn fill(stock: &mut Stock<u32>, name: &NetworkName) -> usize {
        let mut built = 0;
        while let Some(Need::Build(_)) = stock.need() {
            let slot = stock.number().unwrap();
            add(slot, stock);
            stock.give(name, slot, |_, _| Ok(()));
            built += 1;
        }
        built
    }

    #[test]
    fn a_vm_that_comes_and_goes_changes_nothing() {
        let (mut stock, name) = stock(8);
        assert_eq!(fill(&mut stock, &name), 8);
        let place = stock.take(&name).unwrap();
        assert_eq!((place.slot, stock.need()), (Slot(0), None));
        stock.give(&name, place.slot, |_, _| Ok(()));
        assert_eq!((stock.need(), stock.take(&name).unwrap().slot), (None, Slot(0)));
    }

    #[test]
    fn a_stock_that_runs_low_is_filled_up_and_what_comes_back_beyond_it_goes() {
        let (mut stock, name) = stock(8);
        fill(&mut stock, &name);
        let taken: Vec<Place> = (0..3).map(|_| stock.take(&name).unwrap()).collect();
        assert_eq!(fill(&mut stock, &name), 3);
        for place in taken {
            stock.give(&name, place.slot, |_, _| Ok(()));
        }
        let Some(Need::Clear(surplus)) = stock.need() else { panic!("nothing is too many") };
        assert_eq!(surplus.iter().map(|place| place.slot.0).collect::<Vec<_>>(), [10, 9, 8]);
        surplus.iter().for_each(|place| stock.remove(place.slot));
        assert_eq!((stock.need(), stock.ports_on(testing::place(0).shard.index)), (None, 8));
    }

    #[test]
    fn what_would_be_taken_away_at_once_is_known_before_it_is_wiped() {
        let (mut stock, name) = stock(8);
        fill(&mut stock, &name);
        assert!(!stock.is_full(&name));
        for _ in 0..2 {
            let slot = stock.number().unwrap();
            add(slot, &mut stock);
            stock.give(&name, slot, |_, _| Ok(()));
        }
        assert!(stock.is_full(&name));
        stock.wait(&name, 1);
        assert!(!stock.is_full(&name), "somebody waits for it");
    }

    #[test]
    fn who_sees_to_a_slot_is_known_and_a_slot_that_is_lost_can_be_claimed() {
        let (mut stock, name) = stock(2);
        fill(&mut stock, &name);
        let (whole, never) = (Slot(0), Slot(9));
        assert!(stock.is_seen_to(whole) && stock.kept(whole).is_some());
        assert!(!stock.is_seen_to(never));
        assert_eq!(stock.take_out(&BTreeSet::from([whole]), |_, _| true), []);
        assert_eq!(stock.take_out(&BTreeSet::from([whole]), |_, _| false), [whole]);
        assert_eq!(stock.take_out(&BTreeSet::from([whole]), |_, _| false), []);
        stock.leave(whole);
        assert!(stock.is_seen_to(whole) && stock.kept(whole).is_none());
        assert!(!stock.claim(whole), "it is being taken away");
        stock.lose(whole);
        assert_eq!(stock.ports_on(testing::place(0).shard.index), 1);
        assert!(!stock.is_seen_to(whole) && stock.claim(whole) && !stock.claim(whole));
        assert!(stock.claim(never));
        stock.remove(never);
        assert!(!stock.is_seen_to(never));
        // Built again under its number, it is no slot that is being taken away.
        add(whole, &mut stock);
        assert!(stock.kept(whole).is_some());
    }

    #[test]
    fn who_waits_is_served_first_and_who_has_gone_is_passed_over() {
        let (mut stock, name) = stock(0);
        assert_eq!((stock.take(&name), stock.need()), (None, None));
        stock.wait(&name, 1);
        stock.wait(&name, 2);
        let mut served = Vec::new();
        let slot = stock.number().unwrap();
        add(slot, &mut stock);
        stock.give(&name, slot, |who, _| {
            served.push(who);
            if who == 1 { Err(()) } else { Ok(()) }
        });
        assert_eq!((served, stock.need()), (vec![1, 2], None));
        stock.give(&name, slot, |_, _| Ok(()));
        assert!(matches!(stock.need(), Some(Need::Clear(_))), "without a pool nothing is kept");
    }

    #[test]
    fn for_who_was_turned_away_nothing_is_built() {
        let (mut stock, name) = stock(0);
        stock.wait(&name, 1);
        assert!(matches!(stock.need(), Some(Need::Build(_))));
        stock.turn_away();
        assert_eq!(stock.need(), None);
    }

    #[test]
    fn a_network_that_cannot_be_built_for_is_not_tried_for_ever() {
        let (mut stock, name) = stock(8);
        stock.wait(&name, 1);
        assert_eq!(stock.building_failed(&name), Some(1));
        assert_eq!((stock.building_failed(&name), stock.need()), (None, None));
        stock.take(&name);
        assert!(matches!(stock.need(), Some(Need::Build(_))));
    }

    #[test]
    fn numbers_are_the_lowest_that_are_free() {
        let mut numbers = Numbers::default();
        numbers.take_this(Slot(2));
        assert_eq!([numbers.take(), numbers.take(), numbers.take()], [0, 1, 3].map(|n| Some(Slot(n))));
        numbers.give_back(Slot(1));
        assert_eq!(numbers.take(), Some(Slot(1)));
    }
}
