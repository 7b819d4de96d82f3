//! Which address a pod gets: pure bookkeeping over one range.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Why there is no address, or no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("pod range {0:?} is not an IPv4 range such as 127.64.0.0/18, of at least 8 addresses")]
    Invalid(String),
    #[error("every address of the pod range {0} is taken")]
    Exhausted(Range),
    #[error("no pod range is set yet")]
    Unset,
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u32,
    prefix: u8,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl std::str::FromStr for Range {
    type Err = Error;

    /// One range; of several divided by commas (dual stack) the first of IPv4.
    fn from_str(text: &str) -> Result<Self, Error> {
        let one = |text: &str| {
            let (address, prefix) = text.trim().split_once('/')?;
            let (address, prefix) = (address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
            if !(8..=29).contains(&prefix) {
                return None;
            }
            Some(Range { base: u32::from(address) & (u32::MAX << (32 - prefix)), prefix })
        };
        text.split(',').find_map(one).ok_or_else(|| Error::Invalid(text.to_owned()))
    }
}

impl Range {
    fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The first address that a pod can have.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 2)
    }
}

/// The addresses of one range: the first two and the last are never given out.
#[derive(Debug, Default)]
pub struct Addresses {
    range: Option<Range>,
    taken: BTreeSet<Ipv4Addr>,
    /// Where to look first: an address that was given back is not reused at once.
    cursor: u32,
}

impl Addresses {
    /// The range in use.
    pub fn range(&self) -> Option<Range> {
        self.range
    }

    /// Sets the range for addresses from now on; those given out stay as they are.
    pub fn set_range(&mut self, range: Range) {
        if self.range != Some(range) {
            self.range = Some(range);
            self.cursor = 0;
        }
    }

    /// Marks an address as in use, whatever the range.
    pub fn take(&mut self, address: Ipv4Addr) {
        self.taken.insert(address);
    }

    /// The next free address.
    pub fn allocate(&mut self) -> Result<Ipv4Addr, Error> {
        let range = self.range.ok_or(Error::Unset)?;
        let usable = range.size() - 3;
        for step in 0..usable {
            let offset = (self.cursor + step) % usable;
            let address = Ipv4Addr::from(range.base + 2 + offset);
            if self.taken.insert(address) {
                self.cursor = (offset + 1) % usable;
                return Ok(address);
            }
        }
        Err(Error::Exhausted(range))
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_and_not_reused_at_once() {
        let mut addresses = Addresses::default();
        assert_eq!(addresses.allocate(), Err(Error::Unset));
        addresses.set_range("127.72.1.0/29".parse().unwrap());
        addresses.take(Ipv4Addr::new(127, 72, 1, 3));
        let got: Vec<u8> = (0..4).map(|_| addresses.allocate().unwrap().octets()[3]).collect();
        assert_eq!(got, [2, 4, 5, 6]);
        assert!(matches!(addresses.allocate(), Err(Error::Exhausted(_))));
        addresses.release(Ipv4Addr::new(127, 72, 1, 2));
        addresses.release(Ipv4Addr::new(127, 72, 1, 5));
        assert_eq!(addresses.allocate().unwrap().octets()[3], 2);
        addresses.release(Ipv4Addr::new(127, 72, 1, 2));
        assert_eq!(addresses.allocate().unwrap().octets()[3], 5);
    }

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!("127.64.3.9/18".parse::<Range>().unwrap().to_string(), "127.64.0.0/18");
        assert_eq!("fd00::/64,127.64.0.0/18".parse::<Range>().unwrap().first(), Ipv4Addr::new(127, 64, 0, 2));
        for bad in ["", "127.0.0.1", "127.0.0.0/30", "127.0.0.0/7", "fd00::/64", "a/b", "127.0.0.0/-1"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }
}
