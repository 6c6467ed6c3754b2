//! A call about one VM: create, update, delete, each to its end or taken back. One at a time for a VM.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::{Instrument, debug, error, info_span};

use super::admission::Admission;
use super::error::failed;
use super::under_way::BeingMade;
use super::{CreateVm, Inner, ManagerError, UpdateVm};
use crate::events::EventKind;
use crate::kernel::{Failed, For, HeldTap, NotApplied};
use crate::model::{DhcpOptions, Network, NetworkName, Place, Rate, RateLimit, Slot, Vm, VmId};
use crate::plan::{self, Step, Undo};
use crate::registry::{Binding, Reserved};
use crate::stats::Opened;
use crate::walls::{Guest, WallsError};

impl Inner {
    pub(super) async fn create(&self, request: CreateVm) -> Result<Arc<Binding>, ManagerError> {
        let _under_way = self.quiet.read().await;
        let (_turn, _call) = (self.turn(&request.vm_id).await, self.pool.call());
        if let Some(binding) = self.registry.by_vm(&request.vm_id) {
            return same(&request, binding);
        }
        let clean = |name: &NetworkName, address| self.pool.may_be_clean(name, address);
        let admitted = self.admission().admit(request, Instant::now(), microseconds_now(), clean)?;
        let network = self.admission().network(admitted.network())?;
        let since = self.under_way.since();
        let take = self.pool.take(&network, admitted.multi_queue());
        let place = match take.instrument(info_span!("slot.take")).await {
            Ok(place) => place,
            Err(error) => {
                let vm = admitted.on(Slot(0));
                self.admission().put_back(&vm);
                return Err(failed(&vm, &[error]));
            }
        };
        let vm = admitted.on(place.slot);
        // What the kernel remembers of the address's last guest is about that one.
        if let Err(error) = self.pool.cleaned(&vm).await {
            if vm.tap.multi_queue {
                self.pool.leave(&vm, network, None, false);
            } else {
                self.pool.put_back(network, place.slot);
            }
            self.admission().put_back(&vm);
            return Err(error);
        }
        let being_made = self.under_way.making(&vm);
        let opened = match self.make(&vm, &place, &network, &being_made).await {
            Ok(opened) => opened,
            Err(error) => {
                // No guest has had it, for nobody has been told of it; but who is given it next waits for the slot to be wiped.
                self.pool.leave(&vm, network, None, true);
                self.admission().put_back(&vm);
                return Err(error);
            }
        };
        self.stats.begin(&vm, opened);
        let binding = Arc::new(Binding::new(vm, network));
        self.registry.bind(binding.clone());
        drop(being_made);
        self.under_way.is_live(binding.vm.slot, since);
        self.tell(EventKind::Bound, &binding);
        Ok(binding)
    }

    /// Binds the VM, then makes it durable, or leaves nothing of it. In this order there is no record of a VM that could not be
    /// bound, which a full disk would keep and the next start bring to life; what is bound and has no record, a start takes away.
    /// What it begins to be counted from.
    async fn make(
        &self,
        vm: &Vm,
        place: &Place,
        network: &Arc<Network>,
        being_made: &BeingMade<'_>,
    ) -> Result<Opened, ManagerError> {
        let bound = self.bind(vm, place, network).instrument(info_span!("kernel.bind")).await;
        let opened = bound.map_err(|errors| failed(vm, &errors))?;
        being_made.is_limited(vm.rate_limit);
        let insert = self.store.insert(vm.clone(), opened.account().clone());
        let Err(refused) = insert.instrument(info_span!("store.commit")).await else { return Ok(opened) };
        let mut errors = self.take_back(plan::unbind(vm, place, network)).await;
        errors.extend(self.walls.unbind(&vm.vm_id).err().map(|error| error.to_string()));
        for what in errors {
            error!(vm_id = %vm.vm_id, what, "of a VM that could not be made durable something is left");
        }
        Err(refused.into())
    }

    /// Binds the VM to its slot, or leaves nothing of it: a step that fails has left nothing, the earlier ones are taken back.
    async fn bind(&self, vm: &Vm, place: &Place, network: &Arc<Network>) -> Result<Opened, Vec<String>> {
        let (stats, walls) = (self.stats.clone(), self.walls.clone());
        let (device, guest) = (vm.slot.host_device(), Guest::new(vm, network.clone()));
        let first = move || {
            let opened = stats.open_account(&device)?;
            // The walls first: there is no moment in which the guest could speak without them.
            walls.bind(guest)?;
            Ok(opened)
        };
        match self.kernel.apply_after(first, plan::bind(vm, place, network)).await {
            Ok(opened) => Ok(opened),
            Err(NotApplied::First(error)) => Err(vec![error.to_string()]),
            Err(NotApplied::Steps(Failed { applied, error })) => {
                let mut errors = vec![error.to_string()];
                errors.extend(self.take_back(applied.iter().rev().filter_map(Step::undo).collect()).await);
                errors.extend(self.walls.unbind(&vm.vm_id).err().map(|error| error.to_string()));
                Err(errors)
            }
        }
    }

    /// Goes on past errors; all of them.
    pub(super) async fn take_back(&self, undos: Vec<Undo>) -> Vec<String> {
        self.kernel.undo(For::Caller, undos).await.iter().map(ToString::to_string).collect()
    }

    pub(super) async fn update(&self, request: UpdateVm) -> Result<Arc<Binding>, ManagerError> {
        let vm_id = request.vm_id;
        let _under_way = self.quiet.read().await;
        let _turn = self.turn(&vm_id).await;
        let Some(before) = self.registry.by_vm(&vm_id) else {
            return Err(ManagerError::NoVm { vm_id });
        };
        let rate_limit = request.rate_limit.over(before.vm.rate_limit);
        let rate_limit = rate_limit.map_err(|burst| ManagerError::BurstWithoutRate { burst: burst.kib() })?;
        let hostname = request.hostname.unwrap_or_else(|| before.vm.hostname.clone());
        let vm = Vm { hostname, rate_limit, ..before.vm.clone() };
        if vm == before.vm {
            return Ok(before);
        }
        let other_limit = vm.rate_limit != before.vm.rate_limit;
        // Set first: a record of a limit that could not be set might stay, on a full disk, for the next start to set.
        let updated = match other_limit {
            true => self.set_limit(&vm).await.map_err(|errors| failed(&vm, &errors)),
            false => Ok(()),
        };
        let updated = match updated {
            Ok(()) => self.store.update(vm.clone()).await.map(drop).map_err(ManagerError::from),
            refused => refused,
        };
        if let Err(error) = updated {
            if other_limit && let Err(errors) = self.set_limit(&before.vm).await {
                error!(%vm_id, errors = errors.join("; then "), "a limit that was not to be could not be taken back");
            }
            return Err(error);
        }
        let binding = Arc::new(Binding::new(vm, before.network.clone()));
        self.registry.rebind(binding.clone());
        Ok(binding)
    }

    async fn set_limit(&self, vm: &Vm) -> Result<(), Vec<String>> {
        let place = self.pool.place(vm.slot).ok_or_else(|| vec!["its slot is gone".to_owned()])?;
        // What it has dropped is counted by the queue that is the limit.
        let closing = match vm.rate_limit {
            Some(_) => None,
            None => Some(self.stats.closing(&vm.vm_id).await),
        };
        let set = self.kernel.apply(For::Caller, vec![plan::limit(vm, &place)]).await;
        if let Some(closing) = closing {
            closing.queue_is_gone().await;
        }
        set.map_err(|failure| vec![failure.to_string()])
    }

    pub(super) async fn delete(&self, vm_id: &VmId) -> Result<(), ManagerError> {
        let _under_way = self.quiet.read().await;
        let (_turn, _call) = (self.turn(vm_id).await, self.pool.call());
        let Some(binding) = self.registry.by_vm(vm_id) else { return Ok(()) };
        let tap = self.end_of(&binding.vm).await?;
        let since = self.under_way.since();
        // No more leases and names from here on; but it is there until it is durable that it is not.
        self.registry.silence(vm_id);
        if let Err(error) = self.unbind(&binding).instrument(info_span!("kernel.unbind")).await {
            let slot = binding.vm.slot;
            self.registry.bind(binding);
            self.under_way.is_live(slot, since);
            return Err(error);
        }
        self.registry.unbind(vm_id);
        let (walls, gone) = (self.walls.clone(), vm_id.clone());
        let forgotten = self.kernel.run(move || walls.forget(&gone)).await;
        let connected = forgotten.map_err(WallsError::from).flatten().unwrap_or_else(|error| {
            error!(%error, "a VM that is gone is still in the walls: restart guestnet");
            true
        });
        self.stats.end(vm_id);
        self.leases.forget(Arc::new(Reserved::of_vm(&binding)));
        self.pool.leave(&binding.vm, binding.network.clone(), tap, connected);
        self.admission().release(&binding.vm, Instant::now());
        self.tell(EventKind::Unbound, &binding);
        Ok(())
    }

    fn tell(&self, kind: EventKind, binding: &Binding) {
        let Vm { vm_id, network, address, mac, .. } = &binding.vm;
        self.events.send(kind, Some(vm_id), Some(network), format!("{address}, {mac}"));
    }

    /// Makes sure that no VMM uses the VM's TAP, or will: it is held by us until it is wiped. `None` when it is gone.
    async fn end_of(&self, vm: &Vm) -> Result<Option<HeldTap>, ManagerError> {
        self.kernel.hold_tap(vm.slot).await.map_err(|error| match error.is_busy() {
            true => ManagerError::TapInUse { vm_id: vm.vm_id.clone() },
            false => failed(vm, &[error.to_string()]),
        })
    }

    /// Unbinds the VM and forgets it, or leaves all as it was.
    async fn unbind(&self, binding: &Binding) -> Result<(), ManagerError> {
        let Binding { vm, network, .. } = binding;
        let place = self.pool.place(vm.slot);
        let undos = place.as_ref().map(|place| plan::unbind(vm, place, network)).unwrap_or_default();
        let errors = self.take_back(undos).await;
        let undone = if errors.is_empty() {
            self.store.remove(vm.vm_id.clone()).await.map(drop).map_err(ManagerError::from)
        } else {
            Err(failed(vm, &errors))
        };
        if let (Err(_), Some(place)) = (&undone, place)
            && let Err(Failed { error, .. }) =
                self.kernel.apply(For::Caller, plan::rebind(vm, &place, network)).await
        {
            error!(%error, "a VM that could not be deleted could not be bound again: delete it again");
        }
        undone
    }

    /// Waits until no other call is about this VM.
    pub(super) async fn turn(&self, vm_id: &VmId) -> Turn<'_> {
        let lock = {
            let mut in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
            in_hand.entry(vm_id.clone()).or_default().clone()
        };
        let guard = match lock.clone().try_lock_owned() {
            Ok(guard) => guard,
            Err(_) => {
                debug!(%vm_id, "waits until another call about the VM is over");
                lock.lock_owned().await
            }
        };
        Turn { inner: self, vm_id: vm_id.clone(), _guard: guard }
    }

    // A panic while it was held cannot leave it half changed: what can fail comes before the first change.
    pub(super) fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while a call is about a VM; the last one to go takes the VM's lock out of the map.
pub(super) struct Turn<'a> {
    inner: &'a Inner,
    vm_id: VmId,
    _guard: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut in_hand = self.inner.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        // One reference is the map's, one the guard's that goes right after this.
        if in_hand.get(&self.vm_id).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            in_hand.remove(&self.vm_id);
        }
    }
}

/// The binding a VM has, if the request asks for nothing else.
fn same(request: &CreateVm, binding: Arc<Binding>) -> Result<Arc<Binding>, ManagerError> {
    fn text(value: Option<&impl ToString>) -> Option<String> {
        value.map(ToString::to_string)
    }
    let vm = &binding.vm;
    let options = |options: Option<&DhcpOptions>| options.map(|options| format!("{options:?}"));
    let rate = |limit: Option<RateLimit>| limit.map_or(0, |limit| limit.rate.mbps()).to_string();
    let asked_rate = request.rate_limit.rate.map(|rate| match rate {
        Rate::Unlimited => "0".to_owned(),
        Rate::Limited(rate) => rate.mbps().to_string(),
    });
    let burst = vm.rate_limit.map(|limit| limit.burst().kib().to_string());
    let facts = [
        ("network_id", text(Some(&vm.network)), text(request.network.as_ref())),
        ("workspace_id", text(vm.workspace.as_ref()), text(request.workspace.as_ref())),
        ("ip_address", text(Some(&vm.address)), text(request.address.as_ref())),
        ("mac_address", text(Some(&vm.mac)), text(request.mac.as_ref())),
        ("hostname", text(Some(&vm.hostname)), text(request.hostname.as_ref())),
        ("rate_limit_mbps", Some(rate(vm.rate_limit)), asked_rate),
        ("burst_kib", burst, request.rate_limit.burst.map(|burst| burst.kib().to_string())),
        ("tap_uid", text(vm.tap.uid.as_ref()), text(request.tap.uid.as_ref())),
        ("tap_gid", text(vm.tap.gid.as_ref()), text(request.tap.gid.as_ref())),
        ("tap_multi_queue", text(Some(&vm.tap.multi_queue)), text(request.tap.multi_queue.as_ref())),
        ("tap_offload", text(Some(&vm.tap.offload)), text(request.tap.offload.as_ref())),
        ("dhcp_options", options(Some(&vm.dhcp_options)), options(request.dhcp_options.as_ref())),
    ];
    for (field, has, asked) in facts {
        if let Some(asked) = asked
            && has.as_ref() != Some(&asked)
        {
            let has = has.unwrap_or_else(|| "unset".into());
            return Err(ManagerError::Differs { vm_id: vm.vm_id.clone(), field, has, asked });
        }
    }
    Ok(binding)
}

pub(super) fn microseconds_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
