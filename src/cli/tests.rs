use clap::{CommandFactory, Parser};

use super::gen_arguments::Asked;
use super::*;
use crate::guestcfg::{Dialect, Form, GuestFile, NetworkConfigVersion, Target};

fn asked(arguments: &str) -> Result<Asked, clap::Error> {
    let arguments = ["guestnet", "gen"].into_iter().chain(arguments.split(' '));
    let Command::Gen(command) = Arguments::try_parse_from(arguments)?.command else { panic!("gen is gen") };
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

#[test]
fn a_vm_id_that_is_none_is_refused_before_any_call() {
    let error = Arguments::try_parse_from(["guestnet", "vm", "create", "../etc"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("../etc") && error.to_string().contains("1 to 64"), "{error}");
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
    assert!(refused("cloud-init vm1 --form iso").contains("seed-image"));
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
fn a_reader_that_has_gone_is_no_failure() {
    struct Gone(io::ErrorKind);
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert_eq!(write(&mut Gone(io::ErrorKind::BrokenPipe), b"text"), 0);
    assert_eq!(write(&mut Gone(io::ErrorKind::StorageFull), b"text"), 1);
}
