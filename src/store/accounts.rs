use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::StoredAccount;
use super::vms::parsed;
use crate::model::Account;

/// Of a VM that is stored; that of one that has been removed meanwhile is nobody's, though another VM may have its id.
pub(super) fn keep(connection: &Connection, stored: &StoredAccount) -> rusqlite::Result<()> {
    let StoredAccount { vm_id, created_at_us, account } = stored;
    let (device, numbers) = account.to_parts();
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO account (vm_id, device, numbers)
             SELECT vm_id, ?3, ?4 FROM vm WHERE vm_id = ?1 AND created_at_us = ?2",
        )?
        .execute(params![vm_id.as_str(), created_at_us, device, numbers])?;
    Ok(())
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<StoredAccount>> {
    let mut select = connection
        .prepare("SELECT vm_id, created_at_us, device, numbers FROM account JOIN vm USING (vm_id)")?;
    let read = |row: &Row<'_>| {
        let account = Account::from_parts(row.get(2)?, row.get_ref(3)?.as_blob()?);
        let unreadable = || rusqlite::Error::InvalidColumnType(3, "numbers".into(), Type::Blob);
        let account = account.ok_or_else(unreadable)?;
        Ok(StoredAccount { vm_id: parsed(row, 0)?, created_at_us: row.get(1)?, account })
    };
    select.query_map([], read)?.collect()
}

/// Another boot counts from 0 on devices of its own, under numbers that mean nothing any more.
pub(super) fn forget_devices(connection: &Connection) -> rusqlite::Result<()> {
    for mut stored in load(connection)? {
        stored.account.device_is_gone();
        keep(connection, &stored)?;
    }
    Ok(())
}
