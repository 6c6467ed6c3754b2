//! What is refused, with a message that names the value and what would fit, and with the host left as it was.

use std::process::Command;

use crate::lab::daemon::{Paths, config, serve_command};
use crate::lab::{Daemon, Lab, assert_same, assert_says, guestnet_binary, text};

/// Starts the daemon, which has to refuse; everything on the host is as before.
fn assert_refused(lab: &Lab, networks: &str, code: i32, named: &[&str]) {
    assert_command_refused(lab, &mut serve_command(lab, networks), code, named);
}

fn assert_command_refused(lab: &Lab, command: &mut Command, code: i32, named: &[&str]) {
    let before = lab.host_state();
    let output = command.output().expect("running guestnet");
    assert_says(&output, code, named);
    assert_same(&before, &lab.host_state());
}

#[test]
fn a_configuration_that_does_not_fit_is_refused_before_anything_is_touched() {
    let lab = Lab::new();
    assert_refused(&lab, "[[network]]\nbridge = \"br0\"", 2, &["network[0].bridge", "bridge_name"]);
    assert_refused(
        &lab,
        "[[network]]\nbridge_name = \"br-thirteen-c\"",
        2,
        &["network[0].bridge_name", "br-thirteen-c", "12"],
    );
    assert_refused(
        &lab,
        "[[network]]\nvm_subnet = \"10.100.0.0/33\"",
        2,
        &["network[0].vm_subnet", "10.100.0.0/33"],
    );
    assert_refused(&lab, "[[network]]\nrate_limit_mbps = 0", 2, &["network[0].rate_limit_mbps", "0"]);
    let mut by_environment = serve_command(&lab, "");
    by_environment.env("UNKEY_METALD_NETWORK_BRIDGE_IP", "10.101.0.1/16");
    assert_command_refused(&lab, &mut by_environment, 2, &["10.101.0.1/16"]);
    let mut missing = lab.host_command(guestnet_binary());
    missing.args(["serve", "--config", "/nowhere/guestnet.toml"]);
    assert_command_refused(&lab, &mut missing, 2, &["/nowhere/guestnet.toml"]);
}

#[test]
fn a_subnet_that_overlaps_a_route_of_the_host_is_refused_with_the_route() {
    let lab = Lab::new();
    lab.on_host("ip", &["route", "add", "10.100.7.0/24", "via", "198.51.100.10"]);
    assert_refused(&lab, "", 2, &["10.100.0.0/16", "10.100.7.0/24 via 198.51.100.10 dev up0"]);
}

#[test]
fn a_bridge_that_somebody_else_made_is_refused_and_left_alone() {
    let lab = Lab::new();
    lab.on_host("ip", &["link", "add", "br-vms", "type", "bridge"]);
    assert_refused(&lab, "", 2, &["br-vms", "bridge_name"]);
}

#[test]
fn without_root_nothing_is_tried() {
    let lab = Lab::new();
    let paths = Paths::of(&lab);
    lab.on_host("chmod", &["755", &lab.directory().display().to_string()]);
    std::fs::write(&paths.config, config(&lab, "")).unwrap();
    let mut unprivileged = lab.host_command("setpriv");
    unprivileged.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(guestnet_binary());
    unprivileged.arg("serve").arg("--config").arg(&paths.config);
    assert_command_refused(&lab, &mut unprivileged, 1, &["root"]);
}

#[test]
fn a_second_guestnet_on_the_same_state_directory_is_refused() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let paths = Paths::of(&lab);
    let state = paths.state.display().to_string();
    assert_refused(&lab, "", 1, &[&state, &format!("pid {}", daemon.pid())]);
    // The first one has not suffered.
    daemon.guestnet(&["vm", "list"]);
}

#[test]
fn a_start_that_fails_half_way_takes_back_what_it_made() {
    let lab = Lab::new();
    // A resolver on the wildcard address is in the way of ours, which is found out when the bridge stands already.
    let in_the_way = lab.host.run(|| std::net::UdpSocket::bind("0.0.0.0:53").unwrap());
    assert_refused(&lab, "", 1, &["10.100.0.1:53"]);
    drop(in_the_way);
    Daemon::start(&lab);
}

#[test]
fn a_vm_that_does_not_fit_is_refused_by_name() {
    let lab = Lab::new();
    let daemon =
        Daemon::start_with(&lab, "[[network]]\nbridge_ip = \"10.9.0.1/30\"\nvm_subnet = \"10.9.0.0/30\"\n");
    let before = lab.host_state();
    let refused = |arguments: &[&str], code, named: &[&str]| {
        assert_says(&daemon.client(&[&["vm", "create"], arguments].concat()), code, named);
    };
    refused(&["../../etc"], 2, &["../../etc", "1 to 64"]);
    refused(&["vm1", "--mac", "ff:ff:ff:ff:ff:ff"], 2, &["ff:ff:ff:ff:ff:ff", "unicast"]);
    refused(&["vm1", "--hostname", "a b;c"], 2, &["a b;c"]);
    refused(&["vm1", "--ip", "10.9.0.1"], 2, &["10.9.0.1", "gateway"]);
    refused(&["vm1", "--ip", "10.10.0.2"], 2, &["10.10.0.2", "10.9.0.0/30"]);
    refused(&["vm1", "--network", "other"], 1, &["other", "default"]);
    assert_same(&before, &lab.host_state());

    daemon.guestnet(&["vm", "create", "vm1"]);
    let before = lab.host_state();
    refused(&["vm2", "--mac", "06:00:0a:09:00:02"], 1, &["06:00:0a:09:00:02", "vm1"]);
    refused(&["vm2", "--ip", "10.9.0.2"], 1, &["10.9.0.2", "vm1"]);
    refused(&["vm2"], 1, &["10.9.0.0/30", "1 in use"]);
    refused(&["vm1", "--hostname", "another"], 1, &["vm1", "hostname", "another"]);
    assert_same(&before, &lab.host_state());
}

#[test]
fn the_api_refuses_what_the_command_line_would_not_send() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let before = lab.host_state();
    let post = |body: &str| {
        let mut curl = lab.host_command("curl");
        curl.args(["-sS", "--unix-socket"]).arg(daemon.socket());
        curl.args(["-H", "Content-Type: application/json", "-d", body]);
        curl.arg("http://localhost/guestnet.v1.GuestNetworkService/CreateVmNetwork");
        text(&curl.output().unwrap())
    };
    for (body, named) in [
        (r#"{"vmId":"../../etc"}"#, "../../etc"),
        (r#"{}"#, "vm_id"),
        (r#"{"vmId":"vm1","macAddress":"01:00:5e:00:00:01"}"#, "01:00:5e:00:00:01"),
        (r#"{"vmId":"vm1","rateLimitMbps":100001}"#, "100001"),
    ] {
        let answer = post(body);
        assert!(answer.contains("invalid_argument") && answer.contains(named), "{body}: {answer}");
    }
    assert_same(&before, &lab.host_state());
}

#[test]
fn what_is_not_ours_stands_in_the_way_and_stays() {
    let lab = Lab::new();
    lab.on_host("ip", &["link", "add", "gv0", "type", "bridge"]);
    lab.on_host("ip", &["netns", "add", "guestnet-1"]);
    let daemon = Daemon::start(&lab);
    lab.on_host("ip", &["netns", "add", "vm-vm1"]);
    let before = lab.host_state();
    assert_says(&daemon.client(&["vm", "create", "vm1"]), 1, &["vm-vm1", "exists"]);
    assert_same(&before, &lab.host_state());
    // The names of a slot are left out where somebody has them.
    assert_eq!(daemon.json(&["vm", "create", "vm2"])["host_device"], "gv2");
    lab.on_host("ip", &["netns", "del", "vm-vm1"]);
    daemon.guestnet(&["vm", "create", "vm1"]);
    lab.on_host("ip", &["link", "show", "gv0"]);
    lab.on_host("ip", &["netns", "exec", "guestnet-1", "true"]);
}

#[test]
fn a_client_without_a_service_is_told_what_to_start() {
    let lab = Lab::new();
    let mut client = lab.host_command(guestnet_binary());
    client.args(["--socket", "/run/none.sock", "vm", "list"]);
    assert_says(&client.output().unwrap(), 1, &["/run/none.sock", "guestnet serve"]);
}
