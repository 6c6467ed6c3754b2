use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use connectrpc::client::{ClientConfig, Http2Connection, ServerStream, SharedHttp2Connection};
use connectrpc::{ConnectError, ErrorCode};
use hyper::body::Incoming;

use super::CliError;
use crate::model::{NetworkName, VmId};
use crate::proto::guestnet::v1::{self, GuestNetworkServiceClient};

/// Longer than the service takes for any call, so that its own error is what a user sees.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Of a list, what is asked for at a time.
const PAGE: u32 = 2_000;

/// The statistics of many thousand VMs are some megabytes.
const LONGEST_ANSWER: usize = 256 << 20;

/// The service behind a socket. Connects at the first call.
pub(super) struct Client {
    pub(super) service: GuestNetworkServiceClient<SharedHttp2Connection>,
    /// The same for answers that go on as long as they are watched.
    streams: GuestNetworkServiceClient<SharedHttp2Connection>,
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        // The authority of a unix socket's requests is never looked at.
        let authority = http::Uri::from_static("http://localhost");
        let connection = Http2Connection::lazy_unix(socket, authority.clone()).shared(16);
        let config = ClientConfig::new(authority)
            .with_default_max_message_size(LONGEST_ANSWER)
            .with_default_element_memory_limit(LONGEST_ANSWER);
        let streams = GuestNetworkServiceClient::new(connection.clone(), config.clone());
        let service = GuestNetworkServiceClient::new(connection, config.with_default_timeout(TIMEOUT));
        Self { service, streams, socket: socket.to_owned() }
    }

    pub(super) async fn create(
        &self,
        request: v1::CreateVmNetworkRequest,
    ) -> Result<v1::VmNetwork, CliError> {
        let answer = self.service.create_vm_network(request).await.map_err(|error| self.failed(error))?;
        answer
            .into_owned()
            .vm_network
            .into_option()
            .ok_or_else(|| CliError::Answer("it names no network".into()))
    }

    pub(super) async fn batch_create(
        &self,
        requests: Vec<v1::CreateVmNetworkRequest>,
    ) -> Result<Vec<v1::BatchCreateResult>, CliError> {
        let request = v1::BatchCreateVmNetworksRequest { requests, ..Default::default() };
        let answer = self.service.batch_create_vm_networks(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().results)
    }

    pub(super) async fn update(
        &self,
        request: v1::UpdateVmNetworkRequest,
    ) -> Result<v1::VmNetwork, CliError> {
        let answer = self.service.update_vm_network(request).await.map_err(|error| self.failed(error))?;
        answer
            .into_owned()
            .vm_network
            .into_option()
            .ok_or_else(|| CliError::Answer("it names no network".into()))
    }

    pub(super) async fn get(&self, vm_id: &VmId) -> Result<v1::VmNetwork, CliError> {
        let request = v1::GetVmNetworkRequest { vm_id: vm_id.to_string(), ..Default::default() };
        let answer = self.service.get_vm_network(request).await.map_err(|error| match error.code {
            ErrorCode::NotFound => CliError::NoNetwork { vm_id: vm_id.clone() },
            _ => self.failed(error),
        })?;
        answer
            .into_owned()
            .vm_network
            .into_option()
            .ok_or_else(|| CliError::Answer("it names no network".into()))
    }

    /// All of them, page by page.
    pub(super) async fn list(
        &self,
        request: v1::ListVmNetworksRequest,
    ) -> Result<Vec<v1::VmNetwork>, CliError> {
        pages(async |page_token| {
            let request = v1::ListVmNetworksRequest { page_size: PAGE, page_token, ..request.clone() };
            let answer = self.service.list_vm_networks(request).await;
            let page = answer.map_err(|error| self.failed(error))?.into_owned();
            Ok((page.vm_networks, page.next_page_token))
        })
        .await
    }

    pub(super) async fn delete(&self, vm_id: &VmId) -> Result<(), CliError> {
        let request = v1::DeleteVmNetworkRequest { vm_id: vm_id.to_string(), ..Default::default() };
        self.service.delete_vm_network(request).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) async fn user_data(&self, vm_id: &VmId) -> Result<Option<Vec<u8>>, CliError> {
        let request = v1::GetUserDataRequest { vm_id: vm_id.to_string(), ..Default::default() };
        let answer = self.service.get_user_data(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned().user_data)
    }

    pub(super) async fn set_user_data(
        &self,
        vm_id: &VmId,
        user_data: Option<Vec<u8>>,
    ) -> Result<(), CliError> {
        let request = v1::SetUserDataRequest { vm_id: vm_id.to_string(), user_data, ..Default::default() };
        self.service.set_user_data(request).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) async fn list_leases(&self, network: Option<NetworkName>) -> Result<Vec<v1::Lease>, CliError> {
        let network_id = network.map(|name| name.to_string());
        let request = v1::ListLeasesRequest { network_id, page_size: PAGE, ..Default::default() };
        pages(async |page_token| {
            let request = v1::ListLeasesRequest { page_token, ..request.clone() };
            let answer = self.service.list_leases(request).await;
            let page = answer.map_err(|error| self.failed(error))?.into_owned();
            Ok((page.leases, page.next_page_token))
        })
        .await
    }

    pub(super) async fn lease(&self, key: v1::get_lease_request::Key) -> Result<v1::Lease, CliError> {
        let request = v1::GetLeaseRequest { key: Some(key), ..Default::default() };
        let answer = self.service.get_lease(request).await.map_err(|error| self.failed(error))?;
        let lease = answer.into_owned().lease.into_option();
        lease.ok_or_else(|| CliError::Answer("it names no lease".into()))
    }

    /// Hands every change to `each`, until the service stops or `each` fails.
    pub(super) async fn watch_leases(
        &self,
        network: Option<NetworkName>,
        mut each: impl FnMut(v1::WatchLeasesResponse) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let network_id = network.map(|name| name.to_string());
        let request = v1::WatchLeasesRequest { network_id, ..Default::default() };
        let answers = self.streams.watch_leases(request).await;
        let mut answers = answers.map_err(|error| self.failed(error))?;
        while let Some(answer) = answers.message().await.map_err(|error| self.failed(error))? {
            if !each(answer.to_owned_message())? {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn add_reservations(
        &self,
        reservations: Vec<v1::NewReservation>,
    ) -> Result<Vec<v1::Reservation>, CliError> {
        let request = v1::AddReservationsRequest { reservations, ..Default::default() };
        let answer = self.service.add_reservations(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned().reservations)
    }

    pub(super) async fn list_reservations(
        &self,
        network: Option<NetworkName>,
    ) -> Result<Vec<v1::Reservation>, CliError> {
        let network_id = network.map(|name| name.to_string());
        let request = v1::ListReservationsRequest { network_id, page_size: PAGE, ..Default::default() };
        pages(async |page_token| {
            let request = v1::ListReservationsRequest { page_token, ..request.clone() };
            let answer = self.service.list_reservations(request).await;
            let page = answer.map_err(|error| self.failed(error))?.into_owned();
            Ok((page.reservations, page.next_page_token))
        })
        .await
    }

    pub(super) async fn delete_reservation(
        &self,
        network: Option<&NetworkName>,
        key: v1::delete_reservation_request::Key,
    ) -> Result<(), CliError> {
        let network_id = network.map(ToString::to_string);
        let request = v1::DeleteReservationRequest { network_id, key: Some(key), ..Default::default() };
        self.service.delete_reservation(request).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) async fn list_networks(&self) -> Result<Vec<v1::Network>, CliError> {
        let answer = self.service.list_networks(v1::ListNetworksRequest::default()).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().networks)
    }

    pub(super) async fn stats(
        &self,
        request: v1::GetNetworkStatsRequest,
    ) -> Result<v1::GetNetworkStatsResponse, CliError> {
        let answer = self.service.get_network_stats(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned())
    }

    /// Hands every answer to `each`, until the service stops or `each` has no use for more.
    pub(super) async fn watch_stats(
        &self,
        request: v1::WatchNetworkStatsRequest,
        mut each: impl FnMut(v1::WatchNetworkStatsResponse) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let answers = self.streams.watch_network_stats(request).await;
        let mut answers = answers.map_err(|error| self.failed(error))?;
        while let Some(answer) = answers.message().await.map_err(|error| self.failed(error))? {
            if !each(answer.to_owned_message())? {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn status(&self) -> Result<v1::GetStatusResponse, CliError> {
        let answer = self.service.get_status(v1::GetStatusRequest::default()).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned())
    }

    pub(super) async fn watch_events(&self, request: v1::WatchEventsRequest) -> Result<Watch<'_>, CliError> {
        let stream = self.streams.watch_events(request).await.map_err(|error| self.failed(error))?;
        Ok(Watch { client: self, stream })
    }

    pub(super) async fn apply_policy(
        &self,
        request: v1::ApplyNetworkPolicyRequest,
    ) -> Result<v1::ApplyNetworkPolicyResponse, CliError> {
        let answer = self.service.apply_network_policy(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned())
    }

    pub(super) async fn policy(
        &self,
        request: v1::GetNetworkPolicyRequest,
    ) -> Result<v1::NetworkPolicy, CliError> {
        let answer = self.service.get_network_policy(request).await.map_err(|error| self.failed(error))?;
        answer.into_owned().policy.into_option().ok_or_else(|| CliError::Answer("it is empty".into()))
    }

    pub(super) async fn policies(&self) -> Result<Vec<v1::NetworkPolicy>, CliError> {
        let answer = self.service.list_network_policies(v1::ListNetworkPoliciesRequest::default()).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().policies)
    }

    pub(super) async fn wall_drops(&self) -> Result<v1::GetWallDropsResponse, CliError> {
        let answer = self.service.get_wall_drops(v1::GetWallDropsRequest::default()).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned())
    }

    pub(super) async fn delete_policy(
        &self,
        request: v1::DeleteNetworkPolicyRequest,
    ) -> Result<(), CliError> {
        self.service.delete_network_policy(request).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) async fn delete_forward(&self, request: v1::DeletePortForwardRequest) -> Result<(), CliError> {
        self.service.delete_port_forward(request).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) async fn test_policy(
        &self,
        request: v1::TestNetworkPolicyRequest,
    ) -> Result<v1::TestNetworkPolicyResponse, CliError> {
        let answer = self.service.test_network_policy(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned())
    }

    pub(super) async fn add_forward(
        &self,
        request: v1::AddPortForwardRequest,
    ) -> Result<v1::PortForward, CliError> {
        let answer = self.service.add_port_forward(request).await.map_err(|error| self.failed(error))?;
        answer.into_owned().forward.into_option().ok_or_else(|| CliError::Answer("it is empty".into()))
    }

    pub(super) async fn forwards(
        &self,
        request: v1::ListPortForwardsRequest,
    ) -> Result<Vec<v1::PortForward>, CliError> {
        let answer = self.service.list_port_forwards(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned().forwards)
    }

    pub(super) async fn reload(&self) -> Result<v1::ReloadConfigurationResponse, CliError> {
        let answer = self.service.reload_configuration(v1::ReloadConfigurationRequest::default()).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned())
    }

    pub(super) async fn collect_garbage(&self, apply: bool) -> Result<v1::CollectGarbageResponse, CliError> {
        let request = v1::CollectGarbageRequest { apply, ..Default::default() };
        let answer = self.service.collect_garbage(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned())
    }

    /// What the service remembers of what happened.
    pub(super) async fn events(&self, request: v1::ListEventsRequest) -> Result<Vec<v1::Event>, CliError> {
        let answer = self.service.list_events(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned().events)
    }

    pub(super) fn failed(&self, error: ConnectError) -> CliError {
        failed(&self.socket, error)
    }
}

/// Events as they come.
pub(super) struct Watch<'a> {
    client: &'a Client,
    stream: ServerStream<Incoming, v1::WatchEventsResponseView<'static>>,
}

impl Watch<'_> {
    /// The next answer; none when the service has ended the watch.
    pub(super) async fn next(&mut self) -> Result<Option<v1::WatchEventsResponse>, CliError> {
        let answer = self.stream.message().await.map_err(|error| self.client.failed(error))?;
        Ok(answer.map(|answer| answer.to_owned_message()))
    }
}

/// Tells the transport's failures, which carry their cause, from the service's refusals, which have only words.
pub(super) fn failed(socket: &Path, error: ConnectError) -> CliError {
    let socket = socket.display().to_string();
    if error.source().is_some() {
        return match io_kind(&error) {
            Some(io::ErrorKind::PermissionDenied) => CliError::Forbidden { socket },
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                CliError::Unreachable { socket }
            }
            _ => CliError::BrokeOff { socket, detail: error.to_string() },
        };
    }
    match error.code {
        ErrorCode::DeadlineExceeded => CliError::TimedOut { socket },
        _ => CliError::Call(error),
    }
}

fn io_kind(error: &ConnectError) -> Option<io::ErrorKind> {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

/// All of a list: `page` tells what stands where its token says, and the token of the next.
async fn pages<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), CliError>,
) -> Result<Vec<T>, CliError> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let (items, next) = page(token).await?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}
