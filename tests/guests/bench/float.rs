//! Floating-point kernels. Only operations that IEEE 754 defines to the bit: checksums agree everywhere.

use core::arch::x86_64::*;

fn sqrt(x: f64) -> f64 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(x))) }
}

/// Five bodies under gravity, in scalar doubles.
pub fn nbody(iterations: u64) -> u64 {
    let mut position = [[0.0f64; 3]; 5];
    let mut velocity = [[0.0f64; 3]; 5];
    let mass = [39.47, 0.037, 0.011, 0.0017, 0.002];
    for (i, body) in position.iter_mut().enumerate() {
        let i = i as f64;
        *body = [i * 4.84, i * i * 1.16 - i, i * 0.1];
    }
    for (i, body) in velocity.iter_mut().enumerate() {
        let i = i as f64;
        *body = [0.3 * i, 2.8 - 0.4 * i, 0.02 * i];
    }
    for _ in 0..iterations {
        for i in 0..5 {
            for j in i + 1..5 {
                let mut d = [0.0; 3];
                let mut square = 0.0;
                for axis in 0..3 {
                    d[axis] = position[i][axis] - position[j][axis];
                    square += d[axis] * d[axis];
                }
                let force = 0.001 / (square * sqrt(square));
                for axis in 0..3 {
                    velocity[i][axis] -= d[axis] * mass[j] * force;
                    velocity[j][axis] += d[axis] * mass[i] * force;
                }
            }
        }
        for (body, speed) in position.iter_mut().zip(&velocity) {
            for (coordinate, v) in body.iter_mut().zip(speed) {
                *coordinate += 0.001 * v;
            }
        }
    }
    position.iter().flatten().fold(0, |sum, x| sum.rotate_left(9) ^ x.to_bits())
}

const WIDTH: usize = 512;
const HEIGHT: usize = 256;
const LIMIT: u32 = 200;

/// Two points of the Mandelbrot set at a time.
pub fn mandelbrot_sse2(iterations: u64) -> u64 {
    let mut total = 0u64;
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        for round in 0..iterations {
            for row in 0..HEIGHT {
                let ci = _mm_set1_pd(row as f64 * 2.4 / HEIGHT as f64 - 1.2 + round as f64 * 1e-3);
                for column in (0..WIDTH).step_by(2) {
                    let x = column as f64;
                    let scale = 3.0 / WIDTH as f64;
                    let cr = _mm_set_pd((x + 1.0) * scale - 2.2, x * scale - 2.2);
                    let (mut zr, mut zi) = (_mm_setzero_pd(), _mm_setzero_pd());
                    let mut counts = _mm_setzero_si128();
                    for _ in 0..LIMIT {
                        let (r2, i2) = (_mm_mul_pd(zr, zr), _mm_mul_pd(zi, zi));
                        let inside = _mm_cmple_pd(_mm_add_pd(r2, i2), _mm_set1_pd(4.0));
                        if _mm_movemask_pd(inside) == 0 {
                            break;
                        }
                        counts = _mm_sub_epi64(counts, _mm_castpd_si128(inside));
                        let cross = _mm_mul_pd(zr, zi);
                        zi = _mm_add_pd(_mm_add_pd(cross, cross), ci);
                        zr = _mm_add_pd(_mm_sub_pd(r2, i2), cr);
                    }
                    let high = _mm_unpackhi_epi64(counts, counts);
                    for lane in [_mm_cvtsi128_si64(counts), _mm_cvtsi128_si64(high)] {
                        total = total.wrapping_mul(31).wrapping_add(lane as u64);
                    }
                }
            }
        }
    }
    total
}

/// Four points of the Mandelbrot set at a time; the same sum as with two.
pub fn mandelbrot_avx2(iterations: u64) -> u64 {
    // SAFETY: the table of kernels asks for AVX2 first.
    unsafe { mandelbrot_avx2_inner(iterations) }
}

#[target_feature(enable = "avx2")]
unsafe fn mandelbrot_avx2_inner(iterations: u64) -> u64 {
    let mut total = 0u64;
    for round in 0..iterations {
        for row in 0..HEIGHT {
            let ci = _mm256_set1_pd(row as f64 * 2.4 / HEIGHT as f64 - 1.2 + round as f64 * 1e-3);
            for column in (0..WIDTH).step_by(4) {
                let x = column as f64;
                let scale = 3.0 / WIDTH as f64;
                let c = |i: f64| (x + i) * scale - 2.2;
                let cr = _mm256_set_pd(c(3.0), c(2.0), c(1.0), c(0.0));
                let (mut zr, mut zi) = (_mm256_setzero_pd(), _mm256_setzero_pd());
                let mut counts = _mm256_setzero_si256();
                for _ in 0..LIMIT {
                    let (r2, i2) = (_mm256_mul_pd(zr, zr), _mm256_mul_pd(zi, zi));
                    let square = _mm256_add_pd(r2, i2);
                    let inside = _mm256_cmp_pd::<_CMP_LE_OQ>(square, _mm256_set1_pd(4.0));
                    if _mm256_movemask_pd(inside) == 0 {
                        break;
                    }
                    counts = _mm256_sub_epi64(counts, _mm256_castpd_si256(inside));
                    let cross = _mm256_mul_pd(zr, zi);
                    zi = _mm256_add_pd(_mm256_add_pd(cross, cross), ci);
                    zr = _mm256_add_pd(_mm256_sub_pd(r2, i2), cr);
                }
                let mut lanes = [0u64; 4];
                // SAFETY: the array has room for 32 bytes.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), counts) };
                for lane in lanes {
                    total = total.wrapping_mul(31).wrapping_add(lane);
                }
            }
        }
    }
    total
}
