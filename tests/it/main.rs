//! The integration tests: one binary, every scenario in a lab of its own (`tests/lab`), real kernels on real TAPs.
//!
//! `make test-guests` runs those that need images of minutes: `booted` boots whole Debians, `validators` ask the programs
//! that read guest configuration, `package` installs the Debian package.
#![allow(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "not shipped"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod api;
mod attributes;
mod bad_input;
mod bad_state;
mod batch;
mod booted;
mod consistent;
mod crash;
mod demo;
mod dhcp;
mod dns;
mod docs;
mod drift;
mod durable;
mod faults;
mod first_guest;
mod garbage;
mod guest_config;
mod in_use;
mod inventory;
mod killed_calls;
mod kills;
mod limits;
mod meanwhile;
mod metadata;
mod needs_kernel;
mod networks;
mod operate;
mod package;
mod plumbing;
mod restart;
mod scale;
mod slots;
mod stats;
mod storm;
mod tap;
mod validators;
mod walls;
