//! Frequencies against transformers 5.17 (`LlamaRotaryEmbedding(config).inv_freq` and `.attention_scaling`
//! in f32, hidden_size 512, 8 heads, head_dim 64; the parameters stand with each case).

use super::*;

/// Two f32 ulps: torch's vectorised pow is not correctly rounded.
const RELATIVE: f32 = 2.4e-7;

fn check(theta: f64, scaling: RopeScaling, inv_freq: &[f32], attention_scale: f32) {
    let table = Rope {
        theta,
        rotary_dim: 64,
        scaling,
    }
    .table();
    assert_eq!(table.inv_freq.len(), inv_freq.len());
    for (i, (got, want)) in table.inv_freq.iter().zip(inv_freq).enumerate() {
        // The YaRN and llama3 ramps subtract nearly equal numbers, which costs a few more bits.
        assert!(
            (got - want).abs() <= 4.0 * RELATIVE * want,
            "pair {i}: {got:e} instead of {want:e}"
        );
    }
    assert!((table.attention_scale - attention_scale).abs() <= RELATIVE * attention_scale);
}

#[test]
fn default() {
    check(
        10_000.0,
        RopeScaling::None,
        &[
            1.0,
            0.7498942,
            0.56234133,
            0.4216965,
            0.31622776,
            0.23713736,
            0.17782794,
            0.13335215,
            0.1,
            0.074989416,
            0.05623413,
            0.04216965,
            0.03162278,
            0.023713736,
            0.017782794,
            0.013335215,
            0.01,
            0.0074989423,
            0.0056234132,
            0.004216965,
            0.0031622779,
            0.0023713738,
            0.0017782794,
            0.0013335214,
            0.001,
            0.0007498942,
            0.0005623413,
            0.0004216965,
            0.0003162278,
            0.00023713738,
            0.00017782794,
            0.00013335215,
        ],
        1.0,
    );
}

#[test]
fn linear() {
    check(
        10_000.0,
        RopeScaling::Linear { factor: 2.5 },
        &[
            0.4,
            0.2999577,
            0.22493653,
            0.16867861,
            0.1264911,
            0.09485494,
            0.07113118,
            0.05334086,
            0.04,
            0.029995766,
            0.022493651,
            0.01686786,
            0.012649111,
            0.009485494,
            0.0071131177,
            0.005334086,
            0.0039999997,
            0.002999577,
            0.0022493652,
            0.001686786,
            0.0012649111,
            0.00094854954,
            0.00071131176,
            0.0005334086,
            0.00040000002,
            0.00029995767,
            0.00022493652,
            0.0001686786,
            0.00012649111,
            9.485496e-05,
            7.113117e-05,
            5.334086e-05,
        ],
        1.0,
    );
}

#[test]
fn llama3() {
    check(
        500_000.0,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq: 1.0,
            high_freq: 4.0,
            original_max_position: 8192,
        },
        &[
            1.0,
            0.6636013,
            0.44036663,
            0.29222783,
            0.19392276,
            0.12868738,
            0.0853971,
            0.05666962,
            0.03760603,
            0.024955409,
            0.01656044,
            0.010989529,
            0.007292665,
            0.0048394212,
            0.003211446,
            0.0013718937,
            0.000524846,
            0.00017850779,
            7.7846555e-05,
            5.165907e-05,
            3.4281024e-05,
            2.2748929e-05,
            1.5096218e-05,
            1.0017869e-05,
            6.6478697e-06,
            4.4115345e-06,
            2.9274997e-06,
            1.9426925e-06,
            1.2891732e-06,
            8.554969e-07,
            5.677088e-07,
            3.7673226e-07,
        ],
        1.0,
    );
}

#[test]
fn yarn() {
    check(
        1_000_000.0,
        RopeScaling::Yarn {
            factor: 4.0,
            original_max_position: 32_768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        },
        &[
            1.0,
            0.64938164,
            0.4216965,
            0.27384198,
            0.17782794,
            0.1154782,
            0.074989416,
            0.048696753,
            0.03162278,
            0.020535251,
            0.013335215,
            0.008659643,
            0.0051547955,
            0.0030431177,
            0.0017785303,
            0.0010266177,
            0.00058333337,
            0.00032469083,
            0.00017570687,
            9.128065e-05,
            4.4456985e-05,
            2.8869548e-05,
            1.8747356e-05,
            1.2174189e-05,
            7.905694e-06,
            5.1338125e-06,
            3.3338035e-06,
            2.164911e-06,
            1.4058534e-06,
            9.129353e-07,
            5.9284343e-07,
            3.8498163e-07,
        ],
        1.1386294,
    );
}

#[test]
fn yarn_with_mscale_untruncated() {
    check(
        10_000.0,
        RopeScaling::Yarn {
            factor: 40.0,
            original_max_position: 4096,
            beta_fast: 16.0,
            beta_slow: 2.0,
            attention_factor: None,
            mscale: Some(0.707),
            mscale_all_dim: Some(1.0),
            truncate: false,
        },
        &[
            1.0,
            0.7498942,
            0.56234133,
            0.4216965,
            0.31622776,
            0.23713736,
            0.17782794,
            0.13335215,
            0.1,
            0.074989416,
            0.05623413,
            0.04216965,
            0.03162278,
            0.023331244,
            0.01509612,
            0.009520861,
            0.0057901046,
            0.0033299592,
            0.0017382187,
            0.0007343867,
            0.00012395246,
            5.9284346e-05,
            4.4456985e-05,
            3.3338034e-05,
            2.5e-05,
            1.8747354e-05,
            1.40585325e-05,
            1.0542412e-05,
            7.9056945e-06,
            5.9284343e-06,
            4.4456983e-06,
            3.3338035e-06,
        ],
        0.9210424,
    );
}

#[test]
fn partial_rotary_uses_the_rotated_dimensions_only() {
    let table = Rope {
        theta: 10_000.0,
        rotary_dim: 32,
        scaling: RopeScaling::None,
    }
    .table();
    assert_eq!(table.inv_freq.len(), 16);
    // theta^(-2/32)
    assert!((table.inv_freq[1] - 0.562_341_3).abs() < 1e-6);
    let (cos, sin) = table.cos_sin(3);
    assert_eq!((cos[0], sin[0]), (3f32.cos(), 3f32.sin()));
}
