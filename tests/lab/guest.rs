//! Real guests: a Linux kernel booted on a VM's TAP, driven over its console (vm-images/README.md, "The console").

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Lab;

/// What runs the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// User-Mode Linux: a kernel as a process, at native speed.
    UserMode,
    /// QEMU with Debian's cloud kernel and virtio-net.
    Cloud(Accelerator),
    /// QEMU's microvm machine with our own small kernel, which reads `ip=` (`make images`, minutes to build).
    Microvm(Accelerator),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// KVM where it can really boot a kernel, else software emulation. An openable /dev/kvm is no proof, so a kernel is
    /// booted; the answer is kept until the machine's next boot.
    pub fn best() -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's id");
        let answer = images().join("kvm");
        let kept = std::fs::read_to_string(&answer).unwrap_or_default();
        let works = match kept.strip_prefix(&boot_id) {
            Some(kept) => kept == "yes",
            None => {
                let works = std::fs::File::open("/dev/kvm").is_ok() && kvm_boots();
                // Only to be faster the next time.
                let _ = std::fs::write(&answer, format!("{boot_id}{}", if works { "yes" } else { "no" }));
                works
            }
        };
        if works { Self::Kvm } else { Self::Emulation }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg",
        }
    }
}

impl Default for Machine {
    /// What tests boot. User-Mode Linux would be faster, but one in a hundred of its boots here ends at init's first fork
    /// ("Resource temporarily unavailable"), before anything of ours is involved.
    fn default() -> Self {
        Self::Cloud(Accelerator::best())
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UserMode => f.write_str("User-Mode Linux"),
            Self::Cloud(Accelerator::Kvm) | Self::Microvm(Accelerator::Kvm) => f.write_str("QEMU with KVM"),
            Self::Cloud(Accelerator::Emulation) | Self::Microvm(Accelerator::Emulation) => {
                f.write_str("QEMU, emulated: KVM cannot boot a kernel here")
            }
        }
    }
}

/// A guest to boot: the VM's network as `guestnet vm create --json` gave it, and arguments for its kernel.
pub struct Boot<'a> {
    pub machine: Machine,
    pub network: &'a Value,
    pub kernel_arguments: &'a str,
}

/// A line `GUESTNET event key=value …` of the guest, and when it came.
#[derive(Debug, Clone)]
pub struct Event {
    pub at: Duration,
    pub fields: HashMap<String, String>,
}

impl Event {
    pub fn get(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }
}

/// A booted guest; switched off when dropped.
pub struct Guest {
    name: String,
    child: Child,
    console: ChildStdin,
    lines: Receiver<(Instant, String)>,
    seen: Vec<String>,
    powered_on: Instant,
    commands: u32,
    limit: Duration,
}

/// Long enough for an emulated boot on a busy machine; a boot that takes this long has failed.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

impl Guest {
    /// Powers the VM on inside its netns, as a jailed VMM would.
    pub fn boot(lab: &Lab, boot: &Boot<'_>) -> Self {
        let field =
            |name: &str| boot.network[name].as_str().unwrap_or_else(|| panic!("no {name}: {}", boot.network));
        let namespace = lab.host.enter(&Path::new("/run/netns").join(field("namespace")));
        let command = match boot.machine {
            Machine::UserMode => {
                let program = image("uml/linux");
                let mut command = namespace.command("unshare");
                // A pid namespace of its own: the kernel's helper processes go with it, whatever ends it. The inner one is
                // its init: the kernel must not be handed orphans that it does not know.
                command
                    .args(["--pid", "--fork", "--kill-child", "--", "unshare", "--fork", "--"])
                    .arg(program);
                user_mode(&mut command, lab.directory(), field("tap_device"), field("mac_address"));
                command.args(boot.kernel_arguments.split_whitespace());
                command
            }
            Machine::Cloud(accelerator) => {
                let mut command = namespace.command("qemu-system-x86_64");
                cloud(&mut command, accelerator, boot.kernel_arguments);
                virtio_net(&mut command, "virtio-net-pci", field("tap_device"), field("mac_address"));
                command
            }
            Machine::Microvm(accelerator) => {
                let mut command = namespace.command("qemu-system-x86_64");
                microvm(&mut command, accelerator, boot.kernel_arguments);
                virtio_net(&mut command, "virtio-net-device", field("tap_device"), field("mac_address"));
                command
            }
        };
        Self::power_on(lab, field("vm_id"), command, BOOT_LIMIT)
    }

    /// Starts a VMM, its standard input and output the guest's console; `limit` is for each event of its boot.
    pub(super) fn power_on(lab: &Lab, name: &str, mut command: Command, limit: Duration) -> Self {
        let errors = std::fs::File::create(lab.directory().join(format!("{name}.vmm")));
        let powered_on = Instant::now();
        // A process group of its own, to find its processes by.
        let mut child = command
            .process_group(0)
            .env("HOME", lab.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.expect("a log for the VMM"))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let console = child.stdin.take().expect("the console's input");
        let output = BufReader::new(child.stdout.take().expect("the console's output"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let name = name.to_owned();
        Self { name, child, console, lines, seen: Vec::new(), powered_on, commands: 0, limit }
    }

    /// Waits for `GUESTNET event …`; panics with the console if it does not come.
    pub fn event(&mut self, event: &str) -> Event {
        self.either(&[event]).1
    }

    /// Waits for the first of some events: which, and what it says.
    pub fn either(&mut self, events: &[&str]) -> (String, Event) {
        let wanted = |line: &str| {
            let mut words = line.split("GUESTNET ").nth(1)?.split_whitespace();
            words.next().filter(|event| events.contains(event)).map(ToOwned::to_owned)
        };
        let (at, line) = self.line_that(self.limit, |line| wanted(line).is_some());
        let fields = line
            .split_whitespace()
            .filter_map(|field| field.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let event = wanted(&line).expect("the event that was waited for");
        (event, Event { at: at - self.powered_on, fields })
    }

    /// Runs a shell command in the guest: whether it succeeded, and what it printed.
    pub fn run(&mut self, command: &str) -> (bool, String) {
        self.commands += 1;
        let id = self.commands;
        writeln!(self.console, "{id} {command}").expect("the guest's console");
        let (output, end) = (format!("{id}| "), format!("{id}= "));
        let mut printed = String::new();
        loop {
            let (_, line) =
                self.line_that(self.limit / 2, |line| line.starts_with(&output) || line.starts_with(&end));
            if let Some(text) = line.strip_prefix(&output) {
                printed += text;
                printed.push('\n');
            } else {
                return (line[end.len()..].trim() == "0", printed);
            }
        }
    }

    /// The same; it has to succeed.
    pub fn succeed(&mut self, command: &str) -> String {
        let (success, printed) = self.run(command);
        assert!(success, "{}: {command} failed:\n{printed}\n{}", self.name, self.console_text());
        printed
    }

    fn line_that(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> (Instant, String) {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, line)) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return (at, line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!(
                        "{}: nothing awaited came in {limit:?}; its console:\n{}",
                        self.name,
                        self.console_text()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{}: the guest ended; its console:\n{}", self.name, self.console_text())
                }
            }
        }
    }

    /// The console so far, and how the VMM's processes stand: what there is to say of a guest that does not go on.
    fn console_text(&self) -> String {
        let pid = self.child.id().to_string();
        let processes =
            Command::new("ps").args(["-o", "pid,ppid,stat,wchan:32,time,comm", "-g", &pid]).output();
        let processes = processes.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        format!("{}\n{}", self.seen.join("\n"), processes.unwrap_or_default())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // As a power cut: what a guest leaves behind must not depend on its good will.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn user_mode(command: &mut Command, directory: &Path, tap: &str, mac: &str) {
    command
        .arg("mem=64M")
        .arg(format!("initrd={}", image("initramfs.cpio.gz").display()))
        .arg(format!("uml_dir={}/", directory.display()))
        .args(["quiet", "con=null", "con0=fd:0,fd:1"])
        .arg(format!("vec0:transport=tap,ifname={tap},mac={mac},depth=128"));
}

fn cloud(command: &mut Command, accelerator: Accelerator, kernel_arguments: &str) {
    qemu(command, "q35", accelerator, 192);
    command.arg("-kernel").arg(image("cloud/vmlinuz")).arg("-initrd").arg(image("cloud/initrd.gz"));
    command.arg("-append").arg(format!("console=ttyS0 quiet loglevel=3 panic=-1 {kernel_arguments}"));
}

fn microvm(command: &mut Command, accelerator: Accelerator, kernel_arguments: &str) {
    qemu(command, "microvm,acpi=off", accelerator, 96);
    command.arg("-kernel").arg(image("kernel/bzImage")).arg("-initrd").arg(image("initramfs.cpio.gz"));
    command
        .arg("-append")
        .arg(format!("console=ttyS0 quiet loglevel=3 reboot=t panic=-1 {kernel_arguments}"));
}

pub(super) fn qemu(command: &mut Command, machine: &str, accelerator: Accelerator, megabytes: u32) {
    command
        .args(["-M", machine, "-accel", accelerator.name(), "-cpu", "max", "-m", &megabytes.to_string()])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
}

pub(super) fn virtio_net(command: &mut Command, device: &str, tap: &str, mac: &str) {
    command
        .args(["-netdev", &format!("tap,id=net0,ifname={tap},script=no,downscript=no")])
        .args(["-device", &format!("{device},netdev=net0,mac={mac}")]);
}

/// Whether a kernel gets to its userland under KVM. Where KVM works that takes a second; where it does not, some kinds say
/// nothing and spin. The PVM kind runs only kernels made for it.
fn kvm_boots() -> bool {
    if Path::new("/sys/module/kvm_pvm").exists() {
        return false;
    }
    let mut command = Command::new("timeout");
    command.args(["5", "qemu-system-x86_64"]);
    cloud(&mut command, Accelerator::Kvm, "guestnet.net=none");
    command.args(["-nic", "none"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let console = BufReader::new(child.stdout.take().expect("the console's output"));
    let booted = console
        .split(b'\n')
        .map_while(Result::ok)
        .any(|line| String::from_utf8_lossy(&line).contains("GUESTNET boot"));
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    );
    let _ = child.wait();
    booted
}

/// An image made by vm-images/build.sh, in its cache.
pub(super) fn image(name: &str) -> PathBuf {
    let path = images().join(name);
    assert!(path.exists(), "{} is not there: vm-images/build.sh makes it", path.display());
    path
}

fn images() -> PathBuf {
    std::env::var_os("GUESTNET_IMAGES").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache");
        cache.unwrap_or_else(home).join("guestnet/images")
    })
}
