//! Starting and stopping.

use super::*;

#[tokio::test]
async fn stopping_frees_the_port_and_a_taken_port_is_named() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let endpoints = DnsEndpoints { listen: server.local_addr(), ..endpoints(&[upstream.address]) };
    let start = || DnsServer::start(network("default"), Registry::default(), endpoints.clone());
    let error = start().err().unwrap().to_string();
    assert!(error.contains(&endpoints.listen.to_string()) && error.contains("another DNS server"), "{error}");
    server.stop();
    let again = start().unwrap();
    assert_eq!(addresses(&lookup(&again, "gateway.vm.internal.").await).len(), 1);
}

#[tokio::test]
async fn an_address_that_is_not_here_is_named() {
    let listen = "192.0.2.1:53".parse().unwrap();
    let endpoints = DnsEndpoints { listen, ..endpoints(&["127.0.0.1:1".parse().unwrap()]) };
    let error = DnsServer::start(network("default"), Registry::default(), endpoints).err().unwrap();
    assert!(error.to_string().contains("192.0.2.1:53") && error.to_string().contains("bridge"), "{error}");
}

#[tokio::test]
async fn a_resolver_cannot_be_its_own_upstream() {
    let listen: SocketAddr = "127.0.0.1:5300".parse().unwrap();
    let endpoints = DnsEndpoints { listen, ..endpoints(&[listen]) };
    let error = DnsServer::start(network("default"), Registry::default(), endpoints).err().unwrap();
    assert!(error.to_string().contains("127.0.0.1:5300"), "{error}");
}
