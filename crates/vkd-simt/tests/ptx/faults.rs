#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use vkd_simt::{Launch, Memory, Module};

use crate::support::{HEAD, launch, run, words_of};

/// The fault of a body, which must name all of these.
fn fault(body: &str, launch: Launch, words: &[&str]) {
    let fault = words_of(body, launch).unwrap_err().to_string();
    for word in words {
        assert!(fault.contains(word), "expected `{word}` in: {fault}");
    }
}

#[test]
fn an_access_past_the_end_names_its_line() {
    let memory = Memory::default();
    let out = memory.allocate(99 * 4).unwrap();
    let ptx = "// a comment
    .visible .entry over(.param .u64 p) {
        .reg .b64 %rd<4>; .reg .b32 %r<4>;
        ld.param.u64 %rd1, [p];
        mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd2, %r1, 4;
        add.s64 %rd3, %rd1, %rd2;
        st.global.u32 [%rd3], %r1;
        ret;
    }";
    run(ptx, launch(1, 99), &[out], &memory).unwrap();
    let fault = run(ptx, launch(1, 100), &[out], &memory).unwrap_err().to_string();
    for word in ["kernel `over`", "PTX line 11", "block [0, 0, 0]", "thread [99, 0, 0]", "a store"]
    {
        assert!(fault.contains(word), "{fault}");
    }
    memory.free(out).unwrap();
    assert!(run(ptx, launch(1, 1), &[out], &memory).is_err());
}

#[test]
fn an_access_that_is_not_aligned() {
    fault("add.s64 %at, %at, 2; ld.global.u32 %out, [%at];", launch(1, 1), &["no multiple of 4"]);
    let both = "ld.global.v2.u32 {%out, %r2}, [%at+4];";
    fault(both, launch(1, 4), &["no multiple of 8", "thread [0, 0, 0]"]);
}

#[test]
fn variables_of_shared_memory_do_not_touch() {
    let body = "
        .shared .align 4 .b8 first[16];
        .shared .align 4 .b8 second[16];
        mov.u32 %r2, first;
        st.shared.u32 [%r2+16], 1;";
    fault(body, launch(1, 1), &["in no variable", "16 bytes"]);
    let own = ".local .align 4 .b8 mine[8]; mov.u64 %rd1, mine; st.local.u32 [%rd1+16], 1;";
    fault(own, launch(1, 1), &["own memory"]);
}

#[test]
fn threads_at_different_barriers() {
    let body = "
        mov.u32 %out, 0;
        setp.gt.u32 %p1, %t, 40;
        @%p1 bra OTHER;
        bar.sync 0;
        bra.uni END;
    OTHER: bar.sync 0;
    END:";
    fault(body, launch(1, 64), &["waits at the barrier of line", "thread [41, 0, 0]"]);
    fault(body, Launch { watch_races: false, ..launch(1, 64) }, &["waits at the barrier of line"]);
    assert!(words_of(body, launch(1, 32)).is_ok());
}

#[test]
fn lanes_that_never_come_to_a_shuffle() {
    let body = "
        mov.u32 %out, 0;
        setp.gt.u32 %p1, %t, 7;
        @%p1 bra OTHER;
        shfl.sync.bfly.b32 %out, %t, 1, 31, -1;
        bra.uni END;
    OTHER: bar.sync 0;
    END:";
    fault(body, launch(1, 32), &["waits for lanes 0xffffff00"]);
    let own = "shfl.sync.bfly.b32 %out, %t, 1, 31, 0xff;";
    fault(own, launch(1, 32), &["isn't in its own mask 0xff", "thread [8, 0, 0]"]);
}

#[test]
fn races_in_shared_memory() {
    let body = |middle: &str| {
        format!(
            ".shared .align 4 .b8 here[256];
            mov.u32 %r2, here;
            shl.b32 %r3, %t, 2;
            add.u32 %r3, %r3, %r2;
            st.shared.u32 [%r3], %t;
            {middle}
            xor.b32 %r4, %t, 1;
            shl.b32 %r4, %r4, 2;
            add.u32 %r4, %r4, %r2;
            ld.shared.u32 %out, [%r4];"
        )
    };
    fault(&body(""), launch(1, 64), &["a race", "reads", "thread 1 has written"]);
    assert!(words_of(&body("bar.sync 0;"), launch(1, 64)).is_ok());
    assert!(words_of(&body(""), Launch { watch_races: false, ..launch(1, 64) }).is_ok());
    let after = format!("{} st.shared.u32 [%r3], %out;", body("bar.sync 0;"));
    fault(&after, launch(1, 64), &["a race", "writes", "has read"]);
    let both = ".shared .align 4 .b8 here[4]; mov.u32 %out, 0; st.shared.u32 [here], %t;";
    fault(both, launch(1, 2), &["a race", "thread 0 has written"]);
    // Bytes of one word may belong to several threads.
    let bytes = ".shared .align 4 .b8 here[64]; mov.u32 %r2, here; add.u32 %r2, %r2, %t;
        st.shared.u8 [%r2], %t; ld.shared.u8 %out, [%r2];";
    assert!(words_of(bytes, launch(1, 64)).is_ok());
}

#[test]
fn traps_and_assertions() {
    fault(
        "setp.eq.u32 %p1, %t, 5; @%p1 trap; mov.u32 %out, 0;",
        launch(1, 32),
        &["a trap", "[5, 0, 0]"],
    );
    let ptx = ".extern .func __assertfail (.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
    .global .align 1 .b8 $str[6] = {105, 32, 60, 32, 110, 0};
    .global .align 1 .b8 $str$1[4] = {97, 46, 99, 0};
    .visible .entry k() {
        .reg .b64 %rd<8>;
        mov.u64 %rd1, $str;
        cvta.global.u64 %rd2, %rd1;
        mov.u64 %rd3, $str$1;
        cvta.global.u64 %rd4, %rd3;
        { .param .b64 param0; st.param.b64 [param0+0], %rd2;
        .param .b64 param1; st.param.b64 [param1+0], %rd4;
        .param .b32 param2; st.param.b32 [param2+0], 63;
        .param .b64 param3; st.param.b64 [param3+0], %rd4;
        .param .b64 param4; st.param.b64 [param4+0], 1;
        call.uni __assertfail, (param0, param1, param2, param3, param4); }
        ret;
    }";
    let fault = run(ptx, launch(1, 1), &[], &Memory::default()).unwrap_err().to_string();
    assert!(fault.contains("an assertion fails: i < n, a.c:63"), "{fault}");
}

#[test]
fn what_is_not_known_is_named() {
    fault(
        "mov.u32 %out, 0; wmma.load.sync %r1, %r2;",
        launch(1, 1),
        &["wmma.load.sync", "PTX line"],
    );
    // A modifier that nobody knows isn't passed over.
    fault("add.odd.u32 %out, %t, 1;", launch(1, 1), &["add.odd.u32"]);
    fault("add.u32 %out, %t, %nowhere;", launch(1, 1), &["%nowhere"]);
    fault("add.u64 %rd1, %rd1, %t;", launch(1, 1), &["width"]);
    fault("bra.uni NOWHERE;", launch(1, 1), &["no label `NOWHERE`"]);
    let ptx = format!("{HEAD}.visible .entry a() {{ ret; }} .visible .entry b() {{ odd; }}");
    let module = Module::parse(&ptx).unwrap();
    assert_eq!(module.kernels(), ["a", "b"]);
    assert!(module.kernel("c").is_none());
    let memory = Memory::default();
    assert!(module.kernel("a").unwrap().run(launch(1, 1), &[], &memory).is_ok());
    assert!(module.kernel("b").unwrap().run(launch(1, 1), &[], &memory).is_err());
}

#[test]
fn parameters_are_packed_by_their_alignment() {
    let ptx = format!(
        "{HEAD}.visible .entry k(.param .u8 a, .param .u64 .ptr .global .align 16 b, .param .align 2 .b8 c[6], .param .f32 d) {{ ret; }}"
    );
    let kernel = Module::parse(&ptx).unwrap().kernel("k").unwrap();
    assert_eq!(kernel.parameters(), [(0, 1), (8, 8), (16, 6), (24, 4)]);
    let fault = kernel.run(launch(1, 1), &[0; 27], &Memory::default()).unwrap_err().to_string();
    assert!(fault.contains("expected 28 bytes of parameters, got 27"), "{fault}");
}

#[test]
fn a_warp_that_comes_together_is_in_order() {
    let body = |first: &str, middle: &str, last: &str| {
        format!(
            ".shared .align 4 .b8 here[256];
            mov.u32 %out, 0;
            mov.u32 %r2, here; shl.b32 %r3, %t, 2; add.u32 %r3, %r3, %r2;
            xor.b32 %r4, %t, 1; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r2;
            {first} {middle} {last}"
        )
    };
    let (read, write) = ("ld.shared.u32 %out, [%r4];", "st.shared.u32 [%r3], %t;");
    let (sync, shuffle) = ("bar.warp.sync -1;", "shfl.sync.bfly.b32 %r5, %t, 1, 31, -1;");
    let holds = |first, middle, last| words_of(&body(first, middle, last), launch(1, 64)).is_ok();
    assert!(holds(write, sync, read) && holds(read, sync, write));
    // A shuffle needs what was read before it, but says nothing of what was written.
    assert!(holds(read, shuffle, write));
    assert!(!holds(write, shuffle, read) && !holds(read, "", write));
    // Of another warp it says nothing at all.
    let far = "ld.shared.u32 %out, [here];";
    assert!(!holds(far, sync, "st.shared.u32 [here+4], 1; st.shared.u32 [here], 1;"));
}
