//! The bridges of each network and the DHCP server on each. In: which network needs a port. Out: a bridge with room for it,
//! one more if all are full.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::dhcp::{Dhcp, DhcpError, DhcpServer};
use crate::host::{Host, HostError};
use crate::model::{IfName, Network, NetworkName, Plumbing, Shard};

#[derive(Debug, thiserror::Error)]
pub enum BridgesError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Dhcp(#[from] DhcpError),
}

impl BridgesError {
    /// Whether the device or its address has to come first, which is heard of.
    pub fn waits_for_its_device(&self) -> bool {
        match self {
            Self::Dhcp(DhcpError::Device { .. }) => true,
            Self::Dhcp(DhcpError::ServerPort { source, .. }) => {
                source.kind() == std::io::ErrorKind::AddrNotAvailable
            }
            _ => false,
        }
    }
}

/// Ports on each bridge. Tests want many bridges and few guests: in a debug build GUESTNET_PORTS says fewer.
fn ports_at_most() -> usize {
    let asked = cfg!(debug_assertions).then(|| std::env::var("GUESTNET_PORTS").ok()?.parse().ok()).flatten();
    asked.unwrap_or(Shard::PORTS)
}

/// Clones share one state.
#[derive(Clone)]
pub struct Bridges(Arc<Inner>);

struct Inner {
    host: Arc<tokio::sync::Mutex<Host>>,
    dhcp: Dhcp,
    servers: Mutex<Vec<(IfName, DhcpServer)>>,
    /// Networks on interfaces that somebody else made.
    external: Vec<Arc<Network>>,
}

impl Bridges {
    pub fn new(host: Arc<tokio::sync::Mutex<Host>>, dhcp: Dhcp, networks: &[Arc<Network>]) -> Self {
        let external =
            networks.iter().filter(|network| network.plumbing == Plumbing::External).cloned().collect();
        Self(Arc::new(Inner { host, dhcp, servers: Mutex::default(), external }))
    }

    /// Serves DHCP on every bridge that the network has, or on the interface that it was given.
    pub async fn serve(&self, network: &Arc<Network>) -> Result<(), BridgesError> {
        if network.plumbing == Plumbing::External {
            return self.serve_on(network, network.bridge.as_if_name());
        }
        let shards = self.of(&network.name).await;
        shards.iter().try_for_each(|shard| self.serve_on(network, &shard.bridge))
    }

    /// The network's bridges.
    pub async fn of(&self, network: &NetworkName) -> Vec<Shard> {
        self.0.host.lock().await.shards(network).to_vec()
    }

    /// A bridge of the network on which `ports` says that there is room, which `plug` takes before anybody else asks for some.
    pub async fn with_room(
        &self,
        network: &Arc<Network>,
        ports: impl Fn(&Shard) -> usize,
        plug: impl FnOnce(&Shard),
    ) -> Result<Shard, BridgesError> {
        let mut host = self.0.host.lock().await;
        let most = ports_at_most();
        let found = host.shards(&network.name).iter().find(|shard| ports(shard) < most).cloned();
        let shard = match found {
            Some(shard) => shard,
            None => host.open_shard(network).await?,
        };
        // Of one that was made before too: that may have failed at the server.
        self.serve_on(network, &shard.bridge)?;
        plug(&shard);
        Ok(shard)
    }

    /// Serves DHCP on an interface, if that is not done already.
    fn serve_on(&self, network: &Arc<Network>, device: &IfName) -> Result<(), BridgesError> {
        let mut servers = self.servers();
        if !servers.iter().any(|(of, _)| of == device) {
            let server = self.0.dhcp.serve(network.clone(), device)?;
            servers.push((device.clone(), server));
        }
        Ok(())
    }

    /// Ends the server of a bridge that has been made anew: the sockets on the one before have ended with it.
    pub fn is_anew(&self, device: &IfName) {
        let former: Vec<DhcpServer> = {
            let mut servers = self.servers();
            servers.extract_if(.., |(of, _)| of == device).map(|(_, server)| server).collect()
        };
        former.into_iter().for_each(DhcpServer::stop);
    }

    /// Serves DHCP on every bridge that has no server; why not where that fails.
    pub async fn serve_unserved(&self) -> Vec<BridgesError> {
        let host = self.0.host.lock().await;
        let shards = host.bridges();
        shards.filter_map(|(network, shard)| self.serve_on(network, &shard.bridge).err()).collect()
    }

    /// The interfaces of somebody else that are served, and whether one that should be is not.
    pub fn external(&self) -> (BTreeSet<u32>, bool) {
        let servers = self.servers();
        let served = |network: &&Arc<Network>| {
            let of = servers.iter().find(|(device, _)| device == network.bridge.as_if_name());
            of.map(|(_, server)| server.ifindex())
        };
        let indexes: BTreeSet<u32> = self.0.external.iter().filter_map(|network| served(&network)).collect();
        let gone = indexes.len() < self.0.external.len();
        (indexes, gone)
    }

    /// Serves DHCP on interfaces of somebody else that are others now than those served; which, or why not. One that has gone is told
    /// of once.
    pub fn serve_external(&self) -> Vec<(Arc<Network>, Result<(), BridgesError>)> {
        let (served, _) = self.external();
        let has_server = |device: &IfName| self.servers().iter().any(|(of, _)| of == device);
        let anew = self.0.external.iter().filter(|network| {
            match nix::net::if_::if_nametoindex(network.bridge.as_str()) {
                Ok(index) => !served.contains(&index),
                Err(_) => has_server(network.bridge.as_if_name()),
            }
        });
        anew.map(|network| {
            let device = network.bridge.as_if_name();
            self.is_anew(device);
            (network.clone(), self.serve_on(network, device))
        })
        .collect()
    }

    /// Ends the DHCP servers.
    pub fn stop(&self) {
        for (_, server) in self.servers().drain(..) {
            server.stop();
        }
    }

    // A panic while it was held cannot leave it half changed.
    fn servers(&self) -> std::sync::MutexGuard<'_, Vec<(IfName, DhcpServer)>> {
        self.0.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
