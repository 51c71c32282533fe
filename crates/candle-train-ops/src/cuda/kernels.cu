// Kernels of the CUDA operations. Activations lie in memory as [N, H, W, C], the channels
// side by side, f32 or bf16; all arithmetic is f32, sums over a batch end in f64.
//
// A kernel over "rows" walks pixels: threads along x hold V neighbouring channels each,
// threads along y take rows in turn. No kernel uses atomics: same input, same bits.

#include <cuda_bf16.h>

typedef unsigned char u8;
typedef unsigned int u32;
typedef long long i64;

namespace {

__device__ __forceinline__ float single(float x) { return x; }
__device__ __forceinline__ float single(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void store(float &to, float x) { to = x; }
__device__ __forceinline__ void store(__nv_bfloat16 &to, float x) { to = __float2bfloat16_rn(x); }

// V numbers that are read and written in one access.
template <typename T, int V> struct alignas(sizeof(T) * V) Pack { T of[V]; };

template <typename T, int V> __device__ __forceinline__ void load(const T *from, float (&x)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V> *>(from);
#pragma unroll
  for (int v = 0; v < V; v++) x[v] = single(pack.of[v]);
}

template <typename T, int V> __device__ __forceinline__ void save(T *to, const float (&x)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; v++) store(pack.of[v], x[v]);
  *reinterpret_cast<Pack<T, V> *>(to) = pack;
}

// The first channel of this thread; C or more where it has none.
template <int V> __device__ __forceinline__ int first_channel() {
  return (blockIdx.y * blockDim.x + threadIdx.x) * V;
}

// Adds up over the threads along y, a power of two; the sums are right where y = 0.
template <int V> __device__ void sum_rows(float (&x)[V], float *shared) {
  const int width = blockDim.x * V;
  float *own = shared + threadIdx.y * width + threadIdx.x * V;
#pragma unroll
  for (int v = 0; v < V; v++) own[v] = x[v];
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int v = 0; v < V; v++) own[v] += own[v + half * width];
    }
  }
#pragma unroll
  for (int v = 0; v < V; v++) x[v] = own[v];
  __syncthreads();
}

// partial[block][0] and [1]: sums and sums of squares of each channel around its first
// value, which loses no digits where the mean is far from 0.
template <typename T, int V>
__device__ void moments(const T *__restrict__ x, float *__restrict__ partial, i64 rows, int channels) {
  extern __shared__ float shared[];
  const int c = first_channel<V>();
  float centre[V] = {}, sum[V] = {}, squares[V] = {};
  if (c < channels) {
    load<T, V>(x + c, centre);
#pragma unroll 4
    for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += (i64)gridDim.x * blockDim.y) {
      float value[V];
      load<T, V>(x + row * channels + c, value);
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float apart = value[v] - centre[v];
        sum[v] += apart;
        squares[v] = fmaf(apart, apart, squares[v]);
      }
    }
  }
  sum_rows<V>(sum, shared);
  sum_rows<V>(squares, shared);
  if (threadIdx.y == 0 && c < channels) {
    float *to = partial + (i64)blockIdx.x * 2 * channels + c;
#pragma unroll
    for (int v = 0; v < V; v++) {
      to[v] = sum[v];
      to[channels + v] = squares[v];
    }
  }
}

// The two sums of channel blockIdx.x * 32 + threadIdx.y over all blocks of a kernel above, in
// 32 x 32 threads; right where threadIdx.x = 0.
__device__ void sum_partials(const float *__restrict__ partial, int blocks, int channels, double (&sums)[2]) {
  __shared__ double shared[2][32][33];
  const int c = blockIdx.x * 32 + threadIdx.x;
  sums[0] = sums[1] = 0;
  if (c < channels) {
#pragma unroll 4
    for (int block = threadIdx.y; block < blocks; block += 32) {
      sums[0] += partial[(i64)block * 2 * channels + c];
      sums[1] += partial[(i64)block * 2 * channels + channels + c];
    }
  }
  shared[0][threadIdx.y][threadIdx.x] = sums[0];
  shared[1][threadIdx.y][threadIdx.x] = sums[1];
  __syncthreads();
  // A warp now holds the shares of one channel.
  sums[0] = shared[0][threadIdx.x][threadIdx.y];
  sums[1] = shared[1][threadIdx.x][threadIdx.y];
  for (int apart = 16; apart > 0; apart /= 2) {
    sums[0] += __shfl_down_sync(0xffffffff, sums[0], apart);
    sums[1] += __shfl_down_sync(0xffffffff, sums[1], apart);
  }
}

// What normalisation needs of every channel: [4][C].
struct Statistics {
  float *mean, *inverse, *scale, *shift;
  __device__ Statistics(float *at, int channels)
      : mean(at), inverse(at + channels), scale(at + 2 * channels), shift(at + 3 * channels) {}
  __device__ void set(int c, double m, double var, double epsilon, float gamma, float beta) {
    const double inv = 1.0 / sqrt(var + epsilon);
    mean[c] = (float)m;
    inverse[c] = (float)inv;
    scale[c] = (float)(gamma * inv);
    shift[c] = (float)(beta - m * gamma * inv);
  }
};

// The running mean and variance of every channel.
struct Running {
  float *mean, *var;
};

// Normalises by mean and variance of `count` values, and moves the running ones.
__device__ void settle(int c, int channels, double mean, double var, double count, double epsilon, double momentum,
                       const float *gamma, const float *beta, Running running, float *statistics) {
  Statistics(statistics, channels).set(c, mean, var, epsilon, gamma[c], beta[c]);
  running.mean[c] = (float)((1 - momentum) * running.mean[c] + momentum * mean);
  running.var[c] = (float)((1 - momentum) * running.var[c] + momentum * var * (count / (count - 1)));
}

template <typename T>
__device__ void finish_moments(const float *partial, int blocks, const T *x, i64 rows, int channels,
                               double epsilon, double momentum, const float *gamma, const float *beta,
                               float *running_mean, float *running_var, float *statistics) {
  double sums[2];
  sum_partials(partial, blocks, channels, sums);
  const int c = blockIdx.x * 32 + threadIdx.y;
  if (threadIdx.x != 0 || c >= channels) return;
  const double count = (double)rows, apart = sums[0] / count;
  const double mean = single(x[c]) + apart;
  const double var = fmax(sums[1] / count - apart * apart, 0.0);
  settle(c, channels, mean, var, count, epsilon, momentum, gamma, beta, {running_mean, running_var}, statistics);
}

// What the processes that share a batch add up: the number of values, then sum and sum of
// squares of every channel around its running mean, which all of them know.
template <typename T>
__device__ void shared_moments(const float *partial, int blocks, const T *x, i64 rows, int channels,
                               const float *running_mean, double *shares) {
  double sums[2];
  sum_partials(partial, blocks, channels, sums);
  const int c = blockIdx.x * 32 + threadIdx.y;
  if (threadIdx.x != 0 || c >= channels) return;
  const double count = (double)rows, apart = sums[0] / count;
  const double var = fmax(sums[1] / count - apart * apart, 0.0);
  const double off = single(x[c]) + apart - running_mean[c];
  if (c == 0) shares[0] = count;
  shares[1 + 2 * c] = count * off;
  shares[2 + 2 * c] = count * (var + off * off);
}

// y = clamp(x * scale + shift + residual).
template <typename T, int V>
__device__ void normalise(const T *__restrict__ x, const T *__restrict__ residual, T *__restrict__ y,
                          const float *__restrict__ statistics, i64 rows, int channels, float lo, float hi) {
  const int c = first_channel<V>();
  if (c >= channels) return;
  float scale[V], shift[V];
  for (int v = 0; v < V; v++) {
    scale[v] = statistics[2 * channels + c + v];
    shift[v] = statistics[3 * channels + c + v];
  }
#pragma unroll 4
  for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += (i64)gridDim.x * blockDim.y) {
    const i64 at = row * channels + c;
    float value[V], more[V] = {};
    load<T, V>(x + at, value);
    if (residual) load<T, V>(residual + at, more);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float sum = fmaf(value[v], scale[v], shift[v]) + more[v];
      // A NaN stays one, unlike with fminf and fmaxf.
      value[v] = sum < lo ? lo : sum > hi ? hi : sum;
    }
    save<T, V>(y + at, value);
  }
}

// partial: sums of dy and of dy times the normalised x, dy being 0 where the activation
// function is flat. Without y that follows from x; with y (there was a residual) dy is
// overwritten by what is left of it.
template <typename T, int V>
__device__ void gradient_sums(T *__restrict__ dy, const T *__restrict__ x, const T *__restrict__ y,
                              const float *__restrict__ statistics, float *__restrict__ partial, i64 rows,
                              int channels, float lo, float hi) {
  extern __shared__ float shared[];
  const int c = first_channel<V>();
  float sum[V] = {}, products[V] = {};
  if (c < channels) {
    float mean[V], inverse[V], scale[V], shift[V];
    for (int v = 0; v < V; v++) {
      mean[v] = statistics[c + v];
      inverse[v] = statistics[channels + c + v];
      scale[v] = statistics[2 * channels + c + v];
      shift[v] = statistics[3 * channels + c + v];
    }
#pragma unroll 2
    for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += (i64)gridDim.x * blockDim.y) {
      const i64 at = row * channels + c;
      float gradient[V], value[V], result[V];
      load<T, V>(dy + at, gradient);
      load<T, V>(x + at, value);
      if (y) load<T, V>(y + at, result);
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float of = y ? result[v] : fmaf(value[v], scale[v], shift[v]);
        if (of <= lo || of >= hi) gradient[v] = 0;
        sum[v] += gradient[v];
        products[v] = fmaf(gradient[v], (value[v] - mean[v]) * inverse[v], products[v]);
      }
      if (y) save<T, V>(dy + at, gradient);
    }
  }
  sum_rows<V>(sum, shared);
  sum_rows<V>(products, shared);
  if (threadIdx.y == 0 && c < channels) {
    float *to = partial + (i64)blockIdx.x * 2 * channels + c;
#pragma unroll
    for (int v = 0; v < V; v++) {
      to[v] = sum[v];
      to[channels + v] = products[v];
    }
  }
}

// dx = slope * dy + lean * (x - mean) + level, dy cut as in `gradient_sums` without y.
template <typename T, int V>
__device__ void input_gradient(const T *__restrict__ dy, const T *__restrict__ x,
                               const float *__restrict__ statistics, const float *__restrict__ line,
                               T *__restrict__ dx, i64 rows, int channels, float lo, float hi) {
  const int c = first_channel<V>();
  if (c >= channels) return;
  float mean[V], scale[V], shift[V], slope[V], lean[V], level[V];
  for (int v = 0; v < V; v++) {
    mean[v] = statistics[c + v];
    scale[v] = statistics[2 * channels + c + v];
    shift[v] = statistics[3 * channels + c + v];
    slope[v] = line[c + v];
    lean[v] = line[channels + c + v];
    level[v] = line[2 * channels + c + v];
  }
#pragma unroll 2
  for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += (i64)gridDim.x * blockDim.y) {
    const i64 at = row * channels + c;
    float gradient[V], value[V];
    load<T, V>(dy + at, gradient);
    load<T, V>(x + at, value);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float of = fmaf(value[v], scale[v], shift[v]);
      if (of <= lo || of >= hi) gradient[v] = 0;
      gradient[v] = fmaf(slope[v], gradient[v], fmaf(lean[v], value[v] - mean[v], level[v]));
    }
    save<T, V>(dx + at, gradient);
  }
}

struct Pool {
  int n, h, w, c, oh, ow, kernel, stride, padding;
};

// One thread: V channels of one result. `winners`: which pixel of the window it came from.
template <typename T, int V>
__device__ void max_pool(const T *__restrict__ x, T *__restrict__ y, u8 *__restrict__ winners, Pool p) {
  const int lanes = p.c / V;
  const i64 count = (i64)p.n * p.oh * p.ow * lanes;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const int c = (int)(i % lanes) * V;
    const i64 pixel = i / lanes;
    const int ow = (int)(pixel % p.ow), oh = (int)(pixel / p.ow % p.oh);
    const i64 n = pixel / p.ow / p.oh;
    float best[V];
    int tap[V];
    bool any = false;
    for (int kh = 0; kh < p.kernel; kh++) {
      const int h = oh * p.stride + kh - p.padding;
      if (h < 0 || h >= p.h) continue;
      for (int kw = 0; kw < p.kernel; kw++) {
        const int w = ow * p.stride + kw - p.padding;
        if (w < 0 || w >= p.w) continue;
        float value[V];
        load<T, V>(x + ((n * p.h + h) * p.w + w) * p.c + c, value);
#pragma unroll
        for (int v = 0; v < V; v++) {
          if (!any || value[v] > best[v] || (isnan(value[v]) && !isnan(best[v]))) {
            best[v] = value[v];
            tap[v] = kh * p.kernel + kw;
          }
        }
        any = true;
      }
    }
    save<T, V>(y + pixel * p.c + c, best);
    Pack<u8, V> pack;
#pragma unroll
    for (int v = 0; v < V; v++) pack.of[v] = (u8)tap[v];
    *reinterpret_cast<Pack<u8, V> *>(winners + pixel * p.c + c) = pack;
  }
}

// One thread: V channels of one pixel of the image gather from the windows over it. With
// winners the gradient of a maximum, without that of a mean.
template <typename T, int V>
__device__ void pool_gradient(const T *__restrict__ dy, const u8 *__restrict__ winners, T *__restrict__ dx, Pool p) {
  const int lanes = p.c / V;
  const i64 count = (i64)p.n * p.h * p.w * lanes;
  const float share = 1.0f / (p.kernel * p.kernel);
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const int c = (int)(i % lanes) * V;
    const i64 pixel = i / lanes;
    const int w = (int)(pixel % p.w) + p.padding, h = (int)(pixel / p.w % p.h) + p.padding;
    const i64 n = pixel / p.w / p.h;
    float sum[V] = {};
    const int oh_first = h < p.kernel ? 0 : (h - p.kernel) / p.stride + 1;
    const int ow_first = w < p.kernel ? 0 : (w - p.kernel) / p.stride + 1;
    for (int oh = oh_first; oh < p.oh && oh * p.stride <= h; oh++) {
      for (int ow = ow_first; ow < p.ow && ow * p.stride <= w; ow++) {
        const i64 at = ((n * p.oh + oh) * p.ow + ow) * p.c + c;
        float gradient[V];
        load<T, V>(dy + at, gradient);
        if (winners) {
          const Pack<u8, V> won = *reinterpret_cast<const Pack<u8, V> *>(winners + at);
          const int tap = (h - oh * p.stride) * p.kernel + (w - ow * p.stride);
#pragma unroll
          for (int v = 0; v < V; v++) sum[v] += won.of[v] == tap ? gradient[v] : 0.0f;
        } else {
#pragma unroll
          for (int v = 0; v < V; v++) sum[v] = fmaf(gradient[v], share, sum[v]);
        }
      }
    }
    save<T, V>(dx + pixel * p.c + c, sum);
  }
}

template <typename T, int V>
__device__ void avg_pool(const T *__restrict__ x, T *__restrict__ y, Pool p) {
  const int lanes = p.c / V;
  const i64 count = (i64)p.n * p.oh * p.ow * lanes;
  const float share = 1.0f / (p.kernel * p.kernel);
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const int c = (int)(i % lanes) * V;
    const i64 pixel = i / lanes;
    const int ow = (int)(pixel % p.ow), oh = (int)(pixel / p.ow % p.oh);
    const i64 n = pixel / p.ow / p.oh;
    float sum[V] = {};
    for (int kh = 0; kh < p.kernel; kh++) {
      const int h = oh * p.stride + kh - p.padding;
      for (int kw = 0; kw < p.kernel; kw++) {
        const int w = ow * p.stride + kw - p.padding;
        if (h < 0 || h >= p.h || w < 0 || w >= p.w) continue;
        float value[V];
        load<T, V>(x + ((n * p.h + h) * p.w + w) * p.c + c, value);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] += value[v];
      }
    }
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] *= share;
    save<T, V>(y + pixel * p.c + c, sum);
  }
}

// Means over the pixels of image blockIdx.x.
template <typename T, int V>
__device__ void image_means(const T *__restrict__ x, float *__restrict__ means, int pixels, int channels) {
  extern __shared__ float shared[];
  const int c = first_channel<V>();
  float sum[V] = {};
  if (c < channels) {
    for (int pixel = threadIdx.y; pixel < pixels; pixel += blockDim.y) {
      float value[V];
      load<T, V>(x + ((i64)blockIdx.x * pixels + pixel) * channels + c, value);
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += value[v];
    }
  }
  sum_rows<V>(sum, shared);
  if (threadIdx.y == 0 && c < channels) {
    for (int v = 0; v < V; v++) means[(i64)blockIdx.x * channels + c + v] = sum[v] / pixels;
  }
}

template <typename T>
__device__ void image_means_gradient(const float *__restrict__ gradient, T *__restrict__ dx, int pixels,
                                     int channels, i64 count) {
  const float share = 1.0f / pixels;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const i64 image = i / channels / pixels;
    store(dx[i], gradient[image * channels + i % channels] * share);
  }
}

template <typename T>
__device__ void from_nchw(const float *__restrict__ from, T *__restrict__ to, int channels, int pixels, i64 count) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const i64 pixel = i / channels;
    store(to[i], from[(pixel / pixels * channels + i % channels) * pixels + pixel % pixels]);
  }
}

template <typename T>
__device__ void to_nchw(const T *__restrict__ from, float *__restrict__ to, int channels, int pixels, i64 count) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const i64 plane = i / pixels;
    to[i] = single(from[(plane / channels * pixels + i % pixels) * channels + plane % channels]);
  }
}

// Weights [O, I, taps] to [O, taps, I].
template <typename T>
__device__ void pack_weight(const float *__restrict__ from, T *__restrict__ to, int inputs, int taps, i64 pairs) {
  for (i64 pair = (i64)blockIdx.x * blockDim.x + threadIdx.x; pair < pairs; pair += (i64)gridDim.x * blockDim.x) {
    const i64 o = pair / inputs, i = pair % inputs;
    for (int tap = 0; tap < taps; tap++) store(to[(o * taps + tap) * inputs + i], from[pair * taps + tap]);
  }
}

// Weights [O, taps, I] to [O, I, taps].
template <typename T>
__device__ void unpack_weight(const T *__restrict__ from, float *__restrict__ to, int inputs, int taps, i64 pairs) {
  for (i64 pair = (i64)blockIdx.x * blockDim.x + threadIdx.x; pair < pairs; pair += (i64)gridDim.x * blockDim.x) {
    const i64 o = pair / inputs, i = pair % inputs;
    for (int tap = 0; tap < taps; tap++) to[pair * taps + tap] = single(from[(o * taps + tap) * inputs + i]);
  }
}

// Images of another height and width, cut or filled with zeros at the end of both axes.
template <typename T>
__device__ void fit_canvas(const T *__restrict__ from, T *__restrict__ to, int from_h, int from_w, int to_h, int to_w,
                           int channels, i64 count) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const int c = (int)(i % channels);
    const i64 pixel = i / channels;
    const int w = (int)(pixel % to_w), h = (int)(pixel / to_w % to_h);
    const i64 n = pixel / to_w / to_h;
    const bool inside = h < from_h && w < from_w;
    store(to[i], inside ? single(from[((n * from_h + h) * from_w + w) * channels + c]) : 0.0f);
  }
}

// Copies `width` columns of every row from one matrix into another.
template <typename T>
__device__ void copy_columns(const T *__restrict__ from, int from_width, int from_first, T *__restrict__ to,
                             int to_width, int to_first, int width, i64 count) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const i64 row = i / width, column = i % width;
    to[row * to_width + to_first + column] = from[row * from_width + from_first + column];
  }
}

// to += from. Buffers hold whole packs: allocations are made up to 16 bytes.
template <typename T, int V> __device__ void add_assign(T *__restrict__ to, const T *__restrict__ from, i64 packs) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += (i64)gridDim.x * blockDim.x) {
    float sum[V], more[V];
    load<T, V>(to + i * V, sum);
    load<T, V>(from + i * V, more);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += more[v];
    save<T, V>(to + i * V, sum);
  }
}

template <typename T> __device__ void clamp(const T *__restrict__ x, T *__restrict__ y, float lo, float hi, i64 count) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const float value = single(x[i]);
    store(y[i], value < lo ? lo : value > hi ? hi : value);
  }
}

template <typename T>
__device__ void clamp_gradient(T *__restrict__ dy, const T *__restrict__ y, float lo, float hi, i64 count) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const float value = single(y[i]);
    if (value <= lo || value >= hi) store(dy[i], 0.0f);
  }
}

// A variable with its gradient and moments, and what is left of it by weight decay.
struct Variable {
  float *weight;
  const float *gradient;
  float *first, *second;
  i64 count;
  float keep;
  float decay;
};

constexpr int VARIABLES = 64;

struct Variables {
  Variable of[VARIABLES];
};

} // namespace

extern "C" {

#define ROWS(T, NAME, V)                                                                                              \
  __global__ void moments_##NAME(const T *x, float *partial, i64 rows, int channels) {                                \
    moments<T, V>(x, partial, rows, channels);                                                                        \
  }                                                                                                                   \
  __global__ void normalise_##NAME(const T *x, const T *residual, T *y, const float *statistics, i64 rows,            \
                                   int channels, float lo, float hi) {                                                \
    normalise<T, V>(x, residual, y, statistics, rows, channels, lo, hi);                                              \
  }                                                                                                                   \
  __global__ void gradient_sums_##NAME(T *dy, const T *x, const T *y, const float *statistics, float *partial,        \
                                       i64 rows, int channels, float lo, float hi) {                                  \
    gradient_sums<T, V>(dy, x, y, statistics, partial, rows, channels, lo, hi);                                       \
  }                                                                                                                   \
  __global__ void input_gradient_##NAME(const T *dy, const T *x, const float *statistics, const float *line, T *dx,   \
                                        i64 rows, int channels, float lo, float hi) {                                 \
    input_gradient<T, V>(dy, x, statistics, line, dx, rows, channels, lo, hi);                                        \
  }                                                                                                                   \
  __global__ void max_pool_##NAME(const T *x, T *y, u8 *winners, Pool p) { max_pool<T, V>(x, y, winners, p); }        \
  __global__ void avg_pool_##NAME(const T *x, T *y, Pool p) { avg_pool<T, V>(x, y, p); }                              \
  __global__ void pool_gradient_##NAME(const T *dy, const u8 *winners, T *dx, Pool p) {                               \
    pool_gradient<T, V>(dy, winners, dx, p);                                                                          \
  }                                                                                                                   \
  __global__ void image_means_##NAME(const T *x, float *means, int pixels, int channels) {                            \
    image_means<T, V>(x, means, pixels, channels);                                                                    \
  }

ROWS(float, f32x1, 1)
ROWS(float, f32x4, 4)
ROWS(__nv_bfloat16, bf16x1, 1)
ROWS(__nv_bfloat16, bf16x8, 8)

#define EACH(T, NAME, V)                                                                                              \
  __global__ void finish_moments_##NAME(const float *partial, int blocks, const T *x, i64 rows, int channels,         \
                                        double epsilon, double momentum, const float *gamma, const float *beta,       \
                                        float *running_mean, float *running_var, float *statistics) {                 \
    finish_moments<T>(partial, blocks, x, rows, channels, epsilon, momentum, gamma, beta, running_mean, running_var,  \
                      statistics);                                                                                    \
  }                                                                                                                   \
  __global__ void shared_moments_##NAME(const float *partial, int blocks, const T *x, i64 rows, int channels,         \
                                        const float *running_mean, double *shares) {                                  \
    shared_moments<T>(partial, blocks, x, rows, channels, running_mean, shares);                                      \
  }                                                                                                                   \
  __global__ void image_means_gradient_##NAME(const float *gradient, T *dx, int pixels, int channels, i64 count) {    \
    image_means_gradient<T>(gradient, dx, pixels, channels, count);                                                   \
  }                                                                                                                   \
  __global__ void from_nchw_##NAME(const float *from, T *to, int channels, int pixels, i64 count) {                   \
    from_nchw<T>(from, to, channels, pixels, count);                                                                  \
  }                                                                                                                   \
  __global__ void to_nchw_##NAME(const T *from, float *to, int channels, int pixels, i64 count) {                     \
    to_nchw<T>(from, to, channels, pixels, count);                                                                    \
  }                                                                                                                   \
  __global__ void pack_weight_##NAME(const float *from, T *to, int inputs, int taps, i64 pairs) {                     \
    pack_weight<T>(from, to, inputs, taps, pairs);                                                                    \
  }                                                                                                                   \
  __global__ void unpack_weight_##NAME(const T *from, float *to, int inputs, int taps, i64 pairs) {                   \
    unpack_weight<T>(from, to, inputs, taps, pairs);                                                                  \
  }                                                                                                                   \
  __global__ void fit_canvas_##NAME(const T *from, T *to, int from_h, int from_w, int to_h, int to_w, int channels,   \
                                    i64 count) {                                                                      \
    fit_canvas<T>(from, to, from_h, from_w, to_h, to_w, channels, count);                                             \
  }                                                                                                                   \
  __global__ void copy_columns_##NAME(const T *from, int from_width, int from_first, T *to, int to_width,             \
                                      int to_first, int width, i64 count) {                                           \
    copy_columns<T>(from, from_width, from_first, to, to_width, to_first, width, count);                              \
  }                                                                                                                   \
  __global__ void add_assign_##NAME(T *to, const T *from, i64 packs) { add_assign<T, V>(to, from, packs); }           \
  __global__ void clamp_##NAME(const T *x, T *y, float lo, float hi, i64 count) { clamp<T>(x, y, lo, hi, count); }    \
  __global__ void clamp_gradient_##NAME(T *dy, const T *y, float lo, float hi, i64 count) {                           \
    clamp_gradient<T>(dy, y, lo, hi, count);                                                                          \
  }

EACH(float, f32, 4)
EACH(__nv_bfloat16, bf16, 8)

// Statistics from the running ones.
__global__ void running_statistics(const float *mean, const float *var, const float *gamma, const float *beta,
                                   double epsilon, int channels, float *statistics) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c < channels) Statistics(statistics, channels).set(c, mean[c], var[c], epsilon, gamma[c], beta[c]);
}

// From what was added up over all processes: as `finish_moments`.
__global__ void finish_shared_moments(const double *shares, int channels, double epsilon, double momentum,
                                      const float *gamma, const float *beta, float *running_mean, float *running_var,
                                      float *statistics) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  const double count = shares[0], apart = shares[1 + 2 * c] / count;
  const double mean = running_mean[c] + apart;
  const double var = fmax(shares[2 + 2 * c] / count - apart * apart, 0.0);
  settle(c, channels, mean, var, count, epsilon, momentum, gamma, beta, {running_mean, running_var}, statistics);
}

// The gradients of scale and shift from the sums, and the line by which dx follows from dy
// and x; in evaluation mean and variance do not depend on x.
__device__ void draw_line(int c, int channels, double sum, double products, double count, bool train,
                          const float *statistics, float *dgamma, float *dbeta, float *line) {
  dbeta[c] = (float)sum;
  dgamma[c] = (float)products;
  const double scale = statistics[2 * channels + c], inverse = statistics[channels + c];
  line[c] = (float)scale;
  line[channels + c] = train ? (float)(-scale * inverse * products / count) : 0.0f;
  line[2 * channels + c] = train ? (float)(-scale * sum / count) : 0.0f;
}

__global__ void finish_gradient(const float *partial, int blocks, i64 rows, int channels, int train,
                                const float *statistics, float *dgamma, float *dbeta, float *line) {
  double sums[2];
  sum_partials(partial, blocks, channels, sums);
  const int c = blockIdx.x * 32 + threadIdx.y;
  if (threadIdx.x != 0 || c >= channels) return;
  draw_line(c, channels, sums[0], sums[1], (double)rows, train, statistics, dgamma, dbeta, line);
}

// The two sums of every channel, for all processes to add up.
__global__ void shared_gradient(const float *partial, int blocks, int channels, double *shares) {
  double sums[2];
  sum_partials(partial, blocks, channels, sums);
  const int c = blockIdx.x * 32 + threadIdx.y;
  if (threadIdx.x != 0 || c >= channels) return;
  shares[2 * c] = sums[0];
  shares[2 * c + 1] = sums[1];
}

// From what was added up; `count`: the values of a channel in all processes.
__global__ void finish_shared_gradient(const double *shares, const double *count, int channels,
                                       const float *statistics, float *dgamma, float *dbeta, float *line) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  draw_line(c, channels, shares[2 * c], shares[2 * c + 1], *count, true, statistics, dgamma, dbeta, line);
}

// Adam with decoupled weight decay, blockIdx.y the variable.
__global__ void adamw(const __grid_constant__ Variables variables, float keep1, float take1, float keep2, float take2,
                      float step_size, float root_scale, float eps) {
  const Variable &v = variables.of[blockIdx.y];
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < v.count; i += (i64)gridDim.x * blockDim.x) {
    const float gradient = v.gradient[i];
    const float mean = v.first[i] * keep1 + gradient * take1;
    const float square = v.second[i] * keep2 + gradient * gradient * take2;
    v.first[i] = mean;
    v.second[i] = square;
    v.weight[i] = v.weight[i] * v.keep - step_size * mean / (sqrtf(square) * root_scale + eps);
  }
}

// Gradient descent with momentum, as PyTorch's SGD.
__global__ void sgd(const __grid_constant__ Variables variables, float momentum, int nesterov, float lr) {
  const Variable &v = variables.of[blockIdx.y];
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < v.count; i += (i64)gridDim.x * blockDim.x) {
    const float gradient = v.gradient[i] + v.decay * v.weight[i];
    const float velocity = v.first[i] * momentum + gradient;
    v.first[i] = velocity;
    v.weight[i] -= lr * (nesterov ? gradient + momentum * velocity : velocity);
  }
}

// partial[variable][block]: sums of the squares of its gradient.
__global__ void sum_of_squares(const __grid_constant__ Variables variables, double *partial) {
  __shared__ double shared[256];
  const Variable &v = variables.of[blockIdx.y];
  double sum = 0;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < v.count; i += (i64)gridDim.x * blockDim.x)
    sum += (double)v.gradient[i] * v.gradient[i];
  shared[threadIdx.x] = sum;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) partial[blockIdx.y * gridDim.x + blockIdx.x] = shared[0];
}

} // extern "C"
