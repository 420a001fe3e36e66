//! The functions of C as a program calls them, and a device for one test at a time.
#![allow(unsafe_code, reason = "functions of C are declared")]
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
#![allow(dead_code, reason = "no test file needs all of it")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Mutex, PoisonError};

// The library itself, whose functions are called by name only.
use vkd_simt as _;

pub(crate) const INVALID_VALUE: i32 = 1;
pub(crate) const OUT_OF_MEMORY: i32 = 2;
pub(crate) const INVALID_DEVICE: i32 = 101;
pub(crate) const INVALID_IMAGE: i32 = 200;
pub(crate) const INVALID_CONTEXT: i32 = 201;
pub(crate) const INVALID_PTX: i32 = 218;
pub(crate) const FILE_NOT_FOUND: i32 = 301;
pub(crate) const INVALID_HANDLE: i32 = 400;
pub(crate) const NOT_FOUND: i32 = 500;
pub(crate) const ILLEGAL_ADDRESS: i32 = 700;
pub(crate) const MISALIGNED_ADDRESS: i32 = 716;
pub(crate) const LAUNCH_FAILED: i32 = 719;

// Pointers are references, or none for null, so that the tests can do without `unsafe`.
unsafe extern "C" {
    pub(crate) safe fn cuInit(flags: u32) -> i32;
    pub(crate) safe fn cuDeviceGet(place: Option<&mut i32>, ordinal: i32) -> i32;
    pub(crate) safe fn cuDeviceGetCount(place: Option<&mut i32>) -> i32;
    pub(crate) safe fn cuDeviceGetAttribute(
        place: Option<&mut i32>,
        number: i32,
        device: i32,
    ) -> i32;
    pub(crate) safe fn cuDevicePrimaryCtxRetain(place: Option<&mut u64>, device: i32) -> i32;
    pub(crate) safe fn cuDevicePrimaryCtxRelease_v2(device: i32) -> i32;
    pub(crate) safe fn cuCtxSetCurrent(context: u64) -> i32;
    pub(crate) safe fn cuCtxGetCurrent(place: Option<&mut u64>) -> i32;
    pub(crate) safe fn cuCtxSynchronize() -> i32;
    pub(crate) safe fn cuMemAlloc_v2(place: Option<&mut u64>, bytes: usize) -> i32;
    pub(crate) safe fn cuMemAllocAsync(place: Option<&mut u64>, bytes: usize, stream: u64) -> i32;
    pub(crate) safe fn cuMemFree_v2(address: u64) -> i32;
    pub(crate) safe fn cuMemFreeAsync(address: u64, stream: u64) -> i32;
    pub(crate) safe fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> i32;
    pub(crate) safe fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: u64) -> i32;
    pub(crate) safe fn cuStreamCreate(place: Option<&mut u64>, flags: u32) -> i32;
    pub(crate) safe fn cuStreamDestroy_v2(stream: u64) -> i32;
    pub(crate) safe fn cuStreamSynchronize(stream: u64) -> i32;
    pub(crate) safe fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> i32;
    pub(crate) safe fn cuStreamIsCapturing(stream: u64, place: Option<&mut u32>) -> i32;
    pub(crate) safe fn cuEventCreate(place: Option<&mut u64>, flags: u32) -> i32;
    pub(crate) safe fn cuEventDestroy_v2(event: u64) -> i32;
    pub(crate) safe fn cuEventRecord(event: u64, stream: u64) -> i32;
    pub(crate) safe fn cuEventSynchronize(event: u64) -> i32;
    pub(crate) safe fn cuEventElapsedTime(place: Option<&mut f32>, begin: u64, end: u64) -> i32;
    pub(crate) safe fn cuModuleUnload(module: u64) -> i32;
    pub(crate) safe fn cuFuncSetAttribute(function: u64, attribute: i32, value: i32) -> i32;
    pub(crate) safe fn cuFuncGetAttribute(
        place: Option<&mut i32>,
        attribute: i32,
        function: u64,
    ) -> i32;
    pub(crate) safe fn curandCreateGenerator(place: Option<&mut u64>, kind: i32) -> i32;
    pub(crate) safe fn curandSetPseudoRandomGeneratorSeed(generator: u64, seed: u64) -> i32;
    pub(crate) safe fn curandSetStream(generator: u64, stream: u64) -> i32;
    pub(crate) safe fn curandDestroyGenerator(generator: u64) -> i32;
    pub(crate) safe fn cublasCreate_v2(place: Option<&mut u64>) -> i32;
    pub(crate) safe fn cublasSetStream_v2(handle: u64, stream: u64) -> i32;
    pub(crate) safe fn cublasDestroy_v2(handle: u64) -> i32;

    fn cuGetErrorName(error: i32, place: *mut *const c_char) -> i32;
    fn cuDeviceGetName(name: *mut c_char, bytes: i32, device: i32) -> i32;
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) -> i32;
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) -> i32;
    fn cuModuleLoadData(place: Option<&mut u64>, image: *const c_char) -> i32;
    fn cuModuleLoad(place: Option<&mut u64>, path: *const c_char) -> i32;
    fn cuModuleGetFunction(place: Option<&mut u64>, module: u64, name: *const c_char) -> i32;
    fn cuLaunchKernel(
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
    ) -> i32;
    pub(crate) safe fn cublasGemmStridedBatchedEx(
        handle: u64,
        operation_a: i32,
        operation_b: i32,
        m: i32,
        n: i32,
        k: i32,
        alpha: Option<&Scale>,
        a: u64,
        type_a: i32,
        lda: i32,
        stride_a: i64,
        b: u64,
        type_b: i32,
        ldb: i32,
        stride_b: i64,
        beta: Option<&Scale>,
        c: u64,
        type_c: i32,
        ldc: i32,
        stride_c: i64,
        batch: i32,
        sums: i32,
        algorithm: i32,
    ) -> i32;
    pub(crate) safe fn cublasDgemmStridedBatched(
        handle: u64,
        operation_a: i32,
        operation_b: i32,
        m: i32,
        n: i32,
        k: i32,
        alpha: Option<&f64>,
        a: u64,
        lda: i32,
        stride_a: i64,
        b: u64,
        ldb: i32,
        stride_b: i64,
        beta: Option<&f64>,
        c: u64,
        ldc: i32,
        stride_c: i64,
        batch: i32,
    ) -> i32;
}

/// The bytes of a number of any type that sums are made in.
#[repr(C, align(8))]
pub(crate) struct Scale(pub(crate) [u8; 8]);

/// The whole process has one device: its tests take turns, each with a new context.
pub(crate) fn on_device(test: impl FnOnce()) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut context = 0;
    assert_eq!(cuInit(0), 0);
    assert_eq!(cuDevicePrimaryCtxRetain(Some(&mut context), 0), 0);
    assert_eq!(cuCtxSetCurrent(context), 0);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
    // Whatever became of it, the next begins anew.
    while cuDevicePrimaryCtxRelease_v2(0) == 0 {}
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn error_name(error: i32) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: there is room for the pointer, and it is to a text that lasts.
    unsafe {
        let code = cuGetErrorName(error, &mut text);
        (code == 0).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

pub(crate) fn device_name(room: usize) -> (i32, String) {
    let mut name = vec![b'x'; room + 1];
    // SAFETY: there is room for one byte more.
    let code = unsafe { cuDeviceGetName(name.as_mut_ptr().cast(), room as i32, 0) };
    assert_eq!(name.pop(), Some(b'x'), "past the end");
    let text = CStr::from_bytes_until_nul(&name).map(|text| text.to_string_lossy().into_owned());
    (code, text.unwrap_or_default())
}

pub(crate) fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    assert_eq!(cuMemAllocAsync(Some(&mut address), bytes, 0), 0);
    address
}

pub(crate) fn write(to: u64, from: &[u8]) -> i32 {
    // SAFETY: the slice has its length.
    unsafe { cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), 0) }
}

pub(crate) fn read(to: &mut [u8], from: u64) -> i32 {
    // SAFETY: the slice has its length.
    unsafe { cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), 0) }
}

/// A copy of so many bytes from or to nowhere.
pub(crate) fn copy_null(address: u64, bytes: usize) -> [i32; 2] {
    // SAFETY: null is allowed.
    unsafe {
        [
            cuMemcpyHtoDAsync_v2(address, std::ptr::null(), bytes, 0),
            cuMemcpyDtoHAsync_v2(std::ptr::null_mut(), address, bytes, 0),
        ]
    }
}

/// The bytes of these numbers, on the device.
pub(crate) fn upload(bytes: &[u8]) -> u64 {
    let address = allocate(bytes.len());
    assert_eq!(write(address, bytes), 0);
    address
}

pub(crate) fn download(address: u64, bytes: usize) -> Vec<u8> {
    let mut to = vec![0; bytes];
    assert_eq!(read(&mut to, address), 0);
    to
}

pub(crate) fn load(ptx: &str) -> Result<u64, i32> {
    let text = CString::new(ptx).unwrap();
    let mut module = 0;
    // SAFETY: a text that ends with a zero.
    let code = unsafe { cuModuleLoadData(Some(&mut module), text.as_ptr()) };
    if code == 0 { Ok(module) } else { Err(code) }
}

pub(crate) fn load_file(path: &str) -> Result<u64, i32> {
    let path = CString::new(path).unwrap();
    let mut module = 0;
    // SAFETY: a text that ends with a zero.
    let code = unsafe { cuModuleLoad(Some(&mut module), path.as_ptr()) };
    if code == 0 { Ok(module) } else { Err(code) }
}

/// Null in the place of each pointer.
pub(crate) fn load_null() -> [i32; 4] {
    let mut place = 0;
    // SAFETY: null is allowed.
    unsafe {
        [
            cuModuleLoadData(None, c"".as_ptr()),
            cuModuleLoadData(Some(&mut place), std::ptr::null()),
            cuModuleLoad(Some(&mut place), std::ptr::null()),
            cuModuleGetFunction(Some(&mut place), 0, std::ptr::null()),
        ]
    }
}

pub(crate) fn function(module: u64, name: &str) -> Result<u64, i32> {
    let name = CString::new(name).unwrap();
    let mut function = 0;
    // SAFETY: a text that ends with a zero.
    let code = unsafe { cuModuleGetFunction(Some(&mut function), module, name.as_ptr()) };
    if code == 0 { Ok(function) } else { Err(code) }
}

/// Launches with parameters of eight bytes, of which the kernel may take fewer.
pub(crate) fn launch(
    function: u64,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    parameters: &[u64],
) -> i32 {
    let places: Vec<*const c_void> = parameters.iter().map(|p| (&raw const *p).cast()).collect();
    let places = if places.is_empty() { std::ptr::null() } else { places.as_ptr() };
    let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
    // SAFETY: the kernels of the tests have no more parameters than are given, or none are given at all.
    unsafe {
        cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared_bytes, 0, places, std::ptr::null())
    }
}
