//! Lists in pages: everything in an order that does not change, and the place of the last that was told as the token. Pure.

use std::net::Ipv4Addr;

use super::wire::FieldError;
use crate::model::{Invalid, NetworkName};

/// One page of a list, and where the next begins.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// Empty after the last.
    pub(super) next_page_token: String,
    pub(super) total_size: u32,
}

/// Of `all`, what comes `after`: `size` of them at most, 0 for all.
pub(super) fn page<T, K: Ord>(
    mut all: Vec<T>,
    place: impl Fn(&T) -> K,
    token: impl Fn(&T) -> String,
    after: Option<K>,
    size: u32,
) -> Page<T> {
    all.sort_by_cached_key(&place);
    let total_size = u32::try_from(all.len()).unwrap_or(u32::MAX);
    if let Some(after) = after {
        all.drain(..all.partition_point(|item| place(item) <= after));
    }
    let most = usize::try_from(size).unwrap_or(usize::MAX);
    let further = most > 0 && all.len() > most;
    if further {
        all.truncate(most);
    }
    let next_page_token = all.last().filter(|_| further).map(token).unwrap_or_default();
    Page { items: all, next_page_token, total_size }
}

/// The place that a token says; none of the first page.
pub(super) fn after<K>(token: &str, read: impl Fn(&str) -> Option<K>) -> Result<Option<K>, FieldError> {
    if token.is_empty() {
        return Ok(None);
    }
    let invalid = || FieldError::new("page_token", Invalid::new(token, "the next_page_token of an answer"));
    read(token).map(Some).ok_or_else(invalid)
}

/// Of what is no VM's: its network, by where that stands in the configuration, and its address.
pub(super) type Address = (usize, Ipv4Addr);

pub(super) fn address_of(networks: &[NetworkName], network: &NetworkName, address: Ipv4Addr) -> Address {
    let at = networks.iter().position(|known| known == network);
    (at.unwrap_or(networks.len()), address)
}

pub(super) fn address_token(network: &NetworkName, address: Ipv4Addr) -> String {
    format!("{network}/{address}")
}

pub(super) fn read_address(networks: &[NetworkName], token: &str) -> Option<Address> {
    let (network, address) = token.split_once('/')?;
    let at = networks.iter().position(|known| known.as_str() == network)?;
    Some((at, address.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pages of `all` by numbers, with `change` between two.
    fn pages(mut all: Vec<u32>, size: u32, change: impl Fn(&mut Vec<u32>)) -> Vec<Vec<u32>> {
        let (mut told, mut token) = (Vec::new(), String::new());
        loop {
            let after = after(&token, |text| text.parse().ok()).unwrap();
            let page = page(all.clone(), |item| *item, u32::to_string, after, size);
            assert_eq!(page.total_size as usize, all.len());
            told.push(page.items);
            if page.next_page_token.is_empty() {
                return told;
            }
            token = page.next_page_token;
            change(&mut all);
        }
    }

    #[test]
    fn pages_are_all_of_a_list_in_order_and_nothing_is_on_two() {
        let as_it_was = |_: &mut Vec<u32>| ();
        assert_eq!(pages(vec![3, 1, 2], 0, as_it_was), [[1, 2, 3]]);
        assert_eq!(pages(vec![3, 1, 2], 2, as_it_was), [vec![1, 2], vec![3]]);
        assert_eq!(pages(vec![3, 1, 2], 3, as_it_was), [[1, 2, 3]]);
        assert_eq!(pages(vec![], 2, as_it_was), [Vec::<u32>::new()]);
        // The last that was told goes, and others come, before and behind it.
        let change = |all: &mut Vec<u32>| {
            all.retain(|item| *item != 2);
            all.extend([0, 7]);
            all.dedup();
        };
        assert_eq!(pages(vec![1, 2, 3, 4], 2, change)[1][..1], [3]);
    }

    #[test]
    fn a_token_of_somebody_elses_making_is_refused() {
        let networks = ["lan".parse().unwrap(), "dmz".parse().unwrap()];
        let read = |token: &str| after(token, |token| read_address(&networks, token));
        assert_eq!(read("").unwrap(), None);
        let address = [10, 9, 0, 7].into();
        assert_eq!(read(&address_token(&networks[1], address)).unwrap(), Some((1, address)));
        assert_eq!(address_of(&networks, &networks[1], address), (1, address));
        for token in ["x", "lan", "lan/x", "nowhere/10.9.0.7"] {
            assert_eq!(read(token).unwrap_err().field, "page_token", "{token}");
        }
    }
}
