use std::os::unix::net::UnixListener;
use std::path::Path;

use clap::Parser;

use super::gen_arguments::{Asked, GenCommand};
use super::*;
use crate::guestcfg::{Dialect, Form, GuestFile, NetworkConfigVersion, Target};

fn asked(arguments: &str) -> Result<Asked, clap::Error> {
    let arguments = ["guestnet", "gen"].into_iter().chain(arguments.split(' '));
    let Command::Gen(GenCommand::Target(command)) = Arguments::try_parse_from(arguments)?.command else {
        panic!("gen is gen")
    };
    Ok(command.into())
}

fn refused(arguments: &str) -> String {
    let error = asked(arguments).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn the_arguments_are_consistent() {
    Arguments::command().debug_assert();
}

fn parsed(arguments: &str) -> Result<Arguments, clap::Error> {
    parse(["guestnet"].into_iter().chain(arguments.split_whitespace()).map(Into::into))
}

#[test]
fn wrong_usage_is_refused_before_anybody_is_called() {
    for (arguments, named) in [
        ("vm create ../etc", &["../etc", "1 to 64"] as &[_]),
        ("vm show a/b", &["a/b", "1 to 64"]),
        ("vm delete a ..", &["..", "1 to 64"]),
        ("vm delete", &["VM_ID"]),
        ("vm create a --ip 10.100.0.300", &["10.100.0.300"]),
        ("vm create a --ip fd00::1", &["fd00::1"]),
        ("vm create a --mac ff:ff:ff:ff:ff:ff", &["unicast"]),
        ("vm create a --hostname a_b", &["a_b", "label"]),
        ("vm create a --workspace a/b", &["--workspace", "a/b"]),
        ("vm create a --rate-mbps 100001", &["1 to 100000"]),
        ("vm create a --rate-mbps fast", &["fast", "1 to 100000"]),
        ("vm create a --network BIG", &["BIG", "network name"]),
        ("vm list --output yaml", &["table, json"]),
        ("vm list --json --output table", &["cannot be used with"]),
        ("vm frobnicate", &["frobnicate"]),
        ("serve --socket /run/other.sock", &["[api]"]),
        ("--json serve", &["[api]"]),
        ("uninstall --output json", &["[api]"]),
    ] {
        let error = parsed(arguments).expect_err(arguments);
        assert_eq!(error.exit_code(), 2, "{arguments}");
        for name in named {
            assert!(error.to_string().contains(name), "{arguments}: no {name:?} in {error}");
        }
    }
    parsed("serve --config /etc/guestnet/guestnet.toml").unwrap();
}

async fn fails(socket: &Path, arguments: &str) -> CliError {
    let arguments = parsed(&format!("{arguments} --socket {}", socket.display())).unwrap();
    execute(arguments).await.unwrap_err()
}

#[tokio::test]
async fn without_a_service_the_error_names_the_socket_and_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = folder.path().join("guestnet.sock");
    let stale = folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [&nothing, &stale] {
        let error = fails(socket, "vm delete a b").await;
        assert_eq!(error.exit_code(), 1);
        for name in [socket.to_str().unwrap(), "systemctl status guestnet", "guestnet serve"] {
            assert!(error.to_string().contains(name), "no {name:?} in {error}");
        }
    }
}

#[tokio::test]
async fn a_socket_of_somebody_else_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("other.sock");
    let other = tokio::net::UnixListener::bind(&socket).unwrap();
    let closes = tokio::spawn(async move { while other.accept().await.is_ok() {} });
    let error = fails(&socket, "vm list").await;
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("other.sock") && error.to_string().contains("broke off"), "{error}");
    closes.abort();
}

#[test]
fn a_socket_that_may_not_be_opened_is_not_taken_for_a_service_that_is_down() {
    let denied =
        ConnectError::unavailable("connect").with_source(io::Error::from(io::ErrorKind::PermissionDenied));
    let error = client::failed(Path::new("/run/x.sock"), denied).to_string();
    assert!(error.contains("/run/x.sock") && error.contains("member of the socket's group"), "{error}");
}

#[test]
fn offline_needs_address_subnet_and_gateway() {
    let parsed = |more: &[&str]| Arguments::try_parse_from([&["guestnet", "gen", "cmdline"], more].concat());
    assert!(parsed(&["--offline", "--ip", "10.100.1.2"]).is_err());
    assert!(parsed(&[]).is_err(), "neither a VM nor --offline");
    assert!(parsed(&["vm1", "--ip", "10.100.1.2"]).is_err());
    let all = ["--offline", "--ip", "10.100.1.2", "--prefix", "10.100.0.0/16", "--gateway", "10.100.0.1"];
    assert!(parsed(&all).is_ok());
}

#[test]
fn every_target_has_a_command_of_its_name() {
    for target in Target::NAMED {
        assert_eq!(asked(&format!("{} vm1", target.name())).unwrap().target, target);
    }
    assert_eq!(asked("cmdline vm1").unwrap().target, Target::Cmdline(Dialect::Kernel));
    let seed = asked("cloud-init vm1 --form seed-image --network-config v1 --user-data u --out o").unwrap();
    assert_eq!(seed.target, Target::CloudInit(Form::SeedImage, NetworkConfigVersion::V1));
    assert_eq!((seed.user_data, seed.out), (Some("u".into()), Some("o".into())));
}

#[test]
fn a_target_takes_what_it_has_a_place_for() {
    for target in Target::NAMED {
        let merged = asked(&format!("{} vm1 --merge quiet", target.name())).map(|asked| asked.merge);
        let takes = matches!(merged, Ok(Some(line)) if line == "quiet");
        assert_eq!(takes, target.takes_merge(), "{target}");
    }
    assert_eq!(asked("cmdline vm1 --device ens3").unwrap().device.as_str(), "ens3");
    assert_eq!(asked("cmdline vm1 --merge --x").unwrap().merge.as_deref(), Some("--x"));
    assert!(refused("networkd vm1 --device ens3").contains("--device"));
}

#[test]
fn a_value_that_would_smuggle_something_is_refused_by_its_own_type() {
    let offline = "--offline --ip 10.100.1.2 --gateway 10.100.0.1";
    assert!(refused(&format!("cmdline {offline} --prefix 31")).contains("8 to 30"));
    assert!(refused(&format!("cmdline {offline} --prefix 16 --hostname vm1;reboot")).contains("vm1;reboot"));
    assert!(refused("cmdline vm1 --device eth0:off").contains("network card"));
    assert!(refused("cmdline vm1 --dialect grub").contains("klibc"));
    assert!(refused("cloud-init vm1 --form floppy").contains("seed-image"));
    assert!(refused("cloud-init vm1 --network-config v3").contains("v1 or v2"));
}

#[test]
fn files_are_printed_unless_a_terminal_would_suffer() {
    let file = |path: &str, bytes: &[u8]| GuestFile { path: path.into(), mode: 0o644, bytes: bytes.to_vec() };
    let (text, binary) = (file("a", b"one\n"), file("seed.img", b"\xeb\0"));
    let shown = |files: &[GuestFile], on_terminal| {
        generate::printed(files, on_terminal).map_err(|error| (error.exit_code(), error.to_string()))
    };
    assert_eq!(shown(std::slice::from_ref(&text), true).unwrap(), b"one\n");
    assert_eq!(shown(&[text.clone(), text.clone()], true).unwrap(), b"==> a <==\none\n\n==> a <==\none\n");
    assert_eq!(shown(std::slice::from_ref(&binary), false).unwrap(), b"\xeb\0");
    for (files, on_terminal) in [(vec![binary.clone()], true), (vec![text, binary], false)] {
        let (code, error) = shown(&files, on_terminal).unwrap_err();
        assert!(code == 2 && error.contains("seed.img") && error.contains("--out"), "{error}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is_one() {
    struct Gone(io::ErrorKind);
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    write(&mut Gone(io::ErrorKind::BrokenPipe), b"text").unwrap();
    let error = write(&mut Gone(io::ErrorKind::StorageFull), b"text").unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("writing the output"), "{error}");
}
