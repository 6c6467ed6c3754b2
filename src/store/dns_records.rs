use rusqlite::{Connection, params};

use super::vms::parsed;
use crate::model::{DnsRecord, NetworkName};

/// Records that the API was given for the networks' resolvers.
pub(super) const TABLE: &str = "
    CREATE TABLE dns_record (
        network TEXT NOT NULL,
        name TEXT NOT NULL,
        type TEXT NOT NULL,
        value TEXT NOT NULL,
        ttl INTEGER NOT NULL,
        PRIMARY KEY (network, name, type, value)
    ) STRICT, WITHOUT ROWID;
";

/// Whether anything is other than before.
pub(super) fn set(
    connection: &Connection,
    network: &NetworkName,
    record: &DnsRecord,
) -> rusqlite::Result<bool> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO dns_record (network, name, type, value, ttl) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET ttl = excluded.ttl WHERE ttl != excluded.ttl",
    )?;
    let DnsRecord { name, rtype, value, ttl } = record;
    Ok(insert.execute(params![network.as_str(), name.as_str(), rtype, value, ttl])? > 0)
}

/// Whether there was one.
pub(super) fn delete(
    connection: &Connection,
    network: &NetworkName,
    record: &DnsRecord,
) -> rusqlite::Result<bool> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM dns_record WHERE network = ?1 AND name = ?2 AND type = ?3 AND value = ?4",
    )?;
    let DnsRecord { name, rtype, value, .. } = record;
    Ok(delete.execute(params![network.as_str(), name.as_str(), rtype, value])? > 0)
}

pub(super) fn load(connection: &Connection, network: &NetworkName) -> rusqlite::Result<Vec<DnsRecord>> {
    let mut select =
        connection.prepare_cached("SELECT name, type, value, ttl FROM dns_record WHERE network = ?1")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(DnsRecord { name: parsed(row, 0)?, rtype: row.get(1)?, value: row.get(2)?, ttl: row.get(3)? })
    };
    select.query_map([network.as_str()], read)?.collect()
}
