//! The composition root: what starts and stops in which order. A start that fails leaves the host as it was; a stop
//! leaves guests' traffic running.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::api::{ApiServer, ApiSocket, Bounds, Entrances, LeaseSources, SocketError, Sources};
use crate::bridges::{Bridges, BridgesError};
use crate::config::{ApiConfig, Config, ConfigError};
use crate::dhcp::{Alarms, Counters, Dhcp, DhcpError, Journal, JournalError, Leases};

use crate::dns::{DnsAdmin, DnsEndpoints, DnsError, DnsServer};
use crate::drift::Drift;
use crate::events::Events;
use crate::host::{Host, HostError};
use crate::kernel::nft::Nft;
use crate::kernel::{For, Kernel, KernelError};
use crate::logging;
use crate::manager::{Manager, ManagerError, Parts};
use crate::metadata::{MetadataError, MetadataServer};
use crate::metrics::{self, Histogram, MetricsError, MetricsServer};
use crate::model::{DnsMode, Network, Plumbing};
use crate::plan;
use crate::registry::Registry;
use crate::reload::Reloader;
use crate::reservations::Reservations;
use crate::stats::Stats;
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;
use crate::walls::ruleset::BRIDGE;
use crate::walls::{Guest, Walls};

/// How long systemd is asked to wait for the next part of a start: longer than a look at all slots takes.
const EXTENSION: Duration = Duration::from_secs(60);

/// Why the daemon did not start, or what it could not do.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manager(#[from] ManagerError),
    #[error(transparent)]
    Dhcp(#[from] DhcpError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Bridges(#[from] BridgesError),
    #[error(transparent)]
    Dns(#[from] DnsError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
    #[error(
        "there is no state of guestnet in {}, and its walls or rules stand on this host: nothing was removed; name the configuration that \
         the service was started with (--config)", directory.display()
    )]
    NoState { directory: PathBuf },
}

impl AppError {
    /// Whether the configuration is to be mended, not the host.
    pub fn is_config(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::Host(
                    HostError::Overlap { .. } | HostError::ForeignBridge { .. } | HostError::Mtu { .. }
                )
        )
    }
}

/// Runs the daemon until SIGTERM or SIGINT. `config_file` is the file named on the command line.
pub async fn serve(config_file: Option<&Path>) -> Result<(), AppError> {
    let config = Config::load(config_file)?;
    let (mut telemetry, spans) = Telemetry::open(&config.telemetry);
    logging::start(&config.log_filter, spans);
    let served = serve_with(&config, config_file, &mut telemetry).await;
    // What waits for the collector is sent, or not: nothing depends on it.
    let _ = tokio::task::spawn_blocking(|| telemetry.stop()).await;
    served
}

async fn serve_with(
    config: &Config,
    config_file: Option<&Path>,
    telemetry: &mut Telemetry,
) -> Result<(), AppError> {
    raise_file_limit();
    let kernel = Kernel::open()?;
    kernel.check_host()?;
    let managed = managed(config);
    Host::check_routes(&kernel, &managed).await?;
    Host::check_mtus(&kernel, &config.networks).await?;
    if !Store::is_there(&config.state_directory) {
        // A service that runs with another state directory has the bridges, and the socket: that says more.
        check_entrances(&config.api)?;
        Host::check_names(&kernel, &managed).await?;
    }
    // Before all that only one can have: the lock is the last that one that has ended lets go of.
    let store = open_store(&config.state_directory).await?;
    let entrances = entrances(&config.api)?;
    let reloader = Reloader::new(config_file.map(Path::to_owned), config);
    let host = Host::check(kernel.clone(), store.clone(), &managed).await?;
    let host = Arc::new(Mutex::new(host));

    let mut terminate = signal(SignalKind::terminate())
        .map_err(|source| AppError::Io { doing: "listening for SIGTERM", source })?;
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|source| AppError::Io { doing: "listening for SIGINT", source })?;
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|source| AppError::Io { doing: "listening for SIGHUP", source })?;
    let mut watchdog = Watchdog::new();
    // After a reboot a start takes as long as thousands of VMs need; who stops it does not wait for that. What stands is taken
    // over by the next start, as after a crash.
    let asked_to_stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let started = tokio::select! {
        started = start(config, kernel, store, host.clone(), entrances, &reloader, telemetry) => started,
        () = asked_to_stop => {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            info!("guestnet has stopped before it was ready; the next start goes on from here");
            return Ok(());
        }
    };
    match started {
        Ok(running) => {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            info!(networks = config.networks.len(), "guestnet is ready");
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = hangup.recv() => drop(tokio::spawn(reloaded(reloader.clone()))),
                    () = watchdog.fed() => {}
                }
            }
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            running.stop().await;
            info!("guestnet has stopped; guests' traffic goes on");
            Ok(())
        }
        Err(error) => {
            // Each failure of it is logged; the error that tells is the first.
            let _ = host.lock().await.take_back().await;
            Err(error)
        }
    }
}

/// What came of it is logged: nobody waits for an answer to a signal.
async fn reloaded(reloader: Reloader) {
    drop(reloader.reload().await);
}

/// Removes everything that guestnet has made on this host: VMs' networks, bridges, rules, changed settings. What that is stands in
/// its state, so all that matters of the configuration is where that is.
pub async fn uninstall(config: Option<&Path>) -> Result<(), AppError> {
    let state_directory = Config::state_directory_of(config)?;
    let kernel = Kernel::open()?;
    kernel.check_host()?;
    if !Store::is_there(&state_directory) {
        // Another directory's guests may be behind them.
        if kernel.has_host_rules()? || Nft::open()?.has(BRIDGE)? {
            return Err(AppError::NoState { directory: state_directory });
        }
        info!(directory = %state_directory.display(), "no guestnet has left anything: nothing to remove");
        return Ok(());
    }
    // What it says of an earlier boot too: the host may have restored rules of that.
    let store = Arc::new(Store::open(&state_directory)?);
    let walls = Walls::open(&[], kernel.clone(), store.clone())?;
    let vms = store.load()?;
    for vm in &vms {
        if matches!(kernel.hold_tap(vm.slot).await, Err(error) if error.is_busy()) {
            return Err(ManagerError::TapInUse { vm_id: vm.vm_id.clone() }.into());
        }
    }
    let indexes = store.index_range()?;
    let observed = kernel.observe(indexes).await?;
    let bridges = store.links()?.into_iter().map(|link| link.ifindex).collect();
    let all = plan::strays(std::iter::empty(), &bridges, indexes, &observed);
    if let Some(error) = kernel.undo(For::Caller, all).await.into_iter().next() {
        return Err(error.into());
    }
    kernel.clear(observed.slots().into_iter().map(|slot| (slot, indexes.port(slot))).collect()).await?;
    for vm in vms {
        store.remove(vm.vm_id).await?;
    }
    Ok(Host::uninstall(kernel, store, &walls).await?)
}

/// The networks whose links are guestnet's: of the others it touches nothing.
fn managed(config: &Config) -> Vec<Arc<Network>> {
    config.networks.iter().filter(|network| network.plumbing == Plumbing::Managed).cloned().collect()
}

/// What stands in the way of the sockets; makes nothing.
fn check_entrances(api: &ApiConfig) -> Result<(), SocketError> {
    ApiSocket::check(&api.socket, api.socket_group.as_deref())?;
    let read_only = api.read_only_socket.as_deref();
    read_only.map_or(Ok(()), |path| ApiSocket::check(path, api.read_only_group.as_deref()))
}

/// The sockets, so that callers may connect from here on; they wait until the API is started.
fn entrances(api: &ApiConfig) -> Result<Entrances, SocketError> {
    let socket = ApiSocket::bind(&api.socket, api.socket_group.as_deref())?;
    let read_only = api.read_only_socket.as_deref();
    let read_only =
        read_only.map(|path| ApiSocket::bind(path, api.read_only_group.as_deref())).transpose()?;
    Ok(Entrances { socket, read_only, tls: api.tls.clone() })
}

/// The store, which forgets devices and settings of another boot: nothing of them is left.
async fn open_store(state_directory: &Path) -> Result<Arc<Store>, AppError> {
    let store = Store::open(state_directory)?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|source| AppError::Io { doing: "reading the id of this boot", source })?;
    store.record_boot(boot_id.trim()).await?;
    Ok(Arc::new(store))
}

/// Sockets to DNS upstreams are as many as questions under way: the soft limit of 1,024 files is for programs that use
/// select(2), which nothing here does.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the limit on open files stays low: fewer DNS questions can be under way");
    }
}

/// Has systemd wait for a start that gets on: after a reboot every VM's network is made again, and the service is ready when all
/// of them are, so that no VM manager boots one without. A start that hangs is ended all the same (sd_notify(3)).
async fn extend_start(manager: Manager) {
    let mut ticks = tokio::time::interval(EXTENSION / 6);
    let mut before = None;
    loop {
        ticks.tick().await;
        let now = Some(manager.adopted());
        if now != before {
            let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
            let _ = sd_notify::notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(extension)]);
        }
        before = now;
    }
}

/// systemd's watchdog: restarts a service whose main loop is stuck. Never comes round where systemd did not ask for it.
struct Watchdog(Option<tokio::time::Interval>);

impl Watchdog {
    fn new() -> Self {
        // Twice as often as systemd wants to hear of us (sd_watchdog_enabled(3)).
        Self(sd_notify::watchdog_enabled().map(|period| tokio::time::interval(period / 2)))
    }

    async fn fed(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            None => std::future::pending().await,
        }
    }
}

struct Running {
    _metrics: MetricsServer,
    api: ApiServer,
    dns: Vec<DnsServer>,
    bridges: Bridges,
    manager: Manager,
    slots: JoinHandle<()>,
    metadata: Vec<MetadataServer>,
    stats: Stats,
    keeping: JoinHandle<()>,
    watching: JoinHandle<()>,
    drift: JoinHandle<()>,
    /// Ends last: what the servers did is still to be written.
    _journal: Journal,
}

async fn start(
    config: &Config,
    kernel: Kernel,
    store: Arc<Store>,
    host: Arc<Mutex<Host>>,
    entrances: Entrances,
    reloader: &Reloader,
    telemetry: &mut Telemetry,
) -> Result<Running, AppError> {
    let (registry, events) = (Registry::default(), Events::default());
    let (leases, journal) = Leases::open(&config.state_directory, events.clone())?;
    let stats = Stats::new(kernel.clone(), store.clone(), registry.clone());
    let alarms = Alarms::start(events.clone())
        .map_err(|source| AppError::Io { doing: "starting the thread of DHCP alarms", source })?;
    let counters = Arc::<Counters>::default();
    let dhcp =
        Dhcp { registry: registry.clone(), leases: leases.clone(), counters: counters.clone(), alarms };
    let bridges = Bridges::new(host.clone(), dhcp, &config.networks);
    let walls = Walls::open(&managed(config), kernel.clone(), store.clone())?;
    let parts = Parts {
        kernel: kernel.clone(),
        store: store.clone(),
        bridges: bridges.clone(),
        registry: registry.clone(),
        leases: leases.clone(),
        stats: stats.clone(),
        events: events.clone(),
        walls: walls.clone(),
    };
    let manager = Manager::new(&config.networks, parts)?;
    // Before anything is touched: a stored VM that the configuration has no place for stops the start.
    manager.readmit()?;
    let reservations = Reservations::open(
        &config.networks,
        &config.reservations,
        store.clone(),
        registry.clone(),
        leases.clone(),
    )?;
    leases.forget_unreserved(&registry);
    // Before anything is made: what is changed from then on is noticed.
    let watch = kernel.watch(walls.port())?;
    host.lock().await.raise().await?;
    let guests = registry.all().into_iter().filter(|binding| binding.network.plumbing == Plumbing::Managed);
    let guests = guests.map(|binding| Guest::new(&binding.vm, binding.network.clone())).collect();
    host.lock().await.raise_walls(&walls, guests)?;
    let own_subnets: Vec<_> = config.networks.iter().map(|network| network.subnet).collect();
    let (mut dns, mut metadata) = (Vec::new(), Vec::new());
    for network in &config.networks {
        if network.dns == DnsMode::On {
            let endpoints = DnsEndpoints {
                own_subnets: own_subnets.clone(),
                events: events.clone(),
                records: store.dns_records(&network.name)?,
                ..DnsEndpoints::of(network)
            };
            dns.push(DnsServer::start(network.clone(), registry.clone(), endpoints)?);
        }
        if let Some(how) = network.metadata {
            let (registry, manager) = (registry.clone(), manager.clone());
            metadata.push(MetadataServer::start(network.clone(), how, registry, manager).await?);
        }
        bridges.serve(network).await?;
    }
    host.lock().await.open_for_guests()?;
    let extending = tokio::spawn(extend_start(manager.clone()));
    let adopted = manager.adopt().await;
    extending.abort();
    adopted?;
    let controls: Vec<_> = dns.iter().map(DnsServer::control).collect();
    let admin = DnsAdmin::new(controls.clone(), store.clone());
    let resolvers = admin.clone();
    reloader.takes(DnsAdmin::live_keys(&config.networks), move |config| resolvers.prepare(config));
    reloader.takes_networks(manager.clone(), reservations.clone());
    let lease_sources = LeaseSources { registry, leases };
    let (bind, unbind) = (Arc::<Histogram>::default(), Arc::<Histogram>::default());
    let sources = Sources {
        started_at: SystemTime::now(),
        events: events.clone(),
        dhcp: counters,
        dns: admin,
        leases: lease_sources,
        reservations,
        bind,
        unbind,
        reloader: reloader.clone(),
    };
    let measured = metrics::Source {
        started_at: sources.started_at,
        manager: manager.clone(),
        events: events.clone(),
        dhcp: sources.dhcp.clone(),
        dns: controls,
        bind: sources.bind.clone(),
        unbind: sources.unbind.clone(),
        vm_labels: reloader.vm_labels(),
        by_network: metrics::Networks::default(),
    };
    measured.begin().await;
    telemetry.measure(measured.clone());
    let metrics = MetricsServer::start(&config.metrics, measured).await?;
    let api = ApiServer::start(entrances, manager.clone(), sources, Bounds::default())
        .await
        .map_err(|source| AppError::Io { doing: "serving the API", source })?;
    // Last: a start that fails leaves no slots.
    let slots = tokio::spawn({
        let manager = manager.clone();
        async move { manager.keep().await }
    });
    manager.ready().await;
    let keeping = tokio::spawn(stats.clone().keep());
    let drift = Drift { host, bridges: bridges.clone(), manager: manager.clone(), events: events.clone() };
    let drift = tokio::spawn(drift.watch(watch));
    let watching = tokio::spawn(walls.watch(events));
    Ok(Running {
        _metrics: metrics,
        api,
        dns,
        bridges,
        metadata,
        manager,
        slots,
        stats,
        keeping,
        watching,
        drift,
        _journal: journal,
    })
}

impl Running {
    /// No new calls first; then the servers of guests.
    async fn stop(self) {
        self.drift.abort();
        self.api.stop().await;
        self.manager.stop();
        // It ends by itself; an error means that it has panicked.
        let _ = self.slots.await;
        self.keeping.abort();
        self.watching.abort();
        self.stats.count_and_write_down().await;
        for server in self.dns {
            server.stop();
        }
        for server in self.metadata {
            server.stop().await;
        }
        self.bridges.stop();
    }
}
