//! What is made for a guest is what it was made as: not only there, but with every attribute, on the host and inside its namespace.

use serde_json::{Value, json};

use crate::lab::Lab;

/// Names, numbers, what the kernel draws, and what depends on whether somebody has the TAP open.
const DRAWN: [&str; 24] = [
    "ifindex",
    "ifname",
    "link",
    "link_index",
    "link_netnsid",
    "address",
    "operstate",
    "promiscuity",
    "allmulti",
    "numqueues",
    "numdisabled",
    "no",
    "id",
    "designated_port",
    "root_id",
    "bridge_id",
    "state",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
    "topology_change_ack",
    "config_pending",
    "handle",
    "refcnt",
];

fn without_drawn(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !DRAWN.contains(&name.as_str()));
            if let Some(Value::Array(flags)) = fields.get_mut("flags") {
                flags.retain(|flag| flag == "UP");
            }
            fields.values_mut().for_each(without_drawn);
        }
        Value::Array(values) => values.iter_mut().for_each(without_drawn),
        _ => {}
    }
}

/// Of the host's devices all there is to know, read once for any number of guests.
pub(crate) struct OfHost {
    links: Value,
    queues: Value,
    entries: Value,
    neighbours: Value,
    routes: Value,
}

pub(crate) fn read(lab: &Lab, program: &str, arguments: &[&str]) -> Value {
    let shown = lab.on_host(program, arguments);
    serde_json::from_str(if shown.trim().is_empty() { "[]" } else { &shown }).unwrap()
}

fn those(list: &Value, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
    list.as_array().unwrap().iter().filter(|one| holds(one)).cloned().collect()
}

impl OfHost {
    pub(crate) fn read(lab: &Lab) -> Self {
        Self {
            links: read(lab, "ip", &["-j", "-d", "link", "show"]),
            queues: read(lab, "tc", &["-j", "qdisc", "show"]),
            entries: read(lab, "bridge", &["-j", "fdb", "show"]),
            neighbours: read(lab, "ip", &["-j", "-4", "neigh", "show", "nud", "permanent"]),
            routes: read(lab, "ip", &["-j", "-4", "-d", "route", "show", "proto", "103", "type", "unicast"]),
        }
    }

    /// Every attribute of what there is for the VM, the same for VMs that are alike in all but their names and addresses.
    pub(crate) fn attributes(&self, lab: &Lab, vm: &Value) -> Value {
        let text = |name: &str| vm[name].as_str().unwrap();
        let (port, netns) = (text("host_device"), text("namespace"));
        let inside = |program: &str, arguments: &[&str]| {
            read(lab, program, &[&["-n", netns, "-j"], arguments].concat())
        };
        let redirect = |from: &str, to: &str| {
            let shown = lab.on_host("tc", &["-n", netns, "filter", "show", "dev", from, "ingress"]);
            let wanted = format!("mirred (Egress Redirect to device {to}) stolen");
            let matches_all = shown.contains("match 00000000/00000000 at 0");
            (shown.matches("mirred").count(), shown.contains(&wanted) && matches_all)
        };
        let host_link = those(&self.links, |link| link["ifname"] == port);
        let mark = |link: &Value| match link["ifalias"].as_str() {
            Some(mark) => json!(mark == format!("guestnet {}", host_link[0]["ifindex"])),
            None => Value::Null,
        };
        let links = inside("ip", &["-d", "link", "show"]);
        let marks: Vec<Value> = links.as_array().unwrap().iter().map(mark).collect();
        let names: Vec<&Value> = links.as_array().unwrap().iter().map(|link| &link["ifname"]).collect();
        let setting =
            |key: &str| lab.on_host("ip", &["netns", "exec", netns, "cat", &format!("/proc/sys/net/{key}")]);
        let mut found = json!({
            "port": host_link,
            "queues": those(&self.queues, |queue| queue["dev"] == port),
            "entries": those(&self.entries, |entry| entry["ifname"] == port && entry["state"] == "static"),
            "neighbours": those(&self.neighbours, |neighbour| neighbour["dst"] == text("ip_address")),
            "routes": those(&self.routes, |route| route["dst"] == text("ip_address")),
            "names": names,
            "inside": links,
            "inside_queues": inside("tc", &["qdisc", "show"]),
            "redirects": [redirect("in0", "tap0"), redirect("tap0", "in0")],
            "no_ipv6": [setting("ipv6/conf/all/disable_ipv6"), setting("ipv6/conf/default/disable_ipv6")],
        });
        without_drawn(&mut found);
        for link in found["inside"].as_array_mut().unwrap() {
            link.as_object_mut().unwrap().remove("ifalias");
        }
        found["marks"] = json!(marks);
        let mut shown = found.to_string();
        for (drawn, name) in
            [(port, "PORT"), (text("mac_address"), "MAC"), (text("ip_address"), "ADDRESS"), (netns, "NETNS")]
        {
            shown = shown.replace(&format!("{drawn:?}"), &format!("{name:?}"));
        }
        serde_json::from_str(&shown).unwrap()
    }

    /// That the VM has what its network and its request say, whoever made it and whoever mended it.
    pub(crate) fn assert_as_said(&self, lab: &Lab, vm: &Value) {
        let found = self.attributes(lab, vm);
        let is = |what: &str, wanted: Value| {
            assert_eq!(found.pointer(what), Some(&wanted), "{what} of {vm}: {found:#}");
        };
        let bridge = those(&self.links, |link| link["ifname"] == found["port"][0]["master"]);
        assert_eq!(bridge.len(), 1, "{vm}: {found:#}");
        let flags = "/port/0/linkinfo/info_slave_data";
        for (flag, wanted) in [
            ("isolated", true),
            ("locked", true),
            ("learning", false),
            ("flood", false),
            ("mcast_flood", false),
        ] {
            is(&format!("{flags}/{flag}"), json!(wanted));
        }
        is("/port/0/mtu", vm["mtu"].clone());
        is("/port/0/flags", json!(["UP"]));
        is("/names", json!(["lo", "tap0", "in0"]));
        is("/marks", json!([true, true, null]));
        for device in [1, 2] {
            is(&format!("/inside/{device}/mtu"), vm["mtu"].clone());
            is(&format!("/inside/{device}/flags"), json!(["UP"]));
        }
        is("/redirects", json!([[1, true], [1, true]]));
        is("/no_ipv6", json!(["1\n", "1\n"]));
        is("/entries/0/mac", json!("MAC"));
        is("/entries/0/master", bridge[0]["ifname"].clone());
        is("/neighbours/0/lladdr", json!("MAC"));
        is("/neighbours/0/dev", bridge[0]["ifname"].clone());
        is("/routes/0/dev", bridge[0]["ifname"].clone());
        is("/routes/0/prefsrc", vm["gateway"].clone());
        for of in ["entries", "neighbours", "routes"] {
            assert_eq!(found[of].as_array().unwrap().len(), 1, "{of} of {vm}: {found:#}");
        }
        // Bytes a second, at both ends.
        let limit = |queues: &str, device: &str| {
            let root = |queue: &&Value| queue["dev"] == device && queue["root"] == true;
            let queue = found[queues].as_array().unwrap().iter().find(root);
            queue
                .filter(|queue| queue["kind"] == "tbf")
                .map(|queue| queue["options"]["rate"].as_u64().unwrap())
        };
        let wanted = Some(vm["rate_limit_mbps"].as_u64().unwrap() * 125_000).filter(|rate| *rate > 0);
        let limits = [limit("queues", "PORT"), limit("inside_queues", "in0")];
        assert_eq!(limits, [wanted; 2], "limits of {vm}: {found:#}");
    }
}
