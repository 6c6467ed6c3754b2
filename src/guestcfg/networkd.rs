//! systemd-networkd. In: a guest. Out: a `.network` unit for its image, or the same unit as credentials on the kernel
//! command line, which systemd-network-generator of systemd 256 and later puts in place.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::check::check;
use super::kernel_line::{Argument, arguments, join};
use super::resolv_conf::hostname_file;
use super::{Fact, Generated, GuestFile, Options, Refusal, Warning};
use crate::model::{Domain, GuestNet, StaticRoute};

/// The unit and /etc/hostname. The DNS servers reach programs where systemd-resolved runs.
pub(super) fn networkd(guest: &GuestNet) -> Result<Generated, Refusal> {
    check(guest)?;
    let unit = GuestFile::text("etc/systemd/network/10-guestnet.network", unit(guest));
    Ok(Generated { files: vec![unit, hostname_file(guest)], warnings: Vec::new() })
}

/// The unit as a credential (systemd.system-credentials(7)). The host name as an argument: as a credential only systemd 257 takes
/// it, and only where the image has no /etc/hostname.
pub(super) fn networkd_credential(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    let mut warnings = Vec::new();
    for argument in arguments(options.merge.unwrap_or_default())? {
        warnings.extend(standing(&argument)?);
    }
    let ours = format!(
        "systemd.set_credential_binary=network.network.10-guestnet:{} systemd.hostname={}",
        BASE64.encode(unit(guest)),
        guest.hostname
    );
    let (line, long) = join(options.merge, &ours)?;
    warnings.extend(long);
    warnings.push(Warning::new(
        Fact::Argument,
        "systemd.set_credential_binary",
        "needs systemd 256 in the guest: an older one ignores it and leaves the card as it is",
    ));
    Ok(Generated::one(GuestFile::text("boot-args", line + "\n"), warnings))
}

fn standing(argument: &Argument) -> Result<Option<Warning>, Refusal> {
    let taken = |ours| Err(Refusal::Taken { found: argument.text.to_owned(), ours });
    if argument.name.starts_with("systemd.set-credential")
        && argument.value.starts_with("network.network.10-guestnet:")
    {
        return taken("our credential of that name");
    }
    if argument.name == "systemd.hostname" {
        return taken("systemd.hostname=");
    }
    let fights = matches!(argument.name.as_str(), "ip" | "nfsaddrs" | "ds" | "network-config");
    Ok(fights
        .then(|| Warning::new(Fact::Argument, argument.text, "configures the same card by another program")))
}

fn unit(guest: &GuestNet) -> String {
    let GuestNet { mac, address, subnet, gateway, mtu, .. } = guest;
    let dns: String = guest.dns_servers.iter().map(|server| format!("DNS={server}\n")).collect();
    let ntp: String = guest.options.ntp_servers.iter().map(|server| format!("NTP={server}\n")).collect();
    let search: Vec<&str> = guest.search().map(Domain::as_str).collect();
    let search = search.join(" ");
    let routes: String = guest.routes().map(route).collect();
    let prefix_len = subnet.prefix_len();
    // Router advertisements are no one's to send on this network, so none is waited for or believed.
    format!(
        "[Match]\nMACAddress={mac}\nType=ether\n\n[Link]\nMTUBytes={mtu}\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n\
         Address={address}/{prefix_len}\nGateway={gateway}\n{dns}{ntp}Domains={search}\n{routes}"
    )
}

fn route(route: &StaticRoute) -> String {
    let way = if route.is_on_link() { "Scope=link".to_owned() } else { format!("Gateway={}", route.via) };
    format!("\n[Route]\nDestination={}\n{way}\n", route.destination)
}
