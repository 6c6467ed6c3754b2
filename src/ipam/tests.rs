#![allow(clippy::disallowed_methods, reason = "a test has a clock")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn ipam(subnet: &str, gateway: &str) -> Ipam {
    Ipam::new(subnet.parse().unwrap(), ip(gateway), &[], QUARANTINE)
}

fn next(ipam: &mut Ipam, now: Instant) -> String {
    ipam.allocate_next(now).map_or_else(|error| error.to_string(), |address| address.to_string())
}

#[test]
fn the_first_guest_gets_the_address_after_the_gateway() {
    let now = Instant::now();
    let mut addresses = ipam("10.100.0.0/16", "10.100.0.1");
    assert_eq!(next(&mut addresses, now), "10.100.0.2");
    assert_eq!(next(&mut addresses, now), "10.100.0.3");
    let mut at_the_end = ipam("10.0.0.0/29", "10.0.0.5");
    let given: Vec<String> = (0..5).map(|_| next(&mut at_the_end, now)).collect();
    assert_eq!(given, ["10.0.0.6", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
}

#[test]
fn a_full_subnet_says_what_it_is_full_of() {
    let start = Instant::now();
    let mut addresses = ipam("10.0.0.0/29", "10.0.0.1");
    let given: Vec<Ipv4Addr> = (0..5).map(|_| addresses.allocate_next(start).unwrap()).collect();
    assert_eq!(next(&mut addresses, start), "network 10.0.0.0/29 is full: 5 in use, 0 in quarantine");
    addresses.free(given[3], start);
    addresses.free(given[1], start + Duration::from_secs(1));
    assert_eq!(
        next(&mut addresses, start + Duration::from_secs(18)),
        "network 10.0.0.0/29 is full: 3 in use, 2 in quarantine, the next is free in 42 s"
    );
    assert_eq!(next(&mut addresses, start + QUARANTINE), given[3].to_string());
    assert_eq!(addresses.free_count(), 1);
}

#[test]
fn what_is_not_for_guests_is_never_given() {
    let subnet = "10.0.0.0/28".parse().unwrap();
    let reserved =
        [ip("10.0.0.12")..=ip("10.0.1.9"), ip("9.0.0.0")..=ip("10.0.0.0"), ip("10.0.0.4")..=ip("10.0.0.7")];
    let mut addresses = Ipam::new(subnet, ip("10.0.0.1"), &reserved, QUARANTINE);
    let now = Instant::now();
    let given: Vec<String> = (0..6).map(|_| next(&mut addresses, now)).collect();
    assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.8", "10.0.0.9", "10.0.0.10", "10.0.0.11"]);
    assert!(addresses.allocate_next(now).is_err());
    let why = |text: &str| addresses.clone().allocate(ip(text)).unwrap_err().to_string();
    assert_eq!(
        why("10.0.0.1"),
        "address 10.0.0.1 is not for a guest of 10.0.0.0/28: it is the gateway or reserved"
    );
    assert!(why("10.0.0.5").contains("reserved"));
    assert!(why("10.0.0.0").contains("the network's own"));
    assert!(why("10.0.0.15").contains("broadcast"));
    assert!(why("10.0.0.16").contains("outside"));
    assert_eq!(why("10.0.0.2"), "address 10.0.0.2 is already in use");
}

#[test]
fn a_named_address_is_honoured_even_from_quarantine() {
    let now = Instant::now();
    let mut addresses = ipam("10.0.0.0/24", "10.0.0.1");
    addresses.allocate(ip("10.0.0.2")).unwrap();
    assert_eq!(next(&mut addresses, now), "10.0.0.3");
    assert!(addresses.free(ip("10.0.0.2"), now));
    assert!(!addresses.free(ip("10.0.0.2"), now));
    addresses.allocate(ip("10.0.0.2")).unwrap();
    assert_eq!(addresses.taken_count(), 2);
}

#[test]
fn an_address_that_no_guest_had_is_given_out_next() {
    let now = Instant::now();
    let mut addresses = ipam("10.0.0.0/24", "10.0.0.1");
    assert_eq!(next(&mut addresses, now), "10.0.0.2");
    assert!(addresses.put_back(ip("10.0.0.2")));
    assert_eq!(next(&mut addresses, now), "10.0.0.2");
}

#[test]
fn a_slash_8_is_as_cheap_as_a_slash_24() {
    let now = Instant::now();
    let mut addresses = ipam("10.0.0.0/8", "10.0.0.1");
    assert_eq!(addresses.free_count(), (1 << 24) - 3);
    addresses.allocate(ip("10.255.255.254")).unwrap();
    for _ in 0..100_000 {
        addresses.allocate_next(now).unwrap();
    }
    assert_eq!(addresses.used.len(), 100_001);
}

#[test]
fn churn_in_a_large_subnet_does_not_grow_without_end() {
    let mut now = Instant::now();
    let mut addresses = ipam("10.0.0.0/8", "10.0.0.1");
    for _ in 0..200_000 {
        let address = addresses.allocate_next(now).unwrap();
        addresses.free(address, now);
        now += QUARANTINE;
    }
    assert!(addresses.used.len() <= MANY_FREED);
}

/// The same rules over plain lists, slow and evident.
struct Model {
    order: Vec<Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
    put_back: Vec<Ipv4Addr>,
    freed: Vec<(Instant, Ipv4Addr)>,
}

impl Model {
    fn new(subnet: Subnet, gateway: Ipv4Addr, reserved: &[RangeInclusive<Ipv4Addr>]) -> Self {
        let all: Vec<Ipv4Addr> =
            (u32::from(subnet.network())..=u32::from(subnet.broadcast())).map(Into::into).collect();
        let order = all.iter().filter(|a| **a > gateway).chain(all.iter().filter(|a| **a < gateway));
        let fits = |a: &&Ipv4Addr| subnet.has_host(**a) && !reserved.iter().any(|range| range.contains(*a));
        let order = order.filter(fits).copied().collect();
        Self { order, used: BTreeSet::new(), taken: BTreeSet::new(), put_back: Vec::new(), freed: Vec::new() }
    }

    fn take(&mut self, address: Ipv4Addr) -> Ipv4Addr {
        self.put_back.retain(|other| *other != address);
        self.freed.retain(|(_, other)| *other != address);
        self.used.insert(address);
        self.taken.insert(address);
        address
    }

    fn allocate_next(&mut self, now: Instant) -> Option<Ipv4Addr> {
        let never = || self.order.iter().copied().find(|address| !self.used.contains(address));
        // min_by_key gives the first of equals: those freed together go in the order they were freed.
        let oldest = || self.freed.iter().min_by_key(|(at, _)| *at).filter(|(at, _)| now >= *at + QUARANTINE);
        let address = self.put_back.first().copied().or_else(never).or_else(|| oldest().map(|(_, a)| *a))?;
        Some(self.take(address))
    }

    fn allocate(&mut self, address: Ipv4Addr) -> bool {
        let fits = self.order.contains(&address) && !self.taken.contains(&address);
        if fits {
            self.take(address);
        }
        fits
    }
}

#[derive(Debug, Clone)]
enum Call {
    Next,
    Named(u32),
    Free(u32),
    FreeLongAgo(u32, u64),
    PutBack(u32),
    Wait(u64),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        4 => Just(Call::Next),
        2 => (0..70_u32).prop_map(Call::Named),
        3 => (0..70_u32).prop_map(Call::Free),
        1 => (0..70_u32, 0..120_u64).prop_map(|(at, ago)| Call::FreeLongAgo(at, ago)),
        1 => (0..70_u32).prop_map(Call::PutBack),
        2 => (0..50_u64).prop_map(Call::Wait),
    ];
    proptest::collection::vec(call, 0..200)
}

proptest! {
    #[test]
    fn it_does_what_the_naive_model_does(
        prefix in 26..=30_u8,
        gateway in 1..63_u32,
        holes in proptest::collection::vec((0..70_u32, 0..6_u32), 0..3),
        calls in calls(),
    ) {
        let network = u32::from(Ipv4Addr::new(10, 0, 0, 64));
        let at = |offset: u32| Ipv4Addr::from(network - 2 + offset);
        let subnet: Subnet = format!("10.0.0.64/{prefix}").parse().unwrap();
        let gateway = Ipv4Addr::from(network + 1 + gateway % ((1 << (32 - prefix)) - 2));
        let reserved: Vec<_> = holes.iter().map(|(from, len)| at(*from)..=at(from + len)).collect();
        let mut ipam = Ipam::new(subnet, gateway, &reserved, QUARANTINE);
        let mut model = Model::new(subnet, gateway, &reserved);
        let mut now = Instant::now() + Duration::from_secs(1000);
        for call in calls {
            match call {
                Call::Next => prop_assert_eq!(ipam.allocate_next(now).ok(), model.allocate_next(now)),
                Call::Named(n) => prop_assert_eq!(ipam.allocate(at(n)).is_ok(), model.allocate(at(n))),
                Call::Free(n) | Call::FreeLongAgo(n, _) => {
                    let ago = if let Call::FreeLongAgo(_, ago) = call { ago } else { 0 };
                    let freed_at = now - Duration::from_secs(ago);
                    let was_taken = model.taken.remove(&at(n));
                    if was_taken {
                        model.freed.push((freed_at, at(n)));
                    }
                    prop_assert_eq!(ipam.free(at(n), freed_at), was_taken);
                }
                Call::PutBack(n) => {
                    let was_taken = model.taken.remove(&at(n));
                    if was_taken {
                        model.put_back.push(at(n));
                    }
                    prop_assert_eq!(ipam.put_back(at(n)), was_taken);
                }
                Call::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            prop_assert_eq!(ipam.taken_count(), model.taken.len() as u64);
            prop_assert_eq!(ipam.free_count(), (model.order.len() - model.taken.len()) as u64);
        }
    }
}
