//! Runs kernels: blocks one after the other, of each block thread after thread as far as it
//! can go without the others.

use std::sync::Arc;

use self::{
    shared::Shared,
    spaces::{Spaces, put_word, window, word},
};
use crate::{
    gpu::in_other_order,
    memory::{Fault, Memory, NEVER_WRITTEN, Work, fault},
    ptx::{
        AtomicOperation, BooleanOperator, Comparison, Function, Instruction, Operand, Operation,
        SPECIAL_REGISTERS, ShuffleMode, Space,
    },
};

mod shared;
mod spaces;
#[cfg(test)]
mod tests;

/// Threads of a warp.
const LANES: usize = 32;

/// Branches of a thread after which it is taken to run for ever.
const LONGEST: u64 = 1 << 28;

/// A kernel with its arguments.
pub struct Launch {
    pub function: Arc<Function>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Shared memory beyond what the kernel declares, in bytes.
    pub shared_bytes: usize,
    /// The block of parameters, each where [`Function::parameters`] says.
    pub parameters: Vec<u8>,
}

impl Launch {
    /// # Errors
    /// What the kernel does wrong.
    pub fn run(&self, memory: &mut Memory) -> Work {
        let n_threads = self.block.iter().product::<u32>() as usize;
        let function = &*self.function;
        let mut block = Block {
            launch: self,
            registers: vec![0; n_threads * function.n_registers],
            threads: vec![Thread::default(); n_threads],
            warp_epochs: vec![0; n_threads.div_ceil(LANES)],
            spaces: Spaces {
                memory,
                shared: Shared::new(function.shared_bytes + self.shared_bytes),
                local: vec![NEVER_WRITTEN; n_threads * function.local_bytes],
                local_bytes: function.local_bytes,
                parameters: &self.parameters,
            },
        };
        let [x, y, z] = self.grid.map(u64::from);
        let count = x * y * z;
        for index in 0..count {
            let index = if in_other_order() { count - 1 - index } else { index };
            let place = [index % x, index / x % y, index / x / y];
            block.run(place).map_err(|words| fault!("block {place:?} of {:?}, {}", self.grid, words.0))?;
        }
        Ok(())
    }
}

/// A block of threads at work.
struct Block<'a> {
    launch: &'a Launch,
    registers: Vec<u64>,
    threads: Vec<Thread>,
    /// How often the threads of each warp have waited for each other.
    warp_epochs: Vec<u32>,
    spaces: Spaces<'a>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Thread {
    /// The instruction that comes next, or at which it waits.
    next: usize,
    state: State,
    n_branches: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Running,
    /// For its warp.
    WaitsForLanes,
    /// For its block.
    WaitsForBlock,
    Done,
}

impl Block<'_> {
    fn run(&mut self, place: [u64; 3]) -> Work {
        self.begin(place);
        loop {
            let mut moved = false;
            for warp in 0..self.warp_epochs.len() {
                loop {
                    for thread in self.lanes(warp) {
                        if self.threads[thread].state == State::Running {
                            moved = true;
                            self.run_thread(thread)?;
                        }
                    }
                    if !self.let_lanes_pass(warp)? {
                        break;
                    }
                }
            }
            if self.threads.iter().all(|thread| thread.state == State::Done) {
                return Ok(());
            }
            if !moved && !self.let_block_pass()? {
                let waiting = self.threads.iter().position(|thread| thread.state != State::Done).unwrap_or(0);
                return Err(self.fault(waiting, "waits for threads that never come"));
            }
        }
    }

    /// Sets what a block begins with.
    fn begin(&mut self, place: [u64; 3]) {
        let Launch { function, grid, block, .. } = self.launch;
        let sizes = |sizes: &[u32; 3]| sizes.map(u64::from);
        let ([width, height, _], grid) = (sizes(block), sizes(grid));
        for (index, registers) in self.registers.chunks_exact_mut(function.n_registers).enumerate() {
            let thread = index as u64;
            let at = [thread % width, thread / width % height, thread / width / height];
            let special = [at, sizes(block), place, grid];
            let (lane, rest) = (thread % LANES as u64, special.as_flattened());
            registers[..rest.len()].copy_from_slice(rest);
            registers[rest.len()] = lane;
            debug_assert_eq!(rest.len() + 1, SPECIAL_REGISTERS.len());
        }
        self.threads.fill(Thread::default());
        self.spaces.shared.begin();
        self.spaces.local.fill(NEVER_WRITTEN);
    }

    fn lanes(&self, warp: usize) -> std::ops::Range<usize> {
        warp * LANES..((warp + 1) * LANES).min(self.threads.len())
    }

    /// What a thread did, with the line at which it is.
    fn fault(&self, thread: usize, words: &str) -> Fault {
        let [width, height, _] = self.launch.block.map(|size| size as usize);
        let at = [thread % width, thread / width % height, thread / width / height];
        let instructions = &self.launch.function.instructions;
        let line = instructions.get(self.threads[thread].next).map_or(0, |instruction| instruction.line);
        fault!("thread {at:?}, line {line} of the PTX: {words}")
    }

    /// The registers of a thread.
    fn registers(&self, thread: usize) -> Registers<'_, &[u64]> {
        let n = self.launch.function.n_registers;
        Registers { own: &self.registers[thread * n..][..n], constants: &self.launch.function.constants }
    }

    fn set(&mut self, thread: usize, register: u32, value: u64) {
        self.registers[thread * self.launch.function.n_registers + register as usize] = value;
    }

    /// Runs a thread until it waits or ends.
    fn run_thread(&mut self, thread: usize) -> Work {
        let Thread { mut next, mut n_branches, .. } = self.threads[thread];
        let ran = self.run_instructions(thread, &mut next, &mut n_branches);
        (self.threads[thread].next, self.threads[thread].n_branches) = (next, n_branches);
        self.threads[thread].state = ran.map_err(|Fault(words)| self.fault(thread, &words))?;
        Ok(())
    }

    fn run_instructions(&mut self, thread: usize, next: &mut usize, n_branches: &mut u64) -> Work<State> {
        let Function { n_registers: n, constants, instructions, .. } = &*self.launch.function;
        let warp_epoch = self.warp_epochs[thread / LANES];
        let Self { registers, spaces, .. } = self;
        let mut registers = Registers { own: &mut registers[thread * n..][..*n], constants };
        while let Some(Instruction { guard, operation, .. }) = instructions.get(*next) {
            if let Some((by, negated)) = *guard
                && (registers.get(by) != 0) == negated
            {
                *next += 1;
                continue;
            }
            match operation {
                Operation::Unary { function, mask, to, from } => {
                    registers.set(*to, function(registers.get(*from)) & mask);
                }
                Operation::Binary { function, mask, to, from: [a, b] } => {
                    registers.set(*to, function(registers.get(*a), registers.get(*b)) & mask);
                }
                Operation::Ternary { function, mask, to, from: [a, b, c] } => {
                    let value = function(registers.get(*a), registers.get(*b), registers.get(*c));
                    registers.set(*to, value & mask);
                }
                Operation::Move { to, from } => registers.set(*to, registers.get(*from)),
                Operation::Join { to, parts, bits } => {
                    let joined =
                        parts.iter().rev().fold(0, |value, part| value << bits | registers.get(*part));
                    registers.set(*to, joined);
                }
                Operation::Split { parts, from, bits } => {
                    let value = registers.get(*from);
                    for (part, shift) in parts.iter().zip((0..).step_by(*bits as usize)) {
                        registers.set(*part, value >> shift & (u64::MAX >> (64 - bits)));
                    }
                }
                Operation::Convert { conversion, mask, to, from } => {
                    registers.set(*to, conversion.apply(registers.get(*from)) & mask);
                }
                Operation::Compare(comparison) => compare(&mut registers, comparison),
                Operation::Select { to, from: [yes, no], by } => {
                    let from = if registers.get(*by) != 0 { yes } else { no };
                    registers.set(*to, registers.get(*from));
                }
                Operation::Address { to, from, space, to_generic } => {
                    let (value, window) = (registers.get(*from), window(*space));
                    let value =
                        if *to_generic { value.wrapping_add(window) } else { value.wrapping_sub(window) };
                    registers.set(*to, value);
                }
                Operation::Load { space, type_, to, mask, base, offset } => {
                    let address = registers.get(*base).wrapping_add_signed(*offset);
                    let each = type_.bytes();
                    let bytes = spaces.read((thread, warp_epoch), *space, address, each * to.len())?;
                    for (register, bytes) in to.iter().zip(bytes.chunks_exact(each)) {
                        registers.set(*register, type_.extended(word(bytes)) & mask);
                    }
                }
                Operation::Store { space, type_, from, base, offset } => {
                    let address = registers.get(*base).wrapping_add_signed(*offset);
                    let each = type_.bytes();
                    let bytes = spaces.write((thread, warp_epoch), *space, address, each * from.len())?;
                    for (operand, bytes) in from.iter().zip(bytes.chunks_exact_mut(each)) {
                        put_word(bytes, registers.get(*operand));
                    }
                }
                Operation::Atomic { operation, type_, to, from, base, offset } => {
                    let address = registers.get(*base).wrapping_add_signed(*offset);
                    let by = (thread, warp_epoch);
                    let bytes = spaces.write(by, Space::Generic, address, type_.bytes())?;
                    let before = word(bytes);
                    let argument = |index: usize| from.get(index).map_or(0, |from| registers.get(*from));
                    let after = match operation {
                        AtomicOperation::Binary(function) => function(before, argument(0)),
                        AtomicOperation::Exchange => argument(0),
                        AtomicOperation::CompareAndSwap if before == argument(0) => argument(1),
                        AtomicOperation::CompareAndSwap => before,
                    };
                    put_word(bytes, after);
                    if let Some(to) = to {
                        registers.set(*to, before);
                    }
                }
                Operation::Branch { to } => {
                    *n_branches += 1;
                    if *n_branches > LONGEST {
                        return Err(fault!("runs for ever"));
                    }
                    *next = *to;
                    continue;
                }
                Operation::Shuffle { .. } | Operation::WarpBarrier { .. } => return Ok(State::WaitsForLanes),
                Operation::Barrier => return Ok(State::WaitsForBlock),
                Operation::Return => break,
                Operation::Nothing => {}
                Operation::Missing(opcode) => return Err(fault!("the emulator has no {opcode}")),
            }
            *next += 1;
        }
        Ok(State::Done)
    }

    /// Lets the threads of a warp pass that wait for each other and are all there.
    fn let_lanes_pass(&mut self, warp: usize) -> Work<bool> {
        let launch = self.launch;
        let mut passed = false;
        for first in self.lanes(warp) {
            let Thread { next, state: State::WaitsForLanes, .. } = self.threads[first] else { continue };
            let operation = &launch.function.instructions[next].operation;
            let named = match operation {
                Operation::Shuffle { from, .. } => self.registers(first).get(from[3]),
                Operation::WarpBarrier { mask } => self.registers(first).get(*mask),
                _ => continue,
            };
            let lane = |thread: usize| thread % LANES;
            if named >> lane(first) & 1 == 0 {
                return Err(self.fault(first, "is not among the lanes that it names"));
            }
            // A lane that has ended is not waited for.
            let mut alive: Vec<usize> =
                self.lanes(warp).filter(|&thread| self.threads[thread].state != State::Done).collect();
            let n_alive = alive.len();
            alive.retain(|&thread| named >> lane(thread) & 1 == 1);
            let members = alive;
            let there = |&thread: &usize| {
                self.threads[thread].state == State::WaitsForLanes && self.threads[thread].next == next
            };
            if !members.iter().all(there) {
                continue;
            }
            if let Operation::Shuffle { choice, to, found, from } = operation {
                let values: Vec<u64> =
                    members.iter().map(|&thread| self.registers(thread).get(from[0])).collect();
                for &thread in &members {
                    let [by, range] = [from[1], from[2]].map(|operand| self.registers(thread).get(operand));
                    let (source, is_found) = source_lane(*choice, lane(thread) as u64, by, range);
                    let member = members.iter().position(|&thread| lane(thread) as u64 == source);
                    // What a lane holds that has ended is not known.
                    let value = member.map_or(u32::MAX.into(), |member| values[member]);
                    self.set(thread, *to, value);
                    if let Some(found) = found {
                        self.set(thread, *found, is_found.into());
                    }
                }
            }
            // A shuffle orders no memory, and what some lanes wait for orders nothing for the others.
            if matches!(operation, Operation::WarpBarrier { .. }) && members.len() == n_alive {
                self.warp_epochs[warp] += 1;
            }
            for thread in members {
                self.threads[thread].state = State::Running;
                self.threads[thread].next += 1;
            }
            passed = true;
        }
        Ok(passed)
    }

    /// Lets all threads pass a barrier at which all of them are, those of a warp at the same.
    fn let_block_pass(&mut self) -> Work<bool> {
        if !self.threads.iter().all(|thread| thread.state == State::WaitsForBlock) {
            return Ok(false);
        }
        for (warp, threads) in self.threads.chunks(LANES).enumerate() {
            if let Some(lane) = threads.iter().position(|thread| thread.next != threads[0].next) {
                return Err(self.fault(warp * LANES + lane, "waits at another barrier than its warp"));
            }
        }
        for thread in &mut self.threads {
            thread.state = State::Running;
            thread.next += 1;
        }
        self.spaces.shared.pass_barrier();
        Ok(true)
    }
}

/// The registers of a thread, and the constants behind them.
struct Registers<'a, Own> {
    own: Own,
    constants: &'a [u64],
}

impl<Own: std::ops::Deref<Target = [u64]>> Registers<'_, Own> {
    #[inline]
    fn get(&self, operand: Operand) -> u64 {
        let operand = operand as usize;
        match self.own.get(operand) {
            Some(value) => *value,
            None => self.constants[operand - self.own.len()],
        }
    }
}

impl Registers<'_, &mut [u64]> {
    #[inline]
    fn set(&mut self, register: u32, value: u64) {
        self.own[register as usize] = value;
    }
}

fn compare(registers: &mut Registers<'_, &mut [u64]>, comparison: &Comparison) {
    let Comparison { test, from: [a, b], joined, to, otherwise_to, yes } = comparison;
    let holds = test(registers.get(*a), registers.get(*b));
    let join = |holds: bool| match *joined {
        None => holds,
        Some((with, how)) => {
            let with = registers.get(with) != 0;
            match how {
                BooleanOperator::And => holds && with,
                BooleanOperator::Or => holds || with,
                BooleanOperator::Xor => holds != with,
            }
        }
    };
    let (result, otherwise) = (join(holds), join(!holds));
    registers.set(*to, if result { *yes } else { 0 });
    if let Some(register) = otherwise_to {
        registers.set(*register, otherwise.into());
    }
}

/// The lane that a shuffle reads, and whether it is in range; the own one where it is not.
fn source_lane(choice: ShuffleMode, lane: u64, by: u64, range: u64) -> (u64, bool) {
    let (by, clamp, segment) = (by & 31, range & 31, range >> 8 & 31);
    let last = lane & segment | clamp & !segment;
    let (source, is_found) = match choice {
        ShuffleMode::Up => (lane.wrapping_sub(by), lane.checked_sub(by).is_some_and(|source| source >= last)),
        ShuffleMode::Down => (lane + by, lane + by <= last),
        ShuffleMode::Butterfly => (lane ^ by, lane ^ by <= last),
        ShuffleMode::Indexed => {
            let source = lane & segment | by & !segment & 31;
            (source, source <= last)
        }
    };
    if is_found { (source, true) } else { (lane, false) }
}
