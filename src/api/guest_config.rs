//! The RPCs about guest configuration. In: checked requests. Out: the same files that `guestnet gen` makes, and the
//! user-data that they and the metadata service give a guest.

use connectrpc::{ConnectError, ErrorCode};

use super::errors::{self, internal, no_vm, refusal, status};
use super::wire::{self, FieldError};
use crate::guestcfg::{
    DeviceName, Dialect, Form, Generated, HostSide, NetworkConfigVersion, Options, Refusal, Target, generate,
};
use crate::manager::Manager;
use crate::model::{Invalid, Vm, VmId};
use crate::proto::guestnet::v1;
use crate::registry::Binding;

pub(super) fn render(
    manager: &Manager,
    request: &v1::RenderGuestConfigRequestView<'_>,
    may_read_secrets: bool,
) -> Result<v1::RenderGuestConfigResponse, ConnectError> {
    let vm_id = wire::vm_id(request.vm_id)?;
    let target = target(request)?;
    let device = wire::parse_set::<DeviceName>("device", request.device)?.unwrap_or_default();
    let binding = manager.get(&vm_id).ok_or_else(|| no_vm(&vm_id))?;
    let stored = match request.user_data {
        None if matches!(target, Target::CloudInit(..)) => manager.user_data(&vm_id).map_err(status)?,
        _ => None,
    };
    if stored.is_some() && !may_read_secrets {
        let words = format!("the user-data of VM {vm_id} belongs in there, and this caller may not read it");
        return Err(refusal(ErrorCode::PermissionDenied, "READ_ONLY_CALLER", words));
    }
    let left_out = stored.as_deref().and_then(|stored| target.leaves_out(stored));
    let user_data = request.user_data.or(stored.as_deref().filter(|_| target.takes_user_data()));
    let host = host_side(&binding).map_err(|invalid| internal("UNFIT_DEVICE", invalid))?;
    let options = Options { device, merge: request.merge, user_data, host: Some(host) };
    let mut generated = generate(target, &binding.guest, &options).map_err(refused)?;
    generated.warnings.extend(left_out);
    Ok(response(generated))
}

/// Which of its choices a target has: one that it has not is refused, not passed over.
fn target(request: &v1::RenderGuestConfigRequestView<'_>) -> Result<Target, FieldError> {
    let dialect = wire::parse_set::<Dialect>("dialect", request.dialect)?;
    let form = wire::parse_set::<Form>("form", request.form)?;
    let version = wire::parse_set::<NetworkConfigVersion>("network_config", request.network_config)?;
    let target = match request.target {
        "cmdline" => Target::Cmdline(dialect.unwrap_or_default()),
        "cloud-init" => Target::CloudInit(form.unwrap_or_default(), version.unwrap_or_default()),
        named => wire::parse("target", named)?,
    };
    let misplaced = [
        (
            "dialect",
            request.dialect,
            matches!(target, Target::Cmdline(_)),
            "left unset: it is for cmdline only",
        ),
        (
            "form",
            request.form,
            matches!(target, Target::CloudInit(..)),
            "left unset: it is for cloud-init only",
        ),
        (
            "network_config",
            request.network_config,
            matches!(target, Target::CloudInit(..)),
            "left unset: it is for cloud-init only",
        ),
    ];
    for (field, value, fits, expected) in misplaced {
        if let (Some(value), false) = (value, fits) {
            return Err(FieldError::new(field, Invalid::new(value, expected)));
        }
    }
    Ok(target)
}

fn host_side(binding: &Binding) -> Result<HostSide, Invalid> {
    Ok(HostSide { vm_id: binding.vm.vm_id.clone(), tap_device: Vm::TAP.parse()? })
}

fn response(Generated { files, warnings }: Generated) -> v1::RenderGuestConfigResponse {
    let files = files.into_iter().map(|file| v1::GuestConfigFile {
        path: file.path,
        mode: file.mode,
        content: file.bytes,
        ..Default::default()
    });
    let warnings = warnings.into_iter().map(|warning| v1::GuestConfigWarning {
        fact: warning.fact.as_str().to_owned(),
        value: warning.value,
        reason: warning.reason.to_owned(),
        ..Default::default()
    });
    v1::RenderGuestConfigResponse {
        files: files.collect(),
        warnings: warnings.collect(),
        ..Default::default()
    }
}

fn refused(refusal: Refusal) -> ConnectError {
    errors::refusal(ErrorCode::InvalidArgument, "NO_PLACE_FOR_IT", refusal.to_string())
}

pub(super) fn user_data(manager: &Manager, vm_id: &VmId) -> Result<v1::GetUserDataResponse, ConnectError> {
    manager.get(vm_id).ok_or_else(|| no_vm(vm_id))?;
    let user_data = manager.user_data(vm_id).map_err(status)?;
    Ok(v1::GetUserDataResponse { user_data, ..Default::default() })
}
