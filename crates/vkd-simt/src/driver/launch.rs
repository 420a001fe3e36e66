//! The launch of a kernel, with a device's limits.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use std::ffi::c_void;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use super::context::{
    BLOCK_LIMITS, BLOCK_THREADS, GRID_LIMITS, SHARED_BYTES, SHARED_BYTES_AT_MOST,
};
use super::error::{Code, Failure, work};
use crate::Launch;
use crate::fault::Kind;

/// Whether races of threads on shared memory are looked for.
static RACES: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("VKD_SIMT_RACES").is_some_and(|value| value == "1"));

/// # Safety
/// `parameters` is null or has one pointer for each of the kernel's parameters, each null or at so many bytes as that one has.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: u64,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> i32 {
    work("cuLaunchKernel", |state| {
        state.on_stream(stream)?;
        let function = state.function(function)?;
        let launch = Launch {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared_bytes,
            watch_races: *RACES,
        };
        let refused =
            |line| Failure::new(Code::INVALID_VALUE, format!("{}: {line}", function.name));
        // The first launch is when the kernel's text is read.
        let own = function.kernel.shared_bytes();
        let own = own.map_err(|fault| Failure::new(Code::INVALID_PTX, fault.to_string()))?;
        let allowed = function.dynamic_shared.load(Ordering::Relaxed);
        check(launch, own, allowed).map_err(refused)?;
        if !extra.is_null() {
            return Err(refused("parameters in one buffer aren't taken here".to_owned()));
        }
        // SAFETY: the caller's promise.
        let packed = unsafe { pack(&function.kernel.parameters(), parameters) };
        let packed = packed.ok_or_else(|| refused("a parameter is missing".to_owned()))?;
        let run = function.kernel.run(launch, &packed, &state.memory);
        if !run.as_ref().is_err_and(|fault| fault.kind() == Kind::Launch) {
            state.counts.launch(&function.name);
        }
        run.map_err(|fault| Failure::of_device(&fault))
    })
    .0
}

/// What a device of capability 8.0 refuses, of a kernel with so many shared bytes of its own, which may ask for so many more.
fn check(launch: Launch, own: usize, allowed: u32) -> Result<(), String> {
    let axes = ["x", "y", "z"];
    for (what, got, most) in
        [("blocks", launch.grid, GRID_LIMITS), ("threads of a block", launch.block, BLOCK_LIMITS)]
    {
        for ((got, most), axis) in got.into_iter().zip(most).zip(axes) {
            if got == 0 || got > most {
                return Err(format!("expected 1 to {most} {what} in {axis}, got {got}"));
            }
        }
    }
    // The three are at most 1024, 1024 and 64.
    let threads: u32 = launch.block.iter().product();
    if threads > BLOCK_THREADS {
        return Err(format!("expected at most {BLOCK_THREADS} threads of a block, got {threads}"));
    }
    let asked = launch.shared_bytes;
    // What is asked for above 48 KiB holds for the launch's part; without it both together have 48.
    let most = match allowed > SHARED_BYTES {
        true => SHARED_BYTES_AT_MOST,
        false => SHARED_BYTES,
    };
    if asked > allowed || own.saturating_add(asked as usize) > most as usize {
        return Err(format!(
            "expected at most {most} bytes of shared memory, {allowed} of them at the launch, got {own} and {asked}"
        ));
    }
    Ok(())
}

/// The parameters in one piece, each where the kernel has it; none where one is missing.
///
/// # Safety
/// As of [`cuLaunchKernel`].
unsafe fn pack(layout: &[(usize, usize)], parameters: *const *const c_void) -> Option<Vec<u8>> {
    let bytes = layout.iter().map(|(offset, bytes)| offset + bytes).max().unwrap_or(0);
    let mut packed = vec![0; bytes];
    for (i, &(offset, bytes)) in layout.iter().enumerate() {
        if parameters.is_null() {
            return None;
        }
        // SAFETY: there is a pointer for each parameter.
        let from = unsafe { parameters.add(i).read() }.cast::<u8>();
        if from.is_null() {
            return None;
        }
        // SAFETY: so many bytes are there.
        let from = unsafe { std::slice::from_raw_parts(from, bytes) };
        packed.get_mut(offset..offset + bytes)?.copy_from_slice(from);
    }
    Some(packed)
}
