//! `make demo` cleans up: at its end, when it is interrupted, and when the lab that it kept is ended.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::guestnet_binary;

/// The demo with a folder of its own for what it leaves behind.
struct Demo {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    temporary: tempfile::TempDir,
}

impl Demo {
    fn start(keep: bool) -> Self {
        let program = guestnet_binary().with_file_name("examples").join("demo");
        let temporary = tempfile::tempdir().unwrap();
        let mut command = Command::new(&program);
        command.env("TMPDIR", temporary.path()).env("KEEP", if keep { "1" } else { "0" });
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("{}: {error}: cargo build --examples", program.display());
        });
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, temporary }
    }

    /// What it says up to the line that has `text` in it.
    fn until(&mut self, text: &str) -> String {
        let mut said = String::new();
        while !said.lines().last().unwrap_or_default().contains(text) {
            assert!(self.output.read_line(&mut said).unwrap() > 0, "no {text:?} in:\n{said}");
        }
        said
    }

    /// Nothing of it is left: no file, no process that was started with its folder.
    fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Some(left) = left_of(self.temporary.path()) {
            assert!(Instant::now() < deadline, "left behind: {left}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn left_of(temporary: &Path) -> Option<String> {
    let file = std::fs::read_dir(temporary).unwrap().next().map(|entry| entry.unwrap().path());
    file.map(|path| path.display().to_string()).or_else(|| {
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        processes.map(|process| process.join("environ")).find_map(|environ: PathBuf| {
            let environment = std::fs::read(&environ).unwrap_or_default();
            let of_demo = format!("TMPDIR={}", temporary.display());
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == of_demo.as_bytes())
                .then(|| environ.display().to_string())
        })
    })
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    for keep in [false, true] {
        let mut demo = Demo::start(keep);
        demo.until("waiting for their leases");
        kill(Pid::from_raw(demo.child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(demo.child.wait().unwrap().code(), Some(130));
        demo.assert_clean();
    }
}

#[test]
fn kept_it_goes_on_until_it_is_told_to_end() {
    let mut demo = Demo::start(true);
    let said = demo.until("sudo kill");
    assert!(demo.child.wait().unwrap().success());
    let list = said.lines().find(|line| line.ends_with("vm list")).unwrap();
    let listed = Command::new("sh").args(["-c", &list.replace("sudo ", "")]).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("vm2"), "{}", crate::lab::text(&listed));
    let pid = said.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    demo.assert_clean();
}
