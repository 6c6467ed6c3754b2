//! The RPCs: each is check, call, write down. In: decoded requests. Out: answers, or an error with the Connect code that
//! the proto promises. A change that has begun is finished even when its caller hangs up or its deadline passes.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use connectrpc::{
    ConnectError, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tracing::{Instrument, Span};

use super::caller::{self, Origin};
use super::errors::{code_and_reason, internal, no_vm, reason_and_field, refusal, status};
use super::policy;
use super::{
    Sources, dns, events, guest_config, networks, reservations, stats, status as status_of, vms, wire,
};
use crate::manager::{Collected, CreateVm, Manager, ManagerError};
use crate::model::VmId;
use crate::proto::guestnet::v1::__buffa::oneof::delete_reservation_request::Key;
use crate::proto::guestnet::v1::{self, GuestNetworkService};
use crate::reload::Reloaded;
use crate::walls::WallsError;

/// Changes under way at one time; callers beyond it wait.
const CHANGES: u32 = 64;

/// Of those, changes of one batch: others are not kept waiting for all of it.
const BATCH_CHANGES: usize = 16;

/// The service over one manager.
#[derive(Clone)]
pub(super) struct Service {
    manager: Manager,
    sources: Sources,
    changes: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(manager: Manager, sources: Sources) -> Self {
        let changes = Arc::new(Semaphore::new(CHANGES as usize));
        Self { manager, sources, changes }
    }

    async fn create(&self, create: CreateVm, origin: Origin) -> Result<v1::VmNetwork, ConnectError> {
        let (manager, vm_id) = (self.manager.clone(), create.vm_id.clone());
        let binding =
            self.change("create", vm_id, origin, async move { manager.create(create).await }).await?;
        Ok(wire::vm_network(&binding))
    }

    /// Returns when no change is under way.
    pub(super) async fn settled(&self) {
        // The semaphore is never closed.
        let _ = self.changes.acquire_many(CHANGES).await;
    }

    /// Runs a change to its end. A caller that goes away must not leave half of it (connectrpc drops the handler then), so
    /// it has a task of its own; the permit bounds how many.
    async fn change<T: Send + 'static>(
        &self,
        verb: &'static str,
        vm_id: VmId,
        origin: Origin,
        work: impl Future<Output = Result<T, ManagerError>> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let permit = self.changes.clone().acquire_owned().await;
        let taken = match verb {
            "create" => Some(self.sources.bind.clone()),
            "delete" => Some(self.sources.unbind.clone()),
            _ => None,
        };
        let span = Span::current();
        span.record("guestnet.vm_id", vm_id.as_str());
        let work = async move {
            let _permit = permit;
            let begun = Instant::now();
            let done = work.await;
            if let (Ok(_), Some(taken)) = (&done, taken) {
                taken.observe(begun.elapsed());
            }
            let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            match &done {
                Ok(_) => {
                    let Origin { caller, trace_id } = &origin;
                    let caller = caller.as_ref().map(tracing::field::display);
                    tracing::info!(verb, %vm_id, caller, trace_id, took_us, "VM network changed");
                }
                Err(error) => origin.log_failure(verb, &vm_id, code_and_reason(error), error),
            }
            done
        };
        match tokio::spawn(work.instrument(span)).await {
            Ok(done) => done.map_err(status),
            Err(error) => {
                tracing::error!(verb, %error, "a change did not run to its end");
                Err(internal("BROKEN_OFF", format!("{verb} did not run to its end: see the daemon's log")))
            }
        }
    }

    /// Runs a change without a VM to its end, whoever goes away meanwhile, and logs who asked for it.
    async fn finished<T: Send + 'static>(
        &self,
        change: Change,
        work: impl Future<Output = Result<T, ConnectError>> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let permit = self.changes.clone().acquire_owned().await;
        let verb = change.verb;
        let work = async move {
            let _permit = permit;
            let done = work.await;
            match &done {
                Ok(_) if change.is_trial => {
                    tracing::debug!(verb, what = change.what, "looked at what it would change");
                }
                Ok(_) => change.origin.log(verb, change.what),
                Err(error) => {
                    let words = error.message.as_deref().unwrap_or_default();
                    let (reason, _) = reason_and_field(error);
                    change.origin.log_failure(verb, &change.what, (error.code, &reason), &words);
                }
            }
            done
        };
        tokio::spawn(work.in_current_span()).await.unwrap_or_else(|error| {
            tracing::error!(verb, %error, "a change did not run to its end");
            Err(internal("BROKEN_OFF", format!("{verb} did not run to its end: see the daemon's log")))
        })
    }
}

/// What somebody wants to change, as it is logged once it is done.
struct Change {
    origin: Origin,
    verb: &'static str,
    what: String,
    /// Nothing is changed: it is to be seen what would be.
    is_trial: bool,
}

impl Change {
    fn of(ctx: &RequestContext, verb: &'static str, what: impl ToString) -> Self {
        Self { origin: Origin::of(ctx), verb, what: what.to_string(), is_trial: false }
    }

    fn trial_if(self, is_trial: bool) -> Self {
        Self { is_trial, ..self }
    }
}

// Owned messages: an answer borrows nothing, and the trait allows any body.
#[allow(refining_impl_trait)]
impl GuestNetworkService for Service {
    async fn create_vm_network(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::CreateVmNetworkRequest>,
    ) -> ServiceResult<v1::CreateVmNetworkResponse> {
        let vm_network = self.create(wire::create_vm(&request)?, Origin::of(&ctx)).await?;
        Response::ok(v1::CreateVmNetworkResponse { vm_network: vm_network.into(), ..Default::default() })
    }

    async fn batch_create_vm_networks(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::BatchCreateVmNetworksRequest>,
    ) -> ServiceResult<v1::BatchCreateVmNetworksResponse> {
        vms::check_batch(request.requests.len())?;
        let asked: Vec<_> =
            request.requests.iter().map(|one| (one.vm_id.to_owned(), wire::create_vm(one))).collect();
        let each = asked.into_iter().map(|(vm_id, create)| {
            let origin = Origin::of(&ctx);
            async move {
                let made = match create {
                    Ok(create) => self.create(create, origin).await,
                    Err(error) => Err(error.into()),
                };
                vms::batch_result(&vm_id, made)
            }
        });
        let results = stream::iter(each).buffered(BATCH_CHANGES).collect().await;
        Response::ok(v1::BatchCreateVmNetworksResponse { results, ..Default::default() })
    }

    async fn update_vm_network(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::UpdateVmNetworkRequest>,
    ) -> ServiceResult<v1::UpdateVmNetworkResponse> {
        let update = wire::update_vm(&request)?;
        let (manager, vm_id) = (self.manager.clone(), update.vm_id.clone());
        let binding = self
            .change("update", vm_id, Origin::of(&ctx), async move { manager.update(update).await })
            .await?;
        let vm_network = wire::vm_network(&binding);
        Response::ok(v1::UpdateVmNetworkResponse { vm_network: vm_network.into(), ..Default::default() })
    }

    async fn get_vm_network(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetVmNetworkRequest>,
    ) -> ServiceResult<v1::GetVmNetworkResponse> {
        let vm_id = wire::vm_id(request.vm_id)?;
        let binding = self.manager.get(&vm_id).ok_or_else(|| no_vm(&vm_id))?;
        let vm_network = wire::vm_network(&binding);
        Response::ok(v1::GetVmNetworkResponse { vm_network: vm_network.into(), ..Default::default() })
    }

    async fn list_vm_networks(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListVmNetworksRequest>,
    ) -> ServiceResult<v1::ListVmNetworksResponse> {
        Response::ok(vms::list(&self.manager, &request)?)
    }

    async fn delete_vm_network(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::DeleteVmNetworkRequest>,
    ) -> ServiceResult<v1::DeleteVmNetworkResponse> {
        let vm_id = wire::vm_id(request.vm_id)?;
        let (manager, gone) = (self.manager.clone(), vm_id.clone());
        self.change("delete", vm_id, Origin::of(&ctx), async move { manager.delete(&gone).await }).await?;
        Response::ok(v1::DeleteVmNetworkResponse::default())
    }

    async fn list_leases(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListLeasesRequest>,
    ) -> ServiceResult<v1::ListLeasesResponse> {
        Response::ok(self.sources.leases.list(&self.manager, &request)?)
    }

    async fn get_lease(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetLeaseRequest>,
    ) -> ServiceResult<v1::GetLeaseResponse> {
        Response::ok(self.sources.leases.get(&self.manager, request.to_owned_message())?)
    }

    async fn watch_leases(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::WatchLeasesRequest>,
    ) -> ServiceResult<ServiceStream<v1::WatchLeasesResponse>> {
        Response::stream_ok(self.sources.leases.watch(&self.manager, &request)?)
    }

    async fn add_reservations(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::AddReservationsRequest>,
    ) -> ServiceResult<v1::AddReservationsResponse> {
        let (request, reservations) = (request.to_owned_message(), self.sources.reservations.clone());
        let change = Change::of(&ctx, "add reservations", request.reservations.len());
        Response::ok(
            self.finished(change, async move { reservations::add(&reservations, request).await }).await?,
        )
    }

    async fn list_reservations(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListReservationsRequest>,
    ) -> ServiceResult<v1::ListReservationsResponse> {
        Response::ok(reservations::list(&self.sources.reservations, &request)?)
    }

    async fn delete_reservation(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::DeleteReservationRequest>,
    ) -> ServiceResult<v1::DeleteReservationResponse> {
        let (request, reservations) = (request.to_owned_message(), self.sources.reservations.clone());
        let key = match &request.key {
            Some(Key::MacAddress(key) | Key::IpAddress(key)) => key.clone(),
            None => String::new(),
        };
        let change = Change::of(&ctx, "delete reservation", key);
        Response::ok(
            self.finished(change, async move { reservations::delete(&reservations, request).await }).await?,
        )
    }

    async fn list_networks(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, v1::ListNetworksRequest>,
    ) -> ServiceResult<v1::ListNetworksResponse> {
        Response::ok(networks::list(&self.manager, &self.sources.dns))
    }

    async fn get_network_stats(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetNetworkStatsRequest>,
    ) -> ServiceResult<v1::GetNetworkStatsResponse> {
        let vm_ids = stats::chosen(&self.manager, &request.vm_ids)?;
        Response::ok(stats::response(&*stats::read(self.manager.stats(), &vm_ids).await?))
    }

    async fn watch_network_stats(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::WatchNetworkStatsRequest>,
    ) -> ServiceResult<ServiceStream<v1::WatchNetworkStatsResponse>> {
        let interval = stats::interval(request.interval_ms)?;
        let vm_ids = stats::chosen(&self.manager, &request.vm_ids)?;
        Response::stream_ok(stats::watch(self.manager.stats().clone(), vm_ids, interval))
    }

    async fn render_guest_config(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::RenderGuestConfigRequest>,
    ) -> ServiceResult<v1::RenderGuestConfigResponse> {
        let may_read_secrets = caller::is_full(&ctx);
        Response::ok(guest_config::render(&self.manager, &request, may_read_secrets)?)
    }

    async fn set_user_data(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::SetUserDataRequest>,
    ) -> ServiceResult<v1::SetUserDataResponse> {
        let (vm_id, content) = (wire::vm_id(request.vm_id)?, request.user_data.map(<[u8]>::to_vec));
        let (manager, of) = (self.manager.clone(), vm_id.clone());
        let set = async move { manager.set_user_data(of, content).await };
        self.change("set user-data", vm_id, Origin::of(&ctx), set).await?;
        Response::ok(v1::SetUserDataResponse::default())
    }

    async fn get_user_data(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetUserDataRequest>,
    ) -> ServiceResult<v1::GetUserDataResponse> {
        Response::ok(guest_config::user_data(&self.manager, &wire::vm_id(request.vm_id)?)?)
    }

    async fn get_status(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, v1::GetStatusRequest>,
    ) -> ServiceResult<v1::GetStatusResponse> {
        Response::ok(status_of::status(&self.manager, &self.sources).map_err(status)?)
    }

    async fn set_dns_record(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::SetDnsRecordRequest>,
    ) -> ServiceResult<v1::SetDnsRecordResponse> {
        let (request, dns) = (request.to_owned_message(), self.sources.dns.clone());
        let (change, manager) = (Change::of(&ctx, "set DNS record", &request.name), self.manager.clone());
        let set = async move { dns::set_record(&dns, &manager, request).await };
        Response::ok(self.finished(change, set).await?)
    }

    async fn delete_dns_record(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::DeleteDnsRecordRequest>,
    ) -> ServiceResult<v1::DeleteDnsRecordResponse> {
        let (request, dns) = (request.to_owned_message(), self.sources.dns.clone());
        let (change, manager) = (Change::of(&ctx, "delete DNS record", &request.name), self.manager.clone());
        let delete = async move { dns::delete_record(&dns, &manager, request).await };
        Response::ok(self.finished(change, delete).await?)
    }

    async fn list_dns_records(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListDnsRecordsRequest>,
    ) -> ServiceResult<v1::ListDnsRecordsResponse> {
        Response::ok(dns::list_records(&self.sources.dns, request.network_id)?)
    }

    async fn flush_dns_cache(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::FlushDnsCacheRequest>,
    ) -> ServiceResult<v1::FlushDnsCacheResponse> {
        let flushed = dns::flush(&self.sources.dns, request.network_id, request.name)?;
        Origin::of(&ctx).log("flush DNS cache", request.network_id.unwrap_or_default());
        Response::ok(flushed)
    }

    async fn reload_dns(
        &self,
        ctx: RequestContext,
        _request: ServiceRequest<'_, v1::ReloadDnsRequest>,
    ) -> ServiceResult<v1::ReloadDnsResponse> {
        let (change, dns) = (
            Change::of(&ctx, "reload DNS", "rules and hosts files are read again"),
            self.sources.dns.clone(),
        );
        self.finished(change, async move { Ok(dns.reload().await?) }).await?;
        Response::ok(v1::ReloadDnsResponse::default())
    }

    async fn query_dns(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::QueryDnsRequest>,
    ) -> ServiceResult<v1::QueryDnsResponse> {
        let (vm_id, name, rtype) = (request.vm_id.to_owned(), request.name.to_owned(), request.r#type);
        Response::ok(dns::query(&self.sources.dns, &self.manager, &vm_id, &name, rtype).await?)
    }

    async fn get_dns_stats(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetDnsStatsRequest>,
    ) -> ServiceResult<v1::GetDnsStatsResponse> {
        Response::ok(dns::stats(&self.sources.dns, request.network_id, request.top)?)
    }

    async fn list_events(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListEventsRequest>,
    ) -> ServiceResult<v1::ListEventsResponse> {
        Response::ok(events::list(&self.sources.events, &self.manager, &request)?)
    }

    async fn watch_events(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::WatchEventsRequest>,
    ) -> ServiceResult<ServiceStream<v1::WatchEventsResponse>> {
        events::watch(&self.sources.events, &self.manager, &request)
    }

    async fn apply_network_policy(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::ApplyNetworkPolicyRequest>,
    ) -> ServiceResult<v1::ApplyNetworkPolicyResponse> {
        let (spec, dry_run) = (policy::spec(request.policy.as_option())?, request.dry_run);
        let walls = self.manager.walls().clone();
        // One of the two is set.
        let scope = format!("{}{}", spec.vm_id, spec.workspace_id);
        let change = Change::of(&ctx, "apply policy", scope).trial_if(dry_run);
        let apply = async move { walls.apply(spec, dry_run).await.map_err(policy::failed) };
        Response::ok(policy::applied(self.finished(change, apply).await?))
    }

    async fn get_network_policy(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::GetNetworkPolicyRequest>,
    ) -> ServiceResult<v1::GetNetworkPolicyResponse> {
        let scope = policy::scope(request.vm_id, request.workspace_id)?;
        let (found, counts) = self.manager.walls().policy(&scope).await.map_err(policy::failed)?;
        let found = policy::policy(&found, &counts);
        Response::ok(v1::GetNetworkPolicyResponse { policy: found.into(), ..Default::default() })
    }

    async fn list_network_policies(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, v1::ListNetworkPoliciesRequest>,
    ) -> ServiceResult<v1::ListNetworkPoliciesResponse> {
        let policies = self.manager.walls().policies();
        let policies = policies.iter().map(|each| policy::policy(each, &[])).collect();
        Response::ok(v1::ListNetworkPoliciesResponse { policies, ..Default::default() })
    }

    async fn delete_network_policy(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::DeleteNetworkPolicyRequest>,
    ) -> ServiceResult<v1::DeleteNetworkPolicyResponse> {
        let scope = policy::scope(request.vm_id, request.workspace_id)?;
        let (change, walls) = (Change::of(&ctx, "delete policy", &scope), self.manager.walls().clone());
        self.finished(change, async move { walls.delete_policy(&scope).await.map_err(policy::failed) })
            .await?;
        Response::ok(v1::DeleteNetworkPolicyResponse::default())
    }

    async fn test_network_policy(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::TestNetworkPolicyRequest>,
    ) -> ServiceResult<v1::TestNetworkPolicyResponse> {
        Response::ok(policy::test(self.manager.walls(), &request)?)
    }

    async fn add_port_forward(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::AddPortForwardRequest>,
    ) -> ServiceResult<v1::AddPortForwardResponse> {
        let forward = policy::forward(request.forward.as_option())?;
        let what = format!("{}: {}", forward.vm_id, forward.host_port);
        let (change, walls) = (Change::of(&ctx, "add forward", what), self.manager.walls().clone());
        let add = async move { walls.add_forward(forward).await.map_err(policy::failed) };
        let forward = policy::port_forward(&self.finished(change, add).await?);
        Response::ok(v1::AddPortForwardResponse { forward: forward.into(), ..Default::default() })
    }

    async fn list_port_forwards(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, v1::ListPortForwardsRequest>,
    ) -> ServiceResult<v1::ListPortForwardsResponse> {
        let vm_id = request.vm_id.map(wire::vm_id).transpose()?;
        let forwards = self.manager.walls().forwards();
        let of_vm =
            forwards.iter().filter(|forward| vm_id.as_ref().is_none_or(|vm_id| forward.vm_id == *vm_id));
        let forwards = of_vm.map(policy::port_forward).collect();
        Response::ok(v1::ListPortForwardsResponse { forwards, ..Default::default() })
    }

    async fn delete_port_forward(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::DeletePortForwardRequest>,
    ) -> ServiceResult<v1::DeletePortForwardResponse> {
        let (protocol, at, port) = policy::named(&request)?;
        let (change, walls) = (Change::of(&ctx, "delete forward", port), self.manager.walls().clone());
        let remove = async move {
            match walls.remove_forward(protocol, &at, port).await {
                Ok(_) | Err(WallsError::NoForward { .. }) => Ok(()),
                Err(error) => Err(policy::failed(error)),
            }
        };
        self.finished(change, remove).await?;
        Response::ok(v1::DeletePortForwardResponse::default())
    }

    async fn get_wall_drops(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, v1::GetWallDropsRequest>,
    ) -> ServiceResult<v1::GetWallDropsResponse> {
        let drops = self.manager.walls().drops().await.map_err(policy::failed)?;
        Response::ok(policy::drops(drops))
    }

    async fn collect_garbage(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, v1::CollectGarbageRequest>,
    ) -> ServiceResult<v1::CollectGarbageResponse> {
        let (apply, manager) = (request.apply, self.manager.clone());
        let change = Change::of(&ctx, "collect garbage", "what belongs to no VM").trial_if(!apply);
        let collected =
            self.finished(change, async move { manager.collect(apply).await.map_err(status) }).await?;
        let leftover = |of: Collected| v1::Leftover {
            kind: of.leftover.kind().to_owned(),
            what: of.leftover.to_string(),
            removed: of.removed,
            error: of.error.unwrap_or_default(),
            ..Default::default()
        };
        let leftovers = collected.into_iter().map(leftover).collect();
        Response::ok(v1::CollectGarbageResponse { leftovers, ..Default::default() })
    }

    async fn reload_configuration(
        &self,
        ctx: RequestContext,
        _request: ServiceRequest<'_, v1::ReloadConfigurationRequest>,
    ) -> ServiceResult<v1::ReloadConfigurationResponse> {
        let reloader = self.sources.reloader.clone();
        let change = Change::of(&ctx, "reload", "the configuration is read again");
        let reload = async move {
            reloader.reload().await.map_err(|error| {
                refusal(ErrorCode::FailedPrecondition, "CONFIGURATION_DOES_NOT_FIT", error.to_string())
            })
        };
        let Reloaded { applied, needs_restart, overridden } = self.finished(change, reload).await?;
        let why = |key: &String| (key.clone(), crate::reload::why(key).to_owned());
        let reasons = needs_restart.iter().map(why).collect();
        Response::ok(v1::ReloadConfigurationResponse {
            applied,
            needs_restart,
            reasons,
            overridden: overridden.into_iter().collect(),
            ..Default::default()
        })
    }
}
