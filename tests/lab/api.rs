//! The API's client, for tests and benchmarks that call it as a VM manager does: on a connection that stays.

use std::path::Path;

use connectrpc::Protocol;
use connectrpc::client::{ClientConfig, Http2Connection, SharedHttp2Connection};
use guestnet::proto::guestnet::v1::GuestNetworkServiceClient;
use http::Uri;

pub type Client = GuestNetworkServiceClient<SharedHttp2Connection>;

/// A client of the service behind `socket`. Connects at the first call; needs a tokio runtime.
pub fn client_of(socket: &Path, protocol: Protocol) -> Client {
    let authority = Uri::from_static("http://localhost");
    let connection = Http2Connection::lazy_unix(socket, authority.clone()).shared(8);
    Client::new(connection, ClientConfig::new(authority).with_protocol(protocol))
}
