//! Blocks of device memory: exact sizes, and a name for each fault.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vkd_simt::Memory;

fn words<T>(result: Result<T, vkd_simt::Fault>) -> String {
    result.err().unwrap().to_string()
}

#[test]
fn a_block_begins_as_nan_and_holds_what_is_written() {
    let memory = Memory::default();
    let block = memory.allocate(12).unwrap();
    assert_eq!(block % 256, 0);
    let mut got = [0; 12];
    memory.read_bytes(block, &mut got).unwrap();
    assert!(f32::from_le_bytes(got[..4].try_into().unwrap()).is_nan());
    memory.write_bytes(block + 4, &2.5f32.to_le_bytes()).unwrap();
    memory.copy_bytes(block + 4, block, 4).unwrap();
    memory.fill_bytes(block + 8, 0, 4).unwrap();
    memory.read_bytes(block, &mut got).unwrap();
    assert_eq!(got, *[2.5f32, 2.5, 0.].map(f32::to_le_bytes).as_flattened());
    assert_eq!(memory.block(block + 8, 4).unwrap(), (block, 12));
}

#[test]
fn an_access_outside_is_named() {
    let memory = Memory::default();
    let block = memory.allocate(10).unwrap();
    assert_eq!(memory.block(block, 10).unwrap(), (block, 10));
    assert!(
        words(memory.block(block + 8, 4))
            .contains("past the end of the block of 10 bytes, from its byte 8 on")
    );
    assert!(
        words(memory.block(block + 16, 4))
            .contains("6 bytes past the end of the nearest block, of 10 bytes")
    );
    assert!(words(memory.block(block - 1, 2)).contains("bytes at"));
    assert!(words(memory.block(8, 4)).contains("in no block"));
    assert!(words(memory.block(u64::MAX, 4)).contains("in no block"));
    assert!(words(memory.block(block, usize::MAX)).contains("past the end"));
    let mut eleven = [0; 11];
    assert!(memory.read_bytes(block, &mut eleven).is_err());
    assert!(memory.write_bytes(block, &eleven).is_err());
    assert!(memory.fill_bytes(block, 0, 11).is_err());
    let other = memory.allocate(11).unwrap();
    assert!(memory.copy_bytes(block, other, 11).is_err());
    assert!(memory.copy_bytes(other, block, 11).is_err());
}

#[test]
fn a_copy_onto_itself_is_named() {
    let memory = Memory::default();
    let block = memory.allocate(10).unwrap();
    memory.write_bytes(block, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    for (from, to) in [(0, 0), (0, 4), (4, 0)] {
        let copy = memory.copy_bytes(block + from, block + to, 5);
        assert!(words(copy).contains("a copy of 5 bytes from"), "{from} {to}");
    }
    memory.copy_bytes(block, block + 5, 5).unwrap();
    let mut got = [0; 10];
    memory.read_bytes(block, &mut got).unwrap();
    assert_eq!(got, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
}

#[test]
fn nothing_is_copied_anywhere() {
    let memory = Memory::default();
    memory.write_bytes(0, &[]).unwrap();
    memory.read_bytes(0, &mut []).unwrap();
    memory.copy_bytes(0, 8, 0).unwrap();
    memory.fill_bytes(0, 1, 0).unwrap();
}

/// A copy sees all of another thread's fill or nothing of it, and a block that is freed is named from then on.
#[test]
fn threads_work_on_memory_one_after_another() {
    // Large enough that a fill and a copy would meet.
    const BYTES: usize = 4 << 20;
    const COPIES: usize = 20;
    let memory = Memory::default();
    let block = memory.allocate(BYTES).unwrap();
    memory.fill_bytes(block, 0, BYTES).unwrap();
    let copies = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in (0..=255).cycle() {
                if copies.load(Ordering::Relaxed) >= COPIES {
                    break;
                }
                memory.fill_bytes(block, value, BYTES).unwrap();
                // So that the other has its turn: the lock isn't fair.
                std::thread::sleep(Duration::from_micros(100));
            }
            memory.free(block).unwrap();
        });
        let mut got = vec![0; BYTES];
        let mut halves = 0;
        let fault = loop {
            if let Err(fault) = memory.read_bytes(block, &mut got) {
                break fault;
            }
            halves += usize::from(got.iter().any(|byte| *byte != got[0]));
            copies.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(halves, 0, "copies that saw half a fill");
        assert!(fault.to_string().contains("that was freed"), "{fault}");
    });
}

#[test]
fn a_free_is_of_a_block_and_once() {
    let memory = Memory::default();
    let block = memory.allocate(100).unwrap();
    assert!(words(memory.free(block + 4)).contains("within the block of 100 bytes"));
    memory.free(block).unwrap();
    assert!(words(memory.free(block)).contains("freed before"));
    assert!(
        words(memory.block(block + 20, 4))
            .contains("byte 20 of a block of 100 bytes that was freed")
    );
    assert!(words(memory.free(64)).contains("no block was allocated there"));
}

#[test]
fn a_block_of_nothing_has_an_address() {
    let memory = Memory::default();
    let (one, two) = (memory.allocate(0).unwrap(), memory.allocate(0).unwrap());
    assert_ne!(one, two);
    memory.block(one, 0).unwrap();
    assert!(memory.block(one, 1).is_err());
    memory.free(one).unwrap();
    memory.free(two).unwrap();
}

#[test]
fn memory_is_given_back_and_counted() {
    let memory = Memory::default();
    // More than is kept of freed blocks.
    for _ in 0..20 {
        let block = memory.allocate(8 << 20).unwrap();
        memory.free(block).unwrap();
    }
    memory.allocate(5).unwrap();
    let usage = memory.usage();
    assert_eq!(
        (usage.allocations, usage.blocks, usage.bytes, usage.peak_bytes),
        (21, 1, 5, 8 << 20)
    );
    assert!(words(memory.allocate(usize::MAX)).contains("no memory for a block of"));
}
