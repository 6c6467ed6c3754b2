//! Leases over the API: all, one, or as they change. A VM's lease and that of a client on external plumbing look the same.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use connectrpc::{ConnectError, ErrorCode};
use futures_util::{Stream, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::errors::refusal;
use super::wire::{self, FieldError};
use super::{networks, paging};
use crate::dhcp::{LeaseChange, LeaseChanges, Leases};
use crate::manager::Manager;
use crate::model::{Invalid, LeaseView, Mac, NetworkName, VmId};
use crate::proto::guestnet::v1;
use crate::registry::{Registry, Reserved};

/// Where leases are found.
#[derive(Clone)]
pub struct LeaseSources {
    pub registry: Registry,
    pub leases: Leases,
}

impl LeaseSources {
    fn lease(&self, reserved: &Reserved) -> v1::Lease {
        let view = self.leases.view(&reserved.network.name, &reserved.guest, SystemTime::now());
        lease(reserved, &view)
    }

    pub(super) fn list(
        &self,
        manager: &Manager,
        request: &v1::ListLeasesRequestView<'_>,
    ) -> Result<v1::ListLeasesResponse, ConnectError> {
        let only = networks::known(manager, request.network_id)?;
        let networks: Vec<NetworkName> =
            manager.networks().into_iter().map(|status| status.network.name.clone()).collect();
        let after = paging::after(request.page_token, |token| Place::read(&networks, token))?;
        let wanted = networks.iter().filter(|name| only.as_ref().is_none_or(|only| only == *name));
        let all: Vec<Arc<Reserved>> = wanted.flat_map(|name| self.registry.reserved(name)).collect();
        let place = |reserved: &Arc<Reserved>| Place::of(&networks, reserved);
        let page = paging::page(all, place, |reserved| Place::token(reserved), after, request.page_size);
        Ok(v1::ListLeasesResponse {
            leases: page.items.iter().map(|reserved| self.lease(reserved)).collect(),
            next_page_token: page.next_page_token,
            total_size: page.total_size,
            ..Default::default()
        })
    }

    /// One lease, by vm_id, MAC or address.
    pub(super) fn get(
        &self,
        manager: &Manager,
        request: v1::GetLeaseRequest,
    ) -> Result<v1::GetLeaseResponse, ConnectError> {
        use v1::get_lease_request::Key;
        let networks: Vec<NetworkName> =
            manager.networks().into_iter().map(|status| status.network.name.clone()).collect();
        let found = match &request.key {
            Some(Key::VmId(text)) => {
                let vm_id: VmId = wire::vm_id(text)?;
                let binding = self.registry.by_vm(&vm_id);
                binding.and_then(|binding| self.registry.by_mac(&binding.network.name, binding.vm.mac))
            }
            Some(Key::MacAddress(text)) => {
                let mac: Mac = wire::parse("mac_address", text)?;
                networks.iter().find_map(|name| self.registry.by_mac(name, mac))
            }
            Some(Key::IpAddress(text)) => {
                let address: Ipv4Addr = wire::parse_address("ip_address", text)?;
                networks.iter().find_map(|name| self.registry.by_address(name, address))
            }
            None => {
                let invalid = Invalid::new("", "vm_id, mac_address or ip_address");
                return Err(FieldError::new("key", invalid).into());
            }
        };
        let missing = || {
            let words = "nothing is reserved for it: guestnet lease list shows what is";
            refusal(ErrorCode::NotFound, "NO_LEASE", words.to_owned())
        };
        let reserved = found.ok_or_else(missing)?;
        Ok(v1::GetLeaseResponse { lease: self.lease(&reserved).into(), ..Default::default() })
    }

    /// Leases as they change.
    pub(super) fn watch(
        &self,
        manager: &Manager,
        request: &v1::WatchLeasesRequestView<'_>,
    ) -> Result<impl Stream<Item = Result<v1::WatchLeasesResponse, ConnectError>> + Send + use<>, ConnectError>
    {
        let only = networks::known(manager, request.network_id)?;
        Ok(self.clone().answers(self.leases.watch(), only))
    }

    fn answers(
        self,
        changes: Receiver<LeaseChanges>,
        only: Option<NetworkName>,
    ) -> impl Stream<Item = Result<v1::WatchLeasesResponse, ConnectError>> + Send + use<> {
        let state = (self, only, changes, VecDeque::new());
        stream::unfold(state, |(sources, only, mut changes, mut waiting)| async move {
            loop {
                if let Some(answer) = waiting.pop_front() {
                    return Some((Ok(answer), (sources, only, changes, waiting)));
                }
                match changes.recv().await {
                    Ok(group) => {
                        let wanted = |lease: &v1::Lease| {
                            only.as_ref().is_none_or(|only| only.as_str() == lease.network_id)
                        };
                        let leases = group.iter().filter_map(|change| sources.changed(change)).filter(wanted);
                        waiting.extend(leases.map(|lease| v1::WatchLeasesResponse {
                            lease: lease.into(),
                            ..Default::default()
                        }));
                    }
                    Err(RecvError::Lagged(_)) => {
                        waiting.push_back(v1::WatchLeasesResponse { missed: true, ..Default::default() });
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        })
    }

    /// A lease as it stands after a change; none of one that has gone since, which is told next.
    fn changed(&self, change: &LeaseChange) -> Option<v1::Lease> {
        match change {
            LeaseChange::Stands(network, mac) => {
                let reserved = self.registry.by_mac(network, *mac)?;
                Some(self.lease(&reserved))
            }
            LeaseChange::Gone(reserved) => {
                Some(v1::Lease { state: "deleted".into(), ..lease(reserved, &LeaseView::default()) })
            }
        }
    }
}

/// Where a lease stands in a list: VMs' by their ids, as everywhere; then the others.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Vm(VmId),
    Other(paging::Address),
}

impl Place {
    fn of(networks: &[NetworkName], reserved: &Reserved) -> Self {
        let (network, address) = (&reserved.network.name, reserved.guest.address);
        let other = || Self::Other(paging::address_of(networks, network, address));
        reserved.vm_id.clone().map_or_else(other, Self::Vm)
    }

    /// A vm_id has no slash.
    fn token(reserved: &Reserved) -> String {
        let other = || paging::address_token(&reserved.network.name, reserved.guest.address);
        reserved.vm_id.as_ref().map_or_else(other, ToString::to_string)
    }

    fn read(networks: &[NetworkName], token: &str) -> Option<Self> {
        let vm = token.parse().map(Self::Vm).ok();
        vm.or_else(|| paging::read_address(networks, token).map(Self::Other))
    }
}

fn lease(reserved: &Reserved, view: &LeaseView) -> v1::Lease {
    v1::Lease {
        vm_id: reserved.vm_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        network_id: reserved.network.name.to_string(),
        mac_address: reserved.guest.mac.to_string(),
        ip_address: reserved.guest.address.to_string(),
        hostname: reserved.guest.hostname.to_string(),
        state: view.state.to_string(),
        last_seen: view.last_seen.map(wire::timestamp).into(),
        expires_at: view.expires_at.map(wire::timestamp).into(),
        vendor_class: view.vendor_class.clone().unwrap_or_default(),
        last_exchange: view.last_exchange.map(|exchange| exchange.to_string()).unwrap_or_default(),
        wished_hostname: view.wished_hostname.clone().unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use buffa_types::google::protobuf::Timestamp;
    use futures_util::StreamExt;

    use super::*;
    use crate::model::{LastExchange, LeaseState, testing};
    use crate::registry::Binding;

    #[tokio::test]
    async fn a_watcher_that_is_too_slow_is_told_so_and_gets_the_rest() {
        let reserved = Arc::new(Reserved::of_vm(&Binding::new(testing::vm(1), Arc::new(testing::network()))));
        let registry = Registry::default();
        registry.reserve([reserved.clone()]);
        let (changes, watched) = tokio::sync::broadcast::channel(2);
        let sources = LeaseSources { registry, leases: Leases::default() };
        let mut answers = std::pin::pin!(sources.answers(watched, None));
        let network = reserved.network.name.clone();
        for change in [
            LeaseChange::Stands(network.clone(), reserved.guest.mac),
            LeaseChange::Stands(network.clone(), reserved.guest.mac),
            // Of one that is gone by the time that it is looked at, nothing is said here.
            LeaseChange::Stands(network, "02:00:00:00:00:77".parse().unwrap()),
            LeaseChange::Gone(reserved),
        ] {
            changes.send(Arc::from([change])).unwrap();
        }
        drop(changes);
        let missed = answers.next().await.unwrap().unwrap();
        assert!(missed.missed && missed.lease.is_unset());
        let gone = answers.next().await.unwrap().unwrap();
        assert_eq!(
            (gone.missed, gone.lease.state.as_str(), gone.lease.vm_id.as_str()),
            (false, "deleted", "vm1")
        );
        assert!(answers.next().await.is_none());
    }

    #[test]
    fn a_lease_shows_only_the_times_it_has() {
        let reserved = Reserved::of_vm(&Binding::new(testing::vm(1), Arc::new(testing::network())));
        let never = lease(&reserved, &LeaseView::default());
        assert_eq!((never.vm_id.as_str(), never.state.as_str()), ("vm1", "reserved"));
        assert!(never.last_seen.is_unset() && never.expires_at.is_unset() && never.last_exchange.is_empty());

        let bound = LeaseView {
            state: LeaseState::Bound,
            last_seen: Some(UNIX_EPOCH + Duration::from_millis(1_500)),
            expires_at: Some(UNIX_EPOCH + Duration::from_secs(3_600)),
            vendor_class: Some("udhcp 1.35.0".into()),
            wished_hostname: Some("evil".into()),
            last_exchange: Some(LastExchange { asked: "request", outcome: "ack" }),
        };
        let bound = lease(&reserved, &bound);
        assert_eq!(bound.last_seen, Timestamp::from_unix(1, 500_000_000).into());
        assert_eq!(bound.expires_at, Timestamp::from_unix(3_600, 0).into());
        assert_eq!((bound.state.as_str(), bound.vendor_class.as_str()), ("bound", "udhcp 1.35.0"));
        assert_eq!((bound.hostname.as_str(), bound.wished_hostname.as_str()), ("vm1", "evil"));
        assert_eq!(bound.last_exchange, "request: ack");
    }
}
