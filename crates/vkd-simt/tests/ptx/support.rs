//! What the tests share.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use vkd_simt::{Fault, Launch, Memory, Module};

pub(crate) const HEAD: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

pub(crate) fn launch(grid: u32, block: u32) -> Launch {
    Launch { grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes: 0, watch_races: true }
}

/// Words of device memory.
pub(crate) fn upload(memory: &Memory, words: &[u64]) -> u64 {
    let address = memory.allocate(words.len() * 8).unwrap();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_bytes(address, &bytes).unwrap();
    address
}

pub(crate) fn download(memory: &Memory, address: u64, count: usize) -> Vec<u64> {
    let mut bytes = vec![0; count * 8];
    memory.read_bytes(address, &mut bytes).unwrap();
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

pub(crate) fn download_u32(memory: &Memory, address: u64, count: usize) -> Vec<u32> {
    let mut bytes = vec![0; count * 4];
    memory.read_bytes(address, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

pub(crate) fn packed(parameters: &[u64]) -> Vec<u8> {
    parameters.iter().flat_map(|p| p.to_le_bytes()).collect()
}

/// Runs the only kernel of this text with 64-bit parameters.
pub(crate) fn run(
    ptx: &str,
    launch: Launch,
    parameters: &[u64],
    memory: &Memory,
) -> Result<(), Fault> {
    let module = Module::parse(&format!("{HEAD}{ptx}"))?;
    let name = module.kernels()[0].to_owned();
    let kernel = module.kernel(&name).unwrap();
    let packed = packed(parameters);
    kernel.run(launch, &packed, memory)
}

/// A kernel `k` of one pointer whose body has the thread's number in `%t` and the address of its word in `%at`, and which must leave the
/// thread's result in `%out` (32 bits).
pub(crate) fn words_of(body: &str, launch: Launch) -> Result<Vec<u32>, Fault> {
    let threads = (launch.grid[0] * launch.block[0]) as usize;
    let memory = Memory::default();
    let out = memory.allocate(threads * 4)?;
    let ptx = format!(
        ".visible .entry k(.param .u64 p) {{
        .reg .b64 %base, %at;
        .reg .b32 %t, %g, %out, %r<64>;
        .reg .f32 %f<16>;
        .reg .b64 %rd<32>;
        .reg .pred %p<16>;
        ld.param.u64 %base, [p];
        mov.u32 %t, %tid.x;
        mov.u32 %r0, %ctaid.x;
        mov.u32 %r1, %ntid.x;
        mad.lo.s32 %g, %r0, %r1, %t;
        mul.wide.u32 %at, %g, 4;
        add.s64 %at, %base, %at;
        {body}
        st.global.u32 [%at], %out;
        ret;
        }}"
    );
    run(&ptx, launch, &[out], &memory)?;
    Ok(download_u32(&memory, out, threads))
}

/// What `operation` makes of each three words. It reads `h1 h2 h3` (16 bits), `w1 ..` (32 bits) or `d1 ..` (64 bits) and writes `h0`, `w0`,
/// `d0` or the predicate `p0`, as `result` says.
pub(crate) fn apply(operation: &str, result: &str, inputs: &[[u64; 3]]) -> Vec<u64> {
    let memory = Memory::default();
    let words: Vec<u64> = inputs.iter().flatten().copied().collect();
    let from = upload(&memory, &words);
    let to = memory.allocate(inputs.len() * 8).unwrap();
    let gather = match result {
        "h0" => "cvt.u64.u16 d0, h0;",
        "w0" => "cvt.u64.u32 d0, w0;",
        "p0" => "selp.u64 d0, 1, 0, p0;",
        _ => "",
    };
    let ptx = format!(
        ".visible .entry k(.param .u64 to, .param .u64 from, .param .u64 count) {{
        .reg .b16 h<8>;
        .reg .b32 w<8>;
        .reg .b64 d<8>;
        .reg .pred p<8>;
        .reg .b64 %a, %b, %n, %i;
        .reg .b32 %r<4>;
        .reg .pred %past;
        ld.param.u64 %n, [count];
        mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x;
        mad.lo.u32 %r3, %r0, %r1, %r2;
        cvt.u64.u32 %i, %r3;
        setp.ge.u64 %past, %i, %n;
        @%past bra DONE;
        ld.param.u64 %b, [from];
        mad.lo.u64 %b, %i, 24, %b;
        ld.global.u64 d1, [%b];
        ld.global.u64 d2, [%b+8];
        ld.global.u64 d3, [%b+16];
        cvt.u32.u64 w1, d1; cvt.u32.u64 w2, d2; cvt.u32.u64 w3, d3;
        cvt.u16.u64 h1, d1; cvt.u16.u64 h2, d2; cvt.u16.u64 h3, d3;
        {operation}
        {gather}
        ld.param.u64 %a, [to];
        mad.lo.u64 %a, %i, 8, %a;
        st.global.u64 [%a], d0;
        DONE: ret;
        }}"
    );
    let blocks = (inputs.len() as u32).div_ceil(64);
    run(&ptx, launch(blocks, 64), &[to, from, inputs.len() as u64], &memory).unwrap();
    download(&memory, to, inputs.len())
}

/// Compares an operation with `wanted` on these inputs.
pub(crate) fn check(
    operation: &str,
    result: &str,
    inputs: &[[u64; 3]],
    same: impl Fn(u64, u64) -> bool,
    wanted: impl Fn(u64, u64, u64) -> u64,
) {
    let got = apply(operation, result, inputs);
    for ([a, b, c], got) in inputs.iter().zip(got) {
        let wanted = wanted(*a, *b, *c);
        assert!(
            same(got, wanted),
            "{operation} of {a:#x}, {b:#x}, {c:#x}: wanted {wanted:#x}, got {got:#x}"
        );
    }
}

/// All threes of these, so that each meets each; the third in another order.
pub(crate) fn triples(values: &[u64]) -> Vec<[u64; 3]> {
    let n = values.len();
    let pairs = (0..n * n).map(|i| (i / n, i % n));
    pairs.map(|(i, j)| [values[i], values[j], values[(3 * i + 5 * j + 1) % n]]).collect()
}

/// Numbers of 64 bits from a seed.
pub(crate) fn random(seed: u64, count: usize) -> Vec<u64> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    std::iter::repeat_with(next).take(count).collect()
}
