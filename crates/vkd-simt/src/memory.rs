//! The device's memory: blocks of the host's, each with its exact size. An address of the device is the host's.

use crate::Fault;

/// All blocks that are allocated.
#[derive(Debug, Default)]
pub struct Memory {}

impl Memory {
    /// Allocates `bytes`, every bit set, so that a number that is read before it is written is NaN.
    ///
    /// # Errors
    /// No memory.
    pub fn allocate(&self, bytes: usize) -> Result<u64, Fault> {
        let _ = bytes;
        Err(Fault::new("not there"))
    }

    /// Frees the block that begins at `address`.
    ///
    /// # Errors
    /// No block begins there.
    pub fn free(&self, address: u64) -> Result<(), Fault> {
        let _ = address;
        Err(Fault::new("not there"))
    }

    /// The block of which all of `address .. address + bytes` is part, as its begin and its size, for a caller that keeps it for the next
    /// access.
    ///
    /// # Errors
    /// Some of it is in no block, or in two.
    pub fn block(&self, address: u64, bytes: usize) -> Result<(u64, usize), Fault> {
        let _ = (address, bytes);
        Err(Fault::new("not there"))
    }
}
