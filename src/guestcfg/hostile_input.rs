//! Whatever is put into a generator, its output is read back to the same, or nothing comes out: no value becomes another
//! kernel argument, YAML key, line of a unit or word of a shell.

use proptest::prelude::*;
use serde_json::Value;

use super::fixtures::{any_guest, guest, guest_with_options};
use super::round_trip::{all_targets, compare, mime_parts};
use super::*;
use crate::model::{Domain, GuestNet, Hostname};

const V2: NetworkConfigVersion = NetworkConfigVersion::V2;

/// Text of the kind that gets out of quotes, lines and fields.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~\n\t\"'\\\\;:=#]{0,70}",
        "[a-z0-9.-]{0,70}",
        "\\PC{0,20}",
        Just("vm1;reboot".to_owned()),
        Just("vm1 init=/bin/sh".to_owned()),
        Just("vm1\nruncmd: [reboot]".to_owned()),
        Just("x: y".to_owned()),
        Just("12345".to_owned()),
        Just("a".repeat(64)),
    ]
}

/// A label that some format takes for a number, a date, a truth value, a keyword or a variable's name if it is not quoted.
fn look_alike() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(vec![
            "null",
            "true",
            "no",
            "on",
            "y",
            "0x1f",
            "0o17",
            "1e5",
            "1-2-3",
            "2026-11-28",
            "nan",
            "inf",
            "end",
            "dhcp",
            "off",
            "any",
            "done",
            "fi",
            "rec",
            "let",
            "none",
            "default",
            "localhost",
            "ifs",
            "path",
        ])
        .prop_map(str::to_owned),
        "[0-9]{1,3}[e-][0-9]{1,3}",
        "[a-z0-9][a-z0-9-]{61}[a-z0-9]",
    ]
}

/// A kernel's own reading: words outside double quotes (next_arg in lib/cmdline.c).
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        quoted ^= character == '"';
        if character == ' ' && !quoted {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(character);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_host_name_is_refused_or_is_one_word_everywhere(text in hostile()) {
        match text.parse::<Hostname>() {
            Err(error) => prop_assert!(error.to_string().contains("host name"), "{error}"),
            Ok(hostname) => {
                // Names are kept in lower case.
                let text = text.to_ascii_lowercase();
                let guest = GuestNet { hostname, ..guest() };
                let line = cmdline(&guest, Dialect::Kernel, &Options::default()).unwrap();
                let line = line.as_text().unwrap().trim_end();
                prop_assert_eq!(words(line).len(), 1, "{}", line);
                prop_assert_eq!(line.split(':').nth(4), Some(text.as_str()));
                let seed = cloud_init(&guest, Form::NocloudDir, V2, &Options::default()).unwrap();
                let meta_data: Value = serde_saphyr::from_str(seed.files[0].as_text().unwrap()).unwrap();
                prop_assert_eq!(meta_data.as_object().unwrap().len(), 2);
                prop_assert_eq!(&meta_data["local-hostname"], &Value::from(text.as_str()));
            }
        }
        if let Ok(domain) = text.parse::<Domain>() {
            let name = domain.to_string();
            let seed = cloud_init(&GuestNet { domain, ..guest() }, Form::CloudCfgD, V2, &Options::default()).unwrap();
            let config: Value = serde_saphyr::from_str(seed.as_text().unwrap()).unwrap();
            prop_assert_eq!(config.as_object().unwrap().len(), 4);
            prop_assert_eq!(&config["network"]["ethernets"]["eth0"]["nameservers"]["search"][0], &Value::from(name));
        }
    }

    #[test]
    fn a_command_line_keeps_every_argument_and_gets_only_ours(before in hostile(), guest in any_guest()) {
        let options = Options { merge: Some(&before), ..Options::default() };
        for dialect in Dialect::ALL {
            let Ok(merged) = cmdline(&guest, dialect, &options) else { continue };
            let alone = cmdline(&guest, dialect, &Options::default()).unwrap();
            let (merged, ours) = (words(merged.as_text().unwrap().trim_end()), words(alone.as_text().unwrap().trim_end()));
            let mut expected = words(&before);
            // What follows -- is init's.
            let at = expected.iter().position(|word| word == "--").unwrap_or(expected.len());
            expected.splice(at..at, ours);
            prop_assert_eq!(merged, expected);
        }
    }

    #[test]
    fn user_data_is_refused_or_reaches_cloud_init_byte_for_byte(
        user_data in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            hostile().prop_map(|text| format!("#cloud-config\n{text}").into_bytes()),
            hostile().prop_map(|text| format!("#!/bin/sh\n--==guestnet==\n{text}").into_bytes()),
        ]
    ) {
        let options = Options { user_data: Some(&user_data), ..Options::default() };
        if let Ok(seed) = cloud_init(&guest(), Form::NocloudDir, V2, &options) {
            prop_assert_eq!(&seed.files[1].bytes, &user_data);
        }
        if let Ok(archive) = cloud_init(&guest(), Form::Mime, V2, &options) {
            let parts = mime_parts(archive.as_text().unwrap());
            prop_assert_eq!(parts.len(), if user_data.is_empty() { 2 } else { 3 });
            if let Some((_, content)) = parts.get(2) {
                prop_assert_eq!(content.as_bytes(), &user_data);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_name_that_means_something_elsewhere_is_read_back_as_itself(
        hostname in look_alike(), domain in proptest::collection::vec(look_alike(), 1..4)
    ) {
        let (Ok(hostname), Ok(domain)) = (hostname.parse(), domain.join(".").parse()) else { return Ok(()) };
        let guest = GuestNet { hostname, domain, ..guest_with_options() };
        for target in all_targets() {
            compare(target, &guest)?;
        }
    }
}

#[test]
fn a_mime_archive_says_of_each_part_what_it_is() {
    let kind = |user_data: &[u8]| {
        let options = Options { user_data: Some(user_data), ..Options::default() };
        cloud_init(&guest(), Form::Mime, V2, &options)
            .map(|made| mime_parts(made.as_text().unwrap())[2].0.clone())
    };
    assert_eq!(kind(b"#cloud-config\n{}\n").unwrap(), "text/cloud-config");
    assert_eq!(kind(b"#!/bin/sh\n").unwrap(), "text/x-shellscript");
    assert_eq!(kind(b"#include\nhttp://x\n").unwrap(), "text/x-include-url");
    assert_eq!(kind(b"## template: jinja\n#cloud-config\n").unwrap(), "text/jinja2");
    assert!(kind(b"\x1f\x8b\x08").unwrap_err().to_string().contains("gzip"));
    assert!(kind(b"MIME-Version: 1.0\n").unwrap_err().to_string().contains("a MIME archive already"));
}
