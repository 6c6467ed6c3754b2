use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::StoreError;

/// In the header of each of our files ("gnet"), so that no other program's database is taken for one.
const APPLICATION_ID: i64 = 0x676e_6574;

/// What brings a database from version n to n + 1. Append; never change one that was released.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta (key, value) VALUES ('generation', 0);
    CREATE TABLE vm (
        vm_id TEXT PRIMARY KEY,
        network TEXT NOT NULL,
        workspace TEXT,
        slot INTEGER NOT NULL UNIQUE,
        mac TEXT NOT NULL UNIQUE,
        address TEXT NOT NULL,
        hostname TEXT NOT NULL,
        rate_limit_mbps INTEGER,
        created_at_us INTEGER NOT NULL,
        UNIQUE (network, address)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE freed (
        network TEXT NOT NULL,
        address TEXT NOT NULL,
        freed_at_us INTEGER NOT NULL,
        PRIMARY KEY (network, address)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE link (
        ifindex INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        owner TEXT NOT NULL
    ) STRICT;
    CREATE TABLE sysctl (path TEXT PRIMARY KEY, old_value TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE account (
        vm_id TEXT PRIMARY KEY REFERENCES vm (vm_id) ON DELETE CASCADE,
        device INTEGER NOT NULL,
        numbers BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    super::user_data::TABLE,
    "
    ALTER TABLE vm ADD COLUMN dhcp_options TEXT NOT NULL DEFAULT '{}';
    CREATE TABLE reservation (
        network TEXT NOT NULL,
        mac TEXT NOT NULL,
        address TEXT NOT NULL,
        hostname TEXT NOT NULL,
        dhcp_options TEXT NOT NULL,
        PRIMARY KEY (network, mac),
        UNIQUE (network, address)
    ) STRICT, WITHOUT ROWID;
",
    // Of the positive numbers of 32 bits, the upper ones: no other guestnet of this host is likely to have drawn the same.
    "
    INSERT INTO meta (key, value) VALUES ('first_ifindex', 268435456 + abs(random() % 28000) * 65536);
    CREATE TABLE subnet (subnet TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
",
    super::policies::TABLES,
    super::dns_records::TABLE,
    "
    ALTER TABLE vm ADD COLUMN burst_kib INTEGER;
    ALTER TABLE vm ADD COLUMN tap_uid INTEGER;
    ALTER TABLE vm ADD COLUMN tap_gid INTEGER;
    ALTER TABLE vm ADD COLUMN tap_multi_queue INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE vm ADD COLUMN tap_offload INTEGER NOT NULL DEFAULT 1;
",
];

/// Where the database of a state directory is.
pub(super) fn file_in(directory: &Path) -> PathBuf {
    directory.join("guestnet.db")
}

/// A connection to the directory's database, made if there has never been one, checked, and brought up to date. One that
/// is there but cannot be used is an error, whatever it is: it may be all that is left of every VM's reservation.
pub(super) fn open(directory: &Path) -> Result<(Connection, PathBuf), StoreError> {
    let file = file_in(directory);
    if !file.try_exists().map_err(StoreError::directory("look for", &file))? {
        create(directory, &file)?;
    }
    let mut connection = connect(&file).map_err(StoreError::sqlite(&file))?;
    // Of a database that is refused nothing is written, not even what its log has for it when the connection closes.
    let fold = |does_not: bool| {
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, does_not)
            .map_err(StoreError::sqlite(&file))
    };
    fold(true)?;
    check(&connection, &file)?;
    fold(false)?;
    // FULL: a commit is on the disk when it returns, not only after the next checkpoint.
    let durable = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))
        .and_then(|mode| connection.pragma_update(None, "synchronous", "FULL").map(|()| mode))
        .and_then(|mode| connection.pragma_update(None, "foreign_keys", true).map(|()| mode))
        .map_err(StoreError::sqlite(&file))?;
    if durable != "wal" {
        let source = io::Error::other(format!("SQLite offers journal mode {durable} there, not WAL"));
        return Err(StoreError::directory("keep a write-ahead log beside", &file)(source));
    }
    migrate(&mut connection).map_err(StoreError::sqlite(&file))?;
    Ok((connection, file))
}

/// A second connection that cannot write, to a file that `open` has opened.
pub(super) fn open_reader(file: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(file, flags).map_err(StoreError::sqlite(file))
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    // Without CREATE: SQLite must never put an empty database in the place of a lost one.
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

/// The whole database is made under another name first, so that under its own there is never a half-made or empty one.
fn create(directory: &Path, file: &Path) -> Result<(), StoreError> {
    let orphan = file.with_extension("db-wal");
    if orphan.exists() {
        let detail = format!("it is missing, though {} is there", orphan.display());
        return Err(StoreError::Damaged { file: file.to_owned(), detail });
    }
    let draft = file.with_extension("db-new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::directory("remove the unfinished", &draft)(error));
        }
        _ => {}
    }
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(StoreError::directory("create", &draft))?;
    let made = connect(&draft).and_then(|mut connection| {
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        migrate(&mut connection)?;
        connection.close().map_err(|(_, error)| error)
    });
    made.map_err(StoreError::sqlite(&draft))?;
    std::fs::rename(&draft, file).map_err(StoreError::directory("create", file))?;
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(StoreError::directory("sync", directory))
}

fn check(connection: &Connection, file: &Path) -> Result<(), StoreError> {
    let damaged = |detail: String| StoreError::Damaged { file: file.to_owned(), detail };
    let application_id = read_pragma(connection, "application_id").map_err(StoreError::sqlite(file))?;
    let version = read_pragma(connection, "user_version").map_err(StoreError::sqlite(file))?;
    if application_id != APPLICATION_ID {
        return Err(damaged("it is empty, or no database of guestnet's".into()));
    }
    let known = MIGRATIONS.len() as i64;
    if version > known {
        return Err(StoreError::TooNew { file: file.to_owned(), found: version, known });
    }
    let verdict: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(StoreError::sqlite(file))?;
    if verdict != "ok" { Err(damaged(verdict)) } else { Ok(()) }
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = read_pragma(&transaction, "user_version")?;
    for (to, step) in (1_i64..).zip(MIGRATIONS.iter().copied()).filter(|(to, _)| *to > version) {
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", to)?;
    }
    transaction.commit()
}

fn read_pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RateLimit, TapOptions, Vm};
    use crate::store::Store;
    use crate::store::tests::vm;

    #[test]
    fn the_connection_that_writes_has_each_commit_on_the_disk_when_it_returns() {
        let directory = tempfile::tempdir().unwrap();
        let (connection, file) = open(directory.path()).unwrap();
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        // 2 is FULL (sqlite.org, PRAGMA synchronous): in WAL mode the log is synced after each transaction.
        assert_eq!((mode.as_str(), read_pragma(&connection, "synchronous").unwrap()), ("wal", 2));
        let reader = open_reader(&file).unwrap();
        assert!(reader.execute("DELETE FROM vm", []).is_err(), "it is for reading");
    }

    /// A database as the guestnet of that schema left it, with VMs and what else it could hold.
    fn as_version(version: usize, directory: &Path) -> Vec<Vm> {
        let file = file_in(directory);
        let connection = Connection::open(&file).unwrap();
        connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        for step in &MIGRATIONS[..version] {
            connection.execute_batch(step).unwrap();
        }
        connection.pragma_update(None, "user_version", version as i64).unwrap();
        let vms: Vec<Vm> = (0..20)
            .map(|n| {
                let vm = vm(n);
                let rate_limit = vm.rate_limit.map(|limit| RateLimit { burst: None, ..limit });
                Vm { rate_limit, tap: TapOptions::default(), dhcp_options: Default::default(), ..vm }
            })
            .collect();
        for vm in &vms {
            let first = "INSERT INTO vm (vm_id, network, workspace, slot, mac, address, hostname, rate_limit_mbps, \
                         created_at_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
            let values = rusqlite::params![
                vm.vm_id.as_str(),
                vm.network.as_str(),
                vm.workspace.as_ref().map(|workspace| workspace.as_str()),
                vm.slot.0,
                vm.mac.to_string(),
                vm.address.to_string(),
                vm.hostname.as_str(),
                vm.rate_limit.map(|limit| limit.rate.mbps()),
                vm.created_at_us,
            ];
            connection.execute(first, values).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO freed VALUES ('default', '10.100.9.9', 5); UPDATE meta SET value = 21 WHERE key = 'generation';
                 INSERT INTO sysctl VALUES ('ipv4/ip_forward', '0'); INSERT INTO link VALUES (7, 'br-vms', 'bridge', 'default');",
            )
            .unwrap();
        let has = |table: &str| {
            let query = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
            connection.query_row(query, [table], |row| row.get::<_, i64>(0)).unwrap() > 0
        };
        if has("user_data") {
            connection.execute_batch("INSERT INTO user_data VALUES ('vm_3', x'2321')").unwrap();
        }
        if has("port_forward") {
            connection
                .execute_batch("INSERT INTO port_forward VALUES ('tcp', '', '', 8085, 'vm_3', 80)")
                .unwrap();
        }
        vms
    }

    #[test]
    fn a_database_of_any_version_before_is_brought_up_to_date_with_all_that_it_holds() {
        for version in 1..=MIGRATIONS.len() {
            let directory = tempfile::tempdir().unwrap();
            let vms = as_version(version, directory.path());
            // Brought up to date once; the second start finds it so.
            for _ in 0..2 {
                let store = Store::open(directory.path()).unwrap();
                assert_eq!(store.load().unwrap(), vms, "version {version}");
                assert_eq!(store.freed().unwrap()[0].address.to_string(), "10.100.9.9");
                assert_eq!((store.links().unwrap().len(), store.sysctls().unwrap().len()), (1, 1));
                let user_data = store.user_data(&vms[3].vm_id).unwrap();
                assert_eq!(user_data.is_some(), version >= 3, "version {version}");
                assert_eq!(store.forwards().unwrap().len(), usize::from(version >= 6), "version {version}");
                store.index_range().unwrap();
            }
            let connection = connect(&file_in(directory.path())).unwrap();
            assert_eq!(read_pragma(&connection, "user_version").unwrap(), MIGRATIONS.len() as i64);
        }
    }

    #[test]
    fn an_upgrade_that_is_cut_off_leaves_the_version_before() {
        let directory = tempfile::tempdir().unwrap();
        let vms = as_version(1, directory.path());
        // Its last step cannot be done: somebody has a table in the way.
        let connection = Connection::open(file_in(directory.path())).unwrap();
        connection.execute_batch("CREATE TABLE dns_record (x)").unwrap();
        assert!(Store::open(directory.path()).is_err());
        assert_eq!(read_pragma(&connection, "user_version").unwrap(), 1, "some of it was done");
        connection.execute_batch("DROP TABLE dns_record").unwrap();
        drop(connection);
        assert_eq!(Store::open(directory.path()).unwrap().load().unwrap(), vms);
    }
}
