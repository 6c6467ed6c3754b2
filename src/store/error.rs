use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::model::{Mac, NetworkName, Slot, VmId};

/// Why the store could not be opened, read or changed. Cheap to clone: all who shared a failed commit are told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}: {source}; guestnet needs its state directory, readable and writable", path.display())]
    Directory { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error(
        "the state directory {} is in use by another guestnet{}: stop that one, or give this one a [state] directory of \
         its own", directory.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse { directory: PathBuf, pid: Option<i32> },
    #[error(
        "{} was written by a newer guestnet (schema {found}, this one knows up to {known}): run that version, or restore \
         a copy made before the upgrade", file.display()
    )]
    TooNew { file: PathBuf, found: i64, known: i64 },
    #[error(
        "{} is damaged ({detail}) and has been left as it is: restore a copy of it, or salvage it with `sqlite3 {} \
         .recover`, or move it away together with its -wal to start without any reservation",
        file.display(), file.display()
    )]
    Damaged { file: PathBuf, detail: String },
    #[error("the disk of {} is full: free some space and repeat; the change was not made", file.display())]
    DiskFull { file: PathBuf },
    #[error(
        "{} cannot be written or read ({detail}): see to its disk, which may be read-only, and repeat; the change was not made",
        file.display()
    )]
    NotWritable { file: PathBuf, detail: String },
    #[error("{}: {source}; the change was not made, repeat it once the cause is gone", file.display())]
    Sqlite { file: PathBuf, source: Arc<rusqlite::Error> },
    #[error("{what} is already taken by VM {by}")]
    Taken { what: Taken, by: VmId },
    #[error("the store's writer has stopped: restart guestnet")]
    Stopped,
}

/// What only one VM of a host can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    VmId(VmId),
    Mac(Mac),
    Address(NetworkName, Ipv4Addr),
    Slot(Slot),
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmId(vm_id) => write!(f, "vm_id {vm_id}"),
            Self::Mac(mac) => write!(f, "MAC address {mac}"),
            Self::Address(network, address) => write!(f, "address {address} of network {network}"),
            Self::Slot(slot) => write!(f, "slot {}", slot.0),
        }
    }
}

impl StoreError {
    /// For `map_err` of what is done to files.
    pub(super) fn directory(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Directory { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// For `map_err` of what SQLite does to `file`.
    pub(super) fn sqlite(file: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |source| {
            let file = file.to_owned();
            match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Self::DiskFull { file },
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    Self::Damaged { file, detail: source.to_string() }
                }
                Some(
                    ErrorCode::ReadOnly
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied,
                ) => Self::NotWritable { file, detail: source.to_string() },
                // A row that does not hold what its column promises.
                None => Self::Damaged { file, detail: source.to_string() },
                Some(_) => Self::Sqlite { file, source: Arc::new(source) },
            }
        }
    }
}

/// Why one change did not happen: its own fault, which leaves the changes beside it standing, or the database's.
#[derive(Debug)]
pub(super) enum Fault {
    Refused(StoreError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}
