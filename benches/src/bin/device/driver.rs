//! What this program asks of the driver that makes the host wait, counted where it is asked: with the feature `cuda` functions of the
//! driver's names stand here, which the linker takes for all crates of the program, and hand each call on to the driver's own.
//!
//! So a copy of candle's that nobody knows of is counted as well. Counted are the functions by which cudarc copies to the host and
//! waits for a stream, an event or a whole context; [`check`] sees to it that they are still the ones.
#![allow(
    unsafe_code,
    reason = "functions of another language stand between the program and the driver"
)]

use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::atomic::{AtomicU64, Ordering};

static COPIES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static WAITS: AtomicU64 = AtomicU64::new(0);

/// What has been counted since the program's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Copies to the host.
    pub(crate) copies: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Waits for a stream, an event or all work.
    pub(crate) waits: u64,
}

impl Counts {
    /// What came after `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            copies: self.copies - earlier.copies,
            bytes: self.bytes - earlier.bytes,
            waits: self.waits - earlier.waits,
        }
    }
}

pub(crate) fn counts() -> Counts {
    let of = |count: &AtomicU64| count.load(Ordering::SeqCst);
    Counts { copies: of(&COPIES), bytes: of(&BYTES), waits: of(&WAITS) }
}

/// Sees to it that a copy and a wait on a CUDA device are counted.
///
/// # Errors
/// One that is not.
pub(crate) fn check(device: &Device) -> Result<()> {
    if !device.is_cuda() {
        return Ok(());
    }
    let before = counts();
    Tensor::zeros(2, DType::F64, device)?.to_vec1::<f64>()?;
    device.synchronize()?;
    match counts().since(before) {
        Counts { copies: 1, bytes: 16, waits: 1 } => Ok(()),
        found => bail!("driver: expected one copy of 16 bytes and one wait, counted {found:?}"),
    }
}

#[cfg(feature = "cuda")]
mod functions {
    #![allow(non_snake_case, reason = "the names are the driver's")]

    use super::{BYTES, COPIES, WAITS};
    use std::ffi::{CStr, c_void};
    use std::sync::atomic::Ordering;

    /// `CUDA_ERROR_NOT_FOUND`, for a driver without the function.
    const NOT_FOUND: i32 = 500;

    /// The driver's own function of that name, behind this program's.
    fn next(name: &CStr) -> *mut c_void {
        // SAFETY: a C string and a handle that the loader defines; what comes back is an address or null.
        unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
    }

    /// The driver's: copies `bytes` from the device, after what is queued on `stream`.
    ///
    /// # Safety
    /// As the driver asks.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
        to: *mut c_void,
        from: u64,
        bytes: usize,
        stream: *mut c_void,
    ) -> i32 {
        type Own = unsafe extern "C" fn(*mut c_void, u64, usize, *mut c_void) -> i32;
        COPIES.fetch_add(1, Ordering::SeqCst);
        BYTES.fetch_add(bytes as u64, Ordering::SeqCst);
        let driver = next(c"cuMemcpyDtoHAsync_v2");
        if driver.is_null() {
            return NOT_FOUND;
        }
        // SAFETY: the driver's function of this name has this type; the caller's arguments go on as they came.
        unsafe { std::mem::transmute::<*mut c_void, Own>(driver)(to, from, bytes, stream) }
    }

    /// The driver's: waits for an event.
    ///
    /// # Safety
    /// As the driver asks.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn cuEventSynchronize(event: *mut c_void) -> i32 {
        type Own = unsafe extern "C" fn(*mut c_void) -> i32;
        WAITS.fetch_add(1, Ordering::SeqCst);
        let driver = next(c"cuEventSynchronize");
        if driver.is_null() {
            return NOT_FOUND;
        }
        // SAFETY: as above.
        unsafe { std::mem::transmute::<*mut c_void, Own>(driver)(event) }
    }

    /// The driver's: waits for all work.
    ///
    /// # Safety
    /// As the driver asks.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn cuCtxSynchronize() -> i32 {
        type Own = unsafe extern "C" fn() -> i32;
        WAITS.fetch_add(1, Ordering::SeqCst);
        let driver = next(c"cuCtxSynchronize");
        if driver.is_null() {
            return NOT_FOUND;
        }
        // SAFETY: as above.
        unsafe { std::mem::transmute::<*mut c_void, Own>(driver)() }
    }

    /// The driver's: waits until all on `stream` is done.
    ///
    /// # Safety
    /// As the driver asks.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> i32 {
        type Own = unsafe extern "C" fn(*mut c_void) -> i32;
        WAITS.fetch_add(1, Ordering::SeqCst);
        let driver = next(c"cuStreamSynchronize");
        if driver.is_null() {
            return NOT_FOUND;
        }
        // SAFETY: as above.
        unsafe { std::mem::transmute::<*mut c_void, Own>(driver)(stream) }
    }
}
