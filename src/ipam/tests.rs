#![allow(clippy::disallowed_methods, reason = "a test has a clock")]

use std::collections::{BTreeMap, BTreeSet};

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
    // One that a guest had before rests on, as if nobody had taken it since.
    let mut small = ipam("10.0.0.0/30", "10.0.0.1");
    small.allocate(ip("10.0.0.2")).unwrap();
    small.free(ip("10.0.0.2"), now);
    small.allocate(ip("10.0.0.2")).unwrap();
    assert!(small.put_back(ip("10.0.0.2")));
    assert!(next(&mut small, now).contains("the next is free in 60 s"));
    assert_eq!(next(&mut small, now + QUARANTINE), "10.0.0.2");
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

/// Whatever was taken, in turn or by name, and freed before: a call looks at one range of what was never given out, and at the one
/// address that was freed longest ago.
#[test]
fn a_call_looks_at_no_more_however_full_the_subnet_is() {
    const ALL: u32 = (1 << 14) - 3;
    let mut now = Instant::now();
    let address = |turn: u32| Ipv4Addr::from(u32::from(ip("10.0.0.2")) + turn);
    for (step, freed) in [(1, false), (2, false), (2, true), (3, true), (ALL, false)] {
        let mut addresses = ipam("10.0.0.0/18", "10.0.0.1");
        let mut most = 0;
        let mut looked = |addresses: &mut Ipam, call: &mut dyn FnMut(&mut Ipam)| {
            let before = addresses.looks;
            call(addresses);
            most = most.max(addresses.looks - before);
        };
        // By name: all of them, or with gaps; some of them are freed again.
        for turn in (0..ALL).step_by(step as usize).filter(|turn| *turn + 1 < ALL) {
            looked(&mut addresses, &mut |addresses| addresses.allocate(address(turn)).unwrap());
            if freed && turn % 5 == 0 {
                looked(&mut addresses, &mut |addresses| _ = addresses.free(address(turn), now));
            }
        }
        // Then one after the other until there is none, and on.
        now += QUARANTINE;
        let left = addresses.free_count();
        for number in 0..left + 10 {
            looked(&mut addresses, &mut |addresses| {
                assert_eq!(addresses.allocate_next(now).is_ok(), number < left, "{number} of {left}");
            });
        }
        assert_eq!((addresses.free_count(), addresses.untouched.len()), (0, 0));
        // Full, one comes and one goes.
        for turn in 0..1_000 {
            looked(&mut addresses, &mut |addresses| assert!(addresses.free(address(turn * 7), now)));
            now += QUARANTINE;
            looked(&mut addresses, &mut |addresses| {
                assert_eq!(addresses.allocate_next(now), Ok(address(turn * 7)));
            });
        }
        assert!(
            most <= 3,
            "a call looked at {most} ranges or addresses (one in {step} taken by name, freed: {freed})"
        );
    }
}

#[test]
fn a_slash_8_takes_memory_for_what_was_given_out_alone() {
    let now = Instant::now();
    let mut addresses = ipam("10.0.0.0/8", "10.0.0.1");
    assert_eq!(addresses.untouched.len(), 1);
    // Far apart, so that each splits a range.
    for n in 1..=10_000_u32 {
        addresses.allocate(Ipv4Addr::from((10 << 24) + n * 1_000)).unwrap();
    }
    assert_eq!((addresses.used.len(), addresses.untouched.len()), (10_000, 10_001));
    assert_eq!(next(&mut addresses, now), "10.0.0.2");
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
    /// With when it was freed before.
    taken: BTreeMap<Ipv4Addr, Option<Instant>>,
    put_back: Vec<Ipv4Addr>,
    freed: Vec<(Instant, Ipv4Addr)>,
}

impl Model {
    /// Of `subnet` what is in `windows`, which are in order: the rest is reserved.
    fn new(
        subnet: Subnet,
        gateway: Ipv4Addr,
        windows: &[RangeInclusive<u32>],
        reserved: &[RangeInclusive<Ipv4Addr>],
    ) -> Self {
        let all: Vec<Ipv4Addr> = windows.iter().cloned().flatten().map(Into::into).collect();
        let order = all.iter().filter(|a| **a > gateway).chain(all.iter().filter(|a| **a < gateway));
        let fits = |a: &&Ipv4Addr| subnet.has_host(**a) && !reserved.iter().any(|range| range.contains(*a));
        let order = order.filter(fits).copied().collect();
        Self { order, used: BTreeSet::new(), taken: BTreeMap::new(), put_back: Vec::new(), freed: Vec::new() }
    }

    fn take(&mut self, address: Ipv4Addr) -> Ipv4Addr {
        let before = self.freed.iter().find(|(_, other)| *other == address).map(|(at, _)| *at);
        self.put_back.retain(|other| *other != address);
        self.freed.retain(|(_, other)| *other != address);
        self.used.insert(address);
        self.taken.insert(address, before);
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
        let fits = self.order.contains(&address) && !self.taken.contains_key(&address);
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

/// Up to 70 addresses at the start of the subnet, in its midst and at its end, network and broadcast address among them.
fn windows(subnet: Subnet, midst: f64) -> Vec<RangeInclusive<u32>> {
    let (first, last) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    if last - first < 256 {
        return vec![first..=last];
    }
    let midst = first + 24 + (f64::from(last - first - 72) * midst) as u32;
    vec![first..=first + 23, midst..=midst + 23, last - 21..=last]
}

proptest! {
    #[test]
    fn it_does_what_the_naive_model_does(
        prefix in 8..=30_u8,
        place in any::<u32>(),
        midst in 0.0..1.0_f64,
        gateway in any::<prop::sample::Index>(),
        holes in proptest::collection::vec((0..70_u32, 0..6_u32), 0..3),
        calls in calls(),
    ) {
        // Somewhere in 10.0.0.0/8.
        let network = (10 << 24) | (place & 0x00ff_ffff & (u32::MAX << (32 - prefix)));
        let subnet: Subnet = format!("{}/{prefix}", Ipv4Addr::from(network)).parse().unwrap();
        let windows = windows(subnet, midst);
        let known: Vec<u32> = windows.iter().cloned().flatten().collect();
        // The last ones are outside.
        let at = |n: u32| {
            let beyond = |n: usize| u32::from(subnet.broadcast()).wrapping_add((n - known.len() + 1) as u32);
            Ipv4Addr::from(known.get(n as usize).copied().unwrap_or_else(|| beyond(n as usize)))
        };
        let hosts: Vec<Ipv4Addr> =
            known.iter().map(|n| Ipv4Addr::from(*n)).filter(|address| subnet.has_host(*address)).collect();
        let gateway = *gateway.get(&hosts);
        let mut reserved: Vec<_> = holes.iter().map(|(from, len)| at(*from)..=Ipv4Addr::from(u32::from(at(*from)).saturating_add(*len))).collect();
        // What is between the windows.
        reserved.extend(windows.windows(2).map(|pair| {
            Ipv4Addr::from(*pair[0].end() + 1)..=Ipv4Addr::from(pair[1].start().wrapping_sub(1))
        }));
        let mut ipam = Ipam::new(subnet, gateway, &reserved, QUARANTINE);
        let mut model = Model::new(subnet, gateway, &windows, &reserved);
        let mut now = Instant::now() + Duration::from_secs(1000);
        for call in calls {
            match call {
                Call::Next => prop_assert_eq!(ipam.allocate_next(now).ok(), model.allocate_next(now)),
                Call::Named(n) => prop_assert_eq!(ipam.allocate(at(n)).is_ok(), model.allocate(at(n))),
                Call::Free(n) | Call::FreeLongAgo(n, _) => {
                    let ago = if let Call::FreeLongAgo(_, ago) = call { ago } else { 0 };
                    let freed_at = now - Duration::from_secs(ago);
                    let was_taken = model.taken.remove(&at(n)).is_some();
                    if was_taken {
                        model.freed.push((freed_at, at(n)));
                    }
                    prop_assert_eq!(ipam.free(at(n), freed_at), was_taken);
                }
                Call::PutBack(n) => {
                    let before = model.taken.remove(&at(n));
                    match before {
                        Some(Some(freed_at)) => model.freed.push((freed_at, at(n))),
                        Some(None) => model.put_back.push(at(n)),
                        None => {}
                    }
                    prop_assert_eq!(ipam.put_back(at(n)), before.is_some());
                }
                Call::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            prop_assert_eq!(ipam.taken_count(), model.taken.len() as u64);
            prop_assert_eq!(ipam.free_count(), (model.order.len() - model.taken.len()) as u64);
        }
    }
}
