//! Requests that go to the kernel together, in one system call: one of them is refused, with others before and behind it that were
//! carried out. Here the service runs as it is shipped; where a test injects faults, requests go one by one.

use std::time::{Duration, Instant};

use connectrpc::{ErrorCode, Protocol};
use guestnet::proto::guestnet::v1::{CreateVmNetworkRequest, DeleteVmNetworkRequest};

use crate::consistent::assert_consistent;
use crate::lab::api::client_of;
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same};
use crate::slots::eventually;

/// Breaks something that a create's batch needs and creates a VM at once, until that comes before the service has noticed and put
/// it right: it is refused by the kernel, and nothing of it is left.
fn refused(break_it: &str, named: &[&str]) {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 4\n");
    let live = daemon.json(&["vm", "create", "live"]);
    let before = lab.host_state();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = {
        let _runtime = runtime.enter();
        client_of(daemon.socket(), Protocol::Connect)
    };
    let create = || {
        let request = CreateVmNetworkRequest {
            vm_id: "vm1".into(),
            ip_address: Some("10.100.0.9".into()),
            ..Default::default()
        };
        runtime.block_on(client.create_vm_network(request))
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        lab.on_host("sh", &["-c", break_it]);
        let answer = create();
        if let Err(error) = answer {
            let message = error.message.unwrap_or_default();
            assert_eq!(error.code, ErrorCode::Internal, "{message}");
            for word in named {
                assert!(message.contains(word), "{word:?} is not in {message:?}");
            }
            assert!(!message.contains("; then "), "what was carried out could not be taken back: {message}");
            break;
        }
        assert!(Instant::now() < deadline, "the service is always faster\n{}", daemon.log());
        runtime
            .block_on(
                client
                    .delete_vm_network(DeleteVmNetworkRequest { vm_id: "vm1".into(), ..Default::default() }),
            )
            .unwrap();
        eventually("the host is as it was", || lab.host_state() == before);
    }
    // What was broken is put right meanwhile; of what was carried out before and behind it nothing is left.
    eventually("the host is as it was", || lab.host_state() == before);
    assert_same(&before, &lab.host_state());
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([live]));
    assert_consistent(&lab, &daemon);
    let vm = daemon.json(&["vm", "create", "vm1", "--ip", "10.100.0.9"]);
    TapGuest::attach(&lab, &vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

/// A route with the gateway as its source, between the neighbour and the forwarding entry, on a bridge that has lost the address.
#[test]
fn a_route_that_is_refused_in_the_midst_of_a_batch_takes_the_others_back() {
    refused("ip addr del 10.100.0.1/16 dev br-vms", &["10.100.0.9", "route"]);
}

/// A forwarding entry, last in its batch, for a port that has been taken off its bridge.
#[test]
fn a_forwarding_entry_that_is_refused_takes_the_others_back() {
    let ports =
        "for port in /sys/class/net/gv*; do [ ${port##*/} = gv0 ] || ip link set ${port##*/} nomaster; done";
    refused(ports, &["forwarding entry"]);
}
