//! Networks over the API: all of them, and the one that a request is about.

use connectrpc::ConnectError;

use super::errors::status;
use super::wire;
use crate::dns::DnsAdmin;
use crate::manager::Manager;
use crate::model::NetworkName;
use crate::proto::guestnet::v1;

pub(super) fn list(manager: &Manager, dns: &DnsAdmin) -> v1::ListNetworksResponse {
    let networks = manager.networks();
    let networks = networks.iter().map(|network| wire::network(network, dns)).collect();
    v1::ListNetworksResponse { networks, ..Default::default() }
}

/// The network that a watcher asks for, which has to be there: it would wait for ever for one that is not.
pub(super) fn known(
    manager: &Manager,
    network_id: Option<&str>,
) -> Result<Option<NetworkName>, ConnectError> {
    let only = wire::network_id(network_id)?;
    if let Some(name) = &only {
        manager.list(Some(name)).map_err(status)?;
    }
    Ok(only)
}
