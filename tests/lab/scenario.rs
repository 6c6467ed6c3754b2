//! The demo's scenario, which is a test too: two guests boot, each gets its lease, resolves a name, fetches a page through
//! NAT, and cannot reach the other. What went wrong is reported, not panicked on, so that a broken part shows as itself.

use std::time::Duration;

use serde_json::Value;

use super::guest::{Boot, Guest, Machine};
use super::{Daemon, Lab, UPLINK, WEB, WEB_NAME};

/// The port of the web server in each guest.
const GUEST_WEB_PORT: u16 = 8000;

/// What one guest saw. `Err` says what it saw instead.
#[derive(Debug)]
pub struct Report {
    pub vm_id: String,
    pub mac: String,
    /// The address that was reserved for it.
    pub reserved: String,
    /// The address it leased.
    pub lease: Result<String, String>,
    /// DHCPDISCOVERs until it had it.
    pub tries: u32,
    pub power_on_to_lease: Duration,
    /// The address that `WEB_NAME` resolved to.
    pub resolved: Result<String, String>,
    /// The page it fetched, which names the address that the internet saw.
    pub page: Result<String, String>,
    /// That nothing of it reaches the other guest, which the host does reach.
    pub isolated: Result<(), String>,
}

impl Report {
    /// All that is not as it should be.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut note = |part: &str, problem: Option<String>| {
            problems.extend(problem.map(|problem| format!("{}: {part}: {problem}", self.vm_id)));
        };
        note(
            "dhcp",
            match &self.lease {
                Ok(leased) if *leased != self.reserved => {
                    Some(format!("leased {leased}, not {}", self.reserved))
                }
                Ok(_) if self.tries != 1 => Some(format!("took {} tries", self.tries)),
                Ok(_) => None,
                Err(problem) => Some(problem.clone()),
            },
        );
        note(
            "dns",
            match &self.resolved {
                Ok(address) if address == WEB => None,
                Ok(address) => Some(format!("{WEB_NAME} resolved to {address}, not {WEB}")),
                Err(problem) => Some(problem.clone()),
            },
        );
        note(
            "nat",
            match &self.page {
                Ok(page) if page.contains(&format!("hello {UPLINK},")) => None,
                Ok(page) => Some(format!("the internet did not see {UPLINK}: {page}")),
                Err(problem) => Some(problem.clone()),
            },
        );
        note("isolation", self.isolated.as_ref().err().cloned());
        problems
    }
}

/// The two VMs of the scenario, as `vm create --json` gave them.
pub fn create_vms(daemon: &Daemon<'_>) -> [Value; 2] {
    ["vm1", "vm2"].map(|vm_id| daemon.json(&["vm", "create", vm_id]))
}

/// Boots both VMs and looks through their eyes. `say` is told what is being waited for.
pub fn run(lab: &Lab, machine: Machine, vms: &[Value; 2], say: impl Fn(&str)) -> (Vec<Guest>, Vec<Report>) {
    say("powering two VMs on");
    let mut guests = [0, 1].map(|i| {
        Guest::boot(lab, &Boot { machine, network: &vms[i], kernel_arguments: "guestnet.net=dhcp" })
    });
    say("waiting for their leases");
    let leases = [0, 1].map(|i| {
        let (event, fields) = guests[i].either(&["lease", "nolease"]);
        guests[i].event("ready");
        (event, fields)
    });
    say("looking through each guest's eyes");
    for guest in &mut guests {
        guest.succeed(&format!("echo the other guest >/tmp/index.html; httpd -p {GUEST_WEB_PORT} -h /tmp"));
    }
    let mut reports = Vec::new();
    for (i, (event, fields)) in leases.into_iter().enumerate() {
        let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let other = text(&vms[1 - i], "ip_address");
        reports.push(Report {
            vm_id: text(&vms[i], "vm_id"),
            mac: text(&vms[i], "mac_address"),
            reserved: text(&vms[i], "ip_address"),
            lease: if event == "lease" { Ok(fields.get("ip").to_owned()) } else { Err("no lease".into()) },
            tries: fields.get("tries").parse().unwrap_or_default(),
            power_on_to_lease: fields.at,
            resolved: resolve(&mut guests[i]),
            page: fetch(&mut guests[i]),
            isolated: isolated(lab, &mut guests[i], &other),
        });
    }
    (guests.into(), reports)
}

fn resolve(guest: &mut Guest) -> Result<String, String> {
    let (success, printed) = guest.run(&format!("timeout 10 nslookup -type=a {WEB_NAME}."));
    // The first Address line is the server's own.
    let address = printed.split("Name:").nth(1).and_then(|answer| answer.split("Address:").nth(1));
    match address {
        Some(address) if success => Ok(address.trim().to_owned()),
        _ => Err(format!("{WEB_NAME} did not resolve: {}", printed.trim())),
    }
}

fn fetch(guest: &mut Guest) -> Result<String, String> {
    // By address, so that this says something of NAT whatever DNS does.
    let (success, printed) = guest.run(&format!("timeout 5 wget -q -O - http://{WEB}/"));
    if success { Ok(printed.trim().to_owned()) } else { Err(format!("no page: {}", printed.trim())) }
}

fn isolated(lab: &Lab, guest: &mut Guest, other: &str) -> Result<(), String> {
    // What cannot be reached from the host either would prove nothing.
    let from_host = lab.host_command("busybox").args(["ping", "-c", "1", "-W", "5", other]).output();
    if !from_host.is_ok_and(|output| output.status.success()) {
        return Err(format!("{other} does not answer the host, so its isolation cannot be seen"));
    }
    if guest.run(&format!("ping -c 2 -W 1 {other}")).0 {
        return Err(format!("{other} answered its ping"));
    }
    if guest.run(&format!("timeout 2 wget -q -O - http://{other}:{GUEST_WEB_PORT}/")).0 {
        return Err(format!("{other} served it a page"));
    }
    Ok(())
}
