//! Every command of README and docs/ is run: here in a lab, or where a list below says; what is run nowhere is in a list too,
//! with the reason. A block is `sh` (commands), `sh guest` (commands inside a guest), `console` (commands and what they print,
//! which is compared), `toml` (read), or `text`, `go`: no commands. What stands between backticks is checked in `src/cli/pages.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use guestnet::config::Config;

use crate::lab::{Daemon, Lab, TapGuest, WEB, WEB_NAME, guestnet_binary, text};

/// Pages whose `sh` blocks a test of `package.rs` runs, on a Debian where the package is installed.
const ON_A_DEBIAN: [&str; 2] = ["docs/quick-start.md", "docs/integration.md"];

/// Of the pages that are run here, the blocks that take a Debian with systemd: `package.rs` runs them with the rest of their page.
const TAKE_SYSTEMD: [(&str, &str); 1] = [("docs/quick-start.md", "dpkg -i")];

/// Pages that are run here.
const HERE: [&str; 6] = [
    "README.md",
    "docs/quick-start.md",
    "docs/operations.md",
    "docs/troubleshooting.md",
    "docs/dhcp.md",
    "docs/guest-configuration.md",
];

/// Blocks that are run nowhere as they stand, by their first line, and why.
const NOT_RUN: [(&str, &str, &str); 9] = [
    ("README.md", "make demo", "boots two VMs for a quarter of a minute: demo.rs runs the same scenario"),
    ("README.md", "make test", "this test is part of it"),
    (
        "README.md",
        "cargo build --release",
        "minutes, and it installs on the host: package.rs installs the package",
    ),
    ("docs/performance.md", "bench/run dns --json", "minutes, with peers; its name is checked below"),
    (
        "vm-images/README.md",
        "vm-images/build.sh TARGET",
        "make test builds what it needs; the rest takes a quarter of an hour",
    ),
    ("vm-images/README.md", "$I/uml/linux", "runs until the guest ends; tests/lab/guest.rs boots by it"),
    ("vm-images/README.md", "qemu-system-x86_64", "the same"),
    ("vm-images/README.md", "qemu-system-x86_64", "the same"),
    ("vm-images/README.md", "qemu-system-x86_64", "the same"),
];

struct Block {
    page: String,
    line: usize,
    kind: String,
    text: String,
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(page: &str) -> String {
    fs::read_to_string(project(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// Every page that an operator reads.
fn pages() -> Vec<String> {
    let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "vm-images/README.md"];
    let docs = fs::read_dir(project("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.map(|name| format!("docs/{}", name.to_str().unwrap()));
    let mut pages: Vec<String> =
        top.map(str::to_owned).into_iter().chain(docs.filter(|page| page.ends_with(".md"))).collect();
    pages.sort();
    pages
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut found, mut open): (Vec<Block>, _) = (Vec::new(), false);
    let mut before = "";
    let text = read(page);
    for (at, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(kind), false) => {
                let (page, kind) = (page.to_owned(), kind.to_owned());
                found.push(Block { page, line: at + 1, kind, text: String::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => {
                let block = found.last_mut().unwrap();
                block.text += line;
                block.text.push('\n');
            }
            (None, false) => {
                let indented = line.starts_with("    ") && before.is_empty();
                assert!(!indented, "{page}:{}: an indented block: say in a fence what it is", at + 1);
            }
        }
        before = line;
    }
    assert!(!open, "{page}: a fence that does not end");
    found
}

/// Why a block is not run, if it is in the list.
fn not_run(block: &Block) -> Option<&'static str> {
    let listed = NOT_RUN.iter().find(|(page, start, _)| *page == block.page && block.text.starts_with(start));
    listed.map(|(_, _, why)| *why)
}

fn takes_systemd(block: &Block) -> bool {
    TAKE_SYSTEMD.iter().any(|(page, start)| *page == block.page && block.text.starts_with(start))
}

#[test]
fn every_block_of_every_page_is_run_read_or_in_a_list_with_the_reason() {
    let (mut listed, mut with_systemd) = (0, 0);
    for block in pages().iter().flat_map(|page| blocks(page)) {
        let at = format!("{}:{}", block.page, block.line);
        let (here, elsewhere) =
            (HERE.contains(&block.page.as_str()), ON_A_DEBIAN.contains(&block.page.as_str()));
        match block.kind.as_str() {
            "text" | "go" => assert!(!block.text.contains("guestnet vm "), "{at}: it has commands"),
            "toml" => {
                let read = Config::from_parts(Some(&block.text), |_| None);
                assert!(read.is_ok(), "{at}: {}", read.unwrap_err());
            }
            "sh" | "console" | "sh guest" if not_run(&block).is_some() => listed += 1,
            "sh" if takes_systemd(&block) => {
                assert!(elsewhere, "{at}: nobody runs it");
                with_systemd += 1;
            }
            "sh" => assert!(here || elsewhere, "{at}: nobody runs it: add the page to HERE, or say why not"),
            "console" | "sh guest" => assert!(here, "{at}: nobody runs it: add the page to HERE"),
            other => panic!("{at}: {other:?} is no kind of block that is known here"),
        }
    }
    assert_eq!(with_systemd, TAKE_SYSTEMD.len(), "the list has blocks that are not there any more");
    assert_eq!(listed, NOT_RUN.len(), "the list has blocks that are not there any more");
}

/// The commands as a reader goes on after each: doctor ends with 1 where it finds something, which is no failure of it.
pub(crate) fn as_read(commands: &str) -> String {
    let line = |line: &str| match line.starts_with("guestnet doctor") {
        true => format!("{line} || [ $? -eq 1 ]\n"),
        false => format!("{line}\n"),
    };
    commands.lines().map(line).collect()
}

/// A page's commands, in its order, in a folder of their own on a host where guestnet runs.
struct Reader<'lab> {
    lab: &'lab Lab,
    daemon: Daemon<'lab>,
    here: PathBuf,
    path: String,
}

impl<'lab> Reader<'lab> {
    fn new(lab: &'lab Lab, networks: &str) -> Self {
        let daemon = Daemon::start_with(lab, networks);
        let (here, own) = (lab.directory().join("here"), lab.directory().join("own-bin"));
        for folder in [&here.join("rootfs/bin"), &own] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(here.join("rootfs/bin/busybox"), "").unwrap();
        // The lab's host is root already, and a machine may have no sudo.
        let sudo = own.join("sudo");
        fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").unwrap();
        fs::set_permissions(&sudo, fs::Permissions::from_mode(0o755)).unwrap();
        // Where the pages have it.
        let socket = daemon.socket().to_str().unwrap();
        lab.on_host(
            "sh",
            &["-ec", &format!("mkdir -p /run/guestnet; ln -s {socket} /run/guestnet/guestnet.sock")],
        );
        let binaries = guestnet_binary().parent().unwrap().to_owned();
        let path = format!("{}:{}:{}", own.display(), binaries.display(), std::env::var("PATH").unwrap());
        Self { lab, daemon, here, path }
    }

    /// What the commands print; they have to succeed.
    fn run(&self, at: &str, commands: &str) -> String {
        let mut shell = self.lab.host_command("bash");
        let commands = as_read(commands);
        shell.args(["-euo", "pipefail", "-c", &format!("cd {}\n{commands}", self.here.display())]);
        let output = shell.env("PATH", &self.path).output().unwrap();
        assert!(output.status.success(), "{at}: {commands}{}\n{}", text(&output), self.daemon.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// All of a page but what is inside a guest.
    fn page(&self, page: &str) {
        self.page_with(page, |_| ());
    }

    /// The same, with something to do before each block.
    fn page_with(&self, page: &str, mut before: impl FnMut(&Block)) {
        for block in blocks(page) {
            let at = format!("{page}:{}", block.line);
            before(&block);
            match block.kind.as_str() {
                "sh" if not_run(&block).is_none() && !takes_systemd(&block) => {
                    drop(self.run(&at, &block.text))
                }
                "console" => self.console(&at, &block.text),
                _ => {}
            }
        }
    }

    fn console(&self, at: &str, block: &str) {
        let mut commands: Vec<(String, Vec<&str>)> = Vec::new();
        for line in block.lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.to_owned(), Vec::new())),
                // The prompt of a line that is not over.
                (None, Some((command, _))) if line.starts_with("> ") => *command += &line[1..],
                (None, Some((_, printed))) => printed.push(line),
                (None, None) => panic!("{at}: {line:?} before a command"),
            }
        }
        for (command, mut expected) in commands {
            let printed = self.run(at, &command);
            expected.truncate(expected.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1));
            let (expected, lines) = (like(&expected), like(&printed.lines().collect::<Vec<_>>()));
            assert!(
                fits(&expected, &lines),
                "{at}: {command}\nprinted:\n{printed}\nas {lines:#?}\nnot {expected:#?}"
            );
        }
    }
}

/// Whether `printed` is `expected`, in which a line `…` stands for any lines.
fn fits(expected: &[String], printed: &[String]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((any, rest)) if any == "…" => (0..=printed.len()).any(|at| fits(rest, &printed[at..])),
        Some((line, rest)) => printed.first() == Some(line) && fits(rest, &printed[1..]),
    }
}

/// Checks of doctor whose outcome is this machine's.
const OF_THE_MACHINE: [&str; 5] = ["tun", "kvm", "br_netfilter", "conntrack", "clock"];

/// Lines without what differs from run to run: times, widths of columns, figures that move, what doctor says of the machine.
fn like(lines: &[&str]) -> Vec<String> {
    let mut like: Vec<String> = Vec::new();
    let mut of_the_machine = false;
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_time =
            |word: &str| word.len() == 20 && word.ends_with('Z') && word[..4].parse::<u16>().is_ok();
        let checked = ["ok", "warning", "problem", "unknown"].contains(words.first().unwrap_or(&""));
        if checked {
            of_the_machine = words.get(1).is_some_and(|check| OF_THE_MACHINE.contains(check));
        } else if of_the_machine && line.starts_with("   ") {
            continue;
        }
        let moves = line.contains("running for")
            || line.contains(" ok, ")
            || line.contains("bit/s")
            || line.starts_with("DHCP ")
            || line.starts_with("DNS ")
            || line.starts_with("guestnet_") && (line.contains("_sum ") || line.contains("_bytes_total"));
        let word = |word: &&str| match word {
            word if is_time(word) => "TIME".to_owned(),
            word if moves && word.ends_with("bit/s") => "bit/s".to_owned(),
            word if moves && word.starts_with(|c: char| c.is_ascii_digit()) => "N".to_owned(),
            word => (*word).to_owned(),
        };
        like.push(match (checked && of_the_machine, words.get(1)) {
            (true, Some(check)) => (*check).to_owned(),
            _ => words.iter().map(word).collect::<Vec<_>>().join(" "),
        });
    }
    like
}

/// A guest that has asked for its lease and for a name; what its kernel runs goes on until it is dropped.
struct Busy {
    guest: TapGuest,
    running: Vec<Child>,
}

impl Busy {
    fn new(lab: &Lab, daemon: &Daemon<'_>, vm_id: &str) -> Self {
        let guest = TapGuest::attach(lab, &daemon.json(&["vm", "show", vm_id]));
        guest.run("busybox", &["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true"]);
        guest.run("busybox", &["nslookup", WEB_NAME, "10.100.0.1"]);
        Self { guest, running: Vec::new() }
    }

    fn runs(&mut self, program: &str, arguments: &[&str]) {
        let mut command = self.guest.namespace.command(program);
        self.running.push(command.args(arguments).stdout(Stdio::null()).spawn().unwrap());
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn the_commands_of_the_readme_print_what_it_shows() {
    let lab = Lab::new();
    let reader = Reader::new(&lab, "");
    let mut guests = Vec::new();
    reader.page_with("README.md", |block| {
        // Between making the VMs and looking at them, as the page says: two boot, one sends much and one little.
        if !block.text.starts_with("$ sudo guestnet status") {
            return;
        }
        let [mut web, mut db] = ["web-1", "db-1"].map(|vm_id| Busy::new(&lab, &reader.daemon, vm_id));
        web.runs("busybox", &["ping", "-i", "0.01", "-s", "1400", WEB]);
        let asks = format!("while sleep 0.2; do busybox nslookup {WEB_NAME} 10.100.0.1; done");
        web.runs("sh", &["-c", &asks]);
        db.runs("busybox", &["ping", "-i", "0.1", WEB]);
        guests.extend([web, db]);
    });
    assert_eq!(guests.len(), 2);
}

#[test]
fn the_commands_of_the_quick_start_work_once_the_service_runs() {
    let lab = Lab::new();
    Reader::new(&lab, "").page("docs/quick-start.md");
}

#[test]
fn the_commands_of_operations_and_troubleshooting_work() {
    let lab = Lab::new();
    let reader = Reader::new(&lab, "");
    reader.daemon.guestnet(&["vm", "create", "web-1", "web-2"]);
    reader.page("docs/operations.md");
    reader.page("docs/troubleshooting.md");
}

#[test]
fn the_commands_of_the_dhcp_page_work_on_the_network_that_it_configures() {
    let lab = Lab::new();
    lab.on_host("ip", &["link", "add", "virbr0", "type", "bridge"]);
    lab.on_host("ip", &["addr", "add", "192.168.122.1/24", "dev", "virbr0"]);
    lab.on_host("ip", &["link", "set", "virbr0", "up"]);
    let external = blocks("docs/dhcp.md").into_iter().find(|block| block.kind == "toml").unwrap().text;
    let reader = Reader::new(&lab, &format!("[[network]]\npool_size = 8\n{external}"));
    reader.daemon.guestnet(&["vm", "create", "web-1"]);
    reader.page("docs/dhcp.md");
    let left = reader.daemon.guestnet(&["reservation", "list"]);
    assert!(left.contains("192.168.122.12") && !left.contains("192.168.122.11"), "{left}");
}

#[test]
fn the_commands_of_guest_configuration_work_on_the_host_and_in_a_guest() {
    let lab = Lab::new();
    let reader = Reader::new(&lab, "[[network]]\npool_size = 8\nmetadata = true\n");
    let vm = reader.daemon.json(&["vm", "create", "web-1"]);
    reader.page("docs/guest-configuration.md");
    let guest = TapGuest::attach(&lab, &vm);
    let inside: Vec<Block> =
        blocks("docs/guest-configuration.md").into_iter().filter(|block| block.kind == "sh guest").collect();
    assert_eq!(inside.len(), 1);
    for block in inside {
        assert!(guest.run("bash", &["-euc", &block.text]).contains("instance-id"), "{}", block.text);
    }
}

/// What follows each `start` in the pages, up to the next byte that is none of a name.
fn named<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let end = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    text.split(start).skip(1).map(move |rest| rest.split(end).next().unwrap())
}

#[test]
fn benchmarks_and_make_targets_that_pages_name_are_there() {
    let bench = guestnet_binary().parent().unwrap().join("examples/bench");
    let usage = std::process::Command::new(&bench).arg("--help").output();
    let usage = text(&usage.unwrap_or_else(|error| panic!("{}: {error}", bench.display())));
    let known: Vec<&str> = usage.trim().rsplit_once(": ").unwrap().1.split(", ").collect();
    let makefile = read("Makefile");
    for page in pages() {
        let page_text = read(&page);
        for name in named(&page_text, "bench/run ").filter(|name| !["NAME", ""].contains(name)) {
            assert!(known.contains(&name), "{page}: bench/run {name}; there are {known:?}");
        }
        for target in named(&page_text, "`make ") {
            assert!(
                makefile.contains(&format!("\n{target}: ")) || makefile.contains(&format!("\n{target}:\n")),
                "{page}: make {target}"
            );
        }
    }
}
