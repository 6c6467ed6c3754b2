//! The RPCs: each is check, call, write down. In: decoded requests. Out: answers, or an error with the Connect code that
//! the proto promises. A change that has begun is finished even when its caller hangs up or its deadline passes.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use connectrpc::{
    ConnectError, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::guest_config;
use super::stats;
use super::wire::{self, FieldError};
use crate::manager::{Manager, ManagerError};
use crate::model::VmId;
use crate::proto::guestnet::v1::{self, GuestNetworkService};

/// Changes under way at one time; callers beyond it wait.
const CHANGES: u32 = 64;

/// Streams open at one time.
const WATCHES: usize = 64;

/// The service over one manager.
#[derive(Clone)]
pub(super) struct Service {
    manager: Manager,
    changes: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Service {
    /// Streams end when `stop` becomes true.
    pub(super) fn new(manager: Manager, stop: watch::Receiver<bool>) -> Self {
        let (changes, watches) = (Semaphore::new(CHANGES as usize), Semaphore::new(WATCHES));
        Self { manager, changes: Arc::new(changes), watches: Arc::new(watches), stop }
    }

    /// A place for a stream: further ones are refused, for they may last for ever.
    fn watch_place(&self) -> Result<OwnedSemaphorePermit, ConnectError> {
        let refused =
            |_| ConnectError::resource_exhausted(format!("{WATCHES} watches are open: close one and repeat"));
        self.watches.clone().try_acquire_owned().map_err(refused)
    }

    /// Returns when no change is under way.
    pub(super) async fn settled(&self) {
        // The semaphore is never closed.
        let _ = self.changes.acquire_many(CHANGES).await;
    }

    /// Runs a change to its end. A caller that goes away must not leave half of it (connectrpc drops the handler then), so
    /// it has a task of its own; the permit bounds how many.
    async fn change<T: Send + 'static>(
        &self,
        verb: &'static str,
        vm_id: VmId,
        work: impl Future<Output = Result<T, ManagerError>> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let permit = self.changes.clone().acquire_owned().await;
        let task = tokio::spawn(async move {
            let _permit = permit;
            let begun = Instant::now();
            let done = work.await;
            let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            match &done {
                Ok(_) => tracing::info!(verb, took_us, "VM network changed"),
                Err(error) => {
                    let code = code_of(error);
                    if matches!(code, ErrorCode::Internal) {
                        tracing::error!(
                            verb,
                            took_us,
                            "VM network not changed: the cause is logged at debug"
                        );
                    }
                    tracing::debug!(verb, %vm_id, code = code.as_str(), %error, "VM network not changed");
                }
            }
            done
        });
        match task.await {
            Ok(done) => done.map_err(status),
            Err(error) => {
                tracing::error!(verb, %error, "a change did not run to its end");
                Err(ConnectError::internal(format!("{verb} did not run to its end: see the daemon's log")))
            }
        }
    }
}

/// The code that the proto promises for an error.
fn code_of(error: &ManagerError) -> ErrorCode {
    match error {
        ManagerError::UnknownNetwork { .. } | ManagerError::NoVm { .. } => ErrorCode::NotFound,
        ManagerError::Differs { .. } | ManagerError::MacTaken { .. } | ManagerError::AddressTaken { .. } => {
            ErrorCode::AlreadyExists
        }
        ManagerError::AddressUnusable { .. } | ManagerError::UserDataTooLong { .. } => {
            ErrorCode::InvalidArgument
        }
        ManagerError::External { .. } => ErrorCode::FailedPrecondition,
        ManagerError::SubnetFull { .. } => ErrorCode::ResourceExhausted,
        ManagerError::Stopping => ErrorCode::Unavailable,
        ManagerError::Store(_) | ManagerError::Kernel { .. } | ManagerError::Homeless { .. } => {
            ErrorCode::Internal
        }
    }
}

fn status(error: ManagerError) -> ConnectError {
    ConnectError::new(code_of(&error), error.to_string())
}

impl From<FieldError> for ConnectError {
    fn from(error: FieldError) -> Self {
        ConnectError::invalid_argument(error.to_string())
    }
}

// Owned messages: an answer borrows nothing, and the trait allows any body.
#[allow(refining_impl_trait)]
impl GuestNetworkService for Service {
    async fn create_vm_network(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::CreateVmNetworkRequest>,
    ) -> ServiceResult<v1::CreateVmNetworkResponse> {
        let create = wire::create_vm(&request)?;
        let (manager, vm_id) = (self.manager.clone(), create.vm_id.clone());
        let binding = self.change("create", vm_id, async move { manager.create(create).await }).await?;
        let vm_network = wire::vm_network(&binding);
        Response::ok(v1::CreateVmNetworkResponse { vm_network: vm_network.into(), ..Default::default() })
    }

    async fn get_vm_network(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetVmNetworkRequest>,
    ) -> ServiceResult<v1::GetVmNetworkResponse> {
        let vm_id = wire::vm_id(request.vm_id)?;
        let unknown = || ConnectError::not_found(format!("VM {vm_id} has no network"));
        let binding = self.manager.get(&vm_id).ok_or_else(unknown)?;
        let vm_network = wire::vm_network(&binding);
        Response::ok(v1::GetVmNetworkResponse { vm_network: vm_network.into(), ..Default::default() })
    }

    async fn list_vm_networks(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListVmNetworksRequest>,
    ) -> ServiceResult<v1::ListVmNetworksResponse> {
        let network = wire::network_id(request.network_id)?;
        let bindings = self.manager.list(network.as_ref()).map_err(status)?;
        let vm_networks = bindings.iter().map(|binding| wire::vm_network(binding)).collect();
        Response::ok(v1::ListVmNetworksResponse { vm_networks, ..Default::default() })
    }

    async fn delete_vm_network(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::DeleteVmNetworkRequest>,
    ) -> ServiceResult<v1::DeleteVmNetworkResponse> {
        let vm_id = wire::vm_id(request.vm_id)?;
        let (manager, gone) = (self.manager.clone(), vm_id.clone());
        self.change("delete", vm_id, async move { manager.delete(&gone).await }).await?;
        Response::ok(v1::DeleteVmNetworkResponse::default())
    }

    async fn list_leases(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListLeasesRequest>,
    ) -> ServiceResult<v1::ListLeasesResponse> {
        let network = wire::network_id(request.network_id)?;
        let leases = self.manager.leases(network.as_ref()).map_err(status)?;
        let leases = leases.iter().map(|(binding, view)| wire::lease(binding, view)).collect();
        Response::ok(v1::ListLeasesResponse { leases, ..Default::default() })
    }

    async fn list_networks(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, v1::ListNetworksRequest>,
    ) -> ServiceResult<v1::ListNetworksResponse> {
        let networks = self.manager.networks().iter().map(wire::network).collect();
        Response::ok(v1::ListNetworksResponse { networks, ..Default::default() })
    }

    async fn get_network_stats(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetNetworkStatsRequest>,
    ) -> ServiceResult<v1::GetNetworkStatsResponse> {
        let vm_ids = stats::chosen(&self.manager, &request.vm_ids)?;
        Response::ok(stats::response(&*stats::read(self.manager.stats(), &vm_ids).await?))
    }

    async fn watch_network_stats(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::WatchNetworkStatsRequest>,
    ) -> ServiceResult<ServiceStream<v1::WatchNetworkStatsResponse>> {
        let interval = stats::interval(request.interval_ms)?;
        let vm_ids = stats::chosen(&self.manager, &request.vm_ids)?;
        let place = self.watch_place()?;
        let (stats, stop) = (self.manager.stats().clone(), self.stop.clone());
        Response::stream_ok(stats::Watch { stats, vm_ids, stop, _place: place }.every(interval))
    }

    async fn render_guest_config(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::RenderGuestConfigRequest>,
    ) -> ServiceResult<v1::RenderGuestConfigResponse> {
        Response::ok(guest_config::render(&self.manager, &request)?)
    }

    async fn set_user_data(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::SetUserDataRequest>,
    ) -> ServiceResult<v1::SetUserDataResponse> {
        let (vm_id, content) = (wire::vm_id(request.vm_id)?, request.user_data.map(<[u8]>::to_vec));
        let (manager, of) = (self.manager.clone(), vm_id.clone());
        let set = async move { manager.set_user_data(of, content).await };
        self.change("set user-data", vm_id, set).await?;
        Response::ok(v1::SetUserDataResponse::default())
    }

    async fn get_user_data(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetUserDataRequest>,
    ) -> ServiceResult<v1::GetUserDataResponse> {
        Response::ok(guest_config::user_data(&self.manager, &wire::vm_id(request.vm_id)?)?)
    }
}
