//! What the resolver has done, counted since it started.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counts at one moment. Every query that gets an answer is in `queries` once.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct DnsCounters {
            $($(#[$doc])* pub $name: u64,)+
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)+
        }

        impl DnsCounters {
            /// Each count with its name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> DnsCounters {
                DnsCounters { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Messages taken for a query: all but those dropped.
    queries,
    /// Answered from the local zone or a special name's rule.
    local,
    /// Answered from the cache while fresh.
    cache_hits,
    /// Answered from the cache past its lifetime.
    stale,
    /// Questions that had to wait for an upstream.
    forwarded,
    /// Questions sent upstream, once for all guests that wait for the same.
    asked,
    /// Answered by a rule of the policy.
    policy,
    /// Matched a rule that is only tried out.
    policy_dry,
    /// Answers withheld because they named private addresses.
    rebind,
    /// Answered NOERROR, with records or without.
    noerror,
    /// Answered NXDOMAIN.
    nxdomain,
    /// Answered SERVFAIL.
    servfail,
    /// Answered REFUSED.
    refused,
    /// Answered FORMERR.
    formerr,
    /// Answered with any other code, most likely NOTIMP or BADVERS.
    other_rcodes,
    /// Fetched anew before they ended, because often asked for.
    prefetched,
    /// Not answered because the guest asks more than its rate or its share.
    limited,
    /// Answered SERVFAIL at once because the guest had too many questions open. Also in `servfail`.
    shed,
    /// Not answered: too short, or itself a response.
    dropped,
    /// TCP connections closed at once because there were too many.
    tcp_refused,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
