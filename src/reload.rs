//! What of a changed configuration can be put in force while guests' traffic runs on, and what has to wait for a restart. In:
//! the file as it was and as it is. Out: both lists by key; a file that does not fit changes nothing. Comparing is pure.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use toml::{Table, Value};
use tracing::{error, info};

use crate::config::{Config, ConfigError, SpiffeIds};

/// Keys whose change needs no restart.
const LIVE: [&str; 3] = ["api.spiffe_ids", "api.read_only_spiffe_ids", "metrics.vm_labels"];

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// Keys that are in force now.
    pub applied: Vec<String>,
    /// Keys that will be after a restart.
    pub needs_restart: Vec<String>,
}

/// The running configuration. Clones share one state.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    path: Option<PathBuf>,
    /// The file that is in force, but for what needs a restart.
    file: Mutex<Table>,
    allowed: Arc<ArcSwap<SpiffeIds>>,
    vm_labels: Arc<AtomicBool>,
}

impl Reloader {
    pub fn new(path: Option<PathBuf>, config: &Config) -> Self {
        let allowed = config.api.tls.as_ref().map(|tls| tls.allowed.clone()).unwrap_or_default();
        Self(Arc::new(Inner {
            path,
            file: Mutex::new(config.file.clone()),
            allowed: Arc::new(ArcSwap::from_pointee(allowed)),
            vm_labels: Arc::new(AtomicBool::new(config.metrics.vm_labels)),
        }))
    }

    /// Who may call over TCP.
    pub fn allowed(&self) -> Arc<ArcSwap<SpiffeIds>> {
        self.0.allowed.clone()
    }

    /// Whether each VM has metrics of its own.
    pub fn vm_labels(&self) -> Arc<AtomicBool> {
        self.0.vm_labels.clone()
    }

    /// Reads the file again. One that does not fit leaves the old one in force.
    pub fn reload(&self) -> Result<Reloaded, ConfigError> {
        let config = Config::load(self.0.path.as_deref()).inspect_err(|error| {
            error!(%error, "the changed configuration does not fit: the old one stays in force");
        })?;
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = changed_keys(&file, &config.file);
        let (applied, needs_restart): (Vec<String>, Vec<String>) =
            changed.into_iter().partition(|key| LIVE.contains(&key.as_str()));
        if let Some(tls) = &config.api.tls {
            self.0.allowed.store(Arc::new(tls.allowed.clone()));
        }
        self.0.vm_labels.store(config.metrics.vm_labels, Ordering::Relaxed);
        for key in &applied {
            put(&mut file, &config.file, key);
        }
        info!(?applied, ?needs_restart, "read the configuration again");
        Ok(Reloaded { applied, needs_restart })
    }
}

/// Takes one key of the form `table.key` over.
fn put(file: &mut Table, new: &Table, key: &str) {
    let Some((table, key)) = key.split_once('.') else { return };
    let value = new.get(table).and_then(|table| table.get(key)).cloned();
    let section = file.entry(table).or_insert_with(|| Value::Table(Table::new()));
    if let Some(section) = section.as_table_mut() {
        match value {
            Some(value) => section.insert(key.to_owned(), value),
            None => section.remove(key),
        };
    }
}

/// The keys whose values differ, with their path as errors have it.
fn changed_keys(before: &Table, after: &Table) -> Vec<String> {
    let mut changed = Vec::new();
    compare("", before, after, &mut changed);
    changed
}

fn compare(path: &str, before: &Table, after: &Table, changed: &mut Vec<String>) {
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        compare_values(&path, before.get(key), after.get(key), changed);
    }
}

fn compare_values(path: &str, before: Option<&Value>, after: Option<&Value>, changed: &mut Vec<String>) {
    let none = Value::Table(Table::new());
    match (before, after) {
        (before, after) if before == after => {}
        (Some(Value::Table(before)), Some(Value::Table(after))) => compare(path, before, after, changed),
        (Some(Value::Table(before)), None) => compare(path, before, &Table::new(), changed),
        (None, Some(Value::Table(after))) => compare(path, &Table::new(), after, changed),
        (Some(Value::Array(before)), Some(Value::Array(after)))
            if before.iter().chain(after).all(Value::is_table) =>
        {
            for at in 0..before.len().max(after.len()) {
                let of = |array: &[Value]| array.get(at).unwrap_or(&none).clone();
                compare_values(&format!("{path}[{at}]"), Some(&of(before)), Some(&of(after)), changed);
            }
        }
        _ => changed.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_by_key() {
        let table = |text: &str| text.parse::<Table>().unwrap();
        let before = table("[metrics]\nvm_labels = false\n[[network]]\nname = \"a\"\nmtu = 1500");
        let after = table(
            "[metrics]\nvm_labels = true\n[[network]]\nname = \"a\"\nmtu = 9000\n[[network]]\nname = \"b\"",
        );
        assert_eq!(changed_keys(&before, &after), ["metrics.vm_labels", "network[0].mtu", "network[1].name"]);
        assert_eq!(changed_keys(&before, &before), Vec::<String>::new());
        assert_eq!(changed_keys(&Table::new(), &table("[api]\nsocket = \"/x\"")), ["api.socket"]);

        let mut file = before.clone();
        put(&mut file, &after, "metrics.vm_labels");
        assert_eq!(changed_keys(&file, &after), ["network[0].mtu", "network[1].name"]);
    }
}
