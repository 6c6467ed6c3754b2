//! Live connections against what is allowed now: those that a new policy denies, or whose guest is gone, are ended.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use super::book::Book;
use super::{Walls, WallsError};
use crate::kernel::nft::Connection;
use crate::model::Action;
use crate::policy::{Flow, Policy, Scope, decide};

/// So many guests are asked about one by one; for more, all connections are looked at once.
const ONE_BY_ONE: usize = 8;

/// The policy that is looked at in the place of the one that stands.
pub(super) struct InPlace<'a> {
    pub(super) scope: &'a Scope,
    pub(super) policy: Option<&'a Policy>,
}

impl Walls {
    /// The connections of these guests that are denied, if `instead` stood; by what stands where there is none.
    pub(super) async fn denied(
        &self,
        addresses: Vec<Ipv4Addr>,
        judge: impl Fn(&Connection) -> bool + Send + 'static,
    ) -> Result<Vec<Connection>, WallsError> {
        let walls = self.clone();
        blocking(move || {
            let mut found = Vec::new();
            if addresses.len() <= ONE_BY_ONE {
                for address in addresses {
                    // Not while the tables are put up, when the set is not whole yet.
                    let connected = {
                        let _standing = walls.standing();
                        walls.is_connected(address)?
                    };
                    if connected {
                        found.extend(walls.0.nft.connections(address)?);
                    }
                }
            } else {
                let of: HashSet<Ipv4Addr> = addresses.into_iter().collect();
                let touches = |c: &Connection| of.contains(&c.source) || of.contains(&c.destination);
                found.extend(walls.0.nft.all_connections()?.into_iter().filter(touches));
            }
            leave_out_own(&mut found);
            found.retain(|connection| judge(connection));
            Ok(found)
        })
        .await
    }

    pub(super) async fn end(&self, connections: Vec<Connection>) -> Result<(), WallsError> {
        let nft = self.0.nft.clone();
        blocking(move || Ok(nft.end(&connections)?)).await
    }
}

/// Whether a connection would be denied if it began now.
pub(super) fn is_denied(book: &Book, instead: Option<&InPlace<'_>>, connection: &Connection) -> bool {
    let has_ports = [6, 17].contains(&connection.protocol);
    let flow = Flow {
        source: connection.source,
        destination: connection.destination,
        protocol: connection.protocol,
        port: has_ports.then_some(connection.port),
        forwarded: connection.forwarded,
    };
    let peer = |address| {
        let guest = book.guest_at(address)?;
        let mut peer = book.peer(guest);
        if let Some(InPlace { scope, policy }) = instead
            && book.governed(scope).iter().any(|governed| governed.vm_id == guest.vm_id)
        {
            peer.policy = *policy;
        }
        Some(peer)
    };
    decide(&flow, peer(flow.source), peer(flow.destination)).action == Action::Deny
}

/// What this host says to guests and they to it is for no policy to decide.
pub(super) fn leave_out_own(connections: &mut Vec<Connection>) {
    let local = local_addresses();
    connections.retain(|c| !local.contains(&c.source) && !local.contains(&c.destination));
}

/// Addresses of this host's devices.
pub(super) fn local_addresses() -> HashSet<Ipv4Addr> {
    let devices = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = devices.filter_map(|device| Some(device.address?.as_sockaddr_in()?.ip()));
    addresses.collect()
}

/// Work that waits for the kernel, on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WallsError> + Send + 'static,
) -> Result<T, WallsError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(WallsError::Stopping))
}
