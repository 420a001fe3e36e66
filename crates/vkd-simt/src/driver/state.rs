//! What the driver knows: its context, its memory, and what its handles stand for. A handle is a number that nobody follows.
#![allow(unsafe_code, reason = "results of C's functions go through pointers")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::counts::Counts;
use super::error::{Code, Failure};
use crate::{Kernel, Memory, Module};

pub(super) static STATE: LazyLock<State> = LazyLock::new(State::default);

thread_local! {
    /// The context that a thread made current; 0 is none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

#[derive(Debug, Default)]
pub(super) struct State {
    is_initialized: AtomicBool,
    pub(super) memory: Memory,
    /// Held by a call that works on the device. It is taken before every other lock.
    turn: Mutex<()>,
    pub(super) counts: Counts,
    tables: Mutex<Tables>,
}

/// What handles stand for.
#[derive(Debug, Default)]
pub(super) struct Tables {
    last_handle: u64,
    /// The primary context while somebody retains it, and how many do.
    pub(super) context: Option<(u64, usize)>,
    /// What broke the context.
    broken: Option<Code>,
    pub(super) streams: BTreeSet<u64>,
    pub(super) events: BTreeMap<u64, Event>,
    pub(super) modules: BTreeMap<u64, Arc<Module>>,
    pub(super) functions: BTreeMap<u64, Arc<Function>>,
    /// Handles of cuBLAS and of cuRAND.
    pub(super) libraries: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub(super) has_time: bool,
    pub(super) recorded: Option<Instant>,
}

/// A kernel that was asked for by name.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) module: u64,
    pub(super) name: String,
    pub(super) kernel: Kernel,
    /// Most bytes of shared memory that a launch may ask for.
    pub(super) dynamic_shared: std::sync::atomic::AtomicU32,
}

impl Tables {
    /// A number that no handle had before, and that looks like an address.
    pub(super) fn handle(&mut self) -> u64 {
        self.last_handle += 1;
        0x5_0000_0000 + self.last_handle * 16
    }

    /// Ends the primary context with all that is in it.
    pub(super) fn end_context(&mut self) {
        *self = Self { last_handle: self.last_handle, ..Self::default() };
    }
}

impl State {
    pub(super) fn initialize(&self) {
        if !self.is_initialized.swap(true, Ordering::Relaxed) {
            super::counts::report_at_exit();
        }
    }

    /// Has the device for the caller until the guard is dropped.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn initialized(&self) -> Result<(), Failure> {
        match self.is_initialized.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(Code::NOT_INITIALIZED.into()),
        }
    }

    /// That this thread has a context, and that it works.
    pub(super) fn in_context(&self) -> Result<(), Failure> {
        self.initialized()?;
        let tables = self.tables();
        let current = current();
        match (tables.context, tables.broken) {
            (Some((context, _)), None) if context == current => Ok(()),
            (Some((context, _)), Some(code)) if context == current => Err(code.into()),
            _ => Err(Code::INVALID_CONTEXT.into()),
        }
    }

    pub(super) fn break_context(&self, code: Code) {
        self.tables().broken.get_or_insert(code);
    }

    /// That work on this stream can be done: it is one of the driver's own, or it was created.
    pub(super) fn on_stream(&self, stream: u64) -> Result<(), Failure> {
        self.in_context()?;
        // The default stream, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD.
        match stream <= 2 || self.tables().streams.contains(&stream) {
            true => Ok(()),
            false => Err(Failure::new(Code::INVALID_HANDLE, format!("no stream {stream:#x}"))),
        }
    }

    pub(super) fn function(&self, handle: u64) -> Result<Arc<Function>, Failure> {
        let function = self.tables().functions.get(&handle).cloned();
        function
            .ok_or_else(|| Failure::new(Code::INVALID_HANDLE, format!("no function {handle:#x}")))
    }
}

pub(super) fn current() -> u64 {
    CURRENT.get()
}

pub(super) fn set_current(context: u64) {
    CURRENT.set(context);
}

/// Hands out a result.
///
/// # Safety
/// `place` is null or has room for it.
pub(super) unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Code::INVALID_VALUE.into());
    }
    // SAFETY: not null, so there is room.
    unsafe { place.write(value) };
    Ok(())
}
