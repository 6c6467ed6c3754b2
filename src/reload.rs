//! What of a changed configuration can be put in force while guests' traffic runs on, and what has to wait for a restart. In:
//! the file as it was and as it is. Out: both lists by key. Each part of the service says which keys it takes; all of them make
//! ready first, so a file that does not fit, or names what cannot be read, changes nothing. Comparing is pure.

mod keys;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use toml::{Table, Value};
use tracing::{error, info};

use crate::api::SocketGroup;
use crate::config::{ApiConfig, Config, ConfigError, Problem, SpiffeIds};
use crate::logging;
use crate::manager::Manager;
use crate::model::NetworkName;
use crate::reservations::Reservations;
pub use keys::why;

/// Puts in force what a part has made ready; it cannot fail any more. Dropped, nothing has changed.
pub type Change = BoxFuture<'static, ()>;

type Prepare = Box<dyn Fn(&Config) -> Result<Change, Problem> + Send + Sync>;

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// Keys that are in force now.
    pub applied: Vec<String>,
    /// Keys that will be after a restart.
    pub needs_restart: Vec<String>,
    /// Keys that will not be, each with the variable of this process that goes before the file.
    pub overridden: BTreeMap<String, String>,
}

/// The running configuration. Clones share one state.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    path: Option<PathBuf>,
    /// The file that is in force, but for what needs a restart. One reload at a time holds it.
    file: Mutex<Table>,
    /// Networks by their place in it.
    networks: Vec<NetworkName>,
    parts: RwLock<Vec<Part>>,
    allowed: Arc<ArcSwap<SpiffeIds>>,
    vm_labels: Arc<AtomicBool>,
}

/// A part of the service that takes other settings while it runs.
struct Part {
    /// Keys, as errors have them; with each, all that is below it.
    keys: Vec<String>,
    prepare: Prepare,
}

impl Reloader {
    pub fn new(path: Option<PathBuf>, config: &Config) -> Self {
        let allowed = config.api.tls.as_ref().map(|tls| tls.allowed.clone()).unwrap_or_default();
        let reloader = Self(Arc::new(Inner {
            path,
            file: Mutex::new(config.file.clone()),
            networks: config.networks.iter().map(|network| network.name.clone()).collect(),
            parts: RwLock::default(),
            allowed: Arc::new(ArcSwap::from_pointee(allowed)),
            vm_labels: Arc::new(AtomicBool::new(config.metrics.vm_labels)),
        }));
        // Who may call over TCP, and who may open a socket, changes live where there is one since the start.
        if config.api.tls.is_some() {
            let allowed = reloader.allowed();
            reloader.takes(["api.spiffe_ids", "api.read_only_spiffe_ids"], move |config| {
                let (allowed, new) =
                    (allowed.clone(), config.api.tls.as_ref().map(|tls| tls.allowed.clone()));
                Ok(Box::pin(async move { new.into_iter().for_each(|new| allowed.store(Arc::new(new))) }))
            });
        }
        reloader.takes(["log.filter"], |config| {
            let filter = config.log_filter.clone();
            Ok(Box::pin(async move { logging::follow(&filter) }))
        });
        // The sockets are those of the start, wherever the file has them.
        let sockets = [Some(&config.api.socket), config.api.read_only_socket.as_ref()];
        for ((key, group_of), socket) in GROUPS.into_iter().zip(sockets) {
            let Some(socket) = socket.cloned() else { continue };
            reloader.takes([key], move |config| {
                let group = find_group(key, &socket, group_of(&config.api))?;
                Ok(Box::pin(async move { group.give() }))
            });
        }
        let vm_labels = reloader.vm_labels();
        reloader.takes(["metrics.vm_labels"], move |config| {
            let (vm_labels, new) = (vm_labels.clone(), config.metrics.vm_labels);
            Ok(Box::pin(async move { vm_labels.store(new, Ordering::Relaxed) }))
        });
        reloader
    }

    /// Has a part take `keys` (each with all below it) from now on. `prepare` is given the whole configuration as it will be in
    /// force, with what needs a restart as it was; it may block. It is called at every reload, changed keys or not: a file that
    /// they name may have changed.
    pub fn takes<K: Into<String>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        prepare: impl Fn(&Config) -> Result<Change, Problem> + Send + Sync + 'static,
    ) {
        let part = Part { keys: keys.into_iter().map(Into::into).collect(), prepare: Box::new(prepare) };
        self.0.parts.write().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    /// Has guests that run, and VMs to come, get what the configuration says of their networks.
    pub fn takes_networks(&self, manager: Manager, reservations: Reservations) {
        let all = 0..self.0.networks.len();
        let keys = all.flat_map(|at| keys::OF_GUESTS.map(|key| format!("network[{at}].{key}")));
        self.takes(keys, move |config| {
            let (manager, reservations, networks) =
                (manager.clone(), reservations.clone(), config.networks.clone());
            Ok(Box::pin(async move {
                manager.adjust(&networks).await;
                reservations.adjust(&networks).await;
            }))
        });
    }

    #[cfg(test)]
    fn keys(&self) -> Vec<String> {
        let parts = self.0.parts.read().unwrap_or_else(PoisonError::into_inner);
        parts.iter().flat_map(|part| part.keys.clone()).collect()
    }

    /// Who may call over TCP.
    pub fn allowed(&self) -> Arc<ArcSwap<SpiffeIds>> {
        self.0.allowed.clone()
    }

    /// Whether each VM has metrics of its own.
    pub fn vm_labels(&self) -> Arc<AtomicBool> {
        self.0.vm_labels.clone()
    }

    /// Reads the file again. One that does not fit leaves the old one in force. It goes on to its end whoever stops waiting: a
    /// caller that leaves must not leave half of it in force.
    pub async fn reload(&self) -> Result<Reloaded, ConfigError> {
        let reloader = self.clone();
        let reloaded = tokio::spawn(async move { reloader.read_again().await });
        reloaded.await.unwrap_or(Err(ConfigError::BrokenOff))
    }

    async fn read_again(&self) -> Result<Reloaded, ConfigError> {
        let mut file = self.0.file.lock().await;
        let (inner, before) = (self.0.clone(), file.clone());
        let made_ready = spawn_blocking(move || inner.make_ready(&before)).await;
        let made_ready = made_ready.unwrap_or(Err(ConfigError::BrokenOff)).inspect_err(|error| {
            error!(%error, "the changed configuration does not fit: the old one stays in force");
        })?;
        for change in made_ready.changes {
            change.await;
        }
        *file = made_ready.file;
        let Reloaded { applied, needs_restart, overridden } = &made_ready.reloaded;
        info!(?applied, ?needs_restart, ?overridden, "read the configuration again");
        Ok(made_ready.reloaded)
    }
}

/// Everything that can fail is done.
struct MadeReady {
    reloaded: Reloaded,
    file: Table,
    changes: Vec<Change>,
}

impl Inner {
    fn make_ready(&self, before: &Table) -> Result<MadeReady, ConfigError> {
        let path = self.path.as_deref();
        let new = Config::load(path)?;
        if is_lost(before, &new) {
            return Err(ConfigError::Lost { path: path.unwrap_or(Path::new(Config::DEFAULT_PATH)).into() });
        }
        check_groups(&new).map_err(|problem| new.refused(path, problem))?;
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        let keys = parts.iter().flat_map(|part| &part.keys).filter(|key| self.is_in_place(key, &new));
        let keys: Vec<&String> = keys.collect();
        let is_live = |key: &str| keys.iter().any(|live| is_at_or_below(key, live));
        let mut reloaded = Reloaded::default();
        for key in changed_keys(before, &new.file) {
            if let Some(variable) = overriding(&key) {
                reloaded.overridden.insert(key, variable.to_owned());
            } else if is_live(&key) {
                reloaded.applied.push(key);
            } else {
                reloaded.needs_restart.push(key);
            }
        }
        let mut file = before.clone();
        keys.iter().for_each(|key| put(&mut file, &new.file, key));
        // What is live may not fit what stays as it was.
        let in_force = Config::of_table(path, file.clone())?;
        let prepared = parts.iter().map(|part| (part.prepare)(&in_force));
        let changes = prepared.collect::<Result<_, _>>().map_err(|problem| new.refused(path, problem))?;
        Ok(MadeReady { reloaded, file, changes })
    }

    /// A key of a network is one of the same network in the new file.
    fn is_in_place(&self, key: &str, new: &Config) -> bool {
        let Some((at, _)) = key.strip_prefix("network[").and_then(|rest| rest.split_once(']')) else {
            return true;
        };
        let at: usize = at.parse().unwrap_or(usize::MAX);
        new.networks.get(at).map(|network| &network.name) == self.networks.get(at)
    }
}

/// Who may open the two sockets.
type GroupOf = fn(&ApiConfig) -> Option<&str>;
const GROUPS: [(&str, GroupOf); 2] = [
    ("api.socket_group", |api| api.socket_group.as_deref()),
    ("api.read_only_group", |api| api.read_only_group.as_deref()),
];

fn find_group(key: &'static str, socket: &Path, group: Option<&str>) -> Result<SocketGroup, Problem> {
    SocketGroup::find(socket, group).map_err(|error| Problem::new(key, error.to_string()))
}

/// Those of sockets that are opened at the next start too: it must not fail for what a reload has been told.
fn check_groups(new: &Config) -> Result<(), Problem> {
    let sockets = [Some(&new.api.socket), new.api.read_only_socket.as_ref()];
    for ((key, group_of), socket) in GROUPS.into_iter().zip(sockets) {
        if let Some(socket) = socket {
            find_group(key, socket, group_of(&new.api))?;
        }
    }
    Ok(())
}

/// Whether the file that said something says nothing at all any more: somebody is writing it anew, or has lost it.
fn is_lost(before: &Table, new: &Config) -> bool {
    new.is_blank() && !changed_keys(before, &Table::new()).is_empty()
}

/// The variable of this process that goes before the file's `key`.
fn overriding(key: &str) -> Option<&'static str> {
    match key {
        "log.filter" => logging::is_set_by_environment().then_some("GUESTNET_LOG"),
        key => Config::overriding(key),
    }
}

fn is_at_or_below(key: &str, live: &str) -> bool {
    key.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Takes the value at `key` over, or that there is none.
fn put(file: &mut Table, new: &Table, key: &str) {
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    let (name, at) = match head.strip_suffix(']').and_then(|head| head.split_once('[')) {
        Some((name, at)) => (name, at.parse::<usize>().ok()),
        None => (head, None),
    };
    let value = new.get(name);
    let none = Table::new();
    match (rest, at) {
        (None, _) => match value.cloned() {
            Some(value) => drop(file.insert(name.to_owned(), value)),
            None => drop(file.remove(name)),
        },
        (Some(rest), None) => {
            let below = value.and_then(Value::as_table).unwrap_or(&none);
            let place = file.entry(name).or_insert_with(|| Value::Table(Table::new()));
            if let Some(place) = place.as_table_mut() {
                put(place, below, rest);
            }
        }
        (Some(rest), Some(at)) => {
            let below = value.and_then(Value::as_array).and_then(|array| array.get(at)?.as_table());
            let places = file.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Some(places) = places.as_array_mut() else { return };
            while places.len() <= at {
                places.push(Value::Table(Table::new()));
            }
            if let Some(place) = places[at].as_table_mut() {
                put(place, below.unwrap_or(&none), rest);
            }
        }
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
    let no_tables = Value::Array(Vec::new());
    let are_tables = |value: &&Value| {
        value.as_array().is_some_and(|array| !array.is_empty() && array.iter().all(Value::is_table))
    };
    let (before, after) = match (before, after) {
        (None, Some(tables)) if are_tables(&tables) => (Some(&no_tables), after),
        (Some(tables), None) if are_tables(&tables) => (before, Some(&no_tables)),
        _ => (before, after),
    };
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

    #[test]
    fn a_file_that_says_nothing_any_more_is_lost_and_one_of_comments_is_meant() {
        let read = |text: Option<&str>| Config::from_parts(text, |_| None).unwrap();
        let before = "[metrics]\nvm_labels = true".parse::<Table>().unwrap();
        for (text, lost) in [(None, true), (Some(" \n\t\n"), true), (Some("# as it comes\n"), false)] {
            assert_eq!(is_lost(&before, &read(text)), lost, "{text:?}");
        }
        // Where nothing was said, as a reload leaves it.
        let mut nothing = Table::new();
        put(&mut nothing, &Table::new(), "metrics.vm_labels");
        put(&mut nothing, &Table::new(), "network[0].resolver");
        assert!(!is_lost(&nothing, &read(None)), "{nothing}");
    }

    #[test]
    fn one_part_of_a_network_is_taken_over_and_the_rest_left() {
        let table = |text: &str| text.parse::<Table>().unwrap();
        let after = table(
            "[[network]]\nmtu = 9000\ndns_servers = [\"1.1.1.1\"]\n[network.resolver]\nmin_ttl = 5\n\
             [[network.resolver.rule]]\nname = \"a\"",
        );
        let changed = ["dns_servers", "mtu", "resolver.min_ttl", "resolver.rule[0].name"];
        assert_eq!(changed_keys(&Table::new(), &after), changed.map(|key| format!("network[0].{key}")));
        let mut file = Table::new();
        for key in ["network[0].resolver", "network[0].dns_servers"] {
            put(&mut file, &after, key);
        }
        assert_eq!(changed_keys(&file, &after), ["network[0].mtu"]);
        // Back to what there was: nothing.
        put(&mut file, &Table::new(), "network[0].resolver");
        assert_eq!(changed_keys(&file, &after).len(), 3, "{file}");
        assert!(is_at_or_below("network[0].resolver.rule[0].name", "network[0].resolver"));
        assert!(is_at_or_below("network[0].resolver[0]", "network[0].resolver"));
        assert!(!is_at_or_below("network[0].resolvers", "network[0].resolver"));
    }
}
