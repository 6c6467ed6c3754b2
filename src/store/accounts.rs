use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::vms::parsed;
use crate::model::{Account, VmId};

/// Of a VM that is stored; that of one that has been removed meanwhile is nobody's.
pub(super) fn keep(connection: &Connection, vm_id: &VmId, account: &Account) -> rusqlite::Result<()> {
    let (device, numbers) = account.to_parts();
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO account (vm_id, device, numbers) SELECT vm_id, ?2, ?3 FROM vm WHERE vm_id = ?1",
        )?
        .execute(params![vm_id.as_str(), device, numbers])?;
    Ok(())
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<(VmId, Account)>> {
    let mut select = connection.prepare("SELECT vm_id, device, numbers FROM account")?;
    let read = |row: &Row<'_>| {
        let account = Account::from_parts(row.get(1)?, row.get_ref(2)?.as_blob()?);
        let unreadable = || rusqlite::Error::InvalidColumnType(2, "numbers".into(), Type::Blob);
        Ok((parsed(row, 0)?, account.ok_or_else(unreadable)?))
    };
    select.query_map([], read)?.collect()
}

/// Another boot counts from 0 on devices of its own, under numbers that mean nothing any more.
pub(super) fn forget_devices(connection: &Connection) -> rusqlite::Result<()> {
    for (vm_id, mut account) in load(connection)? {
        account.device_is_gone();
        keep(connection, &vm_id, &account)?;
    }
    Ok(())
}
