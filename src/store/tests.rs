use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::model::testing;

fn open(directory: &Path) -> Store {
    Store::open(directory).unwrap()
}

fn refusal(directory: &Path) -> String {
    Store::open(directory).err().expect("a refusal").to_string()
}

#[tokio::test]
async fn what_was_inserted_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for n in 1..=3 {
        store.insert(testing::vm(n)).await.unwrap();
    }
    assert!(store.remove(testing::vm(2).vm_id, 7).await.unwrap());
    assert!(!store.remove(testing::vm(2).vm_id, 8).await.unwrap());
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.load().await.unwrap(), [testing::vm(1), testing::vm(3)]);
    let freed =
        Freed { network: "default".parse().unwrap(), address: testing::vm(2).address, freed_at_us: 7 };
    assert_eq!(store.load_freed().await.unwrap(), [freed]);
}

#[tokio::test]
async fn what_was_answered_is_in_a_copy_taken_at_that_moment() {
    // What a power loss leaves: the files as they are, with nobody to close them.
    let (directory, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(directory.path());
    store.insert(testing::vm(1)).await.unwrap();
    for entry in fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    assert_eq!(open(copy.path()).load().await.unwrap(), [testing::vm(1)]);
}

#[tokio::test]
async fn what_only_one_vm_can_have_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.insert(testing::vm(1)).await.unwrap();
    let mut clash = testing::vm(2);
    clash.mac = testing::vm(1).mac;
    let error = store.insert(clash).await.unwrap_err().to_string();
    assert!(error.contains("06:00:0a:64:00:02") && error.contains("vm1"), "{error}");
    assert_eq!(store.load().await.unwrap(), [testing::vm(1)]);
}

#[tokio::test]
async fn callers_that_wait_share_a_commit_and_one_refusal_is_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let generation = |store: Store| async move {
        let read = |connection: &Connection| {
            Ok(connection.query_row("SELECT value FROM meta WHERE key = 'generation'", [], |row| {
                row.get::<_, i64>(0)
            })?)
        };
        store.run(read).await.unwrap()
    };
    let before = generation(store.clone()).await;
    // The writer is held until all are waiting.
    let (hold, held) = mpsc::channel::<()>();
    let holding = tokio::spawn({
        let store = store.clone();
        async move { store.run(move |_| Ok(held.recv().is_ok())).await }
    });
    let mut inserts = Vec::new();
    for n in 1..=64 {
        let (store, mut vm) = (store.clone(), testing::vm(n));
        if n == 64 {
            vm.slot = testing::vm(1).slot;
        }
        inserts.push(tokio::spawn(async move { store.insert(vm).await }));
    }
    tokio::task::yield_now().await;
    hold.send(()).unwrap();
    holding.await.unwrap().unwrap();
    let mut refused = 0;
    for insert in inserts {
        refused += usize::from(insert.await.unwrap().is_err());
    }
    assert_eq!((refused, store.load().await.unwrap().len()), (1, 63));
    let commits = generation(store).await - before;
    assert!(commits < 32, "{commits} commits for 64 inserts");
}

#[tokio::test]
async fn a_directory_in_use_is_refused_with_its_user() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let error = refusal(directory.path());
    assert!(error.contains(&directory.path().display().to_string()), "{error}");
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(store);
    open(directory.path());
}

#[tokio::test]
async fn a_damaged_database_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.insert(testing::vm(1)).await.unwrap();
    drop(store);
    let file = directory.path().join("guestnet.db");
    let mut bytes = fs::read(&file).unwrap();
    bytes[..64].fill(0x5a);
    fs::write(&file, &bytes).unwrap();
    let error = refusal(directory.path());
    assert!(error.contains("damaged") && error.contains("restore"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), bytes);

    fs::write(&file, b"").unwrap();
    assert!(refusal(directory.path()).contains("damaged"), "an empty file is not a fresh start");
}

#[tokio::test]
async fn a_database_of_a_newer_guestnet_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let connection = Connection::open(directory.path().join("guestnet.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(refusal(directory.path()).contains("newer guestnet (schema 99"));
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = refusal(&file.join("state"));
    assert!(error.contains("file/state"), "{error}");
}

#[tokio::test]
async fn others_cannot_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let _store = open(&state);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&state.join("guestnet.db"))), (0o700, 0o600));
}

#[tokio::test]
async fn a_reboot_forgets_devices_and_settings_and_keeps_vms() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    assert_eq!(store.record_boot("a".into()).await.unwrap(), BootChange::First);
    assert_eq!(store.record_boot("a".into()).await.unwrap(), BootChange::Same);
    store.insert(testing::vm(1)).await.unwrap();
    let link = OwnedLink {
        ifindex: 7,
        name: "br-vms".parse().unwrap(),
        kind: LinkKind::Bridge,
        owner: "default".into(),
    };
    store.record_link(link.clone()).await.unwrap();
    let changed = |value: &str| ChangedSysctl { path: "ipv4/ip_forward".into(), old_value: value.into() };
    assert!(store.record_sysctl(changed("0")).await.unwrap());
    assert!(!store.record_sysctl(changed("1")).await.unwrap(), "the host's own value is the first");
    assert_eq!(store.links().await.unwrap(), [link]);
    assert_eq!(store.sysctls().await.unwrap(), [changed("0")]);
    assert_eq!(store.record_boot("b".into()).await.unwrap(), BootChange::Rebooted);
    assert_eq!((store.links().await.unwrap().len(), store.sysctls().await.unwrap().len()), (0, 0));
    assert_eq!(store.load().await.unwrap().len(), 1);
}
