//! A guest that is a network namespace, in which programs of this machine run with the guest's MAC and address, so that everything
//! on the way to the host is as for a VM.

use std::net::UdpSocket;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Lab, Namespace, TapGuest, succeed, text};

pub struct PortGuest {
    pub inside: Namespace,
    pub gateway: String,
    pub address: String,
    /// At the VM's TAP.
    _plugged: Option<TapGuest>,
}

impl PortGuest {
    /// `vm` as `vm create --json` gave it.
    pub fn of(lab: &Lab, vm: &Value) -> Self {
        let guest = TapGuest::attach(lab, vm);
        guest.run("ip", &["link", "set", "lo", "up"]);
        Self::with(guest.namespace.again(), vm, Some(guest))
    }

    /// The same on a machine at a port of somebody else's bridge, with no program between it and the host: for benchmarks.
    pub fn at(machine: Namespace, address: &str, prefix_len: u8, gateway: &str) -> Self {
        let guest =
            Self { inside: machine, gateway: gateway.into(), address: address.into(), _plugged: None };
        guest.succeed("ip", &["addr", "add", &format!("{address}/{prefix_len}"), "dev", "eth0"]);
        guest.succeed("ip", &["route", "add", "default", "via", gateway]);
        guest
    }

    fn with(inside: Namespace, vm: &Value, plugged: Option<TapGuest>) -> Self {
        let text = |key: &str| vm[key].as_str().expect("text").to_owned();
        Self { inside, gateway: text("gateway"), address: text("ip_address"), _plugged: plugged }
    }

    pub fn command(&self, program: &str) -> Command {
        self.inside.command(program)
    }

    pub fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.command(program).args(arguments))
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().expect("a program of this machine")
    }

    /// dig at the gateway, once: a retry would hide what is lost.
    pub fn dig(&self, arguments: &[&str]) -> String {
        let server = format!("@{}", self.gateway);
        text(&self.run("dig", &[&[server.as_str(), "+tries=1", "+time=8"], arguments].concat()))
    }

    /// A stub of this machine, which finds the gateway in its resolv.conf.
    pub fn with_resolv_conf(&self, lab: &Lab, program: &str, arguments: &[&str]) -> Output {
        let resolv_conf = lab.directory().join("resolv.conf");
        let content =
            format!("nameserver {}\nsearch vm.internal\noptions timeout:8 attempts:1\n", self.gateway);
        std::fs::write(&resolv_conf, content).expect("a resolv.conf");
        let nsswitch = lab.directory().join("nsswitch.conf");
        std::fs::write(&nsswitch, "hosts: dns\n").expect("a nsswitch.conf");
        let script = "mount --bind \"$1\" /etc/resolv.conf && mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && \
                      exec \"$@\"";
        let mut command = self.command("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(resolv_conf).arg(nsswitch);
        command.arg(program).args(arguments).output().expect("a program of this machine")
    }

    /// How long a look-up of an A record took, and its rcode; `None` if nothing came within five seconds, which is when a
    /// stub gives up.
    pub fn look_up(&self, name: &str) -> Option<(Duration, u8)> {
        let socket = self.inside.run(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut query = b"\xab\xcd\x01\x00\0\x01\0\0\0\0\0\0".to_vec();
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(b"\0\0\x01\0\x01");
        let begun = Instant::now();
        socket.send_to(&query, (self.gateway.as_str(), 53)).expect("a query");
        let mut answer = [0; 1_500];
        socket.recv(&mut answer).ok().map(|_| (begun.elapsed(), answer[3] & 0xf))
    }
}
