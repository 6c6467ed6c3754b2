use super::super::Verdict;
use super::*;

pub(in super::super) fn healthy() -> Facts {
    Facts {
        service: Service::Answers,
        configuration: Configuration::Fits,
        ip_forward: Some("1".into()),
        forward: Some(vec!["-P FORWARD ACCEPT".into(), "-A FORWARD -j GUESTNET-FORWARD".into()]),
        input: Some(vec!["-P INPUT DROP".into(), "-A INPUT -j GUESTNET-INPUT".into()]),
        foreign: Ok(Ruleset::default()),
        missing: Ok(Vec::new()),
        postrouting: Some(vec!["-A POSTROUTING -s 10.100.0.0/16 ! -d 10.100.0.0/16 -j MASQUERADE".into()]),
        bridge_nf_call_iptables: Some("1".into()),
        send_redirects_all: Some("0".into()),
        has_default_route: Some(true),
        conntrack: Some((10, 1_000)),
        clock_synchronised: Some(true),
        now: EARLIEST + 1,
        tun: Device::Usable,
        kvm: Device::Usable,
        dhcp_sockets: Vec::new(),
        stale_namespaces: Vec::new(),
        rogue_dhcp: Vec::new(),
        spoofing: Vec::new(),
        port_forwards: 0,
        uplink_mtu: None,
        networks: vec![NetworkFacts {
            name: "default".into(),
            bridge: "br-vms".into(),
            subnet: "10.100.0.0/16".into(),
            managed: true,
            bridge_exists: true,
            bridge_is_up: true,
            bridge_has_gateway: true,
            upstreams: vec![("8.8.8.8".parse().unwrap(), true)],
            ..Default::default()
        }],
    }
}

fn wrong(facts: &Facts) -> Vec<(&'static str, Verdict)> {
    let found = check(facts);
    super::super::tests::assert_mendable(&found);
    for finding in &found {
        assert_eq!(finding.verdict == Verdict::Ok, finding.meaning.is_empty(), "{finding:?}");
    }
    found.iter().filter(|f| f.verdict != Verdict::Ok).map(|f| (f.check, f.verdict)).collect()
}

#[test]
fn a_healthy_host_has_nothing_to_complain_of() {
    assert_eq!(wrong(&healthy()), []);
}

/// The clock is the machine's own; the rest has words here that a lab's breakages do not come to.
#[test]
fn what_cannot_be_broken_in_a_lab_is_found_too() {
    let with = |change: fn(&mut Facts)| {
        let mut facts = healthy();
        change(&mut facts);
        wrong(&facts)
    };
    assert_eq!(with(|f| f.conntrack = Some((850, 1_000))), [("conntrack", Verdict::Warning)]);
    assert_eq!(with(|f| f.conntrack = Some((1_000, 1_000))), [("conntrack", Verdict::Problem)]);
    assert_eq!(with(|f| f.conntrack = None), [("conntrack", Verdict::Warning)]);
    assert_eq!(with(|f| f.now = 7), [("clock", Verdict::Problem)]);
    assert_eq!(with(|f| f.clock_synchronised = Some(false)), [("clock", Verdict::Warning)]);
    assert_eq!(with(|f| f.missing = Err("EPERM".into())), [("kernel", Verdict::Warning)]);
    assert_eq!(with(|f| f.input = None), [("input", Verdict::Warning)]);
    assert_eq!(with(|f| f.foreign = Err("EPERM".into())), [("firewall", Verdict::Warning)]);
    assert_eq!(
        with(|f| f.configuration = Configuration::Refused("it does not fit".into())),
        [("configuration", Verdict::Warning)]
    );
    assert_eq!(
        with(|f| f.configuration = Configuration::Hidden("EACCES".into())),
        [("configuration", Verdict::Warning)]
    );
}

#[test]
fn what_is_called_a_command_is_one_whatever_is_wrong() {
    let devices = [Device::Missing, Device::Replaced, Device::Refused("EACCES".into())];
    let services = ["silent", "elsewhere", "misnamed", "closed", "fails"];
    for (at, device) in devices.iter().cycle().take(services.len()).enumerate() {
        let mut facts = healthy();
        let why = services[at].to_owned();
        facts.service = match at {
            0 => Service::Silent(why),
            1 => Service::Elsewhere(why),
            2 => Service::Misnamed { why, socket: "/run/guestnet/guestnet.sock".into() },
            3 => Service::Closed(why),
            _ => Service::Fails(why),
        };
        facts.configuration = Configuration::Refused("it does not fit:\na: b".into());
        (facts.tun, facts.kvm) = (device.clone(), device.clone());
        (facts.ip_forward, facts.has_default_route) = (None, None);
        (facts.postrouting, facts.forward) = (Some(Vec::new()), Some(Vec::new()));
        facts.stale_namespaces = vec!["vm-gone".into()];
        facts.rogue_dhcp = vec![Said { age: 1, detail: "192.0.2.9".into() }];
        facts.uplink_mtu = Some(("up0".into(), 1_280));
        let broken = NetworkFacts {
            mtu: 1_500,
            bridge_exists: at % 2 == 0,
            bridge_is_up: false,
            bridge_has_gateway: false,
            managed: at < 2,
            rp_filter: Some("0".into()),
            overlap: Some(["10.100.7.0/24 dev lan0", "10.100.7.0/24 via 192.0.2.1"][at % 2].into()),
            upstreams: vec![("8.8.8.8".parse().unwrap(), false)],
            resolver: Some(false),
            free_addresses: Some(0),
            ..facts.networks[0].clone()
        };
        facts.networks = vec![broken];
        let wrong = wrong(&facts);
        for check in [
            "service",
            "configuration",
            "tun",
            "kvm",
            "uplink",
            "dhcp",
            "bridge",
            "routes",
            "upstreams",
            "addresses",
            "mtu",
        ] {
            assert!(wrong.iter().any(|(found, _)| *found == check), "{check}: {wrong:?}");
        }
    }
}

#[test]
fn what_happened_long_ago_says_nothing_of_now() {
    let said = |age| Said { age, detail: "192.0.2.9".into() };
    let with = |age| {
        let mut facts = healthy();
        (facts.rogue_dhcp, facts.spoofing) = (vec![said(age)], vec![said(age)]);
        wrong(&facts)
    };
    assert_eq!(with(60), [("dhcp", Verdict::Problem), ("spoofing", Verdict::Warning)]);
    assert_eq!(with(2 * 86_400), []);
}
