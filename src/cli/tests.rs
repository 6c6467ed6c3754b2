use clap::{CommandFactory, Parser};

use super::*;

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
    assert_eq!(write(&mut Gone(io::ErrorKind::BrokenPipe), "text"), 0);
    assert_eq!(write(&mut Gone(io::ErrorKind::StorageFull), "text"), 1);
}
