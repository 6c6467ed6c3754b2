//! A Debian with systemd as its first process, in the network of the lab's host: where a package is installed and a unit is
//! started by the programs that do it on a real host. Its root is a scratch layer on the image `systemd-root` (vm-images).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::debian::SCRATCH_ROOT;
use super::guest::image;
use super::{Lab, Namespace, text};

const BOOT: &str = r#"
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs run run
mount -t tmpfs dev dev
mkdir dev/net dev/pts dev/shm given
for device in "null 1 3" "zero 1 5" "random 1 8" "urandom 1 9" "tty 5 0" "net/tun 10 200"; do
  set -- "$1" "$2" $device
  mknod -m 666 "dev/$3" c "$4" "$5"
done
mount --bind "$2" given
hostname system
mkdir old
pivot_root . old
umount -l old
export container=lab
exec /lib/systemd/systemd --show-status=no"#;

pub struct System {
    init: Child,
    pid: u32,
}

impl System {
    /// Boots it; `given` of the lab's directory is /given in there.
    pub fn boot(lab: &Lab) -> Self {
        let scratch = lab.directory().join("system");
        let given = lab.directory().join("given");
        for directory in [&scratch, &given] {
            std::fs::create_dir_all(directory).expect("a directory");
        }
        let root = image("systemd-root").canonicalize().expect("the root's path");
        let mut init = lab
            .host_command("unshare")
            .args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child", "sh", "-c"])
            .arg(format!("{SCRATCH_ROOT}{BOOT}"))
            .args([&root, &scratch, &given])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let children = format!("/proc/{0}/task/{0}/children", init.id());
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut wait = |what: &str| {
            assert!(Instant::now() < deadline, "{what}");
            assert!(init.try_wait().expect("its status").is_none(), "{what}: it has ended");
            std::thread::sleep(Duration::from_millis(50));
        };
        let pid = loop {
            let child = std::fs::read_to_string(&children).unwrap_or_default();
            if let Ok(pid) = child.trim().parse() {
                break pid;
            }
            wait("systemd is not started");
        };
        let is_up = || {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let said =
                (name.trim() == "systemd").then(|| enter(pid, "systemctl").arg("is-system-running").output());
            let said = said.and_then(Result::ok).map(|output| text(&output)).unwrap_or_default();
            // Degraded: a container loads no kernel modules.
            ["running", "degraded"].contains(&said.trim())
        };
        while !is_up() {
            wait("the system does not come up");
        }
        Self { init, pid }
    }

    /// A command that runs in there.
    pub fn command(&self, program: &str) -> Command {
        enter(self.pid, program)
    }

    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().expect("nsenter")
    }

    /// Runs a program; it has to succeed. Its standard output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}\n{}\n{}",
            output.status,
            text(&output),
            text(&self.try_run("journalctl", &["-n", "50", "--no-pager"]))
        );
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    /// The network namespace that is called `name` in there.
    pub fn netns(&self, name: &str) -> Namespace {
        let file: PathBuf = Path::new("/proc").join(self.pid.to_string()).join("root/run/netns").join(name);
        Namespace::of(File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // With its first process all of its namespace ends.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

fn enter(pid: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-m", "-u", "-i", "-n", "-p", "-C", program]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
    command
}
