//! Errors as callers get them: a Connect code, words, and the standard details for programs (google.rpc.ErrorInfo, and
//! google.rpc.BadRequest where a field is at fault). In: what went wrong. Out: the code that the proto promises. Pure.

use connectrpc::{ConnectError, ErrorCode, ErrorDetail};
use serde_json::{Value, json};

use super::wire::FieldError;
use crate::manager::ManagerError;
use crate::model::VmId;
use crate::proto::google::rpc;
use crate::store::StoreError;

/// Who speaks in an ErrorInfo.
const DOMAIN: &str = "guestnet";

/// What a program is told of an error beside its words.
struct Facts {
    code: ErrorCode,
    reason: &'static str,
    /// The field of the request at fault.
    field: Option<&'static str>,
    metadata: Vec<(&'static str, String)>,
}

fn facts(error: &ManagerError) -> Facts {
    let of = |code, reason, field, metadata| Facts { code, reason, field, metadata };
    match error {
        ManagerError::UnknownNetwork { name, .. } => of(
            ErrorCode::NotFound,
            "UNKNOWN_NETWORK",
            Some("network_id"),
            vec![("network_id", name.to_string())],
        ),
        ManagerError::Differs { vm_id, field, has, asked } => of(
            ErrorCode::AlreadyExists,
            "VM_DIFFERS",
            Some(field),
            vec![
                ("vm_id", vm_id.to_string()),
                ("field", (*field).to_owned()),
                ("has", has.clone()),
                ("asked", asked.clone()),
            ],
        ),
        ManagerError::MacTaken { mac, by } => of(
            ErrorCode::AlreadyExists,
            "MAC_TAKEN",
            Some("mac_address"),
            vec![("mac_address", mac.to_string()), ("taken_by", by.to_string())],
        ),
        ManagerError::AddressTaken { address, by } => of(
            ErrorCode::AlreadyExists,
            "ADDRESS_TAKEN",
            Some("ip_address"),
            vec![("ip_address", address.to_string()), ("taken_by", by.to_string())],
        ),
        ManagerError::AddressUnusable { address, subnet, .. } => of(
            ErrorCode::InvalidArgument,
            "ADDRESS_UNUSABLE",
            Some("ip_address"),
            vec![("ip_address", address.to_string()), ("vm_subnet", subnet.to_string())],
        ),
        ManagerError::AddressRemembered { address, .. } => of(
            ErrorCode::Unavailable,
            "ADDRESS_REMEMBERED",
            Some("ip_address"),
            vec![("ip_address", address.to_string())],
        ),
        ManagerError::SubnetFull { network, subnet, .. } => of(
            ErrorCode::ResourceExhausted,
            "SUBNET_FULL",
            None,
            vec![("network_id", network.to_string()), ("vm_subnet", subnet.to_string())],
        ),
        ManagerError::NoVm { vm_id } => {
            of(ErrorCode::NotFound, "NO_SUCH_VM", Some("vm_id"), vec![("vm_id", vm_id.to_string())])
        }
        ManagerError::UserDataTooLong { .. } => {
            of(ErrorCode::InvalidArgument, "USER_DATA_TOO_LONG", Some("user_data"), vec![])
        }
        ManagerError::UserData(_) => {
            of(ErrorCode::InvalidArgument, "USER_DATA_UNFIT", Some("user_data"), vec![])
        }
        ManagerError::External { .. } => {
            of(ErrorCode::FailedPrecondition, "EXTERNAL_PLUMBING", Some("network_id"), vec![])
        }
        ManagerError::TapInUse { vm_id } => {
            of(ErrorCode::FailedPrecondition, "TAP_IN_USE", None, vec![("vm_id", vm_id.to_string())])
        }
        ManagerError::Bridges(_) | ManagerError::Host(_) => {
            of(ErrorCode::Internal, "KERNEL_REFUSED", None, vec![])
        }
        ManagerError::Stopping => of(ErrorCode::Unavailable, "STOPPING", None, vec![]),
        ManagerError::BurstWithoutRate { .. } => {
            of(ErrorCode::InvalidArgument, "BURST_WITHOUT_RATE", Some("burst_kib"), vec![])
        }
        ManagerError::Store(error) => {
            let (code, reason) = store_facts(error);
            of(code, reason, None, vec![])
        }
        ManagerError::Kernel { vm_id, .. } => {
            of(ErrorCode::Internal, "KERNEL_REFUSED", None, vec![("vm_id", vm_id.to_string())])
        }
        ManagerError::Homeless { vm_id, .. } => {
            of(ErrorCode::Internal, "HOMELESS", None, vec![("vm_id", vm_id.to_string())])
        }
    }
}

/// What a caller is told of a store that did not save, whatever was to be saved.
pub(super) fn store_facts(error: &StoreError) -> (ErrorCode, &'static str) {
    match error {
        StoreError::DiskFull { .. } => (ErrorCode::ResourceExhausted, "DISK_FULL"),
        StoreError::Damaged { .. } => (ErrorCode::DataLoss, "STATE_DAMAGED"),
        // Until somebody has seen to the disk, the same will come of it.
        StoreError::NotWritable { .. } => (ErrorCode::FailedPrecondition, "STATE_NOT_WRITABLE"),
        _ => (ErrorCode::Internal, "STATE_NOT_SAVED"),
    }
}

/// The code that the proto promises for an error, and its reason.
pub(super) fn code_and_reason(error: &ManagerError) -> (ErrorCode, &'static str) {
    let Facts { code, reason, .. } = facts(error);
    (code, reason)
}

/// Whether the host has failed, not the caller.
pub(super) fn is_of_the_host(code: ErrorCode, reason: &str) -> bool {
    let is_of_the_disk = matches!(reason, "DISK_FULL" | "STATE_NOT_WRITABLE");
    is_of_the_disk || matches!(code, ErrorCode::Internal | ErrorCode::DataLoss)
}

pub(super) fn status(error: ManagerError) -> ConnectError {
    let Facts { code, reason, field, metadata } = facts(&error);
    refusal_at(code, reason, field, metadata, &error.to_string())
}

/// The reason of an error as its details have it, and the field at fault; empty where there is none.
pub(super) fn reason_and_field(error: &ConnectError) -> (String, String) {
    let told = |pointer| {
        let mut told =
            error.details.iter().filter_map(|detail| detail.debug.as_ref()?.pointer(pointer)?.as_str());
        told.next().unwrap_or_default().to_owned()
    };
    (told("/reason"), told("/fieldViolations/0/field"))
}

/// A refusal with what it is about, and the field that is at fault.
pub(super) fn refusal_at(
    code: ErrorCode,
    reason: &'static str,
    field: Option<&str>,
    metadata: Vec<(&str, String)>,
    words: &str,
) -> ConnectError {
    let refused = ConnectError::new(code, words).with_detail(info(reason, metadata));
    match field {
        Some(field) => refused.with_detail(bad_request(field, words)),
        None => refused,
    }
}

/// Of a VM that has none.
pub(super) fn no_vm(vm_id: &VmId) -> ConnectError {
    status(ManagerError::NoVm { vm_id: vm_id.clone() })
}

/// What went wrong is not the caller's doing.
pub(super) fn internal(reason: &'static str, error: impl ToString) -> ConnectError {
    refusal(ErrorCode::Internal, reason, error.to_string())
}

impl From<FieldError> for ConnectError {
    fn from(error: FieldError) -> Self {
        let (field, value) = (error.field, error.invalid.value.clone());
        ConnectError::invalid_argument(error.to_string())
            .with_detail(info("INVALID_FIELD", vec![("field", field.to_owned()), ("value", value)]))
            .with_detail(bad_request(field, &error.invalid.to_string()))
    }
}

/// A refusal that is about no field; `reason` in capitals.
pub(super) fn refusal(code: ErrorCode, reason: &'static str, words: impl Into<String>) -> ConnectError {
    ConnectError::new(code, words).with_detail(info(reason, vec![]))
}

fn info(reason: &str, metadata: Vec<(&str, String)>) -> ErrorDetail {
    let debug = json!({
        "reason": reason,
        "domain": DOMAIN,
        "metadata": metadata.iter().map(|(key, value)| (*key, value.as_str())).collect::<Map>(),
    });
    let message = rpc::ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        ..Default::default()
    };
    detail("google.rpc.ErrorInfo", &message, debug)
}

type Map<'a> = std::collections::BTreeMap<&'a str, &'a str>;

fn bad_request(field: &str, description: &str) -> ErrorDetail {
    let violation = rpc::bad_request::FieldViolation {
        field: field.to_owned(),
        description: description.to_owned(),
        ..Default::default()
    };
    let message = rpc::BadRequest { field_violations: vec![violation], ..Default::default() };
    let debug = json!({"fieldViolations": [{"field": field, "description": description}]});
    detail("google.rpc.BadRequest", &message, debug)
}

/// `debug` is for people who read the JSON: Connect has the message itself in base64.
fn detail(name: &str, message: &impl buffa::Message, debug: Value) -> ErrorDetail {
    ErrorDetail { debug: Some(debug), ..ErrorDetail::from_message(name, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_a_program_its_reason_its_field_and_the_values() {
        let error = status(ManagerError::AddressTaken {
            address: [10, 100, 0, 9].into(),
            by: "web-1".parse().unwrap(),
        });
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        let debug = |at: usize| error.details[at].debug.clone().unwrap();
        assert_eq!(error.details[0].type_url, "google.rpc.ErrorInfo");
        assert_eq!(debug(0)["reason"], "ADDRESS_TAKEN");
        assert_eq!(debug(0)["metadata"]["taken_by"], "web-1");
        assert_eq!(error.details[1].type_url, "google.rpc.BadRequest");
        assert_eq!(debug(1)["fieldViolations"][0]["field"], "ip_address");
        assert_eq!(reason_and_field(&error), ("ADDRESS_TAKEN".into(), "ip_address".into()));
    }

    #[test]
    fn a_disk_that_takes_nothing_is_the_hosts_failure_and_a_full_subnet_is_not() {
        let of_the_host = |error| {
            let (code, reason) = code_and_reason(&error);
            is_of_the_host(code, reason)
        };
        let full = StoreError::DiskFull { file: "guestnet.db".into() };
        for error in [StoreError::Stopped, full] {
            assert!(of_the_host(ManagerError::Store(error)));
        }
        assert!(!of_the_host(ManagerError::NoVm { vm_id: "a".parse().unwrap() }));
    }

    #[test]
    fn a_failure_of_ours_blames_no_field() {
        let error = status(ManagerError::Store(StoreError::Stopped));
        assert_eq!((error.code, error.details.len()), (ErrorCode::Internal, 1));
    }
}
