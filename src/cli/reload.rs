//! `guestnet reload`: has the service read its configuration again, and says what of it is in force.

use serde_json::json;

use super::output::{Format, pretty};
use crate::proto::guestnet::v1;

pub(super) fn print(format: Format, reloaded: &v1::ReloadConfigurationResponse) -> String {
    if format == Format::Json {
        return pretty(&json!({"applied": reloaded.applied, "needs_restart": reloaded.needs_restart}));
    }
    let keys = |label: &str, keys: &[String]| -> String {
        if keys.is_empty() { String::new() } else { format!("{label}: {}\n", keys.join(", ")) }
    };
    let out = keys("in force now", &reloaded.applied)
        + &keys("after systemctl restart guestnet", &reloaded.needs_restart);
    if out.is_empty() { "nothing has changed\n".into() } else { out }
}
