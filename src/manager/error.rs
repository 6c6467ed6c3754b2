//! Why a VM has not what was asked for.

use std::net::Ipv4Addr;

use crate::bridges::BridgesError;
use crate::guestcfg::Refusal;
use crate::model::{Mac, NetworkName, Subnet, Vm, VmId};
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("there is no network {name}: the configuration has {known}")]
    UnknownNetwork { name: NetworkName, known: String },
    #[error(
        "VM {vm_id} has a network already, with {field} {has}, not {asked}: delete it first or ask for the same"
    )]
    Differs { vm_id: VmId, field: &'static str, has: String, asked: String },
    #[error(
        "burst_kib {burst} limits nothing: without a limit there is no burst; ask for a rate_limit_mbps too"
    )]
    BurstWithoutRate { burst: u32 },
    #[error("mac_address {mac} is taken by VM {by}: choose another or leave it unset")]
    MacTaken { mac: Mac, by: VmId },
    #[error("ip_address {address} is taken by VM {by}: choose another or leave it unset")]
    AddressTaken { address: Ipv4Addr, by: VmId },
    #[error("ip_address {address} cannot be a guest's in {subnet}: {why}")]
    AddressUnusable { address: Ipv4Addr, subnet: Subnet, why: &'static str },
    #[error(
        "ip_address {address}: the kernel still tracks connections of its last guest and does not let go of them ({why}); repeat \
         the call, or leave the address unset"
    )]
    AddressRemembered { address: Ipv4Addr, why: String },
    #[error("network {network} has no free address in {subnet}: {detail}")]
    SubnetFull { network: NetworkName, subnet: Subnet, detail: String },
    #[error(
        "VM {vm_id}, made under another configuration, has no place in this one: {why}; start with the old one and delete \
         the VM first"
    )]
    Homeless { vm_id: VmId, why: String },
    #[error("VM {vm_id} has no network: create it first")]
    NoVm { vm_id: VmId },
    #[error("the user-data is {length} bytes long, {limit} fit")]
    UserDataTooLong { length: usize, limit: usize },
    #[error("user_data: {0}")]
    UserData(Refusal),
    #[error(
        "network {network} has external plumbing, so guestnet makes no devices there: use guestnet reservation add, or name \
         another network"
    )]
    External { network: NetworkName },
    #[error(
        "VM {vm_id} is still running: tap0 of its network is open; end the VM first, then delete its network"
    )]
    TapInUse { vm_id: VmId },
    #[error(transparent)]
    Bridges(BridgesError),
    #[error("guestnet is stopping: repeat the call when it is back")]
    Stopping,
    #[error("the state could not be saved: {0}")]
    Store(#[from] StoreError),
    #[error("looking for what an earlier run left: {0}")]
    Host(String),
    #[error("the network of VM {vm_id}: {what}")]
    Kernel { vm_id: VmId, what: String },
}

pub(super) fn failed(vm: &Vm, errors: &[String]) -> ManagerError {
    ManagerError::Kernel { vm_id: vm.vm_id.clone(), what: errors.join("; then ") }
}
