use super::Reading;

/// What one VM has used, from what the kernel has counted on the devices it has had: totals that begin at 0 with the VM
/// and never go back, whatever becomes of the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// Index of the device that was read last; `None` before the first reading of one that is yet to be made.
    device: Option<u32>,
    /// Total = counted on the device + this, modulo 2^64: what earlier devices had counted, less what this one had counted
    /// for an earlier VM.
    offset: Reading,
    total: Reading,
}

impl Account {
    /// Of a VM that takes over a device with `counted` on it, which is not this VM's. On a device that is yet to be made
    /// all that is counted is this VM's: `default`.
    pub fn on(device: u32, counted: Reading) -> Self {
        Self {
            device: Some(device),
            offset: Reading(counted.0.map(u64::wrapping_neg)),
            total: Reading::default(),
        }
    }

    pub fn device(&self) -> Option<u32> {
        self.device
    }

    pub fn total(&self) -> Reading {
        self.total
    }

    /// Whether `written`, an earlier state of it, comes to the same totals by what the device counts from here on.
    pub fn counts_as(&self, written: &Self) -> bool {
        self.offset == written.offset
    }

    /// Adds what `device` has counted since it was read last.
    pub fn read(&mut self, device: u32, counted: Reading) {
        if self.device.is_some_and(|before| before != device) {
            self.device_is_gone();
        }
        self.device = Some(device);
        for ((counted, offset), total) in counted.0.into_iter().zip(&mut self.offset.0).zip(&mut self.total.0)
        {
            // It went back, below where this account began perhaps: it has begun again.
            if counted.wrapping_add(*offset).cast_signed() < total.cast_signed() {
                *offset = *total;
            }
            *total = counted.wrapping_add(*offset);
        }
    }

    /// What was counted stays counted; a device in its place begins at 0.
    pub fn device_is_gone(&mut self) {
        self.device = None;
        self.offset = self.total;
    }

    /// As the store keeps it: the device, 0 for none, and offset and total as little-endian numbers.
    pub fn to_parts(&self) -> (u32, Vec<u8>) {
        let numbers = self.offset.0.iter().chain(&self.total.0);
        (self.device.unwrap_or_default(), numbers.flat_map(|number| number.to_le_bytes()).collect())
    }

    /// `None` when these are not the parts of an account.
    pub fn from_parts(device: u32, numbers: &[u8]) -> Option<Self> {
        let (numbers, rest) = numbers.as_chunks::<8>();
        let (offset, total) = numbers.split_at_checked(Reading::LEN)?;
        let reading = |numbers: &[[u8; 8]]| -> Option<Reading> {
            Some(Reading(<[[u8; 8]; Reading::LEN]>::try_from(numbers).ok()?.map(u64::from_le_bytes)))
        };
        let device = (device != 0).then_some(device);
        let account = Self { device, offset: reading(offset)?, total: reading(total)? };
        rest.is_empty().then_some(account)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Counter, Counters};

    fn all(number: u64) -> Reading {
        Reading([number; Reading::LEN])
    }

    #[test]
    fn a_vm_does_not_pay_for_the_one_that_had_its_slot_before() {
        let mut account = Account::on(7, all(1_000));
        assert_eq!(account.total(), all(0));
        account.read(7, all(1_000));
        assert_eq!(account.total(), all(0));
        account.read(7, all(1_500));
        assert_eq!(account.total(), all(500));
    }

    #[test]
    fn what_was_counted_on_a_device_that_is_gone_stays_counted() {
        let mut account = Account::on(7, all(1_000));
        account.read(7, all(1_500));
        // The new device has counted more than the old one had already: only its index tells them apart.
        account.read(9, all(2_000));
        assert_eq!(account.total(), all(2_500));
        account.read(9, all(2_001));
        assert_eq!(account.total(), all(2_501));
    }

    #[test]
    fn a_new_limit_that_counts_from_the_start_takes_nothing_back() {
        let mut account = Account::default();
        let mut counted = all(100);
        account.read(7, counted);
        counted.0[Counter::RxLimited as usize] = 3;
        account.read(7, counted);
        assert_eq!(Counters::from(account.total()).rx_dropped, 100 + 100 + 3);
        assert_eq!(account.total()[Counter::RxBytes], 100);
    }

    #[test]
    fn a_counter_that_begins_again_below_where_the_account_began_counts_from_there() {
        let mut account = Account::on(1, all(77));
        account.read(1, all(0));
        assert_eq!(account.total(), all(0));
        account.read(1, all(5));
        assert_eq!(account.total(), all(5));
        account.read(1, all(2));
        assert_eq!(account.total(), all(7));
    }

    proptest! {
        #[test]
        fn totals_never_go_back_and_survive_the_store(
            readings in prop::collection::vec((1_u32..4, prop::array::uniform9(0_u64..1 << 60)), 0..8),
        ) {
            let mut account = Account::on(1, all(77));
            for (device, counted) in readings {
                let before = account.total();
                account.read(device, Reading(counted));
                let mut counts = account.total().0.into_iter().zip(before.0).zip(counted);
                prop_assert!(counts.all(|((after, before), counted)| (before..=before + counted).contains(&after)));
                let (device, numbers) = account.to_parts();
                prop_assert_eq!(Account::from_parts(device, &numbers), Some(account.clone()));
                prop_assert_eq!(Account::from_parts(device, &numbers[1..]), None);
            }
        }
    }
}
