use super::*;
use crate::guestcfg::fixtures::{demanding_guest, guest};

const V1: NetworkConfigVersion = NetworkConfigVersion::V1;
const V2: NetworkConfigVersion = NetworkConfigVersion::V2;

fn made(guest: &GuestNet, form: Form, version: NetworkConfigVersion) -> Generated {
    cloud_init(guest, form, version, &Options::default()).unwrap()
}

fn file<'a>(generated: &'a Generated, path: &str) -> &'a str {
    let file = generated.files.iter().find(|file| file.path == path).unwrap();
    std::str::from_utf8(&file.bytes).unwrap()
}

#[test]
fn a_seed_has_the_four_files() {
    let seed = made(&guest(), Form::NocloudDir, V2);
    let paths: Vec<&str> = seed.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["meta-data", "user-data", "network-config", "vendor-data"]);
    insta::assert_snapshot!(file(&seed, "meta-data"), @r#"
    instance-id: "iid-b42ccf7a65f26d69"
    local-hostname: "vm1"
    "#);
    insta::assert_snapshot!(file(&seed, "network-config"), @r#"
    version: 2
    ethernets:
      eth0:
        match:
          macaddress: "06:00:0a:64:01:02"
        set-name: "eth0"
        dhcp4: false
        mtu: 1500
        addresses:
          - "10.100.1.2/16"
        routes:
          - to: "0.0.0.0/0"
            via: "10.100.0.1"
        nameservers:
          addresses:
            - "8.8.8.8"
            - "8.8.4.4"
          search:
            - "vm.internal"
    "#);
    insta::assert_snapshot!(file(&seed, "vendor-data"), @r#"
    #cloud-config
    hostname: "vm1"
    fqdn: "vm1.vm.internal"
    prefer_fqdn_over_hostname: false
    "#);
    insta::assert_snapshot!(file(&seed, "user-data"), @r"
    #cloud-config
    {}
    ");
}

#[test]
fn version_1_says_the_same() {
    let seed = made(&demanding_guest(), Form::NocloudDir, V1);
    insta::assert_snapshot!(file(&seed, "network-config"), @r#"
    version: 1
    config:
      - type: "physical"
        name: "eth0"
        mac_address: "02:00:10:20:30:40"
        mtu: 9000
        subnets:
          - type: "static"
            address: "192.0.2.6/30"
            gateway: "192.0.2.5"
            dns_nameservers:
              - "192.0.2.5"
              - "198.51.100.1"
              - "2001:db8::53"
              - "198.51.100.2"
            dns_search:
              - "7.example"
    "#);
}

#[test]
fn a_mac_of_digits_stays_text() {
    let seed = made(&demanding_guest(), Form::NocloudDir, V2);
    assert!(file(&seed, "network-config").contains("macaddress: \"02:00:10:20:30:40\""));
}

#[test]
fn a_drop_in_and_a_plan_have_the_network_key() {
    insta::assert_snapshot!(made(&guest(), Form::CloudCfgD, V2).as_text().unwrap(), @r#"
    hostname: "vm1"
    fqdn: "vm1.vm.internal"
    prefer_fqdn_over_hostname: false
    network:
      version: 2
      ethernets:
        eth0:
          match:
            macaddress: "06:00:0a:64:01:02"
          set-name: "eth0"
          dhcp4: false
          mtu: 1500
          addresses:
            - "10.100.1.2/16"
          routes:
            - to: "0.0.0.0/0"
              via: "10.100.0.1"
          nameservers:
            addresses:
              - "8.8.8.8"
              - "8.8.4.4"
            search:
              - "vm.internal"
    "#);
    let plan = made(&guest(), Form::Netplan, V2);
    assert_eq!(plan.files[0].mode, 0o600);
    assert!(file(&plan, "etc/netplan/60-guestnet.yaml").starts_with("network:\n  version: 2\n"));
    assert_eq!(file(&plan, "etc/hostname"), "vm1\n");
    let refused = cloud_init(&guest(), Form::Netplan, V1, &Options::default());
    assert_eq!(refused, Err(Refusal::NetplanIsVersion2));
}

#[test]
fn boot_args_join_the_line_before_them() {
    let merged = |before| {
        let options = Options { merge: Some(before), ..Options::default() };
        cloud_init(&guest(), Form::BootArgs, V2, &options)
    };
    let line = merged("console=ttyS0 -- --x").unwrap();
    let line = line.as_text().unwrap();
    assert!(line.starts_with("console=ttyS0 ds=nocloud;i=iid-") && line.ends_with(" -- --x\n"), "{line}");
    for taken in ["ds=nocloud", "network-config=disabled", "quiet ds=ec2"] {
        assert!(merged(taken).unwrap_err().to_string().contains("remove it"), "{taken}");
    }
    for warned in ["ip=dhcp", "nameserver=1.1.1.1", "cloud-init=disabled"] {
        assert_eq!(merged(warned).unwrap().warnings[0].value, warned);
    }
    assert!(merged(&"a".repeat(1900)).unwrap_err().to_string().contains("2047"));
}

#[test]
fn a_new_assignment_is_a_new_instance() {
    let before = instance_id(&guest());
    assert_eq!(before, instance_id(&guest()));
    assert_eq!(
        before, "iid-b42ccf7a65f26d69",
        "stable over releases: another value would rerun every guest's first boot"
    );
    let changes: [fn(&mut GuestNet); 7] = [
        |g| g.address = "10.100.1.3".parse().unwrap(),
        |g| g.mtu = 9000,
        |g| g.hostname = "vm2".parse().unwrap(),
        |g| g.dns_servers.reverse(),
        |g| g.domain = "other".parse().unwrap(),
        |g| g.options.ntp_servers.push("10.100.0.1".parse().unwrap()),
        |g| g.options.static_routes.push("10.1.0.0/16 via 10.100.0.9".parse().unwrap()),
    ];
    for change in changes {
        let mut other = guest();
        change(&mut other);
        assert_ne!(instance_id(&other), before);
    }
}

#[test]
fn user_data_reaches_the_guest_as_it_is_or_is_refused() {
    let seed = |user_data| {
        let options = Options { user_data: Some(user_data), ..Options::default() };
        cloud_init(&guest(), Form::NocloudDir, V2, &options)
    };
    for good in
        [&b"#cloud-config\nusers: []\n"[..], b"#!/bin/sh\n", b"", b"\x1f\x8b\x08\xff", b"MIME-Version: 1.0\n"]
    {
        let seed = seed(good).unwrap();
        assert_eq!(seed.files[1].bytes, good);
        assert!(seed.warnings.is_empty());
    }
    assert!(seed(b"users: []").unwrap().warnings[0].to_string().contains("users: []"));
    assert!(seed(b"#!/bin/sh\n\xff").unwrap_err().to_string().contains("byte 10 is 0xff"));
    assert!(seed(b"#!\0").unwrap_err().to_string().contains("0x00"));
    assert!(seed(&vec![b'#'; 1024 * 1024 + 1]).unwrap_err().to_string().contains("1048577"));
}
