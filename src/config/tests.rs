use super::*;
use crate::model::{DnsMode, Metadata, Plumbing};

fn no_env(_: &str) -> Option<String> {
    None
}

fn refused(text: &str) -> String {
    Config::from_parts(Some(text), no_env).unwrap_err().to_string()
}

fn with_env(text: &str, variables: &[(&str, &str)]) -> Result<Config, Problems> {
    let env = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    Config::from_parts(Some(text), env)
}

#[test]
fn without_a_file_there_is_one_network_with_the_guides_settings() {
    let config = Config::from_parts(None, no_env).unwrap();
    assert_eq!(config.api.socket, Path::new("/run/guestnet/guestnet.sock"));
    assert_eq!(config.state_directory, Path::new("/var/lib/guestnet"));
    let [network] = config.networks.as_slice() else { panic!("{config:?}") };
    assert_eq!(network.name.as_str(), "default");
    assert_eq!(network.bridge.as_str(), "br-vms");
    assert_eq!(network.gateway.to_string(), "10.100.0.1");
    assert_eq!(network.subnet.to_string(), "10.100.0.0/16");
    assert_eq!(network.upstreams, ["8.8.8.8", "8.8.4.4"].map(|a| a.parse().unwrap()));
    assert_eq!(network.rate_limit.unwrap().rate.mbps(), 100);
    assert_eq!(network.dns, DnsMode::On);
    assert_eq!(network.domain.as_str(), "vm.internal");
    assert_eq!(
        (network.mtu, network.lease_seconds, network.metadata, network.pool_size),
        (1500, 43200, None, 32)
    );
}

#[test]
fn the_example_file_shows_every_key_with_its_default() {
    let example = include_str!("../../config/guestnet.toml");
    let of = |text| Config {
        file: Table::new(),
        text: String::new(),
        ..Config::from_parts(text, no_env).unwrap()
    };
    assert_eq!(of(Some(example)), of(None));
    let page = include_str!("../../docs/configuration.md");
    assert!(
        page.contains(example),
        "docs/configuration.md is not current: put config/guestnet.toml into its fence"
    );
    let listed = refused(
        "[api]\nx = 1\n[metrics]\nx = 1\n[telemetry]\nx = 1\n[log]\nx = 1\n[state]\nx = 1\n[[network]]\nx = 1",
    );
    for known in listed.lines().flat_map(|line| line.split_once("known here: ").unwrap().1.split(", ")) {
        let shown =
            [format!("\n{known} = "), format!("\n[network.{known}]")].iter().any(|key| example.contains(key));
        assert!(shown, "{known} is not in the example");
    }
}

#[test]
fn a_network_keeps_what_it_was_given() {
    let text = r#"
        [[network]]
        name = "blue"
        bridge_name = "br-blue"
        bridge_ip = "192.168.7.254/24"
        vm_subnet = "192.168.7.0/24"
        dns_servers = ["9.9.9.9"]
        dns = "off"
        domain = "blue.example"
        enable_rate_limit = false
        mtu = 9000
        lease_seconds = "infinite"
        metadata = true
        metadata_hop_limit = 2
        rate_limit_burst_kib = 64
        reserved_ranges = ["192.168.7.1", "192.168.7.10 - 192.168.7.19", "192.168.7.128/25"]
        [[network]]
        name = "red"
        bridge_name = "br-red"
        bridge_ip = "10.0.0.1/8"
        vm_subnet = "10.0.0.0/8"
        dns_servers = ["2001:4860:4860::8888", "127.0.0.53"]
    "#;
    let config = Config::from_parts(Some(text), no_env).unwrap();
    let [blue, red] = config.networks.as_slice() else { panic!("{config:?}") };
    assert_eq!(blue.gateway.to_string(), "192.168.7.254");
    assert_eq!(blue.guest_dns()[0].to_string(), "9.9.9.9");
    assert_eq!((blue.rate_limit, blue.mtu, blue.lease_seconds), (None, 9000, u32::MAX));
    assert_eq!((blue.metadata, red.metadata), (Some(Metadata { hop_limit: 2 }), None));
    let reserved = |last: u8| blue.is_reserved([192, 168, 7, last].into());
    let kept: Vec<u8> = (0..=255).filter(|last| reserved(*last)).collect();
    assert_eq!(kept, [1].into_iter().chain(10..=19).chain(128..=255).collect::<Vec<u8>>());
    assert_eq!(red.guest_dns()[0].to_string(), "10.0.0.1");
}

#[test]
fn an_external_network_has_its_reservations() {
    let text = r#"
        [[network]]
        plumbing = "external"
        bridge_name = "virbr-longname0"
        dhcp_options = { ntp_servers = ["10.100.0.1"] }
        [[network.reservation]]
        mac = "52:54:00:00:00:01"
        ip_address = "10.100.0.10"
        hostname = "build"
        dhcp_options = { bootfile_name = "a" }
        [[network.reservation]]
        mac = "52:54:00:00:00:02"
        ip_address = "10.100.0.11"
    "#;
    let config = Config::from_parts(Some(text), no_env).unwrap();
    let network = &config.networks[0];
    assert_eq!((network.plumbing, network.bridge.as_str()), (Plumbing::External, "virbr-longname0"));
    assert!(network.serves_relay([10, 100, 0, 7].into()) && !network.serves_relay([10, 101, 0, 7].into()));
    assert_eq!(network.dhcp_options.ntp_servers.len(), 1);
    assert_eq!(network.router, network.gateway);
    let [build, other] = config.reservations.as_slice() else { panic!("{config:?}") };
    assert_eq!((build.hostname.as_str(), other.hostname.as_str()), ("build", "ip-10-100-0-11"));
    assert!(build.options.bootfile_name.is_some());

    let external = |lines: &str| format!("[[network]]\nplumbing = \"external\"\n{lines}");
    let reservation = "[[network.reservation]]\nmac = \"52:54:00:00:00:01\"\nip_address = \"10.100.0.10\"\n";
    for (text, named) in [
        (format!("[[network]]\n{reservation}"), "network[0].reservation"),
        (external(&reservation.repeat(2)), "network[0].reservation[1].mac: reservation[0] has the same"),
        (
            external(&reservation.replace("100.0.10", "100.0.1")),
            "network[0].reservation[0].ip_address: \"10.100.0.1\"",
        ),
        (external(&format!("{reservation}name = \"a\"")), "network[0].reservation[0].name: unknown key"),
        (external("[[network.reservation]]\nip_address = \"10.100.0.10\""), "network[0].reservation[0].mac"),
        (external("dhcp_options = { raw = { 3 = \"00\" } }"), "network[0].dhcp_options"),
        (external("router = \"10.101.0.1\""), "network[0].router: \"10.101.0.1\" is not a host address"),
        (
            "[[network]]\nrouter = \"10.100.0.9\"".into(),
            "network[0].router: \"10.100.0.9\" is not \"bridge_ip\"",
        ),
        (
            external(&format!("router = \"10.100.0.10\"\n{reservation}")),
            "network[0].reservation[0].ip_address: \"10.100.0.10\" is not a host address of 10.100.0.0/16 that is free: router",
        ),
        (
            external(&format!("reserved_ranges = [\"10.100.0.0/24\"]\n{reservation}")),
            "network[0].reservation[0].ip_address: \"10.100.0.10\"",
        ),
        (external("dhcp_relays = \"all\""), "network[0].dhcp_relays: \"all\" is not \"subnet\""),
    ] {
        assert!(refused(&text).contains(named), "{text}: {}", refused(&text));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_key_its_value_and_what_fits() {
    let network = |lines: &str| format!("[[network]]\n{lines}");
    let long = format!("[api]\nsocket = \"/{}\"", "s".repeat(107));
    let cases: Vec<(String, &[&str])> = vec![
        ("bad".into(), &["line 1"]),
        ("a = 1\na = 2".into(), &["line 2", "duplicate key"]),
        ("colour = 1".into(), &["colour: unknown key", "[[network]]"]),
        ("api = 3".into(), &["api: 3 is not a [api] table"]),
        ("[api]\nsock = \"/x\"".into(), &["api.sock: unknown key; known here: socket"]),
        (
            "[api]\nsocket = \"run/x\"".into(),
            &["api.socket: \"run/x\" is not an absolute path of at most 107 bytes"],
        ),
        (long, &["api.socket: ", "at most 107 bytes"]),
        (
            "[api]\nlisten = \"127.0.0.1:1\"".into(),
            &["api.listen: 127.0.0.1:1 needs tls_certificate", "mutual TLS"],
        ),
        ("[api]\nlisten = \"here\"".into(), &["api.listen: \"here\" is not an address and port"]),
        (
            "[api]\nspiffe_ids = [\"metald\"]".into(),
            &["api.spiffe_ids: [\"metald\"] is not a list of SPIFFE ids"],
        ),
        (
            "[api]\nread_only_socket = \"/run/guestnet/guestnet.sock\"".into(),
            &["api.read_only_socket: it is the socket"],
        ),
        (
            "[telemetry]\nendpoint = \"http://192.0.2.7:4318\"".into(),
            &["telemetry.endpoint: \"http://192.0.2.7:4318\"", "on this host"],
        ),
        ("[log]\nfilter = \"guestnet=loud\"".into(), &["log.filter: \"guestnet=loud\"", "what to log"]),
        ("[telemetry]\nmetrics_interval_seconds = 0".into(), &["metrics_interval_seconds", "1 to 3600"]),
        ("[metrics]\nlisten = \"0.0.0.0:9477\"".into(), &["metrics.listen: \"0.0.0.0:9477\"", "loopback"]),
        ("[state]\ndirectory = 7".into(), &["state.directory: 7 is not an absolute path"]),
        ("[network]\nname = \"a\"".into(), &["network: ", "is not a [[network]] table"]),
        ("network = []".into(), &["network: [] is not a [[network]] table"]),
        ("network = [1]".into(), &["network[0]: 1 is not a [[network]] table"]),
        (network("brigde_name = \"a\""), &["network[0].brigde_name: unknown key", "bridge_name"]),
        (network("name = \"Blue\""), &["network[0].name: \"Blue\" is not a network name"]),
        (
            network("bridge_name = \"br-thirteen-c\""),
            &["network[0].bridge_name: \"br-thirteen-c\"", "1 to 12"],
        ),
        (network("bridge_name = 12"), &["network[0].bridge_name: 12 is not a bridge name"]),
        (
            network("bridge_ip = \"10.100.0.1\""),
            &["network[0].bridge_ip: \"10.100.0.1\"", "like 10.100.0.1/16"],
        ),
        (
            network("bridge_ip = \"fd00::1/64\""),
            &["network[0].bridge_ip: \"fd00::1/64\" is not an IPv4 address"],
        ),
        (
            network("bridge_ip = \"10.101.0.1/16\""),
            &[
                "network[0].bridge_ip: 10.101.0.1/16 is not a host address of 10.100.0.0/16",
                "10.100.0.1/16 would fit",
            ],
        ),
        (network("bridge_ip = \"10.100.255.255/16\""), &["is not a host address"]),
        (network("bridge_ip = \"10.100.0.0/16\""), &["is not a host address"]),
        (
            network("bridge_ip = \"10.100.0.1/24\""),
            &[
                "network[0].bridge_ip: 10.100.0.1/24",
                "10.100.0.0/16 (network[0].vm_subnet)",
                "10.100.0.1/16 would fit",
            ],
        ),
        (
            network("vm_subnet = \"10.100.0.1/16\""),
            &["network[0].vm_subnet: \"10.100.0.1/16\"", "no host bits"],
        ),
        (network("vm_subnet = \"10.100.0.0/31\""), &["network[0].vm_subnet: ", "8 to 30"]),
        (
            network("vm_subnet = \"127.1.0.0/16\"\nbridge_ip = \"127.1.0.1/16\""),
            &["network[0].vm_subnet: \"127.1.0.0/16\"", "127.0.0.0/8 has another meaning"],
        ),
        (network("dns_servers = []"), &["network[0].dns_servers: [] is not a list of 1 to 8"]),
        (network("dns_servers = \"8.8.8.8\""), &["network[0].dns_servers: \"8.8.8.8\" is not a list"]),
        (network("dns_servers = [\"dns.example\"]"), &["network[0].dns_servers: [\"dns.example\"]"]),
        (network("dns_servers = [\"0.0.0.0\"]"), &["network[0].dns_servers: "]),
        (network("dns_servers = [\"10.100.0.1\"]"), &["network[0].dns_servers: 10.100.0.1", "loop"]),
        (
            network("dns = \"off\"\ndns_servers = [\"127.0.0.53\"]"),
            &["network[0].dns_servers: 127.0.0.53", "off"],
        ),
        (network("dns = true"), &["network[0].dns: true is not \"on\" or \"off\""]),
        (network("domain = \"a..b\""), &["network[0].domain: \"a..b\" is not a domain"]),
        (
            network("enable_rate_limit = \"yes\""),
            &["network[0].enable_rate_limit: \"yes\" is not true or false"],
        ),
        (network("rate_limit_mbps = 0"), &["network[0].rate_limit_mbps: 0 is not a rate of 1 to 100000"]),
        (
            network("reserved_ranges = [\"10.100.0.9-10.100.0.1\"]"),
            &["network[0].reserved_ranges: [\"10.100.0.9-10.100.0.1\"] is not a list of addresses, like"],
        ),
        (
            network("reserved_ranges = [\"10.100.0.9\", \"10.101.0.0/24\"]"),
            &[
                "network[0].reserved_ranges: 10.101.0.0-10.101.0.255 is not inside 10.100.0.0/16 (network[0].vm_subnet)",
            ],
        ),
        (
            network("rate_limit_burst_kib = 15"),
            &["network[0].rate_limit_burst_kib: 15 is not a burst of 16 to 1048576 KiB, or \"auto\""],
        ),
        (network("rate_limit_mbps = 100001"), &["network[0].rate_limit_mbps: 100001"]),
        (network("rate_limit_mbps = 4294967297"), &["network[0].rate_limit_mbps: 4294967297"]),
        (network("mtu = 575"), &["network[0].mtu: 575 is not an MTU of 576 to 9000"]),
        (network("mtu = \"big\""), &["network[0].mtu: \"big\" is not an MTU"]),
        (network("metadata = 1"), &["network[0].metadata: 1 is not true or false"]),
        (
            network("metadata = true\nplumbing = \"external\""),
            &["network[0].metadata: true needs plumbing = \"managed\""],
        ),
        (network("metadata_hop_limit = 0"), &["network[0].metadata_hop_limit: 0", "1 to 64"]),
        (network("pool_size = 5000"), &["network[0].pool_size: 5000 is not a number", "0 to 4096"]),
        (network("lease_seconds = 9"), &["network[0].lease_seconds: 9 is not a lease of 10"]),
        (network("lease_seconds = \"forever\""), &["network[0].lease_seconds: \"forever\"", "\"infinite\""]),
    ];
    for (text, wanted) in cases {
        let error = refused(&text);
        for part in wanted {
            assert!(error.contains(part), "{text}\ngave\n{error}\nwithout {part}");
        }
    }
}

#[test]
fn two_networks_cannot_share_a_name_a_bridge_or_addresses() {
    let second = |lines: &str| refused(&format!("[[network]]\n[[network]]\n{lines}"));
    let error = second("");
    assert!(
        error.contains(
            "network[1].name: \"default\" is already the name of another network (network[0].name)"
        )
    );
    assert!(error.contains("network[1].bridge_name: \"br-vms\""), "{error}");
    assert!(
        error.contains("network[1].vm_subnet: 10.100.0.0/16 overlaps 10.100.0.0/16 (network[0].vm_subnet)")
    );
    let error = second(
        "name = \"b\"\nbridge_name = \"br-vms-1\"\nbridge_ip = \"10.0.0.1/8\"\nvm_subnet = \"10.0.0.0/8\"\n\
         dns_servers = [\"10.100.0.1\"]",
    );
    assert!(error.contains("network[1].bridge_name: \"br-vms-1\" is the bridge \"br-vms\""), "{error}");
    assert!(error.contains("network[1].vm_subnet: 10.0.0.0/8 overlaps 10.100.0.0/16"), "{error}");
    assert!(error.contains("network[1].dns_servers: 10.100.0.1 is a gateway"), "{error}");
}

#[test]
fn every_problem_is_told_at_once() {
    let error = refused("x = 1\n[api]\nsocket = \"\"\n[[network]]\nmtu = 1\nrate_limit_mbps = 0\ny = 2");
    for start in [
        "line 1: x: ",
        "line 3: api.socket: ",
        "line 5: network[0].mtu: ",
        "line 6: network[0].rate_limit_mbps: ",
        "line 7: network[0].y: ",
    ] {
        assert!(error.lines().any(|line| line.starts_with(start)), "{start} is not in\n{error}");
    }
}

#[test]
fn the_environment_goes_before_the_default_network_of_the_file() {
    let file = "[[network]]\nbridge_name = \"br-file\"\nmtu = 9000\n[[network]]\nname = \"b\"\nbridge_name = \"br-b\"\n\
                bridge_ip = \"10.7.0.1/16\"\nvm_subnet = \"10.7.0.0/16\"";
    let variables = [
        ("UNKEY_METALD_NETWORK_ENABLED", "true"),
        ("UNKEY_METALD_NETWORK_BRIDGE", "br-env"),
        ("UNKEY_METALD_NETWORK_BRIDGE_IP", "172.16.0.1/20"),
        ("UNKEY_METALD_NETWORK_VM_SUBNET", "172.16.0.0/20"),
        ("UNKEY_METALD_NETWORK_DNS", "1.1.1.1, 9.9.9.9"),
        ("UNKEY_METALD_NETWORK_RATE_LIMIT", "1"),
        ("UNKEY_METALD_NETWORK_RATE_LIMIT_MBPS", "250"),
    ];
    let config = with_env(file, &variables).unwrap();
    let [first, second] = config.networks.as_slice() else { panic!("{config:?}") };
    assert_eq!(first.bridge.as_str(), "br-env");
    assert_eq!(first.gateway.to_string(), "172.16.0.1");
    assert_eq!(first.subnet.to_string(), "172.16.0.0/20");
    assert_eq!(first.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1.1.1.1", "9.9.9.9"]);
    assert_eq!(first.rate_limit.unwrap().rate.mbps(), 250);
    assert_eq!(first.mtu, 9000);
    assert_eq!(second.bridge.as_str(), "br-b");

    let unlimited = with_env("", &[("UNKEY_METALD_NETWORK_RATE_LIMIT", "false")]).unwrap();
    assert_eq!(unlimited.networks[0].rate_limit, None);
}

#[test]
fn a_bad_variable_is_named_as_the_operator_set_it() {
    let cases = [
        ("BRIDGE", "br-thirteen-c", "\"br-thirteen-c\" is not a bridge name"),
        ("BRIDGE_IP", "", "\"\" is not an IPv4 address"),
        ("BRIDGE_IP", "10.100.0.1/24", "10.100.0.1/16 would fit"),
        ("VM_SUBNET", "10.100.0.0/8", "no host bits"),
        ("DNS", "", "[\"\"] is not a list"),
        ("DNS", "8.8.8.8,x", "[\"8.8.8.8\", \"x\"] is not a list"),
        ("DNS", "10.100.0.1", "10.100.0.1 is a gateway"),
        ("RATE_LIMIT", "yes", "\"yes\" is not true or false"),
        ("RATE_LIMIT_MBPS", "fast", "\"fast\" is not a rate"),
        ("RATE_LIMIT_MBPS", "-1", "-1 is not a rate"),
        ("ENABLED", "maybe", "\"maybe\" is not true or false"),
    ];
    for (variable, value, wanted) in cases {
        let variable = format!("UNKEY_METALD_NETWORK_{variable}");
        let error = with_env("", &[(&variable, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{variable}: ")) && error.contains(wanted), "{error}");
    }
}

#[test]
fn a_host_whose_guest_network_is_turned_off_does_not_start_it() {
    let error = with_env("", &[("UNKEY_METALD_NETWORK_ENABLED", "false")]).unwrap_err().to_string();
    assert!(
        error.contains("UNKEY_METALD_NETWORK_ENABLED: \"false\" turns this host's guest network off"),
        "{error}"
    );
}

#[test]
fn a_configuration_that_was_asked_for_must_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guestnet.toml");
    let error = Config::load(Some(&path)).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("No such file"), "{error}");
    std::fs::write(&path, "[[network]]\nmtu = 1").unwrap();
    let error = Config::load(Some(&path)).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("network[0].mtu"), "{error}");
}

#[test]
fn a_resolver_keeps_what_it_was_given() {
    let text = r#"
        [[network]]
        dns_servers = ["tls://1.1.1.1#one.one.one.one", "10.0.0.53:5353"]
        [network.resolver]
        cache_mib = 8
        min_ttl = 5
        max_ttl = 600
        rebind_protection = false
        rebind_exempt = ["plex.direct"]
        dnssec = true
        query_log = 100
        queries_per_second = 500
        hosts_file = "/etc/hosts.guests"
        zones = ["corp.lan"]
        [[network.resolver.record]]
        name = "db"
        value = "10.9.0.1"
        [[network.resolver.record]]
        name = "www.corp.lan."
        type = "cname"
        value = "db.vm.internal"
        ttl = 5
        [[network.resolver.forward]]
        domain = "corp.example"
        servers = ["10.0.0.54"]
        [[network.resolver.rule]]
        name = "ads"
        file = "/etc/guestnet/ads.txt"
        action = "address"
        addresses = ["10.100.0.1"]
        vms = ["web-1"]
        dry_run = true
    "#;
    let config = Config::from_parts(Some(text), no_env).unwrap();
    let resolver = &config.networks[0].resolver;
    assert_eq!((resolver.cache_bytes, resolver.min_ttl, resolver.max_ttl), (8 << 20, 5, 600));
    assert_eq!(resolver.records[0].name.as_str(), "db.vm.internal");
    assert_eq!((resolver.records[1].rtype.as_str(), resolver.records[1].ttl), ("CNAME", 5));
    assert_eq!(resolver.forward[0].servers[0].to_string(), "10.0.0.54");
    assert!(resolver.rules[0].dry_run && resolver.rules[0].action.as_str() == "address");
    assert_eq!(config.networks[0].upstreams[0].to_string(), "tls://1.1.1.1#one.one.one.one");
}

#[test]
fn a_resolver_that_does_not_fit_is_refused_by_key_and_value() {
    for (text, key, value) in [
        ("dns_servers = [\"8.8.8\"]", "network[0].dns_servers", "8.8.8"),
        ("dns_servers = [\"tls://dns.example\"]", "network[0].dns_servers", "tls://dns.example"),
        ("[network.resolver]\ncache_mib = 0", "network[0].resolver.cache_mib", "0"),
        ("[network.resolver]\nhosts_file = \"hosts\"", "network[0].resolver.hosts_file", "hosts"),
        ("[network.resolver]\nnothing = 1", "network[0].resolver.nothing", "known here"),
        (
            "[[network.resolver.forward]]\ndomain = \"corp\"\nservers = [\"x\"]",
            "resolver.forward[0].servers",
            "\"x\"",
        ),
        ("[[network.resolver.record]]\nname = \"db\"\nvalue = \"10.9\"", "resolver.record[0].value", "10.9"),
        ("[[network.resolver.rule]]\naction = \"block\"", "resolver.rule[0].action", "block"),
        ("[[network.resolver.rule]]\naction = \"address\"", "resolver.rule[0].addresses", "at least one"),
        (
            "[[network.resolver.forward]]\ndomain = \"corp\"\nservers = [\"10.100.0.1\"]",
            "dns_servers",
            "loop",
        ),
    ] {
        let problems = refused(&format!("[[network]]\n{text}"));
        assert!(problems.contains(key) && problems.contains(value), "{text}: {problems}");
    }
}
