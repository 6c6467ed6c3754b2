//! Zones on the lab's internet, signed with keys made here, from Debian's nsd.

use super::*;
use crate::lab::succeed;

/// A zone's file and, if it is signed, its key in the two forms that a validator or a parent takes.
pub(crate) struct Zone {
    name: String,
    file: PathBuf,
    pub(crate) dnskey: String,
    /// `NAME IN DS …`.
    pub(crate) ds: String,
}

/// A zone with these records below its own; `.` is the root.
pub(crate) fn unsigned(lab: &Lab, name: &str, records: &str) -> Zone {
    let file = lab.directory().join(if name == "." { "root" } else { name });
    let text = format!("$ORIGIN {name}{}\n$TTL 300\n", if name == "." { "" } else { "." })
        + &format!("@ IN SOA ns root 1 3600 600 86400 60\n@ IN NS ns\nns IN A {SERVER}\n{records}");
    fs::write(&file, text).unwrap();
    Zone { name: name.to_owned(), file, dnskey: String::new(), ds: String::new() }
}

/// The same, signed.
pub(crate) fn signed(lab: &Lab, name: &str, records: &str) -> Zone {
    signed_with(lab, name, records, &[])
}

/// The same with arguments of ldns-signzone(1): `-n` for NSEC3, with as many rounds more as `-t` says.
pub(crate) fn signed_with(lab: &Lab, name: &str, records: &str, arguments: &[&str]) -> Zone {
    let Zone { name, file, .. } = unsigned(lab, name, records);
    let at = lab.directory();
    let keygen =
        succeed(Command::new("ldns-keygen").current_dir(at).args(["-a", "ECDSAP256SHA256", "-k", &name]));
    let key = keygen.trim();
    let mut sign = Command::new("ldns-signzone");
    succeed(sign.current_dir(at).args(arguments).args(["-o", &name]).arg(&file).arg(key));
    let read = |kind: &str| fs::read_to_string(at.join(format!("{key}.{kind}"))).unwrap();
    Zone {
        file: file.with_file_name(format!("{}.signed", file_name(&file))),
        name,
        dnskey: read("key"),
        ds: read("ds"),
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

impl Zone {
    /// Puts other data in the place of what was signed.
    pub(crate) fn broken(self, from: &str, to: &str) -> Self {
        let text = fs::read_to_string(&self.file).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&self.file, text.replace(from, to)).unwrap();
        self
    }
}

/// nsd with these zones.
pub(crate) fn nsd(lab: &Lab, zones: &[&Zone]) -> Server {
    with_server_address(lab);
    let path = lab.directory().join("nsd.conf");
    let zone = |zone: &&Zone| format!("zone:\n  name: {}\n  zonefile: {}\n", zone.name, zone.file.display());
    let text = format!(
        "server:\n  ip-address: {SERVER}\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  database: \"\"\n  \
         zonesdir: \"{at}\"\n  xfrdfile: \"{at}/xfrd\"\n  zonelistfile: \"{at}/zones\"\n  server-count: 1\n  \
         rrl-ratelimit: 0\nremote-control:\n  control-enable: no\n{zones}",
        at = lab.directory().display(),
        zones = zones.iter().map(zone).collect::<String>()
    );
    fs::write(&path, text).unwrap();
    let mut command = lab.inet.command("nsd");
    command.args(["-d", "-c"]).arg(path);
    Server::start(command)
}
