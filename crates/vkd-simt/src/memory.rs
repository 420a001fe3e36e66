//! The device's memory: blocks of the host's, each with its exact size. An address of the device is the host's.
#![allow(unsafe_code, reason = "device memory is raw memory of the host, handed out by address")]

use std::alloc::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::Fault;

/// Where a block begins: at a multiple of this, as on a device.
const ALIGNMENT: usize = 256;

/// Bytes of freed blocks that are kept, so that a late access is named instead of falling into a new block.
const KEPT_BYTES: usize = 64 << 20;

/// What every byte is before it is written: NaN in all types of floating point.
const UNWRITTEN: u8 = 0xFF;

/// All blocks that are allocated. Whatever reads or writes their bytes, or frees one, has them for itself while it lasts: kernels, products,
/// copies and frees of several host threads come one after another.
#[derive(Debug, Default)]
pub struct Memory {
    blocks: RwLock<Blocks>,
    /// Held by whoever works on the bytes of blocks. It is taken before the lock of `blocks`, never after.
    turn: Mutex<()>,
}

/// How much is allocated.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Blocks that were ever allocated.
    pub allocations: u64,
    /// Blocks that are allocated now.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The most bytes that were allocated at once.
    pub peak_bytes: u64,
}

#[derive(Debug, Default)]
struct Blocks {
    /// Size by begin.
    live: BTreeMap<u64, usize>,
    /// Size by begin of blocks that are freed and not yet given back to the host.
    freed: BTreeMap<u64, usize>,
    /// The begins of `freed`, oldest first.
    order: VecDeque<u64>,
    freed_bytes: usize,
    usage: Usage,
}

impl Memory {
    /// Allocates `bytes`, every bit set, so that a number that is read before it is written is NaN. A block of no bytes has an address of
    /// its own too.
    ///
    /// # Errors
    /// No memory.
    pub fn allocate(&self, bytes: usize) -> Result<u64, Fault> {
        let none = || Fault::new(format!("no memory for a block of {bytes} bytes"));
        let layout = layout(bytes).ok_or_else(none)?;
        // SAFETY: the layout's size isn't zero.
        let begin = unsafe { std::alloc::alloc(layout) };
        if begin.is_null() {
            return Err(none());
        }
        // SAFETY: the allocation has that many bytes, and nobody else knows it yet.
        unsafe { begin.write_bytes(UNWRITTEN, layout.size()) };
        let address = begin.expose_provenance() as u64;
        let mut blocks = self.write();
        blocks.live.insert(address, bytes);
        let usage = &mut blocks.usage;
        usage.allocations += 1;
        usage.blocks += 1;
        usage.bytes += bytes as u64;
        usage.peak_bytes = usage.peak_bytes.max(usage.bytes);
        Ok(address)
    }

    /// Frees the block that begins at `address`. Its bytes are unwritten from then on.
    ///
    /// # Errors
    /// No block begins there.
    pub fn free(&self, address: u64) -> Result<(), Fault> {
        let _turn = self.hold();
        let mut blocks = self.write();
        let Some(bytes) = blocks.live.remove(&address) else {
            return Err(Fault::of_address(match blocks.freed.get(&address) {
                Some(bytes) => {
                    format!("free of {address:#x}: {bytes} bytes that were freed before")
                }
                None => match containing(&blocks.live, address) {
                    Some((begin, bytes)) => format!(
                        "free of {address:#x}: within the block of {bytes} bytes that begins at {begin:#x}"
                    ),
                    None => format!("free of {address:#x}: no block was allocated there"),
                },
            }));
        };
        // SAFETY: the block was allocated with at least this size and is still, and it is this thread's turn.
        unsafe { pointer(address).write_bytes(UNWRITTEN, bytes) };
        blocks.usage.blocks -= 1;
        blocks.usage.bytes -= bytes as u64;
        blocks.freed.insert(address, bytes);
        blocks.order.push_back(address);
        blocks.freed_bytes += bytes.max(ALIGNMENT);
        blocks.give_back(KEPT_BYTES);
        Ok(())
    }

    /// The block of which all of `address .. address + bytes` is part, as its begin and its size, for a caller that keeps it for the next
    /// access.
    ///
    /// # Errors
    /// Some of it is in no block, or in two.
    pub fn block(&self, address: u64, bytes: usize) -> Result<(u64, usize), Fault> {
        let blocks = self.read();
        // The last block that begins here or before. One of no bytes holds an access of no bytes.
        let before = blocks.live.range(..=address).next_back().map(|(&begin, &size)| (begin, size));
        if let Some((begin, size)) = before {
            let offset = (address - begin) as usize;
            if offset <= size && bytes <= size - offset {
                return Ok((begin, size));
            }
            if offset < size.max(1) {
                return Err(Fault::of_address(format!(
                    "{bytes} bytes at {address:#x}: past the end of the block of {size} bytes, from its byte {offset} on"
                )));
            }
        }
        if let Some((begin, size)) = containing(&blocks.freed, address) {
            let offset = address - begin;
            return Err(Fault::of_address(format!(
                "{bytes} bytes at {address:#x}: byte {offset} of a block of {size} bytes that was freed"
            )));
        }
        Err(Fault::of_address(match before {
            // Near enough that an index ran over.
            Some((begin, size)) if address - begin < (size as u64).saturating_mul(2) + 4096 => {
                let past = address - begin - size as u64;
                format!(
                    "{bytes} bytes at {address:#x}: {past} bytes past the end of the nearest block, of {size} bytes"
                )
            }
            _ => format!("{bytes} bytes at {address:#x}: in no block"),
        }))
    }

    /// Has the bytes of all blocks for the caller until the guard is dropped. The caller must not free, copy or fill meanwhile, which would
    /// wait for itself, and neither must tasks of the thread pool that it waits for.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies bytes of the device to the host. None at all may be anywhere, here and in the other copies and fills.
    ///
    /// # Errors
    /// They aren't all in one block.
    pub fn read_bytes(&self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        // SAFETY: the slice has room for its length.
        unsafe { self.read_to(address, to.as_mut_ptr(), to.len()) }
    }

    /// As [`Memory::read_bytes`], to a place that may be unwritten as yet.
    ///
    /// # Safety
    /// There is room for so many bytes, and it is no part of a block.
    pub(crate) unsafe fn read_to(
        &self,
        address: u64,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        let _turn = self.hold();
        self.block(address, bytes)?;
        // SAFETY: that many bytes at the address are of one block, and nobody else's while this is held; the rest is the caller's promise.
        unsafe { pointer(address).copy_to(to, bytes) };
        Ok(())
    }

    /// Copies bytes of the host to the device.
    ///
    /// # Errors
    /// They don't all fit into one block.
    pub fn write_bytes(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        if from.is_empty() {
            return Ok(());
        }
        let _turn = self.hold();
        self.block(address, from.len())?;
        // SAFETY: that many bytes at the address are of one block, and nobody else's while this is held; the host's slice is no part of one.
        unsafe { pointer(address).copy_from(from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies bytes of the device to another place of it.
    ///
    /// # Errors
    /// Either isn't all in one block, or the two overlap: what such a copy leaves isn't defined on a device.
    pub fn copy_bytes(&self, from: u64, to: u64, bytes: usize) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        let _turn = self.hold();
        self.block(from, bytes)?;
        self.block(to, bytes)?;
        if from.abs_diff(to) < bytes as u64 {
            return Err(Fault::new(format!(
                "a copy of {bytes} bytes from {from:#x} to {to:#x}: the two overlap"
            )));
        }
        // SAFETY: both places have that many bytes of a block, none of them the same, and nobody else's while this is held.
        unsafe { pointer(from).copy_to_nonoverlapping(pointer(to), bytes) };
        Ok(())
    }

    /// Sets each of so many bytes.
    ///
    /// # Errors
    /// They aren't all in one block.
    pub fn fill_bytes(&self, address: u64, value: u8, bytes: usize) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        let _turn = self.hold();
        self.block(address, bytes)?;
        // SAFETY: that many bytes at the address are of one block, and nobody else's while this is held.
        unsafe { pointer(address).write_bytes(value, bytes) };
        Ok(())
    }

    /// Frees every block, as the end of a context does.
    pub fn clear(&self) {
        let _turn = self.hold();
        let mut blocks = self.write();
        for (address, bytes) in std::mem::take(&mut blocks.live) {
            release(address, bytes);
        }
        blocks.usage.blocks = 0;
        blocks.usage.bytes = 0;
        blocks.give_back(0);
    }

    /// How much is allocated, and was.
    pub fn usage(&self) -> Usage {
        self.read().usage
    }

    fn read(&self) -> RwLockReadGuard<'_, Blocks> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Blocks> {
        self.blocks.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    /// Gives freed blocks back to the host, oldest first, until at most `keep` bytes are kept.
    fn give_back(&mut self, keep: usize) {
        while self.freed_bytes > keep {
            let Some(address) = self.order.pop_front() else { return };
            let Some(bytes) = self.freed.remove(&address) else { continue };
            self.freed_bytes -= bytes.max(ALIGNMENT);
            release(address, bytes);
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for (address, bytes) in self.live.iter().chain(&self.freed) {
            release(*address, *bytes);
        }
    }
}

/// The block in which an address is.
fn containing(blocks: &BTreeMap<u64, usize>, address: u64) -> Option<(u64, usize)> {
    let (&begin, &size) = blocks.range(..=address).next_back()?;
    (address - begin < (size as u64).max(1)).then_some((begin, size))
}

/// How a block of so many bytes is allocated: one of none has some all the same, for an address of its own.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()
}

fn release(address: u64, bytes: usize) {
    if let Some(layout) = layout(bytes) {
        // SAFETY: allocated with this layout, and in no list any more.
        unsafe { std::alloc::dealloc(pointer(address), layout) };
    }
}

/// An address of the device as a pointer of the host.
pub(crate) fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}
