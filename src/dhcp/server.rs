//! The shell around the pure parts: one thread per network that carries frames from the packet socket through `packet`,
//! `decide` and `reply` and back. In: a device, the registry. Out: replies, lease records, counters.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::SystemTime;

use tracing::{debug, info, trace, warn};

use super::socket::{Batch, Frame, PacketSocket, hold_server_port, wait};
use super::{Answer, Counters, L4Checksum, Leases, Outcome, Request, decide, write_reply};
use crate::model::{IfName, Mac, Network};
use crate::registry::{Binding, Registry};

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

/// A running DHCP server of one network. Dropped, it stops.
#[derive(Debug)]
pub struct DhcpServer {
    /// Closing it wakes the thread and ends it.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl DhcpServer {
    /// Serves `network` on `device`, which has the gateway address. Guests are served when this returns.
    pub fn start(
        network: Arc<Network>,
        device: &IfName,
        registry: Registry,
        leases: Leases,
        counters: Arc<Counters>,
    ) -> Result<Self, DhcpError> {
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

        let name = format!("dhcp-{}", network.name);
        let shell = Shell { network, mac, registry, leases, counters };
        let run = move || {
            let _port = port;
            shell.run(&socket, &stopped);
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(failed)?;
        info!(device = %device, "DHCP server started");
        Ok(Self { stop: Some(stop), thread: Some(thread) })
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
    /// The device's: source of every reply.
    mac: Mac,
    registry: Registry,
    leases: Leases,
    counters: Arc<Counters>,
}

impl Shell {
    fn run(&self, socket: &PacketSocket, stop: &io::PipeReader) {
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
            let now = SystemTime::now();
            replies.clear();
            for frame in batch.frames() {
                self.counters.received.fetch_add(1, Relaxed);
                self.exchange(&frame, now, &mut replies);
            }
            let lost = replies.frames().len() - socket.send(replies.frames());
            self.counters.send_failed.fetch_add(lost as u64, Relaxed);
        }
    }

    /// One frame and its answer.
    fn exchange(&self, frame: &Frame<'_>, now: SystemTime, replies: &mut Replies) {
        if frame.vlan {
            self.counters.vlan.fetch_add(1, Relaxed);
            return;
        }
        let l4 = if frame.checksum_left { L4Checksum::LeftToOffload } else { L4Checksum::Complete };
        let request = match Request::parse(frame.bytes, l4) {
            Ok(request) => request,
            Err(silence) => {
                trace!(network = %self.network.name, ?silence, "dropped a frame");
                return self.counters.silent(silence);
            }
        };
        let mut binding = None;
        let outcome = self.leases.exchange(request.mac, |record| {
            binding = self.binding(request.mac);
            decide(&request, binding.as_deref(), record, now)
        });
        self.counters.count(outcome);
        trace!(network = %self.network.name, mac = %request.mac, kind = ?request.kind, ?outcome, "exchange");
        let Some(binding) = binding else { return };
        match outcome {
            Outcome::Reply(answer) => self.reply(&request, &binding, answer, replies),
            Outcome::Declined { alarm: true } => {
                let vm_id = &binding.vm.vm_id;
                warn!(%vm_id, "the guest declined its address: another host answers for it");
                debug!(%vm_id, mac = %request.mac, address = %binding.guest.address, "declined");
            }
            Outcome::Declined { alarm: false } | Outcome::Released | Outcome::Silent(_) => {}
        }
    }

    /// The binding of `mac` on this network; one on another network is none here.
    fn binding(&self, mac: Mac) -> Option<Arc<Binding>> {
        self.registry.by_mac(mac).filter(|binding| binding.vm.network == self.network.name)
    }

    fn reply(&self, request: &Request, binding: &Binding, answer: Answer, replies: &mut Replies) {
        if let Err(error) = write_reply(replies.next(), request, binding, answer, self.mac) {
            replies.take_back();
            self.counters.reply_failed.fetch_add(1, Relaxed);
            debug!(mac = %request.mac, %error, "writing a reply");
        }
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

    fn take_back(&mut self) {
        self.used -= 1;
    }

    fn frames(&self) -> &[Vec<u8>] {
        &self.buffers[..self.used]
    }
}
