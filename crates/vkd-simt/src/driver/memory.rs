//! Allocation, copies and fills. Each is checked against the device's blocks: one that doesn't fit is refused, as by the driver.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use super::context::TOTAL_BYTES;
use super::error::{Code, Failure, call, work};
use super::state::{State, put};
use crate::Fault;

fn refused(fault: Fault) -> Failure {
    Failure::new(Code::INVALID_VALUE, fault.to_string())
}

fn allocate(state: &State, bytes: usize) -> Result<u64, Failure> {
    let used = state.memory.usage().bytes as usize;
    if bytes > TOTAL_BYTES.saturating_sub(used) {
        let line =
            format!("{bytes} bytes beside the {used} that are allocated: more than the device has");
        return Err(Failure::new(Code::OUT_OF_MEMORY, line));
    }
    let none = |fault: Fault| Failure::new(Code::OUT_OF_MEMORY, fault.to_string());
    state.memory.allocate(bytes).map_err(none)
}

fn free(state: &State, address: u64) -> Result<(), Failure> {
    match address {
        0 => Ok(()),
        _ => state.memory.free(address).map_err(refused),
    }
}

/// # Safety
/// `place` is null or has room for an address.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(place: *mut u64, bytes: usize) -> i32 {
    work("cuMemAlloc", |state| {
        state.in_context()?;
        if place.is_null() || bytes == 0 {
            return Err(Code::INVALID_VALUE.into());
        }
        // SAFETY: the caller's promise.
        unsafe { put(place, allocate(state, bytes)?) }
    })
    .0
}

/// Here nothing may be allocated too, as candle does for empty tensors.
///
/// # Safety
/// `place` is null or has room for an address.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(place: *mut u64, bytes: usize, stream: u64) -> i32 {
    work("cuMemAllocAsync", |state| {
        state.on_stream(stream)?;
        if place.is_null() {
            return Err(Code::INVALID_VALUE.into());
        }
        // SAFETY: the caller's promise.
        unsafe { put(place, allocate(state, bytes)?) }
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    work("cuMemFree", |state| {
        state.in_context()?;
        free(state, address)
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> i32 {
    work("cuMemFreeAsync", |state| {
        state.on_stream(stream)?;
        free(state, address)
    })
    .0
}

/// # Safety
/// Each place is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> i32 {
    call("cuMemGetInfo", |state| {
        state.in_context()?;
        let used = state.memory.usage().bytes as usize;
        // SAFETY: the caller's promise.
        unsafe { put(free, TOTAL_BYTES.saturating_sub(used)) }?;
        // SAFETY: the caller's promise.
        unsafe { put(total, TOTAL_BYTES) }
    })
    .0
}

/// # Safety
/// `from` is null or has so many bytes.
unsafe fn to_device(state: &State, to: u64, from: *const u8, bytes: usize) -> Result<(), Failure> {
    let host = match (from.is_null(), bytes) {
        (_, 0) => &[],
        (true, _) => return Err(Code::INVALID_VALUE.into()),
        // SAFETY: the caller's promise; nobody writes it while this call lasts.
        (false, _) => unsafe { std::slice::from_raw_parts(from, bytes) },
    };
    state.memory.write_bytes(to, host).map_err(refused)?;
    state.counts.to_device.count(bytes);
    Ok(())
}

/// # Safety
/// `to` is null or has room for so many bytes.
unsafe fn to_host(state: &State, to: *mut u8, from: u64, bytes: usize) -> Result<(), Failure> {
    if to.is_null() && bytes > 0 {
        return Err(Code::INVALID_VALUE.into());
    }
    // SAFETY: the caller's promise.
    unsafe { state.memory.read_to(from, to, bytes) }.map_err(refused)?;
    state.counts.to_host.count(bytes);
    Ok(())
}

fn on_device(state: &State, to: u64, from: u64, bytes: usize) -> Result<(), Failure> {
    state.memory.copy_bytes(from, to, bytes).map_err(refused)?;
    state.counts.on_device.count(bytes);
    Ok(())
}

/// # Safety
/// `from` is null or has so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const u8,
    bytes: usize,
    stream: u64,
) -> i32 {
    work("cuMemcpyHtoDAsync", |state| {
        state.on_stream(stream)?;
        // SAFETY: the caller's promise.
        unsafe { to_device(state, to, from, bytes) }
    })
    .0
}

/// # Safety
/// `from` is null or has so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize) -> i32 {
    work("cuMemcpyHtoD", |state| {
        state.in_context()?;
        // SAFETY: the caller's promise.
        unsafe { to_device(state, to, from, bytes) }
    })
    .0
}

/// # Safety
/// `to` is null or has room for so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut u8,
    from: u64,
    bytes: usize,
    stream: u64,
) -> i32 {
    work("cuMemcpyDtoHAsync", |state| {
        state.on_stream(stream)?;
        // SAFETY: the caller's promise.
        unsafe { to_host(state, to, from, bytes) }
    })
    .0
}

/// # Safety
/// `to` is null or has room for so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize) -> i32 {
    work("cuMemcpyDtoH", |state| {
        state.in_context()?;
        // SAFETY: the caller's promise.
        unsafe { to_host(state, to, from, bytes) }
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> i32 {
    work("cuMemcpyDtoDAsync", |state| {
        state.on_stream(stream)?;
        on_device(state, to, from, bytes)
    })
    .0
}

/// Both contexts are the one that there is.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    to_context: u64,
    from: u64,
    from_context: u64,
    bytes: usize,
    stream: u64,
) -> i32 {
    work("cuMemcpyPeerAsync", |state| {
        state.on_stream(stream)?;
        let here = super::state::current();
        if to_context != here || from_context != here {
            return Err(Code::INVALID_CONTEXT.into());
        }
        on_device(state, to, from, bytes)
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: u64) -> i32 {
    work("cuMemsetD8Async", |state| {
        state.on_stream(stream)?;
        state.memory.fill_bytes(to, value, bytes).map_err(refused)?;
        state.counts.fills.count(bytes);
        Ok(())
    })
    .0
}
