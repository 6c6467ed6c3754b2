//! `guestnet gen`: what an image builder gets without a service, and that a VM is told the same in every way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
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
}

#[test]
fn bad_input_is_refused_with_the_value_named() {
    let guest = |hostname| {
        let flags = ["--ip", "10.0.0.2", "--prefix", "24", "--gateway", "10.0.0.1", "--hostname", hostname];
        [&["json", "--offline"], &flags[..]].concat()
    };
    let long = "a".repeat(64);
    for name in ["a b", "a\"b", "a'b", "a\nb", "a;b", "a.b", "12345", "", "ä", long.as_str()] {
        // The value as it came, and what fits.
        assert_refused(&guest(name), &["--hostname", name, "host name"]);
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("user-data");
    let file = file.to_str().unwrap();
    let with = [&["cloud-init"], &GUEST[..], &["--user-data", file]].concat();
    for (content, named) in
        [(&b"\x7fELF\0"[..], "0x00"), (&[b'#'; (1 << 20) + 1], "1048577"), (b"#!/bin/sh\n\xff", "0xff")]
    {
        fs::write(file, content).unwrap();
        assert_refused(&with, &[named]);
    }
    fs::write(file, "").unwrap();
    assert!(run(&with).status.success(), "empty user-data is user-data");
    // Digits alone are a MAC, and text in YAML.
    let (seed, _) = offline("cloud-init", &["--mac", "02:00:10:20:30:40"]);
    assert!(seed.contains("macaddress: \"02:00:10:20:30:40\""), "{seed}");
    let route = [&["shell"], &GUEST[..], &["--route", "10.1.0.0/16 via 10.200.0.1"]].concat();
    assert_refused(&route, &["10.1.0.0/16 via 10.200.0.1", "10.100.0.0/16"]);
}

#[test]
fn a_vm_managers_arguments_need_no_service_either() {
    let (arguments, _) = offline("qemu-microvm", &[]);
    assert!(arguments.starts_with("-netdev tap,id=guestnet0,ifname=tap0,"), "{arguments}");
    let host = ["--vm-id", "web_1", "--tap-device", "tap7"];
    let (documents, _) = offline("firecracker", &host);
    assert!(documents.contains("--netns /run/netns/vm-web_1\n"), "{documents}");
    assert!(documents.contains("\"host_dev_name\": \"tap7\""), "{documents}");
}

#[test]
fn dhcp_settings_are_installed_for_the_clients_that_an_image_has() {
    let image = tempfile::tempdir().unwrap();
    let root = image.path().to_str().unwrap();
    assert_refused(&["dhcp", "--root", root], &[root, "udhcpc", "--client"]);
    fs::create_dir_all(image.path().join("usr/sbin")).unwrap();
    fs::write(image.path().join("usr/sbin/dhclient"), "").unwrap();
    let installed = run(&["dhcp", "--root", root]);
    assert_eq!(text(&installed), "etc/dhcp/dhclient.conf\n");
    // Again it is the same; what the image says otherwise is not lost unasked.
    assert!(run(&["dhcp", "--root", root]).status.success());
    let settings = image.path().join("etc/dhcp/dhclient.conf");
    fs::write(&settings, "timeout 300;\n").unwrap();
    assert_refused(&["dhcp", "--root", root], &["etc/dhcp/dhclient.conf", "--replace"]);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "timeout 300;\n");
    assert!(run(&["dhcp", "--root", root, "--replace"]).status.success());
    assert!(fs::read_to_string(&settings).unwrap().contains("select-timeout 0;"));
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(run(&["dhcp", "--root", root]).status.success());
    assert_eq!(fs::metadata(&settings).unwrap().permissions().mode() & 0o777, 0o644, "as it has to be read");
    run(&["dhcp", "--root", root, "--client", "udhcpc", "--client", "networkd"]);
    let mode = |path: &str| fs::metadata(image.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("etc/udhcpc/default.script"), mode("etc/init.d/S40guestnet")), (0o755, 0o755));
    assert_eq!(mode("etc/systemd/network/95-guestnet-dhcp.network"), 0o644);
}

#[test]
fn dhcp_settings_can_be_read_in_the_guest_whatever_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    let command =
        format!("umask 077; mkdir image; exec {} gen dhcp --root image", guestnet_binary().display());
    let all = ["udhcpc", "dhclient", "dhcpcd", "networkd"].map(|client| format!(" --client {client}"));
    let installed = Command::new("sh")
        .args(["-c", &format!("{command}{}", all.concat())])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(installed.status.success(), "{}", text(&installed));
    let mut folders = vec![directory.path().join("image")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            let path = entry.path();
            let executable = path.is_dir() || path.to_str().unwrap().contains("/etc/init.d/");
            let executable = executable || path.ends_with("default.script");
            assert_eq!(mode, if executable { 0o755 } else { 0o644 }, "{}", path.display());
            if path.is_dir() { folders.push(path) } else { seen += 1 }
        }
    }
    assert_eq!(seen, 7);
}

#[test]
fn a_dhcp_client_is_looked_for_as_the_image_sees_its_links() {
    let directory = tempfile::tempdir().unwrap();
    let (image, outside) = (directory.path().join("image"), directory.path().join("outside"));
    fs::create_dir_all(image.join("usr/bin")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("dhclient"), "").unwrap();
    std::os::unix::fs::symlink(&outside, image.join("sbin")).unwrap();
    assert_refused(&["dhcp", "--root", image.to_str().unwrap()], &["--client"]);
    fs::write(image.join("usr/bin/busybox"), "").unwrap();
    std::os::unix::fs::symlink("/usr/bin", image.join("bin")).unwrap();
    fs::remove_file(image.join("sbin")).unwrap();
    std::os::unix::fs::symlink("/usr/bin", image.join("sbin")).unwrap();
    std::os::unix::fs::symlink("/nowhere/dhcpcd", image.join("usr/bin/dhcpcd")).unwrap();
    let installed = run(&["dhcp", "--root", image.to_str().unwrap()]);
    assert_eq!(text(&installed), "etc/udhcpc/default.script\netc/init.d/S40guestnet\netc/dhcpcd.conf\n");
}

#[test]
fn dhcp_settings_never_leave_the_image_by_its_links() {
    let directory = tempfile::tempdir().unwrap();
    let (image, outside) = (directory.path().join("image"), directory.path().join("outside"));
    fs::create_dir_all(&image).unwrap();
    fs::create_dir_all(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, image.join("etc")).unwrap();
    assert_refused(&["dhcp", "--client", "dhcpcd", "--root", image.to_str().unwrap()], &["leads out"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn dhcp_settings_come_as_an_archive_too() {
    let directory = tempfile::tempdir().unwrap();
    let archive = run(&["dhcp"]);
    assert!(archive.status.success(), "{}", text(&archive));
    let tar = directory.path().join("dhcp.tar");
    fs::write(&tar, &archive.stdout).unwrap();
    let listed = Command::new("tar").arg("-tvf").arg(&tar).output().unwrap();
    let listed = text(&listed);
    for line in ["-rwxr-xr-x", "etc/udhcpc/default.script", "etc/dhcpcd.conf", "etc/dhcp/dhclient.conf"] {
        assert!(listed.contains(line), "{listed}");
    }
    assert_eq!(run(&["dhcp"]).stdout, archive.stdout, "the same bytes every time");
}

#[test]
fn a_full_disk_is_named_and_leaves_no_half_folder() {
    let lab = Lab::new();
    let small = lab.directory().join("small");
    fs::create_dir(&small).unwrap();
    lab.on_host("mount", &["-t", "tmpfs", "-o", "size=16k", "full", small.to_str().unwrap()]);
    let out = small.join("seed");
    let image = ["gen", "cloud-init", "--form", "seed-image", "--out", out.to_str().unwrap()];
    let output = lab.host_command(guestnet_binary()).args(image).args(GUEST).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("seed.img") && said.contains("No space left"), "{said}");
    assert_eq!(lab.on_host("ls", &[small.to_str().unwrap()]), "");
}

#[test]
fn every_vm_of_the_service_gets_a_folder_of_its_own() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    for vm in ["web_1", "web_2", "db"] {
        daemon.guestnet(&["vm", "create", vm]);
    }
    daemon.guestnet(&["user-data", "set", "db", "/proc/sys/kernel/ostype"]);
    let out = lab.directory().join("seeds");
    let all = ["gen", "cloud-init", "--all", "--out", out.to_str().unwrap()];
    let said = daemon.client(&all);
    assert!(said.status.success(), "{}", text(&said));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
    for (vm, host_name) in [("web_1", "web-1"), ("web_2", "web-2"), ("db", "db")] {
        let meta_data = fs::read_to_string(out.join(vm).join("meta-data")).unwrap();
        assert!(meta_data.contains(&format!("local-hostname: {host_name:?}")), "{meta_data}");
    }
    assert_eq!(fs::read_to_string(out.join("db/user-data")).unwrap(), "Linux\n");
    assert_ne!(fs::read_to_string(out.join("web_1/user-data")).unwrap(), "Linux\n");
    assert_eq!(daemon.client(&all).status.code(), Some(2), "a folder that exists is not written into");
    // Each is about its own VM.
    let plans = lab.directory().join("plans");
    let all_plans = ["gen", "cloud-init", "--form", "netplan", "--all", "--out", plans.to_str().unwrap()];
    let said = text(&daemon.client(&all_plans));
    assert_eq!(
        said,
        "warning: VM db: user-data of 6 bytes: left out: it is stored with the VM, and this form carries none\n"
    );
    let said = text(&daemon.client(&[
        "gen",
        "cmdline",
        "--all",
        "--out",
        lab.directory().join("c").to_str().unwrap(),
    ]));
    for vm in ["web_1", "web_2", "db"] {
        assert!(said.contains(&format!("warning: VM {vm}: search domain vm.internal: ")), "{said}");
    }
    let refused = daemon.client(&["gen", "cmdline", "--all", "--merge", "ip=dhcp", "--out", "/tmp/x/y"]);
    assert!(text(&refused).contains("of VM db: "), "{}", text(&refused));
}

#[test]
fn user_data_is_kept_with_its_vm_and_goes_with_it() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "web"]);
    let file = lab.directory().join("user-data");
    fs::write(&file, "#cloud-config\nusers: []\n").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(daemon.guestnet(&["user-data", "show", "web"]), "");
    daemon.guestnet(&["user-data", "set", "web", file]);
    daemon.crash();
    let daemon = Daemon::start(&lab);
    assert_eq!(daemon.guestnet(&["user-data", "show", "web"]), "#cloud-config\nusers: []\n");
    let seed = daemon.guestnet(&["gen", "cloud-init", "web"]);
    assert!(seed.contains("users: []"), "{seed}");
    for form in ["boot-args", "cloud.cfg.d", "netplan"] {
        let made = daemon.client(&["gen", "cloud-init", "web", "--form", form]);
        let warned = String::from_utf8_lossy(&made.stderr);
        assert!(
            made.status.success() && warned.contains("user-data of 24 bytes: left out"),
            "{form}: {warned}"
        );
    }
    let unknown = daemon.client(&["user-data", "set", "nobody", file]);
    assert!(text(&unknown).contains("nobody has no network"), "{}", text(&unknown));
    let large = lab.directory().join("large");
    fs::write(&large, vec![b'#'; 256 * 1024 + 1]).unwrap();
    let refused = daemon.client(&["user-data", "set", "web", large.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("262145"), "{}", text(&refused));
    let binary = lab.directory().join("binary");
    fs::write(&binary, b"\x7fELF\0").unwrap();
    let refused = daemon.client(&["user-data", "set", "web", binary.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("user_data") && text(&refused).contains("0x00"), "{}", text(&refused));
    assert_eq!(daemon.guestnet(&["user-data", "show", "web"]), "#cloud-config\nusers: []\n");
    daemon.guestnet(&["vm", "delete", "web"]);
    daemon.guestnet(&["vm", "create", "web"]);
    assert_eq!(daemon.guestnet(&["user-data", "show", "web"]), "");
}

#[test]
fn the_api_renders_what_the_command_line_does() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "web"]);
    let call = |body: &str| -> Value {
        let url = "http://localhost/guestnet.v1.GuestNetworkService/RenderGuestConfig";
        let output = Command::new("curl")
            .args(["-s", "--unix-socket"])
            .arg(daemon.socket())
            .args(["-H", "Content-Type: application/json", "-d", body, url])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    };
    let decoded = |file: &Value| {
        let content = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            file["content"].as_str().unwrap(),
        );
        String::from_utf8(content.unwrap()).unwrap()
    };
    let answer = call(r#"{"vmId":"web","target":"cmdline","merge":"quiet"}"#);
    assert_eq!(decoded(&answer["files"][0]), daemon.guestnet(&["gen", "cmdline", "web", "--merge", "quiet"]));
    assert_eq!(answer["warnings"][0]["fact"], "search");
    let answer = call(r#"{"vmId":"web","target":"cloud-init","form":"boot-args"}"#);
    assert_eq!(
        decoded(&answer["files"][0]),
        daemon.guestnet(&["gen", "cloud-init", "web", "--form", "boot-args"])
    );
    let file = lab.directory().join("user-data");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    daemon.guestnet(&["user-data", "set", "web", file.to_str().unwrap()]);
    let answer = call(r#"{"vmId":"web","target":"cloud-init","form":"netplan"}"#);
    assert_eq!(answer["warnings"][0]["fact"], "user-data", "{answer}");
    let answer = call(r#"{"vmId":"web","target":"firecracker"}"#);
    assert!(decoded(&answer["files"][0]).contains("\"host_dev_name\": \"tap0\""));
    for (body, named) in [
        (r#"{"vmId":"web","target":"netword"}"#, "netword"),
        (r#"{"vmId":"web","target":"networkd","dialect":"klibc"}"#, "klibc"),
        (r#"{"vmId":"web","target":"cmdline","merge":"ip=dhcp"}"#, "ip=dhcp"),
        (r#"{"vmId":"web","target":"cloud-init","form":"floppy"}"#, "floppy"),
    ] {
        let answer = call(body);
        assert_eq!(answer["code"], "invalid_argument", "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(named), "{answer}");
    }
    assert_eq!(call(r#"{"vmId":"nobody","target":"json"}"#)["code"], "not_found");
}

/// The commands of a section of the README, as a reader pastes them: the lines of its `sh` blocks.
fn commands_of_the_readme(section: &str) -> Vec<String> {
    let readme = include_str!("../../README.md");
    let section = readme.split("\n## ").find(|part| part.starts_with(section)).expect("the section");
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

/// Runs them in the folder `here`; each with what it printed.
pub(crate) fn run_the_readme(lab: &Lab, daemon: &Daemon<'_>, here: &Path) -> Vec<(String, String)> {
    let binaries = guestnet_binary().parent().unwrap().to_owned();
    // The lab's host is root already, and a machine may have no sudo.
    let own = lab.directory().join("own-bin");
    fs::create_dir_all(&own).unwrap();
    let sudo = own.join("sudo");
    fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(&sudo, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}:{}", own.display(), binaries.display(), std::env::var("PATH").unwrap());
    let commands = commands_of_the_readme("How a guest gets its address").into_iter();
    let run = commands.map(|command| {
        let mut shell = lab.host_command("sh");
        shell
            .args(["-ec", &format!("cd {}; {command}", here.display())])
            .env("PATH", &path)
            .env("GUESTNET_SOCKET", daemon.socket());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{command}: {}", text(&output));
        (command, String::from_utf8_lossy(&output.stdout).into_owned())
    });
    run.collect()
}

#[test]
fn the_commands_of_the_readme_work_as_they_are() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "web-1"]);
    let here = lab.directory().join("here");
    fs::create_dir_all(here.join("rootfs/bin")).unwrap();
    fs::write(here.join("rootfs/bin/busybox"), "").unwrap();
    let said = run_the_readme(&lab, &daemon, &here);
    assert_eq!(said.len(), 5);
    let printed: String = said.into_iter().map(|(_, printed)| printed).collect();
    assert!(here.join("rootfs/etc/udhcpc/default.script").exists() && here.join("seed/seed.img").exists());
    for said in [
        "console=ttyS0 reboot=k panic=1 ip=10.100.0.2::10.100.0.1:255.255.0.0:web-1:eth0:off:10.100.0.1\n",
        "console=ttyS0 reboot=k panic=1 ds=nocloud;i=iid-",
        "ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:8.8.8.8:8.8.4.4\n",
    ] {
        assert!(printed.contains(said), "{said:?} is not in {printed}");
    }
}

#[test]
fn every_row_of_the_table_in_the_docs_links_to_a_test_that_exists() {
    let page = include_str!("../../docs/guest-configuration.md");
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let rows: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| `") && line.contains("golden")).collect();
    assert!(rows.len() > 25, "{rows:?}");
    for row in rows {
        let links: Vec<(&str, &str)> = row
            .split('[')
            .skip(1)
            .map(|link| link.split_once("](").unwrap())
            .map(|(a, b)| (a, b.split(')').next().unwrap()))
            .collect();
        assert!(links.len() >= 2, "{row}");
        for (name, path) in links {
            let file = fs::read_to_string(docs.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            let name = name.trim_matches('`').trim_end_matches('…');
            assert!(name == "golden" || file.contains(&format!("fn {name}")), "{path} has no test {name}");
        }
    }
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

#[test]
fn what_a_networks_options_say_reaches_every_way_or_is_named() {
    let lab = Lab::new();
    let options = r#"{ ntp_servers = ["10.100.0.1"], static_routes = ["10.1.0.0/16 via 10.100.0.9"], bootfile_name = "a" }"#;
    let daemon = Daemon::start_with(&lab, &format!("[[network]]\ndhcp_options = {options}\n"));
    daemon.guestnet(&["vm", "create", "web"]);
    // A VM's own go before its network's.
    daemon.guestnet(&["vm", "create", "db", "--dhcp-options", "ntp_servers = [\"10.100.0.7\"]"]);
    let facts: Value = serde_json::from_str(&daemon.guestnet(&["gen", "json", "db"])).unwrap();
    let told = json!({"ntp_servers": ["10.100.0.7"], "bootfile_name": "a", "static_routes": ["10.1.0.0/16 via 10.100.0.9"]});
    assert_eq!(facts["dhcp_options"], told);
    assert_eq!(daemon.json(&["vm", "show", "db"])["dhcp_options"], told);
    let line = daemon.client(&["gen", "cmdline", "db", "--dialect", "dracut"]);
    let (line, warned) = (String::from_utf8_lossy(&line.stdout), String::from_utf8_lossy(&line.stderr));
    assert!(line.contains(" rd.route=10.1.0.0/16:10.100.0.9:eth0 "), "{line}");
    assert!(warned.contains("NTP server 10.100.0.7") && warned.contains("bootfile_name"), "{warned}");
    let unit = daemon.guestnet(&["gen", "networkd", "web"]);
    assert!(unit.contains("NTP=10.100.0.1\n") && unit.contains("Destination=10.1.0.0/16\n"), "{unit}");
}
