//! `guestnet serve` on the lab's host, and its client.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Lab, guestnet_binary, text};

/// How long a daemon may take to be ready, on a machine that does much else.
const READY: Duration = Duration::from_secs(90);

/// A running daemon; stopped when dropped.
pub struct Daemon<'lab> {
    lab: &'lab Lab,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    /// What it has told systemd until it was ready.
    pub notified: String,
}

/// Where a lab's daemon keeps its things.
pub struct Paths {
    pub config: PathBuf,
    pub socket: PathBuf,
    pub state: PathBuf,
    pub log: PathBuf,
}

impl Paths {
    pub fn of(lab: &Lab) -> Self {
        let directory = lab.directory();
        Self {
            config: directory.join("guestnet.toml"),
            socket: directory.join("guestnet.sock"),
            state: directory.join("state"),
            log: directory.join("guestnet.log"),
        }
    }
}

/// A configuration with the lab's paths, `networks` (TOML) after them; what stands there before a table is of `[api]`. Without
/// a network, the default one with a small pool: many labs run side by side.
pub fn config(lab: &Lab, networks: &str) -> String {
    let paths = Paths::of(lab);
    let small = if networks.contains("[[network]]") { "" } else { "[[network]]\npool_size = 8\n" };
    format!(
        "[state]\ndirectory = {:?}\n\n[api]\nsocket = {:?}\n{networks}\n{small}",
        paths.state, paths.socket
    )
}

/// `guestnet serve` as a command, not yet started, with `networks` as its configuration.
pub fn serve_command(lab: &Lab, networks: &str) -> Command {
    let paths = Paths::of(lab);
    fs::write(&paths.config, config(lab, networks)).expect("the configuration file");
    let mut command = lab.host_command(guestnet_binary());
    command.arg("serve").arg("--config").arg(&paths.config);
    command
}

impl<'lab> Daemon<'lab> {
    /// Starts the daemon with the default network and waits until it says that it is ready.
    pub fn start(lab: &'lab Lab) -> Self {
        Self::start_with(lab, "")
    }

    /// The same with `networks` (TOML) as its networks.
    pub fn start_with(lab: &'lab Lab, networks: &str) -> Self {
        Self::start_with_env(lab, networks, &[])
    }

    /// The same with environment variables.
    pub fn start_with_env(lab: &'lab Lab, networks: &str, variables: &[(&str, &OsStr)]) -> Self {
        Self::try_start(lab, networks, variables).unwrap_or_else(|said| panic!("{said}"))
    }

    /// The same; how it ended, with its log, when it did so before it was ready.
    pub fn try_start(lab: &'lab Lab, networks: &str, variables: &[(&str, &OsStr)]) -> Result<Self, String> {
        let paths = Paths::of(lab);
        let notify_path = lab.directory().join("notify");
        let _ = fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path).expect("a notify socket");
        notify.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let log = fs::OpenOptions::new().create(true).append(true).open(&paths.log).expect("the log file");
        let mut child = serve_command(lab, networks)
            .env("NOTIFY_SOCKET", &notify_path)
            .env("GUESTNET_LOG", std::env::var("GUESTNET_LOG").unwrap_or_else(|_| "guestnet=debug".into()))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starting guestnet");
        let mut buffer = [0; 1024];
        let mut said = String::new();
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            if let Ok(length) = notify.recv(&mut buffer) {
                said += &String::from_utf8_lossy(&buffer[..length]);
            }
            if said.contains("READY=1") {
                return Ok(Self { lab, child, socket: paths.socket, log: paths.log, notified: said });
            }
            if let Some(status) = child.try_wait().expect("the daemon's status") {
                return Err(format!(
                    "guestnet ended with {status} before it was ready:\n{}",
                    read(&paths.log)
                ));
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("guestnet did not get ready in {READY:?}:\n{}", read(&paths.log));
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// `guestnet ARGUMENTS` on the host, against this daemon.
    pub fn client(&self, arguments: &[&str]) -> Output {
        self.client_command(arguments).output().expect("running guestnet")
    }

    pub fn client_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.host_command(guestnet_binary());
        command.args(arguments).env("GUESTNET_SOCKET", &self.socket);
        command
    }

    /// The same; it has to succeed. Its standard output.
    pub fn guestnet(&self, arguments: &[&str]) -> String {
        let output = self.client(arguments);
        assert!(
            output.status.success(),
            "guestnet {arguments:?}: {}\n{}\n{}",
            output.status,
            text(&output),
            self.log()
        );
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    /// The same with `--json`, parsed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let output = self.guestnet(&arguments);
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output}"))
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.terminate()
    }

    /// SIGKILL: what a crash leaves.
    pub fn crash(mut self) {
        self.child.kill().expect("killing the daemon");
        self.child.wait().expect("the daemon's status");
    }

    fn terminate(&mut self) -> std::process::ExitStatus {
        if let Some(status) = self.child.try_wait().expect("the daemon's status") {
            return status;
        }
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("a signal to the daemon");
        for _ in 0..100 {
            if let Some(status) = self.child.try_wait().expect("the daemon's status") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.child.kill();
        panic!("guestnet did not stop in 10 s:\n{}", self.log());
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}", self.log());
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else {
            self.terminate();
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
