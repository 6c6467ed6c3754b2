//! What operators and callers see of the service beside VMs' networks themselves.

mod access;
mod api;
mod bounds;
mod capture;
mod doctor;
mod floods;
mod foreign;
mod log;
mod metrics;
mod otlp;
mod service;
mod terminal;
