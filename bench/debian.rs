//! Peers, from Debian's packages.

use std::process::Command;

/// Installs what of `packages` is missing, without starting the services that come with them.
pub fn install(packages: &[&str]) {
    let status = Command::new("packaging/apt-install").args(packages).status();
    let status = status.expect("packaging/apt-install, from the top of the checkout");
    assert!(status.success(), "could not install {}", packages.join(" "));
}
