//! `guestnet gen`: what an image builder gets without a service, and that a VM is told the same in every way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::lab::{Daemon, Lab, guestnet_binary, text};

const GUEST: [&str; 9] = [
    "--offline",
    "--ip",
    "10.100.1.2",
    "--prefix",
    "10.100.0.0/16",
    "--gateway",
    "10.100.0.1",
    "--hostname",
    "vm1",
];

fn run(arguments: &[&str]) -> Output {
    // Nobody listens there: --offline asks no service.
    let mut command = Command::new(guestnet_binary());
    command.arg("gen").args(arguments).env("GUESTNET_SOCKET", "/nonexistent/guestnet.sock");
    command.output().expect("running guestnet")
}

/// For the guest of `GUEST`: standard output and standard error.
fn offline(target: &str, more: &[&str]) -> (String, String) {
    let output = run(&[&[target], &GUEST[..], more].concat());
    assert!(output.status.success(), "{target} {more:?}: {}", text(&output));
    let utf8 = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (utf8(output.stdout), utf8(output.stderr))
}

fn assert_refused(arguments: &[&str], named: &[&str]) {
    let output = run(arguments);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{said}");
    for name in named {
        assert!(said.contains(name), "no {name:?} in: {said}");
    }
}

#[test]
fn standard_output_is_the_text_alone_and_warnings_go_beside_it() {
    let (line, said) = offline("cmdline", &["--merge", "console=ttyS0"]);
    assert_eq!(line, "console=ttyS0 ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:10.100.0.1\n");
    assert!(said.starts_with("warning: ") && said.contains("vm.internal"), "{said}");
    let (line, _) = offline("cmdline", &["--dialect", "systemd", "--mtu", "1400", "--device", "ens3"]);
    assert_eq!(
        line,
        "ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:ens3:off:1400 nameserver=10.100.0.1 systemd.hostname=vm1\n"
    );
    let (facts, said) = offline("env", &[]);
    assert!(facts.contains("GUESTNET_GATEWAY=10.100.0.1\n") && said.is_empty(), "{facts}{said}");
}

#[test]
fn several_files_are_printed_each_under_its_path() {
    let (seed, _) = offline("cloud-init", &[]);
    let paths: Vec<&str> = seed.lines().filter(|line| line.starts_with("==> ")).collect();
    assert_eq!(
        paths,
        ["==> meta-data <==", "==> user-data <==", "==> network-config <==", "==> vendor-data <=="]
    );
    let (units, _) = offline("networkd", &[]);
    assert!(units.starts_with("==> etc/systemd/network/") && units.contains("Gateway=10.100.0.1"), "{units}");
}

#[test]
fn files_are_written_into_a_new_folder_and_never_into_one_that_exists() {
    let directory = tempfile::tempdir().unwrap();
    let user_data = directory.path().join("user-data");
    fs::write(&user_data, "#cloud-config\npassword: secret\n").unwrap();
    let seed = directory.path().join("seed");
    let (user_data, out) = (user_data.to_str().unwrap(), seed.to_str().unwrap());
    let (printed, _) = offline("cloud-init", &["--user-data", user_data, "--out", out]);
    assert_eq!(printed, "");
    assert_eq!(fs::read(seed.join("user-data")).unwrap(), fs::read(user_data).unwrap());
    assert_eq!(fs::metadata(seed.join("user-data")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(seed.join("meta-data")).unwrap().contains("vm1"));
    let again = [&["cloud-init"], &GUEST[..], &["--out", out]].concat();
    assert_refused(&again, &[out, "exists"]);
    let plan = directory.path().join("plan");
    offline("cloud-init", &["--form", "netplan", "--out", plan.to_str().unwrap()]);
    assert!(plan.join("etc/netplan/60-guestnet.yaml").exists() && plan.join("etc/hostname").exists());
}

#[test]
fn a_seed_image_goes_to_a_pipe_a_file_or_json_as_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("image");
    let image = run(&[&["cloud-init", "--form", "seed-image"], &GUEST[..]].concat());
    assert!(image.status.success(), "{}", String::from_utf8_lossy(&image.stderr));
    offline("cloud-init", &["--form", "seed-image", "--out", out.to_str().unwrap()]);
    assert!(fs::read(out.join("seed.img")).unwrap() == image.stdout);
    let (document, _) = offline("cloud-init", &["--form", "seed-image", "--json"]);
    let document: Value = serde_json::from_str(&document).unwrap();
    let file = &document["files"][0];
    assert_eq!((&file["path"], &file["mode"]), (&json!("seed.img"), &json!("0600")));
    assert!(file["content_base64"].as_str().unwrap().len() > image.stdout.len());
}

#[test]
fn json_has_the_files_and_the_warnings() {
    let (document, said) = offline("cmdline", &["--json"]);
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["files"][0]["path"], "cmdline");
    assert!(document["files"][0]["content"].as_str().unwrap().starts_with("ip=10.100.1.2::"));
    assert_eq!(document["warnings"][0]["fact"], "search");
    assert_eq!(said, "");
}

#[test]
fn a_guest_that_could_not_be_online_is_refused_with_the_value_named() {
    let guest = |ip, prefix, gateway, hostname| {
        let flags = ["--ip", ip, "--prefix", prefix, "--gateway", gateway, "--hostname", hostname];
        [&["cmdline", "--offline"], &flags[..]].concat()
    };
    assert_refused(
        &guest("10.100.1.2", "10.100.0.0/16", "10.200.0.1", "vm1"),
        &["10.200.0.1", "10.100.0.0/16"],
    );
    assert_refused(
        &guest("10.100.1.2", "10.100.0.0/16", "10.100.1.2", "vm1"),
        &["10.100.1.2", "own address"],
    );
    assert_refused(&guest("10.0.0.2", "31", "10.0.0.3", "vm1"), &["31", "8 to 30"]);
    assert_refused(&guest("10.0.0.2", "10.0.0.2/31", "10.0.0.3", "vm1"), &["10.0.0.2/31", "8 to 30"]);
    assert_refused(&guest("10.0.0.2", "24", "10.0.0.1", "vm1;reboot"), &["vm1;reboot", "host name"]);
    assert_refused(&guest("10.0.0.2", "24", "10.0.0.1", "vm1 init=/bin/sh"), &["init=/bin/sh", "host name"]);
    let with = |more: &[&'static str]| [more, &GUEST[..]].concat();
    assert_refused(&with(&["cmdline", "--merge", "quiet ip=dhcp"]), &["ip=dhcp", "remove it"]);
    assert_refused(&with(&["cloud-init", "--form", "netplan", "--network-config", "v1"]), &["netplan"]);
    assert_refused(&with(&["firecracker"]), &["firecracker", "TAP", "VM of the service"]);
}

#[test]
fn a_vm_is_told_the_same_by_command_line_cloud_init_and_lease() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\nmtu = 1400\ndomain = \"guests.example\"\n");
    daemon.guestnet(&["vm", "create", "web_1", "--ip", "10.100.9.9"]);
    let lease = &daemon.json(&["lease", "list"])[0];
    assert_eq!((&lease["ip_address"], &lease["hostname"]), (&json!("10.100.9.9"), &json!("web-1")));
    let output = daemon.client(&["gen", "cmdline", "web_1"]);
    let line = "ip=10.100.9.9::10.100.0.1:255.255.0.0:web-1:eth0:off:10.100.0.1\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), line);
    let warnings = String::from_utf8_lossy(&output.stderr);
    assert!(warnings.contains("1400") && warnings.contains("guests.example"), "{warnings}");

    let seed = daemon.guestnet(&["gen", "cloud-init", "web_1"]);
    let mac = lease["mac_address"].as_str().unwrap();
    for said in [mac, "10.100.9.9/16", "10.100.0.1", "mtu: 1400", "guests.example", "\"web-1\""] {
        assert!(seed.contains(said), "no {said:?} in: {seed}");
    }

    // The host's side too, for who starts the VM.
    let made = daemon.json(&["gen", "firecracker", "web_1", "--merge", "reboot=k"]);
    let config = made["files"][0]["content"].as_str().unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    assert_eq!(config["boot-source"]["boot_args"], format!("reboot=k {}", line.trim_end()));
    assert_eq!(config["network-interfaces"][0]["host_dev_name"], "tap0");
    assert_eq!(config["network-interfaces"][0]["guest_mac"], mac);
    assert_eq!(made["files"][2]["content"], "--netns /run/netns/vm-web_1\n");
    let vm = daemon.json(&["vm", "show", "web_1"]);
    let facts: Value = serde_json::from_str(&daemon.guestnet(&["gen", "json", "web_1"])).unwrap();
    for (name, value) in facts.as_object().unwrap() {
        assert_eq!(*value, vm[name], "{name}");
    }
    assert_eq!(daemon.client(&["gen", "networkd", "nobody"]).status.code(), Some(1));
}
