//! resolv.conf(5) and hostname(5), alone and beside formats that cannot say them. In: a guest. Out: one file each.

use super::check::check;
use super::{Fact, Generated, GuestFile, Refusal, Warning};
use crate::model::{Domain, GuestNet};

/// /etc/resolv.conf.
pub(super) fn resolv_conf(guest: &GuestNet) -> Result<Generated, Refusal> {
    check(guest)?;
    let (file, warnings) = resolv_conf_file(guest);
    Ok(Generated::one(file, warnings))
}

/// Three servers (MAXNS), as many as glibc and musl read.
pub(super) fn resolv_conf_file(guest: &GuestNet) -> (GuestFile, Vec<Warning>) {
    let (read, unread) = guest.dns_servers.split_at(guest.dns_servers.len().min(3));
    let servers: String = read.iter().map(|server| format!("nameserver {server}\n")).collect();
    let unsaid = |server| Warning::new(Fact::Dns, server, "left out: resolv.conf holds three DNS servers");
    let search: Vec<&str> = guest.search().map(Domain::as_str).collect();
    let file = GuestFile::text("etc/resolv.conf", format!("search {}\n{servers}", search.join(" ")));
    (file, unread.iter().map(unsaid).collect())
}

/// /etc/hostname.
pub(super) fn hostname_file(guest: &GuestNet) -> GuestFile {
    GuestFile::text("etc/hostname", format!("{}\n", guest.hostname))
}
