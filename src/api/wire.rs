//! Wire types to the model and back, nothing else: what a request's text means, how a binding is written. Pure. In:
//! messages as they were decoded, any text in them. Out: checked values, or the field, its value and what fits.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use buffa::view::MessageView as _;
use buffa_types::google::protobuf::Timestamp;
use ipnetwork::Ipv4Network;

use crate::dns::{DnsAdmin, DnsControl};
use crate::events::{Event, EventKind};
use crate::manager::{CreateVm, NetworkStatus, UpdateVm};
use crate::model::{
    BurstKib, DhcpOptions, GuestNet, Invalid, Mac, NetworkName, Rate, RateMbps, RateRequest, Subnet,
    TapRequest, Vm, VmId,
};
use crate::proto::guestnet::v1;
use crate::registry::Binding;

/// A field whose value does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {invalid}")]
pub struct FieldError {
    /// Name of the field in the proto.
    pub field: &'static str,
    pub invalid: Invalid,
}

impl FieldError {
    /// An error names the value, but does not send a megabyte of it back.
    const SHOWN: usize = 80;

    pub fn new(field: &'static str, mut invalid: Invalid) -> Self {
        if let Some((cut, _)) = invalid.value.char_indices().nth(Self::SHOWN) {
            invalid.value.truncate(cut);
            invalid.value.push('…');
        }
        Self { field, invalid }
    }
}

pub(super) fn parse<T: FromStr<Err = Invalid>>(field: &'static str, text: &str) -> Result<T, FieldError> {
    text.parse().map_err(|invalid| FieldError::new(field, invalid))
}

pub fn parse_set<T: FromStr<Err = Invalid>>(
    field: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, FieldError> {
    text.map(|text| parse(field, text)).transpose()
}

pub fn parse_address(field: &'static str, text: &str) -> Result<Ipv4Addr, FieldError> {
    let invalid = |_| Invalid::new(text, "an IPv4 address like 10.100.0.7");
    text.parse().map_err(invalid).map_err(|invalid| FieldError::new(field, invalid))
}

pub fn vm_id(text: &str) -> Result<VmId, FieldError> {
    parse("vm_id", text)
}

pub fn network_id(text: Option<&str>) -> Result<Option<NetworkName>, FieldError> {
    parse_set("network_id", text)
}

pub fn event_kind(text: &str) -> Result<EventKind, FieldError> {
    parse("kinds", text)
}

pub fn create_vm(request: &v1::CreateVmNetworkRequestView<'_>) -> Result<CreateVm, FieldError> {
    let options = request.dhcp_options.as_option().map(|options| options.to_owned_message()).transpose();
    let unreadable =
        |error| FieldError::new("dhcp_options", Invalid::new(error, "a message of DHCP options"));
    let options = options.map_err(unreadable)?;
    Ok(CreateVm {
        vm_id: vm_id(request.vm_id)?,
        network: network_id(request.network_id)?,
        workspace: parse_set("workspace_id", request.workspace_id)?,
        address: request.ip_address.map(|text| parse_address("ip_address", text)).transpose()?,
        mac: parse_set("mac_address", request.mac_address)?,
        hostname: parse_set("hostname", request.hostname)?,
        rate_limit: rate_request(request.rate_limit_mbps, request.burst_kib)?,
        tap: TapRequest {
            uid: id("tap_uid", request.tap_uid)?,
            gid: id("tap_gid", request.tap_gid)?,
            multi_queue: request.tap_multi_queue,
            offload: request.tap_offload,
        },
        dhcp_options: options.as_ref().map(super::reservations::options).transpose()?,
    })
}

pub fn update_vm(request: &v1::UpdateVmNetworkRequestView<'_>) -> Result<UpdateVm, FieldError> {
    Ok(UpdateVm {
        vm_id: vm_id(request.vm_id)?,
        hostname: parse_set("hostname", request.hostname)?,
        rate_limit: rate_request(request.rate_limit_mbps, request.burst_kib)?,
    })
}

fn rate_request(rate_mbps: Option<u32>, burst_kib: Option<u32>) -> Result<RateRequest, FieldError> {
    let rate = |mbps: u32| match mbps {
        0 => Ok(Rate::Unlimited),
        mbps => RateMbps::try_from(mbps).map(Rate::Limited),
    };
    let refused = |field| move |invalid| FieldError::new(field, invalid);
    Ok(RateRequest {
        rate: rate_mbps.map(rate).transpose().map_err(refused("rate_limit_mbps"))?,
        burst: burst_kib.map(BurstKib::try_from).transpose().map_err(refused("burst_kib"))?,
    })
}

/// A user's or group's id: the last number means "none" to the kernel.
fn id(field: &'static str, id: Option<u32>) -> Result<Option<u32>, FieldError> {
    match id {
        Some(u32::MAX) => Err(FieldError::new(field, Invalid::new(u32::MAX, "an id of 0 to 4294967294"))),
        id => Ok(id),
    }
}

pub fn vm_network(binding: &Binding) -> v1::VmNetwork {
    let Binding { vm, guest, .. } = binding;
    v1::VmNetwork {
        vm_id: vm.vm_id.to_string(),
        network_id: vm.network.to_string(),
        workspace_id: vm.workspace.as_ref().map(ToString::to_string).unwrap_or_default(),
        namespace: vm.vm_id.namespace(),
        tap_device: Vm::TAP.to_owned(),
        ip_address: guest.address.to_string(),
        netmask: guest.subnet.netmask().to_string(),
        prefix_len: u32::from(guest.subnet.prefix_len()),
        gateway: guest.gateway.to_string(),
        mac_address: guest.mac.to_string(),
        dns_servers: guest.dns_servers.iter().map(ToString::to_string).collect(),
        hostname: guest.hostname.to_string(),
        mtu: u32::from(guest.mtu),
        host_device: vm.slot.host_device().to_string(),
        created_at: timestamp_us(vm.created_at_us).into(),
        rate_limit_mbps: vm.rate_limit.map(|limit| limit.rate.mbps()).unwrap_or_default(),
        burst_kib: vm.rate_limit.map(|limit| limit.burst().kib()).unwrap_or_default(),
        tap_uid: vm.tap.uid,
        tap_gid: vm.tap.gid,
        tap_multi_queue: vm.tap.multi_queue,
        tap_offload: vm.tap.offload,
        domain: guest.domain.to_string(),
        dhcp_options: (guest.options != DhcpOptions::default())
            .then(|| super::reservations::wire_options(&guest.options))
            .into(),
        ..Default::default()
    }
}

pub fn event(event: &Event) -> v1::Event {
    v1::Event {
        at: timestamp(event.at).into(),
        kind: event.kind.as_str().to_owned(),
        vm_id: event.vm_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        network_id: event.network.as_ref().map(ToString::to_string).unwrap_or_default(),
        detail: event.detail.clone(),
        ..Default::default()
    }
}

/// With the upstreams that its resolver asks now, if it has one: they change without a restart.
pub fn network(status: &NetworkStatus, dns: &DnsAdmin) -> v1::Network {
    let network = &status.network;
    let asked = dns.one(Some(&network.name)).map_or_else(|_| network.clone(), DnsControl::settings);
    v1::Network {
        network_id: network.name.to_string(),
        bridge_name: network.bridge.as_str().to_owned(),
        gateway: network.gateway.to_string(),
        vm_subnet: network.subnet.to_string(),
        dns_servers: asked.upstreams.iter().map(ToString::to_string).collect(),
        domain: network.domain.to_string(),
        mtu: u32::from(network.mtu),
        vm_count: status.vm_count,
        free_addresses: status.free_addresses,
        plumbing: network.plumbing.as_str().to_owned(),
        ..Default::default()
    }
}

/// What a guest is told, back from an answer of the API: the generators of guest configuration work on this value.
pub fn guest_net(vm: &v1::VmNetwork) -> Result<GuestNet, FieldError> {
    let gateway = parse_address("gateway", &vm.gateway)?;
    let dns_server = |text: &String| {
        let invalid = |_| Invalid::new(text, "an IP address");
        text.parse::<IpAddr>().map_err(invalid).map_err(|invalid| FieldError::new("dns_servers", invalid))
    };
    Ok(GuestNet {
        mac: parse::<Mac>("mac_address", &vm.mac_address)?,
        address: parse_address("ip_address", &vm.ip_address)?,
        subnet: subnet_of(gateway, vm.prefix_len)?,
        gateway,
        dns_servers: vm.dns_servers.iter().map(dns_server).collect::<Result<_, _>>()?,
        hostname: parse("hostname", &vm.hostname)?,
        domain: parse("domain", &vm.domain)?,
        mtu: u16::try_from(vm.mtu)
            .map_err(|_| FieldError::new("mtu", Invalid::new(vm.mtu, "an MTU of at most 65535")))?,
        options: vm
            .dhcp_options
            .as_option()
            .map(super::reservations::options)
            .transpose()?
            .unwrap_or_default(),
    })
}

fn subnet_of(gateway: Ipv4Addr, prefix_len: u32) -> Result<Subnet, FieldError> {
    let invalid = || FieldError::new("prefix_len", Invalid::new(prefix_len, "a prefix length of 8 to 30"));
    let prefix = u8::try_from(prefix_len).map_err(|_| invalid())?;
    let network = Ipv4Network::new(gateway, prefix).map_err(|_| invalid())?;
    let network = Ipv4Network::new(network.network(), prefix).map_err(|_| invalid())?;
    Subnet::try_from(network).map_err(|_| invalid())
}

fn timestamp_us(us: i64) -> Timestamp {
    // 0 to 999,999,000: fits.
    #[allow(clippy::cast_possible_truncation)]
    let nanos = (us.rem_euclid(1_000_000) * 1_000) as i32;
    Timestamp::from_unix(us.div_euclid(1_000_000), nanos)
}

/// A time before 1970 can only be a clock not yet set: it is written as 1970.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Below 1,000,000,000: fits.
    #[allow(clippy::cast_possible_wrap)]
    let nanos = since.subsec_nanos() as i32;
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::model::{DnsMode, Network, RateLimit, Slot, TapOptions, testing};

    fn limit(mbps: u32) -> Option<RateLimit> {
        Some(RateLimit { rate: mbps.try_into().unwrap(), burst: None })
    }

    fn binding(rate_limit: Option<u32>) -> Binding {
        let network = Network {
            name: "default".parse().unwrap(),
            bridge: "br-vms".parse().unwrap(),
            subnet: "10.100.0.0/20".parse().unwrap(),
            gateway: [10, 100, 15, 254].into(),
            router: [10, 100, 15, 254].into(),
            upstreams: vec!["8.8.8.8".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            dns: DnsMode::Off,
            resolver: crate::model::ResolverSettings::default(),
            domain: "vm.internal".parse().unwrap(),
            mtu: 9000,
            reserved: Vec::new(),
            rate_limit: limit(100),
            lease_seconds: 3600,
            ..testing::network()
        };
        let vm = Vm {
            vm_id: "web_1".parse().unwrap(),
            network: network.name.clone(),
            workspace: Some("acme".parse().unwrap()),
            slot: Slot(7),
            mac: "06:00:0a:64:01:02".parse().unwrap(),
            address: [10, 100, 1, 2].into(),
            hostname: "web-1".parse().unwrap(),
            rate_limit: rate_limit.and_then(limit),
            tap: TapOptions { uid: Some(1_000), ..TapOptions::default() },
            created_at_us: 1_790_000_000_123_456,
            ..testing::vm(1)
        };
        Binding::new(vm, Arc::new(network))
    }

    #[test]
    fn a_binding_is_written_with_every_fact_of_the_contract() {
        let wire = vm_network(&binding(Some(5)));
        let expected = v1::VmNetwork {
            vm_id: "web_1".into(),
            network_id: "default".into(),
            workspace_id: "acme".into(),
            namespace: "vm-web_1".into(),
            tap_device: "tap0".into(),
            ip_address: "10.100.1.2".into(),
            netmask: "255.255.240.0".into(),
            prefix_len: 20,
            gateway: "10.100.15.254".into(),
            mac_address: "06:00:0a:64:01:02".into(),
            dns_servers: vec!["8.8.8.8".into(), "2001:db8::1".into()],
            hostname: "web-1".into(),
            mtu: 9000,
            host_device: "gv7".into(),
            created_at: Timestamp::from_unix(1_790_000_000, 123_456_000).into(),
            rate_limit_mbps: 5,
            burst_kib: 72,
            tap_uid: Some(1_000),
            tap_offload: true,
            domain: "vm.internal".into(),
            ..Default::default()
        };
        assert_eq!(wire, expected);
        let unlimited = vm_network(&binding(None));
        assert_eq!(
            (unlimited.rate_limit_mbps, unlimited.burst_kib),
            (0, 0),
            "whatever its network's default"
        );
    }

    #[test]
    fn what_a_guest_is_told_survives_the_wire() {
        let binding = binding(None);
        assert_eq!(guest_net(&vm_network(&binding)).unwrap(), binding.guest);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_an_error_that_names_the_field() {
        type Break = fn(&mut v1::VmNetwork);
        let broken: [(&str, Break); 7] = [
            ("mac_address", |vm| vm.mac_address.clear()),
            ("ip_address", |vm| vm.ip_address = "10.100.1.2/20".into()),
            ("prefix_len", |vm| vm.prefix_len = 300),
            ("prefix_len", |vm| vm.prefix_len = 31),
            ("dns_servers", |vm| vm.dns_servers.push("dns".into())),
            ("hostname", |vm| vm.hostname = "a\nb".into()),
            ("mtu", |vm| vm.mtu = 70_000),
        ];
        for (field, break_it) in broken {
            let mut vm = vm_network(&binding(None));
            break_it(&mut vm);
            assert_eq!(guest_net(&vm).unwrap_err().field, field);
        }
    }

    #[test]
    fn times_before_1970_do_not_wrap() {
        assert_eq!(timestamp_us(-1), Timestamp::from_unix(-1, 999_999_000));
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(5)), Timestamp::from_unix(0, 0));
    }
}
