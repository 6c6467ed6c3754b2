use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn allocator(subnet: &str, gateway: [u8; 4]) -> Allocator {
    Allocator::new(subnet.parse().unwrap(), gateway.into())
}

fn address(last: u8) -> Ipv4Addr {
    [10, 0, 0, last].into()
}

#[test]
fn addresses_ascend_from_the_gateway() {
    let mut allocator = allocator("10.100.0.0/16", [10, 100, 0, 1]);
    let now = Instant::now();
    assert_eq!(allocator.allocate_next(now), Ok([10, 100, 0, 2].into()));
    assert_eq!(allocator.allocate_next(now), Ok([10, 100, 0, 3].into()));
    assert_eq!(allocator.free_count(), 65_536 - 3 - 2);
}

#[test]
fn a_30_has_one_address_beside_the_gateway() {
    let mut allocator = allocator("10.0.0.0/30", [10, 0, 0, 1]);
    let now = Instant::now();
    assert_eq!(allocator.allocate_next(now), Ok(address(2)));
    assert_eq!(allocator.allocate_next(now), Err(Full { taken: 1, resting: 0 }));
}

#[test]
fn a_freed_address_rests_before_another_guest_has_it() {
    let mut allocator = allocator("10.0.0.0/29", [10, 0, 0, 1]);
    let start = Instant::now();
    for _ in 0..5 {
        allocator.allocate_next(start).unwrap();
    }
    allocator.free(address(4), start);
    allocator.free(address(3), start + Duration::from_secs(1));
    assert_eq!(allocator.allocate_next(start + Duration::from_secs(29)), Err(Full { taken: 3, resting: 2 }));
    assert_eq!(allocator.allocate_next(start + QUARANTINE), Ok(address(4)), "the longest freed comes first");
    assert!(allocator.allocate_next(start + QUARANTINE).is_err());
    assert_eq!(allocator.allocate(address(3)), Ok(()), "by name it may be had while it rests");
}

#[test]
fn an_8_is_not_sized_by_its_prefix() {
    let mut allocator = allocator("10.0.0.0/8", [10, 255, 255, 254]);
    assert_eq!(allocator.allocate([10, 200, 1, 1].into()), Ok(()));
    assert_eq!(allocator.allocate_next(Instant::now()), Ok(address(1)));
}

#[derive(Debug, Clone)]
enum Call {
    Next,
    Take(u8),
    Free(u8),
    Wait(u8),
}

proptest! {
    /// Against a list of what each address is: taken, or free since when.
    #[test]
    fn it_agrees_with_a_naive_list(calls in prop::collection::vec(
        prop_oneof![
            4 => Just(Call::Next),
            2 => (0..32_u8).prop_map(Call::Take),
            4 => (0..32_u8).prop_map(Call::Free),
            1 => (1..40_u8).prop_map(Call::Wait),
        ],
        0..200,
    )) {
        let mut allocator = allocator("10.0.0.0/27", [10, 0, 0, 1]);
        let mut now = Instant::now();
        // None: taken. Some: free since then, or never used. The order of frees breaks ties.
        let mut freed: BTreeMap<u8, Option<(Instant, usize)>> = BTreeMap::new();
        let mut never: Vec<u8> = (2..31).collect();
        for (turn, call) in calls.into_iter().enumerate() {
            match call {
                Call::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Call::Free(last) => {
                    allocator.free(address(last), now);
                    if freed.get(&last) == Some(&None) {
                        freed.insert(last, Some((now, turn)));
                    }
                }
                Call::Take(last) => {
                    let may = (2..31).contains(&last) && freed.get(&last) != Some(&None);
                    prop_assert_eq!(allocator.allocate(address(last)).is_ok(), may);
                    if may {
                        freed.insert(last, None);
                        never.retain(|other| *other != last);
                    }
                }
                Call::Next => {
                    let rested = freed.iter().filter_map(|(last, since)| since.map(|since| (since, *last)));
                    let oldest = rested.min().filter(|((at, _), _)| now.duration_since(*at) >= QUARANTINE);
                    let expected = never.first().copied().or(oldest.map(|(_, last)| last));
                    prop_assert_eq!(allocator.allocate_next(now).ok(), expected.map(address));
                    if let Some(last) = expected {
                        never.retain(|other| *other != last);
                        freed.insert(last, None);
                    }
                }
            }
            let taken = freed.values().filter(|since| since.is_none()).count() as u64;
            prop_assert_eq!(allocator.free_count(), 29 - taken);
        }
    }
}
