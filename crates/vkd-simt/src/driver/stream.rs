//! Streams and events. As all work is done when its call returns, there is nothing to wait for; waits are counted.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use std::time::Instant;

use super::error::{Code, Failure, call};
use super::state::{Event, State, put};

/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIME: u32 = 2;

/// # Safety
/// `stream` is null or has room for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut u64, flags: u32) -> i32 {
    call("cuStreamCreate", |state| {
        state.in_context()?;
        if flags > 1 {
            return Err(Code::INVALID_VALUE.into());
        }
        let mut tables = state.tables();
        let handle = tables.handle();
        // SAFETY: the caller's promise.
        unsafe { put(stream, handle) }?;
        tables.streams.insert(handle);
        Ok(())
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: u64) -> i32 {
    call("cuStreamDestroy", |state| {
        state.in_context()?;
        match state.tables().streams.remove(&stream) {
            true => Ok(()),
            false => Err(Code::INVALID_HANDLE.into()),
        }
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: u64) -> i32 {
    call("cuStreamSynchronize", |state| {
        state.on_stream(stream)?;
        state.counts.synchronize();
        Ok(())
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> i32 {
    call("cuStreamWaitEvent", |state| {
        state.on_stream(stream)?;
        known(state, event)?;
        match flags {
            0 => Ok(()),
            _ => Err(Code::INVALID_VALUE.into()),
        }
    })
    .0
}

/// # Safety
/// `status` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: u64, status: *mut u32) -> i32 {
    call("cuStreamIsCapturing", |state| {
        state.on_stream(stream)?;
        // SAFETY: the caller's promise.
        unsafe { put(status, 0) }
    })
    .0
}

fn known(state: &State, event: u64) -> Result<Event, Failure> {
    state.tables().events.get(&event).copied().ok_or_else(|| Code::INVALID_HANDLE.into())
}

/// # Safety
/// `event` is null or has room for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut u64, flags: u32) -> i32 {
    call("cuEventCreate", |state| {
        state.in_context()?;
        let mut tables = state.tables();
        let handle = tables.handle();
        // SAFETY: the caller's promise.
        unsafe { put(event, handle) }?;
        let new = Event { has_time: flags & WITHOUT_TIME == 0, recorded: None };
        tables.events.insert(handle, new);
        Ok(())
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: u64) -> i32 {
    call("cuEventDestroy", |state| {
        state.in_context()?;
        state.tables().events.remove(&event).map(drop).ok_or_else(|| Code::INVALID_HANDLE.into())
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: u64, stream: u64) -> i32 {
    call("cuEventRecord", |state| {
        state.on_stream(stream)?;
        let mut tables = state.tables();
        let event = tables.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)?;
        event.recorded = Some(Instant::now());
        Ok(())
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: u64) -> i32 {
    call("cuEventQuery", |state| {
        state.in_context()?;
        known(state, event).map(drop)
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: u64) -> i32 {
    call("cuEventSynchronize", |state| {
        state.in_context()?;
        known(state, event)?;
        state.counts.synchronize();
        Ok(())
    })
    .0
}

/// The host's time between two events, which says nothing of a device's.
///
/// # Safety
/// `milliseconds` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, begin: u64, end: u64) -> i32 {
    call("cuEventElapsedTime", |state| {
        state.in_context()?;
        let (begin, end) = (known(state, begin)?, known(state, end)?);
        let (Some(from), Some(to)) = (begin.recorded, end.recorded) else {
            return Err(Code::INVALID_HANDLE.into());
        };
        if !(begin.has_time && end.has_time) {
            return Err(Code::INVALID_HANDLE.into());
        }
        let seconds = match to.checked_duration_since(from) {
            Some(time) => time.as_secs_f32(),
            None => -from.duration_since(to).as_secs_f32(),
        };
        // SAFETY: the caller's promise.
        unsafe { put(milliseconds, seconds * 1e3) }
    })
    .0
}

/// # Safety
/// As of [`cuEventElapsedTime_v2`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, begin: u64, end: u64) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { cuEventElapsedTime_v2(milliseconds, begin, end) }
}
