//! The programs that read what guestnet generates: a Debian root (vm-images, `validators`) entered in a guest's namespace.
//! Each entry sees the root as it was made: what a program writes there goes with it.

use std::path::Path;
use std::process::Output;

use super::debian::SCRATCH_ROOT;
use super::guest::image;
use super::{Lab, Namespace, text};

const ENTER: &str = r#"
mount -t sysfs -o ro sysfs sys
mount -t tmpfs run run
mount --bind /dev dev
mkdir given
mount --bind "$2" given
hostname unset
exec chroot . sh -ec "cd /given; $3""#;

/// Runs a script of `sh -e` in the root, in the folder `given`; it has to succeed. What it printed.
pub fn ask(lab: &Lab, namespace: &Namespace, given: &Path, script: &str) -> String {
    let output = try_ask(lab, namespace, given, script);
    assert!(output.status.success(), "{script}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn try_ask(lab: &Lab, namespace: &Namespace, given: &Path, script: &str) -> Output {
    let scratch = tempfile::tempdir_in(lab.directory()).expect("a directory");
    let root = image("validators").canonicalize().expect("the root's path");
    namespace
        .command("unshare")
        .args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-c"])
        .arg(format!("{SCRATCH_ROOT}{ENTER}"))
        .args([&root, scratch.path(), given])
        .arg(script)
        .output()
        .expect("unshare")
}
