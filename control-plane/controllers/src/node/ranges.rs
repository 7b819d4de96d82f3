//! Cuts the cluster's pod range into one range a node. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The pod range and the size of a node's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    first: u32,
    count: u32,
    bits: u8,
}

/// Why a range cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "pod range {0:?} must be an IPv4 range such as 127.64.0.0/11 that is not smaller than /{1}, the size of a node's part"
)]
pub struct RangeError(String, u8);

impl Ranges {
    /// Reads a range such as `127.64.0.0/11`; `bits` is the prefix length of a node's part.
    pub fn new(range: &str, bits: u8) -> Result<Self, RangeError> {
        let wrong = || RangeError(range.to_string(), bits);
        let (address, length) = range.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        if length == 0 || bits < length || bits > 30 || bits - length > 16 {
            return Err(wrong());
        }
        let first = u32::from(address) & (u32::MAX << (32 - length));
        Ok(Self { first, count: 1 << (bits - length), bits })
    }

    /// A part as text.
    pub fn part(&self, number: u32) -> String {
        format!("{}/{}", Ipv4Addr::from(self.first + (number << (32 - self.bits))), self.bits)
    }

    /// The number of a part; None for what is no part.
    pub fn number(&self, part: &str) -> Option<u32> {
        let (address, bits) = part.split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let offset = u32::from(address).checked_sub(self.first)?;
        let number = offset >> (32 - self.bits);
        (bits.parse() == Ok(self.bits) && number < self.count).then_some(number)
    }

    /// The first part that is not used.
    pub fn free(&self, used: &BTreeSet<u32>) -> Option<u32> {
        let taken = used.iter().zip(0..).take_while(|(used, number)| **used == *number).count();
        u32::try_from(taken).ok().filter(|number| *number < self.count)
    }
}
