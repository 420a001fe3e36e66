use vkd_simt::{Launch, Memory};

use crate::support::{launch, run};

/// How fast instructions run that all lanes take. `cargo test --release -p vkd-simt --test ptx -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let kernel = |body: &str| {
        format!(
            ".visible .entry k(.param .u64 p) {{
            .reg .b64 %rd<8>; .reg .b32 %r<16>; .reg .f32 %f<16>; .reg .f64 %fd<8>; .reg .pred %p<4>;
            .shared .align 4 .b8 here[1024];
            ld.param.u64 %rd1, [p];
            mov.u32 %r1, %tid.x; mov.u32 %r2, 0; mov.u32 %r3, 1;
            mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
            shl.b32 %r8, %r1, 2; mov.u32 %r9, here; add.u32 %r8, %r8, %r9;
            mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F800001; mov.f64 %fd1, 0d3FF0000000000000;
        L:  {body}
            add.s32 %r2, %r2, 1;
            setp.lt.u32 %p1, %r2, 1000;
            @%p1 bra L;
            ret;
            }}"
        )
    };
    let memory = Memory::default();
    let out = memory.allocate(256 * 8).unwrap();
    for (name, one, count) in [
        ("add.s32", "add.s32 %r3, %r3, %r1;", 20),
        ("add.s64", "add.s64 %rd3, %rd3, %rd2;", 20),
        ("fma.f32", "fma.rn.f32 %f1, %f1, %f2, %f2;", 20),
        ("fma.f64", "fma.rn.f64 %fd1, %fd1, %fd1, %fd1;", 20),
        ("setp", "setp.lt.s32 %p2, %r1, %r3;", 20),
        ("selp", "selp.b32 %r3, %r1, %r3, %p1;", 20),
        ("cvt", "cvt.u64.u32 %rd4, %r3;", 20),
        ("ex2", "ex2.approx.f32 %f3, %f1;", 20),
        ("ld.global", "ld.global.f32 %f3, [%rd1];", 20),
        ("st.global", "st.global.f32 [%rd1], %f2;", 20),
        ("ld.shared", "ld.shared.f32 %f3, [%r8];", 20),
        ("st.shared", "st.shared.f32 [%r8], %f2;", 20),
        ("shfl", "shfl.sync.bfly.b32 %r4, %r3, 1, 31, -1;", 20),
    ] {
        let shape = Launch { watch_races: false, ..launch(16, 256) };
        let ptx = kernel(&one.repeat(count));
        let started = std::time::Instant::now();
        run(&ptx, shape, &[out], &memory).unwrap();
        let instructions = 16. * 256. * 1000. * (count as f64 + 3.);
        let rate = instructions / started.elapsed().as_secs_f64();
        eprintln!("{name:10} {:.2} 10^9 lane-instructions a second", rate / 1e9);
    }
}
