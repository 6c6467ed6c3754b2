//! `make demo`: opens a lab, starts guestnet in it, boots two VMs on it and prints what each of them sees. Exit status 0
//! only if all is as it should be. With KEEP=1 the lab stays, and the commands to look around and to end it are printed.
#![allow(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "not shipped"
)]

#[allow(unused_imports, reason = "the tests' part of it")]
mod lab;

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use lab::scenario::{self, Report};
use lab::{Daemon, Lab, Machine, WEB_NAME};

/// Set for the process that keeps the lab while the first one returns to the shell.
const KEEPER: &str = "GUESTNET_DEMO_KEEPER";
/// The keeper's last line.
const KEPT: &str = "---";

fn main() -> ExitCode {
    let interrupted = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    interrupted.thread_block().expect("blocking signals");
    let keep = std::env::var("KEEP").is_ok_and(|value| value == "1");
    if keep && std::env::var_os(KEEPER).is_none() {
        return start_keeper(interrupted);
    }

    let started = Instant::now();
    let lab = Lab::new();
    let directory = lab.directory().to_owned();
    // Daemon, guests and namespaces end with this process; only the directory has to be removed.
    let at_end = move || {
        let _ = std::fs::remove_dir_all(&directory);
    };
    std::thread::spawn(move || {
        let _ = interrupted.wait();
        at_end();
        std::process::exit(130);
    });
    let say = |what: &str| println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    say("a lab: a host, and an internet behind its uplink, in network namespaces");
    let daemon = Daemon::start(&lab);
    say("guestnet serve is ready");
    let vms = scenario::create_vms(&daemon);
    say("two VMs have their networks");
    let machine = Machine::default();
    say(&format!("the VMs run under {machine}"));
    let (guests, reports) = scenario::run(&lab, machine, &vms, say);
    print_table(&reports);

    let problems: Vec<String> = reports.iter().flat_map(Report::problems).collect();
    for problem in &problems {
        println!("FAILED {problem}");
    }
    if !problems.is_empty() {
        return ExitCode::FAILURE;
    }
    println!("All of it happened, in {:.0} s.", started.elapsed().as_secs_f64());
    if keep {
        print_commands(&daemon, &vms);
        detach();
        // The signal's thread ends the process.
        loop {
            std::thread::park();
        }
    }
    drop(guests);
    ExitCode::SUCCESS
}

fn print_table(reports: &[Report]) {
    let row = |what: &str, cell: &dyn Fn(&Report) -> String| {
        let cells: Vec<String> = reports.iter().map(|report| format!("{:<40}", cell(report))).collect();
        println!("  {what:<24}{}", cells.join(" ").trim_end());
    };
    let or = |result: &Result<String, String>| result.clone().unwrap_or_else(|problem| problem);
    println!();
    row("", &|report| report.vm_id.clone());
    row("MAC", &|report| report.mac.clone());
    row("address by DHCP", &|report| or(&report.lease));
    row("power-on to lease", &|report| {
        format!("{:.1} s, {} DISCOVER", report.power_on_to_lease.as_secs_f64(), report.tries)
    });
    row(WEB_NAME, &|report| or(&report.resolved));
    row("web page through NAT", &|report| or(&report.page));
    row("can reach the other VM", &|report| match &report.isolated {
        Ok(()) => "no".into(),
        Err(problem) => problem.clone(),
    });
    println!();
}

fn print_commands(daemon: &Daemon<'_>, vms: &[serde_json::Value; 2]) {
    let enter = format!("sudo nsenter -t {} -n -m", daemon.pid());
    let guestnet = lab::guestnet_binary();
    let address = vms[0]["ip_address"].as_str().unwrap_or_default();
    println!("\nThe lab goes on. To look around on its host:");
    println!("  {enter} {} --socket {} vm list", guestnet.display(), daemon.socket().display());
    println!("  {enter} {} --socket {} lease list", guestnet.display(), daemon.socket().display());
    println!("  {enter} iptables -t nat -L POSTROUTING -n -v");
    println!("  {enter} ip netns list");
    println!("  {enter} ping -c 3 {address}");
    println!("To end it and clean up:\n  sudo kill {}", std::process::id());
    println!("{KEPT}");
}

/// Starts this program again in a session of its own, shows what it says, and returns once the lab stands. Interrupted
/// before that, it ends the keeper too.
#[allow(clippy::zombie_processes, reason = "the keeper outlives this process")]
fn start_keeper(interrupted: SigSet) -> ExitCode {
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    command.env(KEEPER, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: setsid is async-signal-safe and changes the child only.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    let mut keeper = command.spawn().expect("starting the keeper");
    let pid = Pid::from_raw(keeper.id() as i32);
    std::thread::spawn(move || {
        let _ = interrupted.wait();
        let _ = kill(pid, Signal::SIGTERM);
        std::process::exit(130);
    });
    let output = BufReader::new(keeper.stdout.take().expect("the keeper's output"));
    for line in output.lines().map_while(Result::ok) {
        if line == KEPT {
            return ExitCode::SUCCESS;
        }
        println!("{line}");
    }
    // Interrupted, it has ended as this process does: whichever of the two threads is first.
    let code = keeper.wait().ok().and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Lets go of the output, so that a pipe that the demo was started into ends.
fn detach() {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").expect("/dev/null");
    for stream in [1, 2] {
        // SAFETY: both are open descriptors of this process; the old one is replaced by /dev/null.
        unsafe { libc::dup2(null.as_raw_fd(), stream) };
    }
}
