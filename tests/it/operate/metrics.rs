//! Metrics as Prometheus reads them, the dashboard and the alert rules that go with them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::lab::port::PortGuest;
use crate::lab::{Daemon, Lab, WEB_NAME, text};

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file)
}

/// Debian's prometheus package brings promtool.
fn promtool() -> Command {
    let install = Command::new(packaging("apt-install")).arg("prometheus").output().unwrap();
    assert!(install.status.success(), "{}", text(&install));
    Command::new("promtool")
}

fn scrape(lab: &Lab, accept: &str) -> String {
    let socket = lab.directory().join("metrics.sock");
    let mut curl = lab.host_command("curl");
    curl.args(["-sS", "-i", "--max-time", "10", "-H", &format!("Accept: {accept}"), "--unix-socket"])
        .arg(socket);
    let output = curl.arg("http://localhost/metrics").output().unwrap();
    text(&output).replace("\r\n", "\n")
}

/// The value of a series, written as in the page.
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
}

fn config(lab: &Lab, more: &str) -> String {
    format!(
        "[metrics]\nsocket = {:?}\nlisten = \"127.0.0.1:9477\"\n{more}",
        lab.directory().join("metrics.sock")
    )
}

#[test]
fn metrics_come_in_both_formats_and_are_as_prometheus_wants_them() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, &config(&lab, ""));
    daemon.guestnet(&["vm", "create", "a", "b"]);
    daemon.guestnet(&["vm", "delete", "b"]);
    let page = scrape(&lab, "*/*");
    let (head, body) = page.split_once("\n\n").unwrap();
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(value(body, "guestnet_vms{network=\"default\"}"), 1.0);
    assert_eq!(value(body, "guestnet_bind_duration_seconds_count"), 2.0);
    assert_eq!(value(body, "guestnet_unbind_duration_seconds_count"), 1.0);
    assert_eq!(value(body, "guestnet_events_total{kind=\"bound\"}"), 2.0);
    assert!(value(body, "guestnet_bind_duration_seconds_sum") > 0.0);
    // Without a last bucket that holds all, histogram_quantile() has no answer.
    for name in ["bind", "unbind", "dhcp_answer"] {
        let series = |end: &str| value(body, &format!("guestnet_{name}_duration_seconds{end}"));
        assert_eq!(series("_bucket{le=\"+Inf\"}"), series("_count"), "{name}");
    }
    let dns = |end: &str| value(body, &format!("guestnet_dns_answer_duration_seconds{end}"));
    assert_eq!(dns("_bucket{network=\"default\",le=\"+Inf\"}"), dns("_count{network=\"default\"}"), "{body}");
    assert!(!body.contains("vm_id"), "series of VMs are for who asks for them:\n{body}");

    let mut check = promtool()
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    assert!(checked.status.success(), "{}\n{body}", text(&checked));

    let page = scrape(&lab, "application/openmetrics-text;version=1.0.0");
    assert!(page.contains("application/openmetrics-text"), "{page}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    let port = lab.on_host("curl", &["-sS", "http://127.0.0.1:9477/metrics"]);
    assert!(port.contains("guestnet_vms"), "{port}");
    let elsewhere = lab.on_host("curl", &["-sS", "http://127.0.0.1:9477/"]);
    assert!(elsewhere.contains("/metrics"), "{elsewhere}");
}

#[test]
fn what_guests_ask_is_counted_by_rcode_and_by_where_the_answer_came_from() {
    let lab = Lab::new();
    let rule = "[[network]]\n[[network.resolver.rule]]\nname = \"ads\"\nnames = [\"ads.example\"]\n";
    let daemon = Daemon::start_with(&lab, &config(&lab, rule));
    let guest = PortGuest::of(&lab, &daemon.json(&["vm", "create", "a"]));
    // From an upstream and twice from the cache; a denial, likewise; of our own zone; by a rule; refused; not a query.
    for arguments in [
        &[WEB_NAME][..],
        &[WEB_NAME],
        &[WEB_NAME],
        &["nothing.example.org"],
        &["a.vm.internal"],
        &["nobody.vm.internal"],
        &["www.ads.example"],
        &["version.bind", "CH", "TXT"],
        &[WEB_NAME, "+opcode=NOTIFY"],
        &[WEB_NAME, "+edns=1", "+noednsneg"],
        &[WEB_NAME, "+norecurse"],
    ] {
        guest.dig(arguments);
    }
    let page = scrape(&lab, "*/*");
    assert_eq!(value(&page, "guestnet_dns_queries_total{network=\"default\"}"), 11.0);
    let outcomes = [
        // By rcode: each query is one of these.
        ("noerror", 4.0),
        ("nxdomain", 3.0),
        ("servfail", 0.0),
        ("refused", 2.0),
        ("formerr", 0.0),
        ("other_rcodes", 2.0),
        // By where it came from.
        ("local", 2.0),
        ("cache_hits", 2.0),
        ("forwarded", 2.0),
        ("asked", 2.0),
        ("policy", 1.0),
        ("stale", 0.0),
        ("shed", 0.0),
        ("limited", 0.0),
    ];
    for (outcome, expected) in outcomes {
        let series = format!("guestnet_dns_outcomes_total{{network=\"default\",outcome=\"{outcome}\"}}");
        assert_eq!(value(&page, &series), expected, "{outcome}");
    }
    assert_eq!(value(&page, "guestnet_dns_answer_duration_seconds_count{network=\"default\"}"), 11.0);
    // The same of the guest alone.
    let top = daemon.json(&["dns", "top"]);
    let counters = &top[0]["guests"][0];
    assert_eq!(counters["vm_id"], "a", "{top}");
    let stats = daemon.json(&["dns", "stats"]);
    assert_eq!(stats[0]["counters"]["noerror"], 4, "{stats}");
}

#[test]
fn each_vm_has_series_of_its_own_where_the_operator_asked_for_them() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, &config(&lab, "vm_labels = true"));
    daemon.guestnet(&["vm", "create", "a"]);
    let page = scrape(&lab, "*/*");
    assert_eq!(
        value(&page, "guestnet_guest_receive_bytes_total{network=\"default\",vm_id=\"a\"}"),
        0.0,
        "{page}"
    );
}

#[test]
fn each_network_has_series_of_its_own_that_only_grow() {
    let lab = Lab::new();
    let networks = "[[network]]\nname = \"blue\"\npool_size = 4\n\
                    [[network]]\nname = \"red\"\nbridge_name = \"br-red\"\nbridge_ip = \"10.101.0.1/16\"\n\
                    vm_subnet = \"10.101.0.0/16\"\npool_size = 4\n";
    let daemon = Daemon::start_with(&lab, &config(&lab, networks));
    let guest = |vm: &str, network: &str| {
        let vm = daemon.json(&["vm", "create", vm, "--network", network]);
        PortGuest::of(&lab, &vm)
    };
    let (a, b) = (guest("a", "blue"), guest("b", "red"));
    daemon.guestnet(&["vm", "create", "c", "--network", "red"]);
    a.dig(&["a.vm.internal"]);
    for _ in 0..2 {
        b.dig(&[WEB_NAME]);
    }
    let of = |page: &str, name: &str, network: &str| {
        value(page, &format!("guestnet_{name}{{network=\"{network}\"}}"))
    };
    let page = scrape(&lab, "*/*");
    for (name, blue, red) in [
        ("vms", 1.0, 2.0),
        ("dns_queries_total", 1.0, 2.0),
        ("dns_answer_duration_seconds_count", 1.0, 2.0),
        ("free_addresses", 65_532.0, 65_531.0),
    ] {
        assert_eq!((of(&page, name, "blue"), of(&page, name, "red")), (blue, red), "{name}");
    }
    let traffic =
        |page: &str| ["transmit", "receive"].map(|way| of(page, &format!("guest_{way}_bytes_total"), "red"));
    let before = traffic(&page);
    assert!(before.iter().all(|bytes| *bytes > 0.0), "{before:?}");
    // What a guest that is gone has sent was sent.
    drop(b);
    daemon.guestnet(&["vm", "delete", "b"]);
    let page = scrape(&lab, "*/*");
    let after = traffic(&page);
    assert!(after.iter().zip(before).all(|(after, before)| *after >= before), "{before:?}, then {after:?}");
    assert_eq!(of(&page, "vms", "red"), 1.0);
}

#[test]
fn readers_that_never_finish_their_question_keep_nobody_out() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, &config(&lab, ""));
    // Many times what is served at one time: one after the other, each for its ten seconds, they would take minutes.
    let slow: Vec<_> = (0..400)
        .map(|_| {
            let mut stream =
                std::os::unix::net::UnixStream::connect(lab.directory().join("metrics.sock")).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-").unwrap();
            stream
        })
        .collect();
    let mut curl = lab.host_command("curl");
    curl.args(["-sS", "--max-time", "45", "http://localhost/metrics", "--unix-socket"]);
    let page = curl.arg(lab.directory().join("metrics.sock")).output().unwrap();
    assert!(text(&page).contains("guestnet_vms"), "{}", text(&page));
    daemon.guestnet(&["vm", "create", "a"]);
    drop(slow);
}

/// The names of guestnet's metrics that `text` speaks of.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("guestnet_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alert_rules_fit_prometheus_and_speak_of_metrics_that_there_are() {
    let checked =
        promtool().args(["check", "rules"]).arg(packaging("prometheus/alerts.yml")).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked));
    let tested =
        promtool().args(["test", "rules"]).arg(packaging("prometheus/alerts_test.yml")).output().unwrap();
    assert!(tested.status.success(), "{}", text(&tested));

    // Each alert of the rules rings in a test, and is quiet in one.
    let tests = std::fs::read_to_string(packaging("prometheus/alerts_test.yml")).unwrap();
    let rules = std::fs::read_to_string(packaging("prometheus/alerts.yml")).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let told = format!("alertname: {alert}\n        exp_alerts:");
        let quiet = tests.matches(&format!("{told} []")).count();
        let rings = tests.matches(&told).count() - quiet;
        assert!(quiet > 0 && rings > 0, "{alert} rings in {rings} tests and is quiet in {quiet}");
    }

    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, &config(&lab, ""));
    daemon.guestnet(&["vm", "create", "a"]);
    let page = scrape(&lab, "*/*");
    let there = named(&page);
    let rules = std::fs::read_to_string(packaging("prometheus/alerts.yml")).unwrap();
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(packaging("grafana/guestnet.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    for name in named(&(rules + &queries.join(" "))) {
        assert!(there.contains(&name), "{name} is not served");
    }
    assert_answered(&lab, &page, &queries);
}

/// Prometheus has an answer to each of the queries from what is served, as it grows.
fn assert_answered(lab: &Lab, page: &str, queries: &[&str]) {
    let (_, body) = page.split_once("\n\n").unwrap();
    let series = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let series: Vec<Value> = series
        .map(|(series, value)| {
            let series = match series.strip_suffix('}') {
                Some(labelled) => format!("{labelled},instance=\"lab\"}}"),
                None => format!("{series}{{instance=\"lab\"}}"),
            };
            let value: f64 = value.parse().unwrap();
            json!({"series": series, "values": format!("{value}+1x20")})
        })
        .collect();
    let each = queries.iter().map(|query| {
        let query = query.replace("$instance", ".*");
        let any = json!([{"labels": "{}", "value": 1}]);
        json!({"expr": format!("clamp_max(count({query}), 1)"), "eval_time": "10m", "exp_samples": any})
    });
    let each: Vec<Value> = each.collect();
    // JSON is YAML.
    let tests = json!({"evaluation_interval": "1m", "tests": [
        {"interval": "1m", "input_series": series, "promql_expr_test": each}
    ]});
    let file = lab.directory().join("queries.yml");
    std::fs::write(&file, tests.to_string()).unwrap();
    let tested = promtool().args(["test", "rules"]).arg(&file).output().unwrap();
    assert!(tested.status.success(), "{}", text(&tested));
}
