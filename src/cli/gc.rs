//! `guestnet gc`: what is guestnet's on this host and belongs to nobody.

use clap::Args;
use serde_json::{Value, json};

use super::output::{Format, pretty};
use crate::proto::guestnet::v1;

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["dry_run", "apply"])))]
pub(super) struct GcArguments {
    /// Print what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Remove it.
    #[arg(long)]
    pub apply: bool,
}

/// What is printed, and whether something could not be removed.
pub(super) fn print(format: Format, answer: &v1::CollectGarbageResponse) -> (String, bool) {
    let failed = answer.leftovers.iter().any(|leftover| !leftover.error.is_empty());
    if format == Format::Json {
        let value = |of: &v1::Leftover| -> Value {
            json!({"kind": of.kind, "what": of.what, "removed": of.removed, "error": of.error})
        };
        return (pretty(&Value::Array(answer.leftovers.iter().map(value).collect())), failed);
    }
    let line = |of: &v1::Leftover| {
        let became = match (of.removed, of.error.as_str()) {
            (true, _) => "removed".to_owned(),
            (false, "") => "left".to_owned(),
            (false, error) => format!("not removed: {error}"),
        };
        format!("{:<17} {}  {became}\n", of.kind, of.what)
    };
    let lines: String = answer.leftovers.iter().map(line).collect();
    (if lines.is_empty() { "nothing is left over\n".into() } else { lines }, failed)
}
