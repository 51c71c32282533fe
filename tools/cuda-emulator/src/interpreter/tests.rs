//! Small kernels, as nvcc would write them.

use super::*;
use crate::ptx::Module;

/// A kernel `k` of one parameter, the address of its numbers, with the body given.
fn kernel(body: &str) -> Arc<Function> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n\n.visible .entry k(\n\t.param .u64 k_param_0\n)\n{{\n\
         \t.reg .pred \t%p<9>;\n\t.reg .b16 \t%rs<9>;\n\t.reg .b32 \t%r<9>;\n\t.reg .f32 \t%f<9>;\n\t.reg .b64 \t%rd<9>;\n\
         \t.shared .align 4 .b8 s[256];\n\n{body}\n\tret;\n\n}}\n"
    );
    Module::load(&text).unwrap().function("k").unwrap().unwrap()
}

/// Runs a kernel in one block of so many threads over these numbers.
fn run(body: &str, n_threads: u32, numbers: &[u32]) -> Work<Vec<u32>> {
    let mut memory = Memory::new(1 << 20, 0);
    let address = memory.reserve(numbers.len() * 4).unwrap();
    memory.commit(address).unwrap();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    memory.write(address, bytes.len()).unwrap().copy_from_slice(&bytes);
    let launch = Launch {
        function: kernel(body),
        grid: [1, 1, 1],
        block: [n_threads, 1, 1],
        shared_bytes: 0,
        parameters: address.to_le_bytes().to_vec(),
    };
    launch.run(&mut memory)?;
    let bytes = memory.read(address, bytes.len()).unwrap();
    Ok(bytes.chunks_exact(4).map(|number| u32::from_le_bytes(number.try_into().unwrap())).collect())
}

#[track_caller]
fn fails(body: &str, n_threads: u32, numbers: &[u32], words: &str) {
    let message = run(body, n_threads, numbers).unwrap_err().0;
    assert!(message.contains(words), "{message}");
}

/// `%rd1`: the thread's own number; `%r1`: the thread; `%r2`: its place in shared memory.
const OWN: &str = "
	ld.param.u64 	%rd0, [k_param_0];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd1, %r1, 4;
	add.s64 	%rd1, %rd0, %rd1;
	shl.b32 	%r2, %r1, 2;
	mov.u32 	%r3, s;
	add.s32 	%r2, %r3, %r2;
";

#[test]
fn threads_exchange_numbers_over_a_barrier() {
    let reverse = |barrier: &str| {
        format!(
            "{OWN}
	ld.global.u32 	%r4, [%rd1];
	st.shared.u32 	[%r2], %r4;
	{barrier}
	sub.s32 	%r5, 3, %r1;
	shl.b32 	%r5, %r5, 2;
	add.s32 	%r5, %r3, %r5;
	ld.shared.u32 	%r6, [%r5];
	st.global.u32 	[%rd1], %r6;"
        )
    };
    assert_eq!(run(&reverse("bar.sync 	0;"), 4, &[5, 6, 7, 8]).unwrap(), [8, 7, 6, 5]);
    // Threads run in an order in which the numbers would come too late.
    fails(&reverse(""), 4, &[5, 6, 7, 8], "without a barrier between");
    // Waiting for the warp is enough within it, but for all of it, and a shuffle is no waiting.
    assert_eq!(run(&reverse("bar.warp.sync 	-1;"), 4, &[5, 6, 7, 8]).unwrap(), [8, 7, 6, 5]);
    let pairs = "setp.lt.u32 	%p1, %r1, 2;\n	selp.b32 	%r7, 3, 12, %p1;\n	bar.warp.sync 	%r7;";
    fails(&reverse(pairs), 4, &[5, 6, 7, 8], "without a barrier between");
    let shuffle = "mov.u32 	%r8, -1;\n	shfl.sync.idx.b32 	%r7, %r4, 0, 31, %r8;";
    fails(&reverse(shuffle), 4, &[5, 6, 7, 8], "without a barrier between");
}

#[test]
fn lanes_add_up() {
    let body = format!(
        "{OWN}
	ld.global.u32 	%r4, [%rd1];
	mov.u32 	%r5, 16;
$L__BB0_1:
	mov.u32 	%r7, -1;
	shfl.sync.down.b32 	%r6|%p1, %r4, %r5, 31, %r7;
	@%p1 add.s32 	%r4, %r4, %r6;
	shr.u32 	%r5, %r5, 1;
	setp.ne.s32 	%p2, %r5, 0;
	@%p2 bra 	$L__BB0_1;
	st.global.u32 	[%rd1], %r4;"
    );
    let numbers: Vec<u32> = (0..32).collect();
    assert_eq!(run(&body, 32, &numbers).unwrap()[0], (0..32).sum::<u32>());
}

#[test]
fn wrong_addresses_are_faults_that_name_the_thread() {
    let store = |address: &str| format!("{OWN}\n\tst.global.u32 	[{address}], %r1;");
    assert_eq!(run(&store("%rd1"), 4, &[9; 4]).unwrap(), [0, 1, 2, 3]);
    fails(&store("%rd1"), 5, &[9; 4], "thread [4, 0, 0]");
    fails(&store("%rd1"), 5, &[9; 4], "writes 4 bytes at byte 16 of an allocation of 16 bytes");
    fails(&store("%rd1+2"), 1, &[9; 4], "no multiple");
    fails(&store("0"), 1, &[9; 4], "no address");
    fails(&format!("{OWN}\n\tst.shared.u32 	[256], %r1;"), 1, &[9], "of 256 bytes");
}

#[test]
fn a_barrier_that_some_never_reach_is_a_fault() {
    let body = "
	mov.u32 	%r1, %tid.x;
	setp.lt.u32 	%p1, %r1, 32;
	@%p1 bra 	$L__BB0_2;
	shfl.sync.idx.b32 	%r2, %r1, 0, 31, -1;
	bra.uni 	$L__BB0_3;
$L__BB0_2:
	setp.eq.u32 	%p2, %r1, 0;
	@%p2 bra 	$L__BB0_3;
	bar.warp.sync 	-1;
$L__BB0_3:
	bar.sync 	0;";
    fails(body, 64, &[0], "waits for threads that never come");
    fails("$L__BB0_1:\n\tbra.uni 	$L__BB0_1;", 1, &[0], "runs for ever");
    let guard = "	mov.u32 	%r1, %tid.x;\n	setp.lt.u32 	%p1, %r1, 5;\n";
    fails(&format!("{guard}	@%p1 ret;\n	bar.sync 	0;"), 64, &[0], "waits for threads that never come");
    let two = format!("{guard}	@%p1 bra 	$L__BB0_2;\n	bar.sync 	0;\n	ret;\n$L__BB0_2:\n	bar.sync 	0;");
    fails(&two, 64, &[0], "waits at another barrier than its warp");
}

#[test]
fn what_is_missing_fails_only_where_it_is_run() {
    let body = |guard: &str| format!("\tmov.pred 	%p1, 0;\n\t{guard}vadd4.u32.u32.u32 	%r1, %r1, %r1, %r1;");
    assert_eq!(run(&body("@%p1 "), 1, &[7]).unwrap(), [7]);
    fails(&body(""), 1, &[7], "the emulator has no vadd4.u32.u32.u32");
}

#[test]
fn arithmetic_is_that_of_a_gpu() {
    // Instruction with `a`, `b` and `c` in registers, and its result.
    for (instruction, [a, b, c], want) in [
        ("sub.s32 \t%r4, %r1, %r2", [3, 5, 0], -2i32 as u32),
        ("div.s32 \t%r4, %r1, %r2", [-7i32 as u32, 2, 0], -3i32 as u32),
        ("rem.u32 \t%r4, %r1, %r2", [7, 0, 0], u32::MAX),
        ("shl.b32 \t%r4, %r1, %r2", [1, 32, 0], 0),
        ("shr.s32 \t%r4, %r1, %r2", [-8i32 as u32, 40, 0], u32::MAX),
        ("mad.lo.s32 \t%r4, %r1, %r2, %r3", [6, 7, -2i32 as u32], 40),
        ("mul.hi.u32 \t%r4, %r1, %r2", [1 << 31, 6, 0], 3),
        ("prmt.b32 \t%r4, %r1, %r2, %r3", [0x8811_2233, 0x4455_6677, 0xb704], 0xff44_3377),
        ("min.s32 \t%r4, %r1, %r2", [-1i32 as u32, 1, 0], u32::MAX),
        ("fma.rn.f32 \t%r4, %r1, %r2, %r3", [2f32, 3., 4.].map(f32::to_bits), 10f32.to_bits()),
        ("max.f32 \t%r4, %r1, %r2", [f32::NAN, 3., 0.].map(f32::to_bits), 3f32.to_bits()),
        ("rcp.rn.f32 \t%r4, %r1", [4f32, 0., 0.].map(f32::to_bits), 0.25f32.to_bits()),
        ("cvt.rn.f32.s32 \t%r4, %r1", [-3i32 as u32, 0, 0], (-3f32).to_bits()),
        ("cvt.rzi.s32.f32 \t%r4, %r1", [(-2.7f32).to_bits(), 0, 0], -2i32 as u32),
        ("cvt.rni.s32.f32 \t%r4, %r1", [2.5f32.to_bits(), 0, 0], 2),
        ("cvt.rzi.u32.f32 \t%r4, %r1", [(-2.7f32).to_bits(), 0, 0], 0),
        ("cvt.rzi.s32.f32 \t%r4, %r1", [f32::NAN.to_bits(), 0, 0], 0),
        ("cvt.s8.s32 \t%r4, %r1", [0x1234_5680, 0, 0], 0xffff_ff80),
        ("fma.rm.f32 \t%r4, %r1, %r1, %r2", [1f32, -1e-30, 0.].map(f32::to_bits), 1f32.next_down().to_bits()),
        ("ld.global.s8 \t%r4, [%rd0]", [0x80, 0, 0], 0xffff_ff80),
        ("set.lt.f32.f32 \t%r4, %r1, %r2", [1f32, 2., 0.].map(f32::to_bits), 1f32.to_bits()),
        ("cvt.rn.bf16.f32 \t%r4, %r1", [1.005_859_4f32.to_bits(), 0, 0], 0x3f81),
    ] {
        let body = format!(
            "\tld.param.u64 \t%rd0, [k_param_0];\n\tld.global.u32 \t%r1, [%rd0];\n\tld.global.u32 \t%r2, [%rd0+4];\n\
             \tld.global.u32 \t%r3, [%rd0+8];\n\t{instruction};\n\tst.global.u32 \t[%rd0], %r4;"
        );
        assert_eq!(run(&body, 1, &[a, b, c]).unwrap()[0], want, "{instruction}");
    }
}

#[test]
fn wide_and_narrow_values_keep_their_bits() {
    let body = "
	ld.param.u64 	%rd0, [k_param_0];
	ld.global.v2.u32 	{%r1, %r2}, [%rd0];
	mov.b64 	%rd1, {%r1, %r2};
	shr.u64 	%rd1, %rd1, 16;
	mov.b64 	{%r3, %r4}, %rd1;
	{ .reg .b16 %rs1; mov.b32 {%rs1, %rs2}, %r1; cvt.u32.u16 %r5, %rs1; }
	ld.global.s8 	%rs3, [%rd0+3];
	cvt.s32.s16 	%r6, %rs3;
	st.global.v4.u32 	[%rd0], {%r3, %r4, %r5, %r6};";
    let got = run(body, 1, &[0x8765_4321, 0xcba9_0fed, 0, 0]).unwrap();
    assert_eq!(got, [0x0fed_8765, 0x0000_cba9, 0x4321, -0x79i32 as u32]);
}
