//! CNI's reference plugins from Debian, run as a container runtime runs them: bridge with host-local addresses and masquerade,
//! firewall, bandwidth; each a program that is given the result of the one before.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::debian;
use crate::lab::Lab;

const PLUGINS: &str = "/usr/lib/cni";

pub struct Cni<'lab> {
    lab: &'lab Lab,
    chain: Vec<Value>,
}

impl<'lab> Cni<'lab> {
    pub fn new(lab: &'lab Lab) -> Self {
        debian::install(&["containernetworking-plugins"]);
        // What every host that routes for containers has set.
        lab.on_host("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"]);
        let addresses = lab.directory().join("addresses");
        let chain = vec![
            json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
                "ipam": { "type": "host-local", "subnet": "10.22.0.0/16", "dataDir": addresses },
            }),
            json!({ "type": "firewall", "backend": "iptables" }),
            json!({
                "type": "bandwidth", "ingressRate": 100_000_000, "ingressBurst": 8_000_000,
                "egressRate": 100_000_000, "egressBurst": 8_000_000,
            }),
        ];
        Self { lab, chain }
    }

    /// Gives one more container its network; how long the plugins took. The namespace is made before.
    pub fn add(&self, number: usize) -> Duration {
        let namespace = format!("cni-{number}");
        self.lab.on_host("ip", &["netns", "add", &namespace]);
        let path = PathBuf::from("/run/netns").join(&namespace);
        let begun = Instant::now();
        let mut result = Value::Null;
        for plugin in &self.chain {
            let mut config = plugin.clone();
            config["cniVersion"] = json!("1.0.0");
            config["name"] = json!("bench");
            if !result.is_null() {
                config["prevResult"] = result;
            }
            let program = PathBuf::from(PLUGINS).join(plugin["type"].as_str().expect("a type"));
            let mut command = self.lab.host_command(program);
            command
                .env("CNI_COMMAND", "ADD")
                .env("CNI_CONTAINERID", &namespace)
                .env("CNI_NETNS", &path)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", PLUGINS);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a CNI plugin");
            let input = child.stdin.take().map(|mut input| input.write_all(config.to_string().as_bytes()));
            let output = child.wait_with_output().expect("a CNI plugin's end");
            assert!(output.status.success() && input.is_some(), "{}: {output:?}", plugin["type"]);
            result = serde_json::from_slice(&output.stdout).expect("JSON of a CNI plugin");
        }
        begun.elapsed()
    }
}
