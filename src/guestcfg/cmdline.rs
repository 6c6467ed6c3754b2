//! `ip=` on the kernel command line. In: a guest and which program in the guest reads the argument. Out: one line, and
//! warnings for what that reader does not understand.
//!
//! `ip=<client>:<server>:<gateway>:<mask>:<host name>:<device>:<autoconf>:<dns0>:<dns1>`, as in
//! Documentation/admin-guide/nfs/nfsroot.rst, has the mask dotted (a length would be read as an address). A tenth position,
//! an NTP server, is said to the kernel alone: klibc and dracut have none, systemd 252 rejects the whole argument. It ends at the last position that says something: systemd
//! 257 rejects an empty one at the end, and its generator reads the line in any guest that has it. The kernel and klibc
//! stop where the argument does. Device and autoconf are always said, so that nobody asks DHCP on another card.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::check::check;
use super::kernel_line::{Argument, arguments, join};
use super::{DeviceName, Fact, Generated, GuestFile, Options, Refusal, Warning};
use crate::model::{GuestNet, Invalid};

/// Who reads `ip=` in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// The kernel itself (CONFIG_IP_PNP).
    #[default]
    Kernel,
    /// An initramfs made by dracut (dracut.cmdline(7)).
    Dracut,
    /// klibc's ipconfig, in an initramfs made by initramfs-tools.
    Klibc,
    /// systemd-network-generator(8).
    Systemd,
}

impl Dialect {
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Dracut, Self::Klibc, Self::Systemd];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Dracut => "dracut",
            Self::Klibc => "klibc",
            Self::Systemd => "systemd",
        }
    }

    /// dracut and systemd also read `nameserver=`, an MTU in the eighth position, and `systemd.hostname=`.
    fn is_extended(self) -> bool {
        matches!(self, Self::Dracut | Self::Systemd)
    }
}

impl FromStr for Dialect {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = Self::ALL.into_iter().find(|dialect| dialect.as_str() == text);
        known.ok_or_else(|| Invalid::new(text, "a dialect: kernel, dracut, klibc or systemd"))
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The arguments that give a guest its network, joined to those of `options.merge`.
pub fn cmdline(guest: &GuestNet, dialect: Dialect, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    let mut warnings = Vec::new();
    for argument in arguments(options.merge.unwrap_or_default())? {
        warnings.extend(standing(&argument, guest, dialect)?);
    }
    let (ours, unsaid) = if dialect.is_extended() {
        (extended(guest, dialect, &options.device), said_by_extended(guest))
    } else {
        let (held, rest) = first_two(&guest.dns_servers);
        let text = |at: usize| held.get(at).map(ToString::to_string).unwrap_or_default();
        let ntp = guest.options.ntp_servers.first().filter(|_| dialect == Dialect::Kernel);
        let ntp = ntp.map(ToString::to_string).unwrap_or_default();
        (positions(guest, &options.device, [&text(0), &text(1), &ntp]), said_by_nine(guest, &rest))
    };
    let (line, long) = join(options.merge, &ours)?;
    warnings.extend(unsaid);
    warnings.extend(long);
    Ok(Generated::one(GuestFile::text("cmdline", line + "\n"), warnings))
}

/// The dracut dialect built into an initramfs (dracut.conf(5)), for a host that boots without a command line of its own. dracut's
/// module `network` takes what the machine that builds has, and systemd-network-generator reads /proc/cmdline alone.
pub(super) fn dracut_conf(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    let generated = cmdline(guest, Dialect::Dracut, options)?;
    let line = generated.as_text().unwrap_or_default().trim_end();
    let text = format!("add_dracutmodules+=\" network \"\nkernel_cmdline+=\" {line} \"\n");
    let mut warnings = generated.warnings;
    warnings.push(Warning::new(
        Fact::Argument,
        "kernel_cmdline",
        "is not read where dracut takes systemd-networkd: have NetworkManager or network-legacy where the initramfs is built, or \
         give it on the kernel's command line",
    ));
    Ok(Generated::one(GuestFile::text("etc/dracut.conf.d/guestnet.conf", text), warnings))
}

/// Seven positions and up to three more, none empty at the end.
fn positions(guest: &GuestNet, device: &DeviceName, more: [&str; 3]) -> String {
    let GuestNet { address, gateway, subnet, hostname, .. } = guest;
    let mask = subnet.netmask();
    let all = format!("ip={address}::{gateway}:{mask}:{hostname}:{device}:off:{}", more.join(":"));
    all.trim_end_matches(':').to_owned()
}

/// With an MTU of 1500 the argument is the kernel's own, so that a kernel that reads it too is not misled.
fn extended(guest: &GuestNet, dialect: Dialect, device: &DeviceName) -> String {
    let servers = &guest.dns_servers;
    let held = if guest.mtu == 1500 { servers.iter().take(2).take_while(|s| s.is_ipv4()).count() } else { 0 };
    let text = |at: usize| if at < held { servers[at].to_string() } else { String::new() };
    let eighth = if guest.mtu == 1500 { text(0) } else { guest.mtu.to_string() };
    let mut line = positions(guest, device, [&eighth, &text(1), ""]);
    for server in &servers[held..] {
        line += &format!(" nameserver={server}");
    }
    if dialect == Dialect::Dracut {
        // systemd would read rd.route= too, but what begins with rd. only in an initramfs.
        for route in guest.routes().filter(|route| !route.is_on_link()) {
            line += &format!(" rd.route={}:{}:{device}", route.destination, route.via);
        }
        // Where nothing is mounted over the network dracut leaves the card down without being told.
        line += " rd.neednet=1";
    }
    // systemd-network-generator takes the host name of ip= for one to send by DHCP.
    line + &format!(" systemd.hostname={}", guest.hostname)
}

/// The two IPv4 servers that nine positions hold, and the others.
fn first_two(servers: &[IpAddr]) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let (mut v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = servers.iter().partition(|server| server.is_ipv4());
    let beyond = v4.split_off(v4.len().min(2));
    (v4, [v6, beyond].concat())
}

fn said_by_nine(guest: &GuestNet, unsaid_servers: &[IpAddr]) -> Vec<Warning> {
    let servers = unsaid_servers.iter().map(|server| {
        let reason = if server.is_ipv6() {
            "left out: ip= separates by colons, an IPv6 address would be read as something else"
        } else {
            "left out: ip= holds two DNS servers"
        };
        Warning::new(Fact::Dns, server, reason)
    });
    let mtu = (guest.mtu != 1500).then(|| {
        Warning::new(
            Fact::Mtu,
            guest.mtu,
            "left out: ip= has no place for it, the guest uses its card's default",
        )
    });
    servers.chain(mtu).chain(search(guest)).collect()
}

fn said_by_extended(guest: &GuestNet) -> Vec<Warning> {
    search(guest).collect()
}

fn search(guest: &GuestNet) -> impl Iterator<Item = Warning> {
    let reason = "left out: the kernel command line has no place for it";
    guest.search().map(move |domain| Warning::new(Fact::Search, domain, reason))
}

/// What an argument that stands on the line already means for ours.
fn standing(argument: &Argument, guest: &GuestNet, dialect: Dialect) -> Result<Option<Warning>, Refusal> {
    let taken = |ours| Err(Refusal::Taken { found: argument.text.to_owned(), ours });
    let warn = |reason| Ok(Some(Warning::new(Fact::Argument, argument.text, reason)));
    match argument.name.as_str() {
        // nfsaddrs is the kernel's old name for ip (net/ipv4/ipconfig.c); of two the last wins.
        "ip" | "nfsaddrs" => taken("ip="),
        "systemd.hostname" if dialect.is_extended() => taken("systemd.hostname="),
        "systemd.hostname" if argument.value != guest.hostname.as_str() => {
            warn("systemd sets this host name instead of the guest's")
        }
        "rd.route" if dialect == Dialect::Dracut => warn("is set besides the guest's own routes"),
        "nameserver" if dialect.is_extended() => warn("is used besides the guest's own DNS servers"),
        "nameserver" => warn("is read by dracut and systemd only"),
        "network-config" if argument.value == "disabled" => Ok(None),
        "ds" | "network-config" => warn(
            "cloud-init configures the network as well and may set it otherwise: add network-config=disabled",
        ),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guestcfg::fixtures::{demanding_guest, guest};

    fn text(guest: &GuestNet, dialect: Dialect) -> String {
        let generated = cmdline(guest, dialect, &Options::default()).unwrap();
        generated.as_text().unwrap().trim_end().to_owned()
    }

    fn warnings(guest: &GuestNet, dialect: Dialect) -> Vec<String> {
        let generated = cmdline(guest, dialect, &Options::default()).unwrap();
        generated.warnings.iter().map(ToString::to_string).collect()
    }

    fn merged(before: &str, dialect: Dialect) -> Result<Generated, Refusal> {
        cmdline(&guest(), dialect, &Options { merge: Some(before), ..Options::default() })
    }

    #[test]
    fn each_dialect_says_what_its_reader_understands() {
        insta::assert_snapshot!(text(&guest(), Dialect::Kernel), @"ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:8.8.8.8:8.8.4.4");
        insta::assert_snapshot!(text(&guest(), Dialect::Klibc), @"ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:8.8.8.8:8.8.4.4");
        insta::assert_snapshot!(text(&guest(), Dialect::Dracut), @"ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:8.8.8.8:8.8.4.4 rd.neednet=1 systemd.hostname=vm1");
        insta::assert_snapshot!(text(&guest(), Dialect::Systemd), @"ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:8.8.8.8:8.8.4.4 systemd.hostname=vm1");
        insta::assert_snapshot!(text(&demanding_guest(), Dialect::Kernel), @"ip=192.0.2.6::192.0.2.5:255.255.255.252:db-7:eth0:off:192.0.2.5:198.51.100.1");
        insta::assert_snapshot!(text(&demanding_guest(), Dialect::Systemd), @"ip=192.0.2.6::192.0.2.5:255.255.255.252:db-7:eth0:off:9000 nameserver=192.0.2.5 nameserver=198.51.100.1 nameserver=2001:db8::53 nameserver=198.51.100.2 systemd.hostname=db-7");
    }

    #[test]
    fn no_line_ends_in_an_empty_position_which_systemd_257_rejects() {
        let one = GuestNet { dns_servers: vec!["10.100.0.1".parse().unwrap()], ..guest() };
        let none = GuestNet { dns_servers: vec![], ..guest() };
        for dialect in Dialect::ALL {
            let ip = |guest| text(guest, dialect).split(' ').next().unwrap().to_owned();
            assert_eq!(
                ip(&one),
                "ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:10.100.0.1",
                "{dialect}"
            );
            assert_eq!(ip(&none), "ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off", "{dialect}");
        }
    }

    #[test]
    fn what_ip_cannot_say_is_named() {
        assert_eq!(warnings(&guest(), Dialect::Kernel).len(), 1, "the search domain only");
        insta::assert_snapshot!(warnings(&demanding_guest(), Dialect::Kernel).join("\n"), @r"
        DNS server 2001:db8::53: left out: ip= separates by colons, an IPv6 address would be read as something else
        DNS server 198.51.100.2: left out: ip= holds two DNS servers
        MTU 9000: left out: ip= has no place for it, the guest uses its card's default
        search domain 7.example: left out: the kernel command line has no place for it
        ");
        insta::assert_snapshot!(warnings(&demanding_guest(), Dialect::Dracut).join("\n"), @"search domain 7.example: left out: the kernel command line has no place for it");
    }

    #[test]
    fn a_mask_follows_its_prefix() {
        for (subnet, gateway, mask) in [
            ("10.100.0.0/16", "10.100.0.1", "255.255.0.0"),
            ("10.100.0.0/20", "10.100.0.1", "255.255.240.0"),
            ("10.100.1.0/30", "10.100.1.1", "255.255.255.252"),
        ] {
            let guest =
                GuestNet { subnet: subnet.parse().unwrap(), gateway: gateway.parse().unwrap(), ..guest() };
            let line = text(&guest, Dialect::Kernel);
            assert_eq!(line.split(':').nth(3), Some(mask), "{line}");
        }
    }

    #[test]
    fn a_second_ip_argument_is_refused_by_name() {
        for before in ["quiet ip=dhcp", "ip=::::::off", "nfsaddrs=1.2.3.4", "\"ip=dhcp\"", "quiet -- ip=dhcp"]
        {
            let error = merged(before, Dialect::Kernel).unwrap_err().to_string();
            assert!(error.contains("ip=") && error.contains("remove it"), "{error}");
        }
        assert!(merged("vip=1 skip=2 a=\"x ip=y\"", Dialect::Kernel).is_ok());
    }

    #[test]
    fn arguments_that_speak_about_the_network_are_reported() {
        let reported = |before: &str, dialect| -> Vec<String> {
            let warnings = merged(before, dialect).unwrap().warnings;
            warnings.iter().filter(|w| w.fact == Fact::Argument).map(|w| w.value.clone()).collect()
        };
        assert_eq!(reported("nameserver=1.1.1.1 quiet", Dialect::Systemd), ["nameserver=1.1.1.1"]);
        assert_eq!(reported("ds=nocloud;s=/x network-config=YQ==", Dialect::Kernel).len(), 2);
        assert!(reported("network-config=disabled", Dialect::Kernel).is_empty());
        assert_eq!(reported("systemd.hostname=other", Dialect::Kernel), ["systemd.hostname=other"]);
        assert!(merged("systemd.hostname=other", Dialect::Systemd).is_err());
    }

    #[test]
    fn arguments_are_merged_into_one_line() {
        let generated = merged("console=ttyS0 reboot=k -- --debug", Dialect::Kernel).unwrap();
        insta::assert_snapshot!(generated.as_text().unwrap(), @"console=ttyS0 reboot=k ip=10.100.1.2::10.100.0.1:255.255.0.0:vm1:eth0:off:8.8.8.8:8.8.4.4 -- --debug");
        assert!(merged(&"a".repeat(2000), Dialect::Kernel).unwrap_err().to_string().contains("2047"));
    }
}
