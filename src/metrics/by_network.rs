//! What the guests of each network have sent and received since the service began: a counter that only grows, though VMs come and
//! go and begin anew under the names of others. PURE. In: the VMs' totals of one moment after the other. Out: the networks'.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Counters, NetworkName, VmId};

pub(super) type Totals = [u64; 8];

/// In the order in which they are told.
pub(super) fn totals(counters: &Counters) -> Totals {
    let Counters { rx_bytes, tx_bytes, rx_packets, tx_packets, rx_dropped, tx_dropped, rx_errors, tx_errors } =
        *counters;
    [rx_bytes, tx_bytes, rx_packets, tx_packets, rx_dropped, tx_dropped, rx_errors, tx_errors]
}

#[derive(Debug, Default)]
pub(super) struct ByNetwork {
    networks: BTreeMap<NetworkName, Totals>,
    /// As they were last seen.
    vms: BTreeMap<VmId, (NetworkName, Totals)>,
}

impl ByNetwork {
    /// The VMs that were there before: what they have counted so far was told of by whoever ran before.
    pub(super) fn begin(&mut self, vms: impl Iterator<Item = (VmId, NetworkName, Totals)>) {
        for (vm_id, network, totals) in vms {
            self.networks.entry(network.clone()).or_default();
            self.vms.insert(vm_id, (network, totals));
        }
    }

    /// The networks' totals, the VMs' being those.
    pub(super) fn add(
        &mut self,
        vms: impl Iterator<Item = (VmId, NetworkName, Totals)>,
    ) -> &BTreeMap<NetworkName, Totals> {
        let mut seen = BTreeSet::new();
        for (vm_id, network, totals) in vms {
            let known = self.vms.get(&vm_id).filter(|(of, _)| *of == network).map(|(_, before)| *before);
            // A total that is smaller is that of another VM of this name.
            let begun = known.filter(|before| before.iter().zip(totals).all(|(before, now)| *before <= now));
            let sums = self.networks.entry(network.clone()).or_default();
            for ((sum, now), before) in sums.iter_mut().zip(totals).zip(begun.unwrap_or_default()) {
                *sum = sum.saturating_add(now - before);
            }
            self.vms.insert(vm_id.clone(), (network, totals));
            seen.insert(vm_id);
        }
        self.vms.retain(|vm_id, _| seen.contains(vm_id));
        &self.networks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_networks_counter_grows_though_its_vms_come_and_go() {
        let vm = |id: &str, network: &str, count: u64| -> (VmId, NetworkName, Totals) {
            (id.parse().unwrap(), network.parse().unwrap(), [count; 8])
        };
        let mut by_network = ByNetwork::default();
        by_network.begin([vm("old", "a", 1_000)].into_iter());
        let mut told = |vms: &[(VmId, NetworkName, Totals)]| -> Vec<u64> {
            by_network.add(vms.iter().cloned()).values().map(|totals| totals[0]).collect()
        };
        assert_eq!(told(&[vm("old", "a", 1_000)]), [0]);
        assert_eq!(told(&[vm("old", "a", 1_010), vm("new", "a", 5)]), [15]);
        // One is gone, and stays counted; one of its name begins at nothing.
        assert_eq!(told(&[vm("new", "a", 7)]), [17]);
        assert_eq!(told(&[vm("old", "a", 3), vm("new", "a", 7)]), [20]);
        assert_eq!(told(&[vm("old", "a", 1), vm("new", "b", 4)]), [21, 4]);
        assert_eq!(told(&[]), [21, 4]);
    }
}
