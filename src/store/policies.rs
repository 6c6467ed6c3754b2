use rusqlite::{Connection, Row, params};

use super::vms::parsed;
use crate::model::{HostSide, PortForward, VmId};
use crate::policy::{PolicySpec, Scope};

/// Policies as they were written, and port forwards. Those of a VM go with it (`vms::remove`).
pub(super) const TABLES: &str = "
    CREATE TABLE policy (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        spec TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE port_forward (
        protocol TEXT NOT NULL,
        address TEXT NOT NULL,
        uplink TEXT NOT NULL,
        host_port INTEGER NOT NULL,
        vm_id TEXT NOT NULL,
        vm_port INTEGER NOT NULL,
        PRIMARY KEY (protocol, address, uplink, host_port)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX port_forward_by_vm ON port_forward (vm_id);
";

fn key(scope: &Scope) -> (&'static str, &str) {
    match scope {
        Scope::Vm(vm_id) => ("vm", vm_id.as_str()),
        Scope::Workspace(workspace) => ("workspace", workspace.as_str()),
    }
}

fn has_vm(connection: &Connection, vm_id: &VmId) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM vm WHERE vm_id = ?1")?.exists([vm_id.as_str()])
}

/// Whether anything changed: not for a VM that is not there.
pub(super) fn set(connection: &Connection, scope: &Scope, spec: Option<&str>) -> rusqlite::Result<bool> {
    let (kind, id) = key(scope);
    let Some(spec) = spec else {
        let mut delete = connection.prepare_cached("DELETE FROM policy WHERE kind = ?1 AND id = ?2")?;
        return Ok(delete.execute(params![kind, id])? > 0);
    };
    if let Scope::Vm(vm_id) = scope
        && !has_vm(connection, vm_id)?
    {
        return Ok(false);
    }
    connection
        .prepare_cached("INSERT OR REPLACE INTO policy (kind, id, spec) VALUES (?1, ?2, ?3)")?
        .execute(params![kind, id, spec])?;
    Ok(true)
}

/// Every policy, as it was written.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<PolicySpec>> {
    let mut select = connection.prepare("SELECT spec FROM policy ORDER BY kind, id")?;
    let read = |row: &Row<'_>| {
        let text = row.get_ref(0)?.as_str()?;
        serde_json::from_str(text).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
        })
    };
    select.query_map([], read)?.collect()
}

fn side(at: &HostSide) -> (String, &str) {
    match at {
        HostSide::Everywhere => (String::new(), ""),
        HostSide::Address(address) => (address.to_string(), ""),
        HostSide::Uplink(device) => (String::new(), device.as_str()),
    }
}

/// Whether anything changed: not for a VM that is not there.
pub(super) fn add_forward(connection: &Connection, forward: &PortForward) -> rusqlite::Result<bool> {
    if !has_vm(connection, &forward.vm_id)? {
        return Ok(false);
    }
    let (address, uplink) = side(&forward.at);
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO port_forward (protocol, address, uplink, host_port, vm_id, vm_port)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            forward.protocol.to_string(),
            address,
            uplink,
            forward.host_port,
            forward.vm_id.as_str(),
            forward.vm_port,
        ])?;
    Ok(true)
}

pub(super) fn remove_forward(connection: &Connection, forward: &PortForward) -> rusqlite::Result<bool> {
    let (address, uplink) = side(&forward.at);
    let mut delete = connection.prepare_cached(
        "DELETE FROM port_forward WHERE protocol = ?1 AND address = ?2 AND uplink = ?3 AND host_port = ?4",
    )?;
    Ok(delete.execute(params![forward.protocol.to_string(), address, uplink, forward.host_port])? > 0)
}

pub(super) fn forwards(connection: &Connection) -> rusqlite::Result<Vec<PortForward>> {
    let mut select = connection
        .prepare("SELECT protocol, address, uplink, host_port, vm_id, vm_port FROM port_forward")?;
    let read = |row: &Row<'_>| {
        let at = if !row.get_ref(1)?.as_str()?.is_empty() {
            HostSide::Address(parsed(row, 1)?)
        } else if !row.get_ref(2)?.as_str()?.is_empty() {
            HostSide::Uplink(parsed(row, 2)?)
        } else {
            HostSide::Everywhere
        };
        Ok(PortForward {
            protocol: parsed(row, 0)?,
            at,
            host_port: row.get(3)?,
            vm_id: parsed(row, 4)?,
            vm_port: row.get(5)?,
        })
    };
    select.query_map([], read)?.collect()
}

/// What goes with a VM.
pub(super) fn forget(connection: &Connection, vm_id: &VmId) -> rusqlite::Result<()> {
    set(connection, &Scope::Vm(vm_id.clone()), None)?;
    connection.prepare_cached("DELETE FROM port_forward WHERE vm_id = ?1")?.execute([vm_id.as_str()])?;
    Ok(())
}
