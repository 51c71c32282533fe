//! From the text of a statement to an instruction.

use std::collections::HashMap;

use super::{
    arithmetic,
    convert::Conversion,
    instruction::{
        AtomicOperation, BooleanOperator, Comparison, Instruction, Operand, Operation, ShuffleMode, Space,
    },
    types::Type,
};

/// Knows the names of one kernel.
pub struct Decoder<'a> {
    pub labels: &'a HashMap<String, usize>,
    pub symbols: &'a HashMap<String, u64>,
    pub registers: &'a [Type],
    pub constants: Vec<u64>,
}

impl Decoder<'_> {
    pub fn instruction(&mut self, statement: &str, line: usize) -> Result<Instruction, String> {
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
