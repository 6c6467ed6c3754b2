use super::*;
use crate::model::{GuestNet, testing};

fn net() -> GuestNet {
    GuestNet::new(&testing::network(), &testing::vm(1))
}

#[test]
fn the_kernel_gets_a_dotted_mask_and_all_nine_fields() {
    let generated = cmdline(&net(), &"eth0".parse().unwrap()).unwrap();
    assert_eq!(generated.content, "ip=10.100.0.2::10.100.0.1:255.255.0.0:vm1:eth0:off:10.100.0.1:");
    assert_eq!(generated.warnings, Vec::<String>::new());
}

#[test]
fn what_ip_cannot_say_is_said_in_a_warning() {
    let mut net = net();
    net.dns_servers = ["8.8.8.8", "fd00::1", "8.8.4.4", "9.9.9.9"].map(|text| text.parse().unwrap()).into();
    net.mtu = 9000;
    let generated = cmdline(&net, &"eth0".parse().unwrap()).unwrap();
    assert!(generated.content.ends_with(":off:8.8.8.8:8.8.4.4"), "{}", generated.content);
    let warnings = generated.warnings.join("\n");
    for left_out in ["fd00::1", "9.9.9.9", "9000"] {
        assert!(warnings.contains(left_out), "{warnings}");
    }
}

#[test]
fn cloud_init_files_say_the_same() {
    let files = nocloud(&net()).unwrap().content;
    assert_eq!(
        files.iter().map(|file| file.name).collect::<Vec<_>>(),
        ["meta-data", "user-data", "network-config"]
    );
    insta::assert_snapshot!(files[2].content, @r#"
    version: 2
    ethernets:
      eth0:
        match:
          macaddress: "06:00:0a:64:00:02"
        set-name: eth0
        dhcp4: false
        dhcp6: false
        addresses:
          - "10.100.0.2/16"
        routes:
          - to: "0.0.0.0/0"
            via: "10.100.0.1"
        mtu: 1500
        nameservers:
          addresses: ["10.100.0.1"]
          search: ["vm.internal"]
    "#);
}

#[test]
fn another_assignment_is_another_instance() {
    let (mut other, first) = (net(), nocloud(&net()).unwrap().content);
    assert_eq!(first, nocloud(&other).unwrap().content);
    other.mtu = 1400;
    assert_ne!(first[0], nocloud(&other).unwrap().content[0]);
}

#[test]
fn boot_args_carry_the_network_config_and_fit() {
    let args = cloud_init_boot_args(&net()).unwrap().content;
    assert!(args.starts_with("ds=nocloud;i=guestnet-") && args.contains(";h=vm1 network-config="), "{args}");
    let mut long = net();
    long.dns_servers = vec!["8.8.8.8".parse().unwrap(); 200];
    assert!(matches!(cloud_init_boot_args(&long), Err(Refusal::TooLong { .. })));
}

#[test]
fn an_address_or_gateway_off_the_subnet_is_refused() {
    assert_eq!(check(&net()), Ok(()));
    for change in [
        (|net: &mut GuestNet| net.gateway = [10, 101, 0, 1].into()) as fn(&mut GuestNet),
        |net| net.gateway = net.address,
        |net| net.address = [10, 100, 255, 255].into(),
        |net| net.mtu = 100,
    ] {
        let mut net = net();
        change(&mut net);
        assert!(check(&net).is_err(), "{net:?}");
    }
}
