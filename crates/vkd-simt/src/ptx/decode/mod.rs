//! A function's body as a program. Functions of the device are decoded where they're called, each time anew.

mod arithmetic;
mod bits;
mod compare;
mod control;
mod convert;
mod float;
mod half;
mod memory;
mod moves;
mod opcode;
mod operand;

use std::collections::HashMap;

use self::opcode::Opcode;
use super::access::Globals;
use super::declare::{Declared, Function, Space, Variable, variables};
use super::lanes::Run;
use super::program::{Access, Guard, Instr, Op, Program, special};
use super::text::{Cursor, Statement, integer, name_end, operands};
use super::types::{Class, Type};
use crate::Fault;

/// Calls within calls.
const DEEPEST: usize = 24;
/// Bytes between two variables of shared memory that belong to none, so that an index past the end of one is seen.
const GAP: usize = 256;

/// A register of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    class: Class,
    slot: u32,
    bytes: usize,
}

/// Where a variable is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Offset in shared memory.
    Shared(u64),
    /// Offset in a thread's own memory.
    Local(u64),
    /// The shared memory that the launch asks for. Where it begins is known when all is decoded.
    Dynamic,
    Global(u64),
    /// Offset in the kernel's parameters.
    Parameter(u64),
}

/// What is declared between two braces.
#[derive(Default)]
struct Scope<'a> {
    registers: HashMap<&'a str, Register>,
    /// `%r<4>` by the name before the number: class, bytes, first slot, count.
    ranges: Vec<(&'a str, Register, u32)>,
    variables: HashMap<String, Place>,
}

/// A function that is being decoded.
struct Frame<'a> {
    scopes: Vec<Scope<'a>>,
    labels: HashMap<&'a str, u32>,
    /// Jumps whose label's place isn't known yet.
    open: Vec<(usize, &'a str, u32)>,
    /// Jumps to the end of a called function.
    returns: Vec<usize>,
    kernel: bool,
}

struct Decoder<'a> {
    declared: &'a Declared,
    globals: &'a Globals,
    program: Program,
    frames: Vec<Frame<'a>>,
    narrow_constants: HashMap<u32, u32>,
    wide_constants: HashMap<u64, u32>,
    /// Variables of the module in shared memory that the kernel uses.
    shared: HashMap<String, u64>,
    shared_bytes: usize,
    /// The constants for where the shared memory begins that the launch asks for, narrow and wide.
    dynamic: Option<[u32; 2]>,
    /// Of the instruction that is being decoded.
    line: u32,
    guard: Option<Guard>,
}

/// Where each of these starts when they're packed, its bytes, and the bytes of all.
pub(super) fn places(variables: &[Variable]) -> (Vec<(usize, usize)>, usize) {
    let (mut out, mut end) = (Vec::new(), 0usize);
    for variable in variables {
        let begin = end.next_multiple_of(variable.align);
        out.push((begin, variable.bytes));
        end = begin + variable.bytes;
    }
    (out, end)
}

/// Decodes a kernel with all that it calls.
pub(super) fn kernel<'a>(
    function: &'a Function,
    declared: &'a Declared,
    globals: &'a Globals,
) -> Result<Program, Fault> {
    let program = Program {
        code: Vec::new(),
        narrow: special::COUNT,
        wide: 0,
        preds: special::TRUE + 1,
        narrow_constants: Vec::new(),
        wide_constants: Vec::new(),
        shared: Vec::new(),
        dynamic_shared: None,
        local_bytes: 0,
        sites: 0,
        max_threads: function.max_threads,
    };
    let mut decoder = Decoder {
        declared,
        globals,
        program,
        frames: Vec::new(),
        narrow_constants: HashMap::new(),
        wide_constants: HashMap::new(),
        shared: HashMap::new(),
        shared_bytes: 0,
        dynamic: None,
        line: 0,
        guard: None,
    };
    let (offsets, _) = places(&function.parameters);
    let parameters = function.parameters.iter().zip(offsets);
    let parameters =
        parameters.map(|(v, (offset, _))| (v.name.clone(), Place::Parameter(offset as u64)));
    decoder.function(function, parameters.collect())?;
    let dynamic = decoder.dynamic;
    let begin = decoder.shared_bytes.next_multiple_of(16);
    let Decoder { mut program, narrow_constants, wide_constants, .. } = decoder;
    program.local_bytes = program.local_bytes.next_multiple_of(16);
    program.narrow_constants = narrow_constants.into_iter().map(|(v, slot)| (slot, v)).collect();
    program.wide_constants = wide_constants.into_iter().map(|(v, slot)| (slot, v)).collect();
    if let Some([narrow, wide]) = dynamic {
        program.dynamic_shared = Some(begin);
        program.narrow_constants.push((narrow, begin as u32));
        program.wide_constants.push((wide, begin as u64));
    }
    Ok(program)
}

impl<'a> Decoder<'a> {
    fn function(
        &mut self,
        function: &'a Function,
        variables: HashMap<String, Place>,
    ) -> Result<(), Fault> {
        if self.frames.len() >= DEEPEST {
            return Err(Fault::new(format!(
                "`{}` is called too deep, or by itself",
                function.name
            )));
        }
        let scope = Scope { variables, ..Scope::default() };
        self.frames.push(Frame {
            scopes: vec![scope],
            labels: HashMap::new(),
            open: Vec::new(),
            returns: Vec::new(),
            kernel: function.kernel,
        });
        let mut cursor = Cursor::new(&function.body, function.body_line);
        while let Some((line, statement)) = cursor.statement()? {
            let outer = (self.line, self.guard);
            self.line = line;
            self.statement(statement).map_err(|fault| fault.at(format!("PTX line {line}")))?;
            (self.line, self.guard) = outer;
        }
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        for (at, label, line) in frame.open {
            let target = frame
                .labels
                .get(label)
                .copied()
                .ok_or_else(|| Fault::new(format!("PTX line {line}: no label `{label}`")))?;
            self.aim(at, target);
        }
        let end = self.program.code.len() as u32;
        for at in frame.returns {
            self.aim(at, end);
        }
        Ok(())
    }

    fn aim(&mut self, at: usize, target: u32) {
        if let Some(instr) = self.program.code.get_mut(at) {
            instr.op = Op::Jump(target);
        }
    }

    fn frame(&mut self) -> Result<&mut Frame<'a>, Fault> {
        self.frames.last_mut().ok_or_else(|| Fault::new("no function is open"))
    }

    fn scope(&mut self) -> Result<&mut Scope<'a>, Fault> {
        let none = || Fault::new("a `}` too many");
        self.frame()?.scopes.last_mut().ok_or_else(none)
    }

    fn statement(&mut self, statement: Statement<'a>) -> Result<(), Fault> {
        match statement {
            Statement::Open => self.frame()?.scopes.push(Scope::default()),
            Statement::Close => {
                self.frame()?.scopes.pop();
            }
            Statement::Label(name) => {
                let at = self.program.code.len() as u32;
                if self.frame()?.labels.insert(name, at).is_some() {
                    return Err(Fault::new(format!("the label `{name}` is there twice")));
                }
            }
            Statement::Directive(text) => self.directive(text)?,
            Statement::Instruction(text) => self.instruction(text)?,
        }
        Ok(())
    }

    fn directive(&mut self, text: &'a str) -> Result<(), Fault> {
        if text.starts_with(".pragma") {
            return Ok(());
        }
        if let Some(rest) = text.strip_prefix(".reg") {
            return self.registers(rest);
        }
        for variable in variables(text, None)? {
            let place = match variable.space {
                Space::Shared if !variable.dynamic => Place::Shared(self.place_shared(&variable)),
                Space::Local | Space::Param => Place::Local(self.place_local(&variable)),
                _ => return Err(Fault::new(format!("`{text}` isn't known here"))),
            };
            self.scope()?.variables.insert(variable.name, place);
        }
        Ok(())
    }

    /// `.reg .b32 %r<254>` or `.reg .b16 h,r`, after `.reg`.
    fn registers(&mut self, text: &'a str) -> Result<(), Fault> {
        let unknown = || Fault::new(format!("`.reg{text}` isn't known"));
        let text = text.trim_start().strip_prefix('.').ok_or_else(unknown)?;
        let (kind, names) = text.split_once(char::is_whitespace).ok_or_else(unknown)?;
        let kind = Type::parse(kind).ok_or_else(unknown)?;
        for name in operands(names) {
            let (name, count) = match name.split_once('<') {
                None => (name, None),
                Some((name, count)) => {
                    let count = integer(count.trim_end_matches('>')).ok_or_else(unknown)?;
                    (name, Some(u32::try_from(count).map_err(|_| unknown())?))
                }
            };
            let slot = self.fresh_many(kind.class(), count.unwrap_or(1))?;
            let register = Register { class: kind.class(), slot, bytes: kind.bytes() };
            let scope = self.scope()?;
            match count {
                None => _ = scope.registers.insert(name, register),
                Some(count) => scope.ranges.push((name, register, count)),
            }
        }
        Ok(())
    }

    /// The first slot of so many new ones.
    fn fresh_many(&mut self, class: Class, count: u32) -> Result<u32, Fault> {
        let file = match class {
            Class::Pred => &mut self.program.preds,
            Class::Narrow => &mut self.program.narrow,
            Class::Wide => &mut self.program.wide,
        };
        let first = *file;
        *file = first
            .checked_add(count)
            .filter(|all| *all < 1 << 20)
            .ok_or_else(|| Fault::new("more registers than a million"))?;
        Ok(first)
    }

    fn place_shared(&mut self, variable: &Variable) -> u64 {
        let begin = self.shared_bytes.next_multiple_of(variable.align.max(16));
        self.shared_bytes = begin + variable.bytes + GAP;
        self.program.shared.push((begin, variable.bytes));
        begin as u64
    }

    fn place_local(&mut self, variable: &Variable) -> u64 {
        let begin = self.program.local_bytes.next_multiple_of(variable.align);
        self.program.local_bytes = begin + variable.bytes;
        begin as u64
    }

    fn emit(&mut self, op: Op) {
        let (guard, line) = (self.guard, self.line);
        self.program.code.push(Instr { op, guard, line });
    }

    fn run(&mut self, run: Run) {
        self.emit(Op::Lanes(run));
    }

    fn access(&mut self, access: Access) {
        self.emit(Op::Access(access));
    }

    fn instruction(&mut self, text: &'a str) -> Result<(), Fault> {
        let mut text = text;
        self.guard = None;
        if let Some(rest) = text.strip_prefix('@') {
            let (negated, rest) = match rest.strip_prefix('!') {
                Some(rest) => (true, rest.trim_start()),
                None => (false, rest),
            };
            let (name, rest) = rest.split_at(name_end(rest));
            let pred = self.register(name)?;
            if pred.class != Class::Pred {
                return Err(Fault::new(format!("`{name}` is no predicate")));
            }
            self.guard = Some(Guard { pred: pred.slot, negated });
            text = rest.trim_start();
        }
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (opcode, rest) = text.split_at(end);
        let mut op = Opcode::new(opcode);
        let args = operands(rest);
        self.dispatch(&mut op, &args)?;
        op.done()
    }

    fn dispatch(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        match op.name {
            "mov" => self.mov(op, args),
            "cvta" => self.cvta(op, args),
            "ld" | "ldu" => self.load(op, args),
            "st" => self.store(op, args),
            "atom" | "red" => self.atom(op, args),
            "cvt" => self.cvt(op, args),
            "setp" => self.setp(op, args),
            "set" => self.set(op, args),
            "selp" => self.selp(op, args),
            "and" | "or" | "xor" | "not" | "cnot" => self.logic(op, args),
            "shl" | "shr" | "shf" | "bfe" | "bfi" | "brev" | "clz" | "popc" | "bfind" | "prmt"
            | "lop3" | "dp4a" => self.bits(op, args),
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs"
            | "neg" | "addc" | "subc" | "madc" => self.arithmetic(op, args),
            "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rcp" | "sqrt" | "rsqrt" | "copysign"
            | "testp" => self.float_unary(op, args),
            "bra" | "ret" | "exit" | "trap" | "call" | "bar" | "barrier" | "shfl" | "vote"
            | "activemask" | "membar" | "fence" | "nanosleep" | "match" | "redux" => {
                self.control(op, args)
            }
            _ => Err(op.unknown()),
        }
    }
}
