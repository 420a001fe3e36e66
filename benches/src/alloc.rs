//! A counting allocator: how many bytes a work holds at its peak, beyond what it started with.
//!
//! It forwards to the system's allocator and adds two atomic operations, which is nothing beside
//! the tensors that are allocated here.
#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; there is no safe way to count allocations"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grow(bytes: usize) {
    let current = CURRENT.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(current, Relaxed);
}

fn shrink(bytes: usize) {
    CURRENT.fetch_sub(bytes, Relaxed);
}

// SAFETY: every method hands its arguments to `System` unchanged and returns what `System` returns;
// the counters are atomics and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise for `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise for `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may be alive while the bytes move.
        grow(size);
        // SAFETY: the caller's promise for `pointer`, `layout` and `size` is passed on.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        shrink(layout.size());
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promise for `pointer` and `layout` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The most bytes that were alive at once while `work` ran, less those alive before it.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = CURRENT.load(Relaxed);
    PEAK.store(before, Relaxed);
    let value = work();
    (value, PEAK.load(Relaxed).saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::peak_of;

    #[test]
    fn the_peak_sees_what_was_freed() {
        const BYTES: usize = 64 << 20;
        let (length, peak) = peak_of(|| std::hint::black_box(vec![1u8; BYTES]).len());
        assert_eq!(length, BYTES);
        // Other tests may allocate at the same time, but not as much.
        assert!((BYTES..BYTES * 2).contains(&peak), "{peak}");
    }
}
