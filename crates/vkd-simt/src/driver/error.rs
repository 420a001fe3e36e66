//! The driver's error codes, and how a call ends in one.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use std::ffi::{CStr, c_char};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::state::{STATE, State, put};
use crate::Fault;
use crate::fault::Kind;

/// `CUresult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub(super) i32);

impl Code {
    pub(super) const SUCCESS: Self = Self(0);
    pub(super) const INVALID_VALUE: Self = Self(1);
    pub(super) const OUT_OF_MEMORY: Self = Self(2);
    pub(super) const NOT_INITIALIZED: Self = Self(3);
    pub(super) const INVALID_DEVICE: Self = Self(101);
    pub(super) const INVALID_IMAGE: Self = Self(200);
    pub(super) const INVALID_CONTEXT: Self = Self(201);
    pub(super) const INVALID_PTX: Self = Self(218);
    pub(super) const FILE_NOT_FOUND: Self = Self(301);
    pub(super) const INVALID_HANDLE: Self = Self(400);
    pub(super) const NOT_FOUND: Self = Self(500);
    pub(super) const ILLEGAL_ADDRESS: Self = Self(700);
    pub(super) const ASSERT: Self = Self(710);
    pub(super) const MISALIGNED_ADDRESS: Self = Self(716);
    pub(super) const LAUNCH_FAILED: Self = Self(719);
    pub(super) const NOT_SUPPORTED: Self = Self(801);
    pub(super) const UNKNOWN: Self = Self(999);

    /// Its name and the driver's words.
    fn words(self) -> Option<(&'static CStr, &'static CStr)> {
        Some(match self {
            Self::SUCCESS => (c"CUDA_SUCCESS", c"no error"),
            Self::INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
            Self::OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
            Self::NOT_INITIALIZED => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
            Self::INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
            Self::INVALID_IMAGE => (c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid"),
            Self::INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
            Self::INVALID_PTX => {
                (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed (see vkd-simt's line)")
            }
            Self::FILE_NOT_FOUND => (c"CUDA_ERROR_FILE_NOT_FOUND", c"file not found"),
            Self::INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
            Self::NOT_FOUND => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
            Self::ILLEGAL_ADDRESS => (
                c"CUDA_ERROR_ILLEGAL_ADDRESS",
                c"an illegal memory access was encountered (see vkd-simt's line)",
            ),
            Self::ASSERT => {
                (c"CUDA_ERROR_ASSERT", c"device-side assert triggered (see vkd-simt's line)")
            }
            Self::MISALIGNED_ADDRESS => {
                (c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address (see vkd-simt's line)")
            }
            Self::LAUNCH_FAILED => {
                (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure (see vkd-simt's line)")
            }
            Self::NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
            Self::UNKNOWN => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
            _ => return None,
        })
    }
}

/// Why a call fails: the code that it returns, and a line for the person who reads the standard error.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    line: Option<String>,
    /// Whether the context is broken from then on.
    is_lasting: bool,
}

impl Failure {
    pub(super) fn new(code: Code, line: impl Into<String>) -> Self {
        Self { code, line: Some(line.into()), is_lasting: false }
    }

    /// What the device finds wrong: a launch that it refuses changes nothing, and after all else every later call fails as well.
    pub(super) fn of_device(fault: &Fault) -> Self {
        let (code, is_lasting) = match fault.kind() {
            Kind::Launch => (Code::INVALID_VALUE, false),
            Kind::Address => (Code::ILLEGAL_ADDRESS, true),
            Kind::Alignment => (Code::MISALIGNED_ADDRESS, true),
            Kind::Assertion => (Code::ASSERT, true),
            Kind::Other => (Code::LAUNCH_FAILED, true),
        };
        Self { code, line: Some(fault.to_string()), is_lasting }
    }
}

/// A code that speaks for itself.
impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, line: None, is_lasting: false }
    }
}

/// As [`call`], for what works on the device: of several host threads one after another, so that what a call has looked at, the context
/// for one, is so until it ends.
pub(super) fn work(name: &str, body: impl FnOnce(&State) -> Result<(), Failure>) -> Code {
    // No body makes a call, and the pool of threads that bodies wait for is this library's own.
    let _turn = STATE.turn();
    call(name, body)
}

/// Runs the body of a call of C: says and counts what failed, remembers what lasts, and lets no panic through.
pub(super) fn call(name: &str, body: impl FnOnce(&State) -> Result<(), Failure>) -> Code {
    let state = &*STATE;
    // The state is behind locks that are taken over when poisoned, and has no half-made parts.
    let result = catch_unwind(AssertUnwindSafe(|| body(state)));
    let result = result.unwrap_or_else(|_| Err(Failure::new(Code::UNKNOWN, "panicked")));
    let Err(failure) = result else { return Code::SUCCESS };
    if let Some(line) = &failure.line {
        say(format_args!("{name}: {line}"));
    }
    let line = failure.line.unwrap_or_else(|| failure.code.to_string());
    state.counts.failure(failure.is_lasting, &format!("{name}: {line}"));
    if failure.is_lasting {
        state.break_context(failure.code);
    }
    failure.code
}

/// A line on the standard error, if somebody hears it.
pub(super) fn say(line: std::fmt::Arguments<'_>) {
    // In one piece, so that another thread's line isn't within it.
    let _ = std::io::stderr().write_all(format!("vkd-simt: {line}\n").as_bytes());
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.words() {
            Some((name, _)) => f.write_str(&name.to_string_lossy()),
            None => write!(f, "error {}", self.0),
        }
    }
}

/// # Safety
/// `text` is null or has room for a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: i32, text: *mut *const c_char) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { error_text(text, Code(error).words().map(|(name, _)| name)) }
}

/// # Safety
/// `text` is null or has room for a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: i32, text: *mut *const c_char) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { error_text(text, Code(error).words().map(|(_, words)| words)) }
}

/// # Safety
/// `text` is null or has room for a pointer.
unsafe fn error_text(text: *mut *const c_char, words: Option<&'static CStr>) -> i32 {
    // SAFETY: the caller's promise.
    let written = unsafe { put(text, words.map_or(std::ptr::null(), CStr::as_ptr)) };
    match written.is_ok() && words.is_some() {
        true => Code::SUCCESS.0,
        false => Code::INVALID_VALUE.0,
    }
}
