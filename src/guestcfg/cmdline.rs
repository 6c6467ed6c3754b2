use std::net::{IpAddr, Ipv4Addr};

use super::{Generated, Refusal};
use crate::model::{GuestNet, IfName};

/// `ip=` as the kernel reads it (Documentation/admin-guide/nfs/nfsroot.rst): nine fields, always all of them, the mask
/// dotted, because a prefix length is read as an address. A tenth (NTP) would make systemd 252 reject the line.
pub fn cmdline(net: &GuestNet, device: &IfName) -> Result<Generated<String>, Refusal> {
    let mut warnings = Vec::new();
    let dns: Vec<Ipv4Addr> = net
        .dns_servers
        .iter()
        .filter_map(|server| match server {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(address) => {
                warnings.push(format!("ip= cannot name the IPv6 DNS server {address}: it is left out"));
                None
            }
        })
        .collect();
    if let Some(rest) = dns.get(2..).filter(|rest| !rest.is_empty()) {
        let rest = rest.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        warnings.push(format!("ip= has room for two DNS servers: {rest} is left out"));
    }
    if net.mtu != 1500 {
        warnings.push(format!("ip= cannot set an MTU: the guest has to set {} itself", net.mtu));
    }
    let server = |n: usize| dns.get(n).map(ToString::to_string).unwrap_or_default();
    let text = format!(
        "ip={}::{}:{}:{}:{device}:off:{}:{}",
        net.address,
        net.gateway,
        net.subnet.netmask(),
        net.hostname,
        server(0),
        server(1)
    );
    Ok(Generated { content: super::within_limit(text)?, warnings })
}
