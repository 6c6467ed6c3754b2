//! Port forwards as callers add, list and delete them.

use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Socket, Type};

use super::flows::{blocking, local_addresses};
use super::{Standing, Walls, WallsError, batch};
use crate::kernel::KernelError;
use crate::model::{HostSide, PortForward, Transport};

impl Walls {
    /// Leads a port of the host to a port of a VM. Repeated, it changes nothing.
    pub async fn add_forward(&self, forward: PortForward) -> Result<PortForward, WallsError> {
        let _turn = self.0.changing.lock().await;
        if self.check(&forward)? {
            return Ok(forward);
        }
        self.open_forward(&forward).await?;
        match self.end_unforwarded(&forward).await {
            Ok(()) => Ok(forward),
            Err(error) => self.close_forward(&forward).await.and(Err(error)),
        }
    }

    /// In the store first, then in the kernel; in neither when either fails.
    async fn open_forward(&self, forward: &PortForward) -> Result<(), WallsError> {
        if !self.0.store.add_forward(forward.clone()).await? {
            return Err(WallsError::NoVm { vm_id: forward.vm_id.clone() });
        }
        let done = {
            let mut standing = self.standing();
            let changes = standing.book.add_forward(forward.clone());
            let done = self.0.nft.commit("forward", batch(&changes));
            let done = done.and_then(|()| self.let_loopback_through(&standing));
            if done.is_err() {
                standing.book.remove_forward(forward);
            }
            done
        };
        if let Err(error) = done {
            self.0.store.remove_forward(forward.clone()).await?;
            self.put_back();
            return Err(error.into());
        }
        Ok(())
    }

    /// The same back, or nothing of it.
    async fn close_forward(&self, forward: &PortForward) -> Result<(), WallsError> {
        self.0.store.remove_forward(forward.clone()).await?;
        let done = {
            let mut standing = self.standing();
            let changes = standing.book.remove_forward(forward);
            self.0.nft.commit("forward", batch(&changes))
        };
        if let Err(error) = done {
            // Of a VM that has gone meanwhile there is none to be had back.
            self.0.store.add_forward(forward.clone()).await?;
            self.put_back();
            return Err(error.into());
        }
        Ok(())
    }

    /// What was sent to the port before: the kernel looks for no forward of a connection that it tracks, so a client that keeps
    /// asking from one port would never get to the VM.
    async fn end_unforwarded(&self, forward: &PortForward) -> Result<(), WallsError> {
        let (nft, protocol, port) = (self.0.nft.clone(), forward.protocol.number(), forward.host_port);
        let unforwarded = blocking(move || {
            let local = local_addresses();
            let mut found = nft.all_connections()?;
            found.retain(|c| (c.protocol, c.port, c.forwarded) == (protocol, port, false));
            found.retain(|c| local.contains(&c.destination));
            Ok(found)
        })
        .await?;
        self.end(unforwarded).await
    }

    /// Whether it is there already; an error when it cannot be.
    fn check(&self, forward: &PortForward) -> Result<bool, WallsError> {
        let (protocol, port, at) = (forward.protocol, forward.host_port, &forward.at);
        let standing = self.standing();
        if standing.book.guest(&forward.vm_id).is_none() {
            return Err(WallsError::NoVm { vm_id: forward.vm_id.clone() });
        }
        let same_port = |other: &&PortForward| {
            (other.protocol, other.host_port) == (protocol, port) && other.at.overlaps(at)
        };
        match standing.book.forwards().find(same_port) {
            Some(other) if other == forward => return Ok(true),
            Some(other) => {
                let (at, by) = (other.at.clone(), other.vm_id.clone());
                return Err(WallsError::ForwardTaken { protocol, at, port, by });
            }
            None => {}
        }
        if let Some((first, last)) = self.ephemeral_ports()
            && (first..=last).contains(&port)
        {
            return Err(WallsError::Ephemeral { protocol, port, first, last });
        }
        let address = match at {
            HostSide::Everywhere => Ipv4Addr::UNSPECIFIED,
            HostSide::Address(address) => {
                let ours = local_addresses();
                if !address.is_loopback() && !ours.contains(address) {
                    let mut has: Vec<String> = ours.iter().map(ToString::to_string).collect();
                    has.sort();
                    return Err(WallsError::NotOurs { address: *address, has: has.join(", ") });
                }
                *address
            }
            HostSide::Uplink(device) => {
                if nix::net::if_::if_nametoindex(device.as_str()).is_err() {
                    return Err(WallsError::NoDevice { device: device.clone() });
                }
                Ipv4Addr::UNSPECIFIED
            }
        };
        if is_in_use(protocol, address, port) {
            return Err(WallsError::PortInUse { protocol, at: at.clone(), port });
        }
        Ok(false)
    }

    fn ephemeral_ports(&self) -> Option<(u16, u16)> {
        let range = self.0.kernel.sysctl("ipv4/ip_local_port_range").ok()?;
        let mut ports = range.split_whitespace().map(str::parse);
        Some((ports.next()?.ok()?, ports.next()?.ok()?))
    }

    /// Takes a forward away; its live connections end.
    pub async fn remove_forward(
        &self,
        protocol: Transport,
        at: &HostSide,
        port: u16,
    ) -> Result<PortForward, WallsError> {
        let _turn = self.0.changing.lock().await;
        let (forward, address) = {
            let standing = self.standing();
            let wanted = |f: &&PortForward| (f.protocol, &f.at, f.host_port) == (protocol, at, port);
            let forward = standing.book.forwards().find(wanted).cloned();
            let forward = forward.ok_or_else(|| WallsError::NoForward { protocol, at: at.clone(), port })?;
            let address = standing.book.guest(&forward.vm_id).map(|guest| guest.address);
            (forward, address)
        };
        self.close_forward(&forward).await?;
        let (number, vm_port) = (protocol.number(), forward.vm_port);
        let came_by_it = move |connection: &crate::kernel::nft::Connection| {
            connection.forwarded && (connection.protocol, connection.port) == (number, vm_port)
        };
        let ending = async { self.end(self.denied(address.into_iter().collect(), came_by_it).await?).await };
        match ending.await {
            Ok(()) => Ok(forward),
            Err(error) => self.open_forward(&forward).await.and(Err(error)),
        }
    }

    /// Every forward, ordered by protocol and port.
    pub fn forwards(&self) -> Vec<PortForward> {
        let mut forwards: Vec<PortForward> = self.standing().book.forwards().cloned().collect();
        forwards.sort_by(|a, b| (a.protocol, a.host_port, &a.at).cmp(&(b.protocol, b.host_port, &b.at)));
        forwards
    }

    /// The host itself reaches a forwarded port at its loopback: such a packet leaves by a bridge. That no guest sends from or
    /// to loopback is seen to at its port.
    pub(super) fn let_loopback_through(&self, standing: &Standing) -> Result<(), KernelError> {
        if standing.book.forwards().next().is_none() {
            return Ok(());
        }
        standing.bridges.iter().try_for_each(|(_, bridge)| {
            self.0.kernel.set_sysctl(&format!("ipv4/conf/{bridge}/route_localnet"), "1")
        })
    }
}

/// Whether a program of this host has the port.
fn is_in_use(protocol: Transport, address: Ipv4Addr, port: u16) -> bool {
    let kind = match protocol {
        Transport::Tcp => Type::STREAM,
        Transport::Udp => Type::DGRAM,
    };
    let bound = Socket::new(Domain::IPV4, kind, None).and_then(|socket| {
        if protocol == Transport::Tcp {
            // What only lingers of closed connections is no program.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SocketAddrV4::new(address, port).into())
    });
    bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}
