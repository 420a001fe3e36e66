//! The registers of a warp, and instructions that do the same in each of its lanes.
//!
//! A register holds one word for each of 32 lanes, in a file of narrow words (8 to 32 bits, zero above), of wide words (64 bits) or of
//! predicates (one bit for each lane). Constants and the special registers are registers too: they're written before the block starts.

use std::cell::RefCell;

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

/// Threads of a warp.
pub(super) const LANES: usize = 32;
/// Every lane.
pub(super) const ALL: u32 = u32::MAX;

/// What a warp works on.
#[derive(Debug)]
pub(super) struct Warp {
    pub(super) narrow: Vec<[u32; LANES]>,
    pub(super) wide: Vec<[u64; LANES]>,
    pub(super) preds: Vec<u32>,
    /// The carry flag of each lane.
    pub(super) carry: u32,
    /// The lanes' own memory, one after the other.
    pub(super) local: Vec<u8>,
    pub(super) local_bytes: usize,
    /// Which warp of the block.
    pub(super) index: u32,
    /// How often its live lanes came together, and how often they did so at a `bar.warp.sync`.
    pub(super) met: u32,
    pub(super) synced: u32,
    arch: Arch,
}

thread_local! {
    /// Warps of earlier launches, whose registers are used again: a launch is often shorter than the making of them.
    static SPARE: RefCell<Vec<Warp>> = const { RefCell::new(Vec::new()) };
}

impl Warp {
    pub(super) fn new(
        narrow: usize,
        wide: usize,
        preds: usize,
        local_bytes: usize,
        index: u32,
    ) -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let mut warp = spare.unwrap_or_else(|| Self {
            narrow: Vec::new(),
            wide: Vec::new(),
            preds: Vec::new(),
            carry: 0,
            local: Vec::new(),
            local_bytes: 0,
            index: 0,
            met: 0,
            synced: 0,
            arch: Arch::new(),
        });
        // What an earlier kernel has left is as good as any value of a register that nobody has written.
        // More registers than needed stay: taking them away and making them again costs more than a short kernel.
        warp.narrow.resize(narrow.max(warp.narrow.len()), [0; LANES]);
        warp.wide.resize(wide.max(warp.wide.len()), [0; LANES]);
        warp.preds.resize(preds.max(warp.preds.len()), 0);
        warp.local.resize(local_bytes * LANES, 0xFF);
        warp.local_bytes = local_bytes;
        warp.index = index;
        warp
    }

    /// Keeps its registers for a launch to come.
    pub(super) fn recycle(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < 32 {
                spare.push(self);
            }
        });
    }

    /// Runs a loop over lanes with the widest instructions that the processor has. The loop's closure must be `#[inline(always)]`.
    #[inline(always)]
    pub(super) fn widest(&self) -> Widest {
        Widest(self.arch)
    }
}

/// The instructions that the processor has.
#[derive(Clone, Copy)]
pub(super) struct Widest(Arch);

impl Widest {
    #[inline(always)]
    pub(super) fn run(self, f: impl FnMut()) {
        self.0.dispatch(Body(f));
    }
}

/// A loop over lanes that is compiled once for each kind of processor. It's called through `FnMut`, since a closure's `FnOnce` is a function
/// of its own that isn't made part of its caller.
struct Body<F>(F);

impl<F: FnMut()> WithSimd for Body<F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        (self.0)();
    }
}

/// The lanes of `mask`, lowest first.
pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        (mask != 0).then(|| {
            mask &= mask - 1;
            lane as usize
        })
    })
}

/// A word of a register file.
pub(super) trait Word: Copy + Default + Send + Sync + 'static {
    fn file(warp: &Warp) -> &[[Self; LANES]];
    fn file_mut(warp: &mut Warp) -> &mut [[Self; LANES]];
    /// The first if the bit is one, the second if it's zero; without a jump.
    fn choose(bit: u32, one: Self, zero: Self) -> Self;
}

impl Word for u32 {
    fn file(warp: &Warp) -> &[[Self; LANES]] {
        &warp.narrow
    }
    fn file_mut(warp: &mut Warp) -> &mut [[Self; LANES]] {
        &mut warp.narrow
    }
    #[inline(always)]
    fn choose(bit: u32, one: Self, zero: Self) -> Self {
        let ones = bit.wrapping_neg();
        one & ones | zero & !ones
    }
}

impl Word for u64 {
    fn file(warp: &Warp) -> &[[Self; LANES]] {
        &warp.wide
    }
    fn file_mut(warp: &mut Warp) -> &mut [[Self; LANES]] {
        &mut warp.wide
    }
    #[inline(always)]
    fn choose(bit: u32, one: Self, zero: Self) -> Self {
        let ones = u64::from(bit).wrapping_neg();
        one & ones | zero & !ones
    }
}

/// What a register's word stands for.
pub(super) trait Value: Copy + Send + Sync + 'static {
    type Word: Word;
    fn of(word: Self::Word) -> Self;
    fn word(self) -> Self::Word;
}

macro_rules! value {
    ($($value:ty, $word:ty, |$w:ident| $of:expr, |$v:ident| $to:expr;)*) => {$(
        impl Value for $value {
            type Word = $word;
            #[inline(always)]
            fn of($w: $word) -> Self { $of }
            #[inline(always)]
            fn word(self) -> $word { let $v = self; $to }
        }
    )*};
}

value! {
    u8, u32, |w| w as u8, |v| u32::from(v);
    i8, u32, |w| w as u8 as i8, |v| u32::from(v as u8);
    u16, u32, |w| w as u16, |v| u32::from(v);
    i16, u32, |w| w as u16 as i16, |v| u32::from(v as u16);
    u32, u32, |w| w, |v| v;
    i32, u32, |w| w as i32, |v| v as u32;
    f32, u32, |w| f32::from_bits(w), |v| v.to_bits();
    f16, u32, |w| f16::from_bits(w as u16), |v| u32::from(v.to_bits());
    bf16, u32, |w| bf16::from_bits(w as u16), |v| u32::from(v.to_bits());
    [f16; 2], u32, |w| [f16::from_bits(w as u16), f16::from_bits((w >> 16) as u16)],
        |v| u32::from(v[0].to_bits()) | u32::from(v[1].to_bits()) << 16;
    [bf16; 2], u32, |w| [bf16::from_bits(w as u16), bf16::from_bits((w >> 16) as u16)],
        |v| u32::from(v[0].to_bits()) | u32::from(v[1].to_bits()) << 16;
    u64, u64, |w| w, |v| v;
    i64, u64, |w| w as i64, |v| v as u64;
    f64, u64, |w| f64::from_bits(w), |v| v.to_bits();
}

/// An instruction that touches nothing but registers.
pub(super) type Run = Box<dyn Fn(&mut Warp, u32) + Send + Sync>;

/// Writes `out` into the lanes of `mask`.
#[inline(always)]
pub(super) fn put<W: Word>(warp: &mut Warp, slot: u32, out: &[W; LANES], mask: u32) {
    let Some(register) = W::file_mut(warp).get_mut(slot as usize) else { return };
    if mask == ALL {
        *register = *out;
    } else {
        for (lane, (to, from)) in register.iter_mut().zip(out).enumerate() {
            *to = W::choose(mask >> lane & 1, *from, *to);
        }
    }
}

#[inline(always)]
fn words<W: Word>(warp: &Warp, slot: u32) -> &[W; LANES] {
    &W::file(warp)[slot as usize]
}

#[inline(always)]
fn put_bits(warp: &mut Warp, slot: u32, bits: u32, mask: u32) {
    if let Some(pred) = warp.preds.get_mut(slot as usize) {
        *pred = *pred & !mask | bits & mask;
    }
}

/// `d = f(a)`
pub(super) fn map1<A: Value, D: Value>(
    d: u32,
    a: u32,
    f: impl Fn(A) -> D + Copy + Send + Sync + 'static,
) -> Run {
    Box::new(move |warp, mask| {
        warp.widest().run(
            #[inline(always)]
            || {
                let a = words(warp, a);
                let mut out = [D::Word::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = f(A::of(a[lane])).word();
                }
                put(warp, d, &out, mask);
            },
        );
    })
}

/// `d = f(a, b)`
pub(super) fn map2<A: Value, B: Value, D: Value>(
    d: u32,
    [a, b]: [u32; 2],
    f: impl Fn(A, B) -> D + Copy + Send + Sync + 'static,
) -> Run {
    Box::new(move |warp, mask| {
        warp.widest().run(
            #[inline(always)]
            || {
                let (a, b) = (words(warp, a), words(warp, b));
                let mut out = [D::Word::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = f(A::of(a[lane]), B::of(b[lane])).word();
                }
                put(warp, d, &out, mask);
            },
        );
    })
}

/// `d = f(a, b, c)`
pub(super) fn map3<A: Value, B: Value, C: Value, D: Value>(
    d: u32,
    [a, b, c]: [u32; 3],
    f: impl Fn(A, B, C) -> D + Copy + Send + Sync + 'static,
) -> Run {
    Box::new(move |warp, mask| {
        warp.widest().run(
            #[inline(always)]
            || {
                let (a, b, c) = (words(warp, a), words(warp, b), words(warp, c));
                let mut out = [D::Word::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = f(A::of(a[lane]), B::of(b[lane]), C::of(c[lane])).word();
                }
                put(warp, d, &out, mask);
            },
        );
    })
}

/// `d = f(a, b, c, e)`
pub(super) fn map4<A: Value, B: Value, C: Value, E: Value, D: Value>(
    d: u32,
    [a, b, c, e]: [u32; 4],
    f: impl Fn(A, B, C, E) -> D + Copy + Send + Sync + 'static,
) -> Run {
    Box::new(move |warp, mask| {
        let (a, b, c, e) = (words(warp, a), words(warp, b), words(warp, c), words(warp, e));
        let mut out = [D::Word::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(A::of(a[lane]), B::of(b[lane]), C::of(c[lane]), E::of(e[lane])).word();
        }
        put(warp, d, &out, mask);
    })
}

/// `d = if p { a } else { b }`
pub(super) fn select<A: Value>(d: u32, [a, b]: [u32; 2], pred: u32) -> Run {
    Box::new(move |warp, mask| {
        warp.widest().run(
            #[inline(always)]
            || {
                let bits = warp.preds[pred as usize];
                let (a, b) = (words::<A::Word>(warp, a), words::<A::Word>(warp, b));
                let mut out = [<A::Word>::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = Word::choose(bits >> lane & 1, a[lane], b[lane]);
                }
                put(warp, d, &out, mask);
            },
        );
    })
}

/// How a comparison's result is joined with a predicate: `(which, negated, join)`.
pub(super) type Joined = Option<(u32, bool, fn(u32, u32) -> u32)>;

/// `p = f(a, b)`, and `q` its contrary where there is one; each joined with a predicate where `joined` says so.
pub(super) fn compare<A: Value>(
    [p, q]: [Option<u32>; 2],
    [a, b]: [u32; 2],
    joined: Joined,
    f: impl Fn(A, A) -> bool + Copy + Send + Sync + 'static,
) -> Run {
    let bits_of = move |warp: &Warp| {
        let mut bits = 0;
        warp.widest().run(
            #[inline(always)]
            || {
                let (a, b) = (words(warp, a), words(warp, b));
                let mut all = 0;
                for lane in 0..LANES {
                    all |= u32::from(f(A::of(a[lane]), A::of(b[lane]))) << lane;
                }
                bits = all;
            },
        );
        bits
    };
    if let ([Some(p), None], None) = ([p, q], joined) {
        return Box::new(move |warp, mask| {
            let bits = bits_of(warp);
            put_bits(warp, p, bits, mask);
        });
    }
    Box::new(move |warp, mask| {
        let bits = bits_of(warp);
        let join = |bits| match joined {
            Some((c, negated, join)) => {
                let c = warp.preds[c as usize];
                join(bits, if negated { !c } else { c })
            }
            None => bits,
        };
        let (yes, no) = (join(bits), join(!bits));
        for (slot, bits) in [(p, yes), (q, no)] {
            if let Some(slot) = slot {
                put_bits(warp, slot, bits, mask);
            }
        }
    })
}

/// `p = f(a, b)` of predicates, all lanes at once.
pub(super) fn logic(
    d: u32,
    [a, b]: [u32; 2],
    f: impl Fn(u32, u32) -> u32 + Send + Sync + 'static,
) -> Run {
    Box::new(move |warp, mask| {
        let bits = f(warp.preds[a as usize], warp.preds[b as usize]);
        put_bits(warp, d, bits, mask);
    })
}

/// `d = f(a, b, c, carry)`, where `f` says the new carry too; it's kept only if `keep` says so.
pub(super) fn carried<A: Value>(
    d: u32,
    [a, b, c]: [u32; 3],
    [read, keep]: [bool; 2],
    f: impl Fn(A, A, A, bool) -> (A, bool) + Copy + Send + Sync + 'static,
) -> Run {
    Box::new(move |warp, mask| {
        let (a, b, c) = (words(warp, a), words(warp, b), words(warp, c));
        let mut out = [<A::Word>::default(); LANES];
        let mut carry = 0;
        for lane in 0..LANES {
            let before = read && warp.carry >> lane & 1 == 1;
            let (value, after) = f(A::of(a[lane]), A::of(b[lane]), A::of(c[lane]), before);
            out[lane] = value.word();
            carry |= u32::from(after) << lane;
        }
        put(warp, d, &out, mask);
        if keep {
            warp.carry = warp.carry & !mask | carry & mask;
        }
    })
}

/// All lanes of a narrow or wide register as 64 bits.
#[inline(always)]
pub(super) fn addresses(warp: &Warp, slot: u32, wide: bool, offset: u64) -> [u64; LANES] {
    let mut out = [0; LANES];
    if wide {
        for (to, from) in out.iter_mut().zip(words::<u64>(warp, slot)) {
            *to = from.wrapping_add(offset);
        }
    } else {
        for (to, from) in out.iter_mut().zip(words::<u32>(warp, slot)) {
            *to = u64::from(from.wrapping_add(offset as u32));
        }
    }
    out
}
