//! What a guest is told beyond its address facts: time servers, routes, whatever else its DHCP options say. In: a target and
//! a guest. Out: a warning for each that the target has no place for.

use super::{Dialect, Fact, Form, Target, Warning};
use crate::model::{DhcpOptions, GuestNet, StaticRoute};

/// What a target has a place for.
struct Place {
    /// How many time servers.
    ntp: usize,
    routes: bool,
    /// Routes without a gateway.
    on_link: bool,
    /// Every other DHCP option.
    others: bool,
}

fn place(target: Target) -> Place {
    const ALL: usize = usize::MAX;
    let (ntp, routes, on_link) = match target {
        Target::Cmdline(Dialect::Kernel)
        | Target::Firecracker
        | Target::Qemu
        | Target::QemuMicrovm
        | Target::CloudHypervisor => (1, false, false),
        Target::Cmdline(Dialect::Klibc | Dialect::Systemd) => (0, false, false),
        Target::Cmdline(Dialect::Dracut) | Target::DracutConf => (0, true, false),
        Target::CloudInit(Form::NocloudDir | Form::SeedImage | Form::Iso | Form::CloudCfgD, _) => {
            (ALL, true, false)
        }
        Target::CloudInit(Form::Mime, _) => (ALL, true, true),
        Target::CloudInit(Form::BootArgs | Form::Netplan, _) => (0, true, false),
        Target::Networkd | Target::NetworkdCredential | Target::NixOs => (ALL, true, true),
        Target::Json | Target::Env => (ALL, true, true),
        Target::Ifupdown
        | Target::IfupdownAlpine
        | Target::NetworkManager
        | Target::Ignition
        | Target::Shell => (0, true, true),
        // It is asked for its DNS servers alone, and says no address either.
        Target::ResolvConf => (ALL, true, true),
    };
    Place { ntp, routes, on_link, others: matches!(target, Target::Json | Target::ResolvConf) }
}

/// Said of what a target has no place for.
const NO_PLACE: &str = "left out: there is no place for it, only DHCP tells it";

pub(super) fn unsaid(target: Target, guest: &GuestNet) -> Vec<Warning> {
    let place = place(target);
    let options = &guest.options;
    let mut warnings = Vec::new();
    for server in options.ntp_servers.iter().skip(place.ntp) {
        warnings.push(Warning::new(Fact::Ntp, server, NO_PLACE));
    }
    if place.ntp == 1 {
        let reason =
            "systemd 252 in the guest rejects an ip= that has it, and says nothing of the network then";
        warnings.extend(options.ntp_servers.first().map(|server| Warning::new(Fact::Ntp, server, reason)));
    }
    for route in &options.static_routes {
        let reason = if route.via == guest.address {
            "left out: its gateway is the guest itself"
        } else if !said(&place, route) {
            NO_PLACE
        } else {
            continue;
        };
        warnings.push(Warning::new(Fact::Route, route, reason));
    }
    if !place.others {
        let others = others(options);
        warnings.extend(others.into_iter().map(|name| Warning::new(Fact::DhcpOption, name, NO_PLACE)));
    }
    warnings
}

fn said(place: &Place, route: &StaticRoute) -> bool {
    place.routes && (place.on_link || !route.is_on_link())
}

/// The set options that are no fact of a guest's network, by their names in the configuration.
fn others(options: &DhcpOptions) -> Vec<String> {
    let facts = DhcpOptions {
        ntp_servers: Vec::new(),
        domain_search: Vec::new(),
        static_routes: Vec::new(),
        ..options.clone()
    };
    // Only what is set is written (DhcpOptions), and a struct of texts and numbers can be.
    let written = serde_json::to_value(&facts).unwrap_or_default();
    written.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guestcfg::fixtures::{guest, host_side};
    use crate::guestcfg::{Options, generate};

    fn warned(target: Target, options: &str) -> Vec<String> {
        let guest = GuestNet { options: toml::from_str(options).unwrap(), ..guest() };
        let made = generate(target, &guest, &Options { host: Some(host_side()), ..Options::default() });
        let facts = [Fact::Ntp, Fact::Route, Fact::DhcpOption];
        let warnings = made.unwrap().warnings.into_iter().filter(|warning| facts.contains(&warning.fact));
        warnings.map(|warning| warning.to_string()).collect()
    }

    #[test]
    fn what_a_target_has_no_place_for_is_named() {
        let options = r#"ntp_servers = ["10.100.0.1", "10.100.0.2"]
                         static_routes = ["10.1.0.0/16 via 10.100.0.9", "10.2.0.0/16 via 0.0.0.0"]
                         bootfile_name = "vmlinuz"
                         raw = { 252 = "00" }"#;
        insta::assert_snapshot!(warned(Target::Cmdline(Dialect::Systemd), options).join("\n"), @r"
        NTP server 10.100.0.1: left out: there is no place for it, only DHCP tells it
        NTP server 10.100.0.2: left out: there is no place for it, only DHCP tells it
        route 10.1.0.0/16 via 10.100.0.9: left out: there is no place for it, only DHCP tells it
        route 10.2.0.0/16 via 0.0.0.0: left out: there is no place for it, only DHCP tells it
        DHCP option bootfile_name: left out: there is no place for it, only DHCP tells it
        DHCP option raw: left out: there is no place for it, only DHCP tells it
        ");
        insta::assert_snapshot!(warned(Target::Cmdline(Dialect::Kernel), options).join("\n"), @r"
        NTP server 10.100.0.2: left out: there is no place for it, only DHCP tells it
        NTP server 10.100.0.1: systemd 252 in the guest rejects an ip= that has it, and says nothing of the network then
        route 10.1.0.0/16 via 10.100.0.9: left out: there is no place for it, only DHCP tells it
        route 10.2.0.0/16 via 0.0.0.0: left out: there is no place for it, only DHCP tells it
        DHCP option bootfile_name: left out: there is no place for it, only DHCP tells it
        DHCP option raw: left out: there is no place for it, only DHCP tells it
        ");
        assert_eq!(warned(Target::Networkd, options).len(), 2, "the boot file and the raw option");
        assert!(warned(Target::Json, options).is_empty());
    }

    #[test]
    fn the_router_of_a_route_is_not_told_to_route_by_itself() {
        let options = r#"static_routes = ["10.1.0.0/16 via 10.100.1.2"]"#;
        let said = warned(Target::Networkd, options);
        assert!(said[0].contains("the guest itself"), "{said:?}");
    }
}
