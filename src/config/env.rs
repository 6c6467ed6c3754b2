//! The environment variables of metald's networking guide, which go before the file's default network. In: a lookup of
//! variables. Out: values in the place of that network's keys, each still unchecked and named by its variable.

use toml::Value;

use super::section::{Problem, Section};

/// How the text of a variable reads as a TOML value.
type Reading = fn(String) -> Value;

/// Each variable, the key it sets, and its reading.
const VARIABLES: [(&str, &str, Reading); 6] = [
    ("UNKEY_METALD_NETWORK_BRIDGE", "bridge_name", Value::String),
    ("UNKEY_METALD_NETWORK_BRIDGE_IP", "bridge_ip", Value::String),
    ("UNKEY_METALD_NETWORK_VM_SUBNET", "vm_subnet", Value::String),
    ("UNKEY_METALD_NETWORK_DNS", "dns_servers", list),
    ("UNKEY_METALD_NETWORK_RATE_LIMIT", "enable_rate_limit", boolean),
    ("UNKEY_METALD_NETWORK_RATE_LIMIT_MBPS", "rate_limit_mbps", integer),
];

pub(super) fn apply(env: impl Fn(&str) -> Option<String>, default_network: &mut Section<'_>) {
    for (variable, key, read) in VARIABLES {
        if let Some(text) = env(variable) {
            default_network.replace(key, variable, read(text));
        }
    }
}

/// The variable that sets `key` of the default network.
pub(super) fn variable_of(key: &str) -> Option<&'static str> {
    VARIABLES.iter().find(|(_, of, _)| *of == key).map(|(variable, ..)| *variable)
}

/// `UNKEY_METALD_NETWORK_ENABLED`, no key of a network: false means that this host's VMs get none. A daemon that ran and
/// served nothing would only hide that, so the start is refused.
pub(super) fn refusal(env: impl Fn(&str) -> Option<String>) -> Option<Problem> {
    let key = "UNKEY_METALD_NETWORK_ENABLED";
    let text = env(key)?;
    let message = match parse_bool(&text) {
        Some(true) => return None,
        Some(false) => {
            format!("{text:?} turns this host's guest network off: unset it, or disable the service")
        }
        None => format!("{text:?} is not true or false"),
    };
    Some(Problem::new(key, message))
}

/// The spellings metald reads (Go's strconv.ParseBool).
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

// Text that does not fit stays text: the check of the key then names it as it was given.

fn boolean(text: String) -> Value {
    parse_bool(&text).map_or(Value::String(text), Value::Boolean)
}

fn integer(text: String) -> Value {
    text.parse().map_or(Value::String(text), Value::Integer)
}

fn list(text: String) -> Value {
    Value::Array(text.split(',').map(|item| Value::String(item.trim().to_owned())).collect())
}
