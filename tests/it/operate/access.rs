//! Who may call, and what: groups of sockets, read-only callers, certificates over TCP.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{ChildStdout, Output, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, SanType,
};
use serde_json::Value;

use crate::lab::daemon::{Paths, serve_command};
use crate::lab::{Daemon, Lab, assert_same, assert_says, text};

/// A CA and what it signs, as files.
struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = called(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(directory.join(format!("{name}.pem")), ca.pem()).unwrap();
        Self { ca }
    }

    /// Writes NAME.pem and NAME.key for one subject alternative name.
    fn sign(&self, directory: &Path, name: &str, san: SanType) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = called(name);
        params.subject_alt_names = vec![san];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A name of its own, or openssl takes whatever it signed for self-signed.
fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

fn server() -> SanType {
    SanType::IpAddress([127, 0, 0, 1].into())
}

#[test]
fn a_first_start_with_a_group_that_is_not_there_says_so_and_makes_nothing() {
    let lab = Lab::new();
    let before = lab.host_state();
    for key in ["socket_group", "read_only_socket = \"/run/read.sock\"\nread_only_group"] {
        let output = serve_command(&lab, &format!("{key} = \"no-such-group\"\n")).output().unwrap();
        assert_says(&output, 1, &["no-such-group", "groupadd"]);
        assert_same(&before, &lab.host_state());
        assert!(!Paths::of(&lab).socket.exists());
    }
}

const RPC: &str = "guestnet.v1.GuestNetworkService";

/// curl of an RPC over TCP, as `who`.
fn over_tcp(lab: &Lab, who: Option<&str>, rpc: &str, body: &str) -> Output {
    let file = |name: &str| lab.directory().join(name);
    let mut curl = lab.host_command("curl");
    curl.args(["-sS", "--max-time", "10", "-H", "Content-Type: application/json", "-d", body]);
    curl.arg("--cacert").arg(file("ca.pem"));
    if let Some(who) = who {
        curl.arg("--cert").arg(file(&format!("{who}.pem")));
        curl.arg("--key").arg(file(&format!("{who}.key")));
    }
    curl.arg(format!("https://127.0.0.1:8443/{RPC}/{rpc}")).output().unwrap()
}

fn api(lab: &Lab) -> String {
    let directory = lab.directory().display();
    format!(
        "listen = \"127.0.0.1:8443\"\ntls_certificate = \"{directory}/server.pem\"\ntls_key = \"{directory}/server.key\"\n\
         tls_client_ca = \"{directory}/ca.pem\"\nspiffe_ids = [\"spiffe://lab/metald\"]\n\
         read_only_spiffe_ids = [\"spiffe://lab/monitoring/*\"]\n"
    )
}

#[test]
fn over_tcp_a_caller_is_who_its_certificate_says_and_nobody_else_gets_in() {
    let lab = Lab::new();
    let directory = lab.directory();
    let pki = Pki::new(directory, "ca");
    pki.sign(directory, "server", server());
    pki.sign(directory, "metald", uri("spiffe://lab/metald"));
    pki.sign(directory, "grafana", uri("spiffe://lab/monitoring/grafana"));
    pki.sign(directory, "stranger", uri("spiffe://lab/stranger"));
    pki.sign(directory, "nameless", SanType::DnsName("metald".try_into().unwrap()));
    Pki::new(directory, "other-ca").sign(directory, "forged", uri("spiffe://lab/metald"));
    let daemon = Daemon::start_with(&lab, &api(&lab));
    let call = |who, rpc, body| -> Value {
        let output = over_tcp(&lab, Some(who), rpc, body);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
    };
    assert_eq!(call("metald", "CreateVmNetwork", r#"{"vmId":"a"}"#)["vmNetwork"]["vmId"], "a");
    assert!(daemon.log().contains("spiffe://lab/metald"), "the log names who changed what: {}", daemon.log());
    assert_eq!(call("grafana", "ListVmNetworks", "{}")["totalSize"], 1);
    let refused = call("grafana", "DeleteVmNetwork", r#"{"vmId":"a"}"#);
    assert_eq!(refused["code"], "permission_denied", "{refused}");
    for who in ["stranger", "nameless"] {
        let refused = call(who, "ListVmNetworks", "{}");
        assert_eq!(refused["code"], "permission_denied", "{refused}");
        assert!(refused["message"].as_str().unwrap().contains("spiffe_ids"), "{refused}");
    }
    for who in [Some("forged"), None] {
        assert!(!over_tcp(&lab, who, "ListVmNetworks", "{}").status.success(), "{who:?} got in");
    }
    let mut plain = lab.host_command("curl");
    plain.args(["-sS", "--max-time", "5", "http://127.0.0.1:8443/"]);
    assert!(!plain.output().unwrap().status.success());

    // New certificates are used from the next connection on; files that do not fit leave the old ones in use.
    fs::write(directory.join("server.pem"), "garbage").unwrap();
    assert_eq!(call("grafana", "ListVmNetworks", "{}")["totalSize"], 1);
    let renewed = Pki::new(directory, "ca");
    renewed.sign(directory, "server", server());
    renewed.sign(directory, "grafana", uri("spiffe://lab/monitoring/grafana"));
    assert_eq!(call("grafana", "ListVmNetworks", "{}")["totalSize"], 1);
    assert!(!over_tcp(&lab, Some("metald"), "ListVmNetworks", "{}").status.success(), "of the CA before");
    assert_eq!(daemon.json(&["vm", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn an_id_that_a_reload_has_taken_off_the_list_is_refused_on_the_connection_it_has_open() {
    let lab = Lab::new();
    let directory = lab.directory();
    let pki = Pki::new(directory, "ca");
    pki.sign(directory, "server", server());
    pki.sign(directory, "metald", uri("spiffe://lab/metald"));
    let daemon = Daemon::start_with(&lab, &api(&lab));
    let file = |name: &str| directory.join(name);
    let mut tls = lab.host_command("openssl");
    tls.args(["s_client", "-quiet", "-no_ign_eof", "-verify_quiet", "-connect", "127.0.0.1:8443"]);
    tls.arg("-CAfile").arg(file("ca.pem"));
    tls.arg("-cert").arg(file("metald.pem")).arg("-key").arg(file("metald.key"));
    let mut tls = tls.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (tls.stdin.take().unwrap(), BufReader::new(tls.stdout.take().unwrap()));
    let mut call = || {
        let head = "host: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        write!(to, "POST /{RPC}/ListVmNetworks HTTP/1.1\r\n{head}").unwrap();
        let (mut status, mut line, mut body) = (String::new(), String::new(), Vec::new());
        from.read_line(&mut status).unwrap();
        let mut length = None;
        while from.read_line(&mut line).unwrap() > 2 {
            if let Some(told) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(told.trim().parse::<u64>().unwrap());
            }
            line.clear();
        }
        // Of a length, or in chunks up to one of none (RFC 9112 section 7.1).
        let mut next = |from: &mut BufReader<ChildStdout>, length: u64, more: u64| {
            let mut chunk = Vec::new();
            from.by_ref().take(length + more).read_to_end(&mut chunk).unwrap();
            body.extend(&chunk[..length as usize]);
        };
        match length {
            Some(length) => next(&mut from, length, 0),
            None => loop {
                let mut size = String::new();
                from.read_line(&mut size).unwrap();
                let size = u64::from_str_radix(size.trim(), 16).unwrap();
                next(&mut from, size, 2);
                if size == 0 {
                    break;
                }
            },
        }
        (status, String::from_utf8(body).unwrap())
    };
    let (status, body) = call();
    assert!(status.contains(" 200 "), "{status}{body}");
    let config = Paths::of(&lab).config;
    let listed = fs::read_to_string(&config).unwrap();
    fs::write(&config, listed.replace("spiffe://lab/metald", "spiffe://lab/other")).unwrap();
    daemon.guestnet(&["reload"]);
    let (status, body) = call();
    assert!(status.contains(" 403 ") && body.contains("UNLISTED_CALLER"), "{status}{body}");
    fs::write(&config, &listed).unwrap();
    daemon.guestnet(&["reload"]);
    assert!(call().0.contains(" 200 "), "and served again when it is back");
    let _ = tls.kill();
    let _ = tls.wait();
}

#[test]
fn without_a_certificate_there_is_no_listener_the_reason_is_said_and_the_socket_answers() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, &api(&lab));
    assert!(daemon.log().contains("the API is not served over TCP"), "{}", daemon.log());
    assert!(daemon.log().contains("server.pem"), "{}", daemon.log());
    let listening = lab.on_host("ss", &["-Hltn"]);
    assert!(!listening.contains(":8443"), "{listening}");
    daemon.guestnet(&["vm", "create", "a"]);
}

#[test]
fn a_second_socket_lets_its_group_read_and_nothing_more() {
    let lab = Lab::new();
    let read_only = lab.directory().join("read.sock");
    let sockets =
        format!("socket_group = \"daemon\"\nread_only_socket = {read_only:?}\nread_only_group = \"games\"");
    let daemon = Daemon::start_with(&lab, &sockets);
    let group = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.gid(), metadata.permissions().mode() & 0o7777)
    };
    // Debian's base-passwd: daemon is 1, games is 60.
    assert_eq!((group(daemon.socket()), group(&read_only)), ((1, 0o660), (60, 0o660)));
    daemon.guestnet(&["vm", "create", "a"]);
    assert!(daemon.log().contains("uid 0"), "the log names who changed what: {}", daemon.log());

    let reader = |arguments: &[&str]| {
        let mut command = daemon.client_command(arguments);
        command.env("GUESTNET_SOCKET", &read_only).output().unwrap()
    };
    for reading in [&["vm", "list"] as &[_], &["stats"], &["status"], &["events", "--no-follow"]] {
        assert!(reader(reading).status.success(), "{reading:?}: {}", text(&reader(reading)));
    }
    for changing in [&["vm", "create", "b"] as &[_], &["vm", "delete", "a"], &["vm", "create", "b", "c"]] {
        let refused = reader(changing);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert!(text(&refused).contains("may only read"), "{}", text(&refused));
    }
    assert_eq!(daemon.json(&["vm", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn the_log_tells_a_change_from_a_trial_and_a_failure_with_who_asked() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "a"]);
    let lines = |words: &[&str]| {
        let log = daemon.log();
        let told = log.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    let policy = lab.directory().join("policy.toml");
    fs::write(&policy, "vm_id = \"a\"\ndefault_action = \"deny\"\n").unwrap();
    daemon.guestnet(&["policy", "apply", "-f", policy.to_str().unwrap(), "--dry-run"]);
    daemon.guestnet(&["gc", "--dry-run"]);
    assert_eq!(lines(&["\"changed\"", "\"apply policy\""]), Vec::<String>::new());
    assert_eq!(lines(&["\"changed\"", "\"collect garbage\""]), Vec::<String>::new());
    daemon.guestnet(&["policy", "apply", "-f", policy.to_str().unwrap()]);
    assert_eq!(lines(&["\"changed\"", "\"apply policy\"", "uid 0"]).len(), 1, "{}", daemon.log());
    let refused = daemon.client(&["forward", "add", "nobody", "--host-port", "8085"]);
    assert_eq!(refused.status.code(), Some(1));
    let told = lines(&["\"not changed\"", "\"add forward\"", "not_found", "uid 0"]);
    assert_eq!(told.len(), 1, "{}", daemon.log());
}

/// The service goes in the midst of many: what is made is told, and that the rest is not.
#[test]
fn what_was_made_of_many_before_the_service_went_is_told() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let names: Vec<String> = (0..1_000).map(|n| format!("vm{n:04}")).collect();
    let arguments: Vec<&str> = ["vm", "create"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut create = daemon.client_command(&[arguments.as_slice(), &["--json"]].concat());
    let create = create.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // More than a batch of the client's.
    crate::slots::eventually("the first are made", || {
        daemon.json(&["vm", "list"]).as_array().unwrap().len() > 60
    });
    daemon.crash();
    let output = create.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("that were left"), "{}", text(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let daemon = Daemon::start(&lab);
    let there = daemon.json(&["vm", "list"]);
    let ids = |vms: &Value| -> Vec<String> {
        vms.as_array().unwrap().iter().map(|vm| vm["vm_id"].as_str().unwrap().to_owned()).collect()
    };
    let (told, there) = (ids(&told), ids(&there));
    assert!(told.len() >= 50 && told.iter().all(|vm_id| there.contains(vm_id)), "{told:?}\n{there:?}");
}
