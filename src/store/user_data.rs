use rusqlite::{Connection, OptionalExtension, params};

use crate::model::VmId;

/// A VM's user-data, gone with it (`vms::remove`). No foreign key: a later migration may rebuild the table of VMs.
pub(super) const TABLE: &str =
    "CREATE TABLE user_data (vm_id TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT, WITHOUT ROWID;";

/// Whether there is such a VM; the content is its user-data from then on, or it has none.
pub(super) fn set(connection: &Connection, vm_id: &VmId, content: Option<&[u8]>) -> rusqlite::Result<bool> {
    let mut known = connection.prepare_cached("SELECT 1 FROM vm WHERE vm_id = ?1")?;
    if !known.exists([vm_id.as_str()])? {
        return Ok(false);
    }
    match content {
        Some(content) => connection
            .prepare_cached("INSERT OR REPLACE INTO user_data (vm_id, content) VALUES (?1, ?2)")?
            .execute(params![vm_id.as_str(), content])?,
        None => remove(connection, vm_id)?,
    };
    Ok(true)
}

pub(super) fn remove(connection: &Connection, vm_id: &VmId) -> rusqlite::Result<usize> {
    connection.prepare_cached("DELETE FROM user_data WHERE vm_id = ?1")?.execute([vm_id.as_str()])
}

pub(super) fn get(connection: &Connection, vm_id: &VmId) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut select = connection.prepare_cached("SELECT content FROM user_data WHERE vm_id = ?1")?;
    select.query_row([vm_id.as_str()], |row| row.get(0)).optional()
}
