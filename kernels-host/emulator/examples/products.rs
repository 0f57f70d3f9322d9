//! Speed of `wgmma`'s arithmetic, one warp's rows of m64n256: `cargo run --release -p ptx-emulator --example products`.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use ptx_emulator::tensor::accumulate::Accumulate;
use ptx_emulator::tensor::element::{Element, Matrix};
use ptx_emulator::tensor::wgmma::{K_BYTES, Wgmma};

const ROUNDS: usize = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    for element in [Element::Bf16, Element::F16, Element::E4m3, Element::S8] {
        let form = Wgmma::new(256, element, element)?.accumulate(Accumulate::of_wgmma(element));
        let k = K_BYTES / element.bytes();
        let sign = 1 << (8 * element.bytes() - 1);
        let mut state = 1_u32;
        let mut matrix = |rows: usize| {
            let one = element.format().map_or(5, |format| format.from_f32(1.0, ptx_emulator::formats::Narrowing::RN));
            let mut code = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (one ^ (state >> 20 & 7)) | ((state >> 31) * sign)
            };
            Matrix { element, k, codes: (0..rows * k).map(|_| code()).collect() }
        };
        let (a, b) = (matrix(16), form.prepare(matrix(256)));
        let mut d = vec![[0; 32]; form.d_registers()];
        let start = Instant::now();
        for _ in 0..ROUNDS {
            form.multiply_warp(&mut d, black_box(&a), &b, true)?;
        }
        let operations = (2 * 16 * 256 * k * ROUNDS) as f64;
        println!("{element}: {:.1} GFLOP/s", operations / start.elapsed().as_secs_f64() / 1e9);
        black_box(&d);
    }
    Ok(())
}
