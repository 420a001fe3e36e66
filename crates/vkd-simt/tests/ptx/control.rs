use vkd_simt::{Launch, Memory};

use crate::support::{download_u32, launch, run, words_of};

#[test]
fn loops_of_different_lengths() {
    // For each thread: the sum over i below t % 7 of the sum over j below (i + t) % 5 of i * j + 1, and one branch within.
    let body = "
        mov.u32 %out, 0;
        rem.u32 %r2, %g, 7;
        mov.u32 %r3, 0;
    OUTER: setp.ge.u32 %p1, %r3, %r2;
        @%p1 bra END;
        add.u32 %r4, %r3, %g;
        rem.u32 %r4, %r4, 5;
        mov.u32 %r5, 0;
    INNER: setp.ge.u32 %p2, %r5, %r4;
        @%p2 bra NEXT;
        mad.lo.u32 %r6, %r3, %r5, 1;
        and.b32 %r7, %r5, 1;
        setp.eq.u32 %p3, %r7, 0;
        @!%p3 bra ODD;
        add.u32 %out, %out, %r6;
        bra.uni JOIN;
    ODD: add.u32 %out, %out, 100;
    JOIN: add.u32 %r5, %r5, 1;
        bra.uni INNER;
    NEXT: add.u32 %r3, %r3, 1;
        bra.uni OUTER;
    END:";
    let got = words_of(body, launch(3, 75)).unwrap();
    for (g, got) in (0..).zip(got) {
        let mut sum = 0;
        for i in 0..g % 7 {
            for j in 0..(i + g) % 5 {
                sum += if j % 2 == 0 { i * j + 1 } else { 100 };
            }
        }
        assert_eq!(got, sum, "thread {g}");
    }
}

#[test]
fn lanes_that_leave_a_loop_at_different_times_meet_again() {
    // The loop's body is below its exit in the text, so that the lanes that have left it are ahead.
    let body = "
        mov.u32 %out, 0;
        bra.uni TEST;
    BODY: add.u32 %out, %out, 1;
    TEST: setp.lt.u32 %p1, %out, %t;
        @%p1 bra BODY;
        shfl.sync.idx.b32 %r2, %out, 31, 31, 0xffffffff;
        add.u32 %out, %out, %r2;";
    let got = words_of(body, launch(1, 64)).unwrap();
    for (t, got) in (0..).zip(got) {
        assert_eq!(got, t + (t | 31));
    }
}

#[test]
fn a_block_sums_through_shared_memory() {
    let ptx = ".shared .align 4 .b8 fixed[256];
    .extern .shared .align 16 .b8 asked[];
    .visible .entry k(.param .u64 p) {
        .reg .b64 %rd<4>; .reg .b32 %r<16>; .reg .pred %p<4>;
        ld.param.u64 %rd1, [p];
        mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x;
        mad.lo.u32 %r4, %r2, %r3, %r1;
        mov.u32 %r5, asked;
        shl.b32 %r6, %r1, 2;
        add.u32 %r6, %r5, %r6;
        st.shared.u32 [%r6], %r4;
        shr.u32 %r7, %r3, 1;
    L:  bar.sync 0;
        setp.eq.u32 %p1, %r7, 0;
        @%p1 bra DONE;
        setp.ge.u32 %p2, %r1, %r7;
        @%p2 bra SKIP;
        shl.b32 %r8, %r7, 2;
        add.u32 %r8, %r6, %r8;
        ld.shared.u32 %r9, [%r8];
        ld.shared.u32 %r10, [%r6];
        add.u32 %r9, %r9, %r10;
        st.shared.u32 [%r6], %r9;
    SKIP: shr.u32 %r7, %r7, 1;
        bra.uni L;
    DONE: setp.ne.u32 %p3, %r1, 0;
        @%p3 bra OUT;
        ld.shared.u32 %r11, [asked];
        st.shared.u32 [fixed+252], %r11;
        ld.shared.u32 %r11, [fixed+252];
        mul.wide.u32 %rd2, %r2, 4;
        add.s64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r11;
    OUT: ret;
    }";
    let memory = Memory::default();
    let out = memory.allocate(5 * 4).unwrap();
    let launch = Launch { shared_bytes: 256 * 4, ..launch(5, 256) };
    run(ptx, launch, &[out], &memory).unwrap();
    let wanted: Vec<u32> = (0..5).map(|b| (b * 256..(b + 1) * 256).sum()).collect();
    assert_eq!(download_u32(&memory, out, 5), wanted);
    // One word less is a fault.
    let launch = Launch { shared_bytes: 255 * 4, ..launch };
    let fault = run(ptx, launch, &[out], &memory).unwrap_err().to_string();
    assert!(fault.contains("shared memory") && fault.contains("thread [255, 0, 0]"), "{fault}");
}

#[test]
fn shuffles() {
    let down = "
        mov.u32 %out, %g;
        mov.u32 %r2, 16;
    L:  shfl.sync.down.b32 %r3|%p1, %out, %r2, 31, -1;
        @!%p1 mov.u32 %r3, 0;
        add.u32 %out, %out, %r3;
        shr.u32 %r2, %r2, 1;
        setp.ne.u32 %p2, %r2, 0;
        @%p2 bra L;";
    let got = words_of(down, launch(2, 64)).unwrap();
    assert_eq!((got[0], got[32], got[96]), ((0..32).sum(), (32..64).sum(), (96..128).sum()));
    let got = words_of("shfl.sync.bfly.b32 %out, %t, 5, 31, -1;", launch(1, 32)).unwrap();
    assert!((0..32).all(|t| got[t as usize] == t ^ 5));
    let got = words_of("shfl.sync.up.b32 %out, %t, 3, 0, -1;", launch(1, 32)).unwrap();
    assert!((0..32).all(|t| got[t as usize] == if t < 3 { t } else { t - 3 }));
    // Segments of eight lanes.
    let got = words_of("shfl.sync.idx.b32 %out, %t, 2, 0x181f, -1;", launch(1, 32)).unwrap();
    assert!((0..32).all(|t| got[t as usize] == t / 8 * 8 + 2));
    let got =
        words_of("setp.gt.u32 %p1, %t, 20; vote.sync.ballot.b32 %out, %p1, -1;", launch(1, 40))
            .unwrap();
    assert_eq!((got[0], got[39]), (!0 << 21, 0xFF));
    let got = words_of("redux.sync.max.u32 %out, %t, -1;", launch(1, 32)).unwrap();
    assert_eq!(got, [31; 32]);
}

#[test]
fn lanes_that_come_later_to_a_shuffle_are_waited_for() {
    // Odd lanes make a detour whose text is behind the shuffle.
    let body = "
        and.b32 %r2, %t, 1;
        setp.eq.u32 %p1, %r2, 1;
        mov.u32 %r3, %t;
        @%p1 bra ODD;
    BACK: shfl.sync.bfly.b32 %out, %r3, 1, 31, -1;
        bra.uni END;
    ODD: add.u32 %r3, %r3, 1000;
        bra.uni BACK;
    END:";
    let got = words_of(body, launch(1, 32)).unwrap();
    for (t, got) in (0..).zip(got) {
        let other = t ^ 1u32;
        assert_eq!(got, if other % 2 == 1 { other + 1000 } else { other });
    }
}

#[test]
fn functions_are_called_with_structures() {
    let ptx = "
    .func (.param .align 8 .b8 back[16]) twice(.param .align 4 .b8 pair[8], .param .b64 add) ;
    .func (.param .b32 back) one(.param .b32 x);
    .visible .entry k(.param .u64 p) {
        .reg .b64 %rd<8>; .reg .b32 %r<16>; .reg .pred %p<4>;
        ld.param.u64 %rd1, [p];
        mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd2, %r1, 4;
        add.s64 %rd1, %rd1, %rd2;
        setp.gt.u32 %p1, %r1, 9;
        mov.u32 %r5, 7;
        @%p1 bra SKIP;
        { // callseq 0, 0
        .reg .b32 temp_param_reg;
        .param .align 4 .b8 param0[8];
        st.param.b32 [param0+0], %r1;
        st.param.b32 [param0+4], 5;
        .param .b64 param1;
        st.param.b64 [param1+0], 1000;
        .param .align 8 .b8 retval0[16];
        call.uni (retval0),
        twice,
        (
        param0,
        param1
        );
        ld.param.b64 %rd3, [retval0+0];
        ld.param.b32 %r5, [retval0+8];
        } // callseq 0
        cvt.u32.u64 %r6, %rd3;
        add.u32 %r5, %r5, %r6;
    SKIP: st.global.u32 [%rd1], %r5;
        ret;
    }
    .func (.param .align 8 .b8 back[16]) twice(.param .align 4 .b8 pair[8], .param .b64 add) {
        .reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .pred %p<2>;
        ld.param.u32 %r1, [pair];
        ld.param.u32 %r2, [pair+4];
        ld.param.u64 %rd1, [add];
        mul.wide.u32 %rd2, %r1, %r2;
        add.s64 %rd2, %rd2, %rd1;
        st.param.b64 [back+0], %rd2;
        setp.lt.u32 %p1, %r1, 4;
        @%p1 bra SMALL;
        { .param .b32 param0; st.param.b32 [param0], %r1; .param .b32 retval0;
        call (retval0), one, (param0);
        ld.param.b32 %r3, [retval0]; }
        st.param.b32 [back+8], %r3;
        ret;
    SMALL: st.param.b32 [back+8], 0;
        ret;
    }
    .func (.param .b32 back) one(.param .b32 x) {
        .reg .b32 %r<4>;
        ld.param.u32 %r1, [x];
        shl.b32 %r1, %r1, 16;
        st.param.b32 [back], %r1;
        ret;
    }";
    let memory = Memory::default();
    let out = memory.allocate(20 * 4).unwrap();
    run(ptx, launch(1, 20), &[out], &memory).unwrap();
    for (t, got) in (0u32..).zip(download_u32(&memory, out, 20)) {
        let wanted = match t {
            0..4 => t * 5 + 1000,
            4..10 => t * 5 + 1000 + (t << 16),
            _ => 7,
        };
        assert_eq!(got, wanted, "thread {t}");
    }
}

#[test]
fn threads_and_blocks_of_three_axes() {
    let ptx = ".visible .entry k(.param .u64 p) .maxntid 64, 1, 1 {
        .reg .b64 %rd<4>; .reg .b32 %r<24>;
        ld.param.u64 %rd1, [p];
        mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
        mov.u32 %r4, %ntid.x; mov.u32 %r5, %ntid.y; mov.u32 %r6, %ntid.z;
        mov.u32 %r7, %ctaid.x; mov.u32 %r8, %ctaid.y; mov.u32 %r9, %ctaid.z;
        mov.u32 %r10, %nctaid.x; mov.u32 %r11, %nctaid.y;
        mad.lo.u32 %r12, %r9, %r11, %r8;
        mad.lo.u32 %r12, %r12, %r10, %r7;
        mad.lo.u32 %r12, %r12, %r6, %r3;
        mad.lo.u32 %r12, %r12, %r5, %r2;
        mad.lo.u32 %r12, %r12, %r4, %r1;
        mul.wide.u32 %rd2, %r12, 4;
        add.s64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r12;
        ret;
    }";
    let memory = Memory::default();
    let count = 3 * 2 * 4 * 5 * 3 * 2;
    let out = memory.allocate(count * 4).unwrap();
    let shape = Launch { grid: [3, 2, 4], block: [5, 3, 2], ..launch(1, 1) };
    run(ptx, shape, &[out], &memory).unwrap();
    let wanted: Vec<u32> = (0..count as u32).collect();
    assert_eq!(download_u32(&memory, out, count), wanted);
    let fault = run(ptx, launch(1, 65), &[out], &memory).unwrap_err().to_string();
    assert!(fault.contains("1 to 64 threads"), "{fault}");
}

#[test]
fn threads_that_have_ended_are_not_waited_for() {
    let body = "
        mov.u32 %out, %t;
        setp.gt.u32 %p1, %t, 40;
        @%p1 bra GONE;
        bar.sync 0;
        add.u32 %out, %out, 1;
        bra.uni END;
    GONE: ret;
    END:";
    let got = words_of(body, launch(1, 64)).unwrap();
    assert_eq!((got[3], got[40], got[41]), (4, 41, u32::MAX));
}
