// Elementary functions as plain arithmetic, so that the compiler turns loops over them into vector code. NaN and infinity
// flow as in libm, but tanh(-0) of doubles is 0. Largest errors found by tests/test_fused.py, float and double, in units in
// the last place: exp 1.0 and 1.7, tanh 1.3 and 1.4, sigmoid 2.3 and 2.2, log 0.8 and 0.9, log1p 2.4 and 2.2, expm1 3.5 and
// 3.8. A sigmoid below the smallest normal number may be 0.
// Coefficients: Moshier, Cephes 2.2 (1992). The rounding by a large constant is the classic one; 2^n is put together from
// two factors so that results below the smallest normal number come out right.

#include <stdint.h>

// e^r - 1 for |r| < 0.35.
static inline float es_expm1_near(float r) {
  float p = 1.9875691500E-4f;
  p = p * r + 1.3981999507E-3f;
  p = p * r + 8.3334519073E-3f;
  p = p * r + 4.1665795894E-2f;
  p = p * r + 1.6666665459E-1f;
  p = p * r + 5.0000001201E-1f;
  return p * (r * r) + r;
}

// 2 p / (q - p) is e^r - 1 for |r| < 0.5.
struct es_ratio { double p, q; };

static inline es_ratio es_expm1_near(double r) {
  const double s = r * r;
  double p = 1.26177193074810590878E-4;
  p = p * s + 3.02994407707441961300E-2;
  p = (p * s + 9.99999999999999999910E-1) * r;
  double q = 3.00198505138664455042E-6;
  q = q * s + 2.52448340349684104192E-3;
  q = q * s + 2.27265548208155028766E-1;
  q = q * s + 2.00000000000000000005E0;
  return {p, q};
}

static inline float es_exp(float x) {
  x = x > 100.f ? 100.f : x;
  x = x < -110.f ? -110.f : x;
  const float shifted = x * 1.44269504088896341f + 12582912.f;
  const int32_t n = __builtin_bit_cast(int32_t, shifted) - __builtin_bit_cast(int32_t, 12582912.f);
  const float k = shifted - 12582912.f;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  const float p = es_expm1_near(r) + 1.f;
  const int32_t half = n >> 1;
  return p * __builtin_bit_cast(float, (uint32_t)(half + 127) << 23) *
         __builtin_bit_cast(float, (uint32_t)(n - half + 127) << 23);
}

static inline double es_exp(double x) {
  x = x > 720. ? 720. : x;
  x = x < -760. ? -760. : x;
  const double shifted = x * 1.4426950408889634073599 + 6755399441055744.;
  const int64_t n = __builtin_bit_cast(int64_t, shifted) - __builtin_bit_cast(int64_t, 6755399441055744.);
  const double k = shifted - 6755399441055744.;
  const double r = (x - k * 6.93145751953125E-1) - k * 1.42860682030941723212E-6;
  const es_ratio near = es_expm1_near(r);
  const double e = 1. + 2. * (near.p / (near.q - near.p));
  const int64_t half = n >> 1;
  return e * __builtin_bit_cast(double, (uint64_t)(half + 1023) << 52) *
         __builtin_bit_cast(double, (uint64_t)(n - half + 1023) << 52);
}

// e^x for -87 < x < 88.8, 2^n in one factor; infinite from 88.4 on.
static inline float es_power(float x) {
  const float shifted = x * 1.44269504088896341f + 12582912.f;
  const float k = shifted - 12582912.f;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  const float p = es_expm1_near(r) + 1.f;
  // the low bits of `shifted` are n, and the shift drops the others
  return p * __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, shifted) << 23) + 0x3f800000u);
}

// e^x for what is added to 1 next: never below the smallest normal number.
static inline float es_exp_of_gate(float x) {
  x = x > 88.8f ? 88.8f : x;
  return es_power(x < -87.f ? -87.f : x);
}

static inline double es_exp_of_gate(double x) { return es_exp(x); }

template <typename F> static inline F es_sigmoid(F x) { return F(1) / (F(1) + es_exp_of_gate(-x)); }

// Of two bounds for one value compilers make branches, so the sign is set aside.
static inline float es_tanh(float x) {
  const float a = __builtin_fabsf(x), z = x * x;
  float p = -5.70498872745E-3f;
  p = p * z + 2.06390887954E-2f;
  p = p * z - 5.37397155531E-2f;
  p = p * z + 1.33314422036E-1f;
  p = p * z - 3.33332819422E-1f;
  const float near = p * z * a + a;
  const float far = 1.f - 2.f / (es_power(a + a > 30.f ? 30.f : a + a) + 1.f);
  return __builtin_copysignf(a < 0.625f ? near : far, x);
}

static inline double es_tanh(double x) {
  const double a = x < 0 ? -x : x, z = x * x;
  double p = -9.64399179425052238628E-1;
  p = p * z - 9.92877231001918586564E1;
  p = p * z - 1.61468768441708447952E3;
  double q = z + 1.12811678491632931402E2;
  q = q * z + 2.23548839060100448583E3;
  q = q * z + 4.84406305325125486048E3;
  const double near = x * z * (p / q) + x;
  const double far = 1. - 2. / (es_exp(a + a) + 1.);
  return a < 0.625 ? near : x < 0 ? -far : far;
}

static inline float es_log(float x) {
  const float scaled = x < 1.17549435e-38f ? x * 8388608.f : x;  // numbers below the smallest normal one
  const int32_t bits = __builtin_bit_cast(int32_t, scaled);
  const int32_t above = (bits & 0x007fffff) > 0x003504f3 ? 1 : 0;  // mantissa over the square root of 2
  const float m = __builtin_bit_cast(float, (bits & 0x007fffff) | ((127 - above) << 23)) - 1.f;
  const float e = (float)((bits >> 23) - 127 + above) - (x < 1.17549435e-38f ? 23.f : 0.f);
  const float z = m * m;
  float p = 7.0376836292E-2f;
  p = p * m - 1.1514610310E-1f;
  p = p * m + 1.1676998740E-1f;
  p = p * m - 1.2420140846E-1f;
  p = p * m + 1.4249322787E-1f;
  p = p * m - 1.6668057665E-1f;
  p = p * m + 2.0000714765E-1f;
  p = p * m - 2.4999993993E-1f;
  p = p * m + 3.3333331174E-1f;
  const float y = m * z * p - e * 2.12194440e-4f - 0.5f * z;
  const float r = m + y + e * 0.693359375f;
  return x > 0 ? (x > 3.402823466e38f ? x : r) : x == 0 ? -__builtin_inff() : __builtin_nanf("");
}

static inline double es_log(double x) {
  const double scaled = x < 2.2250738585072014e-308 ? x * 4503599627370496. : x;
  const int64_t bits = __builtin_bit_cast(int64_t, scaled);
  const int64_t above = (bits & 0x000fffffffffffff) > 0x0006a09e667f3bcd ? 1 : 0;
  const double m = __builtin_bit_cast(double, (bits & 0x000fffffffffffff) | ((1023 - above) << 52)) - 1.;
  const double e = (double)((bits >> 52) - 1023 + above) - (x < 2.2250738585072014e-308 ? 52. : 0.);
  const double z = m * m;
  double p = 1.01875663804580931796E-4;
  p = p * m + 4.97494994976747001425E-1;
  p = p * m + 4.70579119878881725854E0;
  p = p * m + 1.44989225341610930846E1;
  p = p * m + 1.79368678507819816313E1;
  p = p * m + 7.70838733755885391666E0;
  double q = m + 1.12873587189167450590E1;
  q = q * m + 4.52279145837532221105E1;
  q = q * m + 8.29875266912776603211E1;
  q = q * m + 7.11544750618563894466E1;
  q = q * m + 2.31251620126765340583E1;
  const double y = m * (z * p / q) - e * 2.121944400546905827679e-4 - 0.5 * z;
  const double r = m + y + e * 0.693359375;
  return x > 0 ? (x > 1.7976931348623157e308 ? x : r) : x == 0 ? -__builtin_inf() : __builtin_nan("");
}

// log(1 + x) from the log of the rounded sum, corrected for its rounding.
template <typename F> static inline F es_log1p(F x) {
  const F u = F(1) + x, d = u - F(1);
  const F r = es_log(u) * (x / (d == 0 ? F(1) : d));
  return d == 0 ? x : u > F(3e38) ? es_log(u) : r;
}

static inline float es_expm1(float x) { return x < 0.34f && x > -0.34f ? es_expm1_near(x) : es_exp(x) - 1.f; }

static inline double es_expm1(double x) {
  const es_ratio near = es_expm1_near(x);
  const double half = near.p / (near.q - near.p);
  return x < 0.5 && x > -0.5 ? half + half : es_exp(x) - 1.;
}

static inline float es_sqrt(float x) { return __builtin_sqrtf(x); }
static inline double es_sqrt(double x) { return __builtin_sqrt(x); }
static inline float es_sin(float x) { return __builtin_sinf(x); }
static inline double es_sin(double x) { return __builtin_sin(x); }
static inline float es_cos(float x) { return __builtin_cosf(x); }
static inline double es_cos(double x) { return __builtin_cos(x); }
static inline float es_erf(float x) { return __builtin_erff(x); }
static inline double es_erf(double x) { return __builtin_erf(x); }
static inline float es_atan(float x) { return __builtin_atanf(x); }
static inline double es_atan(double x) { return __builtin_atan(x); }
static inline float es_pow(float x, float y) { return __builtin_powf(x, y); }
static inline double es_pow(double x, double y) { return __builtin_pow(x, y); }
static inline float es_floor(float x) { return __builtin_floorf(x); }
static inline double es_floor(double x) { return __builtin_floor(x); }
