//! Launches of a small kernel, as a program makes them: its results, what is refused, and what a fault leaves behind.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod device;

use device::*;

/// `narrow` allows 64 threads of a block and does nothing; `scale` multiplies the first `n` floats by a factor; `reach` writes one float at any index; `sum` adds up the floats of a block in shared
/// memory that the launch brings, waiting before they are read.
const PTX: &str = r"
.version 8.0
.target sm_80
.address_size 64

.visible .entry scale(
    .param .u64 scale_param_0,
    .param .f32 scale_param_1,
    .param .u32 scale_param_2
)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [scale_param_0];
    ld.param.f32 %f1, [scale_param_1];
    ld.param.u32 %r1, [scale_param_2];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd4], %f3;
DONE:
    ret;
}

.visible .entry narrow()
.maxntid 64, 1, 1
{
    ret;
}

.visible .entry reach(
    .param .u64 reach_param_0,
    .param .u32 reach_param_1
)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [reach_param_0];
    ld.param.u32 %r1, [reach_param_1];
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd2, %rd3;
    mov.u32 %r2, 1065353216;
    st.global.u32 [%rd4], %r2;
    ret;
}

.extern .shared .align 4 .b8 room[];

.visible .entry sum(
    .param .u64 sum_param_0
)
{
    .reg .pred %p<3>;
    .reg .f32 %f<5>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [sum_param_0];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4];
    mov.u32 %r2, room;
    shl.b32 %r3, %r1, 2;
    add.s32 %r4, %r2, %r3;
    st.shared.f32 [%r4], %f1;
    bar.sync 0;
    setp.ne.s32 %p1, %r1, 0;
    @%p1 bra END;
    mov.u32 %r5, %ntid.x;
    mov.f32 %f2, 0f00000000;
    mov.u32 %r6, 0;
LOOP:
    shl.b32 %r7, %r6, 2;
    add.s32 %r8, %r2, %r7;
    ld.shared.f32 %f3, [%r8];
    add.f32 %f2, %f2, %f3;
    add.s32 %r6, %r6, 1;
    setp.lt.u32 %p2, %r6, %r5;
    @%p2 bra LOOP;
    st.global.f32 [%rd2], %f2;
END:
    ret;
}
";

fn kernel(name: &str) -> u64 {
    function(load(PTX).unwrap(), name).unwrap()
}

fn floats(values: &[f32]) -> u64 {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    upload(&bytes)
}

fn values(address: u64, count: usize) -> Vec<f32> {
    let bytes = download(address, 4 * count);
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

const ONE: [u32; 3] = [1, 1, 1];

#[test]
fn a_kernel_works_on_what_was_copied() {
    on_device(|| {
        let numbers: Vec<f32> = (0..1000).map(|i| i as f32 / 8.).collect();
        let block = floats(&numbers);
        let parameters = [block, u64::from(2.5f32.to_bits()), 990];
        assert_eq!(launch(kernel("scale"), [8, 1, 1], [128, 1, 1], 0, &parameters), 0);
        let want: Vec<f32> =
            (0..1000).map(|i| if i < 990 { numbers[i] * 2.5 } else { numbers[i] }).collect();
        assert_eq!(values(block, 1000), want);
    });
}

#[test]
fn what_nobody_wrote_is_nan() {
    on_device(|| {
        let block = allocate(4);
        let parameters = [block, u64::from(0f32.to_bits()), 1];
        assert_eq!(launch(kernel("scale"), ONE, ONE, 0, &parameters), 0);
        assert!(values(block, 1)[0].is_nan());
    });
}

#[test]
fn shared_memory_of_the_launch_is_allowed_as_on_a_device() {
    on_device(|| {
        let sum = kernel("sum");
        let block = floats(&(1..=100).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(launch(sum, ONE, [100, 1, 1], 400, &[block]), 0);
        assert_eq!(values(block, 2), [5050., 2.]);
        let size = 60 << 10;
        assert_eq!(launch(sum, ONE, ONE, size, &[block]), INVALID_VALUE);
        // The largest that is allowed, and one more.
        assert_eq!(cuFuncSetAttribute(sum, 8, (163 << 10) + 1), INVALID_VALUE);
        assert_eq!(cuFuncSetAttribute(sum, 8, size as i32), 0);
        let mut got = 0;
        assert_eq!(cuFuncGetAttribute(Some(&mut got), 8, sum), 0);
        assert_eq!(got, size as i32);
        assert_eq!(launch(sum, ONE, ONE, size, &[block]), 0);
        assert_eq!(launch(sum, ONE, ONE, size + 1, &[block]), INVALID_VALUE);
    });
}

#[test]
fn launches_that_a_device_refuses_are_refused() {
    on_device(|| {
        let block = floats(&[1.; 8]);
        let scale = kernel("scale");
        let parameters = [block, u64::from(2f32.to_bits()), 8];
        let refused = [
            ([0, 1, 1], ONE),
            (ONE, [1, 0, 1]),
            (ONE, [1025, 1, 1]),
            (ONE, [32, 33, 1]),
            (ONE, [1, 1, 65]),
            ([1, 65_536, 1], ONE),
            ([1, 1, 65_536], ONE),
            ([1 << 31, 1, 1], ONE),
        ];
        for (grid, threads) in refused {
            assert_eq!(
                launch(scale, grid, threads, 0, &parameters),
                INVALID_VALUE,
                "{grid:?} {threads:?}"
            );
        }
        assert_eq!(launch(scale, ONE, ONE, 0, &[]), INVALID_VALUE);
        assert_eq!(launch(scale + 1, ONE, ONE, 0, &parameters), INVALID_HANDLE);
        // More threads than the kernel was compiled for.
        assert_eq!(launch(kernel("narrow"), ONE, [65, 1, 1], 0, &[]), INVALID_VALUE);
        assert_eq!(launch(kernel("narrow"), ONE, [64, 1, 1], 0, &[]), 0);
        // None of them did anything, nor broke anything.
        assert_eq!(values(block, 8), [1.; 8]);
        assert_eq!(launch(scale, ONE, [8, 1, 1], 0, &parameters), 0);
        assert_eq!(values(block, 8), [2.; 8]);
    });
}

#[test]
fn a_fault_of_a_kernel_stays_until_the_context_ends() {
    for (index, is_freed) in [(4, false), (u64::from(u32::MAX), false), (0, true)] {
        on_device(|| {
            let block = floats(&[0.; 4]);
            let reach = kernel("reach");
            assert_eq!(launch(reach, ONE, ONE, 0, &[block, 3]), 0);
            assert_eq!(values(block, 4), [0., 0., 0., 1.]);
            if is_freed {
                assert_eq!(cuMemFree_v2(block), 0);
            }
            assert_eq!(launch(reach, ONE, ONE, 0, &[block, index]), ILLEGAL_ADDRESS, "{index}");
            assert_eq!(cuStreamSynchronize(0), ILLEGAL_ADDRESS);
            assert_eq!(read(&mut [0], block), ILLEGAL_ADDRESS);
            assert_eq!(launch(reach, ONE, ONE, 0, &[block, 0]), ILLEGAL_ADDRESS);
        });
        on_device(|| assert_eq!(cuStreamSynchronize(0), 0));
    }
}

/// Many rounds of a kernel on a block of its own, of a copy to the other's and a free, in two threads of the host at once.
#[test]
fn threads_of_the_host_share_the_device() {
    on_device(|| {
        let mut context = 0;
        assert_eq!(cuCtxGetCurrent(Some(&mut context)), 0);
        let module = load(PTX).unwrap();
        let scale = function(module, "scale").unwrap();
        // Half of it belongs to each thread, and both write to it.
        let shared = floats(&[0.; 2048]);
        std::thread::scope(|scope| {
            for half in 0..2u64 {
                scope.spawn(move || {
                    assert_eq!(cuCtxSetCurrent(context), 0);
                    let mine = shared + half * 4096;
                    for round in 0..100u16 {
                        let number = f32::from(round) + half as f32 / 2.;
                        let block = floats(&vec![number; 1024]);
                        let parameters = [block, u64::from(2f32.to_bits()), 1024];
                        assert_eq!(launch(scale, [8, 1, 1], [128, 1, 1], 0, &parameters), 0);
                        assert_eq!(cuMemcpyDtoDAsync_v2(mine, block, 4096, 0), 0);
                        assert_eq!(cuMemFreeAsync(block, 0), 0);
                        assert_eq!(values(mine, 1024), vec![2. * number; 1024]);
                    }
                });
            }
        });
        assert_eq!(cuCtxSynchronize(), 0);
    });
}

/// A copy that another thread asks for sees all of a kernel's numbers or none.
#[test]
fn a_copy_waits_for_the_kernel_that_runs() {
    on_device(|| {
        let mut context = 0;
        assert_eq!(cuCtxGetCurrent(Some(&mut context)), 0);
        let scale = kernel("scale");
        let count = 1 << 17;
        let block = floats(&vec![1.; count]);
        let (ends, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                assert_eq!(cuCtxSetCurrent(context), 0);
                let parameters = [block, u64::from(2f32.to_bits()), count as u64];
                for _ in 0..20 {
                    let code = launch(scale, [512, 1, 1], [256, 1, 1], 0, &parameters);
                    ends.send(code).unwrap();
                    // So that the other has its turn: the lock isn't fair.
                    std::thread::sleep(std::time::Duration::from_micros(100));
                }
            });
            let mut launches = 0;
            while launches < 20 {
                let got = values(block, count);
                assert!(got.iter().all(|value| *value == got[0]), "a part of a kernel's numbers");
                for code in ended.try_iter() {
                    assert_eq!(code, 0);
                    launches += 1;
                }
            }
        });
        assert_eq!(values(block, 1), [2f32.powi(20)]);
    });
}

/// A kernel that runs while its block is freed has it until its end; one that comes later is told. The block is more than is kept of what is
/// freed, so that the host's pages would go from under the kernel.
#[test]
fn a_free_waits_for_the_kernel_that_runs() {
    for wait in [1, 5, 15] {
        on_device(|| {
            let mut context = 0;
            assert_eq!(cuCtxGetCurrent(Some(&mut context)), 0);
            let scale = kernel("scale");
            let block = allocate(65 << 20);
            std::thread::scope(|scope| {
                let kernel = scope.spawn(move || {
                    assert_eq!(cuCtxSetCurrent(context), 0);
                    let parameters = [block, u64::from(2f32.to_bits()), 1 << 22];
                    launch(scale, [1 << 14, 1, 1], [256, 1, 1], 0, &parameters)
                });
                std::thread::sleep(std::time::Duration::from_millis(wait));
                let freed = cuMemFree_v2(block);
                let code = kernel.join().unwrap();
                // Whichever came first; the free came before a kernel that wasn't let.
                assert!(code == 0 || code == ILLEGAL_ADDRESS, "{code}");
                assert_eq!(freed, 0);
            });
        });
    }
}

#[test]
fn modules_have_kernels_by_name() {
    on_device(|| {
        let module = load(PTX).unwrap();
        assert_eq!(function(module, "scale"), function(module, "scale"));
        assert_eq!(function(module, "scales"), Err(NOT_FOUND));
        assert_eq!(function(module + 1, "scale"), Err(INVALID_HANDLE));
        let scale = function(module, "scale").unwrap();
        assert_eq!(cuModuleUnload(module), 0);
        assert_eq!(cuModuleUnload(module), INVALID_HANDLE);
        assert_eq!(launch(scale, ONE, ONE, 0, &[]), INVALID_HANDLE);
        assert_eq!(load("\x7fELF..."), Err(INVALID_IMAGE));
        assert_eq!(load_file("no such file"), Err(FILE_NOT_FOUND));
        assert_eq!(load_null(), [INVALID_VALUE; 4]);
        assert_eq!(load(".version 8.0\n.target sm_80\n.visible .entry f( {"), Err(INVALID_PTX));
    });
}
