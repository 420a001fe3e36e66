//! Raw accesses of global memory. Everything else of this folder is safe code.
#![allow(
    unsafe_code,
    reason = "a kernel's accesses of global memory are raw accesses of the host's"
)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::declare::Variable;
use super::lanes::LANES;
use crate::{Fault, Memory};

/// A word of memory. Loads and stores are relaxed atomic ones, since blocks of a kernel that run at once may race as they may on a device.
pub(super) trait Raw: Copy + Default + PartialEq + Send + Sync + 'static {
    const BYTES: usize;
    /// Zero above.
    fn bits(self) -> u64;
    /// Cut.
    fn of_bits(bits: u64) -> Self;
    /// Its bytes at `at`, if all of them are there.
    fn read(bytes: &[u8], at: usize) -> Option<Self>;
    fn write(self, bytes: &mut [u8], at: usize) -> Option<()>;
    /// # Safety
    /// `pointer` is aligned, and its bytes are of a live allocation.
    unsafe fn load(pointer: *mut Self) -> Self;
    /// # Safety
    /// As of `load`.
    unsafe fn store(self, pointer: *mut Self);
    /// What it was before.
    ///
    /// # Safety
    /// As of `load`.
    unsafe fn update(pointer: *mut Self, f: impl FnMut(Self) -> Self) -> Self;
}

macro_rules! raw {
    ($($word:ty, $atomic:ty;)*) => {$(
        impl Raw for $word {
            const BYTES: usize = size_of::<$word>();
            #[inline(always)]
            fn bits(self) -> u64 { u64::from(self) }
            #[inline(always)]
            fn of_bits(bits: u64) -> Self { bits as $word }
            #[inline(always)]
            fn read(bytes: &[u8], at: usize) -> Option<Self> {
                let bytes = bytes.get(at..)?.first_chunk()?;
                Some(<$word>::from_le_bytes(*bytes))
            }
            #[inline(always)]
            fn write(self, bytes: &mut [u8], at: usize) -> Option<()> {
                *bytes.get_mut(at..)?.first_chunk_mut()? = self.to_le_bytes();
                Some(())
            }
            #[inline(always)]
            unsafe fn load(pointer: *mut Self) -> Self {
                // SAFETY: aligned and live, says the caller.
                unsafe { <$atomic>::from_ptr(pointer) }.load(Relaxed)
            }
            #[inline(always)]
            unsafe fn store(self, pointer: *mut Self) {
                // SAFETY: aligned and live, says the caller.
                unsafe { <$atomic>::from_ptr(pointer) }.store(self, Relaxed);
            }
            unsafe fn update(pointer: *mut Self, mut f: impl FnMut(Self) -> Self) -> Self {
                // SAFETY: aligned and live, says the caller.
                let cell = unsafe { <$atomic>::from_ptr(pointer) };
                let mut old = cell.load(Relaxed);
                while let Err(now) = cell.compare_exchange_weak(old, f(old), Relaxed, Relaxed) {
                    old = now;
                }
                old
            }
        }
    )*};
}

raw! {
    u8, AtomicU8;
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
}

/// The variables of a module in global and constant space.
#[derive(Debug, Default)]
pub(super) struct Globals {
    variables: Vec<(Variable, Box<[AtomicU64]>)>,
}

impl Globals {
    pub(super) fn new<'a>(variables: impl Iterator<Item = &'a Variable>) -> Self {
        let variables = variables.map(|variable| {
            // One word more than needed, so that a multiple of 16 can be where the variable begins.
            let count = variable.bytes.div_ceil(8) + 2;
            let words: Box<[AtomicU64]> = (0..count).map(|_| AtomicU64::new(0)).collect();
            let skipped = (Self::begin(&words) - words.as_ptr() as u64) as usize / 8;
            for (word, bytes) in words.iter().skip(skipped).zip(variable.init.chunks(8)) {
                let mut all = [0; 8];
                all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                word.store(u64::from_le_bytes(all), Relaxed);
            }
            (variable.clone(), words)
        });
        Self { variables: variables.collect() }
    }

    fn begin(words: &[AtomicU64]) -> u64 {
        (words.as_ptr().expose_provenance() as u64).next_multiple_of(16)
    }

    pub(super) fn address(&self, name: &str) -> Option<u64> {
        let (_, words) = self.variables.iter().find(|(variable, _)| variable.name == name)?;
        Some(Self::begin(words))
    }

    /// The text at an address, up to its zero.
    pub(super) fn text(&self, address: u64) -> Option<String> {
        let (variable, words) = self.variables.iter().find(|(variable, words)| {
            address.wrapping_sub(Self::begin(words)) < variable.bytes as u64
        })?;
        let from = (address - Self::begin(words)) as usize;
        let bytes = variable.init.iter().skip(from).take_while(|byte| **byte != 0);
        Some(bytes.map(|byte| char::from(*byte)).collect())
    }
}

/// A piece of live memory, each access of which is checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    begin: u64,
    size: u64,
    life: PhantomData<&'a ()>,
}

impl<'a> Block<'a> {
    pub(super) const NONE: Self = Self { begin: 0, size: 0, life: PhantomData };

    /// The variable or the allocation that holds these bytes. Nothing is freed while a kernel runs: it holds the memory.
    pub(super) fn of(
        memory: &'a Memory,
        globals: &'a Globals,
        address: u64,
        bytes: usize,
    ) -> Result<Self, Fault> {
        for (variable, words) in &globals.variables {
            let begin = Globals::begin(words);
            let offset = address.wrapping_sub(begin);
            if offset < variable.bytes as u64 {
                let size = variable.bytes as u64;
                return if bytes as u64 <= size - offset {
                    Ok(Self { begin, size, life: PhantomData })
                } else {
                    let name = &variable.name;
                    let words = format!("{bytes} bytes from byte {offset} of `{name}`, of {size}");
                    Err(Fault::new(words))
                };
            }
        }
        let (begin, size) = memory.block(address, bytes)?;
        Ok(Self { begin, size: size as u64, life: PhantomData })
    }

    #[inline(always)]
    fn pointer<R: Raw>(&self, address: u64) -> Option<*mut R> {
        let bytes = R::BYTES as u64;
        let inside = self.size >= bytes && address.wrapping_sub(self.begin) <= self.size - bytes;
        (inside && address.is_multiple_of(bytes))
            .then(|| std::ptr::with_exposed_provenance_mut(address as usize))
    }

    /// `None` if it isn't all inside, or not aligned.
    #[inline(always)]
    pub(super) fn load<R: Raw>(&self, address: u64) -> Option<R> {
        let pointer = self.pointer(address)?;
        // SAFETY: inside of a live block, and aligned.
        Some(unsafe { R::load(pointer) })
    }

    #[inline(always)]
    pub(super) fn store<R: Raw>(&self, address: u64, value: R) -> Option<()> {
        let pointer = self.pointer(address)?;
        // SAFETY: inside of a live block, and aligned.
        unsafe { R::store(value, pointer) };
        Some(())
    }

    /// What these lanes read, if all of it is inside and aligned; of the other lanes anything.
    #[inline(always)]
    pub(super) fn load_all<R: Raw>(
        &self,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Option<[R; LANES]> {
        // A lane that isn't on reads where the block begins: no block begins at less than a multiple of 16.
        let mut at = *addresses;
        for (lane, at) in at.iter_mut().enumerate() {
            *at = if mask & 1 << lane != 0 { *at } else { self.begin };
        }
        if !self.holds::<R>(&at) {
            return None;
        }
        let mut out = [R::default(); LANES];
        for (to, at) in out.iter_mut().zip(at) {
            let pointer = std::ptr::with_exposed_provenance_mut(at as usize);
            // SAFETY: all are inside of a live block, and aligned.
            *to = unsafe { R::load(pointer) };
        }
        Some(out)
    }

    /// Writes what all lanes write, lowest first, if all of it is inside and aligned.
    #[inline(always)]
    pub(super) fn store_all<R: Raw>(
        &self,
        addresses: &[u64; LANES],
        values: &[R; LANES],
    ) -> Option<()> {
        if !self.holds::<R>(addresses) {
            return None;
        }
        for (value, at) in values.iter().zip(addresses) {
            let pointer = std::ptr::with_exposed_provenance_mut(*at as usize);
            // SAFETY: all are inside of a live block, and aligned.
            unsafe { R::store(*value, pointer) };
        }
        Some(())
    }

    #[inline(always)]
    fn holds<R: Raw>(&self, addresses: &[u64; LANES]) -> bool {
        let bytes = R::BYTES as u64;
        if self.size < bytes {
            return false;
        }
        let mut wrong = 0;
        for at in addresses {
            wrong |= u64::from(at.wrapping_sub(self.begin) > self.size - bytes) | at & (bytes - 1);
        }
        wrong == 0
    }

    /// One atomic operation; what was there before.
    pub(super) fn update<R: Raw>(&self, address: u64, f: impl FnMut(R) -> R) -> Option<R> {
        let pointer = self.pointer(address)?;
        // SAFETY: inside of a live block, and aligned.
        Some(unsafe { R::update(pointer, f) })
    }
}
