//! `guestnet reload`: has the service read its configuration again, and says what of it is in force.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::CliError;
use super::client::Client;
use super::output::{Format, pretty};
use crate::api::DEFAULT_SOCKET;
use crate::proto::guestnet::v1;

/// A service whose socket has been changed in its file is at the one that it was started with: where the file alone says which,
/// that may be the default one.
pub(super) async fn run(client: &Client, named: bool) -> Result<v1::ReloadConfigurationResponse, CliError> {
    match client.reload().await {
        Err(CliError::Unreachable { socket }) if !named => {
            let reloaded = Client::new(Path::new(DEFAULT_SOCKET)).reload().await;
            reloaded.map_err(|error| match error {
                CliError::Unreachable { .. } => CliError::Moved { socket },
                error => error,
            })
        }
        done => done,
    }
}

pub(super) fn print(format: Format, reloaded: &v1::ReloadConfigurationResponse) -> String {
    if format == Format::Json {
        let v1::ReloadConfigurationResponse { applied, needs_restart, reasons, overridden, .. } = reloaded;
        return pretty(&json!({
            "applied": applied,
            "needs_restart": needs_restart,
            "reasons": reasons,
            "overridden": overridden,
        }));
    }
    let mut out = String::new();
    if !reloaded.applied.is_empty() {
        out = format!("in force now: {}\n", reloaded.applied.join(", "));
    }
    if !reloaded.needs_restart.is_empty() {
        out += "after systemctl restart guestnet:\n";
    }
    for key in &reloaded.needs_restart {
        let why = reloaded.reasons.get(key).map(String::as_str).unwrap_or_default();
        out += &format!("  {key}: {why}\n");
    }
    for (key, variable) in reloaded.overridden.iter().collect::<BTreeMap<_, _>>() {
        out += &format!("not in force: {key}, overridden by {variable}\n");
    }
    if out.is_empty() { "nothing has changed\n".into() } else { out }
}
