//! When leases end, so that this is told when it is so. PURE. In: leases as they are given. Out: those that may have ended, and when
//! to look next. A lease that is renewed keeps its place until its former end: one entry per lease, however often, and none of one
//! that is gone.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use super::journal::LogKey;

#[derive(Debug, Default)]
pub(super) struct Expiries {
    order: BTreeSet<(SystemTime, LogKey)>,
    waiting: HashMap<LogKey, SystemTime>,
}

impl Expiries {
    /// A lease that ends then, if it is not renewed.
    pub(super) fn note(&mut self, lease: LogKey, end: SystemTime) {
        if self.waiting.get(&lease).is_some_and(|known| *known <= end) {
            return;
        }
        self.forget(&lease);
        self.waiting.insert(lease.clone(), end);
        self.order.insert((end, lease));
    }

    /// A lease that is gone.
    pub(super) fn forget(&mut self, lease: &LogKey) {
        if let Some((lease, end)) = self.waiting.remove_entry(lease) {
            self.order.remove(&(end, lease));
        }
    }

    /// When the next one may end.
    pub(super) fn next(&self) -> Option<SystemTime> {
        self.order.first().map(|(end, _)| *end)
    }

    /// One that may have ended by now; noted again by who knows that it has not.
    pub(super) fn take(&mut self, now: SystemTime) -> Option<LogKey> {
        let (_, lease) = self.order.first().filter(|(end, _)| *end <= now).cloned()?;
        self.order.pop_first();
        self.waiting.remove(&lease);
        Some(lease)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn leases_end_in_order_and_a_renewed_one_is_looked_at_once_per_term() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let lease = |n: u8| ("default".parse().unwrap(), format!("06:00:0a:64:00:{n:02x}").parse().unwrap());
        let mut expiries = Expiries::default();
        assert_eq!(expiries.next(), None);
        expiries.note(lease(2), at(20));
        expiries.note(lease(1), at(10));
        // Renewed over and over.
        for end in 11..100 {
            expiries.note(lease(1), at(end));
        }
        assert_eq!((expiries.next(), expiries.take(at(9))), (Some(at(10)), None));
        assert_eq!(expiries.take(at(10)), Some(lease(1)));
        expiries.note(lease(1), at(99));
        assert_eq!(expiries.take(at(50)), Some(lease(2)));
        assert_eq!((expiries.take(at(50)), expiries.next()), (None, Some(at(99))));
        // Its network's leases are shorter now.
        expiries.note(lease(1), at(60));
        assert_eq!(expiries.next(), Some(at(60)));
        expiries.forget(&lease(1));
        assert_eq!((expiries.next(), expiries.take(at(100))), (None, None));
    }
}
