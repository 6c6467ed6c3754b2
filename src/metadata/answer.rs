//! One question of a guest and its answer. Pure. In: method, path, headers, the guest's binding, its user-data. Out: a status,
//! a type and a body. EC2's tree needs a token of `PUT /latest/api/token` (IMDSv2; there is no version 1), so that a program
//! in the guest that can be talked into fetching a URL does not hand it out; NoCloud's client knows no tokens.

use http::{Method, StatusCode};

use super::token::Tokens;
use crate::guestcfg::{Form, NetworkConfigVersion, Options, check_user_data, cloud_init, instance_id};
use crate::model::GuestNet;
use crate::registry::Binding;

/// What of a request matters.
pub(super) struct Question<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    /// `X-aws-ec2-metadata-token`.
    pub(super) token: Option<&'a str>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`.
    pub(super) ttl: Option<&'a str>,
    /// Whether an `X-Forwarded-For` is there: a proxy that passes on what others ask gets no token, as on EC2.
    pub(super) forwarded: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    /// Seconds that a token is good for.
    pub(super) ttl: Option<u64>,
}

impl Answer {
    fn text(body: impl Into<String>) -> Self {
        Self::bytes(body.into().into_bytes())
    }

    fn bytes(body: Vec<u8>) -> Self {
        Self { status: StatusCode::OK, body, ttl: None }
    }

    pub(super) fn refused(status: StatusCode, why: &str) -> Self {
        Self { status, body: format!("{why}\n").into_bytes(), ttl: None }
    }

    fn not_found() -> Self {
        Self::refused(StatusCode::NOT_FOUND, "there is nothing of that name")
    }
}

/// EC2's own bounds of a token's life.
const LONGEST_TOKEN: u64 = 21_600;

/// What the guest is answered; `now` is a clock's seconds.
pub(super) fn answer(
    question: &Question<'_>,
    guest: &Binding,
    user_data: Option<&[u8]>,
    tokens: &Tokens,
    now: u64,
) -> Answer {
    let path = question.path.trim_start_matches('/');
    if *question.method == Method::PUT && path == "latest/api/token" {
        return token(question, guest, tokens, now);
    }
    if ![Method::GET, Method::HEAD].contains(question.method) {
        return Answer::refused(StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, and PUT /latest/api/token");
    }
    if let Some(file) = path.strip_prefix("nocloud/") {
        return nocloud(file, &guest.guest, user_data);
    }
    if !question.token.is_some_and(|token| tokens.is_valid(token, guest, now)) {
        return Answer::refused(
            StatusCode::UNAUTHORIZED,
            "a token is needed: PUT /latest/api/token with X-aws-ec2-metadata-token-ttl-seconds, then send it as \
             X-aws-ec2-metadata-token",
        );
    }
    ec2(path, &guest.guest, user_data)
}

fn token(question: &Question<'_>, guest: &Binding, tokens: &Tokens, now: u64) -> Answer {
    if question.forwarded {
        return Answer::refused(StatusCode::FORBIDDEN, "no token is given to a proxy (X-Forwarded-For)");
    }
    let ttl = question.ttl.filter(|ttl| ttl.bytes().all(|b| b.is_ascii_digit()));
    match ttl.and_then(|ttl| ttl.parse().ok()).filter(|ttl| (1..=LONGEST_TOKEN).contains(ttl)) {
        Some(ttl) => Answer { ttl: Some(ttl), ..Answer::text(tokens.issue(guest, now + ttl)) },
        None => Answer::refused(
            StatusCode::BAD_REQUEST,
            "X-aws-ec2-metadata-token-ttl-seconds has to be 1 to 21600",
        ),
    }
}

fn nocloud(file: &str, guest: &GuestNet, user_data: Option<&[u8]>) -> Answer {
    // What an older guestnet may have stored and no seed can hold is left out, not the guest's network with it.
    let user_data = user_data.filter(|content| check_user_data(content).is_ok());
    let options = Options { user_data, ..Options::default() };
    let seed = cloud_init(guest, Form::NocloudDir, NetworkConfigVersion::V2, &options);
    let files = seed.map(|seed| seed.files).unwrap_or_default();
    match files.into_iter().find(|one| one.path == file) {
        Some(file) => Answer::bytes(file.bytes),
        None => Answer::not_found(),
    }
}

/// Below `latest`, or below a date as EC2 versions its tree: the same for each.
fn ec2(path: &str, guest: &GuestNet, user_data: Option<&[u8]>) -> Answer {
    let (version, path) = path.split_once('/').unwrap_or((path, ""));
    if version.is_empty() {
        return Answer::text("latest\n");
    }
    let dated = version.len() == 10 && version.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    if version != "latest" && !dated {
        return Answer::not_found();
    }
    match path.trim_end_matches('/') {
        "user-data" => user_data.map_or_else(Answer::not_found, |content| Answer::bytes(content.to_vec())),
        "" if user_data.is_some() => Answer::text("meta-data/\nuser-data"),
        "" => Answer::text("meta-data/"),
        "meta-data" => leaf_or_folder("", guest),
        below => match below.strip_prefix("meta-data/") {
            Some(name) => leaf_or_folder(name, guest),
            None => Answer::not_found(),
        },
    }
}

/// Every leaf of the tree under meta-data.
fn leaves(guest: &GuestNet) -> Vec<(String, String)> {
    let GuestNet { mac, address, subnet, hostname, domain, .. } = guest;
    let card = |name: &str| format!("network/interfaces/macs/{mac}/{name}");
    [
        ("ami-id".to_owned(), "guestnet".to_owned()),
        ("hostname".to_owned(), format!("{hostname}.{domain}")),
        ("instance-id".to_owned(), instance_id(guest)),
        ("local-hostname".to_owned(), hostname.to_string()),
        ("local-ipv4".to_owned(), address.to_string()),
        ("mac".to_owned(), mac.to_string()),
        (card("device-number"), "0".to_owned()),
        (card("local-hostname"), hostname.to_string()),
        (card("local-ipv4s"), address.to_string()),
        (card("mac"), mac.to_string()),
        (card("subnet-ipv4-cidr-block"), subnet.to_string()),
    ]
    .into()
}

fn leaf_or_folder(name: &str, guest: &GuestNet) -> Answer {
    let leaves = leaves(guest);
    if let Some((_, value)) = leaves.iter().find(|(leaf, _)| leaf == name) {
        return Answer::text(value.clone());
    }
    let folder = if name.is_empty() { String::new() } else { format!("{name}/") };
    let mut names: Vec<&str> = Vec::new();
    for (leaf, _) in &leaves {
        let Some(below) = leaf.strip_prefix(&folder) else { continue };
        let first = below.find('/').map_or(below, |slash| &below[..=slash]);
        if !names.contains(&first) {
            names.push(first);
        }
    }
    if names.is_empty() { Answer::not_found() } else { Answer::text(names.join("\n")) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::model::testing;

    fn guest(n: u8) -> Binding {
        Binding::new(testing::vm(n), Arc::new(testing::network()))
    }

    fn ask(
        method: &str,
        path: &str,
        token: Option<&str>,
        tokens: &Tokens,
        guest: &Binding,
        now: u64,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let question = Question { method: &method, path, token, ttl: Some("60"), forwarded: false };
        answer(&question, guest, Some(b"#!/bin/sh\n"), tokens, now)
    }

    fn shown(answer: &Answer) -> (u16, &str) {
        (answer.status.as_u16(), std::str::from_utf8(&answer.body).unwrap())
    }

    #[test]
    fn a_token_opens_the_tree_for_its_guest_until_its_end() {
        let (tokens, one, two) = (Tokens::new().unwrap(), guest(1), guest(2));
        let token = ask("PUT", "/latest/api/token", None, &tokens, &one, 100);
        assert_eq!((token.status, token.ttl), (StatusCode::OK, Some(60)));
        let token = String::from_utf8(token.body).unwrap();
        let get = |path, guest, now| ask("GET", path, Some(&token), &tokens, guest, now);
        assert_eq!(shown(&get("/latest/meta-data/local-ipv4", &one, 100)), (200, "10.100.0.2"));
        assert_eq!(shown(&get("/2021-03-23/meta-data/local-hostname", &one, 159)), (200, "vm1"));
        assert_eq!(get("/latest/meta-data/local-ipv4", &one, 160).status, StatusCode::UNAUTHORIZED);
        assert_eq!(get("/latest/meta-data/local-ipv4", &two, 100).status, StatusCode::UNAUTHORIZED);
        let mut made_again = guest(1);
        made_again.vm.created_at_us += 1;
        assert_eq!(get("/latest/user-data", &made_again, 100).status, StatusCode::UNAUTHORIZED);
        let other_start = Tokens::new().unwrap();
        let refused = ask("GET", "/latest/user-data", Some(&token), &other_start, &one, 100);
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn the_tree_lists_itself_down_to_every_leaf() {
        let (tokens, one) = (Tokens::new().unwrap(), guest(1));
        let token = tokens.issue(&one, 60);
        let get = |path: &str| ask("GET", path, Some(&token), &tokens, &one, 0);
        assert_eq!(shown(&get("/")), (200, "latest\n"));
        assert_eq!(shown(&get("/latest")), (200, "meta-data/\nuser-data"));
        assert_eq!(shown(&get("/latest/user-data")), (200, "#!/bin/sh\n"));
        let mut folders = vec!["/latest/meta-data/".to_owned()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let listed = get(&folder);
            for name in shown(&listed).1.lines() {
                let path = format!("{folder}{name}");
                if name.ends_with('/') { folders.push(path) } else { found.push(path) }
            }
        }
        assert_eq!(found.len(), leaves(&one.guest).len(), "{found:?}");
        assert!(found.iter().all(|leaf| get(leaf).status == StatusCode::OK));
        for nothing in ["/latest/meta-data/iam/", "/1.0/", "/latest/meta-data/mac/x", "/latest/dynamic"] {
            assert_eq!(get(nothing).status, StatusCode::NOT_FOUND, "{nothing}");
        }
    }

    #[test]
    fn a_token_is_given_as_ec2_gives_it() {
        let (tokens, one) = (Tokens::new().unwrap(), guest(1));
        let put = |ttl, forwarded| {
            let question =
                Question { method: &Method::PUT, path: "/latest/api/token", token: None, ttl, forwarded };
            answer(&question, &one, None, &tokens, 0).status.as_u16()
        };
        assert_eq!([put(Some("1"), false), put(Some("21600"), false)], [200, 200]);
        for bad in [None, Some(""), Some("0"), Some("21601"), Some("-1"), Some("+60"), Some("a"), Some("1e3")]
        {
            assert_eq!(put(bad, false), 400, "{bad:?}");
        }
        assert_eq!(put(Some("60"), true), 403);
        assert_eq!(ask("GET", "/latest/api/token", None, &tokens, &one, 0).status.as_u16(), 401);
        assert_eq!(ask("POST", "/latest/meta-data/", None, &tokens, &one, 0).status.as_u16(), 405);
    }

    #[test]
    fn nocloud_over_http_has_the_seeds_files() {
        let (tokens, one) = (Tokens::new().unwrap(), guest(1));
        let get = |file: &str| ask("GET", &format!("/nocloud/{file}"), None, &tokens, &one, 0);
        assert!(shown(&get("meta-data")).1.contains("local-hostname: \"vm1\""));
        assert!(shown(&get("network-config")).1.contains("10.100.0.2/16"));
        assert_eq!(shown(&get("user-data")), (200, "#!/bin/sh\n"));
        assert_eq!(get("../latest/user-data").status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn user_data_that_no_seed_can_hold_is_left_out_alone() {
        let (tokens, one) = (Tokens::new().unwrap(), guest(1));
        let get = |path| {
            let question = Question { method: &Method::GET, path, token: None, ttl: None, forwarded: false };
            answer(&question, &one, Some(b"\x7fELF\0"), &tokens, 0)
        };
        assert!(shown(&get("/nocloud/meta-data")).1.contains("local-hostname: \"vm1\""));
        assert_eq!(shown(&get("/nocloud/user-data")), (200, "#cloud-config\n{}\n"));
    }

    proptest! {
        #[test]
        fn nothing_a_guest_asks_is_more_than_an_answer(
            path in "(/|latest|meta-data|nocloud|\\PC|[ -~]){0,12}",
            token in "[ -~]{0,80}",
            ttl in "\\PC{0,12}",
        ) {
            let (tokens, one) = (Tokens::new().unwrap(), guest(1));
            for method in [Method::GET, Method::PUT, Method::DELETE] {
                let question =
                    Question { method: &method, path: &path, token: Some(&token), ttl: Some(&ttl), forwarded: false };
                let answer = answer(&question, &one, Some(b"secret"), &tokens, 0);
                // Without a token of ours only NoCloud's file says it.
                prop_assert!(answer.body != b"secret" || path.trim_start_matches('/') == "nocloud/user-data");
            }
        }
    }
}
