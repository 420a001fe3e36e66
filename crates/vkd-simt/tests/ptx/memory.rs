use vkd_simt::Memory;

use crate::support::{download_u32, launch, run, upload, words_of};

#[test]
fn vectors_signs_and_widths() {
    let memory = Memory::default();
    let from = upload(&memory, &[0x8182_8384_8586_8788, 0x0102_0304_0506_0708]);
    let out = memory.allocate(64).unwrap();
    let ptx = ".visible .entry k(.param .u64 to, .param .u64 from) {
        .reg .b64 %rd<16>; .reg .b32 %r<16>; .reg .b16 %rs<8>; .reg .f64 %fd<4>;
        ld.param.u64 %rd1, [to];
        ld.param.u64 %rd2, [from];
        cvta.to.global.u64 %rd3, %rd2;
        ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd3];
        st.global.v4.u32 [%rd1], {%r4, %r3, %r2, %r1};
        ld.global.s8 %r5, [%rd3+1];
        ld.global.nc.u8 %rs1, [%rd3+1];
        ld.global.s16 %rd4, [%rd3+2];
        ld.global.s8 %rs2, [%rd3+8];
        st.global.u32 [%rd1+16], %r5;
        st.global.u16 [%rd1+20], %rs1;
        st.global.u8 [%rd1+22], %r5;
        st.global.u8 [%rd1+23], %rs2;
        st.global.u64 [%rd1+24], %rd4;
        ld.global.nc.v2.f64 {%fd1, %fd2}, [%rd3];
        add.s64 %rd5, %rd1, 48;
        st.v2.f64 [%rd5+-16], {%fd2, %fd1};
        ret;
    }";
    run(ptx, launch(1, 1), &[out, from], &memory).unwrap();
    let wanted = [
        0x0102_0304,
        0x0506_0708,
        0x8182_8384,
        0x8586_8788,
        0xFFFF_FF87,
        0x0887_0087,
        0xFFFF_8586,
        0xFFFF_FFFF,
        0x0506_0708,
        0x0102_0304,
        0x8586_8788,
        0x8182_8384,
    ];
    assert_eq!(download_u32(&memory, out, 12), wanted);
}

#[test]
fn variables_of_a_module_and_of_a_thread() {
    let ptx = ".const .align 4 .b8 table[8] = {1, 2, 3, 4, 0x10, 0, 0, 0x80};
    .global .align 4 .u32 counters[2] = {5, 6};
    .visible .entry k(.param .u64 p) {
        .local .align 8 .b8 depot[16];
        .reg .b64 %SP, %SPL, %rd<8>; .reg .b32 %r<16>;
        mov.u64 %SPL, depot;
        cvta.local.u64 %SP, %SPL;
        ld.param.u64 %rd1, [p];
        mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd2, %r1, 4;
        add.s64 %rd1, %rd1, %rd2;
        ld.const.u32 %r2, [table+4];
        add.u64 %rd3, %SPL, 8;
        st.local.u32 [%rd3], %r1;
        add.u64 %rd4, %SP, 8;
        ld.u32 %r3, [%rd4];
        mov.u64 %rd5, counters;
        atom.global.add.u32 %r4, [%rd5+4], 1;
        ld.local.u32 %r5, [%rd3+4];
        add.u32 %r6, %r2, %r3;
        add.u32 %r6, %r6, %r5;
        st.global.u32 [%rd1], %r6;
        ret;
    }";
    let memory = Memory::default();
    let out = memory.allocate(64 * 4).unwrap();
    run(ptx, launch(1, 64), &[out], &memory).unwrap();
    for (t, got) in (0..).zip(download_u32(&memory, out, 64)) {
        // A thread's own memory that nobody has written has every bit set.
        assert_eq!(got, 0x8000_0010u32.wrapping_add(t).wrapping_sub(1));
    }
}

#[test]
fn shared_memory_by_a_generic_address() {
    let body = "
        .shared .align 4 .b8 here[128];
        mov.u64 %rd1, here;
        cvta.shared.u64 %rd1, %rd1;
        mul.wide.u32 %rd2, %t, 4;
        add.s64 %rd3, %rd1, %rd2;
        st.u32 [%rd3], %t;
        bar.sync 0;
        xor.b32 %r2, %t, 9;
        mul.wide.u32 %rd2, %r2, 4;
        add.s64 %rd3, %rd1, %rd2;
        ld.u32 %out, [%rd3];";
    let got = words_of(body, launch(2, 32)).unwrap();
    assert!((0..64).all(|g| got[g as usize] == (g % 32) ^ 9));
}

#[test]
fn atomic_operations_of_all_blocks() {
    let memory = Memory::default();
    let out = memory.allocate(40).unwrap();
    memory.fill_bytes(out, 0, 40).unwrap();
    let ptx = ".visible .entry k(.param .u64 p) {
        .reg .b64 %rd<4>; .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .f64 %fd<4>; .reg .b16 %h<8>; .reg .pred %p<2>;
        ld.param.u64 %rd1, [p];
        mov.u32 %r1, %tid.x;
        atom.global.add.u32 %r2, [%rd1], %r1;
        mov.f32 %f1, 0f3F800000;
        atom.global.add.f32 %f2, [%rd1+4], %f1;
        red.global.add.f64 [%rd1+8], 0d3FE0000000000000;
        atom.global.max.s32 %r3, [%rd1+16], %r1;
        red.global.or.b32 [%rd1+20], 6;
        ld.global.u16 %h1, [%rd1+24];
    L:  mov.b16 %h2, %h1;
        add.s16 %h3, %h1, 3;
        atom.global.cas.b16 %h1, [%rd1+24], %h2, %h3;
        setp.ne.s16 %p1, %h1, %h2;
        @%p1 bra L;
        mov.b16 %h4, 0x3C00;
        { atom.add.noftz.f16 %h5,[%rd1+26],%h4; }
        ret;
    }";
    run(ptx, launch(16, 64), &[out], &memory).unwrap();
    let got = download_u32(&memory, out, 7);
    assert_eq!(got[0], 16 * (0..64).sum::<u32>());
    assert_eq!(f32::from_bits(got[1]), 1024.);
    assert_eq!(f64::from_bits(u64::from(got[3]) << 32 | u64::from(got[2])), 512.);
    assert_eq!((got[4], got[5]), (63, 6));
    assert_eq!((got[6] & 0xFFFF, got[6] >> 16), (3 * 1024, 0x6400));
}
