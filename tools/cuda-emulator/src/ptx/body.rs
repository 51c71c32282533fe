//! The body of a kernel: declarations, labels and statements.

use std::collections::HashMap;

use super::{
    Declaration, Function, Text, declared, decode::Decoder, instruction::SPECIAL_REGISTERS, types::Type,
};

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
