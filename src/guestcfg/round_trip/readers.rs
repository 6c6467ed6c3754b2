//! Readers of every target's format: a crate or sh where there is one, else from the format's own manual. In: a target's files. Out: the facts
//! they tell.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnetwork::Ipv4Network;
use serde_json::Value;

use crate::guestcfg::*;
use crate::model::{DhcpOptions, StaticRoute};

/// A guest's facts as one target's output tells them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    /// Address, prefix length, gateway.
    pub(super) link: Option<(Ipv4Addr, u8, Ipv4Addr)>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) search: Vec<String>,
    pub(super) ntp: Vec<Ipv4Addr>,
    pub(super) routes: Vec<StaticRoute>,
    pub(super) mtu: Option<u16>,
    pub(super) hostname: Option<String>,
    pub(super) mac: Option<String>,
}

pub(super) fn read(target: Target, output: &Generated) -> Said {
    let file = |path: &str| {
        let file = output.files.iter().find(|file| file.path.ends_with(path)).unwrap();
        std::str::from_utf8(&file.bytes).unwrap()
    };
    let hostname = || Some(file("etc/hostname").trim_end().to_owned());
    match target {
        Target::Cmdline(_) => kernel_line(file("cmdline")),
        Target::CloudInit(Form::NocloudDir, _) => {
            let content = |path: &str| file(path).to_owned();
            seed(content)
        }
        Target::CloudInit(Form::SeedImage, _) => {
            let mut image = output.files[0].bytes.clone();
            let disk = std::io::Cursor::new(image.as_mut_slice());
            let volume = fatfs::FileSystem::new(disk, fatfs::FsOptions::new()).unwrap();
            let content =
                |path: &str| std::io::read_to_string(volume.root_dir().open_file(path).unwrap()).unwrap();
            seed(content)
        }
        Target::CloudInit(Form::Iso, _) => {
            let content = |path: &str| iso_file(&output.files[0].bytes, path);
            seed(content)
        }
        Target::CloudInit(Form::Mime, _) => {
            let parts = mime_parts(file("user-data"));
            let [(first, config), (second, hook)] = &parts[..] else { panic!("{parts:?}") };
            assert_eq!((first.as_str(), second.as_str()), ("text/cloud-config", "text/cloud-boothook"));
            let config = yaml_value(config);
            let said = script(hook.strip_prefix("#cloud-boothook\n").unwrap());
            assert_eq!(said.hostname, Some(text(&config["hostname"])));
            Said { ntp: times(&config), ..said }
        }
        Target::CloudInit(Form::BootArgs, _) => {
            let (ds, config) = file("boot-args").trim_end().split_once(" network-config=").unwrap();
            let ("ds=nocloud", keys) = ds.split_once(';').unwrap() else { panic!("{ds}") };
            let keys: BTreeMap<&str, &str> =
                keys.split(';').map(|key| key.split_once('=').unwrap()).collect();
            let config = String::from_utf8(BASE64.decode(config).unwrap()).unwrap();
            Said { hostname: Some(keys["h"].to_owned()), ..network_config(&yaml_value(&config)) }
        }
        Target::CloudInit(Form::CloudCfgD, _) => {
            let config = yaml_value(file("99-guestnet.cfg"));
            Said {
                hostname: Some(text(&config["hostname"])),
                ntp: times(&config),
                ..network_config(&config["network"])
            }
        }
        Target::CloudInit(Form::Netplan, _) => {
            Said { hostname: hostname(), ..network_config(&yaml_value(file(".yaml"))["network"]) }
        }
        Target::Networkd => Said { hostname: hostname(), ..networkd_unit(file(".network")) },
        Target::NetworkdCredential => {
            let value =
                |name| file("boot-args").split_whitespace().find_map(|a| a.strip_prefix(name)).unwrap();
            let unit =
                BASE64.decode(value("systemd.set_credential_binary=network.network.10-guestnet:")).unwrap();
            let hostname = value("systemd.hostname=").to_owned();
            Said { hostname: Some(hostname), ..networkd_unit(std::str::from_utf8(&unit).unwrap()) }
        }
        Target::Ifupdown | Target::IfupdownAlpine => {
            let resolv_conf = resolv_conf(file("etc/resolv.conf"));
            Said {
                hostname: hostname(),
                dns: resolv_conf.dns,
                search: resolv_conf.search,
                ..stanza(file("interfaces"))
            }
        }
        Target::NetworkManager => Said { hostname: hostname(), ..keyfile(file(".nmconnection")) },
        Target::Ignition => {
            let document: Value = serde_json::from_str(file(".ign")).unwrap();
            let content = |at: usize| {
                let source = text(&document["storage"]["files"][at]["contents"]["source"]);
                String::from_utf8(BASE64.decode(source.strip_prefix("data:;base64,").unwrap()).unwrap())
                    .unwrap()
            };
            Said { hostname: Some(content(1).trim_end().to_owned()), ..keyfile(&content(0)) }
        }
        Target::ResolvConf => resolv_conf(file("etc/resolv.conf")),
        Target::DracutConf => {
            let quoted = file("guestnet.conf").split_once("kernel_cmdline+=\"").unwrap().1;
            kernel_line(quoted.trim_end().strip_suffix('"').unwrap())
        }
        Target::NixOs => nixos_module(file(".nix")),
        Target::Firecracker => {
            let config: Value = serde_json::from_str(file("vm-config.json")).unwrap();
            let mac = text(&config["network-interfaces"][0]["guest_mac"]);
            Said { mac: Some(mac), ..kernel_line(config["boot-source"]["boot_args"].as_str().unwrap()) }
        }
        Target::Qemu | Target::QemuMicrovm => card(file("qemu-args"), "host_mtu="),
        Target::CloudHypervisor => card(file("cloud-hypervisor-args"), "mtu="),
        Target::Json => {
            let facts: Value = serde_json::from_str(file(".json")).unwrap();
            let prefix_len = facts["prefix_len"].as_u64().unwrap() as u8;
            let options: DhcpOptions = facts
                .get("dhcp_options")
                .map(|options| serde_json::from_value(options.clone()).unwrap())
                .unwrap_or_default();
            let domains = std::iter::once(text(&facts["domain"]));
            Said {
                link: Some((parsed(&facts["ip_address"]), prefix_len, parsed(&facts["gateway"]))),
                dns: facts["dns_servers"].as_array().unwrap().iter().map(parsed).collect(),
                search: domains.chain(options.domain_search.iter().map(ToString::to_string)).collect(),
                ntp: options.ntp_servers,
                routes: options.static_routes,
                mtu: Some(facts["mtu"].as_u64().unwrap() as u16),
                hostname: Some(text(&facts["hostname"])),
                mac: Some(text(&facts["mac_address"])),
            }
        }
        Target::Env => {
            let read = sh("set -a; . /dev/stdin; env -0", file(".env"));
            let facts: BTreeMap<&str, &str> =
                read.split_terminator('\0').map(|line| line.split_once('=').unwrap()).collect();
            let ours = facts.keys().filter(|name| name.starts_with("GUESTNET_")).count();
            assert_eq!(ours, file(".env").lines().count(), "{facts:?}");
            let fact = |name| facts[name].to_owned();
            let more = |name| facts.get(name).copied().unwrap_or_default();
            let words = |text: &str| text.split_terminator(',').map(str::to_owned).collect::<Vec<_>>();
            // What neither a shell nor systemd nor a container engine takes for anything but itself.
            let plain =
                |value: &&str| value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.,:/".contains(&b));
            assert!(file(".env").lines().all(|line| plain(&line.split_once('=').unwrap().1)), "{facts:?}");
            let mask: Ipv4Addr = fact("GUESTNET_NETMASK").parse().unwrap();
            assert_eq!(prefix_of(mask).to_string(), fact("GUESTNET_PREFIX_LEN"));
            Said {
                link: Some((
                    fact("GUESTNET_IP_ADDRESS").parse().unwrap(),
                    prefix_of(mask),
                    fact("GUESTNET_GATEWAY").parse().unwrap(),
                )),
                dns: list(&fact("GUESTNET_DNS_SERVERS"), ','),
                search: [vec![fact("GUESTNET_DOMAIN")], words(more("GUESTNET_DOMAIN_SEARCH"))].concat(),
                ntp: words(more("GUESTNET_NTP_SERVERS"))
                    .iter()
                    .map(|server| server.parse().unwrap())
                    .collect(),
                routes: words(more("GUESTNET_STATIC_ROUTES"))
                    .iter()
                    .map(|route| route.replacen(':', " via ", 1).parse().unwrap())
                    .collect(),
                mtu: fact("GUESTNET_MTU").parse().ok(),
                hostname: Some(fact("GUESTNET_HOSTNAME")),
                mac: Some(fact("GUESTNET_MAC_ADDRESS")),
            }
        }
        Target::Shell => script(file(".sh")),
    }
}

/// The four files of a seed.
fn seed(content: impl Fn(&str) -> String) -> Said {
    let meta_data = yaml_value(&content("meta-data"));
    let vendor_data = yaml_value(&content("vendor-data"));
    let hostname = text(&meta_data["local-hostname"]);
    assert_eq!(vendor_data["hostname"], hostname.as_str());
    let config = network_config(&yaml_value(&content("network-config")));
    Said { hostname: Some(hostname), ntp: times(&vendor_data), ..config }
}

/// The time servers of a cloud-config.
fn times(config: &Value) -> Vec<Ipv4Addr> {
    config
        .get("ntp")
        .map(|ntp| ntp["servers"].as_array().unwrap().iter().map(parsed).collect())
        .unwrap_or_default()
}

/// What a small guest's shell, busybox's, prints when it runs `program` on `input`.
fn sh(program: &str, input: &str) -> String {
    let mut child = Command::new("busybox")
        .args(["sh", "-euc", program])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program}: {input}");
    String::from_utf8(output.stdout).unwrap()
}

/// A file of a CD by its Joliet name (ECMA-119 9.1; the second descriptor, big-endian names).
fn iso_file(image: &[u8], path: &str) -> String {
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let root = number(17 * 2048 + 156 + 2) * 2048;
    let name: Vec<u8> = format!("{path};1").encode_utf16().flat_map(u16::to_be_bytes).collect();
    let mut at = root;
    while image[at] != 0 {
        if image[at + 33..][..usize::from(image[at + 32])] == name {
            let (start, length) = (number(at + 2) * 2048, number(at + 10));
            return String::from_utf8(image[start..start + length].to_vec()).unwrap();
        }
        at += usize::from(image[at]);
    }
    panic!("no {path}")
}

/// Type and content of each part of a MIME archive (RFC 2046 5.1).
pub(in crate::guestcfg) fn mime_parts(archive: &str) -> Vec<(String, String)> {
    let (head, body) = archive.split_once("\n\n").unwrap();
    let boundary = head.split_once("boundary=\"").unwrap().1.split('"').next().unwrap();
    let body = body.strip_suffix(&format!("--{boundary}--\n")).unwrap();
    let separator = format!("--{boundary}\n");
    let parts = body.split(&separator).skip(1).map(|part| {
        let (head, content) = part.split_once("\n\n").unwrap();
        let kind = head.split_once("Content-Type: ").unwrap().1.split(';').next().unwrap();
        let content = BASE64.decode(content.replace('\n', "")).unwrap();
        (kind.to_owned(), String::from_utf8(content).unwrap())
    });
    parts.collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(value: &Value) -> T {
    value.as_str().unwrap().parse().unwrap()
}

fn yaml_value(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}

fn list(text: &str, separator: char) -> Vec<IpAddr> {
    text.split(separator).filter(|item| !item.is_empty()).map(|item| item.parse().unwrap()).collect()
}

fn prefix_of(mask: Ipv4Addr) -> u8 {
    ipnetwork::ipv4_mask_to_prefix(mask).unwrap()
}

/// `address/length` and a gateway.
fn link(address: &str, gateway: &str) -> Option<(Ipv4Addr, u8, Ipv4Addr)> {
    assert!(address.contains('/'), "{address}");
    let network: Ipv4Network = address.parse().unwrap();
    Some((network.ip(), network.prefix(), gateway.parse().unwrap()))
}

/// `ip=` as ip_auto_config_setup in net/ipv4/ipconfig.c takes it apart, and what dracut.cmdline(7) adds to it.
fn kernel_line(line: &str) -> Said {
    let mut said = Said::default();
    for argument in line.split_whitespace() {
        match argument.split_once('=').unwrap() {
            ("ip", value) => {
                assert_eq!(said.link, None, "one ip= only: {line}");
                let positions: Vec<&str> = value.split(':').collect();
                assert!((7..=10).contains(&positions.len()) && !value.ends_with(':'), "{value}");
                assert_eq!((positions[1], positions[5], positions[6]), ("", "eth0", "off"), "{value}");
                let mask = positions[3].parse().unwrap();
                said.link =
                    Some((positions[0].parse().unwrap(), prefix_of(mask), positions[2].parse().unwrap()));
                said.hostname = Some(positions[4].to_owned());
                said.ntp.extend(positions.get(9).map(|server| server.parse::<Ipv4Addr>().unwrap()));
                for position in positions[7..].iter().take(2).filter(|position| !position.is_empty()) {
                    match position.parse() {
                        Ok(mtu) => said.mtu = Some(mtu),
                        Err(_) => said.dns.push(position.parse().unwrap()),
                    }
                }
            }
            ("nameserver", server) => said.dns.push(server.parse().unwrap()),
            ("rd.route", route) => {
                let route = route.strip_suffix(":eth0").unwrap();
                said.routes.push(route.replacen(':', " via ", 1).parse().unwrap());
            }
            ("systemd.hostname", name) => assert_eq!(said.hostname.as_deref(), Some(name)),
            other => assert_eq!(other, ("rd.neednet", "1")),
        }
    }
    said
}

fn network_config(config: &Value) -> Said {
    let servers = |list: &Value| list.as_array().unwrap().iter().map(parsed).collect();
    let texts = |list: &Value| list.as_array().unwrap().iter().map(text).collect();
    if config["version"] == 1 {
        let (card, subnet) = (&config["config"][0], &config["config"][0]["subnets"][0]);
        assert_eq!((&card["name"], &subnet["type"]), (&Value::from("eth0"), &Value::from("static")));
        return Said {
            link: link(&text(&subnet["address"]), &text(&subnet["gateway"])),
            dns: servers(&subnet["dns_nameservers"]),
            search: texts(&subnet["dns_search"]),
            routes: subnet
                .get("routes")
                .map(|routes| routes.as_array().unwrap().iter().map(route_of_version_1).collect())
                .unwrap_or_default(),
            mtu: Some(card["mtu"].as_u64().unwrap() as u16),
            hostname: None,
            mac: Some(text(&card["mac_address"])),
            ..Said::default()
        };
    }
    let card = &config["ethernets"]["eth0"];
    assert_eq!((&card["dhcp4"], &card["routes"][0]["to"]), (&Value::from(false), &Value::from("0.0.0.0/0")));
    Said {
        link: link(&text(&card["addresses"][0]), &text(&card["routes"][0]["via"])),
        dns: servers(&card["nameservers"]["addresses"]),
        search: texts(&card["nameservers"]["search"]),
        routes: card["routes"].as_array().unwrap()[1..]
            .iter()
            .map(|route| format!("{} via {}", text(&route["to"]), text(&route["via"])).parse().unwrap())
            .collect(),
        mtu: Some(card["mtu"].as_u64().unwrap() as u16),
        hostname: None,
        mac: Some(text(&card["match"]["macaddress"])),
        ..Said::default()
    }
}

fn route_of_version_1(route: &Value) -> StaticRoute {
    let mask = prefix_of(parsed(&route["netmask"]));
    format!("{}/{mask} via {}", text(&route["network"]), text(&route["gateway"])).parse().unwrap()
}

/// The sections of an ini file, in order; each name has the values of its lines.
fn ini(file: &str) -> Vec<(String, BTreeMap<String, Vec<String>>)> {
    let parsed = ini::Ini::load_from_str_noescape(file).unwrap();
    let sections = parsed.iter().filter_map(|(name, lines)| {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        lines.iter().for_each(|(name, value)| values.entry(name.into()).or_default().push(value.into()));
        name.map(|name| (name.to_owned(), values))
    });
    sections.collect()
}

fn networkd_unit(file: &str) -> Said {
    let unit = ini(file);
    let all_of = |wanted: &str| -> Vec<&BTreeMap<String, Vec<String>>> {
        unit.iter().filter(|(name, _)| name == wanted).map(|(_, values)| values).collect()
    };
    let network = all_of("Network")[0];
    let all = |name: &str| network.get(name).into_iter().flatten();
    let route = |values: &BTreeMap<String, Vec<String>>| {
        let via = values.get("Gateway").map_or("0.0.0.0", |via| via[0].as_str());
        assert_eq!(values.get("Scope").map(|scope| scope[0].as_str()), (via == "0.0.0.0").then_some("link"));
        format!("{} via {via}", values["Destination"][0]).parse().unwrap()
    };
    Said {
        link: link(&network["Address"][0], &network["Gateway"][0]),
        dns: all("DNS").map(|server| server.parse().unwrap()).collect(),
        search: network["Domains"][0].split(' ').map(str::to_owned).collect(),
        ntp: all("NTP").map(|server| server.parse().unwrap()).collect(),
        routes: all_of("Route").into_iter().map(route).collect(),
        mtu: all_of("Link")[0]["MTUBytes"][0].parse().ok(),
        hostname: None,
        mac: Some(all_of("Match")[0]["MACAddress"][0].clone()),
    }
}

fn keyfile(file: &str) -> Said {
    let profile: BTreeMap<String, BTreeMap<String, Vec<String>>> = ini(file).into_iter().collect();
    let ipv4 = &profile["ipv4"];
    let (address, gateway) = ipv4["address1"][0].split_once(',').unwrap();
    let routes = (1..).map_while(|number| ipv4.get(&format!("route{number}"))).map(|route| {
        let (destination, via) = route[0].split_once(',').unwrap_or((&route[0], "0.0.0.0"));
        format!("{destination} via {via}").parse().unwrap()
    });
    Said {
        link: link(address, gateway),
        dns: ipv4.get("dns").map(|servers| list(&servers[0], ';')).unwrap_or_default(),
        search: ipv4["dns-search"][0].split_terminator(';').map(str::to_owned).collect(),
        ntp: Vec::new(),
        routes: routes.collect(),
        mtu: profile["ethernet"]["mtu"][0].parse().ok(),
        hostname: None,
        mac: Some(profile["ethernet"]["mac-address"][0].clone()),
    }
}

/// `DESTINATION [via GATEWAY] dev eth0`, as ip takes a route.
fn route(words: &[&str]) -> StaticRoute {
    match words {
        [destination, "via", via, "dev", "eth0"] => format!("{destination} via {via}").parse().unwrap(),
        [destination, "dev", "eth0"] => format!("{destination} via 0.0.0.0").parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn stanza(file: &str) -> Said {
    let (_, stanza) = file.split_once("iface eth0 inet static\n").unwrap();
    let options: BTreeMap<&str, &str> =
        stanza.lines().map(|line| line.trim().split_once(' ').unwrap()).collect();
    let mask = options["netmask"].parse().unwrap();
    Said {
        link: Some((
            options["address"].parse().unwrap(),
            prefix_of(mask),
            options["gateway"].parse().unwrap(),
        )),
        mtu: options["mtu"].parse().ok(),
        routes: stanza
            .lines()
            .filter_map(|line| line.trim().strip_prefix("up ip route add "))
            .map(|words| route(&words.split(' ').collect::<Vec<_>>()))
            .collect(),
        ..Said::default()
    }
}

fn resolv_conf(file: &str) -> Said {
    let values = |name: &str| -> Vec<String> {
        let of_name =
            |line: &str| line.split_once(' ').filter(|(first, _)| *first == name).map(|(_, v)| v.to_owned());
        file.lines().filter_map(of_name).collect()
    };
    let dns: Vec<IpAddr> = values("nameserver").iter().map(|server| server.parse().unwrap()).collect();
    assert!(dns.len() <= 3);
    let search = values("search").pop().unwrap();
    Said { dns, search: search.split(' ').map(str::to_owned).collect(), ..Said::default() }
}

/// No Nix parser is at hand: each value is found behind its name, its quotes counted.
fn nixos_module(module: &str) -> Said {
    let after = |name: &str| module.split_once(&format!("{name} = ")).unwrap().1;
    let string = |name: &str| after(name).split('"').nth(1).unwrap().to_owned();
    let number = |name: &str| after(name).split(';').next().unwrap().parse().unwrap();
    let quoted =
        |list: &str| -> Vec<String> { list.split('"').skip(1).step_by(2).map(str::to_owned).collect() };
    let list = |name: &str| {
        let list = module.split_once(&format!("{name} = [")).map(|(_, list)| list.split(']').next().unwrap());
        quoted(list.unwrap_or_default())
    };
    let (gateway, addresses) = module.split_once("interfaces").unwrap();
    let address = addresses.split_once("address = \"").unwrap().1.split('"').next().unwrap();
    let gateway = gateway.split_once("address = \"").unwrap().1.split('"').next().unwrap();
    let routes = module.split_once("ipv4.routes = [").map_or("", |(_, list)| list.split(']').next().unwrap());
    let routes = routes.split('{').skip(1).map(|route| {
        let (texts, length) = (quoted(route), route.split_once("prefixLength = ").unwrap().1);
        let via = texts.get(1).map_or("0.0.0.0", String::as_str);
        format!("{}/{} via {via}", texts[0], length.split(';').next().unwrap()).parse().unwrap()
    });
    Said {
        link: Some((address.parse().unwrap(), number("prefixLength") as u8, gateway.parse().unwrap())),
        dns: list("nameservers").iter().map(|server| server.parse().unwrap()).collect(),
        search: list("search"),
        ntp: list("timeServers").iter().map(|server| server.parse().unwrap()).collect(),
        routes: routes.collect(),
        mtu: Some(number("mtu")),
        hostname: Some(string("hostName")),
        mac: Some(string("matchConfig.PermanentMACAddress")),
    }
}

/// A VMM's arguments, as a shell takes them apart: the card's properties, and the kernel's line last.
fn card(arguments: &str, mtu: &str) -> Said {
    let read = sh("eval set -- $(cat); printf '%s\\0' \"$@\"", arguments);
    let mut words: Vec<&str> = read.split_terminator('\0').collect();
    let line = words.pop().unwrap();
    let card: Vec<&str> = words.iter().flat_map(|word| word.split(',')).collect();
    let value = |name: &str| card.iter().find_map(|property| property.strip_prefix(name));
    Said {
        mac: value("mac=").map(str::to_owned),
        mtu: value(mtu).map(|mtu| mtu.parse().unwrap()),
        ..kernel_line(line)
    }
}

/// A script as a shell runs it: the words of each `ip`, and what it writes into files, which are elsewhere here.
#[allow(clippy::disallowed_methods, reason = "a test: what sh wrote is on the disk")]
fn script(file: &str) -> Said {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    let (hostname, resolv) = (path("hostname"), path("resolv.conf"));
    let moved = file.replace("/proc/sys/kernel/hostname", &hostname).replace("/etc/resolv.conf", &resolv);
    assert!(
        moved.matches(place.path().to_str().unwrap()).count() == 2 && !moved.contains("/proc"),
        "{moved}"
    );
    let said = sh("ip() { printf '%s ' \"$@\"; echo; }; . /dev/stdin", &moved);
    let commands: Vec<Vec<&str>> = said.lines().map(|line| line.trim_end().split(' ').collect()).collect();
    let [
        ["link", "set", "dev", "eth0", "mtu", mtu],
        ["link", "set", "dev", "eth0", "up"],
        address,
        gateway,
        routes @ ..,
    ] = &commands.iter().map(Vec::as_slice).collect::<Vec<_>>()[..]
    else {
        panic!("{commands:?}")
    };
    let ["addr", "replace", address, "broadcast", _, "dev", "eth0"] = address else { panic!("{address:?}") };
    let ["route", "replace", "default", "via", gateway, "dev", "eth0"] = gateway else {
        panic!("{gateway:?}")
    };
    let written = |path| std::fs::read_to_string(path).unwrap();
    Said {
        link: link(address, gateway),
        mtu: mtu.parse().ok(),
        hostname: Some(written(hostname).trim_end().to_owned()),
        routes: routes
            .iter()
            .map(|words| route(words.strip_prefix(&["route", "replace"]).unwrap()))
            .collect(),
        ..resolv_conf(&written(resolv))
    }
}
