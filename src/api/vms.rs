//! Lists of VMs in pages, and batches of new ones.

use std::sync::Arc;

use connectrpc::ConnectError;

use super::errors::{reason_and_field, status};
use super::paging;
use super::wire::{self, FieldError};
use crate::manager::Manager;
use crate::model::{Invalid, Mac, VmId, WorkspaceId};
use crate::proto::guestnet::v1;
use crate::registry::Binding;

/// VMs in a batch at most.
pub(super) const LARGEST_BATCH: usize = 1_000;

pub(super) fn list(
    manager: &Manager,
    request: &v1::ListVmNetworksRequestView<'_>,
) -> Result<v1::ListVmNetworksResponse, ConnectError> {
    let network = wire::network_id(request.network_id)?;
    let workspace: Option<WorkspaceId> = wire::parse_set("workspace_id", request.workspace_id)?;
    let mac: Option<Mac> = wire::parse_set("mac_address", request.mac_address)?;
    let address = request.ip_address.map(|text| wire::parse_address("ip_address", text)).transpose()?;
    let after = paging::after(request.page_token, |token| token.parse::<VmId>().ok())?;
    let mut found = manager.list(network.as_ref()).map_err(status)?;
    found.retain(|binding| {
        let vm = &binding.vm;
        (workspace.is_none() || vm.workspace == workspace)
            && mac.is_none_or(|mac| vm.mac == mac)
            && address.is_none_or(|address| vm.address == address)
    });
    let token = |binding: &Arc<Binding>| binding.vm.vm_id.to_string();
    let page = paging::page(found, |binding| binding.vm.vm_id.clone(), token, after, request.page_size);
    Ok(v1::ListVmNetworksResponse {
        next_page_token: page.next_page_token,
        vm_networks: page.items.iter().map(|binding| wire::vm_network(binding)).collect(),
        total_size: page.total_size,
        ..Default::default()
    })
}

/// Whether so many VMs may be asked for at once.
pub(super) fn check_batch(asked: usize) -> Result<(), FieldError> {
    if (1..=LARGEST_BATCH).contains(&asked) {
        return Ok(());
    }
    Err(FieldError::new("requests", Invalid::new(format!("{asked} requests"), "1 to 1000 requests")))
}

/// What became of one request of a batch.
pub(super) fn batch_result(vm_id: &str, made: Result<v1::VmNetwork, ConnectError>) -> v1::BatchCreateResult {
    let vm_id = vm_id.to_owned();
    match made {
        Ok(vm) => v1::BatchCreateResult { vm_id, vm_network: vm.into(), ..Default::default() },
        Err(error) => {
            let code = error.code.as_str().to_owned();
            let (reason, field) = reason_and_field(&error);
            let message = error.message.unwrap_or_default();
            let error = v1::BatchCreateError { code, message, reason, field, ..Default::default() };
            v1::BatchCreateResult { vm_id, error: error.into(), ..Default::default() }
        }
    }
}
