use std::fmt;
use std::str::FromStr;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::accounts;
use super::vms::parsed;
use super::writer::Effect;
use crate::model::{IfName, IndexRange, Invalid, Subnet};

/// A network device of this host that we made. Ours by its ifindex: the name alone proves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedLink {
    pub ifindex: u32,
    pub name: IfName,
    pub kind: LinkKind,
    /// The network that it is for.
    pub owner: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    Port,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Port => "port",
        })
    }
}

impl FromStr for LinkKind {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "bridge" => Ok(Self::Bridge),
            "port" => Ok(Self::Port),
            _ => Err(Invalid::new(text, "a kind of link: bridge or port")),
        }
    }
}

/// A kernel setting that we changed, with what it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedSysctl {
    /// Under /proc/sys/net, `ipv4/ip_forward`.
    pub path: String,
    pub old_value: String,
}

/// An ifindex and a device name each belong to one device: an older record of either is of one that is gone.
pub(super) fn record_link(connection: &Connection, link: &OwnedLink) -> rusqlite::Result<()> {
    let mut insert = connection
        .prepare_cached("INSERT OR REPLACE INTO link (ifindex, name, kind, owner) VALUES (?1, ?2, ?3, ?4)")?;
    insert.execute(params![link.ifindex, link.name.as_str(), link.kind.to_string(), link.owner])?;
    Ok(())
}

pub(super) fn forget_link(connection: &Connection, ifindex: u32) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM link WHERE ifindex = ?1")?.execute([ifindex])? > 0)
}

pub(super) fn links(connection: &Connection) -> rusqlite::Result<Vec<OwnedLink>> {
    let mut select = connection.prepare("SELECT ifindex, name, kind, owner FROM link ORDER BY ifindex")?;
    let read = |row: &Row<'_>| {
        Ok(OwnedLink {
            ifindex: row.get(0)?,
            name: parsed(row, 1)?,
            kind: parsed(row, 2)?,
            owner: row.get(3)?,
        })
    };
    select.query_map([], read)?.collect()
}

/// Whether it is news. The first record stands: a second one would take our own value for the host's.
pub(super) fn record_sysctl(connection: &Connection, changed: &ChangedSysctl) -> rusqlite::Result<bool> {
    let mut insert =
        connection.prepare_cached("INSERT OR IGNORE INTO sysctl (path, old_value) VALUES (?1, ?2)")?;
    Ok(insert.execute(params![changed.path, changed.old_value])? > 0)
}

pub(super) fn forget_sysctl(connection: &Connection, path: &str) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM sysctl WHERE path = ?1")?.execute([path])? > 0)
}

pub(super) fn sysctls(connection: &Connection) -> rusqlite::Result<Vec<ChangedSysctl>> {
    let mut select = connection.prepare("SELECT path, old_value FROM sysctl ORDER BY path")?;
    let read = |row: &Row<'_>| Ok(ChangedSysctl { path: row.get(0)?, old_value: row.get(1)? });
    select.query_map([], read)?.collect()
}

pub(super) fn index_range(connection: &Connection) -> rusqlite::Result<IndexRange> {
    let read = |row: &Row<'_>| row.get::<_, u32>(0);
    let first = connection.query_row("SELECT value FROM meta WHERE key = 'first_ifindex'", [], read)?;
    let unreadable = |invalid| rusqlite::Error::FromSqlConversionFailure(0, Type::Integer, Box::new(invalid));
    IndexRange::try_from(first).map_err(unreadable)
}

pub(super) fn record_subnet(connection: &Connection, subnet: Subnet) -> rusqlite::Result<bool> {
    let mut insert = connection.prepare_cached("INSERT OR IGNORE INTO subnet (subnet) VALUES (?1)")?;
    Ok(insert.execute([subnet.to_string()])? > 0)
}

pub(super) fn forget_subnet(connection: &Connection, subnet: Subnet) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM subnet WHERE subnet = ?1")?.execute([subnet.to_string()])? > 0)
}

pub(super) fn subnets(connection: &Connection) -> rusqlite::Result<Vec<Subnet>> {
    connection.prepare("SELECT subnet FROM subnet")?.query_map([], |row| parsed(row, 0))?.collect()
}

/// Another boot has other devices, under numbers that were ours, and its own kernel settings.
pub(super) fn record_boot(connection: &Connection, boot_id: &str) -> rusqlite::Result<Effect> {
    let mut select = connection.prepare_cached("SELECT value FROM meta WHERE key = 'boot_id'")?;
    let before: Option<String> = select.query_row([], |row| row.get(0)).optional()?;
    let effect = match before {
        None => Effect::Changed,
        Some(before) if before == boot_id => return Ok(Effect::Nothing),
        Some(_) => Effect::Rebooted,
    };
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('boot_id', ?1)", [boot_id])?;
    connection.execute_batch("DELETE FROM link; DELETE FROM sysctl; DELETE FROM subnet;")?;
    accounts::forget_devices(connection)?;
    Ok(effect)
}
