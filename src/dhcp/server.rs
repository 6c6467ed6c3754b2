//! The shell around the pure parts: one thread per device that carries frames from the packet socket through `packet`,
//! `decide` and `reply` and back. In: a network, a device. Out: replies, leases, counters, alarms.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use tracing::{info, trace, warn};

use super::alarms::{Alarm, Alarms, Bound, subject};
use super::leases::{Book, Page};
use super::packet::{link_source, server_message};
use super::socket::{Batch, Frame, PacketSocket, hold_server_port, wait};
use super::{Counters, Kind, L4Checksum, Leases, Outcome, Request, Silence, write_reply};
use crate::model::{IfName, Mac, Network};
use crate::registry::{Registry, Reserved};

/// The DHCP server could not start.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    #[error("DHCP on {device}: no such device: {source}")]
    Device { device: IfName, source: io::Error },
    #[error("DHCP on {device}: opening a packet socket (needs CAP_NET_RAW and CAP_NET_ADMIN): {source}")]
    PacketSocket { device: IfName, source: io::Error },
    #[error(
        "DHCP on {device}: holding UDP {gateway}:67: {source}; if the address is in use, another DHCP server runs here: \
         stop it or keep it off {device}; if it is not available, {device} does not have it"
    )]
    ServerPort { device: IfName, gateway: std::net::Ipv4Addr, source: io::Error },
    #[error("DHCP on {device}: starting a thread: {source}")]
    Thread { device: IfName, source: io::Error },
}

/// What the servers of all networks and devices share.
#[derive(Debug, Clone)]
pub struct Dhcp {
    pub registry: Registry,
    pub leases: Leases,
    pub counters: Arc<Counters>,
    pub alarms: Alarms,
}

/// A running DHCP server on one device. Dropped, it stops.
#[derive(Debug)]
pub struct DhcpServer {
    ifindex: u32,
    /// Closing it wakes the thread and ends it.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Dhcp {
    /// Serves `network` on `device`, which has the gateway address; a network may have several devices. Guests are served
    /// when this returns.
    pub fn serve(&self, network: Arc<Network>, device: &IfName) -> Result<DhcpServer, DhcpError> {
        let ifindex = nix::net::if_::if_nametoindex(device.as_str())
            .map_err(|errno| DhcpError::Device { device: device.clone(), source: errno.into() })?;
        let failed = |source| DhcpError::PacketSocket { device: device.clone(), source };
        let socket = PacketSocket::open(ifindex).map_err(failed)?;
        let mac = socket.device_mac().map_err(failed)?;
        let gateway = network.gateway;
        let port = hold_server_port(device, gateway).map_err(|source| DhcpError::ServerPort {
            device: device.clone(),
            gateway,
            source,
        })?;
        let failed = |source| DhcpError::Thread { device: device.clone(), source };
        let (stopped, stop) = io::pipe().map_err(failed)?;

        let name = format!("dhcp-{device}");
        let book = self.leases.book(&network.name);
        let mut shell = Shell {
            network,
            ifindex,
            mac,
            registry: self.registry.clone(),
            book,
            counters: self.counters.clone(),
            watch: Watch::new(self.alarms.clone()),
        };
        let run = move || {
            let _port = port;
            shell.run(&socket, &stopped);
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(failed)?;
        info!(device = %device, "DHCP server started");
        Ok(DhcpServer { ifindex, stop: Some(stop), thread: Some(thread) })
    }
}

impl DhcpServer {
    /// The device that it serves.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Ends the server; no reply leaves after this returns.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the DHCP server's thread had panicked");
        }
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the thread works with.
struct Shell {
    network: Arc<Network>,
    ifindex: u32,
    /// Source of every reply.
    mac: Mac,
    registry: Registry,
    book: Arc<Book>,
    counters: Arc<Counters>,
    watch: Watch,
}

/// What goes to an operator, at a bounded rate.
struct Watch {
    alarms: Alarms,
    unknown: Bound,
    /// Other servers that were heard.
    servers: Bound,
    /// Clients that name another server, each of which can say what it likes.
    choices: Bound,
    disputes: Bound,
}

impl Watch {
    fn new(alarms: Alarms) -> Self {
        let often = || Bound::new(4);
        // Each of them takes the thread that tells of alarms a third of a second.
        Self { alarms, unknown: often(), servers: often(), choices: often(), disputes: Bound::new(2) }
    }
}

impl Shell {
    fn run(&mut self, socket: &PacketSocket, stop: &io::PipeReader) {
        let mut batch = Batch::new();
        let mut replies = Replies::default();
        loop {
            match wait(socket, stop.as_fd()) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    warn!(network = %self.network.name, %error, "the DHCP server cannot wait for frames and ends");
                    return;
                }
            }
            if let Err(error) = socket.receive(&mut batch) {
                // ENETDOWN when the device goes down: told once, and frames come again when it is up.
                if error.kind() != io::ErrorKind::WouldBlock {
                    warn!(network = %self.network.name, %error, "receiving DHCP requests");
                }
                continue;
            }
            // Behind a queue that was full there are full batches.
            if batch.is_full() {
                self.counters.queue_full.fetch_add(socket.lost().into(), Relaxed);
            }
            if let Ok(mac) = socket.device_mac() {
                self.mac = mac;
            }
            let (now, begun) = (SystemTime::now(), Instant::now());
            replies.clear();
            let book = self.book.clone();
            let mut page = book.open();
            for frame in batch.frames() {
                self.counters.received.fetch_add(1, Relaxed);
                self.exchange(&mut page, &frame, now, &mut replies);
            }
            // Before whoever deletes a reservation can go on: no answer comes after that.
            let lost = replies.frames().len() - socket.send(replies.frames());
            book.close(page);
            self.counters.send_failed.fetch_add(lost as u64, Relaxed);
            self.counters.answer_time.observe_many(begun.elapsed(), replies.frames().len() as u64);
        }
    }

    /// One frame and its answer.
    fn exchange(&mut self, page: &mut Page, frame: &Frame<'_>, now: SystemTime, replies: &mut Replies) {
        if frame.vlan {
            self.counters.vlan.fetch_add(1, Relaxed);
            return;
        }
        let l4 = if frame.checksum_left { L4Checksum::LeftToOffload } else { L4Checksum::Complete };
        let request = match Request::parse(frame.bytes, l4) {
            Ok(request) => request,
            Err(silence) => return self.refuse(page, frame.bytes, l4, silence, now),
        };
        let exchanged = page.exchange(&self.registry, &self.network.name, &request, now);
        let Some((outcome, reserved, told)) = exchanged else {
            self.counters.silent(Silence::UnknownMac);
            return self.unknown(&request, now);
        };
        self.counters.count(outcome);
        trace!(network = %self.network.name, mac = %request.mac, kind = ?request.kind, ?outcome, "exchange");
        if let (Outcome::Reply(answer), Some(told)) = (outcome, told) {
            write_reply(replies.next(), &request, &reserved, told, answer, self.mac);
        } else {
            self.look_at(&request, &reserved, outcome, now);
        }
    }

    /// A frame that is no request.
    fn refuse(&mut self, page: &mut Page, frame: &[u8], l4: L4Checksum, silence: Silence, now: SystemTime) {
        if let Some(seen) = server_message(frame, l4) {
            self.counters.rogue_server.fetch_add(1, Relaxed);
            let text = || format!("{} with the MAC {} answers as a DHCP server", seen.address, seen.link);
            if let Some(also) = self.watch.servers.allows(subject(seen.link), now) {
                self.rogue(text(), also);
            }
            return;
        }
        trace!(network = %self.network.name, ?silence, "dropped a frame");
        self.counters.silent(silence);
        if let Some(from) = link_source(frame) {
            page.bad_frame(&self.registry, &self.network.name, from, silence, now);
        }
    }

    /// A client without a reservation. Through a relay agent that is not served it is no client of this network.
    fn unknown(&mut self, request: &Request<'_>, now: SystemTime) {
        self.look_at_choice(request, now);
        if request.relay.is_none()
            && let Some(also) = self.watch.unknown.allows(subject(request.mac), now)
        {
            let network = self.network.name.clone();
            self.watch.alarms.raise(Alarm::UnknownMac { network, mac: request.mac, also });
        }
    }

    /// What a request without an answer says about the network.
    fn look_at(&mut self, request: &Request<'_>, reserved: &Reserved, outcome: Outcome, now: SystemTime) {
        let (what, address) = match (outcome, request.kind) {
            (Outcome::Declined { alarm: true }, _) => ("declined its address", reserved.guest.address),
            (Outcome::Silent(Silence::ForeignAddress), Kind::Decline) => {
                ("declined an address that is not its own,", request.requested.unwrap_or(request.ciaddr))
            }
            (Outcome::Silent(Silence::ForeignAddress), Kind::Release) => {
                ("released an address that is not its own,", request.ciaddr)
            }
            (Outcome::Silent(Silence::NotOurs), _) => return self.look_at_choice(request, now),
            _ => return,
        };
        if self.watch.disputes.allows(subject(request.mac), now).is_none() {
            return;
        }
        self.watch.alarms.raise(Alarm::Address {
            network: self.network.name.clone(),
            vm_id: reserved.vm_id.clone(),
            mac: request.mac,
            address,
            what,
            ifindex: self.ifindex,
        });
    }

    /// A client that chose another server names it for all to hear (RFC 2131 section 4.3.2).
    fn look_at_choice(&mut self, request: &Request<'_>, now: SystemTime) {
        let other = request.server_id.filter(|server| *server != self.network.gateway);
        if let (Kind::Request, Some(server)) = (request.kind, other) {
            self.counters.rogue_server.fetch_add(1, Relaxed);
            if let Some(also) = self.watch.choices.allows(subject(request.mac), now) {
                self.rogue(format!("{} took an offer of the DHCP server {server}", request.mac), also);
            }
        }
    }

    fn rogue(&self, seen: String, also: u64) {
        let network = self.network.name.clone();
        self.watch.alarms.raise(Alarm::Rogue { network, seen, also });
    }
}

/// Frames to send, their buffers used again.
#[derive(Default)]
struct Replies {
    buffers: Vec<Vec<u8>>,
    used: usize,
}

impl Replies {
    fn clear(&mut self) {
        self.used = 0;
    }

    /// An unused buffer, now in use. At most a batch of them: a frame has at most one reply.
    fn next(&mut self) -> &mut Vec<u8> {
        if self.used == self.buffers.len() {
            self.buffers.push(Vec::new());
        }
        self.used += 1;
        &mut self.buffers[self.used - 1]
    }

    fn frames(&self) -> &[Vec<u8>] {
        &self.buffers[..self.used]
    }
}
