#!/usr/bin/env bash
# Puts a CUDA build toolchain (nvcc, headers, link-time libraries) into a folder,
# from PyPI wheels; no root, no GPU and no NVIDIA driver needed. Linux x86-64.
#
#   crates/candle-train-ops/cuda/setup-toolchain.sh [DIR]   (default: target/cuda-toolchain)
#   . target/cuda-toolchain/env.sh
#   cargo build --release -p candle-train-ops --features cuda
#
# Needs: bash, python3 with pip, gcc/g++ (any that CUDA 13.0 takes: gcc <= 15), cargo.
# Run it in the folder of the workspace: it reads the symbol names to link from the
# cudarc sources which Cargo.lock names.
#
# libcuda, cublas, cublasLt, curand, nvrtc, cudnn and nccl are NOT downloaded (over
# 1 GB). The folder gets small static archives libcuda.a, libcublas.a, ... in their
# place: each function looks up the real library with dlopen at its first call. So
# the program needs none of them to start, and where the driver is missing cuInit
# returns an error (CUDA_ERROR_STUB_LIBRARY, 34), so the caller can fall back to the
# CPU. At run time the real ones must be where dlopen looks (LD_LIBRARY_PATH, the
# loader's cache).
set -euo pipefail

DIR=${1:-target/cuda-toolchain}
# CUDA 13.0: the newest that a driver 580 loads (PTX ISA 9.0). Newer wheels make
# newer PTX, which driver 580 refuses.
NVCC_VERSION=13.0.88
RUNTIME_VERSION=13.0.96
CCCL_VERSION=13.0.85
# PTX for 8.0 runs on every newer card; 9.0 would shut out Ampere.
COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) ;;
  *) echo "setup-toolchain: only Linux x86-64 is supported" >&2; exit 1 ;;
esac
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)
CUDA="$DIR/cuda"
want="nvcc=$NVCC_VERSION runtime=$RUNTIME_VERSION cccl=$CCCL_VERSION layout=2"

# 1. nvcc, cicc, ptxas, headers, cudart: about 104 MB from PyPI, 210 MB on disk.
if [ "$(cat "$DIR/wheels.stamp" 2>/dev/null || true)" != "$want" ]; then
  rm -rf "$DIR/site" "$CUDA" "$DIR/wheels.stamp"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
    --only-binary=:all: --target "$DIR/site" \
    "nvidia-cuda-nvcc==$NVCC_VERSION" "nvidia-nvvm==$NVCC_VERSION" \
    "nvidia-cuda-crt==$NVCC_VERSION" "nvidia-cuda-runtime==$RUNTIME_VERSION" \
    "nvidia-cuda-cccl==$CCCL_VERSION"
  mv "$DIR/site/nvidia/cu13" "$CUDA"
  rm -rf "$DIR/site"
  rm -f "$CUDA"/lib/libnvvm.so.4   # nvcc runs cicc; nothing here opens this one (63 MB)
  chmod +x "$CUDA"/bin/* "$CUDA"/nvvm/bin/*
  ln -sfn lib "$CUDA/lib64"
  # candle-kernels asks for -lcudart: give it the static one, which itself opens
  # libcuda.so.1 only when first used.
  ln -sf libcudart_static.a "$CUDA/lib/libcudart.a"
  echo "$want" > "$DIR/wheels.stamp"
fi

# 2. lazy link archives, from the names which cudarc declares.
manifest=$(cargo metadata --format-version 1 --locked --all-features 2>/dev/null | python3 -c '
import json, sys
p = [p for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"]
if len({q["version"] for q in p}) != 1:
    sys.exit("setup-toolchain: want exactly one cudarc in Cargo.lock, found %d" % len(p))
print(p[0]["version"], p[0]["manifest_path"])')
read -r cudarc_version cudarc_manifest <<<"$manifest"
if [ "$(cat "$DIR/shims.stamp" 2>/dev/null || true)" != "$want cudarc=$cudarc_version" ]; then
  rm -rf "$DIR/shims"; mkdir -p "$DIR/shims"
  python3 - "$(dirname "$cudarc_manifest")" "$DIR/shims" <<'PY'
import pathlib, re, sys
src, out = pathlib.Path(sys.argv[1]) / "src", pathlib.Path(sys.argv[2])
# cudarc module: (link name, names to open, error code to return when absent)
LIBS = {
    "driver":   ("cuda",     ["libcuda.so.1", "libcuda.so"], 34),           # CUDA_ERROR_STUB_LIBRARY
    "cublas":   ("cublas",   ["libcublas.so.13", "libcublas.so"], 1),       # NOT_INITIALIZED
    "cublaslt": ("cublasLt", ["libcublasLt.so.13", "libcublasLt.so"], 1),
    "curand":   ("curand",   ["libcurand.so.10", "libcurand.so"], 203),     # INITIALIZATION_FAILED
    "nvrtc":    ("nvrtc",    ["libnvrtc.so.13", "libnvrtc.so"], 11),        # INTERNAL_ERROR
    "cudnn":    ("cudnn",    ["libcudnn.so.9", "libcudnn.so"], 1001),       # NOT_INITIALIZED
    "nccl":     ("nccl",     ["libnccl.so.2", "libnccl.so"], 2),            # ncclSystemError
}
HEAD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
static long missing_code(void) { return ERR; }
static const char *missing_text(void) { return "lib" LIB " (or this function of it) is not on this machine"; }
static const char *const sonames[] = { SONAMES, NULL };
extern const char *const SYM(names)[] __attribute__((visibility("hidden")));
extern void *SYM(table)[] __attribute__((visibility("hidden")));
static int is_text(const char *s) {
  /* functions that return a pointer to text, not a status */
  static const char *const t[] = { "cublasGetStatusName", "cublasGetStatusString", "cublasLtGetStatusName",
    "cublasLtGetStatusString", "nvrtcGetErrorString", "cudnnGetErrorString", "ncclGetErrorString", "ncclGetLastError", NULL };
  for (int i = 0; t[i]; i++) { const char *a = t[i], *b = s; while (*a && *a == *b) a++, b++; if (!*a && !*b) return 1; }
  return 0;
}
__attribute__((visibility("hidden"))) void *SYM(resolve)(size_t i) {
  static void *handle; /* racing threads get the same handle: dlopen counts */
  void *h = __atomic_load_n(&handle, __ATOMIC_ACQUIRE);
  for (int k = 0; !h && sonames[k]; k++) h = dlopen(sonames[k], RTLD_LAZY | RTLD_LOCAL);
  __atomic_store_n(&handle, h, __ATOMIC_RELEASE);
  void *f = h ? dlsym(h, SYM(names)[i]) : NULL;
  if (!f) {
    if (getenv("CUDA_SHIM_DEBUG")) fprintf(stderr, "cuda shim: %s: %s\n", SYM(names)[i], h ? "not in lib" LIB : dlerror());
    f = is_text(SYM(names)[i]) ? (void *)missing_text : (void *)missing_code;
  }
  __atomic_store_n(&SYM(table)[i], f, __ATOMIC_RELEASE);
  return f;
}
"""
ASM = r"""
.macro T name idx
.globl \name
.type \name,@function
.p2align 4
\name:
  .cfi_startproc
  movq {p}table+8*\idx(%rip), %r11
  testq %r11, %r11
  je 1f
  jmp *%r11
1: movl $\idx, %r11d
  jmp {p}slow
  .cfi_endproc
.size \name, .-\name
.endm
.text
.p2align 4
{p}slow:
  .cfi_startproc
  pushq %rbp
  .cfi_def_cfa_offset 16
  .cfi_offset %rbp, -16
  movq %rsp, %rbp
  .cfi_def_cfa_register %rbp
  pushq %rdi
  pushq %rsi
  pushq %rdx
  pushq %rcx
  pushq %r8
  pushq %r9
  pushq %rax
  pushq %r10
  subq $128, %rsp
  movups %xmm0, (%rsp)
  movups %xmm1, 16(%rsp)
  movups %xmm2, 32(%rsp)
  movups %xmm3, 48(%rsp)
  movups %xmm4, 64(%rsp)
  movups %xmm5, 80(%rsp)
  movups %xmm6, 96(%rsp)
  movups %xmm7, 112(%rsp)
  movl %r11d, %edi
  call {p}resolve
  movq %rax, %r11
  movups (%rsp), %xmm0
  movups 16(%rsp), %xmm1
  movups 32(%rsp), %xmm2
  movups 48(%rsp), %xmm3
  movups 64(%rsp), %xmm4
  movups 80(%rsp), %xmm5
  movups 96(%rsp), %xmm6
  movups 112(%rsp), %xmm7
  addq $128, %rsp
  popq %r10
  popq %rax
  popq %r9
  popq %r8
  popq %rcx
  popq %rdx
  popq %rsi
  popq %rdi
  popq %rbp
  .cfi_def_cfa %rsp, 8
  jmp *%r11
  .cfi_endproc
"""
for mod, (link, sonames, err) in LIBS.items():
    text = (src / mod / "sys" / "mod.rs").read_text()
    names = sorted(set(re.findall(r"^\s*(?:pub )?fn (\w+)\(.*;\s*$", text, re.M)))
    if len(names) < 5:
        sys.exit(f"setup-toolchain: cudarc's {mod}/sys/mod.rs has a new layout ({len(names)} names)")
    p = f"cuda_shim_{link}_"
    c = f'#define ERR {err}\n#define LIB "{link}"\n#define SONAMES {", ".join(chr(34)+s+chr(34) for s in sonames)}\n'
    c += f"#define SYM(x) {p}##x\n" + HEAD
    c += "const char *const SYM(names)[] = {" + ", ".join(f'"{n}"' for n in names) + "};\n"
    c += f"void *SYM(table)[{len(names)}];\n"
    (out / f"{link}.c").write_text(c)
    s = ASM.replace("{p}", p) + f".hidden {p}table\n.hidden {p}resolve\n"
    s += "".join(f"T {n} {i}\n" for i, n in enumerate(names))
    s += '.section .note.GNU-stack,"",@progbits\n'
    (out / f"{link}.s").write_text(s)
    print(f"  lib{link}.a: {len(names)} functions")
PY
  for c in "$DIR"/shims/*.c; do
    b=${c%.c}; n=$(basename "$b")
    "${CC:-cc}" -O2 -fPIC -c "$c" -o "$b.c.o"
    "${CC:-cc}" -c "$b.s" -o "$b.s.o"
    rm -f "$CUDA/lib/lib$n.a"
    ar rcs "$CUDA/lib/lib$n.a" "$b.c.o" "$b.s.o"
  done
  echo "$want cudarc=$cudarc_version" > "$DIR/shims.stamp"
fi

# 3. nvcc-slim: nvcc, but it leaves out candle's kernels for quantized (GGUF) weights and
# mixtures of experts. They take most of the compile time and we do not use them; calling
# one aborts with a message. CUDA_FULL_KERNELS=1 (when sourcing env.sh) builds them all.
cat > "$CUDA/bin/nvcc-slim" <<'SLIM'
#!/usr/bin/env bash
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
src= out= dir= ptx= lib= prev=
for a in "$@"; do
  case $prev in -o) out=$a ;; --output-directory) dir=$a ;; esac
  case $a in --ptx) ptx=1 ;; --lib) lib=1 ;; *.cu) src=$a ;; esac
  prev=$a
done
case $src in
  */quantized.cu)
    if [ -n "$ptx" ]; then
      printf '.version 8.0\n.target sm_80\n.address_size 64\n' > "$dir/quantized.ptx"; exit 0
    fi ;;
  */moe/*.cu|*/mmvq_gguf.cu|*/mmq_gguf/*.cu)
    echo | "${CC:-cc}" -x c -c -o "$out" -; exit 0 ;;
esac
if [ -n "$lib" ] && [ "$(basename "$out")" = libmoe.a ] && [ -f src/ffi.rs ]; then
  t=$(mktemp -d)
  {
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    sed -n 's/^ *pub fn \([a-z0-9_A-Z]*\)(.*/void \1(void) { fputs("\1: this build has no kernels for quantized weights\\n", stderr); abort(); }/p' src/ffi.rs
  } > "$t/moe.c"
  "${CC:-cc}" -O2 -fPIC -c -o "$t/moe.o" "$t/moe.c"
  rm -f "$out"; ar rcs "$out" "$t/moe.o"; rm -rf "$t"; exit 0
fi
exec "$here/nvcc" "$@"
SLIM
chmod +x "$CUDA/bin/nvcc-slim"

cat > "$DIR/env.sh" <<ENV
# made by setup-toolchain.sh; source it before cargo build --features cuda
export CUDA_HOME='$CUDA' CUDA_PATH='$CUDA' NVCC='$CUDA/bin/nvcc-slim'
if [ "\${CUDA_FULL_KERNELS:-0}" = 1 ]; then export NVCC='$CUDA/bin/nvcc'; fi
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-$COMPUTE_CAP}
export CUDARC_CUDA_VERSION=13000
export CUDAFORGE_THREADS=\${CUDAFORGE_THREADS:-\$(nproc)}
case ":\$PATH:" in *:'$CUDA/bin':*) ;; *) export PATH='$CUDA/bin':"\$PATH" ;; esac
ENV
"$CUDA/bin/nvcc" --version | tail -2 | head -1
echo "ready: . $DIR/env.sh"
