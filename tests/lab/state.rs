//! What of a host's network an operator sees, as lines: to compare before and after. What the kernel counts, numbers by itself or
//! learns from packets is left out, and so are slots that wait for a VM: they come and go in the background.

use super::Lab;

/// What a table of nf_tables holds: lines of its sets, maps and chains, each with where it stands.
pub struct Tables {
    /// Of what we or an operator set down: `TABLE SECTION: LINE`, in order.
    pub lines: Vec<String>,
    /// Elements with where they stand, those that packets have added among them.
    pub elements: Vec<(String, String)>,
}

impl Lab {
    /// What of the host's network an operator sees, but for slots that wait for a VM.
    pub fn host_state(&self) -> String {
        // A slot is a VM's by the VM's name, a link to it.
        let taken =
            self.on_host("find", &["/run", "-path", "/run/netns/*", "-type", "l", "-printf", "%l\\n"]);
        let mut taken: Vec<&str> = taken.lines().filter_map(|name| name.strip_prefix("guestnet-")).collect();
        taken.sort();
        let waits = |name: &str| {
            let slot = name.strip_prefix("gv").or(name.strip_prefix("guestnet-"));
            slot.is_some_and(|slot| slot.parse::<u32>().is_ok() && !taken.contains(&slot))
        };
        let links = self.on_host("ip", &["-o", "link", "show"]);
        // A device's index and its peer's are not what an operator compares.
        let name = |line: &'_ str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        let mut links: Vec<String> = links.lines().filter_map(name).collect();
        links.retain(|name| !waits(name));
        links.sort();
        let namespaces = self.on_host("ip", &["netns", "list"]);
        let mut namespaces: Vec<&str> =
            namespaces.lines().filter_map(|line| line.split(' ').next()).collect();
        namespaces.retain(|name| !waits(name));
        namespaces.sort();
        format!(
            "links: {}\naddresses: {}\nroutes: {}\nnetns: {}\nneighbours: {}\nfdb: {}\nqueues: {}\nfilter: {}\nnat: {}\nwalls: \
             {}\nip_forward: {}",
            links.join(" "),
            self.on_host("ip", &["-o", "-4", "addr", "show"]),
            // Whether a link has its carrier yet is the kernel's timing.
            self.on_host("ip", &["-4", "route", "show", "table", "all"]).replace(" linkdown", ""),
            namespaces.join(" "),
            sorted(self.on_host("ip", &["-4", "neigh", "show", "nud", "permanent"]).lines()),
            sorted(self.forwarding().lines()),
            self.queues(&taken, waits),
            self.on_host("iptables", &["-t", "filter", "-S"]),
            self.on_host("iptables", &["-t", "nat", "-S"]),
            self.tables().lines.join("\n"),
            self.on_host("cat", &["/proc/sys/net/ipv4/ip_forward"]),
        )
    }

    /// Forwarding entries that somebody has set: on any port, of a slot that waits too.
    pub fn forwarding(&self) -> String {
        let entries = self.on_host("bridge", &["fdb", "show"]);
        entries.lines().filter(|line| line.contains(" static")).map(|line| format!("{line}\n")).collect()
    }

    /// Queueing disciplines of the host's devices, and of those in slots that are taken.
    fn queues(&self, taken: &[&str], waits: impl Fn(&str) -> bool) -> String {
        // The kernel draws a queue's handle; a device has as many references as it has been asked for.
        let shown = |text: &str| -> Vec<String> {
            let line = |line: &str| {
                let mut words: Vec<&str> = line.split_whitespace().collect();
                if let Some(at) = words.iter().position(|word| *word == "refcnt") {
                    words.drain(at..(at + 2).min(words.len()));
                }
                words.remove(2);
                let device = words.iter().skip_while(|word| **word != "dev").nth(1).copied();
                (!device.is_some_and(&waits)).then(|| words.join(" "))
            };
            text.lines().filter(|line| line.starts_with("qdisc ")).filter_map(line).collect()
        };
        let mut lines = shown(&self.on_host("tc", &["qdisc", "show"]));
        let inside = |slot: &&str| {
            let namespace = format!("guestnet-{slot}");
            // One that an admin has broken has none.
            let output = self.host_command("tc").args(["-n", &namespace, "qdisc", "show"]).output();
            shown(&super::text(&output.expect("tc")))
                .into_iter()
                .map(move |line| format!("{namespace}: {line}"))
        };
        lines.extend(taken.iter().flat_map(inside));
        sorted(lines.iter().map(String::as_str))
    }

    /// The tables of nf_tables but for those of iptables, which has its own way to show them.
    pub fn tables(&self) -> Tables {
        let listed = self.on_host("nft", &["-nn", "list", "ruleset"]);
        let mut tables = Tables { lines: Vec::new(), elements: Vec::new() };
        let (mut table, mut section) = (None, Vec::new());
        for line in listed.lines() {
            if let Some(name) = line.strip_prefix("table ") {
                let name = name.split(" {").next().unwrap_or_default();
                table =
                    Some(name).filter(|name| !["ip ", "ip6 "].iter().any(|family| name.starts_with(family)));
            } else if let Some(table) = table {
                section.push(line);
                if line == "\t}" {
                    tables.section(table, &section);
                    section.clear();
                }
                if line == "}" {
                    section.clear();
                }
            }
        }
        tables.lines.sort();
        tables
    }
}

impl Tables {
    /// A set, map, chain or counter, from its head to its end.
    fn section(&mut self, table: &str, lines: &[&str]) {
        // Flags of the table come before the first of them.
        let Some(start) = lines.iter().position(|line| line.ends_with('{')) else { return };
        let head = lines[start].trim().trim_end_matches(" {");
        let place = format!("{table} {head}");
        let body = lines[start + 1..lines.len() - 1].join("\n");
        let (rest, elements) = body.split_once("elements = {").unwrap_or((&body, ""));
        let by_packets = rest.lines().any(|line| line.contains("flags") && line.contains("dynamic"));
        let elements =
            elements.trim_end().trim_end_matches('}').split(",\n").flat_map(|line| line.split(", "));
        for element in elements.map(uncounted).filter(|element| !element.is_empty()) {
            if !by_packets {
                self.lines.push(format!("{place}: {element}"));
            }
            self.elements.push((place.clone(), element));
        }
        let lines = rest.lines().map(uncounted).filter(|line| !line.is_empty());
        self.lines.extend(lines.map(|line| format!("{place}: {line}")));
    }
}

/// Without what was counted.
fn uncounted(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    while let Some(at) = words.windows(3).position(|words| words[0] == "packets" && words[2] == "bytes") {
        words.drain(at..(at + 4).min(words.len()));
    }
    words.join(" ")
}

fn sorted<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mut lines: Vec<&str> = lines.map(str::trim).collect();
    lines.sort();
    lines.join("\n")
}
