use std::net::IpAddr;

use super::Refusal;
use crate::model::{GuestNet, StaticRoute};

/// Whether a guest's facts fit together, so that a guest told all of them is online. Every generator asks this first:
/// the seed's own examples were well-formed text that left the guest without a route.
pub(super) fn check(guest: &GuestNet) -> Result<(), Refusal> {
    let GuestNet { address, subnet, gateway, mtu, .. } = *guest;
    if !subnet.has_host(address) {
        return Err(Refusal::Address { address, subnet });
    }
    if !subnet.has_host(gateway) {
        return Err(Refusal::GatewayOffLink { gateway, subnet });
    }
    if gateway == address {
        return Err(Refusal::GatewayIsGuest { gateway });
    }
    if let Some(server) = guest.dns_servers.iter().find(|server| !is_unicast(server)) {
        return Err(Refusal::DnsServer(*server));
    }
    let options = &guest.options;
    if let Some(server) = options.ntp_servers.iter().find(|server| !is_unicast(&IpAddr::V4(**server))) {
        return Err(Refusal::NtpServer(*server));
    }
    let off_link = |route: &&StaticRoute| !route.is_on_link() && !subnet.has_host(route.via);
    if let Some(route) = options.static_routes.iter().find(off_link) {
        return Err(Refusal::RouteOffLink { route: *route, subnet });
    }
    if mtu < 68 {
        return Err(Refusal::Mtu(mtu));
    }
    Ok(())
}

fn is_unicast(server: &IpAddr) -> bool {
    let broadcast = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    !server.is_unspecified() && !server.is_multicast() && *server != broadcast
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guestcfg::fixtures::guest;

    #[test]
    fn facts_that_leave_a_guest_offline_are_refused_by_name() {
        let refusal = |change: fn(&mut GuestNet)| {
            let mut guest = guest();
            change(&mut guest);
            check(&guest).unwrap_err().to_string()
        };
        assert!(check(&guest()).is_ok());
        assert!(refusal(|g| g.gateway = "10.101.0.1".parse().unwrap()).contains("10.101.0.1"));
        assert!(refusal(|g| g.gateway = g.address).contains("own address"));
        assert!(refusal(|g| g.address = "10.100.255.255".parse().unwrap()).contains("10.100.255.255"));
        assert!(refusal(|g| g.address = "10.100.0.0".parse().unwrap()).contains("10.100.0.0/16"));
        assert!(refusal(|g| g.dns_servers = vec!["0.0.0.0".parse().unwrap()]).contains("0.0.0.0"));
        assert!(refusal(|g| g.dns_servers = vec!["ff02::1".parse().unwrap()]).contains("ff02::1"));
        assert!(
            refusal(|g| g.options.ntp_servers = vec!["224.0.1.1".parse().unwrap()]).contains("224.0.1.1")
        );
        let route = "10.1.0.0/16 via 10.200.0.1";
        let refused =
            refusal(|g| g.options.static_routes = vec!["10.1.0.0/16 via 10.200.0.1".parse().unwrap()]);
        assert!(refused.contains(route) && refused.contains("10.100.0.0/16"), "{refused}");
        assert!(refusal(|g| g.mtu = 67).contains("67"));
    }
}
