//! What somebody else's change in the kernel means for what is ours. In: changes as the kernel tells of them, and what is
//! ours. Out: where to look. Looking decides: a suspicion that was for nothing costs a look and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::{ObservedLimit, is_limited};
use crate::model::{Mac, RateLimit, Slot, Subnet};

/// A change in the kernel that we did not ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A device came, changed or went.
    Device { index: u32, there: bool, up: bool, bridge: Option<u32> },
    /// A port of a bridge; whether it is still one, closed as we made it.
    Port { index: u32, closed: bool },
    /// An address came to a device or went from it.
    Address { index: u32 },
    /// An IPv4 route came or went.
    Route { destination: Ipv4Addr, prefix_len: u8 },
    /// A neighbour came, changed or went.
    Neighbour { index: u32, address: Ipv4Addr },
    /// A forwarding entry of a bridge port is gone.
    ForwardingGone { index: u32, mac: Mac },
    /// A queueing discipline of a device went, perhaps for another one.
    Queue { index: u32 },
    /// What a device's first queue is limited to: told when that changes, and when somebody has asked for its counters.
    Limit { index: u32, limit: Option<ObservedLimit> },
    /// Rules of nf_tables.
    Rules(Rules),
    /// A queue, or what a device sends on to another, of the devices that slots have, in the namespace of that number.
    Inside { namespace: i32 },
    /// The TAP of a slot is gone, whose port has this index.
    TapGone { port: u32 },
    /// There were more changes than the kernel kept for us.
    Lost,
}

/// A change of rules, down to the chain if it is about one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub family: RulesFamily,
    pub table: String,
    pub chain: Option<String>,
    /// Of a chain that is hooked into the forward path: whether its policy is to drop.
    pub forward_drops: Option<bool>,
    /// The table or chain itself is gone.
    pub gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulesFamily {
    Ipv4,
    /// Of iptables-legacy, where our own rules are not in it.
    Legacy,
    Inet,
    Bridge,
    Other,
}

/// What is ours, as far as it takes to see whether a change is about it.
pub struct Ours<'a> {
    pub bridges: &'a BTreeSet<u32>,
    pub subnets: &'a [Subnet],
    /// The slot whose host device has this index, with the index of its bridge, if it is whole and to stay.
    pub slot: &'a dyn Fn(u32) -> Option<(Slot, u32)>,
    /// Ports of these slots that are not as we made them, see `out_of_shape`.
    pub out_of_shape: &'a BTreeSet<u32>,
    /// What a slot is to be limited to; none of one that is nobody's yet, nor ready.
    pub limit: &'a dyn Fn(Slot) -> Option<Option<RateLimit>>,
    /// The slot of the guest with that MAC.
    pub guest_with: &'a dyn Fn(Mac) -> Option<Slot>,
    pub guest_at: &'a dyn Fn(Ipv4Addr) -> bool,
    /// Interfaces that somebody else made and DHCP is served on.
    pub external: &'a BTreeSet<u32>,
    /// Whether one of these is gone.
    pub external_gone: bool,
}

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// At bridges, their addresses and the rest of the subnets.
    pub bridges: bool,
    /// At every guest's port, route, neighbour and forwarding entry.
    pub guests: bool,
    /// Into these slots, though their ports are there.
    pub taps: BTreeSet<Slot>,
    /// Into slots whose namespaces have these numbers, if any has.
    pub namespaces: BTreeSet<i32>,
    /// Into every slot.
    pub every_tap: bool,
    /// At the VMs of these slots, which an earlier look has missed.
    pub missed: BTreeSet<Slot>,
    /// At the host-wide rules of iptables.
    pub rules: bool,
    /// At the interfaces that somebody else made: one may be another with the name of the former.
    pub external: bool,
    /// At our tables of nf_tables: somebody else has changed them.
    pub walls: bool,
    /// Whether somebody else can have changed them at all.
    pub walls_unseen: bool,
}

/// The chains of iptables that our rules are in.
const CHAINS: [&str; 6] =
    ["FORWARD", "INPUT", "POSTROUTING", "PREROUTING", "GUESTNET-FORWARD", "GUESTNET-INPUT"];
/// The name of our own tables.
const OWN_TABLE: &str = "guestnet";

impl Suspicion {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn everything() -> Self {
        Self {
            bridges: true,
            guests: true,
            every_tap: true,
            rules: true,
            external: true,
            walls_unseen: true,
            ..Self::default()
        }
    }

    pub fn join(&mut self, other: &Self) {
        self.bridges |= other.bridges;
        self.guests |= other.guests;
        self.taps.extend(&other.taps);
        self.namespaces.extend(&other.namespaces);
        self.every_tap |= other.every_tap;
        self.missed.extend(&other.missed);
        self.rules |= other.rules;
        self.external |= other.external;
        self.walls |= other.walls;
        self.walls_unseen |= other.walls_unseen;
    }

    /// Without what `other` has.
    fn without(&self, other: &Self) -> Self {
        Self {
            bridges: self.bridges && !other.bridges,
            guests: self.guests && !other.guests,
            taps: if other.every_tap { BTreeSet::new() } else { &self.taps - &other.taps },
            namespaces: match other.every_tap {
                true => BTreeSet::new(),
                false => &self.namespaces - &other.namespaces,
            },
            every_tap: self.every_tap && !other.every_tap,
            missed: &self.missed - &other.missed,
            rules: self.rules && !other.rules,
            external: self.external && !other.external,
            walls: self.walls && !other.walls,
            walls_unseen: self.walls_unseen && !(other.walls_unseen || other.walls),
        }
    }

    /// Adds what `change` gives reason to look at.
    pub fn note(&mut self, change: &Change, ours: &Ours<'_>) {
        match change {
            Change::Device { index, there, up, .. } => {
                self.bridges |= ours.bridges.contains(index) && !(*there && *up);
                let gone = !there && (ours.slot)(*index).is_some();
                self.guests |= gone || ours.out_of_shape.contains(index);
                self.external |= !there && ours.external.contains(index);
            }
            Change::Port { index, .. } => self.guests |= ours.out_of_shape.contains(index),
            Change::Address { index } => {
                self.bridges |= ours.bridges.contains(index);
                // Its address is the last that an interface gets before it can be served.
                self.external |= ours.external_gone;
            }
            Change::Route { destination, prefix_len } => {
                let whole =
                    |subnet: &Subnet| subnet.network() == *destination && subnet.prefix_len() == *prefix_len;
                self.bridges |= ours.subnets.iter().any(whole);
                self.guests |= *prefix_len == 32 && (ours.guest_at)(*destination);
            }
            Change::Neighbour { index, address } => {
                self.guests |= ours.bridges.contains(index) && (ours.guest_at)(*address);
            }
            Change::ForwardingGone { index, mac } => {
                let slot = (ours.slot)(*index).map(|(slot, _)| slot);
                self.guests |= slot.is_some() && (ours.guest_with)(*mac) == slot;
            }
            Change::Queue { index } => self.guests |= (ours.slot)(*index).is_some(),
            Change::Limit { index, limit } => {
                let wanted = (ours.slot)(*index).and_then(|(slot, _)| (ours.limit)(slot));
                self.guests |= wanted.is_some_and(|wanted| !is_limited(*limit, wanted));
            }
            Change::Inside { namespace } => {
                self.guests = true;
                self.namespaces.insert(*namespace);
            }
            Change::TapGone { port } => {
                let slot = (ours.slot)(*port).map(|(slot, _)| slot);
                self.guests |= slot.is_some();
                self.taps.extend(slot);
            }
            Change::Rules(rules) => self.note_rules(rules),
            Change::Lost => self.join(&Self::everything()),
        }
    }

    fn note_rules(&mut self, rules: &Rules) {
        match rules.family {
            RulesFamily::Inet | RulesFamily::Bridge => self.walls |= rules.table == OWN_TABLE,
            RulesFamily::Ipv4 | RulesFamily::Legacy if ["filter", "nat"].contains(&rules.table.as_str()) => {
                self.rules |= rules.chain.as_ref().is_none_or(|chain| CHAINS.contains(&chain.as_str()));
            }
            _ => {}
        }
    }
}

/// Ports of slots that are there and, by these changes, not as we made them; each with the bridge that it is to be on.
pub fn out_of_shape(changes: &[Change], slot: impl Fn(u32) -> Option<(Slot, u32)>) -> BTreeMap<u32, u32> {
    let ports = changes.iter().filter_map(|change| {
        let (Change::Device { index, there: true, .. } | Change::Port { index, .. }) = change else {
            return None;
        };
        let (_, bridge) = slot(*index)?;
        let is_as_made = match change {
            Change::Device { up, bridge: on, .. } => *up && *on == Some(bridge),
            Change::Port { closed, .. } => *closed,
            _ => true,
        };
        (!is_as_made).then_some((*index, bridge))
    });
    ports.collect()
}

/// From the first change to the look: what belongs together comes together.
const SETTLE: Duration = Duration::from_millis(50);
/// From one look to the next at least; more after one that took long.
const PAUSE: Duration = Duration::from_millis(200);
/// Pauses are so many times as long as looks: they take a fifth of a CPU at most.
const IDLE: u32 = 4;
/// After something that could not be put right, doubled each time. The pause after it is no shorter: a repair that fails half-way
/// and is heard of does not go round and round.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// When to look next, and where: soon at what was changed, later and later at what could not be put right.
#[derive(Debug)]
pub struct Looks {
    fresh: Suspicion,
    fresh_at: Option<Instant>,
    failed: Suspicion,
    retry_at: Option<Instant>,
    failures: u32,
    /// When the pause after the last look ends.
    not_before: Instant,
}

impl Looks {
    pub fn new(now: Instant) -> Self {
        let (fresh, failed) = (Suspicion::default(), Suspicion::default());
        Self { fresh, fresh_at: None, failed, retry_at: None, failures: 0, not_before: now }
    }

    /// Adds what `change` gives reason to look at; whether that is more than before.
    pub fn note(&mut self, change: &Change, ours: &Ours<'_>, now: Instant) -> bool {
        let before = self.fresh.clone();
        self.fresh.note(change, ours);
        if self.fresh_at.is_none() && !self.fresh.is_empty() {
            self.fresh_at = Some(now + SETTLE);
        }
        self.fresh != before
    }

    /// These slots' VMs could not be looked at before.
    pub fn ask(&mut self, slots: BTreeSet<Slot>, now: Instant) {
        self.fresh.missed.extend(slots);
        self.fresh_at = self.fresh_at.or(Some(now + SETTLE));
    }

    /// When the next look is; `None` while there is no reason for one.
    pub fn next(&self) -> Option<Instant> {
        let at = self.fresh_at.into_iter().chain(self.retry_at).min()?;
        Some(at.max(self.not_before))
    }

    /// Where to look now.
    pub fn begin(&mut self, now: Instant) -> Suspicion {
        self.fresh_at = None;
        let mut at = std::mem::take(&mut self.fresh);
        if self.retry_at.is_some_and(|retry_at| retry_at <= now) {
            at.join(&self.failed);
        }
        self.failed = self.failed.without(&at);
        at
    }

    /// The look that began then is over; `failed` could not be put right.
    pub fn end(&mut self, began: Instant, now: Instant, failed: &Suspicion) {
        self.not_before = now + PAUSE.max(now.duration_since(began) * IDLE);
        self.failed.join(failed);
        if !failed.is_empty() {
            let wait = RETRY * 2_u32.saturating_pow(self.failures.min(6));
            self.failures += 1;
            self.not_before = self.not_before.max(now + RETRY);
            self.retry_at = Some(now + wait.min(LONGEST_RETRY));
        } else if self.failed.is_empty() {
            (self.failures, self.retry_at) = (0, None);
        }
    }
}

/// Chains of others that are hooked into the forward path and drop what they do not know.
#[derive(Debug, Default)]
pub struct Closed(BTreeSet<(RulesFamily, String, String)>);

/// As many are remembered; an admin has a few.
const MOST_CLOSED: usize = 64;

impl Closed {
    /// What is to be told of a change: a chain that drops from now on, in words.
    pub fn note(&mut self, rules: &Rules) -> Option<String> {
        let Rules { family, table, chain, forward_drops, gone } = rules;
        let chain = chain.clone().unwrap_or_default();
        if *gone || *forward_drops == Some(false) {
            self.0.retain(|(of, name, hooked)| {
                (of, name) != (family, table) || !(chain.is_empty() || *hooked == chain)
            });
        }
        if *forward_drops != Some(true) || table == OWN_TABLE || self.0.len() >= MOST_CLOSED {
            return None;
        }
        self.0.insert((*family, table.clone(), chain.clone())).then(|| {
            match (family, table.as_str(), chain.as_str()) {
                (RulesFamily::Ipv4, "filter", "FORWARD") => {
                    "the policy of FORWARD is DROP now: guestnet's rules come first and let guests through".to_owned()
                }
                (RulesFamily::Legacy, ..) => {
                    "the policy of FORWARD in iptables-legacy is DROP now: guests are cut off unless its own rules accept them \
                     (guestnet doctor)".to_owned()
                }
                _ => format!(
                    "chain {chain} of the nf_tables table {table} drops by policy what is forwarded: guests are cut off \
                     unless its own rules accept them (guestnet doctor)"
                ),
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test has a clock")]
mod tests {
    use super::*;
    use crate::model::testing;

    const BRIDGE: u32 = 1000;
    const PORT: u32 = 7;
    const EXTERNAL: u32 = 8;

    fn suspicion(change: &Change) -> Suspicion {
        suspicion_with(change, false)
    }

    fn suspicion_with(change: &Change, external_gone: bool) -> Suspicion {
        let bridges = BTreeSet::from([BRIDGE]);
        let mac: Mac = "06:00:0a:64:00:02".parse().unwrap();
        let slot = |index| (index == PORT).then_some((Slot(0), BRIDGE));
        let ports = out_of_shape(std::slice::from_ref(change), slot);
        let ours = Ours {
            bridges: &bridges,
            subnets: &["10.100.0.0/16".parse().unwrap()],
            slot: &slot,
            out_of_shape: &ports.into_keys().collect(),
            limit: &|slot| (slot == Slot(0)).then_some(testing::network().rate_limit),
            guest_with: &|of| (of == mac).then_some(Slot(0)),
            guest_at: &|address| address == Ipv4Addr::new(10, 100, 0, 2),
            external: &BTreeSet::from([EXTERNAL]),
            external_gone,
        };
        let mut suspicion = Suspicion::default();
        suspicion.note(change, &ours);
        suspicion
    }

    fn another_limit() -> ObservedLimit {
        ObservedLimit { bytes_per_second: 1, burst: 1 }
    }

    fn rules(family: RulesFamily, table: &str, chain: Option<&str>) -> Rules {
        Rules { family, table: table.into(), chain: chain.map(Into::into), forward_drops: None, gone: false }
    }

    #[test]
    fn what_is_ours_and_was_changed_is_looked_at() {
        let guests = Suspicion { guests: true, ..Suspicion::default() };
        let tap = Suspicion { taps: [Slot(0)].into(), ..guests.clone() };
        let inside = Suspicion { namespaces: [3].into(), ..guests.clone() };
        let bridges = Suspicion { bridges: true, ..Suspicion::default() };
        let of_rules = Suspicion { rules: true, ..Suspicion::default() };
        let walls = Suspicion { walls: true, ..Suspicion::default() };
        let external = Suspicion { external: true, ..Suspicion::default() };
        let device = |index, there, up, bridge| Change::Device { index, there, up, bridge };
        let guest = Ipv4Addr::new(10, 100, 0, 2);
        let cases = [
            (device(BRIDGE, false, false, None), &bridges),
            (device(BRIDGE, true, false, None), &bridges),
            (device(PORT, false, false, None), &guests),
            (device(PORT, true, false, Some(BRIDGE)), &guests),
            (device(PORT, true, true, Some(BRIDGE + 1)), &guests),
            (device(EXTERNAL, false, false, None), &external),
            (Change::Port { index: PORT, closed: false }, &guests),
            (Change::Address { index: BRIDGE }, &bridges),
            (Change::Route { destination: Ipv4Addr::new(10, 100, 0, 0), prefix_len: 16 }, &bridges),
            (Change::Route { destination: guest, prefix_len: 32 }, &guests),
            (Change::Neighbour { index: BRIDGE, address: guest }, &guests),
            (Change::ForwardingGone { index: PORT, mac: "06:00:0a:64:00:02".parse().unwrap() }, &guests),
            (Change::TapGone { port: PORT }, &tap),
            (Change::Inside { namespace: 3 }, &inside),
            (Change::Queue { index: PORT }, &guests),
            (Change::Limit { index: PORT, limit: None }, &guests),
            (Change::Limit { index: PORT, limit: Some(another_limit()) }, &guests),
            (Change::Rules(rules(RulesFamily::Ipv4, "filter", Some("FORWARD"))), &of_rules),
            (Change::Rules(rules(RulesFamily::Ipv4, "nat", None)), &of_rules),
            (Change::Rules(rules(RulesFamily::Inet, "guestnet", None)), &walls),
            (Change::Lost, &Suspicion::everything()),
        ];
        for (change, wanted) in cases {
            assert_eq!(&suspicion(&change), wanted, "{change:?}");
        }
        assert_eq!(suspicion_with(&Change::Address { index: 3 }, true), external);
    }

    #[test]
    fn a_port_that_is_in_shape_by_now_or_nobodys_yet_is_not_looked_at() {
        let down = Change::Device { index: PORT, there: true, up: false, bridge: None };
        let changes = [down.clone(), Change::Port { index: PORT, closed: false }];
        let slot = |index| (index == PORT).then_some((Slot(0), BRIDGE));
        assert_eq!(out_of_shape(&changes, slot), BTreeMap::from([(PORT, BRIDGE)]));
        assert_eq!(out_of_shape(&changes, |_| None), BTreeMap::new());
        // The service has asked for it, and it is as it was made.
        let mut suspicion = Suspicion::default();
        for change in changes {
            suspicion.note(&change, &nothing_out_of_shape(&slot));
        }
        assert!(suspicion.is_empty(), "{suspicion:?}");
    }

    #[test]
    fn vms_that_a_look_has_missed_are_looked_at_alone_and_later_with_what_is_fresh() {
        let now = Instant::now();
        let mut looks = Looks::new(now);
        looks.ask([Slot(3)].into(), now);
        let missed = Suspicion { missed: [Slot(3)].into(), ..Suspicion::default() };
        assert_eq!(looks.next(), Some(now + SETTLE));
        assert_eq!(looks.begin(now + SETTLE), missed);
        looks.end(now + SETTLE, now + SETTLE, &Suspicion::default());
        looks.ask([Slot(3)].into(), now);
        note(&mut looks, now);
        assert_eq!(looks.begin(now + PAUSE), Suspicion { bridges: true, ..missed });
    }

    #[test]
    fn what_was_lost_hides_no_change_of_the_walls_that_was_seen() {
        let mut suspicion = Suspicion { walls: true, ..Suspicion::default() };
        suspicion.join(&Suspicion::everything());
        assert_eq!(suspicion, Suspicion { walls: true, ..Suspicion::everything() });
    }

    fn nothing_out_of_shape<'a>(slot: &'a dyn Fn(u32) -> Option<(Slot, u32)>) -> Ours<'a> {
        static NONE: BTreeSet<u32> = BTreeSet::new();
        Ours {
            bridges: &NONE,
            subnets: &[],
            slot,
            out_of_shape: &NONE,
            limit: &|_| None,
            guest_with: &|_| None,
            guest_at: &|_| false,
            external: &NONE,
            external_gone: false,
        }
    }

    /// A moment later, the change of that moment, which is ours.
    fn note(looks: &mut Looks, now: Instant) {
        let ours = Ours { bridges: &BTreeSet::from([BRIDGE]), ..nothing_out_of_shape(&|_| None) };
        looks.note(&Change::Address { index: BRIDGE }, &ours, now);
    }

    #[test]
    fn a_fresh_change_is_looked_at_soon_whatever_failed_before() {
        let begin = Instant::now();
        let mut looks = Looks::new(begin);
        assert_eq!(looks.next(), None);
        let failing = Suspicion { guests: true, ..Suspicion::default() };
        let mut now = begin;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            looks.begin(now);
            looks.end(now, now, &failing);
            assert_eq!(looks.next(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
        }
        assert_eq!(looks.begin(now), failing);
        looks.end(now, now, &failing);
        let retry = looks.next().unwrap();
        now += Duration::from_secs(2);
        note(&mut looks, now);
        assert_eq!(looks.next(), Some(now + SETTLE));
        // What fails is not looked at before its time, nor forgotten.
        let bridges = Suspicion { bridges: true, ..Suspicion::default() };
        assert_eq!(looks.begin(now + SETTLE), bridges);
        looks.end(now + SETTLE, now + SETTLE, &Suspicion::default());
        assert_eq!(looks.next(), Some(retry));
        assert_eq!(looks.begin(retry), failing);
        looks.end(retry, retry, &Suspicion::default());
        assert_eq!(looks.next(), None);
    }

    #[test]
    fn looks_that_take_long_are_far_apart() {
        let now = Instant::now();
        let mut looks = Looks::new(now);
        note(&mut looks, now);
        looks.begin(now + SETTLE);
        let ended = now + SETTLE + Duration::from_secs(2);
        looks.end(now + SETTLE, ended, &Suspicion::default());
        note(&mut looks, ended);
        assert_eq!(looks.next(), Some(ended + Duration::from_secs(8)));
    }

    #[test]
    fn what_is_somebody_elses_or_as_it_should_be_is_not() {
        for change in [
            Change::Device { index: BRIDGE, there: true, up: true, bridge: None },
            Change::Device { index: PORT, there: true, up: true, bridge: Some(BRIDGE) },
            Change::Device { index: 3, there: false, up: false, bridge: None },
            Change::Device { index: EXTERNAL, there: true, up: false, bridge: None },
            Change::Port { index: PORT, closed: true },
            Change::Port { index: 3, closed: false },
            Change::Address { index: 3 },
            Change::Limit { index: PORT, limit: testing::network().rate_limit.map(ObservedLimit::of) },
            Change::Limit { index: 3, limit: None },
            Change::Route { destination: Ipv4Addr::new(192, 0, 2, 0), prefix_len: 24 },
            Change::Neighbour { index: 3, address: Ipv4Addr::new(10, 100, 0, 2) },
            Change::ForwardingGone { index: PORT, mac: "06:00:0a:64:00:03".parse().unwrap() },
            Change::Rules(rules(RulesFamily::Ipv4, "nat", Some("DOCKER"))),
            Change::Rules(rules(RulesFamily::Inet, "firewalld", None)),
            Change::Rules(rules(RulesFamily::Other, "filter", Some("FORWARD"))),
        ] {
            assert_eq!(suspicion(&change), Suspicion::default(), "{change:?}");
        }
    }

    #[test]
    fn a_chain_that_drops_is_told_of_once_until_it_does_not() {
        let mut closed = Closed::default();
        let policy = |drops| Rules {
            forward_drops: Some(drops),
            ..rules(RulesFamily::Ipv4, "filter", Some("FORWARD"))
        };
        assert!(closed.note(&policy(true)).unwrap().contains("FORWARD"));
        assert_eq!(closed.note(&policy(true)), None);
        assert_eq!(closed.note(&policy(false)), None);
        assert!(closed.note(&policy(true)).is_some());
        assert_eq!(closed.note(&Rules { gone: true, ..rules(RulesFamily::Ipv4, "filter", None) }), None);
        assert!(closed.note(&policy(true)).is_some());
        let own =
            Rules { forward_drops: Some(true), ..rules(RulesFamily::Inet, "guestnet", Some("forward")) };
        assert_eq!(closed.note(&own), None);
    }
}
