//! Desired state that survives kill -9 and power loss, in one SQLite file held by one guestnet. In: VMs, devices and
//! settings to remember. Out: what was remembered, and nothing is answered before it is durable.

mod accounts;
mod directory;
mod dns_records;
mod error;
mod owned;
mod policies;
mod reservations;
mod schema;
mod user_data;
mod vms;
mod writer;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::model::{
    Account, DnsRecord, IndexRange, Mac, NetworkName, PortForward, Reservation, Subnet, Vm, VmId,
};
use crate::policy::{PolicySpec, Scope};
pub use error::{StoreError, Taken};
pub use owned::{ChangedSysctl, LinkKind, OwnedLink};
use writer::{Change, Effect, Writer};

/// The open store. Changes come from any task and share commits; reads see every change that has been answered.
#[derive(Debug)]
pub struct Store {
    // Dropped in this order: SQLite folds the write-ahead log in when the last connection closes, and only then may
    // another guestnet have the directory.
    reader: Mutex<Connection>,
    writer: Writer,
    file: PathBuf,
    _lock: directory::DirectoryLock,
}

/// How the boot that was recorded before relates to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootChange {
    /// There was none: nothing has ever been made on this host.
    First,
    /// The kernel still has what we made: adopt it.
    Same,
    /// The kernel has nothing of ours: build it again. The records of links and sysctls are gone with it.
    Rebooted,
}

/// An address that a removed VM had and no other has had since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    pub network: NetworkName,
    pub address: Ipv4Addr,
    /// Microseconds since 1970-01-01 UTC.
    pub freed_at_us: i64,
}

/// How far a VM has been counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAccount {
    pub vm_id: VmId,
    /// Of the VM, microseconds since 1970-01-01 UTC: by it a later one with its id is told from it.
    pub created_at_us: i64,
    pub account: Account,
}

impl Store {
    /// Whether an earlier guestnet has left its state in `directory`.
    pub fn is_there(directory: &Path) -> bool {
        schema::file_in(directory).exists()
    }

    /// Takes the directory for this process, made if it is not there, and opens the database in it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let lock = directory::take(directory)?;
        let (connection, file) = schema::open(directory)?;
        let reader = Mutex::new(schema::open_reader(&file)?);
        let started = Writer::start(connection, file.clone());
        let writer = started.map_err(StoreError::directory("start a writer for", &file))?;
        Ok(Self { reader, writer, file, _lock: lock })
    }

    /// Every VM, first created first.
    pub fn load(&self) -> Result<Vec<Vm>, StoreError> {
        self.read(vms::load)
    }

    /// The addresses of removed VMs, freed first comes first: what an allocator's quarantine is restored from.
    pub fn freed(&self) -> Result<Vec<Freed>, StoreError> {
        self.read(vms::load_freed)
    }

    /// Forgets that removed VMs had these addresses.
    pub async fn forget_freed(&self, addresses: Vec<(NetworkName, Ipv4Addr)>) -> Result<(), StoreError> {
        self.writer.write(Change::ForgetFreed(addresses)).await.map(drop)
    }

    /// Remembers a VM and what it begins to be counted from. `StoreError::Taken` names what another VM already has, be it
    /// the vm_id, MAC, address or slot.
    pub async fn insert(&self, vm: Vm, account: Account) -> Result<(), StoreError> {
        self.writer.write(Change::Insert(Box::new(vm), Box::new(account))).await.map(drop)
    }

    /// Remembers how far VMs have been counted; a VM that has been removed is passed over.
    pub async fn keep_accounts(&self, accounts: Vec<StoredAccount>) -> Result<(), StoreError> {
        self.writer.write(Change::KeepAccounts(accounts)).await.map(drop)
    }

    /// How far VMs have been counted.
    pub fn accounts(&self) -> Result<Vec<StoredAccount>, StoreError> {
        self.read(accounts::load)
    }

    /// Remembers what of a VM can change while it runs: host name and limit. False when there is no such VM.
    pub async fn update(&self, vm: Vm) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::Update(Box::new(vm))).await? != Effect::Nothing)
    }

    /// Forgets a VM; whether there was one.
    pub async fn remove(&self, vm_id: VmId) -> Result<bool, StoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_us = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        Ok(self.writer.write(Change::Remove { vm_id, now_us }).await? != Effect::Nothing)
    }

    /// Keeps a VM's user-data, or forgets it; whether there is such a VM.
    pub async fn set_user_data(&self, vm_id: VmId, content: Option<Vec<u8>>) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::SetUserData { vm_id, content }).await? != Effect::Nothing)
    }

    pub fn user_data(&self, vm_id: &VmId) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|connection| user_data::get(connection, vm_id))
    }

    /// Remembers reservations, all or none. The caller has made sure that their MACs and addresses are free.
    pub async fn insert_reservations(&self, reservations: Vec<Arc<Reservation>>) -> Result<(), StoreError> {
        self.writer.write(Change::InsertReservations(reservations)).await.map(drop)
    }

    /// Forgets a reservation; whether there was one.
    pub async fn remove_reservation(&self, network: NetworkName, mac: Mac) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::RemoveReservation { network, mac }).await? != Effect::Nothing)
    }

    /// Every reservation.
    pub fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        self.read(reservations::load)
    }

    /// Remembers a record for a network's resolver; whether it is new.
    pub async fn set_dns_record(&self, network: NetworkName, record: DnsRecord) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::SetDnsRecord(network, record)).await? != Effect::Nothing)
    }

    /// Forgets a record; whether there was one.
    pub async fn delete_dns_record(
        &self,
        network: NetworkName,
        record: DnsRecord,
    ) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::DeleteDnsRecord(network, record)).await? != Effect::Nothing)
    }

    /// The records for a network's resolver.
    pub fn dns_records(&self, network: &NetworkName) -> Result<Vec<DnsRecord>, StoreError> {
        self.read(|connection| dns_records::load(connection, network))
    }

    /// Remembers under which boot (`/proc/sys/kernel/random/boot_id`) the host's state is about to be made.
    pub async fn record_boot(&self, boot_id: &str) -> Result<BootChange, StoreError> {
        Ok(match self.writer.write(Change::RecordBoot(boot_id.to_owned())).await? {
            Effect::Nothing => BootChange::Same,
            Effect::Changed => BootChange::First,
            Effect::Rebooted => BootChange::Rebooted,
        })
    }

    /// Remembers a device as ours, in the place of any with its ifindex or name.
    pub async fn record_link(&self, link: OwnedLink) -> Result<(), StoreError> {
        self.writer.write(Change::RecordLink(link)).await.map(drop)
    }

    /// Forgets a device; whether it was ours.
    pub async fn forget_link(&self, ifindex: u32) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::ForgetLink(ifindex)).await? != Effect::Nothing)
    }

    /// The devices that are ours, by ifindex.
    pub fn links(&self) -> Result<Vec<OwnedLink>, StoreError> {
        self.read(owned::links)
    }

    /// Remembers what a setting was before we changed it; false, and the first record stands, when there is one already.
    pub async fn record_sysctl(&self, changed: ChangedSysctl) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::RecordSysctl(changed)).await? != Effect::Nothing)
    }

    /// Forgets a setting that has been put back; whether it was recorded.
    pub async fn forget_sysctl(&self, path: &str) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::ForgetSysctl(path.to_owned())).await? != Effect::Nothing)
    }

    /// The settings that we have changed, by path.
    pub fn sysctls(&self) -> Result<Vec<ChangedSysctl>, StoreError> {
        self.read(owned::sysctls)
    }

    /// Remembers a policy as it was written, or forgets it; false when it is for a VM that is not there.
    pub async fn set_policy(&self, scope: Scope, spec: Option<PolicySpec>) -> Result<bool, StoreError> {
        // Text, numbers and lists of them are always JSON.
        let spec = spec.map(|spec| serde_json::to_string(&spec).unwrap_or_default());
        Ok(self.writer.write(Change::SetPolicy { scope, spec }).await? != Effect::Nothing)
    }

    /// Every policy as it was written.
    pub fn policies(&self) -> Result<Vec<PolicySpec>, StoreError> {
        self.read(policies::all)
    }

    /// Remembers a port forward; false when its VM is not there.
    pub async fn add_forward(&self, forward: PortForward) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::AddForward(forward)).await? != Effect::Nothing)
    }

    /// Forgets a port forward; whether there was one.
    pub async fn remove_forward(&self, forward: PortForward) -> Result<bool, StoreError> {
        Ok(self.writer.write(Change::RemoveForward(forward)).await? != Effect::Nothing)
    }

    pub fn forwards(&self) -> Result<Vec<PortForward>, StoreError> {
        self.read(policies::forwards)
    }

    /// The number of the last commit that changed anything.
    pub fn generation(&self) -> Result<i64, StoreError> {
        self.read(|connection| {
            connection.query_row("SELECT value FROM meta WHERE key = 'generation'", [], |row| row.get(0))
        })
    }

    /// The interface indexes that this store's guestnet gives its devices: drawn once, the same for good.
    pub fn index_range(&self) -> Result<IndexRange, StoreError> {
        self.read(owned::index_range)
    }

    /// Remembers that the host has a route and a NAT rule of ours for `subnet`.
    pub async fn record_subnet(&self, subnet: Subnet) -> Result<(), StoreError> {
        self.writer.write(Change::RecordSubnet(subnet)).await.map(drop)
    }

    /// Forgets a subnet that the host has nothing for any more.
    pub async fn forget_subnet(&self, subnet: Subnet) -> Result<(), StoreError> {
        self.writer.write(Change::ForgetSubnet(subnet)).await.map(drop)
    }

    pub fn subnets(&self) -> Result<Vec<Subnet>, StoreError> {
        self.read(owned::subnets)
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        // A panic while the lock was held cannot leave a read-only connection half changed.
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        query(&reader).map_err(StoreError::sqlite(&self.file))
    }
}

#[cfg(test)]
mod tests;
