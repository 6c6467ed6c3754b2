//! What an operator has to know of: clients nobody reserved an address for, addresses that another host answers for, DHCP
//! servers that are not ours. In: what the servers saw, at a bounded rate. Out: events and log lines, by a thread of its
//! own: who answers for an address is found out by asking, which takes time.

use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use tracing::{debug, warn};

use super::arp;
use crate::events::{EventKind, Events};
use crate::model::{Mac, NetworkName, VmId};

/// Alarms that wait to be told. More than their bounds let through in the time that it takes to tell of them.
const QUEUE: usize = 64;

/// What a server saw.
#[derive(Debug)]
pub(super) enum Alarm {
    /// A client without a reservation asked.
    UnknownMac { network: NetworkName, mac: Mac, also: u64 },
    /// A guest declined its address, or gave back one that is not its own.
    Address {
        network: NetworkName,
        vm_id: Option<VmId>,
        mac: Mac,
        address: Ipv4Addr,
        what: &'static str,
        /// The device that the guest is behind: who has the address is asked there.
        ifindex: u32,
    },
    /// Another server, seen itself or named by a client that chose it.
    Rogue { network: NetworkName, seen: String, also: u64 },
}

/// Takes alarms; never waits. Clones share one queue, whose thread ends with the last of them.
#[derive(Debug, Clone)]
pub struct Alarms(SyncSender<Alarm>);

impl Alarms {
    pub fn start(events: Events) -> std::io::Result<Self> {
        let (sender, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("dhcp-alarms".into()).spawn(move || run(&events, &queue))?;
        Ok(Self(sender))
    }

    pub(super) fn raise(&self, alarm: Alarm) {
        // When the queue is full there are alarms enough.
        let _ = self.0.try_send(alarm);
    }
}

fn run(events: &Events, queue: &Receiver<Alarm>) {
    for alarm in queue {
        match alarm {
            Alarm::UnknownMac { network, mac, also } => {
                warn!(%network, "a client asks for a lease and has no reservation");
                let detail = format!("{mac} asks for a lease and has no reservation{}", more(also));
                debug!(%network, %detail, "unknown MAC");
                events.send(EventKind::UnknownMac, None, Some(&network), detail);
            }
            Alarm::Address { network, vm_id, mac, address, what, ifindex } => {
                let answers = match arp::who_has(ifindex, address, mac) {
                    Ok(macs) if macs.is_empty() => "nobody else answers for it now".to_owned(),
                    Ok(macs) => {
                        let macs: Vec<String> = macs.iter().map(ToString::to_string).collect();
                        format!("{} answers for it", macs.join(" and "))
                    }
                    Err(error) => format!("who answers for it could not be asked: {error}"),
                };
                warn!(%network, vm_id = vm_id.as_ref().map(VmId::as_str), what, "an address is in dispute");
                let detail = format!("{mac} {what} {address}: {answers}");
                debug!(%network, %detail, "address");
                events.send(EventKind::AddressDeclined, vm_id.as_ref(), Some(&network), detail);
            }
            Alarm::Rogue { network, seen, also } => {
                warn!(%network, "another DHCP server is on the network");
                let detail = format!("{seen}{}", more(also));
                debug!(%network, %detail, "another DHCP server");
                events.send(EventKind::RogueDhcpServer, None, Some(&network), detail);
            }
        }
    }
}

fn more(also: u64) -> String {
    if also == 0 { String::new() } else { format!(" ({also} more like this since)") }
}

/// Keeps alarms of one kind to a bounded rate: each subject once a minute, and a few a second over all.
#[derive(Debug)]
pub(super) struct Bound {
    /// Subjects of late, by the low bits of their number: a collision only tells one twice or once.
    recent: Box<[(u64, SystemTime)]>,
    /// The second that `told` is about.
    second: SystemTime,
    told: u32,
    untold: u64,
    per_second: u32,
}

const SUBJECTS: usize = 256;
const QUIET: Duration = Duration::from_secs(60);

impl Bound {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            recent: vec![(0, SystemTime::UNIX_EPOCH); SUBJECTS].into(),
            second: SystemTime::UNIX_EPOCH,
            told: 0,
            untold: 0,
            per_second,
        }
    }

    /// Whether to tell of `subject` now; then with how many went untold before.
    pub(super) fn allows(&mut self, subject: u64, now: SystemTime) -> Option<u64> {
        let within = |since: SystemTime, time| now.duration_since(since).is_ok_and(|ago| ago < time);
        if !within(self.second, Duration::from_secs(1)) {
            (self.second, self.told) = (now, 0);
        }
        // Fibonacci hashing: neighbours get places apart.
        let place = (subject.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % SUBJECTS;
        let recent = &mut self.recent[place];
        if (recent.0 == subject && within(recent.1, QUIET)) || self.told >= self.per_second {
            self.untold += 1;
            return None;
        }
        *recent = (subject, now);
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

/// A MAC as the subject of an alarm.
pub(super) fn subject(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.octets();
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_told_once_a_minute_and_a_flood_of_subjects_a_few_times_a_second() {
        let mut bound = Bound::new(4);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(bound.allows(7, start), Some(0));
        assert_eq!(bound.allows(7, start + Duration::from_secs(59)), None);
        assert_eq!(bound.allows(7, start + Duration::from_secs(60)), Some(1));
        let later = start + Duration::from_secs(1000);
        let told = (0..10_000).filter(|subject| bound.allows(*subject, later).is_some()).count();
        assert_eq!(told, 4);
        let more = bound.allows(77, later + Duration::from_secs(1));
        assert_eq!(more, Some(9_996));
    }
}
