//! The API as callers meet it: over its socket, well-behaved or not.
//!
//! The runtimes have a thread beside the test's own: a connection answers the daemon while the test waits for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use connectrpc::{ErrorCode, Protocol};
use guestnet::proto::guestnet::v1::{
    CreateVmNetworkRequest, DeleteVmNetworkRequest, GetVmNetworkRequest, ListLeasesRequest,
    ListNetworksRequest, ListVmNetworksRequest, VmNetwork,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::lab::api::{Client, client_of};
use crate::lab::daemon::{Paths, serve_command};
use crate::lab::{Daemon, Lab, assert_same, text};

/// `default`, and `small` with room for one guest.
const NETWORKS: &str = r#"
[[network]]

[[network]]
name = "small"
bridge_name = "br-small"
bridge_ip = "10.200.0.1/30"
vm_subnet = "10.200.0.0/30"
"#;

/// Far more than anything here takes: a test that hangs fails instead.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("this should not take so long")
}

fn client(daemon: &Daemon<'_>) -> Client {
    client_of(daemon.socket(), Protocol::Connect)
}

fn ask(vm_id: &str) -> CreateVmNetworkRequest {
    CreateVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() }
}

async fn create(client: &Client, request: CreateVmNetworkRequest) -> Result<VmNetwork, (ErrorCode, String)> {
    let answer = soon(client.create_vm_network(request)).await;
    let answer = answer.map_err(|error| (error.code, error.message.unwrap_or_default()))?;
    Ok(answer.into_owned().vm_network.into_option().unwrap())
}

async fn delete(client: &Client, vm_id: &str) {
    let request = DeleteVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() };
    soon(client.delete_vm_network(request)).await.unwrap();
}

async fn ids(client: &Client) -> Vec<String> {
    let answer = soon(client.list_vm_networks(ListVmNetworksRequest::default())).await.unwrap().into_owned();
    answer.vm_networks.into_iter().map(|vm| vm.vm_id).collect()
}

/// A CreateVmNetwork over HTTP/1.1 by hand, with the headers given and `length` bytes of body announced.
fn head(headers: &str, length: usize) -> String {
    format!(
        "POST /guestnet.v1.GuestNetworkService/CreateVmNetwork HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         {headers}\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn json(body: &str) -> Vec<u8> {
    (head("content-type: application/json", body.len()) + body).into_bytes()
}

/// Everything the service says to `bytes` until it closes.
async fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The service may have closed before all of it was written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The namespaces of VMs that there are on the host.
fn namespaces(lab: &Lab) -> Vec<String> {
    let listed = lab.on_host("ip", &["netns", "list"]);
    let names = listed.lines().filter_map(|line| line.split_whitespace().next()?.strip_prefix("vm-"));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_made_shown_listed_and_removed_over_every_protocol() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORKS);
    let before = lab.host_state();
    for protocol in [Protocol::Connect, Protocol::Grpc, Protocol::GrpcWeb] {
        let client = client_of(daemon.socket(), protocol);
        let asked = CreateVmNetworkRequest { ip_address: Some("10.100.3.4".into()), ..ask("web_1") };
        let vm = create(&client, asked).await.unwrap();
        assert_eq!(vm.ip_address, "10.100.3.4");
        assert_eq!(vm.netmask, "255.255.0.0");
        assert_eq!(vm.namespace, "vm-web_1");
        assert_eq!(vm.mac_address, "06:00:0a:64:03:04");
        assert!(vm.created_at.is_set());

        let get = GetVmNetworkRequest { vm_id: "web_1".into(), ..Default::default() };
        let shown = soon(client.get_vm_network(get.clone())).await.unwrap().into_owned();
        assert_eq!(shown.vm_network.into_option().unwrap(), vm);
        assert_eq!(ids(&client).await, ["web_1"]);
        let leases = soon(client.list_leases(ListLeasesRequest::default())).await.unwrap().into_owned();
        assert_eq!(leases.leases[0].state, "reserved");
        let networks = soon(client.list_networks(ListNetworksRequest::default())).await.unwrap().into_owned();
        assert_eq!((networks.networks[0].vm_count, networks.networks[1].vm_count), (1, 0));

        delete(&client, "web_1").await;
        delete(&client, "web_1").await;
        assert_eq!(soon(client.get_vm_network(get)).await.unwrap_err().code, ErrorCode::NotFound);
    }
    for body in [r#"{"vmId":"a","ipAddress":"10.100.7.7"}"#, r#"{"vm_id":"a","ip_address":"10.100.7.7"}"#] {
        let answer = exchange(daemon.socket(), &json(body)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(r#""ipAddress":"10.100.7.7""#), "{answer}");
    }
    daemon.guestnet(&["vm", "delete", "nobody", "a"]);
    assert_same(&before, &lab.host_state());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_has_its_code_and_names_the_value_and_what_fits() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORKS);
    let client = client(&daemon);
    let full = CreateVmNetworkRequest {
        network_id: Some("default".into()),
        workspace_id: Some("acme".into()),
        ip_address: Some("10.100.0.9".into()),
        mac_address: Some("06:00:0a:64:00:09".into()),
        hostname: Some("Web".into()),
        rate_limit_mbps: Some(5),
        ..ask("a")
    };
    let first = create(&client, full.clone()).await.unwrap();
    assert_eq!((first.hostname.as_str(), first.rate_limit_mbps), ("web", 5));
    assert_eq!(create(&client, full).await.unwrap(), first);
    assert_eq!(create(&client, ask("a")).await.unwrap(), first, "what is left unset asks for nothing");
    let small = CreateVmNetworkRequest { network_id: Some("small".into()), ..ask("only") };
    create(&client, small.clone()).await.unwrap();

    let before = lab.host_state();
    let with = |change: fn(&mut CreateVmNetworkRequest)| {
        let mut request = ask("b");
        change(&mut request);
        request
    };
    let invalid = ErrorCode::InvalidArgument;
    let refusals = [
        (ask("../b"), invalid, &["vm_id", "../b", "1 to 64"] as &[_]),
        (ask(""), invalid, &["vm_id", "\"\""]),
        (with(|r| r.network_id = Some("Bad".into())), invalid, &["network_id", "Bad", "a-z"]),
        (with(|r| r.workspace_id = Some("a/b".into())), invalid, &["workspace_id", "a/b", "1 to 64"]),
        (
            with(|r| r.ip_address = Some("10.100.0.0/16".into())),
            invalid,
            &["ip_address", "10.100.0.0/16", "IPv4 address"],
        ),
        (with(|r| r.ip_address = Some("10.100.0.1".into())), invalid, &["10.100.0.1", "gateway"]),
        (with(|r| r.ip_address = Some("192.0.2.1".into())), invalid, &["192.0.2.1", "10.100.0.0/16"]),
        (
            with(|r| r.mac_address = Some("01:00:5e:00:00:01".into())),
            invalid,
            &["mac_address", "01:00:5e:00:00:01", "unicast"],
        ),
        (with(|r| r.hostname = Some("a b".into())), invalid, &["hostname", "a b", "one label"]),
        (
            with(|r| r.rate_limit_mbps = Some(100_001)),
            invalid,
            &["rate_limit_mbps", "\"100001\"", "1 to 100000"],
        ),
        (with(|r| r.burst_kib = Some(15)), invalid, &["burst_kib", "\"15\"", "16 to 1048576"]),
        (with(|r| r.tap_uid = Some(u32::MAX)), invalid, &["tap_uid", "4294967295"]),
        (with(|r| r.network_id = Some("dmz".into())), ErrorCode::NotFound, &["dmz", "default, small"]),
        (
            with(|r| r.ip_address = Some("10.100.0.9".into())),
            ErrorCode::AlreadyExists,
            &["ip_address", "10.100.0.9", "VM a"],
        ),
        (
            with(|r| r.mac_address = Some("06:00:0a:64:00:09".into())),
            ErrorCode::AlreadyExists,
            &["mac_address", "06:00:0a:64:00:09", "VM a"],
        ),
        (
            CreateVmNetworkRequest { ip_address: Some("10.100.0.8".into()), ..ask("a") },
            ErrorCode::AlreadyExists,
            &["ip_address", "10.100.0.9", "10.100.0.8"],
        ),
        (
            CreateVmNetworkRequest { vm_id: "b".into(), ..small },
            ErrorCode::ResourceExhausted,
            &["small", "10.200.0.0/30"],
        ),
    ];
    for (request, code, words) in refusals {
        let (given, message) = create(&client, request).await.unwrap_err();
        assert_eq!(given, code, "{message}");
        for word in words {
            assert!(message.contains(word), "{word:?} is not in {message:?}");
        }
    }
    let list = ListVmNetworksRequest { network_id: Some("dmz".into()), ..Default::default() };
    assert_eq!(soon(client.list_vm_networks(list)).await.unwrap_err().code, ErrorCode::NotFound);
    let leases = ListLeasesRequest { network_id: Some("dmz".into()), ..Default::default() };
    assert_eq!(soon(client.list_leases(leases)).await.unwrap_err().code, ErrorCode::NotFound);
    let shown = daemon.client(&["vm", "show", "b"]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown).contains("guestnet vm create b"), "{}", text(&shown));

    assert_eq!(ids(&client).await, ["a", "only"], "a refused request leaves nothing behind");
    assert_same(&before, &lab.host_state());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_disturb_nobody() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let socket = daemon.socket();
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let broken_h2 = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" as &[u8], &noise].concat();
    let long_head = [b"GET / HTTP/1.1\r\nx: " as &[u8], &vec![b'a'; 200_000]].concat();
    for bytes in
        [&noise as &[u8], &broken_h2, &long_head, b"\0", b"PRI * HTTP/2.0\r\n\r\nXX", b"\r\n\r\n\r\n"]
    {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    // A hundred megabytes: announced, or in pieces without an end in sight. Nobody has to wait for them.
    for (framing, piece) in [("content-length: 104857600", ""), ("transfer-encoding: chunked", "100000\r\n")]
    {
        let head = format!(
            "POST /guestnet.v1.GuestNetworkService/CreateVmNetwork HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\n{framing}\r\n\r\n"
        );
        let (mut reading, mut writing) = UnixStream::connect(socket).await.unwrap().into_split();
        writing.write_all(head.as_bytes()).await.unwrap();
        let sender = tokio::spawn(async move {
            let piece = [piece.as_bytes(), &vec![b'a'; 1 << 20], &b"\r\n"[..piece.len().min(2)]].concat();
            let mut sent = 0;
            while sent < 100 && writing.write_all(&piece).await.is_ok() {
                sent += 1;
            }
            sent
        });
        let mut answer = [0; 1024];
        let length = soon(reading.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.contains("resource_exhausted") && answer.contains("1048576"), "{framing}: {answer}");
        drop(reading);
        assert!(soon(sender).await.unwrap() < 100, "{framing}: all of it was taken");
        assert!(ids(&client(&daemon)).await.is_empty());
    }
    let answer = exchange(socket, &json(r#"{"vm_"#)).await;
    assert!(answer.contains("invalid_argument"), "{answer}");

    // A long value is not sent back whole.
    let (code, message) = create(&client(&daemon), ask(&"é".repeat(100_000))).await.unwrap_err();
    assert_eq!(code, ErrorCode::InvalidArgument);
    assert!(message.len() < 400, "{} bytes", message.len());

    // More than a megabyte is refused, as sent and as unpacked.
    let (code, message) = create(&client(&daemon), ask(&"a".repeat(2 << 20))).await.unwrap_err();
    assert_eq!(code, ErrorCode::ResourceExhausted, "{message}");
    assert!(message.contains("1048576"), "{message}");
    let packed =
        Command::new("sh").args(["-c", "head -c 8388608 /dev/zero | gzip -9"]).output().unwrap().stdout;
    assert!(packed.len() < 10_000);
    let mut bomb =
        head("content-type: application/proto\r\ncontent-encoding: gzip", packed.len()).into_bytes();
    bomb.extend_from_slice(&packed);
    let answer = exchange(socket, &bomb).await;
    assert!(answer.contains("resource_exhausted"), "{answer}");

    create(&client(&daemon), ask("a")).await.unwrap();
    assert_eq!(namespaces(&lab), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_keep_nobody_out_and_do_not_hold_up_the_stop() {
    const IDLE: u32 = 10_000;
    let lab = Lab::new();
    // Their other ends are this process's.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let needed = u64::from(IDLE) + 1_000;
    setrlimit(Resource::RLIMIT_NOFILE, needed, most.max(needed)).unwrap();
    let daemon = Daemon::start(&lab);
    let mut idle = Vec::new();
    for turn in 0..IDLE {
        // Waits where the queue of those who want in is full.
        let stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        // The service may have closed this one already, for the ones before it.
        let _ = match turn % 3 {
            0 => Ok(()),
            1 => stream.write_all(b"POST /guestnet.v1").await,
            _ => stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await,
        };
        idle.push(stream);
    }
    let busy = client(&daemon);
    create(&busy, ask("a")).await.unwrap();
    assert_eq!(ids(&busy).await, ["a"]);
    daemon.guestnet(&["vm", "list"]);
    drop(idle);

    let _silent = UnixStream::connect(daemon.socket()).await.unwrap();
    let mut begun = UnixStream::connect(daemon.socket()).await.unwrap();
    begun.write_all(b"POST /guestnet.v1").await.unwrap();
    assert_eq!(ids(&busy).await, ["a"]);
    let asked = Instant::now();
    assert!(daemon.stop().success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_belongs_to_one_service_and_goes_with_it() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let socket = daemon.socket().to_owned();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, 0o660);

    let before = lab.host_state();
    let mut second = serve_command(&lab, "");
    let config = fs::read_to_string(Paths::of(&lab).config).unwrap();
    fs::write(Paths::of(&lab).config, config.replace("/state\"", "/other-state\"")).unwrap();
    let refused = second.output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains(socket.to_str().unwrap()), "{}", text(&refused));
    assert_same(&before, &lab.host_state());
    daemon.guestnet(&["vm", "create", "a"]);

    daemon.crash();
    assert!(socket.exists());
    let daemon = Daemon::start(&lab);
    assert_eq!(ids(&client(&daemon)).await, ["a"]);
    assert!(daemon.stop().success());
    assert!(!socket.exists());
}

/// Killed while it starts a program, it leaves a fork with its files, which closes them in ascending order and lets go of the latest first.
#[test]
fn the_lock_is_the_last_that_a_service_lets_go_of() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let table = |name: &str| fs::read_to_string(format!("/proc/{}/net/{name}", daemon.pid())).unwrap();
    let column = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap().to_owned();
    let udp: Vec<String> = table("udp").lines().skip(1).map(|line| column(line, 9)).collect();
    let path = daemon.socket().to_str().unwrap().to_owned();
    let api =
        table("unix").lines().filter(|line| line.ends_with(&path)).map(|line| column(line, 6)).collect();
    let sockets: Vec<String> = [udp, api].concat();

    let mut lock = None;
    let mut found = Vec::new();
    for file in fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap() {
        let file = file.unwrap();
        let number: u32 = file.file_name().to_str().unwrap().parse().unwrap();
        // One of a moment is gone.
        let Ok(target) = fs::read_link(file.path()) else { continue };
        let target = target.to_str().unwrap();
        if target.ends_with("/state/lock") {
            lock = Some(number);
        } else if sockets.iter().any(|inode| target == format!("socket:[{inode}]")) {
            found.push(number);
        }
    }
    let lock = lock.unwrap();
    assert!(found.len() >= 3 && found.iter().all(|socket| *socket > lock), "{lock}: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_at_the_same_time_get_one_network_for_one_vm_and_one_vm_for_one_address() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let at_once = |request: fn(usize) -> CreateVmNetworkRequest| {
        let mut callers = JoinSet::new();
        for n in 0..64 {
            let client = client(&daemon);
            callers.spawn(async move { create(&client, request(n)).await });
        }
        callers.join_all()
    };
    let made = at_once(|_| ask("same")).await;
    assert!(made.iter().all(|vm| vm == &made[0] && vm.is_ok()), "{made:?}");
    assert_eq!(namespaces(&lab), ["same"]);

    let asked =
        |n| CreateVmNetworkRequest { ip_address: Some("10.100.9.9".into()), ..ask(&format!("vm{n}")) };
    let (won, lost): (Vec<_>, Vec<_>) = at_once(asked).await.into_iter().partition(Result::is_ok);
    let winner = &won[0].as_ref().unwrap().vm_id;
    assert_eq!((won.len(), lost.len()), (1, 63));
    for refusal in lost {
        let (code, message) = refusal.unwrap_err();
        assert_eq!(code, ErrorCode::AlreadyExists, "{message}");
        assert!(message.contains("10.100.9.9") && message.contains(winner), "{message}");
    }
    assert_eq!(namespaces(&lab), ["same", winner]);
    crate::consistent::assert_consistent(&lab, &daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_in_the_middle_leaves_all_of_a_network_or_none() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let before = lab.host_state();
    for n in 0..8 {
        let mut caller = UnixStream::connect(daemon.socket()).await.unwrap();
        caller.write_all(&json(&format!(r#"{{"vmId":"gone{n}"}}"#))).await.unwrap();
        drop(caller);
        // Or its own deadline passes: the change goes on without it.
        let late = String::from_utf8(json(&format!(r#"{{"vmId":"late{n}"}}"#))).unwrap();
        let late = late.replace("\r\nhost", "\r\nconnect-timeout-ms: 1\r\nhost");
        let answer = exchange(daemon.socket(), late.as_bytes()).await;
        assert!(answer.contains("deadline_exceeded") || answer.contains("ipAddress"), "{answer}");
    }
    // The stop waits for the changes under way, so what there is then is what there is.
    assert!(daemon.stop().success());
    let left = namespaces(&lab);
    let daemon = Daemon::start(&lab);
    let client = client(&daemon);
    let known = ids(&client).await;
    assert_eq!(left, known);
    assert!(!known.is_empty());
    for vm_id in &known {
        create(&client, ask(vm_id)).await.unwrap();
        delete(&client, vm_id).await;
    }
    assert_same(&before, &lab.host_state());
}
