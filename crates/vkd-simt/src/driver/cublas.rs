//! The products of cuBLAS that candle asks for: strided batches, in the types that its own table allows.
#![allow(unsafe_code, non_snake_case, reason = "functions of C, with C's names")]

use std::ffi::c_void;

use half::f16;

use super::error::{Code, Failure, call, work};
use super::state::{State, put};
use crate::blas::{Matrix, Number, Product};

// `cublasStatus_t`.
const SUCCESS: i32 = 0;
const NOT_INITIALIZED: i32 = 1;
const INVALID_VALUE: i32 = 7;
const EXECUTION_FAILED: i32 = 13;
const NOT_SUPPORTED: i32 = 15;

fn status(code: Code) -> i32 {
    match code {
        Code::SUCCESS => SUCCESS,
        Code::INVALID_HANDLE | Code::NOT_INITIALIZED => NOT_INITIALIZED,
        Code::INVALID_VALUE => INVALID_VALUE,
        Code::NOT_SUPPORTED => NOT_SUPPORTED,
        _ => EXECUTION_FAILED,
    }
}

/// # Safety
/// `handle` is null or has room for one.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasCreate_v2(handle: *mut u64) -> i32 {
    status(call("cublasCreate", |state| {
        state.in_context()?;
        let mut tables = state.tables();
        let new = tables.handle();
        // SAFETY: the caller's promise.
        unsafe { put(handle, new) }?;
        tables.libraries.insert(new);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cublasDestroy_v2(handle: u64) -> i32 {
    status(call("cublasDestroy", |state| {
        known(state, handle)?;
        state.tables().libraries.remove(&handle);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetStream_v2(handle: u64, stream: u64) -> i32 {
    status(call("cublasSetStream", |state| {
        known(state, handle)?;
        state.on_stream(stream)
    }))
}

fn known(state: &State, handle: u64) -> Result<(), Failure> {
    match state.tables().libraries.contains(&handle) {
        true => Ok(()),
        false => Err(Code::INVALID_HANDLE.into()),
    }
}

/// How numbers are added up, from `cublasComputeType_t`: the type of the two factors of the sum as well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sums {
    F16,
    F32,
    /// f32 numbers only, which a device may round to a shorter type first. Here they are not rounded.
    F32Short,
    F64,
}

impl Sums {
    fn of(number: i32) -> Option<Self> {
        Some(match number {
            64 | 65 => Self::F16,
            68 | 69 => Self::F32,
            74 | 75 | 77 => Self::F32Short,
            70 | 71 => Self::F64,
            _ => return None,
        })
    }

    /// cuBLAS's table of what goes with it: factors, result.
    fn goes_with(self, factors: Number, result: Number) -> bool {
        use Number::{Bf16, F16, F32, F64};
        match self {
            Self::F16 => (factors, result) == (F16, F16),
            Self::F32 => {
                matches!((factors, result), (F16 | Bf16 | F32, F32) | (F16, F16) | (Bf16, Bf16))
            }
            Self::F32Short => (factors, result) == (F32, F32),
            Self::F64 => (factors, result) == (F64, F64),
        }
    }

    /// # Safety
    /// `place` is null or has a number of this type.
    unsafe fn read(self, place: *const c_void) -> Result<f64, Failure> {
        if place.is_null() {
            return Err(Code::INVALID_VALUE.into());
        }
        // SAFETY: not null, so a number of the type is there.
        Ok(unsafe {
            match self {
                Self::F16 => f16::from_bits(place.cast::<u16>().read_unaligned()).to_f64(),
                Self::F32 | Self::F32Short => f64::from(place.cast::<f32>().read_unaligned()),
                Self::F64 => place.cast::<f64>().read_unaligned(),
            }
        })
    }
}

/// `cudaDataType_t`.
fn number(number: i32) -> Option<Number> {
    Some(match number {
        0 => Number::F32,
        1 => Number::F64,
        2 => Number::F16,
        14 => Number::Bf16,
        _ => return None,
    })
}

/// Of a real matrix the conjugate transpose is the transpose.
fn is_transposed(operation: i32) -> Result<bool, Failure> {
    match operation {
        0 => Ok(false),
        1 | 2 => Ok(true),
        _ => Err(Failure::new(Code::INVALID_VALUE, format!("operation {operation} isn't known"))),
    }
}

fn size(what: &str, value: i32) -> Result<usize, Failure> {
    let wrong =
        |_| Failure::new(Code::INVALID_VALUE, format!("{what}: expected 0 or more, got {value}"));
    usize::try_from(value).map_err(wrong)
}

/// An operand as C has it: address, type, leading dimension, stride.
type Operand = (u64, i32, i32, i64);

fn matrix(what: &str, (address, kind, ld, stride): Operand) -> Result<Matrix, Failure> {
    let number = number(kind).ok_or_else(|| {
        Failure::new(Code::NOT_SUPPORTED, format!("{what}: type {kind} isn't known here"))
    })?;
    let ld = size(&format!("leading dimension of {what}"), ld)?;
    let stride = usize::try_from(stride)
        .map_err(|_| Failure::new(Code::INVALID_VALUE, format!("stride of {what}: {stride}")))?;
    Ok(Matrix { address, number, ld, stride })
}

/// # Safety
/// `alpha` and `beta` are null or numbers of the type of the sums.
unsafe fn product(
    state: &State,
    handle: u64,
    operations: (i32, i32),
    sizes: (i32, i32, i32),
    (alpha, beta): (*const c_void, *const c_void),
    (a, b, c): (Operand, Operand, Operand),
    (batch, sums): (i32, i32),
) -> Result<(), Failure> {
    state.in_context()?;
    known(state, handle)?;
    let not_here = |line: String| Failure::new(Code::NOT_SUPPORTED, line);
    let sums =
        Sums::of(sums).ok_or_else(|| not_here(format!("sums of type {sums} aren't made here")))?;
    let (a, b, c) = (matrix("A", a)?, matrix("B", b)?, matrix("C", c)?);
    if a.number != b.number || !sums.goes_with(a.number, c.number) {
        let line = format!(
            "no product of {:?} and {:?} into {:?} by these sums",
            a.number, b.number, c.number
        );
        return Err(not_here(line));
    }
    let product = Product {
        is_transposed: [is_transposed(operations.0)?, is_transposed(operations.1)?],
        m: size("m", sizes.0)?,
        n: size("n", sizes.1)?,
        k: size("k", sizes.2)?,
        // SAFETY: the caller's promise.
        alpha: unsafe { sums.read(alpha) }?,
        // SAFETY: the caller's promise.
        beta: unsafe { sums.read(beta) }?,
        a,
        b,
        c,
        batch: size("batch", batch)?,
    };
    product.check().map_err(|line| Failure::new(Code::INVALID_VALUE, line))?;
    state.counts.product();
    product.run(&state.memory).map_err(|fault| Failure::of_device(&fault))
}

/// # Safety
/// `alpha` and `beta` are null or at numbers of the type that `sums` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGemmStridedBatchedEx(
    handle: u64,
    operation_a: i32,
    operation_b: i32,
    m: i32,
    n: i32,
    k: i32,
    alpha: *const c_void,
    a: u64,
    type_a: i32,
    lda: i32,
    stride_a: i64,
    b: u64,
    type_b: i32,
    ldb: i32,
    stride_b: i64,
    beta: *const c_void,
    c: u64,
    type_c: i32,
    ldc: i32,
    stride_c: i64,
    batch: i32,
    sums: i32,
    _algorithm: i32,
) -> i32 {
    let operands =
        ((a, type_a, lda, stride_a), (b, type_b, ldb, stride_b), (c, type_c, ldc, stride_c));
    let operations = (operation_a, operation_b);
    // SAFETY: the caller's promise.
    status(work("cublasGemmStridedBatchedEx", |state| unsafe {
        product(state, handle, operations, (m, n, k), (alpha, beta), operands, (batch, sums))
    }))
}

/// # Safety
/// `alpha` and `beta` are null or at an f64.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasDgemmStridedBatched(
    handle: u64,
    operation_a: i32,
    operation_b: i32,
    m: i32,
    n: i32,
    k: i32,
    alpha: *const c_void,
    a: u64,
    lda: i32,
    stride_a: i64,
    b: u64,
    ldb: i32,
    stride_b: i64,
    beta: *const c_void,
    c: u64,
    ldc: i32,
    stride_c: i64,
    batch: i32,
) -> i32 {
    let operands = ((a, 1, lda, stride_a), (b, 1, ldb, stride_b), (c, 1, ldc, stride_c));
    let operations = (operation_a, operation_b);
    // SAFETY: the caller's promise.
    status(work("cublasDgemmStridedBatched", |state| unsafe {
        product(state, handle, operations, (m, n, k), (alpha, beta), operands, (batch, 70))
    }))
}
