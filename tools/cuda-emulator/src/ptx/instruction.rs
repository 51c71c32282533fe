//! Instructions as the interpreter runs them.

use super::{
    arithmetic::{Binary, Ternary, Test, Unary},
    convert::Conversion,
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
