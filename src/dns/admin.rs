//! All resolvers of the host together, for the API: which network's is meant, and the records that outlive a restart.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::control::{DnsControl, ReloadError};
use super::local::check_record;
use crate::model::{DnsName, DnsRecord, NetworkName};
use crate::store::{Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum DnsAdminError {
    #[error("no network {0} has a resolver: see guestnet network list")]
    NoResolver(String),
    #[error("{0}")]
    Record(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Reload(#[from] ReloadError),
}

/// The resolvers, in the order of the configuration.
#[derive(Clone)]
pub struct DnsAdmin {
    controls: Arc<Vec<DnsControl>>,
    store: Arc<Store>,
    /// Held while records change: what is stored and what is answered stay the same.
    changing: Arc<Mutex<()>>,
}

impl DnsAdmin {
    pub fn new(controls: Vec<DnsControl>, store: Arc<Store>) -> Self {
        Self { controls: Arc::new(controls), store, changing: Arc::default() }
    }

    /// All, or the named network's.
    pub fn of(&self, network: Option<&NetworkName>) -> Result<Vec<&DnsControl>, DnsAdminError> {
        let found: Vec<_> = self
            .controls
            .iter()
            .filter(|control| network.is_none_or(|name| control.network() == name))
            .collect();
        match network {
            Some(name) if found.is_empty() => Err(DnsAdminError::NoResolver(name.to_string())),
            _ => Ok(found),
        }
    }

    /// The named network's, or the first.
    pub fn one(&self, network: Option<&NetworkName>) -> Result<&DnsControl, DnsAdminError> {
        self.of(network)?.into_iter().next().ok_or_else(|| DnsAdminError::NoResolver(String::new()))
    }

    pub async fn set_record(
        &self,
        network: Option<&NetworkName>,
        record: DnsRecord,
    ) -> Result<DnsRecord, DnsAdminError> {
        check_record(&record).map_err(DnsAdminError::Record)?;
        let control = self.one(network)?;
        let _changing = self.changing.lock().await;
        self.store.set_dns_record(control.network().clone(), record.clone()).await?;
        control.set_records(&self.store.dns_records(control.network())?)?;
        Ok(record)
    }

    /// How many were forgotten: those of `name`, of that type and value if they are given.
    pub async fn delete_records(
        &self,
        network: Option<&NetworkName>,
        name: &DnsName,
        rtype: Option<&str>,
        value: Option<&str>,
    ) -> Result<u32, DnsAdminError> {
        let control = self.one(network)?;
        let _changing = self.changing.lock().await;
        let mut deleted = 0;
        for record in self.store.dns_records(control.network())? {
            let meant = record.name == *name
                && rtype.is_none_or(|rtype| record.rtype.eq_ignore_ascii_case(rtype))
                && value.is_none_or(|value| record.value == value);
            if meant && self.store.delete_dns_record(control.network().clone(), record).await? {
                deleted += 1;
            }
        }
        control.set_records(&self.store.dns_records(control.network())?)?;
        Ok(deleted)
    }

    pub fn records(
        &self,
        network: Option<&NetworkName>,
    ) -> Result<Vec<(NetworkName, DnsRecord)>, DnsAdminError> {
        let mut records = Vec::new();
        for control in self.of(network)? {
            let name = control.network();
            records.extend(self.store.dns_records(name)?.into_iter().map(|record| (name.clone(), record)));
        }
        Ok(records)
    }

    /// Reads hosts files and lists anew; the first that cannot be read ends it, and what was read before holds.
    pub async fn reload(&self) -> Result<(), DnsAdminError> {
        let _changing = self.changing.lock().await;
        for control in self.controls.iter() {
            control.set_records(&self.store.dns_records(control.network())?)?;
            control.reload_rules()?;
        }
        Ok(())
    }
}
