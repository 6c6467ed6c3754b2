//! Reservations on networks whose plumbing is somebody else's: from the configuration and from the API, durable before
//! they are visible, live for DHCP and DNS when the call returns. In: what a caller asks for. Out: what is reserved, or
//! what stands in the way, named.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tracing::{debug, warn};

use crate::dhcp::Leases;
use crate::ipam::{Ipam, IpamError, QUARANTINE};
use crate::model::{DhcpOptions, Hostname, Mac, Network, NetworkName, Plumbing, Reservation};
use crate::registry::{Registry, Reserved};
use crate::store::{Store, StoreError};

/// What a caller asks for; unset fields ask for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The first external network of the configuration when unset.
    pub network: Option<NetworkName>,
    pub mac: Mac,
    pub address: Option<Ipv4Addr>,
    pub hostname: Option<Hostname>,
    pub options: Option<DhcpOptions>,
}

/// How a caller names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Mac(Mac),
    Address(Ipv4Addr),
}

#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    #[error(
        "no network has plumbing = \"external\" in the configuration: reservations are for those; VMs have vm create"
    )]
    NoExternal,
    #[error("there is no network {0} with plumbing = \"external\": the configuration has {1}")]
    UnknownNetwork(NetworkName, String),
    #[error(
        "{mac} has a reservation on {network} already, with {field} {has}, not {asked}: delete it first or ask for the same"
    )]
    Differs { network: NetworkName, mac: Mac, field: &'static str, has: String, asked: String },
    #[error("ip_address {address} of {network} is taken by {by}: choose another or leave it unset")]
    AddressTaken { network: NetworkName, address: Ipv4Addr, by: Mac },
    #[error("ip_address {address} for {mac}: {why}")]
    AddressUnusable { mac: Mac, address: Ipv4Addr, why: String },
    #[error("{mac} is asked for twice")]
    Twice { mac: Mac },
    #[error("network {network} has no free address: {why}")]
    Full { network: NetworkName, why: String },
    #[error("the reservation of {mac} on {network} stands in the configuration: remove it there and restart")]
    Configured { network: NetworkName, mac: Mac },
    #[error("the reservation could not be saved: {0}")]
    Store(#[from] StoreError),
}

/// The reservations of every external network. Clones share one state.
#[derive(Clone)]
pub struct Reservations(Arc<Inner>);

struct Inner {
    /// In the order of the configuration.
    networks: ArcSwap<Vec<Arc<Network>>>,
    configured: HashSet<(NetworkName, Mac)>,
    store: Arc<Store>,
    registry: Registry,
    leases: Leases,
    /// Free addresses by network; held while a change is under way, so that there is one at a time.
    pools: Mutex<HashMap<NetworkName, Ipam>>,
}

impl Reservations {
    /// Makes those of the configuration and of the store live. The configuration goes first: what contradicts it in the
    /// store is left there and logged.
    pub fn open(
        networks: &[Arc<Network>],
        configured: &[Reservation],
        store: Arc<Store>,
        registry: Registry,
        leases: Leases,
    ) -> Result<Self, StoreError> {
        let networks: Vec<_> =
            networks.iter().filter(|network| network.plumbing == Plumbing::External).cloned().collect();
        let pool = |network: &Arc<Network>| {
            let router = network.router..=network.router;
            let reserved: Vec<_> = network.reserved.iter().cloned().chain([router]).collect();
            (network.name.clone(), Ipam::new(network.subnet, network.gateway, &reserved, QUARANTINE))
        };
        let mut pools: HashMap<NetworkName, Ipam> = networks.iter().map(pool).collect();
        let stored = store.reservations()?;
        let mut live = Vec::with_capacity(configured.len() + stored.len());
        let mut macs = HashSet::new();
        for reservation in configured.iter().cloned().chain(stored) {
            let key = (reservation.network.clone(), reservation.mac);
            let (mac, address) = (reservation.mac, reservation.address);
            let network = networks.iter().find(|network| network.name == reservation.network);
            let pool = pools.get_mut(&reservation.network);
            let fits = !macs.contains(&key) && pool.is_some_and(|pool| pool.allocate(address).is_ok());
            match network {
                Some(network) if fits => {
                    macs.insert(key);
                    live.push(Arc::new(Reserved::of_client(reservation, network.clone())));
                }
                _ => {
                    warn!(network = %key.0, "a stored reservation does not fit the configuration: it is not served");
                    debug!(network = %key.0, %mac, %address, "not served");
                }
            }
        }
        registry.reserve(live);
        let configured = configured.iter().map(|r| (r.network.clone(), r.mac)).collect();
        let networks = ArcSwap::from_pointee(networks);
        Ok(Self(Arc::new(Inner { networks, configured, store, registry, leases, pools: Mutex::new(pools) })))
    }

    /// Takes over what of the networks may change while clients hold leases.
    pub async fn adjust(&self, configured: &[Arc<Network>]) {
        let _alone = self.0.pools.lock().await;
        let mut networks = self.0.networks.load().to_vec();
        for network in &mut networks {
            let Some(new) = configured.iter().find(|new| new.name == network.name) else { continue };
            let adjusted = network.with_live(new);
            if adjusted != **network {
                *network = Arc::new(adjusted);
                self.0.registry.relink(network);
            }
        }
        self.0.networks.store(Arc::new(networks));
    }

    /// Reserves all of `asked` or nothing. What is reserved so already stays as it is.
    pub async fn add(&self, asked: Vec<Asked>) -> Result<Vec<Arc<Reserved>>, ReservationError> {
        let inner = &self.0;
        let mut pools = inner.pools.lock().await;
        let mut taken = Vec::new();
        let admitted = inner.admit(asked, &mut pools, &mut taken);
        let saved = match admitted {
            Ok(admitted) => inner.save(admitted).await,
            Err(error) => Err(error),
        };
        if saved.is_err() {
            for (network, address) in taken {
                if let Some(pool) = pools.get_mut(&network) {
                    pool.put_back(address);
                }
            }
        }
        saved
    }

    /// What is reserved, by network and address.
    pub fn list(&self, network: Option<&NetworkName>) -> Result<Vec<Arc<Reserved>>, ReservationError> {
        let networks = match network {
            Some(name) => vec![self.0.network(Some(name))?],
            None => self.0.networks.load().to_vec(),
        };
        Ok(networks.iter().flat_map(|network| self.0.registry.reserved(&network.name)).collect())
    }

    /// The networks whose reservations these are, as the configuration has them.
    pub fn networks(&self) -> Vec<NetworkName> {
        self.0.networks.load().iter().map(|network| network.name.clone()).collect()
    }

    /// Whether it stands in the configuration.
    pub fn is_configured(&self, reserved: &Reserved) -> bool {
        self.0.configured.contains(&(reserved.network.name.clone(), reserved.guest.mac))
    }

    /// No lease and no name from here on. Whether there was one.
    pub async fn delete(&self, network: Option<&NetworkName>, key: Key) -> Result<bool, ReservationError> {
        let inner = &self.0;
        let network = inner.network(network)?.name.clone();
        let mut pools = inner.pools.lock().await;
        let found = match key {
            Key::Mac(mac) => inner.registry.by_mac(&network, mac),
            Key::Address(address) => inner.registry.by_address(&network, address),
        };
        let Some(reserved) = found else { return Ok(false) };
        let mac = reserved.guest.mac;
        if self.is_configured(&reserved) {
            return Err(ReservationError::Configured { network, mac });
        }
        inner.registry.unreserve(&network, mac);
        if let Err(error) = inner.store.remove_reservation(network.clone(), mac).await {
            inner.registry.reserve([reserved]);
            return Err(error.into());
        }
        inner.leases.forget(reserved.clone());
        if let Some(pool) = pools.get_mut(&network) {
            pool.free(reserved.guest.address, Instant::now());
        }
        Ok(true)
    }

    /// How many are reserved on each external network, and how many addresses are left.
    pub async fn fill(&self) -> Vec<(NetworkName, usize, u64)> {
        let pools = self.0.pools.lock().await;
        let fill = |network: &Arc<Network>| {
            let free = pools.get(&network.name).map(Ipam::free_count).unwrap_or_default();
            (network.name.clone(), self.0.registry.reserved(&network.name).len(), free)
        };
        self.0.networks.load().iter().map(fill).collect()
    }
}

/// What a request came to.
enum Admitted {
    Had(Arc<Reserved>),
    New(Arc<Reservation>, Arc<Network>),
}

impl Inner {
    fn network(&self, name: Option<&NetworkName>) -> Result<Arc<Network>, ReservationError> {
        let networks = self.networks.load();
        let first = networks.first().ok_or(ReservationError::NoExternal)?;
        let Some(name) = name else { return Ok(first.clone()) };
        networks.iter().find(|network| network.name == *name).cloned().ok_or_else(|| {
            let known: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
            ReservationError::UnknownNetwork(name.clone(), known.join(", "))
        })
    }

    /// `taken` is what was taken from `pools`, also by those before one that is refused.
    fn admit(
        &self,
        asked: Vec<Asked>,
        pools: &mut HashMap<NetworkName, Ipam>,
        taken: &mut Vec<(NetworkName, Ipv4Addr)>,
    ) -> Result<Vec<Admitted>, ReservationError> {
        let mut admitted = Vec::with_capacity(asked.len());
        let mut macs = HashSet::with_capacity(asked.len());
        for asked in asked {
            let network = self.network(asked.network.as_ref())?;
            if !macs.insert((network.name.clone(), asked.mac)) {
                return Err(ReservationError::Twice { mac: asked.mac });
            }
            if let Some(has) = self.registry.by_mac(&network.name, asked.mac) {
                admitted.push(Admitted::Had(same(&asked, has)?));
                continue;
            }
            let Some(pool) = pools.get_mut(&network.name) else { continue };
            let address = match asked.address {
                Some(address) => self.take(&network, pool, asked.mac, address)?,
                None => pool.allocate_next(Instant::now()).map_err(|full| ReservationError::Full {
                    network: network.name.clone(),
                    why: full.to_string(),
                })?,
            };
            taken.push((network.name.clone(), address));
            let reservation = Reservation {
                network: network.name.clone(),
                mac: asked.mac,
                address,
                hostname: asked.hostname.unwrap_or_else(|| Hostname::for_address(address)),
                options: asked.options.unwrap_or_default(),
            };
            admitted.push(Admitted::New(Arc::new(reservation), network));
        }
        Ok(admitted)
    }

    fn take(
        &self,
        network: &Network,
        pool: &mut Ipam,
        mac: Mac,
        address: Ipv4Addr,
    ) -> Result<Ipv4Addr, ReservationError> {
        pool.allocate(address).map(|()| address).map_err(|error| {
            let by = self.registry.by_address(&network.name, address);
            match (error, by) {
                (IpamError::Taken(_), Some(by)) => ReservationError::AddressTaken {
                    network: network.name.clone(),
                    address,
                    by: by.guest.mac,
                },
                (IpamError::Taken(_), None) => ReservationError::AddressUnusable {
                    mac,
                    address,
                    why: "another of this call has it".into(),
                },
                (error, _) => ReservationError::AddressUnusable { mac, address, why: error.to_string() },
            }
        })
    }

    async fn save(&self, admitted: Vec<Admitted>) -> Result<Vec<Arc<Reserved>>, ReservationError> {
        let new: Vec<Arc<Reservation>> = admitted
            .iter()
            .filter_map(|one| match one {
                Admitted::New(reservation, _) => Some(reservation.clone()),
                Admitted::Had(_) => None,
            })
            .collect();
        if !new.is_empty() {
            self.store.insert_reservations(new).await?;
        }
        let (mut all, mut fresh) = (Vec::with_capacity(admitted.len()), Vec::new());
        for one in admitted {
            match one {
                Admitted::Had(reserved) => all.push(reserved),
                Admitted::New(reservation, network) => {
                    let reserved = Arc::new(Reserved::of_client(Arc::unwrap_or_clone(reservation), network));
                    fresh.push(reserved.clone());
                    all.push(reserved);
                }
            }
        }
        self.registry.reserve(fresh);
        Ok(all)
    }
}

/// The reservation that a MAC has, if nothing else is asked for.
fn same(asked: &Asked, has: Arc<Reserved>) -> Result<Arc<Reserved>, ReservationError> {
    let options = |options: &DhcpOptions| serde_json::to_string(options).unwrap_or_default();
    let facts = [
        ("ip_address", has.guest.address.to_string(), asked.address.map(|address| address.to_string())),
        ("hostname", has.guest.hostname.to_string(), asked.hostname.as_ref().map(ToString::to_string)),
        ("dhcp_options", options(&has.options), asked.options.as_ref().map(options)),
    ];
    for (field, has_text, asked_text) in facts {
        if let Some(asked_text) = asked_text
            && asked_text != has_text
        {
            return Err(ReservationError::Differs {
                network: has.network.name.clone(),
                mac: asked.mac,
                field,
                has: has_text,
                asked: asked_text,
            });
        }
    }
    Ok(has)
}
