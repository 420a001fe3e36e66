//! What a program asks of the driver beside launches, and what the driver refuses.

mod device;

use device::*;

#[test]
fn there_is_one_device_of_capability_8() {
    on_device(|| {
        let (mut count, mut device) = (-1, -1);
        assert_eq!(cuDeviceGetCount(Some(&mut count)), 0);
        assert_eq!(cuDeviceGet(Some(&mut device), 0), 0);
        assert_eq!((count, device), (1, 0));
        for ordinal in [1, -1] {
            assert_eq!(cuDeviceGet(Some(&mut device), ordinal), INVALID_DEVICE);
        }
        assert_eq!(cuDeviceGet(None, 0), INVALID_VALUE);
        let attribute = |number| {
            let mut value = -1;
            let code = cuDeviceGetAttribute(Some(&mut value), number, 0);
            if code == 0 { Ok(value) } else { Err(code) }
        };
        // Threads of a block, of a warp, the capability, memory pools.
        for (number, want) in [(1, 1024), (10, 32), (75, 8), (76, 0), (115, 1)] {
            assert_eq!(attribute(number), Ok(want), "attribute {number}");
        }
        assert_eq!(attribute(100_000), Err(INVALID_VALUE));
        assert_eq!(cuDeviceGetAttribute(None, 1, 0), INVALID_VALUE);
        assert_eq!(device_name(100), (0, "vkd-simt: PTX on the CPU".to_owned()));
        assert_eq!(device_name(5), (0, "vkd-".to_owned()));
        assert_eq!(device_name(0).0, INVALID_VALUE);
        assert_eq!(error_name(700).as_deref(), Some("CUDA_ERROR_ILLEGAL_ADDRESS"));
        assert_eq!(error_name(716).as_deref(), Some("CUDA_ERROR_MISALIGNED_ADDRESS"));
        assert_eq!(error_name(710).as_deref(), Some("CUDA_ERROR_ASSERT"));
        assert_eq!(error_name(-5), None);
    });
}

#[test]
fn without_a_context_nothing_is_done() {
    on_device(|| {
        let (mut context, mut address) = (0, 0);
        assert_eq!(cuCtxGetCurrent(Some(&mut context)), 0);
        assert_eq!(cuCtxSetCurrent(0), 0);
        assert_eq!(cuMemAlloc_v2(Some(&mut address), 4), INVALID_CONTEXT);
        assert_eq!(cuCtxSetCurrent(context + 1), INVALID_CONTEXT);
        assert_eq!(cuCtxSetCurrent(context), 0);
        assert_eq!(cuMemAlloc_v2(Some(&mut address), 4), 0);
        // A thread has its own.
        std::thread::spawn(|| assert_eq!(cuCtxSynchronize(), INVALID_CONTEXT)).join().unwrap();
        // The end of a context frees its memory, and the next is another one.
        assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
        assert_eq!(cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT);
        assert_eq!(cuCtxSynchronize(), INVALID_CONTEXT);
        let mut next = 0;
        assert_eq!(cuDevicePrimaryCtxRetain(Some(&mut next), 0), 0);
        assert_ne!(next, context);
        assert_eq!(cuCtxSetCurrent(next), 0);
        assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
    });
}

#[test]
fn memory_is_copied_and_each_copy_checked() {
    on_device(|| {
        let (from, to) = (upload(&[1, 2, 3, 4, 5]), allocate(8));
        assert_eq!(cuMemsetD8Async(to, 7, 8, 0), 0);
        assert_eq!(cuMemcpyDtoDAsync_v2(to + 2, from + 1, 3, 0), 0);
        assert_eq!(download(to, 8), [7, 7, 2, 3, 4, 7, 7, 7]);
        assert_eq!(write(to + 4, &[0; 5]), INVALID_VALUE);
        assert_eq!(read(&mut [0; 6], from), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoDAsync_v2(to, from, 6, 0), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoDAsync_v2(from, to, 6, 0), INVALID_VALUE);
        assert_eq!(cuMemsetD8Async(to + 1, 0, 8, 0), INVALID_VALUE);
        assert_eq!(copy_null(to, 1), [INVALID_VALUE; 2]);
        assert_eq!(copy_null(to, 0), [0; 2]);
        // Of nothing any place is right.
        assert_eq!(copy_null(0, 0), [0; 2]);
        assert_eq!(cuMemcpyDtoDAsync_v2(0, 0, 0, 0), 0);
        assert_eq!(cuMemsetD8Async(0, 1, 0, 0), 0);
        // What a copy onto a part of itself leaves isn't defined.
        for (to_byte, from_byte) in [(0, 0), (0, 3), (3, 0)] {
            let code = cuMemcpyDtoDAsync_v2(to + to_byte, to + from_byte, 4, 0);
            assert_eq!(code, INVALID_VALUE, "{from_byte} to {to_byte}");
        }
        assert_eq!(cuMemcpyDtoDAsync_v2(to, to + 4, 4, 0), 0);
        assert_eq!(download(to, 8), [4, 7, 7, 7, 4, 7, 7, 7]);
        assert_eq!(cuMemsetD8Async(to, 7, 8, 0), 0);
        // A refusal breaks nothing.
        assert_eq!(download(to, 1), [7]);
    });
}

#[test]
fn memory_is_freed_once() {
    on_device(|| {
        let block = allocate(10);
        assert_eq!(cuMemFreeAsync(block + 1, 0), INVALID_VALUE);
        assert_eq!(cuMemFreeAsync(block, 0), 0);
        assert_eq!(cuMemFreeAsync(block, 0), INVALID_VALUE);
        assert_eq!(cuMemFree_v2(block), INVALID_VALUE);
        assert_eq!(read(&mut [0], block), INVALID_VALUE);
        assert_eq!(cuMemFree_v2(0), 0);
        let mut address = 0;
        assert_eq!(cuMemAlloc_v2(Some(&mut address), 0), INVALID_VALUE);
        assert_eq!(cuMemAlloc_v2(None, 4), INVALID_VALUE);
        assert_eq!(cuMemAllocAsync(None, 4, 0), INVALID_VALUE);
        assert_eq!(cuMemAllocAsync(Some(&mut address), 1 << 40, 0), OUT_OF_MEMORY);
        let empty = allocate(0);
        assert_eq!(cuMemFreeAsync(empty, 0), 0);
    });
}

#[test]
fn streams_and_events_are_handles() {
    on_device(|| {
        let (mut stream, mut begin, mut end, mut untimed) = (0, 0, 0, 0);
        assert_eq!(cuStreamCreate(Some(&mut stream), 1), 0);
        assert_eq!(cuStreamCreate(None, 1), INVALID_VALUE);
        for (event, flags) in [(&mut begin, 0), (&mut end, 0), (&mut untimed, 2)] {
            assert_eq!(cuEventCreate(Some(event), flags), 0);
        }
        let mut time = -1.;
        assert_eq!(cuEventElapsedTime(Some(&mut time), begin, end), INVALID_HANDLE);
        for event in [begin, end, untimed] {
            assert_eq!(cuEventRecord(event, stream), 0);
            assert_eq!(cuEventSynchronize(event), 0);
        }
        assert_eq!(cuEventElapsedTime(Some(&mut time), begin, end), 0);
        assert!(time >= 0., "{time}");
        assert_eq!(cuEventElapsedTime(Some(&mut time), begin, untimed), INVALID_HANDLE);
        assert_eq!(cuStreamWaitEvent(stream, end, 0), 0);
        assert_eq!(cuStreamWaitEvent(stream, stream, 0), INVALID_HANDLE);
        let mut status = 9;
        // The thread's own stream is always there.
        for stream in [0, 2, stream] {
            assert_eq!(cuStreamSynchronize(stream), 0);
            assert_eq!(cuStreamIsCapturing(stream, Some(&mut status)), 0);
            assert_eq!(status, 0);
        }
        assert_eq!(cuEventDestroy_v2(end), 0);
        assert_eq!(cuEventRecord(end, stream), INVALID_HANDLE);
        assert_eq!(cuStreamDestroy_v2(stream), 0);
        assert_eq!(cuStreamDestroy_v2(stream), INVALID_HANDLE);
        let mut address = 0;
        assert_eq!(cuMemAllocAsync(Some(&mut address), 4, stream), INVALID_HANDLE);
    });
}

#[test]
fn libraries_have_handles_too() {
    on_device(|| {
        let (mut blas, mut random) = (0, 0);
        assert_eq!(cublasCreate_v2(Some(&mut blas)), 0);
        assert_eq!(cublasCreate_v2(None), 7);
        assert_eq!(cublasSetStream_v2(blas, 2), 0);
        assert_eq!(cublasSetStream_v2(blas, 77), 1);
        assert_eq!(cublasDestroy_v2(blas), 0);
        assert_eq!(cublasDestroy_v2(blas), 1);
        assert_eq!(curandCreateGenerator(Some(&mut random), 100), 0);
        assert_eq!(curandSetStream(random, 2), 0);
        assert_eq!(curandSetPseudoRandomGeneratorSeed(random, 5), 0);
        assert_eq!(curandDestroyGenerator(random), 0);
        assert_ne!(curandDestroyGenerator(random), 0);
        assert_ne!(curandSetPseudoRandomGeneratorSeed(random, 5), 0);
    });
}
