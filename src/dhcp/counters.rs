//! What came in and what became of it, by reason: the server adds, metrics and `doctor` read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Answer, Outcome, Silence};
use crate::metrics::{Histogram, Latency};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Live counters of one network's DHCP server.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(pub(super) $name: AtomicU64,)*
            /// From the receipt of a batch of requests until its answers are sent.
            pub(super) answer_time: Histogram,
        }

        /// [`Counters`] at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            pub fn snapshot(&self) -> Counts {
                Counts { $($name: self.$name.load(Relaxed),)* }
            }

            pub fn answer_time(&self) -> Latency {
                self.answer_time.snapshot()
            }
        }

        impl Counts {
            /// Each counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Frames that the socket delivered.
    received,
    offers,
    acks,
    naks,
    informs,
    bootp,
    declines,
    releases,
    /// Not a DHCP request by its form.
    malformed,
    /// Wrong IP or UDP checksum.
    bad_checksum,
    /// The first piece of a datagram.
    fragment,
    /// Came through a relay agent that is not served.
    relayed,
    /// Sent from another MAC than the one it asks for.
    source_mismatch,
    /// No reservation on this network for its MAC.
    unknown_mac,
    /// Addressed to another server.
    not_ours,
    /// A message that servers send.
    server_message,
    /// Releases, declines or informs of an address that is not its own.
    foreign_address,
    /// More than a guest's share.
    too_many,
    /// Messages of another DHCP server, or to one.
    rogue_server,
    /// Tagged with a VLAN.
    vlan,
    /// Found the server's queue full: some 40,000 had come while it had no processor.
    queue_full,
    /// Replies that the kernel did not take.
    send_failed,
}

impl Counters {
    pub(super) fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Reply(Answer::Offer) => &self.offers,
            Outcome::Reply(Answer::Ack | Answer::RapidAck) => &self.acks,
            Outcome::Reply(Answer::Nak) => &self.naks,
            Outcome::Reply(Answer::Inform) => &self.informs,
            Outcome::Reply(Answer::Bootp) => &self.bootp,
            Outcome::Declined { .. } => &self.declines,
            Outcome::Released => &self.releases,
            Outcome::Silent(silence) => return self.silent(silence),
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn silent(&self, silence: Silence) {
        let counter = match silence {
            Silence::Malformed => &self.malformed,
            Silence::BadChecksum => &self.bad_checksum,
            Silence::Fragment => &self.fragment,
            Silence::Relayed => &self.relayed,
            Silence::SourceMismatch => &self.source_mismatch,
            Silence::UnknownMac => &self.unknown_mac,
            Silence::NotOurs => &self.not_ours,
            Silence::ServerMessage => &self.server_message,
            Silence::ForeignAddress => &self.foreign_address,
            Silence::TooMany => &self.too_many,
        };
        counter.fetch_add(1, Relaxed);
    }
}
