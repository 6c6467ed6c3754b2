use std::path::{Path, PathBuf};
use std::time::Duration;

use connectrpc::client::{ClientConfig, Http2Connection, SharedHttp2Connection};
use connectrpc::{ConnectError, ErrorCode};

use super::CliError;
use crate::model::{NetworkName, VmId};
use crate::proto::guestnet::v1::{self, GuestNetworkServiceClient};

/// Longer than the service takes for any call, so that its own error is what a user sees.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The service behind a socket. Connects at the first call.
pub(super) struct Client {
    service: GuestNetworkServiceClient<SharedHttp2Connection>,
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        // The authority of a unix socket's requests is never looked at.
        let authority = http::Uri::from_static("http://localhost");
        let connection = Http2Connection::lazy_unix(socket, authority.clone()).shared(16);
        let config = ClientConfig::new(authority).with_default_timeout(TIMEOUT);
        Self { service: GuestNetworkServiceClient::new(connection, config), socket: socket.to_owned() }
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

    pub(super) async fn get(&self, vm_id: &VmId) -> Result<v1::VmNetwork, CliError> {
        let request = v1::GetVmNetworkRequest { vm_id: vm_id.to_string(), ..Default::default() };
        let answer = self.service.get_vm_network(request).await.map_err(|error| self.failed(error))?;
        answer
            .into_owned()
            .vm_network
            .into_option()
            .ok_or_else(|| CliError::Answer("it names no network".into()))
    }

    pub(super) async fn list(&self, network: Option<NetworkName>) -> Result<Vec<v1::VmNetwork>, CliError> {
        let network_id = network.map(|name| name.to_string());
        let request = v1::ListVmNetworksRequest { network_id, ..Default::default() };
        let answer = self.service.list_vm_networks(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned().vm_networks)
    }

    pub(super) async fn delete(&self, vm_id: &VmId) -> Result<(), CliError> {
        let request = v1::DeleteVmNetworkRequest { vm_id: vm_id.to_string(), ..Default::default() };
        self.service.delete_vm_network(request).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) async fn list_leases(&self, network: Option<NetworkName>) -> Result<Vec<v1::Lease>, CliError> {
        let network_id = network.map(|name| name.to_string());
        let request = v1::ListLeasesRequest { network_id, ..Default::default() };
        let answer = self.service.list_leases(request).await.map_err(|error| self.failed(error))?;
        Ok(answer.into_owned().leases)
    }

    pub(super) async fn list_networks(&self) -> Result<Vec<v1::Network>, CliError> {
        let answer = self.service.list_networks(v1::ListNetworksRequest::default()).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().networks)
    }

    /// A socket that nobody answers on is told apart from a service that says that it is not available.
    fn failed(&self, error: ConnectError) -> CliError {
        if error.code == ErrorCode::Unavailable
            && std::os::unix::net::UnixStream::connect(&self.socket).is_err()
        {
            let detail = error.message.unwrap_or_default();
            return CliError::Unreachable { socket: self.socket.display().to_string(), detail };
        }
        CliError::Call(error)
    }
}
