//! One device, and its primary context.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use std::ffi::{c_char, c_int};

use super::error::{Code, Failure, call, work};
use super::state::{current, put, set_current};

const NAME: &[u8] = b"vkd-simt: PTX on the CPU";

/// Bytes that the device says it has.
pub(super) const TOTAL_BYTES: usize = 16 << 30;

/// Threads of a block, at most.
pub(super) const BLOCK_THREADS: u32 = 1024;
/// The same in each direction.
pub(super) const BLOCK_LIMITS: [u32; 3] = [1024, 1024, 64];
/// Blocks of a grid in each direction, at most.
pub(super) const GRID_LIMITS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Bytes of shared memory of a block without asking, and when asked for: those of capability 8.0.
pub(super) const SHARED_BYTES: u32 = 48 << 10;
pub(super) const SHARED_BYTES_AT_MOST: u32 = 163 << 10;

/// `CUdevice_attribute` by its number; values are those of a small device of capability 8.0.
fn attribute(number: c_int) -> Option<u32> {
    Some(match number {
        1 => BLOCK_THREADS,
        2 => BLOCK_LIMITS[0],
        3 => BLOCK_LIMITS[1],
        4 => BLOCK_LIMITS[2],
        5 => GRID_LIMITS[0],
        6 => GRID_LIMITS[1],
        7 => GRID_LIMITS[2],
        8 => SHARED_BYTES,
        // Bytes of constant memory, threads of a warp, registers of a block, multiprocessors.
        9 => 64 << 10,
        10 => 32,
        12 => 64 << 10,
        16 => 8,
        // Threads of a multiprocessor; unified addressing.
        39 => 2048,
        41 => 1,
        // The capability.
        75 => 8,
        76 => 0,
        // Shared memory and registers of a multiprocessor; managed memory; cooperative launches.
        81 => 164 << 10,
        82 => 64 << 10,
        83 => 0,
        95 => 0,
        97 => SHARED_BYTES_AT_MOST,
        // Blocks of a multiprocessor; shared bytes that each block loses; memory pools.
        106 => 32,
        111 => 1 << 10,
        115 => 1,
        _ => return None,
    })
}

fn device(number: c_int) -> Result<(), Failure> {
    match number {
        0 => Ok(()),
        _ => Err(Code::INVALID_DEVICE.into()),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> i32 {
    call("cuInit", |state| {
        if flags != 0 {
            return Err(Code::INVALID_VALUE.into());
        }
        state.initialize();
        Ok(())
    })
    .0
}

/// # Safety
/// `version` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> i32 {
    // SAFETY: the caller's promise.
    call("cuDriverGetVersion", |_| unsafe { put(version, 13_000) }).0
}

/// # Safety
/// `count` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> i32 {
    call("cuDeviceGetCount", |state| {
        state.initialized()?;
        // SAFETY: the caller's promise.
        unsafe { put(count, 1) }
    })
    .0
}

/// # Safety
/// `place` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(place: *mut c_int, ordinal: c_int) -> i32 {
    call("cuDeviceGet", |state| {
        state.initialized()?;
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { put(place, 0) }
    })
    .0
}

/// # Safety
/// `name` is null or has room for `bytes`.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: c_int, number: c_int) -> i32 {
    call("cuDeviceGetName", |state| {
        state.initialized()?;
        device(number)?;
        let room = usize::try_from(bytes).unwrap_or(0);
        if name.is_null() || room == 0 {
            return Err(Code::INVALID_VALUE.into());
        }
        for (i, byte) in NAME.iter().copied().take(room - 1).chain([0]).enumerate() {
            // SAFETY: fewer than `room` bytes come before the last one.
            unsafe { name.add(i).write(byte as c_char) };
        }
        Ok(())
    })
    .0
}

/// # Safety
/// `value` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, number: c_int, dev: c_int) -> i32 {
    call("cuDeviceGetAttribute", |state| {
        state.initialized()?;
        device(dev)?;
        let known = attribute(number).ok_or_else(|| {
            Failure::new(Code::INVALID_VALUE, format!("attribute {number} isn't known here"))
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(value, known as c_int) }
    })
    .0
}

/// # Safety
/// `bytes` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, number: c_int) -> i32 {
    call("cuDeviceTotalMem", |state| {
        state.initialized()?;
        device(number)?;
        // SAFETY: the caller's promise.
        unsafe { put(bytes, TOTAL_BYTES) }
    })
    .0
}

/// # Safety
/// `context` is null or has room for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, number: c_int) -> i32 {
    call("cuDevicePrimaryCtxRetain", |state| {
        state.initialized()?;
        device(number)?;
        let mut tables = state.tables();
        let (handle, users) = match tables.context {
            Some((handle, users)) => (handle, users + 1),
            None => (tables.handle(), 1),
        };
        // SAFETY: the caller's promise.
        unsafe { put(context, handle) }?;
        tables.context = Some((handle, users));
        Ok(())
    })
    .0
}

/// The last release ends the context: its memory is freed, its handles are none any more, and a new one is whole again.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(number: c_int) -> i32 {
    work("cuDevicePrimaryCtxRelease", |state| {
        state.initialized()?;
        device(number)?;
        let mut tables = state.tables();
        match tables.context {
            None => return Err(Code::INVALID_CONTEXT.into()),
            Some((_, 1)) => {
                tables.end_context();
                state.memory.clear();
            }
            Some((handle, users)) => tables.context = Some((handle, users - 1)),
        }
        Ok(())
    })
    .0
}

/// # Safety
/// `context` is null or has room for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut u64) -> i32 {
    call("cuCtxGetCurrent", |state| {
        state.initialized()?;
        // SAFETY: the caller's promise.
        unsafe { put(context, current()) }
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: u64) -> i32 {
    call("cuCtxSetCurrent", |state| {
        state.initialized()?;
        let known = state.tables().context.map(|(handle, _)| handle);
        if context != 0 && known != Some(context) {
            return Err(Code::INVALID_CONTEXT.into());
        }
        set_current(context);
        Ok(())
    })
    .0
}

/// The one context is the device's primary one, which is released and not destroyed.
#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(_context: u64) -> i32 {
    call("cuCtxDestroy", |_| Err(Code::INVALID_CONTEXT.into())).0
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> i32 {
    call("cuCtxSynchronize", |state| {
        state.in_context()?;
        state.counts.synchronize();
        Ok(())
    })
    .0
}
