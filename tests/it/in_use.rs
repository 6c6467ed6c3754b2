//! What callers and admins do at the wrong moment: each call ends in the code that it should, and the host agrees with the service.

use std::path::Path;
use std::time::Duration;

use connectrpc::{ErrorCode, Protocol};
use guestnet::proto::guestnet::v1::{
    CreateVmNetworkRequest, DeleteVmNetworkRequest, UpdateVmNetworkRequest, VmNetwork,
};

use crate::consistent::assert_consistent;
use crate::lab::api::{Client, client_of};
use crate::lab::tap_guest::open_tap;
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same};

type Answer<T> = Result<T, (ErrorCode, String)>;

fn client(daemon: &Daemon<'_>) -> Client {
    client_of(daemon.socket(), Protocol::Connect)
}

async fn create(client: &Client, vm_id: &str) -> Answer<VmNetwork> {
    let request = CreateVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() };
    let answer = client.create_vm_network(request).await;
    let answer = answer.map_err(|error| (error.code, error.message.unwrap_or_default()))?;
    Ok(answer.into_owned().vm_network.into_option().unwrap())
}

async fn delete(client: &Client, vm_id: &str) -> Answer<()> {
    let request = DeleteVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() };
    let answer = client.delete_vm_network(request).await;
    answer.map(drop).map_err(|error| (error.code, error.message.unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_with_the_tap_still_open_is_a_failed_precondition_until_it_is_closed() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let client = client(&daemon);
    let vm = create(&client, "vm1").await.unwrap();
    let before = lab.host_state();
    let inside = lab.host.enter(&Path::new("/run/netns").join(&vm.namespace));
    let tap = inside.run(|| open_tap("tap0", libc::IFF_VNET_HDR)).expect("the VM's TAP");
    for _ in 0..3 {
        let (code, message) = delete(&client, "vm1").await.unwrap_err();
        assert_eq!(code, ErrorCode::FailedPrecondition, "{message}");
        assert!(message.contains("vm1") && message.contains("tap0"), "{message}");
        assert_same(&before, &lab.host_state());
    }
    assert_consistent(&lab, &daemon);
    // It has its network still, whoever asks for it.
    assert_eq!(create(&client, "vm1").await.unwrap(), vm);
    drop(tap);
    delete(&client, "vm1").await.unwrap();
    assert_consistent(&lab, &daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_an_admin_unmounted_is_named_by_what_needs_it_and_in_no_ones_way() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let client = client(&daemon);
    create(&client, "vm1").await.unwrap();
    lab.on_host("umount", &["/run/netns/vm-vm1"]);
    let rate_limit_mbps = Some(7);
    let request = UpdateVmNetworkRequest { vm_id: "vm1".into(), rate_limit_mbps, ..Default::default() };
    let error = client.update_vm_network(request).await.unwrap_err();
    let message = error.message.unwrap_or_default();
    assert_eq!(error.code, ErrorCode::Internal, "{message}");
    assert!(message.contains("vm1") && message.contains("network namespace guestnet-"), "{message}");
    let limit = daemon.json(&["vm", "show", "vm1"])["rate_limit_mbps"].clone();
    assert_eq!(limit, 100, "what was refused is not written down");
    delete(&client, "vm1").await.unwrap();
    assert_consistent(&lab, &daemon);
    create(&client, "vm1").await.unwrap();
    let vm = daemon.json(&["vm", "show", "vm1"]);
    TapGuest::attach(&lab, &vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    assert_consistent(&lab, &daemon);
}

/// Without ready slots, a create takes long enough for a delete to come in the midst of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_during_a_create_waits_for_it_and_both_succeed() {
    const ROUNDS: usize = 20;
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 0\n");
    let before = lab.host_state();
    let (creator, deleter) = (client(&daemon), client(&daemon));
    // Both are connected.
    for client in [&creator, &deleter] {
        delete(client, "vm1").await.unwrap();
    }
    let mut after = 0;
    for round in 0..ROUNDS {
        let creating = create(&creator, "vm1");
        let deleting = async {
            tokio::time::sleep(Duration::from_millis(round as u64 % 8)).await;
            delete(&deleter, "vm1").await
        };
        let (created, deleted) = tokio::join!(creating, deleting);
        assert_eq!((created.map(|vm| vm.vm_id), deleted), (Ok("vm1".into()), Ok(())));
        let left = daemon.json(&["vm", "list"]).as_array().unwrap().len();
        after += usize::from(left == 0);
        delete(&deleter, "vm1").await.unwrap();
    }
    assert!(after > 0, "no delete came after its create");
    assert_consistent(&lab, &daemon);
    assert_same(&before, &lab.host_state());
}
