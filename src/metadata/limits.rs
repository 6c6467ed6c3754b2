//! What one guest may take of the service: connections at a time, and requests by a bucket that fills with time. In: an
//! address, the time. Out: a place, or none. One entry for each guest that asked lately, so no more than there are guests.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of one guest at a time; cloud-init needs one.
const CONNECTIONS: u32 = 8;
/// Requests at once, and per second after that. cloud-init asks some forty things of EC2's tree when a guest boots.
const BURST: u32 = 200;
const PER_SECOND: u32 = 20;

#[derive(Debug, Clone, Default)]
pub(super) struct Limits(Arc<Mutex<HashMap<Ipv4Addr, Use>>>);

#[derive(Debug)]
struct Use {
    connections: u32,
    requests_left: u32,
    filled_at: Instant,
}

impl Use {
    fn fill(&mut self, now: Instant) {
        let waited = now.saturating_duration_since(self.filled_at).as_millis();
        let new = u32::try_from(waited * u128::from(PER_SECOND) / 1000).unwrap_or(u32::MAX);
        if new > 0 {
            self.requests_left = self.requests_left.saturating_add(new).min(BURST);
            self.filled_at = now;
        }
    }
}

/// A connection of a guest's, given back when dropped.
pub(super) struct Place {
    limits: Limits,
    guest: Ipv4Addr,
}

impl Limits {
    pub(super) fn connection(&self, guest: Ipv4Addr, now: Instant) -> Option<Place> {
        let mut guests = self.guests();
        // A bucket that is full again says nothing.
        let full_after = Duration::from_secs(u64::from(BURST / PER_SECOND) + 1);
        if guests.len() > 1024 {
            guests.retain(|_, of| {
                of.connections > 0 || now.saturating_duration_since(of.filled_at) < full_after
            });
        }
        let of = guests.entry(guest).or_insert(Use { connections: 0, requests_left: BURST, filled_at: now });
        if of.connections >= CONNECTIONS {
            return None;
        }
        of.connections += 1;
        Some(Place { limits: self.clone(), guest })
    }

    // A panic while it was held cannot leave it half changed: each holder changes one number.
    fn guests(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether the guest may ask one more thing now.
    pub(super) fn request(&self, now: Instant) -> bool {
        let mut guests = self.limits.guests();
        let Some(of) = guests.get_mut(&self.guest) else { return false };
        of.fill(now);
        let granted = of.requests_left > 0;
        of.requests_left = of.requests_left.saturating_sub(1);
        granted
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(of) = self.limits.guests().get_mut(&self.guest) {
            of.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_guest_takes_no_more_than_its_share_and_nothing_of_another() {
        let (limits, now) = (Limits::default(), Instant::now());
        let (one, two) = (Ipv4Addr::new(10, 100, 0, 2), Ipv4Addr::new(10, 100, 0, 3));
        let places: Vec<Place> = std::iter::from_fn(|| limits.connection(one, now)).collect();
        assert_eq!(places.len(), CONNECTIONS as usize);
        let other = limits.connection(two, now).unwrap();
        let granted = (0..1000).filter(|_| places[0].request(now)).count();
        assert_eq!(granted, BURST as usize);
        assert!(other.request(now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| places[1].request(later)).count(), PER_SECOND as usize);
        drop(places);
        assert!(limits.connection(one, later).is_some());
    }

    #[test]
    fn guests_that_are_done_are_forgotten() {
        let (limits, now) = (Limits::default(), Instant::now());
        for n in 0..2000u32 {
            drop(limits.connection(Ipv4Addr::from(0x0a64_0002 + n), now));
        }
        drop(limits.connection(Ipv4Addr::new(10, 200, 0, 2), now + Duration::from_secs(60)));
        assert_eq!(limits.guests().len(), 1);
    }
}
