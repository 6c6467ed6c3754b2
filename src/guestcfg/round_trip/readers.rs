//! Small readers of every target's format, written from the formats' own manuals. In: a target's files. Out: the facts
//! they tell.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnetwork::Ipv4Network;
use serde_json::Value;

use crate::guestcfg::*;

/// A guest's facts as one target's output tells them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    /// Address, prefix length, gateway.
    pub(super) link: Option<(Ipv4Addr, u8, Ipv4Addr)>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) search: Option<String>,
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
            let meta_data = yaml_value(file("meta-data"));
            Said {
                hostname: Some(text(&meta_data["local-hostname"])),
                ..network_config(&yaml_value(file("network-config")))
            }
        }
        Target::CloudInit(Form::SeedImage, _) => {
            let mut image = output.files[0].bytes.clone();
            let disk = std::io::Cursor::new(image.as_mut_slice());
            let volume = fatfs::FileSystem::new(disk, fatfs::FsOptions::new()).unwrap();
            let content = |path| std::io::read_to_string(volume.root_dir().open_file(path).unwrap()).unwrap();
            let meta_data = yaml_value(&content("meta-data"));
            let config = yaml_value(&content("network-config"));
            Said { hostname: Some(text(&meta_data["local-hostname"])), ..network_config(&config) }
        }
        Target::CloudInit(Form::Iso, _) => {
            let content = |path| iso_file(&output.files[0].bytes, path);
            let meta_data = yaml_value(&content("meta-data"));
            let config = yaml_value(&content("network-config"));
            Said { hostname: Some(text(&meta_data["local-hostname"])), ..network_config(&config) }
        }
        Target::CloudInit(Form::Mime, _) => {
            let parts = mime_parts(file("user-data"));
            let [(first, config), (second, hook)] = &parts[..] else { panic!("{parts:?}") };
            assert_eq!((first.as_str(), second.as_str()), ("text/cloud-config", "text/cloud-boothook"));
            let hostname = text(&yaml_value(config)["hostname"]);
            let said = script(hook.strip_prefix("#cloud-boothook\n").unwrap());
            assert_eq!(said.hostname, Some(hostname));
            said
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
            Said { hostname: Some(text(&config["hostname"])), ..network_config(&config["network"]) }
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
            let hostname = value("systemd.set_credential=system.hostname:").to_owned();
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
            Said {
                link: Some((parsed(&facts["ip_address"]), prefix_len, parsed(&facts["gateway"]))),
                dns: facts["dns_servers"].as_array().unwrap().iter().map(parsed).collect(),
                search: Some(text(&facts["domain"])),
                mtu: Some(facts["mtu"].as_u64().unwrap() as u16),
                hostname: Some(text(&facts["hostname"])),
                mac: Some(text(&facts["mac_address"])),
            }
        }
        Target::Env => {
            let facts: BTreeMap<&str, &str> =
                file(".env").lines().map(|line| line.split_once('=').unwrap()).collect();
            let fact = |name| facts[name].to_owned();
            let shell_plain =
                |value: &&str| value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.,:".contains(&b));
            assert!(facts.values().all(shell_plain), "{facts:?}");
            let mask: Ipv4Addr = fact("GUESTNET_NETMASK").parse().unwrap();
            assert_eq!(prefix_of(mask).to_string(), fact("GUESTNET_PREFIX_LEN"));
            Said {
                link: Some((
                    fact("GUESTNET_IP_ADDRESS").parse().unwrap(),
                    prefix_of(mask),
                    fact("GUESTNET_GATEWAY").parse().unwrap(),
                )),
                dns: list(&fact("GUESTNET_DNS_SERVERS"), ','),
                search: Some(fact("GUESTNET_DOMAIN")),
                mtu: fact("GUESTNET_MTU").parse().ok(),
                hostname: Some(fact("GUESTNET_HOSTNAME")),
                mac: Some(fact("GUESTNET_MAC_ADDRESS")),
            }
        }
        Target::Shell => script(file(".sh")),
    }
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
                assert!((7..=9).contains(&positions.len()) && !value.ends_with(':'), "{value}");
                assert_eq!((positions[1], positions[5], positions[6]), ("", "eth0", "off"), "{value}");
                let mask = positions[3].parse().unwrap();
                said.link =
                    Some((positions[0].parse().unwrap(), prefix_of(mask), positions[2].parse().unwrap()));
                said.hostname = Some(positions[4].to_owned());
                for position in positions[7..].iter().filter(|position| !position.is_empty()) {
                    match position.parse() {
                        Ok(mtu) => said.mtu = Some(mtu),
                        Err(_) => said.dns.push(position.parse().unwrap()),
                    }
                }
            }
            ("nameserver", server) => said.dns.push(server.parse().unwrap()),
            ("systemd.hostname", name) => assert_eq!(said.hostname.as_deref(), Some(name)),
            other => assert_eq!(other, ("rd.neednet", "1")),
        }
    }
    said
}

fn network_config(config: &Value) -> Said {
    let servers = |list: &Value| list.as_array().unwrap().iter().map(parsed).collect();
    if config["version"] == 1 {
        let (card, subnet) = (&config["config"][0], &config["config"][0]["subnets"][0]);
        assert_eq!((&card["name"], &subnet["type"]), (&Value::from("eth0"), &Value::from("static")));
        return Said {
            link: link(&text(&subnet["address"]), &text(&subnet["gateway"])),
            dns: servers(&subnet["dns_nameservers"]),
            search: Some(text(&subnet["dns_search"][0])),
            mtu: Some(card["mtu"].as_u64().unwrap() as u16),
            hostname: None,
            mac: Some(text(&card["mac_address"])),
        };
    }
    let card = &config["ethernets"]["eth0"];
    assert_eq!((&card["dhcp4"], &card["routes"][0]["to"]), (&Value::from(false), &Value::from("0.0.0.0/0")));
    Said {
        link: link(&text(&card["addresses"][0]), &text(&card["routes"][0]["via"])),
        dns: servers(&card["nameservers"]["addresses"]),
        search: Some(text(&card["nameservers"]["search"][0])),
        mtu: Some(card["mtu"].as_u64().unwrap() as u16),
        hostname: None,
        mac: Some(text(&card["match"]["macaddress"])),
    }
}

/// The values of each `section.name` of an ini file, in order.
fn ini(file: &str) -> BTreeMap<String, Vec<String>> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut section = "";
    for line in file.lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.strip_suffix(']').unwrap();
        } else {
            let (name, value) = line.split_once('=').unwrap();
            values.entry(format!("{section}.{name}")).or_default().push(value.to_owned());
        }
    }
    values
}

fn networkd_unit(file: &str) -> Said {
    let unit = ini(file);
    Said {
        link: link(&unit["Network.Address"][0], &unit["Network.Gateway"][0]),
        dns: unit.get("Network.DNS").into_iter().flatten().map(|server| server.parse().unwrap()).collect(),
        search: Some(unit["Network.Domains"][0].clone()),
        mtu: unit["Link.MTUBytes"][0].parse().ok(),
        hostname: None,
        mac: Some(unit["Match.MACAddress"][0].clone()),
    }
}

fn keyfile(file: &str) -> Said {
    let profile = ini(file);
    let (address, gateway) = profile["ipv4.address1"][0].split_once(',').unwrap();
    Said {
        link: link(address, gateway),
        dns: profile.get("ipv4.dns").map(|servers| list(&servers[0], ';')).unwrap_or_default(),
        search: profile["ipv4.dns-search"][0].strip_suffix(';').map(str::to_owned),
        mtu: profile["ethernet.mtu"][0].parse().ok(),
        hostname: None,
        mac: Some(profile["ethernet.mac-address"][0].clone()),
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
    Said { dns, search: values("search").pop(), ..Said::default() }
}

/// No Nix parser is at hand: each value is found behind its name, its quotes counted.
fn nixos_module(module: &str) -> Said {
    let after = |name: &str| module.split_once(&format!("{name} = ")).unwrap().1;
    let string = |name: &str| after(name).split('"').nth(1).unwrap().to_owned();
    let number = |name: &str| after(name).split(';').next().unwrap().parse().unwrap();
    let quoted =
        |list: &str| -> Vec<String> { list.split('"').skip(1).step_by(2).map(str::to_owned).collect() };
    let servers = after("nameservers").split(']').next().unwrap();
    let (gateway, addresses) = module.split_once("interfaces").unwrap();
    let address = addresses.split_once("address = \"").unwrap().1.split('"').next().unwrap();
    let gateway = gateway.split_once("address = \"").unwrap().1.split('"').next().unwrap();
    Said {
        link: Some((address.parse().unwrap(), number("prefixLength") as u8, gateway.parse().unwrap())),
        dns: quoted(servers).iter().map(|server| server.parse().unwrap()).collect(),
        search: quoted(after("search").split(']').next().unwrap()).pop(),
        mtu: Some(number("mtu")),
        hostname: Some(string("hostName")),
        mac: Some(string("matchConfig.PermanentMACAddress")),
    }
}

/// A VMM's arguments: the card on its line, the kernel's line quoted on the last.
fn card(arguments: &str, mtu: &str) -> Said {
    let (card, kernel) = arguments.trim_end().rsplit_once('\n').unwrap();
    let quoted = kernel.split_once(' ').unwrap().1;
    let card: Vec<&str> = card.split([',', ' ']).collect();
    let value = |name: &str| card.iter().find_map(|property| property.strip_prefix(name));
    Said {
        mac: value("mac=").map(str::to_owned),
        mtu: value(mtu).map(|mtu| mtu.parse().unwrap()),
        ..kernel_line(quoted.trim_matches('\''))
    }
}

fn script(file: &str) -> Said {
    let words = |start: &str| -> Vec<&str> {
        file.lines().find_map(|line| line.strip_prefix(start)).unwrap().split(' ').collect()
    };
    let (commands, here) = file.split_once("<<'END'\n").unwrap();
    assert!(commands.lines().count() == 8, "{commands}");
    let resolv_conf = resolv_conf(here.strip_suffix("END\n").unwrap());
    Said {
        link: link(words("ip addr replace ")[0], words("ip route replace default via ")[0]),
        mtu: words("ip link set dev eth0 mtu ")[0].parse().ok(),
        hostname: Some(words("echo ")[0].to_owned()),
        ..resolv_conf
    }
}
