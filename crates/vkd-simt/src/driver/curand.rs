//! Generators of cuRAND, as candle makes one with each device. None draws a number: every random number of this project is a function of a
//! seed and a name, and is made on the host.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use super::error::{Code, call};
use super::state::{State, put};

const NOT_INITIALIZED: i32 = 101;
const INITIALIZATION_FAILED: i32 = 203;
const SUCCESS: i32 = 0;

fn status(code: Code, failed: i32) -> i32 {
    if code == Code::SUCCESS { SUCCESS } else { failed }
}

fn known(state: &State, generator: u64) -> Result<(), super::error::Failure> {
    match state.tables().libraries.contains(&generator) {
        true => Ok(()),
        false => Err(Code::INVALID_HANDLE.into()),
    }
}

/// # Safety
/// `generator` is null or has room for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn curandCreateGenerator(generator: *mut u64, _kind: i32) -> i32 {
    let code = call("curandCreateGenerator", |state| {
        state.in_context()?;
        let mut tables = state.tables();
        let handle = tables.handle();
        // SAFETY: the caller's promise.
        unsafe { put(generator, handle) }?;
        tables.libraries.insert(handle);
        Ok(())
    });
    status(code, INITIALIZATION_FAILED)
}

#[unsafe(no_mangle)]
extern "C" fn curandDestroyGenerator(generator: u64) -> i32 {
    let code = call("curandDestroyGenerator", |state| {
        known(state, generator)?;
        state.tables().libraries.remove(&generator);
        Ok(())
    });
    status(code, NOT_INITIALIZED)
}

#[unsafe(no_mangle)]
extern "C" fn curandSetPseudoRandomGeneratorSeed(generator: u64, _seed: u64) -> i32 {
    status(
        call("curandSetPseudoRandomGeneratorSeed", |state| known(state, generator)),
        NOT_INITIALIZED,
    )
}

#[unsafe(no_mangle)]
extern "C" fn curandSetStream(generator: u64, stream: u64) -> i32 {
    let code = call("curandSetStream", |state| {
        state.on_stream(stream)?;
        known(state, generator)
    });
    status(code, NOT_INITIALIZED)
}
