//! The body of a kernel: declarations, labels and instructions.

use std::collections::HashMap;

use super::{
    Declaration, Function, Text,
    arithmetic::{self, Binary, Ternary, Test, Unary},
    convert::Conversion,
    declared,
    types::Type,
};

/// Registers that the hardware sets, in this order, before those of the kernel.
pub const SPECIAL_REGISTERS: [&str; 13] = [
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%laneid",
];

/// Number of a register, or, from the number of registers on, of a constant.
pub type Operand = u32;

/// One instruction.
#[derive(Debug)]
pub struct Instruction {
    /// It runs only where this register is 1, or 0 where the second part is true.
    pub guard: Option<(Operand, bool)>,
    pub operation: Operation,
    /// Line in the PTX text.
    pub line: usize,
}

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Anywhere: the windows of the other spaces say which one.
    Generic,
    Global,
    Shared,
    Local,
    Parameter,
}

/// What an instruction does.
#[derive(Debug)]
pub enum Operation {
    /// `to = function(from) & mask`, as the next two.
    Unary {
        function: Unary,
        mask: u64,
        to: u32,
        from: Operand,
    },
    Binary {
        function: Binary,
        mask: u64,
        to: u32,
        from: [Operand; 2],
    },
    Ternary {
        function: Ternary,
        mask: u64,
        to: u32,
        from: [Operand; 3],
    },
    Move {
        to: u32,
        from: Operand,
    },
    /// Several registers into one, the lowest bits first; each has `bits`.
    Join {
        to: u32,
        parts: Vec<Operand>,
        bits: u32,
    },
    /// One register into several.
    Split {
        parts: Vec<u32>,
        from: Operand,
        bits: u32,
    },
    /// `mask`: the bits of the register, which may have more than the type: the sign fills it up.
    Convert {
        conversion: Conversion,
        mask: u64,
        to: u32,
        from: Operand,
    },
    Compare(Comparison),
    Select {
        to: u32,
        from: [Operand; 2],
        by: Operand,
    },
    /// `to = from + window`, or the way back.
    Address {
        to: u32,
        from: Operand,
        space: Space,
        to_generic: bool,
    },
    Load {
        space: Space,
        type_: Type,
        to: Vec<u32>,
        mask: u64,
        base: Operand,
        offset: i64,
    },
    Store {
        space: Space,
        type_: Type,
        from: Vec<Operand>,
        base: Operand,
        offset: i64,
    },
    Atomic {
        operation: AtomicOperation,
        type_: Type,
        to: Option<u32>,
        from: Vec<Operand>,
        base: Operand,
        offset: i64,
    },
    Branch {
        to: usize,
    },
    Shuffle {
        choice: ShuffleMode,
        to: u32,
        found: Option<u32>,
        from: [Operand; 4],
    },
    /// Threads of a warp wait for each other.
    WarpBarrier {
        mask: Operand,
    },
    /// Threads of a block wait for each other.
    Barrier,
    Return,
    Nothing,
    /// What the emulator does not have.
    Missing(String),
}

/// `setp` and `set`: compares, joins the result with a predicate, and writes it.
#[derive(Debug)]
pub struct Comparison {
    pub test: Test,
    pub from: [Operand; 2],
    pub joined: Option<(Operand, BooleanOperator)>,
    pub to: u32,
    pub otherwise_to: Option<u32>,
    /// What is written where it holds.
    pub yes: u64,
}

/// How a comparison is joined with a predicate.
#[derive(Clone, Copy, Debug)]
pub enum BooleanOperator {
    And,
    Or,
    Xor,
}

/// What an atomic instruction does with the value in memory.
#[derive(Clone, Copy, Debug)]
pub enum AtomicOperation {
    Binary(Binary),
    Exchange,
    CompareAndSwap,
}

/// Whose register a thread reads.
#[derive(Clone, Copy, Debug)]
pub enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Indexed,
}

/// Reads a kernel.
pub fn read(name: &str, text: &Text, module_shared: &[Declaration]) -> Result<Function, String> {
    let wrong = |line: usize, reason: String| format!("{name}, line {line} of its PTX: {reason}");
    let mut reader = Reader { scopes: vec![HashMap::new()], ..Reader::default() };
    for (number, register) in (0..).zip(SPECIAL_REGISTERS) {
        reader.scopes[0].insert(register.to_owned(), number);
    }
    reader.registers = vec![Type::Unsigned(32); SPECIAL_REGISTERS.len()];

    let mut parameters = Vec::new();
    let mut end = 0;
    for declaration in text.parameters.split(',').filter(|text| text.contains(".param")) {
        let Some(Ok(Declaration { name, alignment, bytes: Some(bytes) })) = declared(declaration, ".param")
        else {
            return Err(wrong(text.line, format!("cannot read the parameter {declaration:?}")));
        };
        let at = usize::next_multiple_of(end, alignment);
        end = at + bytes;
        parameters.push((at, bytes));
        reader.symbols.insert(name, at as u64);
    }
    let mut dynamic = None;
    for shared in module_shared.iter().filter(|shared| text.body.contains(&shared.name)) {
        match shared.bytes {
            Some(bytes) => reader.place_shared(shared.name.clone(), shared.alignment, bytes),
            None => dynamic = Some(shared),
        }
    }

    // Statements end with a semicolon; labels with a colon, and scopes with a brace, stand alone.
    let mut line = text.line;
    let mut rest = text.body.as_str();
    loop {
        let code = rest.trim_start();
        line += rest[..rest.len() - code.len()].matches('\n').count();
        if code.is_empty() {
            break;
        }
        let length = match code.as_bytes()[0] {
            b'{' => {
                reader.scopes.push(HashMap::new());
                1
            }
            b'}' => {
                reader.scopes.pop();
                1
            }
            b'$' => {
                let Some(length) = code.find(':') else {
                    return Err(wrong(line, "a label without a colon".to_owned()));
                };
                reader.labels.insert(code[..length].to_owned(), reader.instructions.len());
                length + 1
            }
            _ => {
                let Some(length) = code.find(';') else {
                    return Err(wrong(line, "a statement without a semicolon".to_owned()));
                };
                reader.statement(&code[..length], line).map_err(|reason| wrong(line, reason))?;
                length + 1
            }
        };
        line += code[..length].matches('\n').count();
        rest = &code[length..];
    }
    if let Some(dynamic) = dynamic {
        reader.place_shared(dynamic.name.clone(), dynamic.alignment, 0);
    }
    reader.finish(name, parameters)
}

#[derive(Default)]
struct Reader {
    /// Registers by name; an inner scope hides the names of outer ones.
    scopes: Vec<HashMap<String, u32>>,
    /// The type of each register.
    registers: Vec<Type>,
    /// Addresses, each within its space.
    symbols: HashMap<String, u64>,
    shared_bytes: usize,
    local_bytes: usize,
    labels: HashMap<String, usize>,
    /// Statements, read when all labels and symbols are known.
    instructions: Vec<(String, usize)>,
}

impl Reader {
    fn place_shared(&mut self, name: String, alignment: usize, bytes: usize) {
        let at = self.shared_bytes.next_multiple_of(alignment);
        self.symbols.insert(name, at as u64);
        self.shared_bytes = at + bytes;
    }

    fn statement(&mut self, statement: &str, line: usize) -> Result<(), String> {
        if let Some(registers) = statement.strip_prefix(".reg") {
            let (type_, names) = registers.trim().split_once([' ', '\t']).unwrap_or((registers, ""));
            let type_ = Type::named(type_.trim_start_matches('.')).ok_or("registers of an unknown type")?;
            for name in names.split(',').map(str::trim) {
                let (prefix, count) = match name.split_once('<') {
                    None => (name, None),
                    Some((prefix, count)) => (prefix, count.trim_end_matches('>').parse::<u32>().ok()),
                };
                for index in 0..count.unwrap_or(1) {
                    let name = count.map_or(prefix.to_owned(), |_| format!("{prefix}{index}"));
                    self.scopes
                        .last_mut()
                        .ok_or("a brace too many")?
                        .insert(name, self.registers.len() as u32);
                    self.registers.push(type_);
                }
            }
            return Ok(());
        }
        if let Some(shared) = declared(statement, ".shared") {
            let Declaration { name, alignment, bytes } = shared?;
            self.place_shared(name, alignment, bytes.ok_or("shared memory without a size in a kernel")?);
            return Ok(());
        }
        if let Some(local) = declared(statement, ".local") {
            let Declaration { name, alignment, bytes } = local?;
            let at = self.local_bytes.next_multiple_of(alignment);
            self.symbols.insert(name, at as u64);
            self.local_bytes = at + bytes.ok_or("local memory without a size")?;
            return Ok(());
        }
        if statement.starts_with(".pragma") {
            return Ok(());
        }
        // Names of an inner scope are known only now.
        let mut resolved = String::with_capacity(statement.len());
        for word in statement.split_inclusive([' ', '\t', ',', '{', '}', '[', ']', '|', '+', '!', '@', '\n'])
        {
            let end =
                word.trim_end_matches([' ', '\t', ',', '{', '}', '[', ']', '|', '+', '!', '@', '\n']).len();
            let (name, punctuation) = word.split_at(end);
            match self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
                Some(number) => resolved.push_str(&format!("#{number}")),
                None => resolved.push_str(name),
            }
            resolved.push_str(punctuation);
        }
        self.instructions.push((resolved, line));
        Ok(())
    }

    fn finish(self, name: &str, parameters: Vec<(usize, usize)>) -> Result<Function, String> {
        let mut decoder = Decoder {
            labels: &self.labels,
            symbols: &self.symbols,
            registers: &self.registers,
            constants: Vec::new(),
        };
        let instructions = self
            .instructions
            .iter()
            .map(|(statement, line)| {
                decoder.instruction(statement, *line).map_err(|reason| {
                    format!("{name}, line {line} of its PTX, {:?}: {reason}", statement.trim())
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Function {
            name: name.to_owned(),
            parameters,
            shared_bytes: self.shared_bytes,
            local_bytes: self.local_bytes,
            n_registers: self.registers.len(),
            constants: decoder.constants,
            instructions,
        })
    }
}

struct Decoder<'a> {
    labels: &'a HashMap<String, usize>,
    symbols: &'a HashMap<String, u64>,
    registers: &'a [Type],
    constants: Vec<u64>,
}

impl Decoder<'_> {
    fn instruction(&mut self, statement: &str, line: usize) -> Result<Instruction, String> {
        let statement = statement.trim();
        let (guard, statement) = match statement.strip_prefix('@') {
            None => (None, statement),
            Some(guarded) => {
                let (guard, statement) = guarded.split_once([' ', '\t']).ok_or("nothing is guarded")?;
                let (register, negated) = match guard.strip_prefix('!') {
                    Some(register) => (register, true),
                    None => (guard, false),
                };
                (Some((register_of(register)?, negated)), statement.trim())
            }
        };
        let (opcode, operands) = statement.split_once([' ', '\t']).unwrap_or((statement, ""));
        let words: Vec<&str> = opcode.split('.').collect();
        let operands = operands_of(operands);
        // Other than the rest of a statement, a guard is always known.
        let operation = match self.operation(&words, &operands) {
            Ok(Some(operation)) => operation,
            Ok(None) => Operation::Missing(opcode.to_owned()),
            Err(reason) => Operation::Missing(format!("{opcode}: {reason}")),
        };
        Ok(Instruction { guard, operation, line })
    }

    /// `None` for an instruction that the emulator does not have.
    fn operation(&mut self, words: &[&str], operands: &[&str]) -> Result<Option<Operation>, String> {
        let type_ = words.last().and_then(|word| Type::named(word));
        let mask = type_.map_or(u64::MAX, Type::mask);
        Ok(Some(match (words[0], operands) {
            ("ret" | "exit", _) => Operation::Return,
            ("bra", [label]) => Operation::Branch { to: *self.labels.get(*label).ok_or("an unknown label")? },
            ("bar" | "barrier", [mask]) if words.contains(&"warp") => {
                Operation::WarpBarrier { mask: self.operand(mask, u64::MAX)? }
            }
            ("bar" | "barrier", ["0"]) => Operation::Barrier,
            ("membar" | "fence", _) => Operation::Nothing,
            ("mov", [to, from]) if to.starts_with('{') || from.starts_with('{') => {
                match from.starts_with('{') {
                    true => {
                        let parts = self.list(from, u64::MAX)?;
                        let Some(bits) = type_.map(|type_| type_.bits() / parts.len() as u32) else {
                            return Ok(None);
                        };
                        Operation::Join { to: register_of(to)?, parts, bits }
                    }
                    false => {
                        let parts = registers_of(to)?;
                        let Some(bits) = type_.map(|type_| type_.bits() / parts.len() as u32) else {
                            return Ok(None);
                        };
                        Operation::Split { parts, from: self.operand(from, mask)?, bits }
                    }
                }
            }
            ("mov", [to, from]) => Operation::Move { to: register_of(to)?, from: self.operand(from, mask)? },
            ("cvta", [to, from]) => {
                let (to, from) = (register_of(to)?, self.operand(from, u64::MAX)?);
                let space = words.iter().find_map(|word| space_named(word)).ok_or("an unknown space")?;
                Operation::Address { to, from, space, to_generic: !words.contains(&"to") }
            }
            ("ld" | "ldu", [to, address]) => {
                let Some(type_) = type_ else { return Ok(None) };
                let (base, offset) = self.address(address)?;
                let to = registers_of(to)?;
                let mask = self.width(to.first())?;
                Operation::Load { space: space_of(words), type_, to, mask, base, offset }
            }
            ("st", [address, from]) => {
                let Some(type_) = type_ else { return Ok(None) };
                let (base, offset) = self.address(address)?;
                Operation::Store { space: space_of(words), type_, from: self.list(from, mask)?, base, offset }
            }
            ("atom" | "red", operands) => {
                let Some(type_) = type_ else { return Ok(None) };
                let (to, operands) = match words[0] {
                    "atom" => (Some(register_of(operands.first().ok_or("no result")?)?), &operands[1..]),
                    _ => (None, operands),
                };
                let [address, from @ ..] = operands else { return Err("no address".to_owned()) };
                if words.contains(&"shared") {
                    return Ok(None);
                }
                let name = words[words.len() - 2];
                let operation = match name {
                    "cas" => AtomicOperation::CompareAndSwap,
                    "exch" => AtomicOperation::Exchange,
                    name => match arithmetic::binary(name, type_) {
                        Some(function) => AtomicOperation::Binary(function),
                        None => return Ok(None),
                    },
                };
                let (base, offset) = self.address(address)?;
                let from = from.iter().map(|from| self.operand(from, mask)).collect::<Result<_, _>>()?;
                Operation::Atomic { operation, type_, to, from, base, offset }
            }
            ("cvt", [to, from]) => {
                let Some(conversion) = Conversion::named(&words[1..]) else { return Ok(None) };
                let to = register_of(to)?;
                let mask = self.width(Some(&to))?;
                Operation::Convert { conversion, mask, to, from: self.operand(from, u64::MAX)? }
            }
            ("selp", [to, yes, no, by]) => Operation::Select {
                to: register_of(to)?,
                from: [self.operand(yes, mask)?, self.operand(no, mask)?],
                by: register_of(by)?,
            },
            ("setp" | "set", [to, a, b, rest @ ..]) => {
                // `set` names the type of its result, too.
                let Some(type_) = type_ else { return Ok(None) };
                let Some(test) = arithmetic::test(words[1], type_) else { return Ok(None) };
                let join = match words[2] {
                    "and" => Some(BooleanOperator::And),
                    "or" => Some(BooleanOperator::Or),
                    "xor" => Some(BooleanOperator::Xor),
                    _ => None,
                };
                let joined = match (join, rest) {
                    (None, []) => None,
                    (Some(join), [with]) => Some((register_of(with)?, join)),
                    _ => return Ok(None),
                };
                let yes = match (words[0], words[words.len() - 2]) {
                    ("setp", _) => 1,
                    (_, "f32") => u64::from(1f32.to_bits()),
                    (_, "u32" | "s32") => u32::MAX.into(),
                    _ => return Ok(None),
                };
                let (to, otherwise_to) = two_registers(to)?;
                let from = [self.operand(a, mask)?, self.operand(b, mask)?];
                Operation::Compare(Comparison { test, from, joined, to, otherwise_to, yes })
            }
            ("shfl", [to, value, by, range, lanes]) => {
                let choice = match words[2] {
                    "up" => ShuffleMode::Up,
                    "down" => ShuffleMode::Down,
                    "bfly" => ShuffleMode::Butterfly,
                    _ => ShuffleMode::Indexed,
                };
                let (to, found) = two_registers(to)?;
                let mut from = [0; 4];
                for (place, operand) in from.iter_mut().zip([value, by, range, lanes]) {
                    *place = self.operand(operand, u64::from(u32::MAX))?;
                }
                Operation::Shuffle { choice, to, found, from }
            }
            (_, [to, from @ ..]) => return self.arithmetic(words, to, from),
            _ => return Ok(None),
        }))
    }

    fn arithmetic(&mut self, words: &[&str], to: &str, from: &[&str]) -> Result<Option<Operation>, String> {
        let Some(type_) = words.last().and_then(|word| Type::named(word)) else { return Ok(None) };
        let mut name = words[0].to_owned();
        for &word in &words[1..words.len() - 1] {
            match word {
                // Exact where PTX allows an error, and with subnormal numbers where it allows none.
                "rn" | "ftz" | "approx" | "full" => {}
                "lo" | "hi" | "wide" | "rm" => name = format!("{name}.{word}"),
                _ => return Ok(None),
            }
        }
        let wide = name.ends_with(".wide");
        let result_mask = match type_.bits() {
            16 if wide => u32::MAX.into(),
            _ if wide => u64::MAX,
            _ => type_.mask(),
        };
        let to = register_of(to)?;
        let masks = match name.as_str() {
            // The distance of a shift has 32 bits, whatever is shifted.
            "shl" | "shr" => [type_.mask(), u32::MAX.into(), 0],
            _ => [type_.mask(), type_.mask(), result_mask],
        };
        let mut operands = Vec::new();
        for (text, mask) in from.iter().zip(masks) {
            operands.push(self.operand(text, mask)?);
        }
        let mask = result_mask;
        Ok(match operands[..] {
            [from] => {
                arithmetic::unary(&name, type_).map(|function| Operation::Unary { function, mask, to, from })
            }
            [a, b] => arithmetic::binary(&name, type_).map(|function| Operation::Binary {
                function,
                mask,
                to,
                from: [a, b],
            }),
            [a, b, c] => arithmetic::ternary(&name, type_).map(|function| Operation::Ternary {
                function,
                mask,
                to,
                from: [a, b, c],
            }),
            _ => None,
        })
    }

    /// The bits that a register has.
    fn width(&self, register: Option<&u32>) -> Result<u64, String> {
        let type_ = register.and_then(|register| self.registers.get(*register as usize));
        type_.map(|type_| type_.mask()).ok_or_else(|| "no register".to_owned())
    }

    /// A register, or a constant: a number, cut off by `mask`, or the address of a symbol.
    fn operand(&mut self, text: &str, mask: u64) -> Result<Operand, String> {
        if text.starts_with('#') {
            return register_of(text);
        }
        let value = match self.symbols.get(text) {
            Some(&address) => address,
            None => {
                number(text).ok_or_else(|| format!("{text:?} is neither register, number nor symbol"))? & mask
            }
        };
        let known = self.constants.iter().position(|&constant| constant == value);
        let index = known.unwrap_or_else(|| {
            self.constants.push(value);
            self.constants.len() - 1
        });
        Ok((self.registers.len() + index) as Operand)
    }

    /// Of `{a, b}`, or of `a`.
    fn list(&mut self, text: &str, mask: u64) -> Result<Vec<Operand>, String> {
        parts_of(text).map(|part| self.operand(part, mask)).collect()
    }

    /// Of `[base + offset]`.
    fn address(&mut self, text: &str) -> Result<(Operand, i64), String> {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).ok_or("no address")?;
        let (base, offset) = match inner.split_once('+') {
            None => (inner, 0),
            Some((base, offset)) => {
                (base, number(offset.trim()).ok_or_else(|| format!("{offset:?} is no number"))? as i64)
            }
        };
        Ok((self.operand(base.trim(), u64::MAX)?, offset))
    }
}

/// The operands of an instruction: separated by commas outside of braces.
fn operands_of(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|operand| !operand.is_empty())
    .collect()
}

fn parts_of(text: &str) -> impl Iterator<Item = &str> {
    text.trim_start_matches('{').trim_end_matches('}').split(',').map(str::trim)
}

fn register_of(text: &str) -> Result<u32, String> {
    text.strip_prefix('#')
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("{text:?} is no register"))
}

fn registers_of(text: &str) -> Result<Vec<u32>, String> {
    parts_of(text).map(register_of).collect()
}

/// Of `a|b`, or of `a`.
fn two_registers(text: &str) -> Result<(u32, Option<u32>), String> {
    match text.split_once('|') {
        None => Ok((register_of(text)?, None)),
        Some((first, second)) => Ok((register_of(first)?, Some(register_of(second)?))),
    }
}

/// The bits of a number as PTX writes it.
fn number(text: &str) -> Option<u64> {
    let hexadecimal = |digits: &str| u64::from_str_radix(digits, 16).ok();
    if let Some(digits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0d")) {
        return hexadecimal(digits);
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return hexadecimal(digits.trim_end_matches('U'));
    }
    let digits = text.trim_end_matches('U');
    digits.parse::<i64>().map(|value| value as u64).or_else(|_| digits.parse()).ok()
}

fn space_named(word: &str) -> Option<Space> {
    Some(match word {
        "global" => Space::Global,
        "shared" => Space::Shared,
        "local" => Space::Local,
        "param" => Space::Parameter,
        _ => return None,
    })
}

fn space_of(words: &[&str]) -> Space {
    words.iter().find_map(|word| space_named(word)).unwrap_or(Space::Generic)
}
