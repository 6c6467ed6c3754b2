//! user-data as a MIME archive, for a VMM or a cloud that hands over user-data and nothing else. In: a guest and user-data of
//! its own. Out: one file whose parts name the guest, configure its card, and hold what was given.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::cloud_init::{check_user_data, system};
use super::plain::shell;
use super::yaml::yaml;
use super::{Generated, GuestFile, Options, Refusal};
use crate::model::GuestNet;

/// `=` at its start is in no line of base64.
const BOUNDARY: &str = "==guestnet==";

/// A part's type by its first line, as cloud-init's handlers are registered.
const KINDS: [(&str, &str); 7] = [
    ("#cloud-config-archive", "cloud-config-archive"),
    ("#cloud-config", "cloud-config"),
    ("#cloud-boothook", "cloud-boothook"),
    ("#include-once", "x-include-once-url"),
    ("#include", "x-include-url"),
    ("#part-handler", "part-handler"),
    ("## template: jinja", "jinja2"),
];

/// The archive. user-data cannot carry a network-config, so the card is configured by a script at every boot, in cloud-init's
/// network stage (with `dsmode: net`, as most data sources have it): after what cloud-init itself falls back to, which is DHCP.
pub(super) fn mime(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    let script = shell(guest, options)?;
    let hook = script.as_text().unwrap_or_default().replacen("#!/bin/sh", "#cloud-boothook\n#!/bin/sh", 1);
    let mut warnings = script.warnings;
    let config = format!("#cloud-config\n{}", yaml(&system(guest)));
    let mut parts = vec![
        part("cloud-config", "guestnet.cfg", config.as_bytes()),
        part("cloud-boothook", "guestnet.sh", hook.as_bytes()),
    ];
    if let Some(user_data) = options.user_data.filter(|user_data| !user_data.is_empty()) {
        warnings.extend(check_user_data(user_data)?);
        parts.push(part(kind(user_data)?, "user-data", user_data));
    }
    let text = format!(
        "Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n{}--{BOUNDARY}--\n",
        parts.concat()
    );
    // It may hold what user-data holds.
    let file = GuestFile { mode: 0o600, ..GuestFile::text("user-data", text) };
    Ok(Generated::one(file, warnings))
}

fn kind(user_data: &[u8]) -> Result<&'static str, Refusal> {
    if user_data.starts_with(&[0x1f, 0x8b]) {
        return Err(Refusal::UserDataKind { kind: "gzip", place: "a MIME archive" });
    }
    let start = String::from_utf8_lossy(&user_data[..user_data.len().min(4096)]).to_ascii_lowercase();
    if start.starts_with("content-type:") || start.contains("mime-version:") {
        return Err(Refusal::UserDataKind { kind: "a MIME archive already", place: "a MIME archive" });
    }
    let known = KINDS.iter().find(|(line, _)| start.trim_start().starts_with(line));
    Ok(known.map_or("x-shellscript", |(_, kind)| kind))
}

fn part(kind: &str, name: &str, content: &[u8]) -> String {
    let encoded = BASE64.encode(content);
    let lines: Vec<&str> = encoded
        .as_bytes()
        .chunks(76)
        // base64 is ASCII
        .map(|line| std::str::from_utf8(line).unwrap_or_default())
        .collect();
    format!(
        "--{BOUNDARY}\nContent-Type: text/{kind}; charset=\"utf-8\"\nMIME-Version: 1.0\n\
         Content-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"{name}\"\n\n{}\n",
        lines.join("\n")
    )
}
