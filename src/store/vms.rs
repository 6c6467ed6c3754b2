use std::net::Ipv4Addr;
use std::str::FromStr;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Freed;
use super::error::{Fault, StoreError, Taken};
use super::{policies, user_data};
use crate::model::{
    BurstKib, DhcpOptions, Invalid, NetworkName, RateLimit, RateMbps, Slot, TapOptions, Vm, VmId,
};

pub(super) fn insert(connection: &Connection, vm: &Vm) -> Result<(), Fault> {
    if let Some((what, by)) = holder(connection, vm)? {
        return Err(Fault::Refused(StoreError::Taken { what, by }));
    }
    connection
        .prepare_cached(
            "INSERT INTO vm (vm_id, network, workspace, slot, mac, address, hostname, rate_limit_mbps, created_at_us,
                             dhcp_options, burst_kib, tap_uid, tap_gid, tap_multi_queue, tap_offload)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            vm.vm_id.as_str(),
            vm.network.as_str(),
            vm.workspace.as_ref().map(|workspace| workspace.as_str()),
            vm.slot.0,
            vm.mac.to_string(),
            vm.address.to_string(),
            vm.hostname.as_str(),
            vm.rate_limit.map(|limit| limit.rate.mbps()),
            vm.created_at_us,
            options_text(&vm.dhcp_options)?,
            vm.rate_limit.and_then(|limit| limit.burst).map(BurstKib::kib),
            vm.tap.uid,
            vm.tap.gid,
            vm.tap.multi_queue,
            vm.tap.offload,
        ])?;
    connection
        .prepare_cached("DELETE FROM freed WHERE network = ?1 AND address = ?2")?
        .execute(params![vm.network.as_str(), vm.address.to_string()])?;
    Ok(())
}

/// Changes what of a VM can change while it runs; whether there is such a VM.
pub(super) fn update(connection: &Connection, vm: &Vm) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE vm SET hostname = ?2, rate_limit_mbps = ?3, burst_kib = ?4 WHERE vm_id = ?1",
    )?;
    let (rate, burst) = (vm.rate_limit.map(|limit| limit.rate.mbps()), vm.rate_limit.and_then(|l| l.burst));
    let updated =
        update.execute(params![vm.vm_id.as_str(), vm.hostname.as_str(), rate, burst.map(BurstKib::kib)])?;
    Ok(updated > 0)
}

/// Who has something of `vm`'s that only one VM can have.
fn holder(connection: &Connection, vm: &Vm) -> rusqlite::Result<Option<(Taken, VmId)>> {
    let mut by_vm_id = connection.prepare_cached("SELECT vm_id FROM vm WHERE vm_id = ?1")?;
    let mut by_mac = connection.prepare_cached("SELECT vm_id FROM vm WHERE mac = ?1")?;
    let mut by_address =
        connection.prepare_cached("SELECT vm_id FROM vm WHERE network = ?1 AND address = ?2")?;
    let mut by_slot = connection.prepare_cached("SELECT vm_id FROM vm WHERE slot = ?1")?;
    let first = |row: &Row<'_>| parsed::<VmId>(row, 0);

    if let Some(by) = by_vm_id.query_row([vm.vm_id.as_str()], first).optional()? {
        return Ok(Some((Taken::VmId(vm.vm_id.clone()), by)));
    }
    if let Some(by) = by_mac.query_row([vm.mac.to_string()], first).optional()? {
        return Ok(Some((Taken::Mac(vm.mac), by)));
    }
    let address = params![vm.network.as_str(), vm.address.to_string()];
    if let Some(by) = by_address.query_row(address, first).optional()? {
        return Ok(Some((Taken::Address(vm.network.clone(), vm.address), by)));
    }
    let by = by_slot.query_row([vm.slot.0], first).optional()?;
    Ok(by.map(|by| (Taken::Slot(vm.slot), by)))
}

/// Whether there was such a VM. Its address is kept with the time it became free.
pub(super) fn remove(connection: &Connection, vm_id: &VmId, now_us: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO freed (network, address, freed_at_us)
             SELECT network, address, ?2 FROM vm WHERE vm_id = ?1",
        )?
        .execute(params![vm_id.as_str(), now_us])?;
    user_data::remove(connection, vm_id)?;
    policies::forget(connection, vm_id)?;
    let removed = connection.prepare_cached("DELETE FROM vm WHERE vm_id = ?1")?.execute([vm_id.as_str()])?;
    Ok(removed > 0)
}

/// Every VM, first created first.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<Vm>> {
    let mut select = connection.prepare(
        "SELECT vm_id, network, workspace, slot, mac, address, hostname, rate_limit_mbps, created_at_us,
                dhcp_options, burst_kib, tap_uid, tap_gid, tap_multi_queue, tap_offload
         FROM vm ORDER BY created_at_us, vm_id",
    )?;
    select.query_map([], read)?.collect()
}

pub(super) fn load_freed(connection: &Connection) -> rusqlite::Result<Vec<Freed>> {
    let mut select = connection
        .prepare("SELECT network, address, freed_at_us FROM freed ORDER BY freed_at_us, network, address")?;
    let read = |row: &Row<'_>| {
        Ok(Freed { network: parsed(row, 0)?, address: parsed(row, 1)?, freed_at_us: row.get(2)? })
    };
    select.query_map([], read)?.collect()
}

/// Whether there was any.
pub(super) fn forget_freed(
    connection: &Connection,
    addresses: &[(NetworkName, Ipv4Addr)],
) -> rusqlite::Result<bool> {
    let mut delete = connection.prepare_cached("DELETE FROM freed WHERE network = ?1 AND address = ?2")?;
    let mut forgotten = 0;
    for (network, address) in addresses {
        forgotten += delete.execute(params![network.as_str(), address.to_string()])?;
    }
    Ok(forgotten > 0)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Vm> {
    let workspace = row.get_ref(2)?.as_str_or_null()?.map(|_| parsed(row, 2)).transpose()?;
    let number = |column: usize| row.get::<_, Option<u32>>(column);
    let refused = |column| move |invalid: Invalid| unreadable(column, Type::Integer, invalid);
    let rate = number(7)?.map(RateMbps::try_from).transpose().map_err(refused(7))?;
    let burst = number(10)?.map(BurstKib::try_from).transpose().map_err(refused(10))?;
    Ok(Vm {
        vm_id: parsed(row, 0)?,
        network: parsed(row, 1)?,
        workspace,
        slot: Slot(row.get(3)?),
        mac: parsed(row, 4)?,
        address: parsed(row, 5)?,
        hostname: parsed(row, 6)?,
        rate_limit: rate.map(|rate| RateLimit { rate, burst }),
        tap: TapOptions {
            uid: number(11)?,
            gid: number(12)?,
            multi_queue: row.get(13)?,
            offload: row.get(14)?,
        },
        created_at_us: row.get(8)?,
        dhcp_options: options(row, 9)?,
    })
}

/// DHCP options as they are kept: JSON of what is set.
pub(super) fn options_text(options: &DhcpOptions) -> rusqlite::Result<String> {
    serde_json::to_string(options).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn options(row: &Row<'_>, column: usize) -> rusqlite::Result<DhcpOptions> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|error| unreadable(column, Type::Text, error))
}

/// A text column as the type it was written from.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?.as_str()?.parse().map_err(|error| unreadable(column, Type::Text, error))
}

fn unreadable(
    column: usize,
    r#type: Type,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, r#type, Box::new(error))
}
