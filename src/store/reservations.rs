use std::sync::Arc;

use rusqlite::{Connection, params};

use super::vms::{options, options_text, parsed};
use crate::model::{Mac, NetworkName, Reservation};

/// The caller has made sure that their MACs and addresses are free.
pub(super) fn insert(connection: &Connection, reservations: &[Arc<Reservation>]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO reservation (network, mac, address, hostname, dhcp_options) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for reservation in reservations {
        insert.execute(params![
            reservation.network.as_str(),
            reservation.mac.to_string(),
            reservation.address.to_string(),
            reservation.hostname.as_str(),
            options_text(&reservation.options)?,
        ])?;
    }
    Ok(())
}

/// Whether there was one.
pub(super) fn remove(connection: &Connection, network: &NetworkName, mac: Mac) -> rusqlite::Result<bool> {
    let mut delete = connection.prepare_cached("DELETE FROM reservation WHERE network = ?1 AND mac = ?2")?;
    Ok(delete.execute(params![network.as_str(), mac.to_string()])? > 0)
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<Reservation>> {
    let mut select =
        connection.prepare("SELECT network, mac, address, hostname, dhcp_options FROM reservation")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Reservation {
            network: parsed(row, 0)?,
            mac: parsed(row, 1)?,
            address: parsed(row, 2)?,
            hostname: parsed(row, 3)?,
            options: options(row, 4)?,
        })
    };
    select.query_map([], read)?.collect()
}
