//! How each step and undo is carried out: those that are one netlink request go to the kernel together, in one system call.

use super::error::{Doing, KernelError};
use super::fault::{self, When};
use super::lane::Hands;
use super::observe::mark;
use super::rtnl::{Request, Rtnl};
use super::tap::{self, HeldTap};
use super::{GUEST_SIDE_INDEX, Limit, TAP_INDEX, inside, links, netns, routes, tc};
use crate::model::{Place, RateLimit, Slot, Vm};
use crate::plan::{Anchor, ObservedInside, Step, Undo, is_limited};

/// A step that failed. It has left nothing; what is to be taken back are the others.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failed {
    /// The steps that were carried out, in order.
    pub applied: Vec<Step>,
    pub error: KernelError,
}

pub(super) fn apply(hands: &mut Hands, steps: &[Step]) -> Result<(), Failed> {
    let mut applied: Vec<Step> = Vec::new();
    for run in runs(steps, |step| request(step).is_some()) {
        let outcomes = match run {
            [step] => vec![
                fault::point(When::Before, step.name())
                    .doing(|| format!("making {step}"))
                    .and_then(|()| one(hands, step)),
            ],
            _ => together(&mut hands.rtnl, run, request, |step| format!("making {step}")),
        };
        let mut error = None;
        for (step, outcome) in run.iter().zip(outcomes) {
            match outcome {
                Ok(()) => applied.push(step.clone()),
                Err(failed) => error = error.or(Some(failed)),
            }
        }
        if let (None, [step]) = (&error, run) {
            error = fault::point(When::After, step.name()).doing(|| format!("making {step}")).err();
        }
        if let Some(error) = error {
            return Err(Failed { applied, error });
        }
    }
    Ok(())
}

/// Goes on past errors; all of them.
pub(super) fn undo(hands: &mut Hands, undos: &[Undo]) -> Vec<KernelError> {
    let mut errors = Vec::new();
    for run in runs(undos, |undo| undo_request(undo).is_some()) {
        let outcomes = match run {
            [undo] => vec![
                fault::point(When::Before, undo.name())
                    .doing(|| format!("removing {undo}"))
                    .and_then(|()| one_undo(hands, undo).or_else(unless_gone))
                    .and_then(|()| {
                        fault::point(When::After, undo.name()).doing(|| format!("removing {undo}"))
                    }),
            ],
            _ => together(&mut hands.rtnl, run, undo_request, |undo| format!("removing {undo}")),
        };
        errors.extend(outcomes.into_iter().filter_map(|outcome| outcome.or_else(unless_gone).err()));
    }
    errors
}

/// What is gone already needs no removing.
fn unless_gone(error: KernelError) -> Result<(), KernelError> {
    if error.is_gone() { Ok(()) } else { Err(error) }
}

/// `items` in runs: neighbours that are requests together, each other one alone. One by one where a test may want a fault in
/// between.
fn runs<T>(items: &[T], is_request: impl Fn(&T) -> bool) -> impl Iterator<Item = &[T]> {
    items.chunk_by(move |a, b| !fault::possible() && is_request(a) && is_request(b))
}

/// One system call for all of them.
fn together<T>(
    rtnl: &mut Rtnl,
    run: &[T],
    request: impl Fn(&T) -> Option<Request>,
    doing: impl Fn(&T) -> String,
) -> Vec<Result<(), KernelError>> {
    let requests: Vec<Request> = run.iter().filter_map(request).collect();
    match rtnl.execute(&requests) {
        Ok(outcomes) => {
            run.iter().zip(outcomes).map(|(item, outcome)| outcome.doing(|| doing(item))).collect()
        }
        Err(error) => run.iter().map(|item| Err(KernelError::new(doing(item), error.kind()))).collect(),
    }
}

/// The request that is the whole of a step.
fn request(step: &Step) -> Option<Request> {
    Some(match step {
        Step::UnreachableSubnet { subnet } => routes::add_unreachable(*subnet),
        Step::Neighbour { bridge, address, mac } => routes::add_neighbour(*bridge, *address, *mac),
        Step::GuestRoute { bridge, address, gateway } => routes::add_guest(*bridge, *address, *gateway),
        Step::ForwardingEntry { port, mac } => routes::add_forwarding(*port, *mac),
        _ => return None,
    })
}

fn undo_request(undo: &Undo) -> Option<Request> {
    Some(match undo {
        Undo::Bridge { index } | Undo::Veth { port: index } => links::remove(*index),
        Undo::UnreachableSubnet { subnet } => routes::remove_unreachable(*subnet),
        Undo::Neighbour { bridge, address } => routes::remove_neighbour(*bridge, *address),
        Undo::GuestRoute { bridge, address } => routes::remove_guest(*bridge, *address),
        Undo::ForwardingEntry { port, mac } => routes::remove_forwarding(*port, *mac),
        Undo::Route { route } => routes::remove_ours(*route),
        Undo::Address { bridge, address, prefix_len } => {
            links::remove_address(*bridge, *address, *prefix_len)
        }
        Undo::Namespace { .. } | Undo::Name { .. } => return None,
    })
}

/// Carries out one step, or leaves nothing of it.
fn one(hands: &mut Hands, step: &Step) -> Result<(), KernelError> {
    match step {
        Step::Bridge { shard, gateway, subnet, mtu } => {
            links::bridge(&mut hands.rtnl, shard, *gateway, *subnet, *mtu)
        }
        Step::Namespace { slot, port } => netns::create(hands, *slot, *port),
        Step::Tap { slot, port, mtu, multi_queue } => {
            let namespace = netns::existing(*slot)?;
            let make = |_| {
                tap::create(Vm::TAP, TAP_INDEX, *multi_queue)?;
                // Of one that goes alone the kernel tells by this mark.
                let marked = links::alias(TAP_INDEX, &mark(*port));
                Rtnl::open()?.all(&[marked, links::up(TAP_INDEX, Some(*mtu))])
            };
            hands.inside(&namespace, make).doing(|| format!("making {step}"))
        }
        Step::TapOptions { slot, tap } => {
            let namespace = netns::existing(*slot)?;
            hands.inside(&namespace, |_| tap::set(Vm::TAP, *tap)).doing(|| format!("making {step}"))
        }
        Step::Veth { slot, port, mtu } => {
            let namespace = netns::existing(*slot)?;
            links::veth(&mut hands.rtnl, &mut hands.ipv6, *slot, *port, &namespace, *mtu)
        }
        Step::Redirect { slot } => {
            let namespace = netns::existing(*slot)?;
            let mut requests = vec![links::up(GUEST_SIDE_INDEX, None)];
            requests.extend(tc::redirect(TAP_INDEX, GUEST_SIDE_INDEX));
            requests.extend(tc::redirect(GUEST_SIDE_INDEX, TAP_INDEX));
            let join = |port| {
                let mut rtnl = Rtnl::open_as(port)?;
                // A TAP that has outlived its veth still has the redirect to that one; a slot that is plugged in again has both.
                tc::remove_redirect(&mut rtnl, TAP_INDEX)?;
                tc::remove_redirect(&mut rtnl, GUEST_SIDE_INDEX)?;
                rtnl.all(&requests)
            };
            hands.inside(&namespace, join).doing(|| format!("making {step}"))
        }
        Step::RateLimit { slot, port, limit } => set_limit(hands, *slot, *port, *limit),
        Step::Unplug { port, .. } => hands.rtnl.all(&[links::down(*port)]).doing(|| format!("making {step}")),
        Step::Port { port, bridge, .. } => {
            hands.rtnl.all(&links::port(*port, *bridge)).doing(|| format!("making {step}"))
        }
        Step::Name { vm_id, slot } => netns::give_name(&vm_id.namespace(), *slot),
        Step::UnreachableSubnet { .. }
        | Step::Neighbour { .. }
        | Step::GuestRoute { .. }
        | Step::ForwardingEntry { .. } => {
            hands.rtnl.all(request(step).as_slice()).doing(|| format!("making {step}"))
        }
    }
}

fn one_undo(hands: &mut Hands, undo: &Undo) -> Result<(), KernelError> {
    match undo {
        Undo::Namespace { slot } => netns::remove(*slot),
        Undo::Name { vm_id, slot } => netns::take_name(&vm_id.namespace(), *slot),
        _ => hands.rtnl.all(undo_request(undo).as_slice()).doing(|| format!("removing {undo}")),
    }
}

/// A token bucket on both ends of the slot's veth, or none.
fn set_limit(hands: &mut Hands, slot: Slot, port: u32, limit: Option<RateLimit>) -> Result<(), KernelError> {
    let doing = || match limit {
        Some(limit) => format!("limiting {} to {} Mbit/s", slot.host_device(), limit.rate.mbps()),
        None => format!("taking the limit of {} away", slot.host_device()),
    };
    let namespace = netns::existing(slot)?;
    let upload = |port| tc::set_limit(&mut Rtnl::open_as(port)?, GUEST_SIDE_INDEX, limit);
    hands.inside(&namespace, upload).doing(doing)?;
    // Last: what is observed of a limit is this end.
    tc::set_limit(&mut hands.rtnl, port, limit).doing(doing)
}

pub(super) fn hold_tap(hands: &mut Hands, slot: Slot) -> Result<Option<HeldTap>, KernelError> {
    let doing = || format!("opening {} of {}", Vm::TAP, slot.namespace());
    let hold = || {
        let Some(namespace) = netns::open(slot)? else { return Ok(None) };
        hands.inside(&namespace, |_| tap::hold(Vm::TAP, TAP_INDEX)).doing(doing)
    };
    fault::step("hold-tap", doing, hold)
}

pub(super) fn wipe(
    hands: &mut Hands,
    place: &Place,
    limit: Limit,
    tap: Option<HeldTap>,
) -> Result<bool, KernelError> {
    let doing = || format!("wiping {}", place.slot.namespace());
    fault::step("wipe", doing, || wiped(hands, place, limit, tap))
}

fn wiped(hands: &mut Hands, place: &Place, limit: Limit, tap: Option<HeldTap>) -> Result<bool, KernelError> {
    let slot = place.slot;
    let held = match tap {
        Some(tap) => Some(tap),
        None => hold_tap(hands, slot)?,
    };
    let Some(tap) = held else { return Ok(false) };
    tap.wipe().doing(|| format!("wiping {} of {}", Vm::TAP, slot.namespace()))?;
    drop(tap);
    let Some(inside) = inside::look(hands, slot, place.port)? else { return Ok(false) };
    // An owner cannot be taken back. Another way for frames than from the TAP and to it is not the next guest's.
    let ObservedInside { owner, group, joined, .. } = inside.found;
    if inside.anchor != Anchor::Whole || !joined || owner.is_some() || group.is_some() {
        return Ok(false);
    }
    let (limit, is_new) = match limit {
        Limit::Stands(limit) => {
            let doing = || format!("looking for what waits in {}", slot.host_device());
            let (waiting, host_side) = hands.questions.root_queue(place.port).doing(doing)?;
            // Somebody may have changed it when it was nobody's any more.
            let stands = [host_side, inside.found.limit].iter().all(|found| is_limited(*found, limit));
            (limit, inside.waiting || waiting || !stands)
        }
        Limit::Set(limit) => (limit, true),
    };
    // A new queue instead of a changed one: what the last guest left waiting goes with the old. That takes the kernel long.
    if is_new {
        set_limit(hands, slot, place.port, None)?;
        set_limit(hands, slot, place.port, limit)?;
    }
    links::is_port(&mut hands.rtnl, place.port, place.shard.index)
}

/// Takes slots away, whatever there is of each.
pub(super) fn clear(hands: &mut Hands, slots: &[(Slot, u32)]) -> Result<(), KernelError> {
    let clear = || {
        let ports: Vec<u32> = slots.iter().map(|(_, port)| *port).collect();
        let mut result = links::remove_all(&mut hands.rtnl, &ports);
        for (slot, _) in slots {
            result = result.and(netns::remove(*slot));
        }
        result
    };
    fault::step("clear", || format!("removing {} slots", slots.len()), clear)
}
