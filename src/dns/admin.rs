//! All resolvers of the host together, for the API: which network's is meant, and the records that outlive a restart.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::control::{DnsControl, Prepared};
use super::local::check_record;
use super::server::DnsError;
use crate::config::{Config, Problem};
use crate::model::{DnsMode, DnsName, DnsRecord, Network, NetworkName};
use crate::reload::Change;
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
    Reload(#[from] DnsError),
    #[error("reading hosts files and lists was broken off")]
    BrokenOff,
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
            .filter(|control| network.is_none_or(|name| control.network() == *name))
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
        self.store.set_dns_record(control.network(), record.clone()).await?;
        control.set_records(&self.store.dns_records(&control.network())?);
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
        for record in self.store.dns_records(&control.network())? {
            let meant = record.name == *name
                && rtype.is_none_or(|rtype| record.rtype.eq_ignore_ascii_case(rtype))
                && value.is_none_or(|value| record.value == value);
            if meant && self.store.delete_dns_record(control.network(), record).await? {
                deleted += 1;
            }
        }
        control.set_records(&self.store.dns_records(&control.network())?);
        Ok(deleted)
    }

    pub fn records(
        &self,
        network: Option<&NetworkName>,
    ) -> Result<Vec<(NetworkName, DnsRecord)>, DnsAdminError> {
        let mut records = Vec::new();
        for control in self.of(network)? {
            let name = control.network();
            records.extend(self.store.dns_records(&name)?.into_iter().map(|record| (name.clone(), record)));
        }
        Ok(records)
    }

    /// Reads hosts files, lists and certificates anew; if one cannot be read, all that was read before holds.
    pub async fn reload(&self) -> Result<(), DnsAdminError> {
        let _changing = self.changing.lock().await;
        let admin = self.clone();
        let read = move || {
            let each = admin.controls.iter().map(|control| admin.prepare_one(control, control.settings()));
            each.collect::<Result<Vec<Prepared>, DnsAdminError>>()
        };
        // A list of a million names takes a second.
        let prepared = spawn_blocking(read).await.map_err(|_| DnsAdminError::BrokenOff)??;
        prepared.into_iter().for_each(Prepared::put_in_force);
        Ok(())
    }

    /// The keys of the configuration whose change the running resolvers can take.
    pub fn live_keys(networks: &[Arc<Network>]) -> Vec<String> {
        let served = networks.iter().enumerate().filter(|(_, network)| network.dns == DnsMode::On);
        served
            .flat_map(|(at, _)| ["dns_servers", "resolver"].map(|key| format!("network[{at}].{key}")))
            .collect()
    }

    /// Makes all resolvers ready for another configuration, in which their networks are at the same places; records stay as they
    /// are until it is in force. Blocks while files are read.
    pub fn prepare(&self, config: &Config) -> Result<Change, Problem> {
        let changing = self.changing.clone().blocking_lock_owned();
        let mut prepared = Vec::new();
        for control in self.controls.iter() {
            let mut networks = config.networks.iter().enumerate();
            let Some((at, network)) = networks.find(|(_, network)| network.name == control.network()) else {
                continue;
            };
            let problem = |error: DnsAdminError| {
                let key = if let DnsAdminError::Reload(error) = &error { error.key() } else { None };
                let key = key.map_or_else(|| format!("network[{at}]"), |key| format!("network[{at}].{key}"));
                Problem::new(key, error.to_string())
            };
            prepared.push(self.prepare_one(control, network.clone()).map_err(problem)?);
        }
        Ok(Box::pin(async move {
            prepared.into_iter().for_each(Prepared::put_in_force);
            drop(changing);
        }))
    }

    fn prepare_one(&self, control: &DnsControl, network: Arc<Network>) -> Result<Prepared, DnsAdminError> {
        Ok(control.prepare(network, &self.store.dns_records(&control.network())?)?)
    }
}
