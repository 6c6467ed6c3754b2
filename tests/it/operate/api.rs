//! Status, events, pages, batches and error details.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use connectrpc::Protocol;
use guestnet::proto::guestnet::v1::{ListVmNetworksRequest, WatchEventsRequest};
use serde_json::{Value, json};

use crate::lab::api::client_of;
use crate::lab::{Daemon, Lab, text};

/// What curl gets from an RPC that is called with JSON.
pub(super) fn post(lab: &Lab, daemon: &Daemon<'_>, rpc: &str, body: &Value) -> Value {
    let mut curl = lab.host_command("curl");
    curl.args(["-sS", "--max-time", "20", "--unix-socket"]).arg(daemon.socket());
    curl.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
    curl.arg(format!("http://localhost/{rpc}"));
    let output = curl.output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
}

fn call(lab: &Lab, daemon: &Daemon<'_>, rpc: &str, body: Value) -> Value {
    post(lab, daemon, &format!("guestnet.v1.GuestNetworkService/{rpc}"), &body)
}

/// A client that prints lines until it is stopped.
struct Lines {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Lines {
    fn of(daemon: &Daemon<'_>, arguments: &[&str]) -> Self {
        let mut child = daemon.client_command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_happens_is_told_to_who_watches_and_to_who_comes_later() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "early"]);
    let mut all = Lines::of(&daemon, &["events", "--json"]);
    assert_eq!(all.next()["vm_id"], "early", "what is remembered comes first");
    let mut gone = Lines::of(&daemon, &["events", "--kind", "unbound", "--vm", "a", "--json"]);

    daemon.guestnet(&["vm", "create", "a"]);
    daemon.guestnet(&["vm", "delete", "early", "a"]);
    let bound = all.next();
    assert_eq!((&bound["kind"], &bound["vm_id"]), (&json!("bound"), &json!("a")));
    assert_eq!(bound["network_id"], "default");
    assert!(bound["detail"].as_str().unwrap().contains("10.100.0.3"), "{bound}");
    assert!(bound["at"].as_str().unwrap().ends_with('Z'), "{bound}");
    assert_eq!(all.next()["kind"], "unbound");
    let unbound = gone.next();
    assert_eq!((&unbound["kind"], &unbound["vm_id"]), (&json!("unbound"), &json!("a")));

    let remembered = daemon.guestnet(&["events", "--no-follow"]);
    assert_eq!(remembered.lines().count(), 4, "{remembered}");
    let unknown = daemon.client(&["events", "--kind", "exploded"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown).contains("spoof_denied"), "{}", text(&unknown));

    // A watch ends with the service, which does not wait for it.
    assert!(daemon.stop().success());
    let mut rest = String::new();
    all.output.read_to_string(&mut rest).unwrap();
    assert_eq!(all.child.wait().unwrap().code(), Some(1));
}

#[test]
fn status_tells_the_service_its_networks_and_what_happened_on_one_screen() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "a", "b"]);
    let screen = daemon.guestnet(&["status"]);
    for part in ["guestnet 0.", "running for", "br-vms", "10.100.0.0/16", "DHCP", "DNS", "8.8.8.8", "bound"] {
        assert!(screen.contains(part), "no {part} in\n{screen}");
    }
    assert!(screen.lines().count() <= 24, "{screen}");
    let status = daemon.json(&["status"]);
    assert_eq!(status["networks"][0]["vm_count"], 2);
    assert_eq!(status["networks"][0]["dns"]["queries"], 0);
    assert_eq!(status["dhcp"]["acks"], 0);
    assert_eq!(status["recent_events"].as_array().unwrap().len(), 2);
}

#[test]
fn many_vms_are_made_at_once_and_one_that_fails_keeps_none_from_being_made() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let made = daemon.json(&["vm", "create", "a", "b", "c"]);
    let addresses: Vec<&str> =
        made.as_array().unwrap().iter().map(|vm| vm["ip_address"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 3);
    let refused = daemon.client(&["vm", "create", "a", "d", "--rate-mbps", "5"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("error: a: VM a has a network already"), "{}", text(&refused));
    assert_eq!(daemon.json(&["vm", "show", "d"])["rate_limit_mbps"], 5);
    let one = daemon.client(&["vm", "create", "e", "f", "--ip", "10.100.0.9"]);
    assert_eq!(one.status.code(), Some(2), "{}", text(&one));

    let batch =
        call(&lab, &daemon, "BatchCreateVmNetworks", json!({"requests": [{"vmId": "g"}, {"vmId": "../h"}]}));
    assert_eq!(batch["results"][0]["vmNetwork"]["vmId"], "g");
    assert_eq!(batch["results"][1]["error"]["code"], "invalid_argument");
    let none = call(&lab, &daemon, "BatchCreateVmNetworks", json!({}));
    assert_eq!(none["code"], "invalid_argument");
}

#[test]
fn lists_come_in_pages_and_filtered() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "a", "b", "c", "d", "e", "--workspace", "blue"]);
    daemon.guestnet(&["vm", "create", "f", "--workspace", "red", "--ip", "10.100.7.7"]);
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = call(&lab, &daemon, "ListVmNetworks", json!({"pageSize": 4, "pageToken": token}));
        assert_eq!(page["totalSize"], 6);
        seen.extend(page["vmNetworks"].as_array().unwrap().iter().map(|vm| vm["vmId"].clone()));
        match page["nextPageToken"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e", "f"].map(Value::from));
    let ids = |arguments: &[&str]| -> Vec<Value> {
        let listed = daemon.json(&[&["vm", "list"], arguments].concat());
        listed.as_array().unwrap().iter().map(|vm| vm["vm_id"].clone()).collect()
    };
    assert_eq!(ids(&["--workspace", "red"]), ["f"]);
    assert_eq!(ids(&["--ip", "10.100.7.7"]), ["f"]);
    assert_eq!(ids(&["--mac", "06:00:0a:64:07:07"]), ["f"]);
    assert_eq!(ids(&["--workspace", "blue", "--ip", "10.100.7.7"]), Vec::<Value>::new());
    let bad = call(&lab, &daemon, "ListVmNetworks", json!({"pageToken": "?"}));
    assert_eq!(bad["code"], "invalid_argument");
}

#[test]
fn an_error_names_its_reason_and_field_for_programs() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "a", "--ip", "10.100.0.9"]);
    let details = |body: Value| {
        let error = call(&lab, &daemon, "CreateVmNetwork", body);
        let debug = |at: usize| error["details"][at]["debug"].clone();
        (error["code"].clone(), debug(0), debug(1)["fieldViolations"][0]["field"].clone())
    };
    let (code, info, field) = details(json!({"vmId": "b", "ipAddress": "10.100.0.9"}));
    assert_eq!((code, field), (json!("already_exists"), json!("ip_address")));
    assert_eq!(
        info,
        json!({"reason": "ADDRESS_TAKEN", "domain": "guestnet",
                            "metadata": {"ip_address": "10.100.0.9", "taken_by": "a"}})
    );
    let (code, info, field) = details(json!({"vmId": "b", "hostname": "a b"}));
    assert_eq!((code, field), (json!("invalid_argument"), json!("hostname")));
    assert_eq!(info["reason"], "INVALID_FIELD");
    let (_, info, _) = details(json!({"vmId": "a", "hostname": "other"}));
    assert_eq!((&info["reason"], &info["metadata"]["has"]), (&json!("VM_DIFFERS"), &json!("a")));

    let known = call(&lab, &daemon, "CreateVmNetwork", json!({"vmId": "c", "colour": "blue"}));
    assert_eq!(known["vmNetwork"]["vmId"], "c", "a field of a newer client is passed over: {known}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_never_reads_holds_up_nobody() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    // A connection has 32 calls at a time, and a caller half of the seats.
    let watchers = [(); 2].map(|()| client_of(daemon.socket(), Protocol::Connect));
    let mut watches = Vec::new();
    for watcher in watchers.iter().cycle().take(32) {
        let request = WatchEventsRequest { include_recent: true, ..Default::default() };
        watches.push(watcher.watch_events(request).await.unwrap());
    }
    let client = client_of(daemon.socket(), Protocol::Connect);
    let refused = client.watch_events(WatchEventsRequest::default()).await;
    let refused = match refused {
        Ok(mut stream) => stream.message().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(refused.code, connectrpc::ErrorCode::ResourceExhausted);
    assert!(refused.message.unwrap().contains("32 watches of this caller are open"));
    // Another's has its seat.
    let _other = Lines::of(&daemon, &["events", "--json"]);
    for round in 0..40 {
        daemon.guestnet(&["vm", "create", &format!("a{round}"), &format!("b{round}"), &format!("c{round}")]);
    }
    let listed = client.list_vm_networks(ListVmNetworksRequest::default()).await.unwrap().into_owned();
    assert_eq!(listed.vm_networks.len(), 120);
    // Who looks for what is wrong needs no seat among those who watch.
    for (looking, says) in [
        (&["doctor"] as &[_], "problems"),
        (&["doctor", "a0"], "packets stop at: tap"),
        (&["events", "--no-follow"], "bound"),
    ] {
        let output = daemon.client(looking);
        assert!(
            text(&output).contains(says) && !text(&output).contains("watches are open"),
            "{}",
            text(&output)
        );
    }
}

#[test]
fn health_and_reflection_answer_as_grpc_has_them() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let health =
        |service: &str| post(&lab, &daemon, "grpc.health.v1.Health/Check", &json!({"service": service}));
    assert_eq!(health("")["status"], "SERVING");
    assert_eq!(health("guestnet.v1.GuestNetworkService")["status"], "SERVING");
    assert_eq!(health("nobody")["code"], "not_found");
}
