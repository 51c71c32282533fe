//! PTX, NVIDIA's virtual instruction set, read into what the interpreter runs.
//!
//! Source: NVIDIA, Parallel Thread Execution ISA, version 9.0.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

pub use instruction::{
    AtomicOperation, BooleanOperator, Comparison, Instruction, Operand, Operation, SPECIAL_REGISTERS,
    ShuffleMode, Space,
};

mod arithmetic;
mod body;
mod convert;
mod decode;
mod instruction;
mod types;

/// The kernels of one PTX text.
pub struct Module {
    kernels: HashMap<String, Text>,
    /// Shared memory that any of them may name.
    shared: Vec<Declaration>,
    /// Kernels that were read already.
    functions: Mutex<HashMap<String, Arc<Function>>>,
}

/// A kernel as it was written.
struct Text {
    parameters: String,
    body: String,
    /// Of the body's first line.
    line: usize,
}

/// A kernel.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// Of each parameter: where it lies in the block of parameters, and its size, in bytes.
    pub parameters: Vec<(usize, usize)>,
    /// Shared memory that the kernel declares, in bytes; that of a launch lies behind it.
    pub shared_bytes: usize,
    /// Memory of every thread, in bytes.
    pub local_bytes: usize,
    /// Registers of every thread, [`SPECIAL_REGISTERS`] first.
    pub n_registers: usize,
    /// What [`Operand`]s behind the registers are.
    pub constants: Vec<u64>,
    pub instructions: Vec<Instruction>,
}

impl Module {
    /// # Errors
    /// A text that is not PTX.
    pub fn load(text: &str) -> Result<Self, String> {
        if !text.lines().any(|line| line.starts_with(".version")) {
            return Err("no PTX: it names no version".to_owned());
        }
        let mut module = Self { kernels: HashMap::new(), shared: Vec::new(), functions: Mutex::default() };
        let mut lines = text.lines().enumerate();
        while let Some((_, line)) = lines.next() {
            if let Some(declaration) = declared(line, ".shared") {
                module.shared.push(declaration?);
            }
            let Some((_, head)) = line.split_once(".entry ") else { continue };
            let name = head.split(['(', ' ']).next().unwrap_or_default().to_owned();
            let mut kernel = Text { parameters: String::new(), body: String::new(), line: 0 };
            let mut depth = 0;
            for (number, line) in lines.by_ref() {
                let code = line.split_once("//").map_or(line, |(code, _)| code);
                if depth == 0 && code == "{" {
                    (depth, kernel.line) = (1, number + 2);
                    continue;
                }
                depth = (depth + code.matches('{').count()).saturating_sub(code.matches('}').count());
                match (kernel.line, depth) {
                    (0, _) => kernel.parameters.push_str(code),
                    (_, 0) => break,
                    _ => {
                        kernel.body.push_str(code);
                        kernel.body.push('\n');
                    }
                }
            }
            module.kernels.insert(name, kernel);
        }
        Ok(module)
    }

    /// A kernel by its name; `None` where there is no such kernel.
    ///
    /// # Errors
    /// One that cannot be read. What the emulator does not have is an error where it is run.
    pub fn function(&self, name: &str) -> Option<Result<Arc<Function>, String>> {
        let text = self.kernels.get(name)?;
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Some(Ok(Arc::clone(function)));
        }
        let function = body::read(name, text, &self.shared).map(Arc::new);
        if let Ok(function) = &function {
            functions.insert(name.to_owned(), Arc::clone(function));
        }
        Some(function)
    }
}

/// Memory with a name.
struct Declaration {
    name: String,
    alignment: usize,
    /// `None` where a launch says how many.
    bytes: Option<usize>,
}

/// What a line like `.shared .align 8 .b8 name[16]` declares; `None` for another line.
fn declared(line: &str, space: &str) -> Option<Result<Declaration, String>> {
    let line = line.trim().trim_start_matches(".extern ").trim_start_matches(".visible ");
    let rest = line.strip_prefix(space)?.strip_prefix(' ')?;
    let rest = rest.trim_end_matches([';', ',', ')']).trim();
    let wrong = || format!("cannot read the declaration {line:?}");
    let mut words = rest.split_whitespace().peekable();
    let mut alignment = None;
    let mut size = None;
    let mut name = None;
    while let Some(word) = words.next() {
        match word {
            ".align" => alignment = words.next().and_then(|word| word.parse().ok()),
            ".ptr" => {}
            word if word.starts_with('.') => size = types::Type::named(&word[1..]).map(types::Type::bytes),
            word => name = Some(word),
        }
    }
    let (Some(size), Some(name)) = (size, name) else { return Some(Err(wrong())) };
    let (name, count) = match name.split_once('[') {
        None => (name, Some(1)),
        Some((name, "]")) => (name, None),
        Some((name, count)) => match count.trim_end_matches(']').parse::<usize>() {
            Ok(count) => (name, Some(count)),
            Err(_) => return Some(Err(wrong())),
        },
    };
    let (alignment, bytes) = (alignment.unwrap_or(size), count.map(|count| count * size));
    Some(Ok(Declaration { name: name.to_owned(), alignment, bytes }))
}
