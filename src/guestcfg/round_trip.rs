//! Every target is read back: JSON, YAML, ini files and FAT by crates, what a shell reads by sh, the rest by small readers
//! written from the formats' own manuals. What is said must be
//! the guest's fact, what is not said must be warned of, and docs/guest-configuration.md must say the same.

mod readers;

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::fixtures::{any_guest, demanding_guest, guest, guest_with_options, host_side};
use super::*;
use crate::model::{DhcpOptions, GuestNet, StaticRoute};
pub(in crate::guestcfg) use readers::mime_parts;
use readers::read;

pub(super) fn all_targets() -> Vec<Target> {
    let mut targets = Target::NAMED.to_vec();
    targets.extend(Dialect::ALL.map(Target::Cmdline));
    for form in Form::ALL {
        targets.extend(NetworkConfigVersion::ALL.map(|version| Target::CloudInit(form, version)));
    }
    targets.retain(|target| *target != Target::CloudInit(Form::Netplan, NetworkConfigVersion::V1));
    targets
}

fn made(target: Target, guest: &GuestNet) -> Generated {
    generate(target, guest, &Options { host: Some(host_side()), ..Options::default() }).unwrap()
}

fn link_of(guest: &GuestNet) -> (Ipv4Addr, u8, Ipv4Addr) {
    (guest.address, guest.subnet.prefix_len(), guest.gateway)
}

fn texts<T: ToString>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

/// Generates, reads back, and compares: every fact is said, or named in a warning.
pub(super) fn compare(target: Target, guest: &GuestNet) -> Result<(), TestCaseError> {
    let output = made(target, guest);
    let said = read(target, &output);
    let warned = |fact| -> Vec<String> {
        output.warnings.iter().filter(|warning| warning.fact == fact).map(|w| w.value.clone()).collect()
    };
    for (fact, told, said) in [
        (Fact::Dns, texts(&guest.dns_servers), texts(&said.dns)),
        (Fact::Search, texts(guest.search()), texts(&said.search)),
        (Fact::Ntp, texts(&guest.options.ntp_servers), texts(&said.ntp)),
        (Fact::Route, texts(&guest.options.static_routes), texts(&said.routes)),
    ] {
        // It says nothing but how names are resolved.
        if target == Target::ResolvConf && matches!(fact, Fact::Ntp | Fact::Route) {
            continue;
        }
        let mut left_out = warned(fact);
        for value in told.iter().filter(|value| !said.contains(value)) {
            let at = left_out.iter().position(|other| other == value);
            prop_assert!(at.is_some(), "{target}: {fact} {value} is gone without a word");
            left_out.remove(at.unwrap());
        }
        let mut expected = told.iter();
        prop_assert!(
            said.iter().all(|value| expected.any(|next| next == value)),
            "{target}: {fact}: {said:?}"
        );
        // The kernel's time server is said, and may be trouble.
        prop_assert!(left_out.is_empty() || fact == Fact::Ntp && left_out == said, "{target}: {left_out:?}");
    }
    prop_assert!(said.mac.is_none_or(|mac| mac == guest.mac.to_string()), "{target}");
    if target == Target::ResolvConf {
        return Ok(());
    }
    prop_assert_eq!(said.link, Some(link_of(guest)), "{}", target);
    prop_assert_eq!(said.hostname.as_deref(), Some(guest.hostname.as_str()), "{}", target);
    let default = guest.mtu == 1500;
    prop_assert!(
        said.mtu == Some(guest.mtu)
            || said.mtu.is_none() && (default || warned(Fact::Mtu) == [guest.mtu.to_string()]),
        "{target}: MTU {:?}",
        said.mtu
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_target_says_each_fact_of_a_guest_or_warns_that_it_does_not(guest in any_guest()) {
        for target in all_targets() {
            compare(target, &guest)?;
        }
    }
}

/// The row of a target in the table of docs/guest-configuration.md.
fn documented(target: Target) -> Vec<&'static str> {
    let name = match target {
        Target::Cmdline(dialect) => format!("`cmdline --dialect {dialect}`"),
        Target::CloudInit(form, _) => format!("`cloud-init --form {form}`"),
        named => format!("`{named}`"),
    };
    let page = include_str!("../../docs/guest-configuration.md");
    let rows = page.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    rows.into_iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name} has no row"))
}

#[test]
fn the_table_in_the_docs_says_what_the_targets_do() {
    let guest = GuestNet { options: guest_with_options().options, ..demanding_guest() };
    let via = guest.gateway;
    let guest = GuestNet {
        options: DhcpOptions {
            static_routes: vec![StaticRoute { via, ..guest.options.static_routes[0] }],
            ..guest.options
        },
        ..guest
    };
    for target in all_targets() {
        let said = read(target, &made(target, &guest));
        let all_or_none = |all: bool, none: bool| {
            if all {
                "yes"
            } else if none {
                "no"
            } else {
                "some"
            }
        };
        let flag = |said: bool| all_or_none(said, !said);
        let expected = [
            flag(said.link.is_some()),
            all_or_none(said.dns == guest.dns_servers, said.dns.is_empty()),
            all_or_none(said.search.len() == 3, said.search.is_empty()),
            flag(said.mtu.is_some()),
            flag(said.hostname.is_some()),
            all_or_none(!said.routes.is_empty(), said.routes.is_empty()),
            all_or_none(said.ntp == guest.options.ntp_servers, said.ntp.is_empty()),
            flag(said.mac.is_some()),
        ];
        let row = documented(target);
        for (cell, expected) in row[1..].iter().zip(expected) {
            let cell = if ["yes", "no"].contains(cell) { *cell } else { "some" };
            assert_eq!(cell, expected, "{target}: {row:?}");
        }
    }
}

#[test]
fn an_option_without_a_place_is_refused() {
    let refused = |target, options: &Options| generate(target, &guest(), options).unwrap_err().to_string();
    let merge = Options { merge: Some("quiet"), ..Options::default() };
    assert!(refused(Target::Networkd, &merge).contains("networkd has no place for a command line"));
    let user_data = Options { user_data: Some(b"#!/bin/sh"), ..Options::default() };
    assert!(refused(Target::Cmdline(Dialect::Kernel), &user_data).contains("no place for user-data"));
    assert!(
        refused(Target::CloudInit(Form::BootArgs, NetworkConfigVersion::V2), &user_data)
            .contains("user-data")
    );
    for target in all_targets() {
        let without_host = generate(target, &guest(), &Options::default());
        assert_eq!(without_host.is_err(), target.needs_host(), "{target}");
        let merged = generate(target, &guest(), &merge);
        let accepted = !matches!(merged, Err(Refusal::NoPlace { .. }));
        assert_eq!(accepted, target.takes_merge(), "{target}");
    }
}

#[test]
fn a_guest_that_cannot_be_online_is_refused_by_every_target() {
    let broken = GuestNet { gateway: "10.200.0.1".parse().unwrap(), ..guest() };
    for target in all_targets() {
        let error = generate(target, &broken, &Options { host: Some(host_side()), ..Options::default() })
            .unwrap_err();
        assert!(error.to_string().contains("10.200.0.1"), "{target}: {error}");
    }
}

#[test]
fn targets_are_known_by_their_names() {
    for target in Target::NAMED {
        assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
    }
    let error = "netword".parse::<Target>().unwrap_err().to_string();
    assert!(Target::NAMED.iter().all(|target| error.contains(target.name())), "{error}");
}

#[test]
fn a_vmm_line_survives_quotes_in_the_command_line_before_it() {
    let options = Options { merge: Some("note=it's"), host: Some(host_side()), ..Options::default() };
    let made = generate(Target::Qemu, &guest(), &options).unwrap();
    assert!(made.as_text().unwrap().contains(r"-append 'note=it'\''s ip=10.100.1.2::"));
}
