//! Modules of PTX and their kernels.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::context::{BLOCK_THREADS, SHARED_BYTES, SHARED_BYTES_AT_MOST};
use super::error::{Code, Failure, call};
use super::state::{Function, State, put};
use crate::Module;

/// How an object file and a fat binary begin.
const NO_TEXT: [&[u8]; 2] = [b"\x7fELF", b"\x50\xed\x55\xba"];

// `CUfunction_attribute`.
const MAX_THREADS: c_int = 0;
const STATIC_SHARED: c_int = 1;
const CONSTANT_BYTES: c_int = 2;
const DYNAMIC_SHARED: c_int = 8;
const CARVEOUT: c_int = 9;

/// # Safety
/// `place` is null or has room for a handle.
unsafe fn load(state: &State, place: *mut u64, ptx: &[u8]) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Code::INVALID_VALUE.into());
    }
    if NO_TEXT.iter().any(|magic| ptx.starts_with(magic)) {
        let line = "an image that isn't PTX, and only PTX can be run here";
        return Err(Failure::new(Code::INVALID_IMAGE, line));
    }
    let text = std::str::from_utf8(ptx)
        .map_err(|error| Failure::new(Code::INVALID_PTX, format!("no text: {error}")))?;
    let module =
        Module::parse(text).map_err(|fault| Failure::new(Code::INVALID_PTX, fault.to_string()))?;
    let mut tables = state.tables();
    let handle = tables.handle();
    tables.modules.insert(handle, Arc::new(module));
    // SAFETY: the caller's promise.
    unsafe { put(place, handle) }
}

/// Takes a text of PTX that ends with a zero.
///
/// # Safety
/// `place` is null or has room for a handle; `image` is null or such a text.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(place: *mut u64, image: *const c_char) -> i32 {
    call("cuModuleLoadData", |state| {
        state.in_context()?;
        if image.is_null() {
            return Err(Code::INVALID_VALUE.into());
        }
        // SAFETY: not null, so it is such a text.
        let text = unsafe { CStr::from_ptr(image) };
        // SAFETY: the caller's promise.
        unsafe { load(state, place, text.to_bytes()) }
    })
    .0
}

/// # Safety
/// `place` is null or has room for a handle; `path` is null or a text that ends with a zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoad(place: *mut u64, path: *const c_char) -> i32 {
    call("cuModuleLoad", |state| {
        state.in_context()?;
        if path.is_null() {
            return Err(Code::INVALID_VALUE.into());
        }
        // SAFETY: not null, so it is such a text.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
        let text = std::fs::read(&path)
            .map_err(|error| Failure::new(Code::FILE_NOT_FOUND, format!("{path}: {error}")))?;
        // SAFETY: the caller's promise.
        unsafe { load(state, place, &text) }
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: u64) -> i32 {
    call("cuModuleUnload", |state| {
        state.in_context()?;
        let mut tables = state.tables();
        tables.functions.retain(|_, function| function.module != module);
        tables.modules.remove(&module).map(drop).ok_or_else(|| Code::INVALID_HANDLE.into())
    })
    .0
}

/// The same handle for the same name, as the driver does.
///
/// # Safety
/// `place` is null or has room for a handle; `name` is null or a text that ends with a zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(place: *mut u64, module: u64, name: *const c_char) -> i32 {
    call("cuModuleGetFunction", |state| {
        state.in_context()?;
        if name.is_null() {
            return Err(Code::INVALID_VALUE.into());
        }
        // SAFETY: not null, so it is such a text.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let known = |function: &Function| function.module == module && function.name == name;
        let mut tables = state.tables();
        let found = tables.functions.iter().find(|(_, function)| known(function));
        if let Some(handle) = found.map(|(&handle, _)| handle) {
            // SAFETY: the caller's promise.
            return unsafe { put(place, handle) };
        }
        let text = tables.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        let kernel = text.kernel(&name).ok_or_else(|| {
            Failure::new(Code::NOT_FOUND, format!("no kernel `{name}` in the module"))
        })?;
        let handle = tables.handle();
        // SAFETY: the caller's promise.
        unsafe { put(place, handle) }?;
        let dynamic_shared = AtomicU32::new(SHARED_BYTES);
        let function = Function { module, name: name.into_owned(), kernel, dynamic_shared };
        tables.functions.insert(handle, Arc::new(function));
        Ok(())
    })
    .0
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_int, value: c_int) -> i32 {
    call("cuFuncSetAttribute", |state| {
        state.in_context()?;
        let function = state.function(function)?;
        match (attribute, u32::try_from(value)) {
            (CARVEOUT, _) => Ok(()),
            (DYNAMIC_SHARED, Ok(bytes)) if bytes <= SHARED_BYTES_AT_MOST => {
                function.dynamic_shared.store(bytes, Ordering::Relaxed);
                Ok(())
            }
            _ => {
                let name = &function.name;
                let line = format!("{name}: attribute {attribute} can't be {value}");
                Err(Failure::new(Code::INVALID_VALUE, line))
            }
        }
    })
    .0
}

/// # Safety
/// `value` is null or has room for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: u64) -> i32 {
    call("cuFuncGetAttribute", |state| {
        state.in_context()?;
        let function = state.function(function)?;
        let known = match attribute {
            MAX_THREADS => BLOCK_THREADS,
            STATIC_SHARED => {
                let own = function.kernel.shared_bytes();
                let own =
                    own.map_err(|fault| Failure::new(Code::INVALID_PTX, fault.to_string()))?;
                u32::try_from(own).unwrap_or(u32::MAX)
            }
            CONSTANT_BYTES => 0,
            DYNAMIC_SHARED => function.dynamic_shared.load(Ordering::Relaxed),
            // Registers, for one, are the compiler's of a device.
            _ => {
                let line = format!("attribute {attribute} isn't known here");
                return Err(Failure::new(Code::NOT_SUPPORTED, line));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { put(value, known as c_int) }
    })
    .0
}
